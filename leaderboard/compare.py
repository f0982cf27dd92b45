"""Board -> Summary: accuracies, means and differences, tests, ranks, and accuracy by difficulty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np

from dcsft_harness.artifacts import manifest
from dcsft_harness.curation.labels import LABELS
from dcsft_harness.errors import HarnessError, placeless
from dcsft_harness.leaderboard import stats
from dcsft_harness.leaderboard.board import Board, LeftOut, Row, Task, said_once, usage_of
from dcsft_harness.leaderboard.sampled import SHOWN, Draws, crossing, curve
from dcsft_harness.leaderboard.stats import (
    Estimate,
    Floats,
    accuracy,
    difference,
    holm,
    mean_accuracy,
    paired_test,
    within_unit,
)
from dcsft_harness.leaderboard.summary import (
    Apart,
    Budget,
    Column,
    Comparison,
    Detectable,
    Entry,
    Front,
    Line,
    Overtaking,
    Quoted,
    Summary,
    Worst,
    headline,
    overall,
)
from dcsft_harness.records import DIFFICULTIES, Label, read_table

PAIRS = 20
"""Up to this number of rows, every pair is tested."""


def summarize(
    board: Board, pairs: int = PAIRS, quoted: Sequence[Quoted] = (), labels: Mapping[str, str] | None = None
) -> Summary:
    """Computes every number of a board.

    Every pair is tested among up to `pairs` rows; the baseline's pairs always are. `quoted` are published
    figures to show beside the board's; `labels` is item id -> difficulty.
    """
    columns = tuple(_columns(board.tasks))
    sides = _sides(board)
    baseline = next((side for name, side in sides if name == board.baseline), None)
    combined = {row.name for _, side in sides if len(side) > 1 for row in side}
    lines = tuple(
        Line(
            name,
            side is baseline,
            tuple(_entry(side, baseline, column) for column in columns),
            side,
            side[0].group if len(side) == 1 and side[0].name in combined else None,
        )
        for name, side in sides
    )
    metric = headline(columns, lines)
    main = [one.tasks[0] for one in columns if not one.is_mean and one.metric == metric]
    lines = tuple(
        replace(
            line,
            worst=_worst(line, columns, metric),
            by_difficulty=by_difficulty(line.rows, main, labels or {}),
        )
        for line in lines
    )
    lines, ranked_by = standings(columns, lines)
    return Summary(
        columns,
        lines,
        board.baseline,
        tuple(placeless(one, sentence=True) for one in (*board.remarks, *_remarks(columns, lines)))
        + tuple(one.remark for one in quoted if one.remark),
        tuple(_detectable(index, column, lines) for index, column in enumerate(columns)),
        comparisons(columns, lines, pairs),
        ranked_by,
        tuple(quoted),
        tuple(
            Apart(placeless(one.reason, sentence=True), summarize(one.board, pairs, (), labels))
            for one in board.apart
        ),
        tuple(map(_nameless, board.left_out)),
        *budgets(columns, lines),
    )


def budgets(
    columns: Sequence[Column], lines: Sequence[Line]
) -> tuple[tuple[Budget, ...], tuple[Overtaking, ...]]:
    """Accuracy over k and tokens of each row with K responses per item, and the crossings of these curves.

    Each is over the OOD figure's tasks, else the ID figure's, else all tasks; for several seeds, over their
    mean, with an interval over items alone. Curves are compared with the baseline's; without one, every pair
    of the first `CURVES` rows is compared.
    """
    sampled = [one for one in columns if one.metric is not None and one.metric.startswith("avg@")]
    chosen = [overall(sampled, side, sampled[0].metric) for side in ("ood", "id")] if sampled else []
    places = [at for at in chosen if at is not None]
    tasks = sampled[places[0]].tasks if places else tuple(one.tasks[0] for one in sampled if not one.is_mean)
    label = sampled[places[0]].label.rpartition(" ")[0] if places else "all tasks"
    clusters = [task.clusters for task in tasks]
    held: dict[str, list[Draws]] = {}
    for line in lines:
        cells = [row.cells.get(task.name) for row in line.rows for task in tasks]
        draws = [cell.draws for cell in cells if cell is not None and cell.draws is not None]
        if line.group is None and draws and len(draws) == len(cells):
            held[line.name] = draws
    found = tuple(
        Budget(line.name, label, tuple(curve(held[line.name], clusters)), usage_of(line.rows))
        for line in lines
        if line.name in held and line.group is None
    )
    baseline = next((line.name for line in lines if line.is_baseline and line.name in held), None)
    pairs = (
        [(name, baseline) for name in held if name != baseline]
        if baseline is not None
        else list(combinations(list(held)[:CURVES], 2))
    )
    crossings = []
    for name, other in pairs:
        for metric in SHOWN:
            one = crossing(held[name], held[other], clusters, metric)
            if one is not None:
                crossings.append(Overtaking(name, other, label, metric, one))
    return found, tuple(crossings)


CURVES = 12
"""Without a baseline, the curves of up to this number of rows are compared pair by pair."""


def _nameless(left: LeftOut) -> LeftOut:
    """A result that was left out, with a reason that names no folders, whatever characters are in them."""
    above = left.folder.absolute().parent
    return replace(left, reason=placeless(left.reason.replace(f"{above}/", ""), sentence=True))


def _sides(board: Board) -> list[tuple[str, tuple[Row, ...]]]:
    """The lines by name: combined seeds before the first of them, the baseline first."""
    taken, found = {row.name for row in board.rows}, []
    groups: dict[str, list[Row]] = {}
    for row in board.rows:
        if row.group is not None:
            groups.setdefault(row.group, []).append(row)
    for row in board.rows:
        members = groups.get(row.group or "", [])
        if len(members) > 1 and members[0] is row and row.group is not None:
            found.append((row.group + (" (seeds)" if row.group in taken else ""), tuple(members)))
        found.append((row.name, (row,)))
    found.sort(key=lambda line: line[0] != board.baseline)  # stable: the others keep the given order
    return found


def _columns(tasks: Sequence[Task]) -> Iterator[Column]:
    for distribution in ("id", "ood", None):
        for metric in dict.fromkeys(task.metric for task in tasks):
            members = tuple(t for t in tasks if t.distribution == distribution and t.metric == metric)
            for task in members:
                yield Column(task.name, distribution, (task,), False, metric)
            # A single OOD task still gets a mean: rows are compared by that figure.
            if distribution is not None and len(members) > (distribution == "id"):
                label = f"{distribution.upper()} mean" + ("" if metric is None else f" {metric}")
                yield Column(label, distribution, members, True, metric)


def _entry(side: tuple[Row, ...], baseline: tuple[Row, ...] | None, column: Column) -> Entry | None:
    scores = _scores(side, column)
    if scores is None:
        return None
    cells = [row.cells[task.name] for row in side for task in column.tasks]
    clusters = column.clusters
    part = stats.part(scores, clusters) if len(side) > 1 else None
    return Entry(
        n=sum(len(cell.scores) - cell.unscored for cell in cells) if part is None else part.n,
        unscored=sum(cell.unscored for cell in cells),
        unanswered=total([cell.unanswered for cell in cells]),
        accuracy=mean_accuracy(scores[0], clusters)
        if len(side) == 1
        else within_unit(stats.mean_of_seeds(scores, clusters)),
        difference=_to_baseline(side, baseline, column),
        deviation=None if part is None else part.deviation,
    )


def total(counts: Sequence[int | None]) -> int | None:
    """The sum of some counts, None if one of them is unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _to_baseline(side: tuple[Row, ...], baseline: tuple[Row, ...] | None, column: Column) -> Estimate | None:
    if baseline is None or set(side) & set(baseline):  # also a seed against its own group of seeds
        return None
    if len(side) > 1 or len(baseline) > 1:
        found = difference_of_rows(side, baseline, column)
        return None if found is None else found[0]
    ours, theirs = _scores(side, column), _scores(baseline, column)
    if ours is None or theirs is None:
        return None
    return difference(ours[0], theirs[0], column.clusters)


