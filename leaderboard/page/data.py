"""A board -> data files of its page: figures, items, answers and pools, packed as JavaScript.

Names come from outside. A key like "__proto__" would not be a key in a JavaScript literal, so mappings from
names become lists of pairs.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.storage import IMAGES
from dcsft_harness.errors import HarnessError, json_text
from dcsft_harness.leaderboard.board import Board, Documents, Result, Task
from dcsft_harness.leaderboard.report import escaped, ids_on_board
from dcsft_harness.leaderboard.sampled import read_rows, rows_of_tasks
from dcsft_harness.leaderboard.stats import Codes as Ints
from dcsft_harness.leaderboard.stats import Floats
from dcsft_harness.leaderboard.summary import Line
from dcsft_harness.pictures import to_rgb
from dcsft_harness.records import DIFFICULTIES, RIGHT, Rollout, occurrence_id
from dcsft_harness.sampling import ITEMS, ROLLOUTS

if TYPE_CHECKING:
    from PIL.Image import Image

    from dcsft_harness import lmms

# Images and prompts of evaluated items, for a board's page: scores folders hold neither.
#
# Some documents are read again from tasks that can be opened, and from a user's own rows. Each is checked
# against the item's content id, so that no image is shown with another item's answers. Images are re-encoded
# from their pixels: nothing else in a file (EXIF, comments, profiles) is copied.

SIDE = 512
"""The longest side of a stored image, in pixels."""
SMALL = 96
"""Images up to this side are stored losslessly: they are drawings or glyphs, and small."""
AGAIN = 8
"""The most repeats of an item in an evaluation that are identified by content."""


class Picture(NamedTuple):
    """One stored image."""

    file: str  # its name in the images' folder, a hash of its content
    width: int  # of the upright original, in pixels; boxes are in these
    height: int  # likewise


@dataclass(frozen=True)
class Shown:
    """The content of an item to show."""

    prompt: str  # the text that the model saw
    pictures: tuple[Picture, ...]  # in the order shown to the model


@dataclass(frozen=True)
class Exported:
    """The content of some tasks' items to show."""

    shown: Mapping[str, Mapping[str, Shown]]  # task -> item id -> its content
    reasons: Mapping[str, str]  # task -> why it is incomplete


def export(
    folder: Path,
    documents: Mapping[str, Callable[[], Documents]],
    samples: int,
    open_task: Callable[[str], "lmms.Task | None"],
    changed: Mapping[str, Set[str]] | None = None,
) -> Exported:
    """Writes the images of up to `samples` items of each task to a folder, created if there are any.

    `documents` is task -> a function that returns its items, and `changed` is task -> the ids of those that
    come first. Ids are hashes, so both parts are random draws. `open_task` opens one by its
    name, or finds no single one.
    """
    shown: dict[str, Mapping[str, Shown]] = {}
    reasons: dict[str, str] = {}
    for name, read in documents.items():
        if not samples:
            reasons[name] = (
                "Images were not exported: `dcsft leaderboard build` exports them with --samples N."
            )
            continue
        try:
            task = open_task(name)
            if task is None:
                raise HarnessError(
                    f"{name!r} is not a single task here", "Install the tasks that were evaluated"
                )
        except HarnessError as error:
            reasons[name] = f"The task cannot be opened here. {error}"
            continue
        found, refused = _of_task(folder, task, read(), samples, (changed or {}).get(name, set()))
        shown[name] = found
        if refused:
            reasons[name] = f"{len(refused)} of {len(found) + len(refused)} items are not shown. {refused[0]}"
    return Exported(shown, reasons)


def opener(results: Sequence[Result]) -> Callable[[str], "lmms.Task | None"]:
    """A function that opens a task by its name, as the first of the results that has it did.

    It also opens the user's own rows and YAML files, and takes a metric's column for its task.
    """
    known: dict[str, lmms.Task] = {}

    def opened(name: str) -> "lmms.Task | None":
        from dcsft_harness import lmms

        result = next((one for one in results if name in one.tasks), None)
        metric = None if result is None else result.tasks[name].metric
        plain = name if metric is None else name.removesuffix(f" {metric}")
        if plain not in known and result is not None and not result.is_log:
            known.update(_of_inputs(manifest.read(result.folder, "scores"), plain))
        if plain not in known:
            known.update(lmms.open_tasks([plain]))
        return known.get(plain)

    return opened


