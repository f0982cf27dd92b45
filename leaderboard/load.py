"""Folders -> Board: reads each one and combines those that can be compared.

Rows may lack a task, but all must have the same version, prompt, limit, pixel budget and set of items. Items
are matched by item_id, never by position. A log's items get the content ids of a scores folder if both
evaluated the same documents.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcsft_harness import reading
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.leaderboard.board import (
    ARGUMENT,
    CLUSTERS,
    ITEMS,
    METRIC,
    PIXELS,
    PROMPTS,
    SEPARATE,
    SIDE,
    TEMPLATE,
    Apart,
    Board,
    Cell,
    Documents,
    LeftOut,
    Result,
    Row,
    Task,
    Unusable,
    condition,
    differences,
    said_once,
)
from dcsft_harness.leaderboard.collect import Progress, files_of, read_all, renamed
from dcsft_harness.leaderboard.logs import LIMITS, Choices
from dcsft_harness.leaderboard.sampled import expanded, place_of
from dcsft_harness.records import CHECKPOINT, SCORER, SETTING


def load(
    results: Sequence[Path],
    baseline: str | None = None,
    *,
    strict: bool = True,
    apart: bool = False,
    choices: Choices | None = None,
    names: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Board:
    """Reads folders of results into one board.

    Args:
        results: scores folders, folders of lmms-eval logs, parent folders of these, or runs as FOLDER/RUN,
            in the order in which their rows should appear; rows of one folder are in natural order.
            NAME=FOLDER gives the row another name than the folder's.
        baseline: the name of the row, or of the group of seeds, that differences refer to; None for none.
        strict: whether an unusable folder is an error; otherwise it is left out, and the board names it.
        apart: give rows that cannot be compared with the others boards of their own.
        choices: settings that logs do not record.
        names: a row's name or its FOLDER/RUN -> the new name.
        progress: called with (runs read, total runs).

    Raises:
        HarnessError: there are no folders, none can be used, no row has the baseline's name, or a named task
            or metric is unknown; with `strict`, one cannot be read (see `read_result` and `read_run`);
            without `strict` and `apart`, two cannot be compared.
    """
    if not results:
        raise HarnessError(
            "no scores folders were given", "Name at least one folder made by `dcsft evaluate`"
        )
    choices = choices or Choices({}, {})
    found, errors = read_all(results, choices, strict=strict, progress=progress)
    if not found:
        raise errors[0][1] if len(errors) == 1 else nothing_left([_left_out(*one) for one in errors], 0)
    stated: dict[str, set[str]] = {}
    for one in found:
        for task, part in one.tasks.items():
            stated.setdefault(task, set()).update([part.distribution] if part.distribution else [])
    sides = {task: next(iter(known)) for task, known in stated.items() if len(known) == 1}
    sides |= choices.distributions
    found = [_with_sides(one, sides, choices.distributions) for one in renamed(found, names or {})]
    _refuse_unknown(choices, found)
    found = expanded(found, choices.at_k)
    board = assemble(found, baseline, strict=strict and not apart, apart=apart)
    return replace(board, left_out=(*(_left_out(*one) for one in errors), *board.left_out))


def _with_sides(result: Result, sides: Mapping[str, str], chosen: Mapping[str, str]) -> Result:
    """A result with the user's `chosen` distributions; with others' for tasks that state none."""
    tasks = {
        task: part
        if task not in (sides if part.distribution is None else chosen)
        else replace(part, distribution=sides[task], conditions={**part.conditions, SIDE: sides[task]})
        for task, part in result.tasks.items()
    }
    return replace(result, tasks=tasks)


def _left_out(folder: Path, error: HarnessError, files: Iterable[Path] | None = None) -> LeftOut:
    kind = error.kind if isinstance(error, Unusable) else LeftOut.kind
    return LeftOut(folder, str(error), kind, tuple(files_of(folder) if files is None else files))


def counted(left_out: Sequence[LeftOut], rows: int) -> str:
    """The number of runs left out, by kind: "31 of 40 left out: 27 other prompts, 4 without samples"."""
    kinds = Counter(one.kind for one in left_out).most_common()
    said = ", ".join(f"{count} {kind}" for kind, count in kinds)
    return f"{len(left_out)} of {len(left_out) + rows} left out: {said}"


def examples(left_out: Sequence[LeftOut]) -> list[str]:
    """One reason per kind, the most frequent kind first."""
    first = {one.kind: one.reason for one in reversed(left_out)}
    return [first[kind] for kind, _ in Counter(one.kind for one in left_out).most_common()]


def nothing_left(left_out: Sequence[LeftOut], runs: int) -> HarnessError:
    """The error of a board on which nothing can be compared."""
    return HarnessError(
        f"nothing could be compared: {counted(left_out, runs)}. Such as: {' '.join(examples(left_out))}"
    )


def _refuse_unknown(choices: Choices, found: Sequence[Result]) -> None:
    known = sorted({task for result in found for task in result.tasks})
    for task in (*choices.metrics, *choices.distributions):
        if task not in known:
            unscored = next((one for one in found if task in one.left_out), None)
            if unscored is None:
                raise unknown_name("task", task, known)
            raise HarnessError(f"{unscored.folder}: {task} is left out{unscored.left_out[task]}")
    for task, metric in choices.metrics.items():
        parts = [(one.folder, one.tasks[task].conditions) for one in found if task in one.tasks]
        own = [(folder, conditions.get(METRIC, "acc")) for folder, conditions in parts]
        if all(name != metric for _, name in own):  # logs have it, or are refused
            raise HarnessError(
                f"--metric {task}={metric}: {own[0][0]} holds scores by {own[0][1]} alone",
                "Leave it out, or use logs of lmms-eval, which hold every metric",
            )


def assemble(results: Sequence[Result], baseline: str | None, *, strict: bool, apart: bool) -> Board:
    """Combines results, in the order in which their rows should appear; the arguments are those of `load`.

    Raises:
        HarnessError: no row has the baseline's name; or, with `strict`, two results cannot be compared.
    """
    first = _Draft("")
    drafts, left_out = [first], []
    numbered = [replace(result, number=number) for number, result in enumerate(results)]
    for result in _in_order(numbered, baseline):
        refusal = first.take(result)
        if refusal is None or any(draft.take(result) is None for draft in drafts[1:]):
            continue
        if apart:
            drafts.append(_Draft(str(refusal)))
            drafts[-1].take(result)
        elif strict:
            raise refusal
        else:
            left_out.append(_left_out(result.folder, refusal, files_of(result)))
    boards = [draft.board(baseline) for draft in drafts]
    names = list(dict.fromkeys(name for row in boards[0].rows for name in (row.name, row.group) if name))
    if baseline is not None and baseline not in names:
        folders = {one.folder for one in results if baseline in (one.name, one.group)}
        if elsewhere := [one for one in left_out if one.folder in folders]:
            raise HarnessError(f"the baseline {baseline!r} cannot be used: {elsewhere[0].reason}")
        raise unknown_name("row", baseline, names)
    others = tuple(Apart(draft.reason, board) for draft, board in zip(drafts[1:], boards[1:], strict=True))
    return replace(boards[0], apart=others, left_out=tuple(left_out))


def _in_order(results: Sequence[Result], baseline: str | None) -> list[Result]:
    """The results in the order in which they join a board: the conditions are the first one's.

    The baseline's go first, and logs after scores, because their items get the content ids of the scores. So
    a log that is the baseline comes behind the scores that it can be compared with, and before the others.
    """

    def is_own(one: Result) -> bool:
        return baseline is not None and baseline in (one.name, one.group)

    leading = [one for one in results if is_own(one) and one.is_log]

    def place(result: Result) -> int:
        if result.is_log:
            return 2 if is_own(result) else 4
        if is_own(result) or not leading:
            return 0 if is_own(result) else 1
        draft = _Draft("")
        draft.take(result)
        return 1 if all(draft.take(one) is None for one in leading) else 3

    return sorted(results, key=place)


class _Draft:
    """Comparable results, added one by one."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.results: list[Result] = []
        # task -> parts with different conditions, or different unknown ones: what one does not record,
        # another may; the first is the reference
        self.kinds: dict[str, list[tuple[Result, Cell]]] = {}
        self.renamed: dict[str, Mapping[str, str]] = {}

    def take(self, result: Result) -> HarnessError | None:
        """Adds a result, or returns why it does not fit."""
        tasks: dict[str, Cell] = {}
        try:
            for other in self.results:
                if other.name == result.name:
                    _refuse_clash(other, result)
            for task, measured in result.tasks.items():
                if task not in self.kinds:
                    tasks[task] = measured
                    continue
                reference = self.kinds[task][0][1]
                tasks[task] = aligned(reference, measured)
                for earlier, part in self.kinds[task]:
                    _refuse_incomparable(earlier, part, result, tasks[task])
                tasks[task] = self._sharing(reference, tasks[task])
        except HarnessError as error:
            return error
        taken = replace(result, tasks=tasks)
        self.results.append(taken)
        for task, measured in tasks.items():
            kinds = self.kinds.setdefault(task, [])
            terms = [(part.conditions, part.unknown) for _, part in kinds]
            if (measured.conditions, measured.unknown) not in terms:
                kinds.append((taken, measured))
        return None

    def _sharing(self, reference: Cell, measured: Cell) -> Cell:
        """The same part with the reference's own items: hundreds of rows then share them in memory."""
        renamed = measured.renamed
        if renamed is not None and renamed == self.renamed.setdefault(measured.task, renamed):
            renamed = self.renamed[measured.task]
        return replace(
            measured,
            item_ids=reference.item_ids,
            clusters=measured.clusters if CLUSTERS in reference.unknown else reference.clusters,
            documents=reference.documents,
            renamed=renamed,
        )

    def board(self, baseline: str | None) -> Board:
        """The added results, in the order in which they were given."""
        self.results.sort(key=lambda result: result.number)
        rows = _rows(self.results)
        rows.sort(key=lambda row: baseline not in (row.name, row.group))  # stable: the others stay
        tasks = {task: None for result in self.results for task in result.tasks}
        parts = [(result, part) for result in self.results for part in result.tasks.values()]
        unrecorded = [
            _unrecorded(result, unknown)
            for result, part in parts
            if (unknown := [one for one in part.unknown if self._is_said(one, result, part.task)])
        ]
        without = [
            (result.name, f" is {what}", f" are {what}")
            for result in self.results
            for task, why in result.left_out.items()
            for what in [f"without {task}, which is left out{why}"]
        ]
        remarks = [
            *dict.fromkeys(remark for _, part in parts for remark in part.remarks),
            *said_once([*without, *unrecorded], len(rows)),
        ]
        names = [row.name for row in rows] + [row.group for row in rows]
        seeds = [row.name for row in rows if baseline is not None and row.group == baseline]
        # One seed is a row, and no combined one; a row of that very name comes first.
        if len(seeds) == 1 and baseline not in [row.name for row in rows]:
            baseline = seeds[0]
        return Board(
            tuple(rows),
            _tasks(self._task(task) for task in tasks),
            baseline if baseline in names else None,
            remarks=tuple(remarks),
            results=tuple(self.results),
        )

    def _is_said(self, name: str, result: Result, task: str) -> bool:
        """Whether a remark names a condition that a row does not record.

        Some are not named if no row has them: those that old logs lack, and limits that a processor lacks.
        """
        processors = not result.is_log and name.startswith(f"{PIXELS} ")
        if name == METRIC:  # of older scores, nearly all of them by the suite's one metric
            return False
        return not (processors or condition(name).quiet) or any(
            _records(part, name) for _, part in self.kinds[task]
        )

    def _task(self, task: str) -> Cell:
        """The part that describes a task: one that records the clusters, if there is any."""
        parts = [part for _, part in self.kinds[task]]
        return next((part for part in parts if CLUSTERS not in part.unknown), parts[0])


