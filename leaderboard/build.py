"""Folders of results -> a leaderboard artifact: Markdown, CSV, LaTeX, JSON, Parquet, plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.board import Board
from dcsft_harness.leaderboard.collect import Progress, read_names
from dcsft_harness.leaderboard.compare import PAIRS, read_labels, summarize
from dcsft_harness.leaderboard.load import load, nothing_left
from dcsft_harness.leaderboard.logs import Choices
from dcsft_harness.leaderboard.page import FOLDER, Source, write_page
from dcsft_harness.leaderboard.report import FILE, document, table, text, write_items
from dcsft_harness.leaderboard.report.plots import draw
from dcsft_harness.leaderboard.summary import Summary, published
from dcsft_harness.settings import Settings, option, read_pairs


@dataclass(frozen=True)
class Built:
    """A finished leaderboard."""

    board: Board
    summary: Summary
    unshown: Mapping[str, str]  # task -> why the page's samples are incomplete


class Options(Settings):
    """How a leaderboard is built."""

    baseline: str | None = option(
        None, "The row, or group of seeds, to compare with; it comes first.", metavar="NAME"
    )
    strict: bool = option(False, "Fail if a folder cannot be used; otherwise it is left out.")
    apart: bool = option(False, "Show rows that cannot be compared in separate tables.")
    published: bool = option(False, "Quote the paper's figures beside the board.")
    pairs: int = option(PAIRS, "Test every pair of rows, on boards with at most this many rows.", ge=0)
    metrics: Mapping[str, str] = option(
        about="The metric of an lmms-eval log that is a task's score: TASK=NAME.",
        metavar="TASK=NAME",
        repeated=True,
        default_factory=dict,
        also="--metric",
    )
    distributions: Mapping[str, Literal["id", "ood"]] = option(
        about="Task -> id or ood, for results that do not state it.", default_factory=dict, cli=False
    )
    names: Path | None = option(
        None,
        "A YAML file that renames rows: a row's name or FOLDER/RUN, and its new name.",
        metavar="FILE",
        reads="file",
    )
    at_k: int | None = option(
        None, "With K responses per item: the k of avg@k, maj@k and pass@k; by default K.", ge=1
    )
    labels: tuple[Path, ...] = option(
        (), "Labels of the evaluated items, for accuracy by difficulty.", repeated=True, reads="artifact"
    )
    items: bool = option(True, "Write the Parquet file of all items.")
    plots: bool = option(True, "Draw plots.")
    page: bool = option(True, "Write the page, page/index.html.")
    samples: int = option(
        0,
        "Items per task to show with prompt and images on the page, starting with those that two rows score"
        " differently; this opens their tasks.",
        ge=0,
    )
    rollouts: tuple[Path, ...] = option(
        (),
        "Rollouts to show on the page: as many items as --samples, with all responses.",
        repeated=True,
        reads="artifact",
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _read_metrics(cls, given: object) -> object:
        return read_pairs(given, "--metric", "TASK=NAME", "--metric vqa=f1")

    def recorded(self) -> dict[str, Any]:
        """The settings for the manifest: everything that differs from the default, and the baseline."""
        standard = Options(strict=self.strict)
        changed = {
            name: value
            for name in Options.model_fields
            if name not in ("labels", "strict", "rollouts", "names")
            and (value := getattr(self, name)) not in ({}, getattr(standard, name))
        }
        return {"baseline": self.baseline, **changed}


def build(
    results: Sequence[Path],
    output: Path,
    baseline: str | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    alone: bool = True,
) -> Built:
    """Writes the leaderboard of some folders of results.

    `results` are as for `load`, and `baseline` replaces the options'. `progress` is called with (runs read,
    total runs). With `alone`, a board of one row is written if all others had to be left out. Returns the
    board and its numbers, for `markdown`.

    Raises:
        HarnessError: see `load` and `read_labels`; nothing could be compared, or is labeled; or the output is
            occupied or cannot be written. Then nothing is written.
    """
    manifest.refuse_occupied(output)  # before the reading, which may take a while
    options = options or Options(baseline=baseline, strict=True)
    if options.rollouts and not (options.page and options.samples):
        raise HarnessError("--rollouts needs a page with samples", "Add --samples N")
    labels = read_labels(options.labels)
    board = load(
        results,
        options.baseline,
        strict=options.strict,
        apart=options.apart,
        choices=Choices(options.metrics or {}, options.distributions or {}, options.at_k),
        names=None if options.names is None else read_names(options.names),
        progress=progress,
    )
    if not alone and board.left_out and len(board.rows) < 2:
        raise nothing_left(board.left_out, len(board.results))
    shown = (board, *(one.board for one in board.apart))
    if options.labels and not any(item in labels for one in shown for t in one.tasks for item in t.item_ids):
        raise HarnessError(
            f"--labels {', '.join(map(str, options.labels))}: no evaluated item has a label there",
            "Give labels of the evaluated items, which a pool's are only where the pool was evaluated",
        )
    summary = summarize(board, options.pairs, published() if options.published else (), labels)
    inputs = _inputs(board)
    for kind, folders in (("labels", options.labels), ("rollouts", options.rollouts)):
        inputs |= {f"{kind} {number}": folder for number, folder in enumerate(folders, start=1)}
    with manifest.writing("leaderboard", output, options.recorded(), inputs) as draft:
        unshown = _write(draft.folder, output, board, summary, options, labels)
        draft.notes |= {
            "rows": [line.name for line in summary.lines],
            "tasks": [task.name for task in board.tasks],
            "left_out": [one.reason for one in summary.left_out],
        }
    return Built(board, summary, unshown)


def _write(
    folder: Path, output: Path, board: Board, summary: Summary, options: Options, labels: Mapping[str, str]
) -> Mapping[str, str]:
    items = {"file": FILE, "rows": write_items(folder / FILE, board, labels)} if options.items else None
    plots = draw(summary, folder) if options.plots else []
    more = {"items": items, "plots": [{"title": title, "files": files} for title, files in plots]}
    made = document(summary, output, more)
    for name, content in {
        "leaderboard.md": table.report(summary, [(title, files[0]) for title, files in plots]),
        "leaderboard.csv": table.csv_text(summary),
        "comparisons.csv": table.comparisons_csv(summary),
        "standings.csv": table.standings_csv(summary),
        **({"budgets.csv": table.budgets_csv(summary)} if summary.budgets else {}),
        **({"crossings.csv": table.crossings_csv(summary)} if summary.overtakings else {}),
        "leaderboard.tex": table.latex(summary),
        "leaderboard.json": text(made),
    }.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    if options.page:
        saved = ["leaderboard.csv", "comparisons.csv", "leaderboard.json", *(files[0] for _, files in plots)]
        downloads = [folder / name for name in saved]
        source = Source(board, summary, made, labels, options.samples, options.rollouts, downloads)
        return write_page(folder / FOLDER, source)
    return {}


def _inputs(board: Board) -> dict[str, Path]:
    """The board's inputs; the order of the rows is part of the result, so the roles include it.

    The files of results that were left out are inputs too: the board is another one once they are repaired.
    """
    found: dict[str, Path] = {}
    results = sorted((result for one in board.boards for result in one.results), key=lambda one: one.number)
    for number, result in enumerate(results, start=1):
        role = f"scores {number} ({result.name})"
        if result.is_log:
            found |= {f"{role}: {file.name}": file for file in result.files}
        else:
            found[role] = result.folder
    for number, left in enumerate(board.left_out, start=1):
        found |= {f"left out {number}: {file.name}": file for file in left.files}
    return found