def _of_inputs(scores: manifest.Manifest, name: str) -> Mapping[str, "lmms.Task"]:
    """The task of that name if scores were made from a file of rows or its YAML; else empty.

    A file that has changed or is gone is an error.
    """
    from dcsft_harness import lmms
    from dcsft_harness.sampling import own_data

    said, share = scores.call.get("options", {}), scores.config.get("held_out")
    part = None if share is None else own_data.Part(share, held=True)
    if said.get("include_path") is not None:
        lmms.include(Path(said["include_path"]))
    for role, entry in scores.inputs.items():
        (kind, _, own), file = role.partition(" "), scores.folder / entry["path"]
        stem = Path(file.name.removesuffix(".gz")).stem  # of a file that may be gone
        if kind == "data" and name in (own, stem, own_data.task_name(file, part)):
            path, root = scores.input_folder(role), said.get("image_root")
            outside = bool(said.get("allow_outside_root"))
            task = own_data.open_file(
                path, scores.config.get("scorer"), root and Path(root), True, outside, False, part
            )
            return {name: task}
        if kind == "task" and name in (tasks := lmms.open_tasks([str(scores.input_folder(role))])):
            return tasks
    return {}


def _of_task(
    folder: Path, task: "lmms.Task", documents: Documents, samples: int, changed: Set[str]
) -> tuple[dict[str, Shown], list[str]]:
    from dcsft_harness import lmms

    found: dict[str, Shown] = {}
    refused: list[str] = []
    count = len(task.eval_docs)
    numbered = zip(documents.ids, documents.numbers, strict=True)
    for item, number in sorted(numbered, key=lambda pair: pair[0] not in changed)[:samples]:
        if number >= count:
            refused.append(f"Document {number} is not in the task as installed here.")
            continue
        try:
            described, images = lmms.describe(task, number)
        except Exception as error:  # noqa: BLE001 - any failure of a task's functions is reported
            reason = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
            refused.append(reason)
            continue
        occurrences = (occurrence_id(described.item_id, again) for again in range(1, AGAIN + 1))
        if item not in (described.item_id, *occurrences):
            refused.append(f"Document {number} differs from the one that was evaluated.")
            continue
        found[item] = Shown(described.prompt, tuple(store(folder, image) for image in images))
    return found, refused


def store(folder: Path, image: "Image") -> Picture:
    """Writes an image's pixels as WebP, its longest side at most `SIDE`; the name is a content hash."""
    from PIL.Image import frombytes

    rgb = to_rgb(image)
    width, height = rgb.size
    rgb.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    bare = frombytes("RGB", rgb.size, rgb.tobytes())  # without metadata
    bare.save(file, "WEBP", lossless=max(rgb.size) <= SMALL, quality=82)
    name = hashlib.sha256(file.getvalue()).hexdigest()[:32] + ".webp"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).exists():
        (folder / name).write_bytes(file.getvalue())
    return Picture(name, width, height)


# Columns of a board's items as JavaScript files that a page reads from disk, without a server.
#
# A page opened by file:// may not fetch files beside it, but it may load them as scripts: each file is one
# call, `dcsft.take(name, content)`, with content as JSON that cannot end a script element. Whole numbers are
# packed: little-endian, of the smallest width that leaves the largest value free for "none".

Json = dict[str, Any]
WIDTHS = ((1, "<u1"), (2, "<u2"), (4, "<u4"))
"""Bytes per number, and numpy's name for the type."""
QUARTERS = 3
"""Up to this number of distinct scores, four items share a byte."""


def script(name: str, content: Json) -> bytes:
    """One data file: a call with its content. Lone surrogates become question marks."""
    said = json_text(content, allow_nan=False, separators=(",", ":"))
    return f'dcsft.take("{name}",{escaped(said)});\n'.encode("utf-8", errors="replace")


def write_script(folder: Path, name: str, content: Json) -> None:
    """Writes the data file of this name, like "b0t3r17", below a folder."""
    (folder / f"{name}.js").write_bytes(script(name, content))


def pack_numbers(values: NDArray[np.int64]) -> Json:
    """Whole numbers from 0, shape (n,), -1 for none, as {"w": bytes each, "d": base64}."""
    largest = int(values.max(initial=0))
    width, kind = next((w, k) for w, k in WIDTHS if largest < 256**w - 1)
    filled = np.where(values < 0, 256**width - 1, values)
    return {"w": width, "d": base64.b64encode(filled.astype(kind).tobytes()).decode("ascii")}


