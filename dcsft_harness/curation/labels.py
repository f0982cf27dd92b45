"""rollouts -> labels: each item's pass rate, difficulty and confidence interval."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcsft_harness import records
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.storage import scan
from dcsft_harness.curation import gallery, pass_rates
from dcsft_harness.curation.rules import mix
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import ROLLOUTS
from dcsft_harness.scoring import at_k

if TYPE_CHECKING:
    from pyarrow import acero

LABELS = "labels.parquet"
RIGHT = records.RIGHT
COUNTED = ("item_id", "task", "score", "sample_index", "censored")
"""The columns of rollouts that labels need."""
WORD = 32
"""Sample indices recorded in one bit mask; a power of two."""


def jeffreys(k: NDArray[np.int64], n: NDArray[np.int64], level: float = 0.95) -> tuple[Any, Any]:
    """The equal-tailed Jeffreys interval of a binomial proportion.

    Beta(k + 1/2, n - k + 1/2) quantiles, with the lower end 0 at k = 0 and the upper end 1 at k = n (Brown,
    Cai and DasGupta, Statistical Science 2001, section 4.1). statsmodels' `proportion_confint` does not
    adjust those two ends; elsewhere it gives the same values.

    Args:
        k: successes, array of shape (items,).
        n: trials, same shape, each at least 1.
        level: nominal coverage, in (0, 1).

    Returns:
        Lower and upper ends in [0, 1], float64 arrays of the same shape.
    """
    from scipy.special import betaincinv  # what scipy.stats.beta.ppf calls, without half a second of imports

    tail = (1 - level) / 2
    low = np.where(k == 0, 0.0, betaincinv(k + 0.5, n - k + 0.5, tail))
    high = np.where(k == n, 1.0, betaincinv(k + 0.5, n - k + 0.5, 1 - tail))
    return low, high


def label(
    rollouts: Path, output: Path, exactly: bool = False, progress: pass_rates.Progress | None = None
) -> dict[str, Any]:
    """Labels every item of a rollouts folder and writes a labels folder.

    An item is easy if all its scored responses are right, hard if none is, medium otherwise (paper, section
    4). Responses that could not be scored do not count; an item with none scored has no label. An item whose
    sampling stopped once it was settled has the label of the full draw, and no pass rate. With `exactly`, it
    also computes the exact pass rates, which decide no label; `progress` is called with (items done, total
    items) meanwhile.

    Returns:
        The manifest's notes: items, and the numbers of easy, medium, hard, unlabeled and censored ones; the
        scorers by name and version, None if the rollouts name none; the labels' noise.

    Raises:
        HarnessError: not a rollouts folder, duplicate samples, items with unequal numbers of samples, or
            responses that changed after sampling; or see `pass_rates.pass_rates`.
    """
    manifest.refuse_occupied(output)
    source = manifest.read(rollouts, "rollouts")
    if exactly:
        pass_rates.refuse_other_scorers(source)
    path = rollouts / ROLLOUTS
    with records.readable(path):
        labels = _labels(count(scan(path, records.Rollout, COUNTED), path))
    manifest.refuse_changed(rollouts, ROLLOUTS)
    known = None
    settings: dict[str, Any] = {"right_from": RIGHT}
    with manifest.writing(
        "labels", output, settings | ({"exact": True} if exactly else {}), {"rollouts": rollouts}
    ) as draft:
        if exactly:
            labels, known = _with_exact(labels, rollouts, progress)
        pq.write_table(labels, draft.folder / LABELS, compression="zstd")
        draft.notes["figures"] = gallery.write(draft.folder, rollouts, labels)
        stopped = pc.any(labels["censored"]).as_py()
        draft.notes.update(
            {
                "items": labels.num_rows,
                **mix(labels),
                "unlabelled": labels["difficulty"].null_count,
                "censored": pc.sum(labels["censored"]).as_py() or 0,
                "task": source.config.get("task"),
                "samples": source.config.get("samples"),
                "at_g": None if stopped else at_k.of_pool(labels["n"].to_numpy(), labels["k"].to_numpy()),
                "noise": _noise(labels),
                **({} if known is None else {"exact": known}),
                "scorers": source.notes.get("scorers"),
            }
        )
        if draft.notes["medium"] == 0 and pc.max(labels["n"]).as_py() > 1 and _same_texts(path):
            draft.notes["same_texts"] = True
    return draft.notes


def _same_texts(path: Path) -> bool:
    """Whether all responses to an item are the same text, for every item: greedy ones are."""
    first: dict[str, int] = {}
    with records.readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(records.ROWS_AT_ONCE, columns=["item_id", "response"]):
            for item, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if first.setdefault(item, hash(text)) != hash(text):
                    return False
    return True


def _noise(labels: pa.Table) -> pass_rates.Noise | None:
    """How noisy the labels are, see `pass_rates`; None if items stopped early, or with one response per item.

    By the exact pass rates where they are known.
    """
    if pc.any(labels["censored"]).as_py():
        return None
    if labels["exact"].null_count < labels.num_rows:
        rates = labels["exact"].drop_null().to_numpy()
        return pass_rates.of_rates(rates, pc.max(labels["n"]).as_py())
    return pass_rates.of_counts(labels["n"].to_numpy(), labels["k"].to_numpy())


def _with_exact(
    labels: pa.Table, rollouts: Path, progress: pass_rates.Progress | None
) -> tuple[pa.Table, dict[str, Any]]:
    """Labels with their exact pass rates, and notes: how these agree with the responses, see `pass_rates`."""
    wanted = labels.filter(pc.greater(labels["n"], 0))["item_id"]
    rates, notes = pass_rates.pass_rates(rollouts, wanted, progress)
    at = labels.schema.get_field_index("exact")
    column = pa.array([rates.get(item) for item in labels["item_id"].to_pylist()], pa.float64())
    labels = labels.set_column(at, labels.schema.field(at), column)
    rated = labels.filter(pc.and_(pc.is_valid(labels["exact"]), pc.invert(labels["censored"])))
    statistic, items, far = pass_rates.chi_squared(*(rated[name].to_numpy() for name in ("exact", "n", "k")))
    return labels, {
        "mean": pc.mean(labels["exact"]).as_py(),
        **notes,
        "chi_squared": statistic,
        "chi_squared_items": items,
        "chi_squared_deviations": far,
    }


def count(rows: "pa.Table | acero.Declaration", source: Path) -> pa.Table:
    """Counts scored and right responses per item.

    Args:
        rows: a table with the columns `COUNTED`, or a plan that reads them; only the counts stay in memory.
        source: its name in errors.

    Returns:
        Columns item_id, task, n (scored), k (right), rows (samples), censored, in order of item_id.

    Raises:
        HarnessError: an item has a sample twice, or fewer samples than another item without being censored,
            or is censored but not settled.
    """
    from pyarrow import acero

    if isinstance(rows, pa.Table):
        rows = acero.Declaration("table_source", acero.TableSourceNodeOptions(rows))
    # One thread: each would keep its own counts for nearly every item.
    parts = acero.Declaration.from_sequence([rows, *_counting()]).to_table(use_threads=False)
    if parts.num_rows == 0:
        raise HarnessError(f"{source} holds no rollouts", "Sample the pool again")
    grouped = _whole(parts)
    _refuse_unfit(grouped, source)
    return grouped.drop_columns("distinct")


def _counting() -> list[Any]:
    """The query from rows to counts per item and word; a word is WORD sample indices.

    A word's sum of 2 ** (index % WORD) shows whether its n indices are distinct: the sum of n distinct powers
    of two has n binary ones, and equal ones carry, which leaves fewer. That takes one number per item, where
    a set of the indices would take one per row.
    """
    from pyarrow import acero

    index, score = pc.field("sample_index"), pc.field("score")
    columns = {
        "item_id": pc.field("item_id"),
        "task": pc.field("task"),
        "word": pc.shift_right(index, WORD.bit_length() - 1),
        "score": score,
        "right": (score >= RIGHT).cast(pa.int64()),
        "bit": pc.shift_left(pc.scalar(1), pc.bit_wise_and(index, WORD - 1)),
        "censored": pc.field("censored"),
    }
    sums = [
        ("score", "hash_count", None, "n"),
        ("right", "hash_sum", None, "k"),
        ("bit", "hash_count", None, "rows"),
        ("bit", "hash_sum", None, "bits"),
        ("censored", "hash_any", None, "censored"),
    ]
    return [
        acero.Declaration("project", acero.ProjectNodeOptions(list(columns.values()), list(columns))),
        acero.Declaration("aggregate", acero.AggregateNodeOptions(sums, keys=["item_id", "task", "word"])),
    ]


def _whole(parts: pa.Table) -> pa.Table:
    """Sorted counts per item, from those per item and word."""
    bits = np.unpackbits(parts["bits"].to_numpy().view(np.uint8)).reshape(parts.num_rows, -1)
    parts = parts.append_column("distinct", pa.array(bits.sum(axis=1, dtype=np.int64)))
    if pc.any(pc.not_equal(parts["word"], 0)).as_py():
        sums = [(name, "sum") for name in ("n", "k", "rows", "distinct")]
        parts = parts.group_by(["item_id", "task"], use_threads=False).aggregate([*sums, ("censored", "any")])
        parts = parts.rename_columns(
            [name.removesuffix("_sum").removesuffix("_any") for name in parts.column_names]
        )
    parts = parts.select(["item_id", "task", "n", "k", "rows", "censored", "distinct"])
    return parts.sort_by("item_id")


def _refuse_unfit(grouped: pa.Table, source: Path) -> None:
    """Raises the errors of `count`."""
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
            f"{source}: item {short['item_id'][0]} has {short['rows'][0]} samples, while others have {most}",
            "Sample the missing ones: labels from unequal numbers cannot be compared",
        )


def _labels(grouped: pa.Table) -> pa.Table:
    n = grouped["n"].to_numpy()
    k = pc.fill_null(grouped["k"], 0).to_numpy()
    scored, censored = n > 0, grouped["censored"].to_numpy()
    rated = scored & ~censored
    # There are few distinct counts, and an interval takes long.
    top = int(n.max()) + 1
    pairs, which = np.unique(np.maximum(n, 1) * top + k, return_inverse=True)
    low, high = (ends[which] for ends in jeffreys(pairs % top, pairs // top))
    kinds = np.where(k == 0, 0, np.where(k == n, 1, 2))
    columns = {
        "item_id": grouped["item_id"],
        "n": pa.array(n),
        "k": pa.array(k),
        "pass_rate": pa.array(k / np.maximum(n, 1), mask=~rated),
        "low": pa.array(low, mask=~rated),
        "high": pa.array(high, mask=~rated),
        "difficulty": pa.array(["hard", "easy", "medium"]).take(pa.array(kinds, mask=~scored)),
        "task": grouped["task"],
        "censored": pa.array(censored),
        "exact": pa.nulls(grouped.num_rows, pa.float64()),
    }
    return pa.table(columns).cast(records.schema(records.Label))
