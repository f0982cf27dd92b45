"""K responses per item on a board: columns avg@k, maj@k and pass@k, and accuracy over a budget of tokens.

A result with K responses per item becomes three tasks per task, each with one value per item, so that
intervals, tests and tables treat them like any other. Greedy results keep their own columns. Results with
another K, temperature or setting are refused, like those with other prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.stats import Codes, Estimate, Floats, mean_accuracy
from dcsft_harness.records import as_wanted, defaults, readable, schema
from dcsft_harness.scoring import at_k

if TYPE_CHECKING:
    from dcsft_harness.leaderboard.board import Cell, Result

FILE = "responses.parquet"
SHOWN = ("avg", "maj", "pass")
"""The metrics with columns, in their order; consistency is only in the plots."""
SAMPLES, SEED = "responses per item", "generation argument seed"
"""Conditions of a result with K responses: K, which is compared, and the seed, which is not."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The K responses to each of a task's items, as arrays of shape (items, K)."""

    scores: Floats  # in [0, 1], NaN if a response could not be scored
    # equal numbers for equal answers of an item, -1 for none; None if the task reports no answers
    votes: NDArray[np.int64] | None
    tokens: Floats  # generated tokens; NaN if unknown

    @property
    def samples(self) -> int:
        """K."""
        return int(self.scores.shape[1])

    @cached_property
    def metrics(self) -> at_k.Metrics:
        """All metrics by item and k."""
        return at_k.metrics(self.scores, self.votes)

    def take(self, order: Sequence[int] | NDArray[np.int64]) -> "Draws":
        """The same with the items in another order."""
        at = np.asarray(order, dtype=np.int64)
        return Draws(self.scores[at], None if self.votes is None else self.votes[at], self.tokens[at])

    def cut(self, cap: int) -> "Draws":
        """The effect of a limit on new tokens: a longer response has no answer and is wrong."""
        over = self.tokens > cap
        votes = None if self.votes is None else np.where(over, -1, self.votes)
        scores = np.where(over & ~np.isnan(self.scores), 0.0, self.scores)
        return Draws(scores, votes, np.minimum(self.tokens, cap))


JUDGED = ("task", "item_id", "sample_index", "score", "vote", "n_tokens")
"""The columns that metrics need: without the texts, which are most of a file."""


def read_rows(
    path: Path, record: type, where: pc.Expression, columns: Sequence[str] | None = None
) -> pa.Table:
    """Some rows of a table as columns of a record class; `columns` None reads all of them.

    Raises:
        HarnessError: the file is missing, damaged, lacks a column, or has one of another type.
    """
    wanted = [one for one in schema(record) if columns is None or one.name in columns]
    with readable(path):
        defaults(path, record, pq.ParquetFile(path).schema_arrow.names)
        table = pq.read_table(path, columns=[one.name for one in wanted], filters=where)
    return pa.table({one.name: as_wanted(path, table[one.name], one) for one in wanted})