def _records(measured: Cell, name: str) -> bool:
    """Whether a part has a value of a condition, or of one with this beginning."""
    if name in measured.unknown:
        return False
    if name == CLUSTERS:
        return any(one is not None for one in measured.clusters)
    found = (value for key, value in measured.conditions.items() if key.startswith(name))
    return any(value is not None for value in found)


def _unrecorded(result: Result, unknown: Sequence[str]) -> tuple[str, str, str]:
    """A row and its remark on what is not recorded, for one row and for several."""
    limits = [one for one in unknown if one.startswith(f"{PIXELS} ")]
    several = {one: f"{one}s" for one in (ARGUMENT, PIXELS, SETTING, TEMPLATE)}
    if len(limits) == len(LIMITS):
        several |= dict.fromkeys(limits, f"{PIXELS}s")
    if CHECKPOINT in unknown:
        several[SETTING] = CHECKPOINT
    unknown = list(dict.fromkeys(several.get(one, one) for one in unknown))
    *some, last = unknown
    names = f"{', '.join(some)} and {last}" if some else last
    what = f"not record the {names}, assumed to be as in the other rows"
    if result.is_log:
        return result.name, f": its log does {what}", f": the logs do {what}"
    return result.name, f": its scores do {what}", f": the scores do {what}"