def pack_texts(column: pa.ChunkedArray | Sequence[str | None]) -> Json:
    """Texts, shape (n,), as {"v": the distinct ones, "c": their numbers}."""
    array = pa.array(column, pa.string()) if isinstance(column, Sequence) else column.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    used, places = np.unique(codes, return_inverse=True)
    kept = used[used >= 0]
    places = places - (len(used) - len(kept))  # none comes first, and becomes -1
    return {"v": array.dictionary.take(pa.array(kept)).to_pylist(), "c": pack_numbers(places)}


def pack_scores(rows: Sequence[NDArray[np.float64] | None]) -> Json:
    """All rows' scores of a task's items, each shape (n,), as {"v": values, "w", "r": [base64]}.

    A score is its index among the values; the largest number of the width means missing. With width 0.25,
    four items share a byte, the first in its lowest bits. A row without the task is null.
    """
    some = [np.unique(row[~np.isnan(row)]) for row in rows if row is not None]
    values = np.unique(np.concatenate(some)) if some else np.zeros(0)
    width: float = 0.25
    if len(values) > QUARTERS:
        width = next(w for w, _ in WIDTHS if len(values) < 256**w)
    return {
        "v": values.tolist(),
        "w": width,
        "r": [None if row is None else _packed(row, values, width) for row in rows],
    }


def _packed(row: NDArray[np.float64], values: NDArray[np.float64], width: float) -> str:
    missing = 3 if width < 1 else 256 ** int(width) - 1
    codes = np.where(np.isnan(row), missing, np.searchsorted(values, row))
    if width < 1:
        codes = np.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4)
        packed = (codes << np.array([0, 2, 4, 6])).sum(axis=1).astype("<u1")
    else:
        packed = codes.astype(f"<u{int(width)}")
    return base64.b64encode(packed.tobytes()).decode("ascii")


# A board -> data files of its page: its figures, every task's items, and every row's answers.

DIGITS = 7
"""Significant digits of figures that a page shows rounded anyway; leaderboard.json has all of them."""
DEGREES = (*range(1, 31), 35, 40, 50, 60, 80, 100, 150, 200, 400, 1000, 10_000, 1_000_000)
_ESTIMATE = ("value", "low", "high", "n")


def boards(document: Mapping[str, Any]) -> list[Json]:
    """The board, and the rows that cannot be compared with it, as columns."""
    apart = [(one["reason"], one["board"]) for one in document["apart"]]
    return [_board(reason, board) for reason, board in [(None, document), *apart]]


_HASH = re.compile(r"[0-9a-f]{64}")


def headline(document: Mapping[str, Any]) -> Json:
    """A page's title: the evaluated models, and the day of the latest result or "".

    A model in a folder is named as in the model arguments: its hash means nothing to a reader.
    """
    models: dict[str, None] = {}
    days = []
    for row in document["rows"]:
        for part in row["provenance"]:
            days.append(str(part["created"])[:10])
            settings = part["settings"]
            given = dict(re.findall(r"(\w+)=([^,]+)", str(settings.get("model_args") or "")))
            known = (part["model"].get("the model"), given.get("pretrained"), settings.get("run"))
            found = next((str(one) for one in known if one and not _HASH.fullmatch(str(one))), None)
            if found is not None:
                models[found] = None
    dated = [day for day in days if re.fullmatch(r"\d{4}-\d\d-\d\d", day)]
    return {"models": list(models), "date": max(dated, default="")}


def _board(reason: str | None, board: Mapping[str, Any]) -> Json:
    return {
        "reason": reason,
        **{key: board[key] for key in ("baseline", "ranked_by", "overall")},
        "remarks": board["remarks"],
        "columns": board["columns"],
        "tasks": [
            {**task, "conditions": list(task["conditions"].items()), "draws": _with_draws(task, board)}
            for task in board["tasks"]
        ],
        "rows": [_row(row) for row in board["rows"]],
        "cells": _cells(board["rows"]),
        "comparisons": _comparisons(board["comparisons"]),
    }


def _with_draws(task: Mapping[str, Any], board: Mapping[str, Any]) -> int | None:
    """The index of the task whose files hold the K responses behind a metric: the task with avg@k."""
    if task["metric"] is None:
        return None
    name, k = task["name"].removesuffix(task["metric"]), task["metric"].partition("@")[2]
    return next((at for at, one in enumerate(board["tasks"]) if one["name"] == f"{name}avg@{k}"), None)