def rows_of_tasks(table: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Task -> its rows in a table of items or responses."""
    column = table["task"].combine_chunks()
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes, names = np.asarray(column.indices), column.dictionary.to_pylist()
    return {name: at for code, name in enumerate(names) if len(at := np.flatnonzero(codes == code))}


def draws_of(path: Path, table: pa.Table, item_ids: Sequence[str], samples: int, has_votes: bool) -> Draws:
    """The K responses to a task's items, in the items' order, from its rows of `records.Response`.

    Raises:
        HarnessError: the table lacks a response, or has too many; or a score is not a fraction.
    """
    task = table["task"][0].as_py() if table.num_rows else "a task"
    places = pc.index_in(table["item_id"].combine_chunks(), value_set=pa.array(item_ids, pa.string()))
    index = table["sample_index"].to_numpy()
    if places.null_count or table.num_rows != len(item_ids) * samples or not (index < samples).all():
        raise _damaged(
            path, f"{table.num_rows} responses to {task}, not {samples} for each of {len(item_ids)} items"
        )
    at = (places.to_numpy(zero_copy_only=False), index)
    scores, tokens = (_filled(table[name], at, len(item_ids), samples) for name in ("score", "n_tokens"))
    seen = np.zeros(scores.shape, dtype=bool)
    seen[at] = True
    if not seen.all():
        raise _damaged(path, f"a response to {task} twice")
    if ((scores < 0) | (scores > 1)).any():
        raise _damaged(path, f"a score of {task} outside 0 to 1")
    votes = None
    if has_votes:
        words = table["vote"].combine_chunks().dictionary_encode().indices
        votes = np.full(scores.shape, -1)
        votes[at] = at_k.coded(at[0], words.fill_null(-1).to_numpy(zero_copy_only=False))
    return Draws(scores, votes, tokens)


def draws_of_lists(scores: Sequence[Sequence[float]], votes: Sequence[Sequence[str | None]]) -> Draws:
    """A log's responses: per item, K scores in [0, 1] and K votes, None for no answer; no token counts."""
    judged = np.array(scores, dtype=np.float64)
    known: dict[str | None, int] = {None: -1}
    words = np.array([known.setdefault(vote, len(known) - 1) for some in votes for vote in some])
    items = np.arange(len(judged)).repeat(judged.shape[1])
    return Draws(judged, at_k.coded(items, words).reshape(judged.shape), np.full(judged.shape, np.nan))


def _filled(column: pa.ChunkedArray, at: tuple[NDArray[np.int64], ...], items: int, samples: int) -> Floats:
    values = np.full((items, samples), np.nan)
    values[at] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _damaged(path: Path, what: str) -> HarnessError:
    return HarnessError(f"{path} holds {what}", "Evaluate this model again")


def expanded(results: Sequence["Result"], k: int | None) -> list["Result"]:
    """The same results with the columns of K responses at `k`; None uses K.

    Raises:
        HarnessError: k is None and results differ in K; or a result with several responses per item has fewer
            than k of them, or there is none.
    """
    found = {
        part.draws.samples: result
        for result in results
        for part in result.tasks.values()
        if part.draws is not None
    }
    if k is None and len(found) > 1:
        (ours, one), (theirs, other) = list(found.items())[:2]
        raise HarnessError(
            f"{one.folder} has {ours} responses per item, {other.folder} {theirs}: they cannot be compared",
            "Evaluate one of them again with as many --samples, or build two leaderboards",
        )
    if k is not None and k > min(found, default=1):
        few = found[min(found)].folder if found else results[0].folder
        raise HarnessError(
            f"--at-k {k} asks for more responses per item than {few} has ({min(found, default=1)})",
            f"Evaluate with --samples {k} or more, or lower it",
        )
    return [_expanded(result, k) for result in results]


def place_of(metric: str | None) -> int:
    """The position of a metric's columns: after those of one response per item."""
    return 0 if metric is None else 1 + SHOWN.index(metric.partition("@")[0])


def _expanded(result: "Result", k: int | None) -> "Result":
    if all(part.draws is None for part in result.tasks.values()):
        return result
    tasks: dict[str, Cell] = {}
    for task, part in result.tasks.items():
        if part.draws is None:
            tasks[task] = part
            continue
        draws, at = part.draws, k or part.draws.samples
        conditions = {name: value for name, value in part.conditions.items() if name != SEED}
        for metric in SHOWN:
            if metric not in draws.metrics.values:
                continue
            named = f"{task} {metric}@{at}"
            tasks[named] = replace(
                part,
                task=named,
                metric=f"{metric}@{at}",
                conditions={**conditions, SAMPLES: draws.samples},
                scores=draws.metrics.values[metric][:, at - 1].copy(),
                draws=draws if metric == "avg" else None,
                responses=part.responses if metric == "avg" else None,
            )
    return replace(result, tasks=tasks, tables=partial(_tables, result, tasks))


def _tables(result: "Result", named: "Mapping[str, Cell]") -> Iterator[pa.Table]:
    """A result's items, with a task's rows repeated for each of its metrics."""
    for table in result.tables():
        for task, rows in rows_of_tasks(table).items():
            part, plain = table.take(rows), result.tasks.get(task)
            if plain is None or plain.draws is None:
                yield part
                continue
            at = pc.index_in(part["item_id"], value_set=pa.array(plain.item_ids, pa.string()))
            order = at.to_numpy()
            for name, derived in named.items():
                if derived.metric is not None and name == f"{task} {derived.metric}":
                    scores = pa.array(derived.scores[order], pa.float64(), from_pandas=True)
                    label = pa.array([name] * part.num_rows, pa.string()).dictionary_encode()
                    columns = {"task": label, "score": scores}
                    yield pa.table({c: columns.get(c, part[c]) for c in part.column_names})


class Spent(NamedTuple):
    """Accuracy at a budget."""

    metric: str  # "avg", "maj", "pass" or "consistency"
    k: int  # responses per item
    cap: int | None  # the most new tokens of a response; None for the run's own limit
    tokens: float  # generated tokens per item
    accuracy: Estimate  # the mean over items, or over tasks


CAPS = 12
"""The most caps on new tokens: quantiles of the responses' lengths."""


def curve(draws: Sequence[Draws], clusters: Sequence[Codes]) -> list[Spent]:
    """Accuracy over k, and over caps on new tokens at K, of a row on some tasks.

    `draws` are per task, for several seeds all tasks of each seed in turn; `clusters` per task, shape
    (items,).
    """
    clusters = [clusters[at % len(clusters)] for at in range(len(draws))]
    width = min(one.samples for one in draws)
    found: list[Spent] = []
    for k in range(1, width + 1):
        found += _at(draws, clusters, k, None)
    lengths = np.concatenate([one.tokens.ravel() for one in draws])
    if not np.isnan(lengths).any() and len(np.unique(lengths)) > 1:
        wanted = np.unique(np.quantile(lengths, np.linspace(0, 1, CAPS + 1)[1:], method="higher").astype(int))
        for cap in wanted.tolist():
            found += _at([one.cut(cap) for one in draws], clusters, width, cap)
    return found


def _at(draws: Sequence[Draws], clusters: Sequence[Codes], k: int, cap: int | None) -> Iterator[Spent]:
    tokens = k * float(
        np.mean([np.nanmean(one.tokens) if not np.isnan(one.tokens).all() else np.nan for one in draws])
    )
    for metric in at_k.NAMES:
        if all(metric in one.metrics.values for one in draws):
            values = [one.metrics.values[metric][:, k - 1] for one in draws]
            estimate = mean_accuracy(values, clusters)
            if estimate is not None:
                yield Spent(metric, k, cap, tokens, estimate)


class Crossing(NamedTuple):
    """The crossing of two rows' curves over tokens."""

    tokens: float | None  # generated tokens per item at the first crossing; None if the curves do not cross
    # low, high: its 95 % interval over bootstrap draws of clusters in which they cross
    low: float | None
    high: float | None
    share: float  # the share of draws in which they cross, in [0, 1]
    first: bool  # whether the first row is ahead before the crossing, or throughout


DRAWS = 1_000
"""The number of bootstrap draws of clusters."""
BINS = 1_000
"""More clusters than this are merged at random into this number of groups."""


def crossing(
    ours: Sequence[Draws], theirs: Sequence[Draws], clusters: Sequence[Codes], metric: str
) -> Crossing | None:
    """The crossing of two rows' curves of a metric over tokens, with both rows' items drawn together.

    Both rows' responses are per task, to the same items in the same order; for several seeds, all tasks of
    each seed in turn. `clusters` are per task, shape (items,); `metric` is of `at_k.NAMES`. None
    if tokens or the metric are unknown, or the curves share no range of tokens.
    """
    if any(metric not in one.metrics.values or np.isnan(one.tokens).any() for one in (*ours, *theirs)):
        return None
    joined = np.unique(np.concatenate(clusters), return_inverse=True)[1]
    groups = int(joined.max()) + 1
    rng = np.random.default_rng(0)
    if groups > BINS:  # random groups have the same variance, and cost less
        joined, groups = rng.permutation(np.arange(groups) % BINS)[joined], BINS
    codes = np.split(joined, np.cumsum([len(one) for one in clusters])[:-1])
    weights = np.vstack([np.ones(groups), rng.multinomial(groups, np.full(groups, 1 / groups), DRAWS)])
    sides = [_weighed(side, codes, weights, metric) for side in (ours, theirs)]
    places = [
        _first_crossing(*(side[0][n] for side in sides), *(side[1][n] for side in sides))
        for n in range(DRAWS + 1)
    ]
    if places[0] is None:
        return None
    (at, ahead), drawn = places[0], [one for one in places[1:] if one is not None]
    crossed = [one[0] for one in drawn if one[0] is not None]
    low, high = np.quantile(crossed, [0.025, 0.975]).tolist() if crossed else (None, None)
    return Crossing(at, low, high, len(crossed) / max(len(drawn), 1), ahead)


def _weighed(
    side: Sequence[Draws], codes: Sequence[Codes], weights: Floats, metric: str
) -> tuple[Floats, Floats]:
    """A row's tokens and accuracies at every k, each of shape (draws, K), items weighted by their cluster."""
    width = min(one.samples for one in side)
    tokens, values = np.zeros((len(weights), width)), np.zeros((len(weights), width))
    for at, one in enumerate(side):
        scores = one.metrics.values[metric][:, :width]
        known = ~np.isnan(scores[:, width - 1])
        columns = np.column_stack([np.ones(known.sum()), one.tokens[known].mean(axis=1), scores[known]])
        sums = np.zeros((weights.shape[1], columns.shape[1]))
        np.add.at(sums, codes[at % len(codes)][known], columns)
        totals = weights @ sums
        size = np.maximum(totals[:, :1], 1.0)
        tokens += totals[:, 1:2] / size * np.arange(1, width + 1) / len(side)
        values += totals[:, 2:] / size / len(side)
    return tokens, values


def _first_crossing(
    ours: Floats, theirs: Floats, own: Floats, other: Floats
) -> tuple[float | None, bool] | None:
    """Where the first curve's advantage changes sign, on a logarithmic axis; and its sign before that."""
    low, high = max(ours[0], theirs[0]), min(ours[-1], theirs[-1])
    if not low < high:
        return None
    inside = [x for x in (*ours, *theirs) if low < x < high]
    grid = np.log(np.unique(np.array([low, *inside, high])))
    gap = np.interp(grid, np.log(ours), own) - np.interp(grid, np.log(theirs), other)
    signs = np.sign(np.where(np.abs(gap) < 1e-12, 0.0, gap))
    known = np.flatnonzero(signs)
    if not len(known):
        return None, True
    ahead = bool(signs[known[0]] > 0)
    changed = known[signs[known] != signs[known[0]]]
    if not len(changed):
        return None, ahead
    right = int(changed[0])
    left = int(known[known < right][-1])
    share = gap[left] / (gap[left] - gap[right])
    return float(np.exp(grid[left] + share * (grid[right] - grid[left]))), ahead
