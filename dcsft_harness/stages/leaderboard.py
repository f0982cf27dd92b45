"""`dcsft leaderboard build`: Compare checkpoints: scores -> leaderboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard import Options
from dcsft_harness.settings import option
from dcsft_harness.stages.stage import Notes, Progress, Stage


class LeaderboardOptions(Options):
    """What to compare, and how."""

    results: tuple[Path, ...] = option(
        about="Folders of `dcsft evaluate` and of `lmms-eval --log_samples`; NAME=FOLDER names the row.",
        positional=True,
        reads="artifact",
        min_length=1,
    )
    id: tuple[str, ...] = option((), "Tasks of others that are in distribution.", metavar="TASK,...")
    ood: tuple[str, ...] = option((), "Tasks of others that are out of distribution.", metavar="TASK,...")

    @model_validator(mode="before")
    @classmethod
    def _one_side(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`id` and `ood` together are `distributions`."""
        given = dict(values)
        found = dict(given.get("distributions") or {})
        for side in ("id", "ood"):
            names = given.get(side) or ()
            for task in names.split(",") if isinstance(names, str) else names:
                task = task.strip()
                if task and found.setdefault(task, side) != side:
                    raise HarnessError(f"--id and --ood both name {task}", "Name it in one of them")
        return {**given, "distributions": found}

    @field_validator("results", mode="before")
    @classmethod
    def _as_list(cls, given: object) -> object:
        return [given] if isinstance(given, str | Path) else given


def run(options: LeaderboardOptions, output: Path, progress: Progress | None) -> Notes:
    """Compares."""
    from dcsft_harness.leaderboard import build, markdown

    built = build(list(options.results), output, options=options.part(Options), progress=progress)
    return {
        "table": markdown(built.summary),
        "rows": len(built.board.rows),
        "left_out": [one.reason for one in built.board.left_out],  # with their paths
    }


def summary(notes: Mapping[str, Any]) -> str:
    """How many rows there are, and how many folders were left out."""
    left = len(notes["left_out"])
    return f"{notes['rows']} rows" + (f", {left} left out" if left else "")


STAGE = Stage(
    verb="leaderboard build",
    options=LeaderboardOptions,
    run=run,
    summary=summary,
    writes="leaderboard",
    example="dcsft leaderboard build base SFT=out/logs --baseline base --output board",
    show=lambda notes: str(notes["table"]),
    remarks=lambda notes: [f"left out: {reason}" for reason in notes["left_out"]],
    then="dcsft leaderboard serve {output}",
)