def _worst(line: Line, columns: Sequence[Column], metric: str | None) -> Worst | None:
    """A line's lowest accuracy, among those that it shows of single tasks by a metric."""
    found = [
        Worst(column.label, entry.accuracy.value)
        for column, entry in zip(columns, line.entries, strict=True)
        if column.metric == metric and not column.is_mean and entry and entry.accuracy
    ]
    return min(found, key=lambda one: one.accuracy, default=None)


def _remarks(columns: tuple[Column, ...], lines: Sequence[Line]) -> Iterator[str]:
    yield from said_once(_blanks(columns, lines), len(lines))
    yield from said_once(_unscored(columns, lines), len(lines))
    estimates = [e.difference for line in lines for e in line.entries if e is not None]
    if any(estimate is not None and estimate.low is None for estimate in estimates):
        yield "A difference has no interval if it does not vary between items or clusters"
    for line in lines:
        if line.is_group:
            names = ", ".join(row.name for row in line.rows)
            said = f"{line.name} combines {len(line.rows)} seeds ({names}), the seed being a random effect"
            left_out = any(entry.unscored for entry in line.entries if entry is not None)
            yield said + (", over the items that were scored with every seed" if left_out else "")


def _blanks(columns: tuple[Column, ...], lines: Sequence[Line]) -> Iterator[tuple[str, str, str]]:
    """Rows without a mean, with the reason."""
    alike: dict[str, set[str]] = {}  # a task -> its columns, one per metric
    for column in columns:
        for task in column.tasks:
            alike.setdefault(_plain(task), set()).add(task.name)
    for line in lines:
        for column in columns:
            missing = [t for t in column.tasks if any(t.name not in row.cells for row in line.rows)]
            if column.is_mean and missing:
                what, few = f"no {column.label}", "and a mean is never taken over fewer tasks"
                others = [alike[_plain(task)] for task in missing]
                never = [
                    _plain(task)
                    for task, names in zip(missing, others, strict=True)
                    if any(names.isdisjoint(row.cells) for row in line.rows)
                ]
                if never:
                    why = f"not evaluated on {', '.join(never)}, {few}"
                    yield line.name, f" has {what}: it was {why}", f" have {what}: they were {why}"
                else:
                    known = f"{column.metric or 'one-response'} results on {', '.join(map(_plain, missing))}"
                    why = f"no {known}, {few}"
                    yield line.name, f" has {what}: it has {why}", f" have {what}: they have {why}"


