"""`dcsft leaderboard build`: Compare checkpoints: scores -> leaderboard."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options
from dcsft_harness.settings import option
from dcsft_harness.stages.stage import Notes, Progress, Stage


class LeaderboardOptions(Options):
    """What to compare, and how."""

    results: tuple[Path, ...] = option(
        about="Folders of `dcsft evaluate` and of `lmms-eval --log_samples`, or folders above them; "
        "NAME=FOLDER or NAME=FOLDER/RUN names the row.",
        positional=True,
        reads="artifact",
        min_length=1,
    )
    id: tuple[str, ...] = option(
        (), "Tasks to count as in-distribution, if their results do not say so.", metavar="TASK,..."
    )
    ood: tuple[str, ...] = option((), "Tasks to count as out of distribution.", metavar="TASK,...")

    @model_validator(mode="before")
    @classmethod
    def _one_side(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = dict(values)
        found = dict(given.get("distributions") or {})
        for side in ("id", "ood"):
            names = given.get(side) or ()
            for task in names.split(",") if isinstance(names, str) else names:
                task = task.strip()
                if task and found.setdefault(task, side) != side:
                    raise HarnessError(f"--id and --ood both name {task}", "Name it in one of them")
        return {**given, "distributions": found}

    def deciding(self) -> dict[str, Any]:
        """The settings, the content of the names file, the number of runs and their missing files.

        Existing files are inputs of the board, including those of runs that it leaves out.
        """
        from dcsft_harness.leaderboard.collect import find, incomplete, named, read_names

        places = [named(one)[1] for one in self.results]
        runs = [(place, run) for place in places for run in find(place)]
        # By names below the places, whose own content decides: see `manifest.done`.
        lacking = [
            f"{os.path.relpath(run, place.parent)}: {name}" for place, run in runs for name in incomplete(run)
        ]
        found = super().deciding() | ({} if len(runs) == len(self.results) else {"runs": len(runs)})
        found |= {"incomplete": lacking} if lacking else {}
        return found if self.names is None else found | {"names": read_names(self.names)}


def run(options: LeaderboardOptions, output: Path, progress: Progress | None) -> Notes:
    """Compares."""
    from dcsft_harness.leaderboard import build, markdown
    from dcsft_harness.leaderboard.load import counted, examples

    built = build(
        list(options.results), output, options=options.part(Options), progress=progress, alone=False
    )
    left_out, runs = built.board.left_out, len(built.board.results)
    return {
        "table": markdown(built.summary),
        "rows": len(built.board.rows),
        "apart": sum(len(one.board.rows) for one in built.board.apart),
        "left_out": [one.reason for one in left_out],  # with their paths
        "counted": counted(left_out, runs) if left_out else "",
        "examples": examples(left_out),
        "unshown": dict(built.unshown),
    }


def summary(notes: Mapping[str, Any]) -> str:
    """The number of rows, of those apart, and of folders left out."""
    left, apart = len(notes["left_out"]), notes.get("apart", 0)
    rows = f"{notes['rows']} row{'s' * (notes['rows'] != 1)}"
    others = f", {apart} in tables of their own in leaderboard.md" if apart else ""
    return f"{rows}{others}" + (f", {left} left out" if left else "")


def remarks(notes: Mapping[str, Any]) -> list[str]:
    """The folders left out: the counts by kind, and one reason of each kind; and samples not shown."""
    unshown = [f"samples of {task}: {why}" for task, why in notes.get("unshown", {}).items()]
    if not notes["left_out"]:
        return unshown
    more = len(notes["left_out"]) > len(notes["examples"])
    where = ["leaderboard.md lists every run that was left out, with its reason"] if more else []
    return [notes["counted"], *(f"such as: {reason}" for reason in notes["examples"]), *where, *unshown]


STAGE = Stage(
    verb="leaderboard build",
    options=LeaderboardOptions,
    run=run,
    summary=summary,
    writes="leaderboard",
    example="dcsft leaderboard build base SFT=out/logs --baseline base --output board",
    show=lambda notes: str(notes["table"]),
    remarks=remarks,
    then="dcsft leaderboard serve {output}",
    light=(0.27e9, 0.7),
)
