"""The records of a finished board: every number of its outputs, unrounded, and its remarks.

Every output format prints a Summary, so the formats cannot disagree. Published figures are quoted beside it
with their source, and never tested against.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml

from dcsft_harness.leaderboard.board import LeftOut, Row, Task
from dcsft_harness.leaderboard.sampled import Crossing, Spent, place_of
from dcsft_harness.leaderboard.stats import Codes, Estimate, Rank


@dataclass(frozen=True)
class Quoted:
    """One row of a published table."""

    name: str  # its name in the source
    model: str  # the trained model
    setting: str  # the training method
    source: str
    read: str  # how the figures were obtained
    cells: Mapping[str, float]  # task -> accuracy in [0, 1], as printed
    mean_over: tuple[str, ...] = ()  # the tasks in the printed mean; empty if no mean is quoted
    mean: float | None = None  # the printed mean, in [0, 1], or None

    @property
    def recomputed(self) -> float | None:
        """The mean of the printed cells, None if one is missing."""
        if not self.mean_over or any(task not in self.cells for task in self.mean_over):
            return None
        return sum(self.cells[task] for task in self.mean_over) / len(self.mean_over)

    @property
    def follows(self) -> bool | None:
        """Whether the printed mean follows from the printed cells; None if that cannot be checked.

        Cells and mean are rounded to two decimals of a percent, so they may differ by one such unit.
        """
        found = self.recomputed
        if self.mean is None or found is None:
            return None
        return abs(self.mean - found) <= 1e-4 + 1e-12

    @property
    def remark(self) -> str | None:
        """A sentence about a mean that does not follow from its cells."""
        found = self.recomputed
        if self.follows is not False or self.mean is None or found is None:
            return None
        return (
            f"Quoted row {self.name} ({self.source}): its printed mean {100 * self.mean:.2f} "
            f"does not follow from its cells, which give {100 * found:.2f}"
        )


def published() -> tuple[Quoted, ...]:
    """The rows of `published.yaml`."""
    text = (files("dcsft_harness.leaderboard") / "published.yaml").read_text(encoding="utf-8")
    found = []
    for table in yaml.safe_load(text):  # noqa: TID251 - ours
        for row in table["rows"]:
            mean = row.get("mean")
            found.append(
                Quoted(
                    row["name"],
                    table["model"],
                    table["setting"],
                    table["source"],
                    table["read"],
                    {task: figure / 100 for task, figure in row["cells"].items()},
                    () if mean is None else tuple(table["mean_over"]),
                    None if mean is None else mean / 100,
                )
            )
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Column:
    """A task, or the unweighted mean over the tasks of one distribution."""

    label: str  # the task's name, "ID mean" or "OOD mean"
    distribution: str | None  # "id", "ood" or None
    tasks: tuple[Task, ...]  # the task, or the tasks of the mean
    is_mean: bool  # whether it is a mean
    # for K responses per item, the metric of its values: "maj@8"; None for one response
    metric: str | None = None

    @property
    def n(self) -> int:
        """The number of items of all its tasks."""
        return sum(len(task.item_ids) for task in self.tasks)

    @property
    def clusters(self) -> list[Codes]:
        """Per task, each item's cluster."""
        return [task.clusters for task in self.tasks]


@dataclass(frozen=True)
class Detectable:
    """The smallest true difference that a test at 5 % detects in 4 of 5 repetitions."""

    difference: float  # in [0, 1]
    # whether it is based on the board's own comparisons to the baseline (the median standard error of the
    # paired differences); otherwise it assumes two unrelated rows with the board's median accuracy
    paired: bool


@dataclass(frozen=True)
class Entry:
    """One row's result in one column."""

    n: int  # scored items, which the accuracy is over; for a mean, those of all tasks together
    unscored: int  # further items, whose response could not be scored; of seeds, the sum over them
    # scored items without an answer in the response, counted as wrong; of seeds, the sum over them. None if
    # a task does not report answers.
    unanswered: int | None
    accuracy: Estimate | None  # in [0, 1]; None if it cannot be computed
    difference: Estimate | None  # to the baseline, on the items scored in both; None if it cannot be computed
    deviation: float | None = None  # the standard deviation of the seeds' accuracies; None for a single row


@dataclass(frozen=True)
class Worst:
    """The task on which a row has its lowest accuracy."""

    task: str
    accuracy: float


@dataclass(frozen=True)
class Front:
    """A row's position by ID and OOD accuracy together."""

    on: bool  # no other row is as good in both and better in one
    share: float  # the share of bootstrap draws in which that holds, in [0, 1]


@dataclass(frozen=True, eq=False)
class Line:
    """One row of the table: a row of the board, or several seeds of one configuration."""

    name: str  # the row's name, or that of the seeds' group
    is_baseline: bool  # whether differences refer to it
    # one per column; None if a task that the column needs was not evaluated
    entries: tuple[Entry | None, ...]
    rows: tuple[Row, ...] = ()  # the row, or the seeds' rows
    group: str | None = None  # the group that a single row is a seed of, if the board combines it
    retention: Estimate | None = None  # OOD mean over ID mean; None if there is no such pair
    worst: Worst | None = None  # None if nothing was scored
    # by `Summary.ranked_by`; None for a seed's own row, and if the figure is missing
    rank: Rank | None = None
    front: Front | None = None  # None if rank is, or if there is no ID or no OOD figure
    # difficulty -> accuracy on the items with that label; None without labels
    by_difficulty: Mapping[str, Estimate] | None = None

    @property
    def is_group(self) -> bool:
        """Whether it combines several seeds."""
        return len(self.rows) > 1