def _row(row: Mapping[str, Any]) -> Json:
    kept = ("name", "kind", "group", "members", "is_baseline", "worst_task", "rank", "pareto")
    packed = {key: row[key] for key in kept}
    packed["retention"] = _rounded(row["ood_retention"])
    packed["difficulty"] = [
        [kind, _rounded(found)] for kind, found in (row["by_difficulty"] or {}).items()
    ] or None
    packed["cost"] = list((row["cost"] or {}).items())
    packed["details"] = [_details(part) for part in row["provenance"]]
    return packed


def _details(part: Mapping[str, Any]) -> list[list[str]]:
    """A row's provenance, as pairs of a name and a text."""
    pairs = [("made by", part["kind"]), ("created", part["created"]), *part["model"].items()]
    pairs += [(f"setting {key}", value) for key, value in part["settings"].items()]
    training = part["training"]
    if training is not None:
        pairs += [(f"training {key}", value) for key, value in training["settings"].items()]
        pairs += [(f"{kind} items trained on", count) for kind, count in training["mix"].items()]
    return [[str(key), str(value)[:300]] for key, value in pairs if value is not None]


def _cells(rows: Sequence[Mapping[str, Any]]) -> Json:
    """One entry per column for each row; null if a row lacks it."""
    cells = [cell or {} for row in rows for cell in row["cells"]]
    found: Json = {key: [cell.get(key) for cell in cells] for key in ("n", "unscored", "unanswered")}
    found["deviation"] = [rounded(cell.get("seed_deviation")) for cell in cells]
    for key in ("accuracy", "difference"):
        estimates = [cell.get(key) or {} for cell in cells]
        found[key] = [[rounded(one.get(part)) for one in estimates] for part in _ESTIMATE[:3]]
    return found


def _comparisons(made: Sequence[Mapping[str, Any]]) -> Json:
    families = list(dict.fromkeys(one["family"] for one in made))
    methods = list(dict.fromkeys(one["method"] for one in made))
    found: Json = {key: [one[key] for one in made] for key in ("row", "other", "column", "better", "worse")}
    found |= {key: [rounded(one[key]) for one in made] for key in ("p", "p_holm")}
    found |= {key: [rounded(one["difference"][key]) for one in made] for key in _ESTIMATE[:3]}
    found["n"] = [one["difference"]["n"] for one in made]
    found |= {"families": families, "family": [families.index(one["family"]) for one in made]}
    found |= {"methods": methods, "method": [methods.index(one["method"]) for one in made]}
    return found


def _rounded(estimate: Mapping[str, Any] | None) -> list[Any] | None:
    return None if estimate is None else [rounded(estimate[part]) for part in _ESTIMATE]


def rounded(value: float | None) -> float | None:
    """A number to `DIGITS` significant digits."""
    if value is None or value == 0 or isinstance(value, int):
        return value
    return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))


def quantiles() -> list[list[float]]:
    """Student's t at 97.5 % as [1 / degrees of freedom, quantile], for intervals that a page computes."""
    from scipy.special import stdtrit

    return [[1 / d, float(stdtrit(d, 0.975))] for d in DEGREES]


@dataclass(frozen=True, eq=False)
class Part:
    """One board of a page."""

    number: int  # 0: the board's own rows; 1, ...: rows that cannot be compared with them
    board: Board  # as loaded
    tasks: Sequence[Task]  # its tasks, in the order of leaderboard.json
    lines: Sequence[Line]  # its lines, in that order

    def name(self, task: int) -> str:
        """Prefix of the names of a task's data files."""
        return f"b{self.number}t{task}"

    @property
    def rows(self) -> dict[str, int]:
        """Row -> its number among the lines."""
        return {line.name: number for number, line in enumerate(self.lines) if not line.is_group}

    @property
    def numbered(self) -> dict[str, tuple[int, Task]]:
        """Task -> its number, and the task."""
        return {task.name: (number, task) for number, task in enumerate(self.tasks)}