def _refuse_incomparable(earlier: Result, reference: Cell, later: Result, measured: Cell) -> None:
    here, there = (
        f"{result.folder} ({len(part.item_ids)} items)"
        for result, part in ((earlier, reference), (later, measured))
    )
    where = f"{reference.task} in {here} and in {there} cannot be compared"
    ours_by, theirs_by = _scorers(reference), _scorers(measured)
    if ours_by and theirs_by and not {*ours_by} & {*theirs_by}:
        said = f"{where}: scored by {', '.join(ours_by)} and by {', '.join(theirs_by)}"
        raise Unusable(said, SEPARATE, "another scorer")
    unknown = (*reference.unknown, *measured.unknown)
    for name, ours, theirs in differences(reference.conditions, measured.conditions, unknown):
        if name == PROMPTS and len(reference.item_ids) != len(measured.item_ids):
            continue  # the items differ, whatever their prompts
        found = condition(name)
        raise Unusable(f"{where}: {name} {_short(ours)} and {_short(theirs)}", found.remedy, found.kind)
    if reference.item_ids is measured.item_ids and reference.clusters is measured.clusters:
        return
    # The hashes of the item sets are equal here; the pairing needs equal items.
    if strangers := sorted(set(reference.item_ids) ^ set(measured.item_ids)):
        raise Unusable(
            f"{where}: only one of them has the item {strangers[0]}", SEPARATE, condition(ITEMS).kind
        )
    if CLUSTERS in unknown:
        return
    ours_of = dict(zip(reference.item_ids, reference.clusters, strict=True))
    theirs_of = dict(zip(measured.item_ids, measured.clusters, strict=True))
    # Names of clusters differ between versions; which items they join may not.
    joined, others = (_partners(clusters) for clusters in (ours_of, theirs_of))
    if other := next((item for item in ours_of if joined[item] != others[item]), None):
        raise Unusable(
            f"{where}: item {other} is in cluster {_short(ours_of[other])} with {joined[other][1]} items and "
            f"in {_short(theirs_of[other])} with {others[other][1]}",
            SEPARATE,
            condition(CLUSTERS).kind,
        )