def _plain(task: Task) -> str:
    """A task's name without the metric of K responses per item."""
    return task.name if task.metric is None else task.name.removesuffix(f" {task.metric}")


def _unscored(columns: tuple[Column, ...], lines: Sequence[Line]) -> Iterator[tuple[str, str, str]]:
    """Rows with responses that could not be scored, or items with too few that could, and their number."""
    for line in lines:
        counts: dict[str, list[str]] = {}
        for column, entry in zip(columns, line.entries, strict=True):
            if entry is None or not entry.unscored or column.is_mean or line.is_group:
                continue
            metric, _, k = (column.metric or "").partition("@")
            what, why = "responses", "could not be scored"
            if metric:  # its other metrics leave out the same items
                what, why = "items", f"had fewer than {k} scored responses"
            if metric in ("", "avg"):
                of = f"{entry.unscored} of {entry.n + entry.unscored} {what} {'of' if metric else 'to'}"
                counts.setdefault(why, []).append(f"{of} {_plain(column.tasks[0])}")
        for why, some in counts.items():
            said = f"{', '.join(some)} {why}; they are left out, not counted as wrong"
            yield line.name, f": {said}", f": {said} (each)"


SOME = 50
"""With more rows than this, a median over rows is taken over the first ones."""


def comparisons(columns: tuple[Column, ...], lines: Sequence[Line], pairs: int) -> tuple[Comparison, ...]:
    """Tests every line against the baseline, and every pair of lines if there are at most `pairs` lines.

    Seeds that a line combines are not tested on their own.
    """
    tested = [line for line in lines if line.group is None]
    metrics = dict.fromkeys(column.metric for column in columns)
    main = {overall(columns, side, metric) for side in ("id", "ood") for metric in metrics}
    found: list[Comparison] = []
    baseline = next((line for line in lines if line.is_baseline), None)
    if baseline is not None:
        others = [(line, baseline) for line in tested if not set(line.rows) & set(baseline.rows)]
        found += _families("baseline", others, columns, main)
    if len(tested) <= pairs:
        found += _families("pairs", list(combinations(tested, 2)), columns, main)
    return tuple(found)


def _families(
    name: str, pairs: Sequence[tuple[Line, Line]], columns: Sequence[Column], main: set[int | None]
) -> Iterator[Comparison]:
    suffixes = [
        "" if metric is None else f" {metric}" for metric in dict.fromkeys(one.metric for one in columns)
    ]
    families: dict[str, list[Comparison]] = {
        f"{family}{suffix}": [] for suffix in suffixes for family in (name, f"{name} by task")
    }
    for line, other in pairs:
        for index, column in enumerate(columns):
            if index not in main and column.is_mean:
                continue
            family = name if index in main else f"{name} by task"
            family += "" if column.metric is None else f" {column.metric}"
            one = compare(line, other, index, column, family)
            if one is not None:
                families[family].append(one)
    for made in families.values():
        adjusted = iter(holm([one.p for one in made if one.p is not None]))
        for one in made:
            yield one if one.p is None else replace(one, p_holm=next(adjusted))