def write_tasks(
    folder: Path, part: Part, labels: Mapping[str, str], shown: Mapping[str, Mapping[str, Shown]]
) -> None:
    """Writes two files per task: its items, and the scores of all rows.

    `labels` is item id -> difficulty; `shown` is task -> item id -> content to show beside the responses.
    """
    codes, sizes = np.unique(np.concatenate([one.clusters for one in part.tasks]), return_counts=True)
    joined = codes[sizes > 1]
    for number, task in enumerate(part.tasks):
        content = _items(part, task, labels, shown.get(task.name, {}), joined)
        write_script(folder, f"{part.name(number)}items", content)
        rows = [_scores(line, task.name) for line in part.lines]
        write_script(folder, f"{part.name(number)}scores", pack_scores(rows))


def _scores(line: Line, task: str) -> NDArray[np.float64] | None:
    if line.is_group or task not in line.rows[0].cells:
        return None
    return line.rows[0].cells[task].scores


def changed_items(part: Part, task: Task) -> set[str]:
    """The items of a task that two rows score differently."""
    rows = [scores for line in part.lines if (scores := _scores(line, task.name)) is not None]
    if len(rows) < 2:
        return set()
    lowest, highest = np.fmin.reduce(rows), np.fmax.reduce(rows)  # these skip missing scores
    return {task.item_ids[at] for at in np.flatnonzero(lowest < highest).tolist()}


def _items(
    part: Part,
    task: Task,
    labels: Mapping[str, str],
    shown: Mapping[str, Shown],
    joined: NDArray[np.int64],
) -> Json:
    """A task's items; `joined` are the clusters of several items, over all tasks of the board."""
    measured = next(result.tasks[task.name] for result in part.board.results if task.name in result.tasks)
    documents = measured.documents()
    alone = not np.isin(task.clusters, joined).any()
    found: Json = {
        "ids": list(task.item_ids),
        "documents": pack_numbers(np.array(documents.numbers, dtype=np.int64)),
        "answers": pack_texts(documents.answers),
        "clusters": None if alone else pack_numbers(np.asarray(task.clusters, dtype=np.int64)),
        "difficulties": None,
        "prompts": None,
        "pictures": None,
    }
    if labels:
        kinds = [labels.get(item) for item in task.item_ids]
        places = [-1 if kind is None else DIFFICULTIES.index(kind) for kind in kinds]
        found["difficulties"] = pack_numbers(np.array(places, dtype=np.int64))
    prompts: Sequence[str | None] = documents.prompts or [None] * len(task.item_ids)
    if shown:
        prompts = [
            shown[item].prompt if item in shown else prompt
            for item, prompt in zip(task.item_ids, prompts, strict=True)
        ]
        found["pictures"] = [
            [list(picture) for picture in shown[item].pictures] if item in shown else None
            for item in task.item_ids
        ]
    if any(prompt is not None for prompt in prompts):
        found["prompts"] = pack_texts(prompts)
    return found


def write_responses(folder: Path, part: Part) -> None:
    """Writes a file for every row and task: responses, extracted answers and token counts.

    Results are read again, one folder at a time.
    """
    rows, numbered = part.rows, part.numbered
    orders: dict[str, tuple[pa.ChunkedArray, pa.Array]] = {}  # task -> ids and places: most tables are alike
    for result in part.board.results:
        for table in result.tables():
            shown = table.select(["response", "extracted", "n_tokens"])
            shown = shown.append_column("item_id", ids_on_board(result, table))
            for name, places in rows_of_tasks(table).items():
                if name not in result.tasks:
                    continue
                (number, task), some = numbered[name], shown.take(places)
                ids = some["item_id"]
                if name not in orders or not orders[name][0].equals(ids):
                    wanted = pa.array(task.item_ids, pa.string())
                    orders[name] = ids, pc.index_in(wanted, value_set=ids.combine_chunks())
                ordered = some.take(orders[name][1])
                content = {
                    "responses": pack_texts(ordered["response"]),
                    "extracted": pack_texts(ordered["extracted"]),
                    "tokens": pack_numbers(_tokens(ordered["n_tokens"])),
                }
                write_script(folder, f"{part.name(number)}r{rows[result.name]}", content)


def write_draws(folder: Path, part: Part) -> None:
    """Writes a file for every row and task with K responses per item: all responses, with votes."""
    rows, numbered = part.rows, part.numbered
    for result in part.board.results:
        for name, measured in result.tasks.items():
            if measured.responses is None or measured.draws is None:
                continue
            number, task = numbered[name]
            table = measured.responses()
            items = pc.index_in(
                ids_on_board(result, table).combine_chunks(), value_set=pa.array(task.item_ids, pa.string())
            ).to_numpy()
            ordered = table.take(np.lexsort([table["sample_index"].to_numpy(), items]))
            judged = np.array(ordered["score"].to_numpy(), dtype=np.float64)
            content = {
                "samples": measured.draws.samples,
                **{key: pack_texts(ordered[key]) for key in ("response", "extracted", "vote")},
                "tokens": pack_numbers(_tokens(ordered["n_tokens"])),
                "scores": pack_scores([judged]),
            }
            write_script(folder, f"{part.name(number)}d{rows[result.name]}", content)