@dataclass(frozen=True)
class Comparison:
    """Two rows in one column."""

    # the set of tests for the correction: "baseline" (every row against the baseline, on the figures for ID
    # and OOD), "baseline by task", "pairs" or "pairs by task"; for K responses per item, the same followed by
    # the metric ("pairs maj@8")
    family: str
    row: str  # the name of the line that a positive difference favors
    other: str  # the name of the line that it is compared with
    column: int  # the column's index
    difference: Estimate  # in [-1, 1], on the items scored in both
    p: float | None  # two-sided; None if there is nothing to test
    p_holm: float | None  # the same, corrected over the family
    method: str
    better: int | None  # items on which `row` scores higher; None if seeds are combined
    worse: int | None  # items on which it scores lower


@dataclass(frozen=True)
class Budget:
    """The accuracy of a row with K responses per item, against its tokens."""

    row: str
    over: str  # the tasks of the accuracies: "OOD mean", a task, or "all tasks"
    points: tuple[Spent, ...]  # over k, then over caps on new tokens
    # the cost of the K responses of all of its tasks, by the names of a ledger; empty if unknown
    usage: Mapping[str, float]

    def flops(self, point: Spent) -> float | None:
        """Operations per item at a point, for prompt and responses; None if unknown."""
        usage = self.usage
        tokens = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        if math.isnan(point.tokens) or not usage.get("flops") or not usage.get("prompts") or not tokens:
            return None
        own = usage.get("prompt_tokens", 0) / usage["prompts"] + point.tokens
        return usage["flops"] * own / tokens


@dataclass(frozen=True)
class Overtaking:
    """The crossing of two rows' curves over tokens."""

    row: str  # the name of one row
    other: str  # the name of the other row
    over: str  # see `Budget`
    metric: str  # "avg", "maj" or "pass"
    crossing: Crossing  # the crossing; `first` states whether `row` is ahead before it


@dataclass(frozen=True, eq=False)
class Apart:
    """Rows that cannot be compared with the board's, as a board of their own."""

    reason: str
    summary: "Summary"


@dataclass(frozen=True, eq=False)
class Summary:
    """A board's numbers."""

    columns: tuple[Column, ...]  # ID tasks, ID mean if they are several, OOD tasks, OOD mean, other tasks
    # the baseline first, the others as given; combined seeds before the first of them
    lines: tuple[Line, ...]
    baseline: str | None  # the baseline's name, or None
    remarks: tuple[str, ...]  # sentences on blank cells and items left out
    detectable: tuple[Detectable | None, ...] = ()  # per column
    comparisons: tuple[Comparison, ...] = ()  # to the baseline, and of all pairs if there are few enough rows
    ranked_by: int | None = None  # the index of the column that decides ranks, or None
    quoted: tuple[Quoted, ...] = ()  # published figures, which nothing is tested against
    apart: tuple[Apart, ...] = ()  # further boards, of rows that cannot be compared with these
    left_out: tuple[LeftOut, ...] = ()  # folders that could not be used, with reasons
    budgets: tuple[Budget, ...] = ()  # for rows with K responses per item, accuracy over k and over tokens
    overtakings: tuple[Overtaking, ...] = ()  # the crossings of those curves

    def overall(self, distribution: str) -> int | None:
        """The index of the column for "id" or "ood": its mean, else its only task; by the `headline`."""
        return overall(self.columns, distribution, headline(self.columns, self.lines))

    def tested(self, family: str) -> list[Comparison]:
        """The comparisons of one family, including those with metrics of K responses."""
        names = {family, *(f"{family} {one.metric}" for one in self.columns if one.metric is not None)}
        return [one for one in self.comparisons if one.family in names]


def headline(columns: Sequence[Column], lines: Sequence[Line]) -> str | None:
    """The metric for ranks, differences and plots: the first that the baseline, else every line, has.

    One response per item (None) comes first, then avg@k. If no metric is shared, it is the first of all.
    """
    metrics = sorted(dict.fromkeys(one.metric for one in columns), key=place_of)
    baseline = [line for line in lines if line.is_baseline]
    wanted = baseline or [line for line in lines if line.group is None]

    def has(line: Line, metric: str | None) -> bool:
        places = [overall(columns, side, metric) for side in ("ood", "id")]
        main = [at for at in places if at is not None][:1]
        return any(line.entries[at] for at in main or range(len(columns)) if columns[at].metric == metric)

    return next((one for one in metrics if all(has(line, one) for line in wanted)), metrics[0])


def overall(columns: Sequence[Column], distribution: str, metric: str | None) -> int | None:
    """The index of the column of a metric for "id" or "ood": its mean, else its only task."""
    found = [i for i, one in enumerate(columns) if one.distribution == distribution and one.metric == metric]
    return found[-1] if found else None  # a mean follows its tasks
