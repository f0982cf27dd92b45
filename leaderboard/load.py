"""Folders -> Board: reads each one and combines those that can be compared.

Rows may lack a task, but all must have the same version, prompt, limit, pixel budget and set of items. Items
are matched by item_id, never by position. A log's items get the content ids of a scores folder if both
evaluated the same documents.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.leaderboard.board import (
    Apart,
    Board,
    Cell,
    Documents,
    LeftOut,
    Measured,
    Result,
    Row,
    Task,
)
from dcsft_harness.leaderboard.logs import SAMPLES, Choices, is_log, read_logs
from dcsft_harness.leaderboard.read import Shared, read_result
from dcsft_harness.records import SCORER

Progress = Callable[[int, int], None]


def load(
    results: Sequence[Path],
    baseline: str | None = None,
    *,
    strict: bool = True,
    apart: bool = False,
    choices: Choices | None = None,
    progress: Progress | None = None,
) -> Board:
    """Reads folders of results into one board.

    Args:
        results: scores folders and folders of lmms-eval logs, in the order in which their rows should appear;
            NAME=FOLDER gives the row another name than the folder's.
        baseline: the name of the row, or of the group of seeds, that differences refer to; None for none.
        strict: whether an unusable folder is an error; otherwise it is left out, and the board names it.
        apart: give rows that cannot be compared with the others boards of their own.
        choices: settings that logs do not record.
        progress: called with (folders read, total folders).

    Raises:
        HarnessError: there are no folders, none can be used, no row has the baseline's name, or a named task
            or metric is unknown; with `strict`, one cannot be read (see `read_result` and `read_logs`);
            without `strict` and `apart`, two cannot be compared.
    """
    if not results:
        raise HarnessError(
            "no scores folders were given", "Name at least one folder made by `dcsft evaluate`"
        )
    choices, shared = choices or Choices({}, {}), Shared()
    found: list[Result] = []
    errors: list[tuple[Path, HarnessError]] = []
    for number, given in enumerate(results, start=1):
        name, folder = named(given)
        try:
            found += read(folder, name, choices, shared)
        except HarnessError as error:
            if strict:
                raise
            errors.append((folder, error))
        if progress is not None:
            progress(number, len(results))
    if not found:
        raise errors[0][1]
    _refuse_unknown(choices, found)
    board = assemble(found, baseline, strict=strict and not apart, apart=apart)
    unread = tuple(LeftOut(folder, str(error)) for folder, error in errors)
    return replace(board, left_out=(*unread, *board.left_out))


def named(given: Path) -> tuple[str | None, Path]:
    """The name and the folder in NAME=FOLDER; no name if the whole value is an existing folder."""
    name, sign, folder = str(given).partition("=")
    if given.exists() or not sign or not name.strip():
        return None, given
    return name, Path(folder)


def read(folder: Path, name: str | None, choices: Choices, shared: Shared) -> list[Result]:
    """Reads one folder, of either kind.

    Raises:
        HarnessError: it is neither, or cannot be used.
    """
    if is_log(folder):
        return read_logs(folder, name, choices)
    if not (folder / manifest.NAME).is_file() and folder.is_dir():
        lost = sorted([*folder.glob(f"*{SAMPLES}*.jsonl"), *folder.glob(f"*/*{SAMPLES}*.jsonl")])
        if lost:
            raise HarnessError(
                f"{lost[0]} has no results file of lmms-eval beside it: the run did not finish, or that "
                "file was not copied",
                "Run the evaluation again, or copy its *_results.json too",
            )
    return [read_result(folder, name, shared)]


def _refuse_unknown(choices: Choices, found: Sequence[Result]) -> None:
    known = sorted({task for result in found for task in result.tasks})
    for task in (*choices.metrics, *choices.distributions):
        if task not in known:
            raise unknown_name("task", task, known)


SEPARATE = "Evaluate one of them again under the conditions of the other, or build two leaderboards"


def assemble(
    results: Sequence[Result], baseline: str | None = None, *, strict: bool = True, apart: bool = False
) -> Board:
    """Combines results into a board.

    Args:
        results: in the order in which their rows should appear.
        baseline: the name of the row, or of the group of seeds, that differences refer to.
        strict: refuse the whole board if a result does not fit; otherwise that result is left out.
        apart: give results that do not fit boards of their own instead.

    Raises:
        HarnessError: no row has the baseline's name; or, with `strict`, two results cannot be compared.
    """
    first = _Draft("")
    drafts, left_out = [first], []
    numbered = [replace(result, number=number) for number, result in enumerate(results)]
    for result in sorted(numbered, key=lambda one: (_is_log(one), one.name != baseline)):
        refusal = first.take(result)
        if refusal is None or any(draft.take(result) is None for draft in drafts[1:]):
            continue
        if apart:
            drafts.append(_Draft(str(refusal)))
            drafts[-1].take(result)
        elif strict:
            raise refusal
        else:
            left_out.append(LeftOut(result.folder, str(refusal)))
    boards = [draft.board(baseline) for draft in drafts]
    names = list(dict.fromkeys(name for row in boards[0].rows for name in (row.name, row.group) if name))
    if baseline is not None and baseline not in names:
        if elsewhere := [one for one in left_out if one.folder in _folders_of(results, baseline)]:
            raise HarnessError(f"the baseline {baseline!r} cannot be used: {elsewhere[0].reason}")
        raise unknown_name("row", baseline, names)
    others = tuple(Apart(draft.reason, board) for draft, board in zip(drafts[1:], boards[1:], strict=True))
    return replace(boards[0], apart=others, left_out=tuple(left_out))


def _is_log(result: Result) -> bool:
    """Puts logs after scores: their items get the content ids of the scores."""
    return result.provenance.kind != "scores"


def _folders_of(results: Sequence[Result], name: str) -> set[Path]:
    return {result.folder for result in results if name in (result.name, result.group)}


class _Draft:
    """Comparable results, added one by one."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.results: list[Result] = []
        self.first: dict[str, tuple[Result, Measured]] = {}
        self.renamed: dict[str, Mapping[str, str]] = {}

    def take(self, result: Result) -> HarnessError | None:
        """Adds a result, or returns why it does not fit."""
        tasks: dict[str, Measured] = {}
        try:
            for other in self.results:
                if other.name == result.name:
                    _refuse_clash(other, result)
            for task, measured in result.tasks.items():
                if task not in self.first:
                    tasks[task] = measured
                    continue
                earlier, reference = self.first[task]
                tasks[task] = aligned(reference, measured)
                _refuse_incomparable(earlier, reference, result, tasks[task])
                tasks[task] = self._sharing(reference, tasks[task])
        except HarnessError as error:
            return error
        taken = replace(result, tasks=tasks)
        self.results.append(taken)
        for task, measured in tasks.items():
            self.first.setdefault(task, (taken, measured))
        return None

    def _sharing(self, reference: Measured, measured: Measured) -> Measured:
        """The same part with the reference's own items: hundreds of rows then share them in memory."""
        renamed = measured.renamed
        if renamed is not None and renamed == self.renamed.setdefault(measured.task, renamed):
            renamed = self.renamed[measured.task]
        return replace(
            measured,
            item_ids=reference.item_ids,
            clusters=reference.clusters,
            documents=reference.documents,
            renamed=renamed,
        )

    def board(self, baseline: str | None) -> Board:
        """The added results, in the order in which they were given."""
        self.results.sort(key=lambda result: result.number)
        rows = _rows(self.results)
        rows.sort(key=lambda row: baseline not in (row.name, row.group))  # stable: the others stay
        tasks = {task: None for result in self.results for task in result.tasks}
        remarks = [
            remark
            for result in self.results
            for measured in result.tasks.values()
            for remark in (*measured.remarks, *_unrecorded(result, measured))
        ]
        names = [row.name for row in rows] + [row.group for row in rows]
        return Board(
            tuple(rows),
            _tasks(self.first[task][1] for task in tasks),
            baseline if baseline in names else None,
            remarks=tuple(dict.fromkeys(remarks)),
            results=tuple(self.results),
        )