def compare(line: Line, other: Line, index: int, column: Column, family: str) -> Comparison | None:
    """Tests two lines in one column; None if one of them lacks it."""
    ours, theirs = _scores(line.rows, column), _scores(other.rows, column)
    if ours is None or theirs is None:
        return None
    clusters = column.clusters
    names = (family, line.name, other.name, index)
    if len(ours) == len(theirs) == 1:
        entry = line.entries[index]
        known = entry.difference if other.is_baseline and entry is not None else None
        found = known or difference(ours[0], theirs[0], clusters)
        test = paired_test(ours[0], theirs[0], clusters)
        if found is None or test is None:
            return None
        return Comparison(*names, found, test.p, None, test.method, test.better, test.worse)
    combined = difference_of_rows(line.rows, other.rows, column)
    if combined is None:
        return None
    return Comparison(*names, combined[0], combined[1], None, "t, seeds as a random effect", None, None)


def difference_of_rows(
    rows: Sequence[Row], others: Sequence[Row], column: Column, null: float = 0.0
) -> tuple[Estimate, float | None] | None:
    """The difference of two lines, one of them of several seeds; see `stats.difference_of_seeds`.

    Seeds are paired if both lines have the same ones. None also if a line lacks the column.
    """
    matched = _matched(rows, others)
    ours, theirs = _scores(rows, column), _scores(matched or others, column)
    if ours is None or theirs is None:
        return None
    clusters = column.clusters
    return stats.difference_of_seeds(ours, theirs, clusters, matched is not None, null)


def _matched(rows: Sequence[Row], others: Sequence[Row]) -> list[Row] | None:
    """The other line's seeds in this one's order; None if they are not the same seeds."""
    found = {_seed(row): row for row in others}
    wanted = [_seed(row) for row in rows]
    if len(rows) < 2 or None in found or len(found) != len(others) or set(wanted) != set(found):
        return None
    return [found[name] for name in wanted]


def _seed(row: Row) -> str | None:
    """The seed part of a row's name, beyond its group's name; None for a row without a group."""
    return None if row.group is None else row.name.replace(row.group, "", 1).strip()


def _scores(rows: Sequence[Row], column: Column) -> list[list[Floats]] | None:
    """Row -> task of the column -> scores; None if a row lacks a task."""
    if any(task.name not in row.cells for row in rows for task in column.tasks):
        return None
    return [[row.cells[task.name].scores for task in column.tasks] for row in rows]


def _detectable(index: int, column: Column, lines: Sequence[Line]) -> Detectable | None:
    baseline = next((line for line in lines if line.is_baseline and not line.is_group), None)
    singles = [line for line in lines if not line.is_group and line.entries[index] is not None]
    if baseline is not None and baseline in singles:
        others = [line for line in singles if line is not baseline][:SOME]
        errors = [_standard_error(line, baseline, column) for line in others]
        known = [error for error in errors if error is not None]
        if known:
            found = Detectable(stats.detectable(median(known)), True)
            return found if found.difference <= 1 else None  # else there are too few items for any difference
    entries = [line.entries[index] for line in singles]
    values = [entry.accuracy.value for entry in entries if entry is not None and entry.accuracy is not None]
    if not values or median(values) in (0.0, 1.0):
        return None
    found = Detectable(stats.unpaired(median(values), stats.independent(column.clusters)), False)
    return found if found.difference <= 1 else None


def _standard_error(line: Line, baseline: Line, column: Column) -> float | None:
    ours, theirs = _scores(line.rows, column), _scores(baseline.rows, column)
    if ours is None or theirs is None:
        return None
    pairs = [one - other for one, other in zip(ours[0], theirs[0], strict=True)]
    found = stats.contributions(pairs, column.clusters)
    variance = None if found is None else stats.sandwich(found[1], found[2], len(pairs))
    return None if variance is None else variance**0.5


