"""The records of the data flow, their columns on disk, and the item id for joins."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import is_plain, to_rgb
from dcsft_harness.reading import from_json
from dcsft_harness.settings import members

if TYPE_CHECKING:
    from PIL.Image import Image

Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")

MARK = "<image>"
"""Marks the position of one image in a text."""


def parts(text: str, images: Iterator[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """A turn's content as chat templates take it: at each MARK the next of `images`, else a placeholder."""
    found: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(MARK)):
        if number:
            found.append(next(images) if images else {"type": "image"})
        if piece:
            found.append({"type": "text", "text": piece})
    return found


RIGHT = 0.5
"""The lowest score of a right response; the suite's scores are 0 or 1."""

SCORER = "version of the scorer"
FROM_CHECKPOINT = "generation_from_checkpoint"
"""The records of applied generation-config settings in scores, rollouts and logged token counts."""
PROMPTED = "prompt_settings"
"""The record of what an engine adds to each prompt, in scores, rollouts and logged token counts: the hash of
its system prompt, and the arguments of its chat template."""
LOGGED = "logged_prompt_sha256"
"""A task's note of the hash of its prompts as lmms-eval logs them."""
CHECKPOINT, SETTING = "checkpoint's generation config", "checkpoint's generation setting"
"""Conditions of a score, or their prefixes: a scorer's version, and applied settings of a checkpoint's
generation config. Scores are comparable if all their conditions are equal."""

ROWS_AT_ONCE = 1 << 16
"""Rows of a table written together."""

THOUGHTS = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]
"""What lmms-eval's own command removes from responses where nothing else is set."""
_STRIPPED = [["<think>", "</think>"], ["<thinking>", "</thinking>"]]
"""What a task with `auto_strip_thinking` removes."""


def reasoning_tags(task: object, strips: object = None, command: object = None) -> list[list[str]]:
    """The pairs of tags between which lmms-eval removes text before it scores a response; empty if none.

    `task` and `strips` are `reasoning_tags` and `auto_strip_thinking` of the task's configuration, `command`
    is `--reasoning_tags` of lmms-eval's own command. A ValueError if they are no such pairs.
    """
    found = command if task is None else task
    if found in (None, False, "none"):
        return _STRIPPED if strips else []
    pairs = from_json(found) if isinstance(found, str) else found
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"reasoning_tags is {str(found)[:80]!r}, no list of pairs")
    return [[str(one) for one in pair] for pair in pairs]


def reasoning(tags: list[list[str]], responses: Iterable[str]) -> dict[str, Any]:
    """A note on the reasoning in responses as they were before these tags were removed.

    It has the first tag of each pair that occurs, and the number of responses that these change; without
    tags, of those that lmms-eval's command would change.
    """

    def has(text: str, start: str, end: str) -> bool:
        return text.find(end, max(text.find(start), 0)) >= 0

    found, count = set[str](), 0
    for text in responses:
        hit = {start for start, end in tags or THOUGHTS if has(text, start, end)}
        found, count = found | hit, count + bool(hit)
    return {"removed": ", ".join(start for start, _ in tags if start in found) or "none", "responses": count}


def item_id(task: str, prompt: str, answer: str, images: Sequence[bytes]) -> str:
    """The content id of an item: 32 hex digits of a SHA-256 over its content.

    `answer` is the gold as text (JSON where it is not a string). `images` are the pixels of each image, from
    `pixels`; for prepared data their `pixel_digest`.
    """
    digest = hashlib.sha256()
    for part in (task.encode(), prompt.encode(), answer.encode(), *images):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]


def occurrence_id(item_id: str, occurrence: int) -> str:
    """The id of a repeat (numbered from 1) of the same item in an evaluation."""
    return hashlib.sha256(f"{item_id} {occurrence}".encode()).hexdigest()[:32]


def pixels(image: "Image") -> bytes:
    """A PIL image's part of an item's id, in bytes: size and pixels after `to_rgb`."""
    rgb = image if is_plain(image) else to_rgb(image)
    return f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()


def pixel_digest(image: "Image") -> bytes:
    """A 32-byte digest of an image's `pixels`: stored per image in a prepared folder."""
    return hashlib.sha256(pixels(image)).digest()


