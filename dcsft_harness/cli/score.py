"""`dcsft score`: adds a checkpoint, or all checkpoints of a training run, to a board."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcsft_harness import ranks
from dcsft_harness.cli import bar
from dcsft_harness.cli.sources import data_root
from dcsft_harness.errors import HarnessError

if TYPE_CHECKING:
    from dcsft_harness.evaluation.autoeval.folder import BoardFolder
    from dcsft_harness.evaluation.autoeval.score import Row
    from dcsft_harness.evaluation.autoeval.settings import Settings
    from dcsft_harness.evaluation.autoeval.subject import Subject
    from dcsft_harness.evaluation.autoeval.watch import Watched

FOLDER = click.Path(path_type=Path, file_okay=False)
SUITES = ("digits", "classification", "grounding", "reasoning", "paper")


class _Terminal:
    """Reports on stderr what happens to a board."""

    def say(self, text: str) -> None:
        """Prints a line."""
        bar.say(f"score: {text}")

    def stage(self, title: str) -> AbstractContextManager[bar.Report]:
        """Shows a bar."""
        return bar.stage(title)


SHOW = _Terminal()


@click.command()
@click.argument("ckpt", required=False)
@click.option("--suite", type=click.Choice(SUITES), required=True, help="The tasks to score on.")
@click.option("--board", type=FOLDER, required=True, help="The board's folder, new or existing.")
@click.option(
    "--watch",
    metavar="DIR",
    help="Score the checkpoints that `dcsft train` writes to DIR as they appear, then the final weights.",
)
@click.option(
    "--name",
    help="The row's name; default: the folder's. Checkpoints of a run add their step. Use NAME=CKPT and "
    "--watch NAME=DIR to name both.",
)
@click.option(
    "--base",
    metavar="CKPT",
    help="The base of the adapter (with --watch: of the run); default: the base that it was trained on.",
)
@click.option("--baseline", metavar="NAME", help="The row to compare with; remembered.")
@click.option(
    "--results",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="More results for the board, from `dcsft evaluate` or `lmms-eval --log_samples`; remembered.",
)
@click.option(
    "--apart", is_flag=True, help="Show rows that cannot be compared in separate tables; remembered."
)
@click.option("--model", default="dcsft_hf", show_default=True, help="An lmms-eval model.")
@click.option(
    "--model-args", default="", metavar="K=V,...", help="The model's arguments: batch_size=8,device=cuda:1"
)
@click.option(
    "--group",
    help="Name shared by all seeds of a configuration; default: from a name like 'SFT (seed 1)'.",
)
@click.option("--limit", type=int, help="Use only the first N documents of each task.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds between checks."
)
@click.option(
    "--stay", is_flag=True, help="Keep watching after the run's process has ended, as it may be resumed."
)
@data_root
def score(ckpt: str | None, board: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over what the options say
    """Score a checkpoint on a suite and add it to a board.

    CKPT is an adapter, a full checkpoint or a hub name, OWNER/NAME. Finished tasks are kept, so the same
    command resumes after an interruption. The leaderboard is in BOARD/leaderboard.

    \b
    dcsft score cold --suite digits --board scored
    dcsft score adapter --suite digits --board scored --baseline cold
    dcsft score --watch adapter --suite digits --board scored
    """  # noqa: D301 - click reads the \b
    if ckpt is None and options["watch"] is None:
        raise HarnessError("there is nothing to score", "Give CKPT, or --watch DIR, or both")
    if ranks.world_size() > 1:
        raise HarnessError(
            f"dcsft score runs in one process, and this launch has {ranks.world_size()}",
            "Start `dcsft evaluate` that way, and pass its folder with --results",
        )
    call = _call(ckpt, board, options)
    for row in call.rows():
        call.show_row(row)


def _call(ckpt: str | None, folder: Path, options: dict[str, Any]) -> "_Call":
    """What is asked for; everything is refused here that can be before a model is loaded."""
    from dcsft_harness.evaluation.autoeval.folder import open_board
    from dcsft_harness.evaluation.autoeval.score import refuse_baseline
    from dcsft_harness.evaluation.autoeval.settings import Settings
    from dcsft_harness.evaluation.autoeval.subject import open_subject
    from dcsft_harness.evaluation.autoeval.watch import Watched, at_step
    from dcsft_harness.leaderboard.board import group_of
    from dcsft_harness.lmms.tasks import refuse_unprepared

    settings = Settings(*(options[name] for name in ("suite", "model", "model_args", "limit", "group")))
    settings.check()
    given = [Path(one) for one in options["results"]]
    call = _Call(open_board(folder, options["baseline"], options["apart"], given), settings)
    name, base = options["name"], options["base"]
    if ckpt is not None and options["watch"] is not None:
        if name is not None:
            raise HarnessError(f"--name {name} may be CKPT's or the run's", "Write NAME=CKPT or NAME=DIR")
        base = None
    if ckpt is not None:
        call.name, place = _named(ckpt, name)
        call.subject = open_subject(place, base)
        if (origin := call.subject.origin) is not None and call.name == f"checkpoint-{origin.step}":
            call.name = at_step(origin.run.name, origin.step)
    if options["watch"] is not None:
        name, place = _named(options["watch"], name)
        call.watched = Watched(Path(place), name, options["base"], options["every"], options["stay"])
        refuse_unprepared(settings.tasks)
    coming = [one for one in (call.name, call.watched and call.watched.name) if one]
    for one in coming:
        call.board.of(one)
    refuse_baseline(call.board, [*coming, settings.group, *(group_of(one) for one in coming)])
    return call


@dataclass
class _Call:
    """One call of the command.

    Attributes:
        board: where to.
        settings: on what, and how.
        subject: what CKPT names.
        name: its row.
        watched: the run that --watch names.
        built: the leaderboard as it was made last.
        clock: since the last row.
    """

    board: "BoardFolder"
    settings: "Settings"
    subject: "Subject | None" = None
    name: str = ""
    watched: "Watched | None" = None
    built: Any = None
    clock: bar.Clock = field(default_factory=bar.Clock)

    def rows(self) -> Iterator["Row"]:
        """Scores, row by row."""
        from dcsft_harness.evaluation.autoeval.score import score
        from dcsft_harness.evaluation.autoeval.watch import watch

        if self.subject is not None:
            # --group is the run's where there is one: CKPT is what it is compared with.
            settings = self.settings if self.watched is None else replace(self.settings, group=None)
            row = score(self.board, self.name, lambda _: self.subject, settings, SHOW)
            assert row is not None
            yield row
        if self.watched is not None:
            yield from watch(self.board, self.watched, self.settings, SHOW)

    def show_row(self, row: "Row") -> None:
        """Makes the leaderboard with a row, and prints the row against the baseline."""
        from dcsft_harness.evaluation.autoeval.score import build, told

        if not row.made:
            SHOW.say(f"{row.name}: already scored on its {len(row.kept)} tasks")
            if self.built is not None:
                return
        first, self.built = self.built is None, build(self.board, SHOW)
        if first:
            for one in self.built.summary.left_out:
                bar.say(f"dcsft: left out: {one.reason}")
        table, said = told(self.board, row.name, self.built)
        bar.show(table)
        bar.closing(f"score {row.name}", said, self.clock, self.board.leaderboard)
        self.clock = bar.Clock()


def _named(given: str, name: str | None) -> tuple[str, str]:
    """The row's name and the path in NAME=PATH, or in a path and what --name says.

    Raises:
        HarnessError: both say a name.
    """
    from dcsft_harness.leaderboard.load import named

    own, place = named(Path(given))
    if own is not None and name is not None:
        raise HarnessError(f"{given} and --name {name} both give a name", "Give one of them")
    chosen = own or name or place.resolve().name
    return chosen, given if own is None else given.partition("=")[2]


commands = (score,)