def standings(columns: tuple[Column, ...], lines: tuple[Line, ...]) -> tuple[tuple[Line, ...], int | None]:
    """The lines with retention, rank and front, and the index of the ranking column.

    Ranks use the OOD figure, the ID one if there is none, or the only task. A line that lacks the figure has
    no rank; neither do seeds that another line combines. A line that lacks the ID figure alone is ranked, and
    has no retention and no place on the front.
    """
    metric = headline(columns, lines)
    both = [overall(columns, side, metric) for side in ("id", "ood")]
    chosen = [index for index in both if index is not None]
    if not chosen and len(columns) == 1:
        chosen = [0]
    if not chosen:
        return lines, None
    codes = [task.clusters.max(initial=0) for index in chosen for task in columns[index].tasks]
    size = int(max(codes)) + 1
    placed = [line for line in lines if line.group is None and _complete(line, chosen[-1:])]
    if not placed:
        return lines, chosen[-1]
    values, sums = _prepared(placed, columns, chosen, size)
    draws = stats.bootstrap(values, sums)
    means = np.stack([one.mean(axis=0) for one in values])
    ranks = dict(zip(placed, stats.ranks(means[:, -1], draws[:, :, -1]), strict=True))
    fronts: dict[Line, Front] = {}
    whole = [at for at, line in enumerate(placed) if len(chosen) == 2 and _complete(line, chosen)]
    if whole:
        on, shares = stats.front(means[whole]), stats.front_shares(draws[:, whole])
        fronts = {
            placed[at]: Front(bool(is_on), float(share))
            for at, is_on, share in zip(whole, on, shares, strict=True)
        }
    made = [
        replace(
            line,
            rank=ranks.get(line),
            front=fronts.get(line),
            retention=_retention(line, *(columns[index] for index in chosen))
            if len(chosen) == 2 and _complete(line, chosen)
            else None,
        )
        for line in lines
    ]
    return tuple(made), chosen[-1]


def _complete(line: Line, chosen: Sequence[int]) -> bool:
    entries = [line.entries[index] for index in chosen]
    return all(entry is not None and entry.accuracy is not None for entry in entries)


def _prepared(
    lines: Sequence[Line], columns: Sequence[Column], chosen: Sequence[int], size: int
) -> tuple[list[Floats], np.ndarray]:
    """Each line's seeds' means, shape (S, M), and all contributions, shape (sum of S * M, size).

    The means of a figure that a line lacks are NaN.
    """
    rows = [row for line in lines for row in line.rows]
    sums = np.zeros((len(rows) * len(chosen), size), dtype=np.float32)
    means = np.full((len(rows), len(chosen)), np.nan)
    for number, index in enumerate(chosen):
        column = columns[index]
        clusters = column.clusters
        at = 0
        for line in lines:
            # As in the cells: of several seeds, the items that were scored with each.
            known = _scores(line.rows, column) if _complete(line, [index]) else None
            seeds = [] if known is None else stats.scored_by_all(known)
            for place, scores in enumerate(seeds, start=at):
                stats.dense_sums(scores, clusters, sums[place * len(chosen) + number])
                means[place, number] = np.mean([np.nanmean(task) for task in scores])
            at += len(line.rows)
    edges = np.cumsum([len(line.rows) for line in lines])[:-1]
    return list(np.split(means, edges)), sums


def _retention(line: Line, own: Column, ood: Column) -> Estimate | None:
    below, above = _scores(line.rows, own), _scores(line.rows, ood)
    if below is None or above is None:
        return None
    return stats.retention(below, above, own.clusters, ood.clusters)


def read_labels(folders: Sequence[Path]) -> dict[str, str]:
    """Item id -> difficulty, from labels folders; items without one are absent.

    Raises:
        HarnessError: a folder holds no labels or has changed, or two give the same item different ones.
    """
    found: dict[str, str] = {}
    for folder in folders:
        manifest.read(folder, "labels")
        manifest.refuse_changed(folder, LABELS)
        table = read_table(folder / LABELS, Label)
        for item, difficulty in zip(
            table["item_id"].to_pylist(), table["difficulty"].to_pylist(), strict=True
        ):
            if difficulty is not None and found.setdefault(item, difficulty) != difficulty:
                raise HarnessError(
                    f"{folder / LABELS}: item {item} is {difficulty}, and {found[item]} in other labels",
                    "Pass the labels of one model",
                )
    return found


def by_difficulty(
    rows: Sequence[Row], tasks: Sequence[Task], labels: Mapping[str, str]
) -> dict[str, Estimate] | None:
    """The accuracy on the labeled items of each difficulty, over all tasks of a row; None if none is labeled.

    For several seeds, each item counts with its mean score.
    """
    shared = [task for task in tasks if all(task.name in row.cells for row in rows)]
    if not labels or not shared:
        return None
    kinds = np.array([labels.get(item, "") for task in shared for item in task.item_ids])
    codes = np.concatenate([task.clusters for task in shared])
    scores = np.mean([np.concatenate([row.cells[t.name].scores for t in shared]) for row in rows], axis=0)
    found = {kind: accuracy(scores[kinds == kind], codes[kinds == kind]) for kind in DIFFICULTIES}
    return {kind: estimate for kind, estimate in found.items() if estimate is not None} or None
