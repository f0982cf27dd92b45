"""`dcsft score`: adds a checkpoint, or all checkpoints of a training run, to a board."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcsft_harness import interrupts, ranks
from dcsft_harness.cli import bar
from dcsft_harness.cli.running import ROOT, SettingsCommand
from dcsft_harness.errors import HarnessError

if TYPE_CHECKING:
    from dcsft_harness.evaluation.autoeval import BoardFolder, Row, ScoreOptions
    from dcsft_harness.evaluation.subject import Subject


class _Terminal:
    """Prints a board's events on stderr."""

    def say(self, text: str) -> None:
        """Prints a line."""
        bar.say(f"score: {text}")

    def stage(self, title: str) -> AbstractContextManager[bar.Report]:
        """Shows a bar."""
        return bar.stage(title)


SHOW = _Terminal()


def _score(**given: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    from dcsft_harness.evaluation.autoeval import build, score, shown
    from dcsft_harness.evaluation.watching import watch

    clock = bar.Clock()
    options = _score_options().from_options(
        {name: one for name, one in given.items() if one not in (None, ())}
    )
    if options.ckpt is None and options.watch is None:
        raise HarnessError("there is nothing to score", "Pass CKPT, or --watch DIR, or both")
    if ranks.world_size() > 1:
        raise HarnessError(
            f"dcsft score runs in one process, but this launch has {ranks.world_size()}",
            "Launch `dcsft evaluate` instead, and pass its folder with --results",
        )
    board, subject, watched = _opened(options)

    def rows() -> Iterator["Row"]:
        if subject is not None:
            name, weights = subject
            # With --watch, --group belongs to the run; CKPT is what the run is compared with.
            own = options if watched is None else options.changed(group=None)
            row = score(board, name, lambda _: weights, own, SHOW)
            assert row is not None
            yield row
        if watched is not None:
            yield from watch(board, *watched, options, SHOW)

    built = None
    with interrupts.noting(board.names):
        for row in rows():
            if not row.made:
                count = f"{len(row.kept)} tasks" if len(row.kept) > 1 else "task"
                SHOW.say(f"{row.name}: already scored on its {count}")
                if built is not None:
                    continue
            first, built = built is None, build(board, SHOW)
            if first:
                for one in built.summary.left_out:
                    bar.say(f"dcsft: left out: {one.reason}")
            table, said = shown(board, row.name, built)
            bar.show(table)
            bar.closing(f"score {row.name}", said or "done", clock, board.leaderboard)
            clock = bar.Clock()


def _opened(
    options: "ScoreOptions",
) -> tuple["BoardFolder", "tuple[str, Subject] | None", tuple[Path, str] | None]:
    """The board, the row and weights of CKPT, and the run of --watch and its row.

    Checks everything that can be checked before a model is loaded.
    """
    from dcsft_harness import lmms
    from dcsft_harness.evaluation.autoeval import open_board, refuse_baseline
    from dcsft_harness.evaluation.subject import open_subject
    from dcsft_harness.leaderboard.board import at_step, group_of
    from dcsft_harness.lmms.tasks import refuse_unprepared

    lmms.include(options.include_path)
    options.check()
    board = open_board(options.board, options.baseline, options.apart, options.results)
    name, base = options.name, options.base
    if options.ckpt is not None and options.watch is not None:
        if name is not None:
            raise HarnessError(
                f"--name {name} could be for CKPT or for the run", "Write NAME=CKPT or NAME=DIR"
            )
        base = None
    subject = watched = None
    coming = []
    if options.ckpt is not None:
        row, place = _named(options.ckpt, name)
        weights = open_subject(place, base)
        if (origin := weights.origin) is not None and row == f"checkpoint-{origin.step}":
            row = at_step(origin.run.name, origin.step)
        subject = row, weights
        coming.append(row)
    if options.watch is not None:
        row, place = _named(options.watch, name)
        watched = Path(place), row
        coming.append(row)
        refuse_unprepared([task for task in options.tasks if task != options.own])
        if options.own is not None:  # a row that cannot be used would end the watch hours later
            options.opened([options.own])
    for one in coming:
        board.of(one)
    refuse_baseline(board, [*coming, options.group, *(group_of(one) for one in coming)])
    return board, subject, watched


def _named(given: str, name: str | None) -> tuple[str, str]:
    """The row's name and the path, from NAME=PATH, or from a path and --name, but not from both."""
    from dcsft_harness.leaderboard.collect import named

    own, place = named(Path(given))
    if own is not None and name is not None:
        raise HarnessError(f"{given} and --name {name} both give a name", "Use only one of them")
    chosen = own or name or place.resolve().name
    return chosen, given if own is None else given.partition("=")[2]


def _score_options() -> "type[ScoreOptions]":
    from dcsft_harness.evaluation.autoeval import ScoreOptions

    return ScoreOptions


score = SettingsCommand(
    "score",
    settings=_score_options,
    params=[click.Option(["--data-root"], **ROOT)],
    callback=_score,
    help="""Score a checkpoint on a suite and add it to a board.

CKPT is an adapter, a full checkpoint or a hub name, OWNER/NAME. Finished tasks are kept, so the same
command resumes after an interruption. The leaderboard is in BOARD/leaderboard.

\b
dcsft score cold --suite digits --board scored
dcsft score adapter --suite digits --board scored --baseline cold
dcsft score adapter --data held-out.jsonl --scorer exact_word --board scored
dcsft score --watch adapter --suite digits --board scored""",
)
