"""rollouts -> labels: how often each item was solved, what that makes it, and how sure that is."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcsft_harness import manifest, records
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import ROLLOUTS

LABELS = "labels.parquet"
RIGHT = records.RIGHT


def jeffreys(k: NDArray[np.int64], n: NDArray[np.int64], level: float = 0.95) -> tuple[Any, Any]:
    """The equal-tailed Jeffreys interval of a binomial proportion.

    Beta(k + 1/2, n - k + 1/2) quantiles, with the lower end 0 at k = 0 and the upper end 1 at k = n
    (Brown, Cai and DasGupta, Statistical Science 2001, section 4.1).

    Args:
        k: successes, array of shape (items,).
        n: trials, same shape, each at least 1.
        level: coverage aimed at, in (0, 1).

    Returns:
        Lower and upper ends in [0, 1], float64 arrays of the same shape.
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = np.where(k == 0, 0.0, beta.ppf(tail, k + 0.5, n - k + 0.5))
    high = np.where(k == n, 1.0, beta.ppf(1 - tail, k + 0.5, n - k + 0.5))
    return low, high


def label(rollouts: Path, output: Path) -> dict[str, Any]:
    """Labels every item of a rollouts folder and writes a labels folder.

    An item is easy if all its scored responses are right, hard if none is, medium otherwise (paper,
    section 4). Responses that could not be scored do not count; an item with none scored has no label.
    An item whose draws stopped once it was settled has the label of the full draw, and no pass rate.

    Returns:
        The manifest's notes: items, and how many are easy, medium, hard, unlabelled and censored.

    Raises:
        HarnessError: not a rollouts folder, duplicate samples, or items with unequal numbers of samples.
    """
    manifest.refuse_occupied(output)
    source = manifest.read(rollouts, "rollouts")
    table = records.read_table(rollouts / ROLLOUTS, records.Rollout)
    grouped = count(table, rollouts / ROLLOUTS)
    labels = _labels(grouped)
    with manifest.writing("labels", output, {"right_from": RIGHT}, {"rollouts": rollouts}) as draft:
        pq.write_table(labels, draft.folder / LABELS, compression="zstd")
        mix: dict[str, int] = {
            name: pc.sum(pc.equal(labels["difficulty"], name)).as_py() or 0 for name in records.DIFFICULTIES
        }
        draft.notes.update(
            {
                "items": labels.num_rows,
                **mix,
                "unlabelled": labels["difficulty"].null_count,
                "censored": pc.sum(labels["censored"]).as_py() or 0,
                "task": source.config.get("task"),
                "samples": source.config.get("samples"),
            }
        )
    return draft.notes


def count(table: pa.Table, source: Path) -> pa.Table:
    """Counts scored and right responses per item.

    Returns:
        Columns item_id, task, n (scored), k (right), rows (samples), censored.

    Raises:
        HarnessError: an item has a sample twice, or fewer samples than another item and is not
            censored, or is censored and not settled.
    """
    if table.num_rows == 0:
        raise HarnessError(f"{source} holds no rollouts", "Sample the pool again")
    right = pc.cast(pc.greater_equal(table["score"], RIGHT), pa.int64())
    grouped = (
        table.append_column("right", right)
        .group_by(["item_id", "task"])
        .aggregate(
            [
                ("score", "count"),
                ("right", "sum"),
                ("sample_index", "count"),
                ("sample_index", "count_distinct"),
                ("censored", "any"),
            ]
        )
        .rename_columns(["item_id", "task", "n", "k", "rows", "distinct", "censored"])
    )
    _refuse_unfit(grouped, source)
    return grouped.sort_by("item_id")


def _refuse_unfit(grouped: pa.Table, source: Path) -> None:
    """Raises what `count` says that it raises."""
    doubled = grouped.filter(pc.not_equal(grouped["rows"], grouped["distinct"]))
    if doubled.num_rows:
        raise HarnessError(
            f"{source}: item {doubled['item_id'][0]} has a sample_index twice", "Remove the duplicate rows"
        )
    mixed = pc.and_(pc.greater(grouped["k"], 0), pc.less(grouped["k"], grouped["n"]))
    open_ones = grouped.filter(pc.and_not(grouped["censored"], pc.fill_null(mixed, False)))
    if open_ones.num_rows:
        raise HarnessError(
            f"{source}: item {open_ones['item_id'][0]} is marked as censored, but not one of its responses"
            " is right and one wrong",
            "Sample the pool again",
        )
    most = pc.max(grouped["rows"]).as_py()
    short = grouped.filter(pc.and_not(pc.less(grouped["rows"], most), grouped["censored"]))
    if short.num_rows:
        raise HarnessError(
            f"{source}: item {short['item_id'][0]} has {short['rows'][0]} samples where others have {most}",
            "Sample the missing ones: labels from unequal numbers cannot be compared",
        )


def _labels(grouped: pa.Table) -> pa.Table:
    n = grouped["n"].to_numpy()
    k = pc.fill_null(grouped["k"], 0).to_numpy()
    scored, censored = n > 0, grouped["censored"].to_numpy()
    rated = scored & ~censored
    low, high = jeffreys(k, np.maximum(n, 1))
    names = np.where(k == 0, "hard", np.where(k == n, "easy", "medium"))
    columns = {
        "item_id": grouped["item_id"],
        "n": pa.array(n),
        "k": pa.array(k),
        "pass_rate": pa.array(k / np.maximum(n, 1), mask=~rated),
        "low": pa.array(low, mask=~rated),
        "high": pa.array(high, mask=~rated),
        "difficulty": pa.array(names.astype(object), pa.string(), mask=~scored),
        "task": grouped["task"],
        "censored": pa.array(censored),
    }
    return pa.table(columns).cast(records.schema(records.Label))