def _unrecorded(result: Result, measured: Measured) -> Iterator[str]:
    if measured.unknown:
        yield (
            f"Row {result.name}: its log does not record the {' and the '.join(measured.unknown)}; that they "
            "are those of the other rows is taken on trust"
        )


def _refuse_incomparable(earlier: Result, reference: Measured, later: Result, measured: Measured) -> None:
    here, there = (
        f"{result.folder} ({len(part.item_ids)} items)"
        for result, part in ((earlier, reference), (later, measured))
    )
    where = f"{reference.task} in {here} and in {there} cannot be compared"
    unknown = (*reference.unknown, *measured.unknown)
    for condition in {**reference.conditions, **measured.conditions}:
        if unknown and condition.startswith(unknown):
            continue
        unset: object = 1 if condition.startswith(SCORER) else "unset"  # the first version was not recorded
        ours = reference.conditions.get(condition, unset)
        theirs = measured.conditions.get(condition, unset)
        if ours != theirs:
            raise HarnessError(f"{where}: {condition} {_short(ours)} and {_short(theirs)}", SEPARATE)
    if reference.item_ids is measured.item_ids and reference.clusters is measured.clusters:
        return
    ours_of = dict(zip(reference.item_ids, reference.clusters, strict=True))
    theirs_of = dict(zip(measured.item_ids, measured.clusters, strict=True))
    # The hashes of the item sets are equal here; the pairing below needs equal items.
    if strangers := sorted(ours_of.keys() ^ theirs_of.keys()):
        raise HarnessError(f"{where}: only one of them has the item {strangers[0]}", SEPARATE)
    for item, cluster in ours_of.items():
        if cluster != theirs_of[item]:
            raise HarnessError(
                f"{where}: item {item} is in cluster {_short(cluster)} and {_short(theirs_of[item])}",
                SEPARATE,
            )


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
            tuple(result.folder for result in parts),
            {
                task: Cell(result.folder, measured.scores, measured.unanswered)
                for result in parts
                for task, measured in result.tasks.items()
            },
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
        raise HarnessError(
            f"{where} and both have {task} (accuracy {ours} and {theirs})",
            "Leave one out, or evaluate one again under another name",
        )
    for role in {**other.model, **result.model}:
        ours, theirs = (_short(r.model.get(role, "unset")) for r in (other, result))
        if ours != theirs:
            raise HarnessError(
                f"{where} but were not made from the same model: {role} was {ours} and {theirs}",
                "Evaluate one of them again under another name",
            )