@dataclass(frozen=True)
class Item:
    """One prompt of a pool or of an evaluation set, without its images."""

    item_id: str  # see `item_id`
    task: str  # the lmms-eval task it comes from
    doc_id: int  # its position in that task's documents; for messages only, never for joins
    prompt: str  # the user turn's text. Images come before it; otherwise there is a MARK for each.
    answer: str  # the gold answer as text
    target: str  # the answer for SFT
    # the gold as [x1, y1, x2, y2] in pixels of the upright image; None if the answer is not a box
    box: list[float] | None = None
    # all turns before the answer, as a JSON list of role and content with a MARK for each image; None for a
    # single user turn
    turns: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled response."""

    item_id: str  # the item it answers
    sample_index: int  # 0..G-1
    response: str  # the generated text
    score: float | None  # 0..1, None if the response could not be scored
    # the answer found in the response (JSON where it is not a string), None if none was
    extracted: str | None
    n_tokens: int  # generated tokens, the end mark included
    finish_reason: str  # "stop" or "length"; "error" if there is no response
    seed: int  # the run's seed
    # task, prompt, answer: the item's, repeated so that the table can be read alone
    task: str
    prompt: str
    answer: str
    # whether the item's sampling stopped before G because its label was settled: then the share of right
    # responses is not an estimate
    censored: bool = False
    error: str | None = None  # why there is no response, None if there is one


@dataclass(frozen=True)
class Label:
    """The difficulty of one item for one model."""

    item_id: str
    n: int  # responses that were scored
    k: int  # responses that were right
    pass_rate: float | None  # k / n, in [0, 1]; None if no response could be scored, or the item is censored
    # low, high: 95 % Jeffreys interval of the pass rate, in [0, 1]; None if the pass rate is
    low: float | None
    high: float | None
    # "easy" (k = n), "hard" (k = 0) or "medium"; None if no response could be scored
    difficulty: Difficulty | None
    task: str  # the item's task
    # whether sampling stopped as soon as the item was sure to be medium: then n and k count the samples until
    # then, and give no pass rate
    censored: bool = False
    # the probability that one response is right, in [0, 1]; None without `dcsft label --exact`
    exact: float | None = None


@dataclass(frozen=True)
class Score:
    """One evaluated item."""

    task: str  # the lmms-eval task
    item_id: str
    doc_id: int  # its position in the task's documents; for messages only
    score: float | None  # 0..1, None if the response could not be scored
    extracted: str | None  # the answer found (JSON where it is not a string), None if none was found
    response: str  # the generated text
    answer: str  # the gold answer as text
    n_tokens: int | None  # generated tokens; None if the model reports none
    cluster: str | None  # items that share a cluster are not independent; None means a cluster of its own
    # "stop", or "length" at the token limit; None if the model does not report it
    finish_reason: str | None = None


@dataclass(frozen=True)
class Response:
    """One of the K responses to an evaluated item."""

    # task, item_id: the item's
    task: str
    item_id: str
    sample_index: int  # 0..K-1
    score: float | None  # 0..1, None where the response could not be scored
    extracted: str | None  # the answer found (JSON where it is not a string), None if none was found
    vote: str | None  # the first extracted answer of the item that its scorer counts as equal to this one
    response: str  # the generated text
    n_tokens: int | None  # generated tokens, the end mark included; None if the model reports none
    # "stop", or "length" at the limit of tokens; None where the model does not report it
    finish_reason: str | None = None


_ARROW = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    list[float]: pa.list_(pa.float64()),
    Difficulty: pa.string(),
}


def schema(record: type) -> pa.Schema:
    """The Arrow schema of a record class: one column per field, nullable where the type allows None."""
    columns = []
    for name, kind in get_type_hints(record).items():
        base, *others = members(kind)
        columns.append(pa.field(name, _ARROW[base], nullable=bool(others)))
    return pa.schema(columns)


def write_table(path: Path, record: type, rows: Iterable[Any]) -> int:
    """Writes records of one class as Parquet, in batches, and returns their number."""
    left, count, shape = iter(rows), 0, schema(record)
    with pq.ParquetWriter(path, shape, compression="zstd") as writer:
        while some := [vars(row) for row in islice(left, ROWS_AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(some, schema=shape))
            count += len(some)
    return count


def read_table(path: Path, record: type) -> pa.Table:
    """Reads a Parquet table as the columns of a record class, converted to their types.

    Columns that have a default may be missing.

    Raises:
        HarnessError: the file is missing, damaged, lacks a column, or has one of another type.
    """
    with readable(path):
        table = pq.read_table(path)
    for name, filling in defaults(path, record, table.column_names).items():
        table = table.append_column(name, pa.repeat(filling, table.num_rows))
    columns = [as_wanted(path, table[column.name], column) for column in schema(record)]
    return pa.table(columns, schema=schema(record))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns errors of reading a Parquet file in the block into a `HarnessError`."""
    if not path.is_file():
        raise HarnessError(f"{path} does not exist", "Run the stage that writes it")
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise HarnessError(
            f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}", "Recreate the artifact"
        ) from error


def defaults(path: Path, record: type, found: Sequence[str]) -> dict[str, pa.Scalar]:
    """The missing columns, with the default value of each; one without a default is an error."""
    absent = {column.name: column.default for column in fields(record) if column.name not in found}
    missing = [name for name, default in absent.items() if default is MISSING]
    if missing:
        raise HarnessError(
            f"{path} lacks the column {missing[0]!r}", "Check that it was written by this stage"
        )
    types = schema(record)
    return {name: pa.scalar(default, types.field(name).type) for name, default in absent.items()}


def refuse_empty(path: Path, empty: int, wanted: pa.Field) -> None:
    """Refuses a column with empty cells where none may be empty."""
    if empty and not wanted.nullable:
        raise HarnessError(f"{path}: the column {wanted.name!r} has {empty} empty cells", "Fill them in")


def as_wanted(path: Path, found: pa.Array | pa.ChunkedArray, wanted: pa.Field) -> pa.Array | pa.ChunkedArray:
    """A column in its record's type: files from other tools may hold int for float, for example.

    Raises:
        HarnessError: it does not convert to that type, or has empty cells where none may be.
    """
    refuse_empty(path, found.null_count, wanted)
    numeric = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (found.type, wanted.type)]
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if numeric[0] == numeric[1] or pa.types.is_null(found.type):
            return found.cast(wanted.type)
    raise HarnessError(
        f"{path}: the column {wanted.name!r} holds {found.type}, not {wanted.type}",
        "Check that it was written by this stage",
    )


def as_text(value: object) -> str:
    """A gold or extracted answer as text: strings unchanged, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