def _tokens(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


# Rollouts of pools on a board's page: some items with all of their responses and scores.

_COLUMNS = ("item_id", "sample_index", "response", "score", "extracted", "n_tokens")


def write_pools(data: Path, pictures: Path, rollouts: Sequence[Path], samples: int) -> list[Json]:
    """Writes two files per folder of rollouts: `samples` of its items, and their responses item by item.

    Ids are hashes, so the first items are a random draw. Returns each one's name on the page and counts.

    Raises:
        HarnessError: a folder holds no rollouts, they have changed, or they cannot be read.
    """
    return [_write(data, pictures, folder, f"p{number}", samples) for number, folder in enumerate(rollouts)]


def _write(data: Path, pictures: Path, folder: Path, name: str, samples: int) -> Json:
    found = manifest.read(folder, "rollouts")
    manifest.refuse_changed(folder)
    items = storage.load(folder / ITEMS)
    known = items.data.table["item_id"] if items._indices is None else pa.chunked_array([items["item_id"]])
    order = np.asarray(pc.sort_indices(known))[:samples]
    chosen = items.select(order.tolist())
    ids = chosen["item_id"][:]
    drawn = _drawn(folder / ROLLOUTS, ids)
    starts, judged = _stretches(drawn, ids)
    texts_of = {key: chosen[key][:] for key in ("prompt", "answer", "doc_id")}
    shown = [[list(store(pictures, one)) for one in row[IMAGES]] for row in chosen.select_columns([IMAGES])]
    content = {
        "ids": list(ids),
        "documents": pack_numbers(np.array(texts_of["doc_id"], dtype=np.int64)),
        "answers": pack_texts(texts_of["answer"]),
        "prompts": pack_texts(texts_of["prompt"]),
        "pictures": shown,
        "difficulties": pack_numbers(_difficulties(judged, starts)),
        "starts": pack_numbers(starts),
    }
    write_script(data, f"{name}items", content)
    responses = {
        "responses": pack_texts(drawn["response"]),
        "extracted": pack_texts(drawn["extracted"]),
        "tokens": pack_numbers(drawn["n_tokens"].to_numpy()),
        "scores": pack_scores([judged]),
    }
    write_script(data, f"{name}r0", responses)
    facts = {"name": folder.resolve().name, "items": len(ids), "of": len(items), "responses": len(drawn)}
    return {**facts, "task": str(found.notes.get("task") or found.config.get("task") or "")}


def _drawn(path: Path, ids: Sequence[str]) -> pa.Table:
    """The responses to some items, item by item, in the order in which they were drawn."""
    table = read_rows(path, Rollout, pc.field("item_id").isin(pa.array(ids, pa.string())), _COLUMNS)
    return table.sort_by([("item_id", "ascending"), ("sample_index", "ascending")])


def _stretches(drawn: pa.Table, ids: Sequence[str]) -> tuple[Ints, Floats]:
    """The offsets of each item's responses, and the end of the last one's; and all scores, NaN if missing."""
    found = drawn["item_id"].combine_chunks().dictionary_encode()
    if lost := sorted(set(ids) - set(found.dictionary.to_pylist())):
        raise HarnessError(f"{ROLLOUTS} has no response to item {lost[0]}", "Sample the pool again")
    codes = np.asarray(found.indices)
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(ids)))]).astype(np.int64)
    return starts, np.array(drawn["score"].to_numpy(), dtype=np.float64)


def _difficulties(judged: Floats, starts: Ints) -> Ints:
    """The labels that `dcsft label` would give: easy, medium, hard as 0, 1, 2; -1 if nothing is scored."""
    known, right = (
        np.add.reduceat(one, starts[:-1], dtype=np.int64) for one in (~np.isnan(judged), judged >= RIGHT)
    )
    kinds = np.select([known == 0, right == known, right == 0], [-1, 0, 2], 1)
    return np.asarray(kinds, dtype=np.int64)