def _scorers(part: Cell) -> list[str]:
    """The recorded scorers of a cell."""
    return [one.removeprefix(f"{SCORER} ") for one in part.conditions if one.startswith(f"{SCORER} ")]


def _partners(clusters: Mapping[str, str | None]) -> dict[str, tuple[str, int]]:
    """Each item's first item and number of items in its cluster; an item without a cluster is alone."""
    joined: dict[tuple[bool, str], list[str]] = {}
    for item in sorted(clusters):
        name = clusters[item]
        joined.setdefault((name is None, item if name is None else name), []).append(item)
    return {item: (some[0], len(some)) for some in joined.values() for item in some}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _rows(results: Sequence[Result]) -> list[Row]:
    """One row per name: a model's tasks may have been evaluated in several runs."""
    runs: dict[str, list[Result]] = {}
    for result in results:
        runs.setdefault(result.name, []).append(result)
    return [
        Row(
            name,
            {task: cell for result in parts for task, cell in result.tasks.items()},
            next((result.group for result in parts if result.group is not None), None),
            tuple(result.provenance for result in parts),
        )
        for name, parts in runs.items()
    ]


def _refuse_clash(other: Result, result: Result) -> None:
    where = f"{other.folder} and {result.folder} are both named {result.name!r}"
    if twice := [task for task in result.tasks if task in other.tasks]:
        task = twice[0]
        ours, theirs = (_mean(r.tasks[task].scores) for r in (other, result))
        raise Unusable(
            f"{where} and both have {task} (accuracy {ours} and {theirs})",
            "Leave one out, or name one with NAME=FOLDER",
            "named as another row",
        )
    for role in {**other.model, **result.model}:
        ours, theirs = (_short(r.model.get(role, "unset")) for r in (other, result))
        if ours != theirs:
            raise Unusable(
                f"{where} but were not made from the same model: {role} was {ours} and {theirs}",
                "Name one of them with NAME=FOLDER",
                "named as another row",
            )