def _mean(scores: NDArray[np.float64]) -> str:
    scored = scores[~np.isnan(scores)]
    return f"{scored.mean():.4f}" if len(scored) else "unscored"


def _tasks(measured: Iterable[Measured]) -> tuple[Task, ...]:
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
        )
        for one in measured
    ]
    order = {"id": 0, "ood": 1, None: 2}
    return tuple(sorted(tasks, key=lambda task: order[task.distribution]))


def aligned(reference: Measured, measured: Measured) -> Measured:
    """A log's part with the reference's item ids, or unchanged if they may not be the same items.

    The log does not record images. Two parts have the same items if they have the same document numbers and,
    number by number, the same gold. The hash of the prompts, in the order of the reference's ids, is compared
    with the other conditions afterward.
    """
    theirs = measured.documents() if measured.item_ids != reference.item_ids else None
    if theirs is None or theirs.prompts is None:
        return measured
    ours = reference.documents()
    if ours.prompts is not None or sorted(ours.numbers) != sorted(theirs.numbers):
        return measured
    places = {number: at for at, number in enumerate(theirs.numbers)}
    order = [places[number] for number in ours.numbers]
    moved = theirs.reordered(order)
    if not all(map(_same, ours.answers, moved.answers)):
        return measured
    found = Documents(ours.ids, moved.numbers, moved.answers, moved.prompts)
    return replace(
        measured,
        item_ids=reference.item_ids,
        clusters=tuple(measured.clusters[at] for at in order),
        scores=measured.scores[order],
        conditions={
            **measured.conditions,
            "prompt hash": json_sha256(list(moved.prompts or ())),
            "item set": json_sha256(list(ours.ids)),
        },
        documents=lambda: found,
        renamed=dict(zip(moved.ids, ours.ids, strict=True)),
    )


def _same(one: str, other: str) -> bool:
    """Whether golds are equal, also as the same JSON in another spelling."""
    if one == other:
        return True
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False