def _mean(scores: NDArray[np.float64]) -> str:
    scored = scores[~np.isnan(scores)]
    return f"{scored.mean():.4f}" if len(scored) else "unscored"


def _tasks(measured: Iterable[Cell]) -> tuple[Task, ...]:
    codes: dict[tuple[str, str], int] = {}

    def code(cluster: str | None, item: str) -> int:
        # An independent item must not share a cluster whose name happens to equal its id.
        return codes.setdefault(("item", item) if cluster is None else ("cluster", cluster), len(codes))

    tasks = [
        Task(
            one.task,
            one.distribution,
            one.family,
            one.item_ids,
            np.array([code(*pair) for pair in zip(one.clusters, one.item_ids, strict=True)], dtype=np.int64),
            one.conditions,
            one.metric,
            one.unknown,
        )
        for one in measured
    ]
    order = {"id": 0, "ood": 1, None: 2}
    return tuple(sorted(tasks, key=lambda task: (order[task.distribution], place_of(task.metric))))


def aligned(reference: Cell, measured: Cell) -> Cell:
    """A log's part with the reference's item ids, or unchanged if they may not be the same items.

    The log does not record images. Two parts have the same items if they have the same document numbers and,
    number by number, the same gold. The hash of the prompts, in the order of the reference's ids, is compared
    with the other conditions afterward; a log lacks messages that its task adds, and the reference may know
    their hash without them. Two logs are matched so only if one lacks prompts or hashes.
    """
    theirs = measured.documents() if measured.item_ids != reference.item_ids else None
    if theirs is None or theirs.digests is None:
        return measured
    ours = reference.documents()
    if sorted(ours.numbers) != sorted(theirs.numbers):
        return measured
    if ours.digests is not None and None not in (ours.prompts, theirs.prompts):
        if all(ours.digests) == all(theirs.digests):
            return measured
    places = {number: at for at, number in enumerate(theirs.numbers)}
    order = [places[number] for number in ours.numbers]
    moved = theirs.reordered(order)
    both = zip(ours.digests or moved.digests or (), moved.digests or (), strict=True)
    if not all(map(_same, ours.answers, moved.answers)) or any(a and b and a != b for a, b in both):
        return measured
    found = Documents(ours.ids, moved.numbers, moved.answers, moved.prompts, moved.digests)
    prompts = json_sha256(list(moved.prompts or ()))
    return replace(
        measured,
        item_ids=reference.item_ids,
        clusters=tuple(measured.clusters[at] for at in order),
        scores=measured.scores[order],
        draws=None if measured.draws is None else measured.draws.take(order),
        conditions={
            **measured.conditions,
            PROMPTS: reference.conditions[PROMPTS] if prompts == reference.logged else prompts,
            ITEMS: json_sha256(list(ours.ids)),
        },
        documents=lambda: found,
        renamed=dict(zip(moved.ids, ours.ids, strict=True)),
    )


def _same(one: str, other: str) -> bool:
    """Whether a gold as JSON is a log's: JSON in another spelling, or Python's text, as lmms-eval writes."""
    if one == other:
        return True
    try:
        value = reading.from_json(one)
    except ValueError:
        return False
    if other in (str(value), str(tuple(value)) if isinstance(value, list) else None):
        return True
    try:
        return bool(value == reading.from_json(other))
    except ValueError:
        return False
