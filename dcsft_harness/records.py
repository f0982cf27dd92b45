"""The nouns of the data flow, their columns on disk, and the id that every join goes by."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.pictures import is_plain, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")

MARK = "<image>"
"""Stands for one picture in a text, at its place."""

RIGHT = 0.5
"""A response counts as right from this score on; the suite's scores are 0 or 1."""

SCORER = "version of the scorer"
CHECKPOINT, SETTING = "checkpoint's generation config", "checkpoint's generation setting"
"""Conditions of a score, or their beginnings: a scorer's version, and what a checkpoint's generation config
applied. Scores are compared where all their conditions are equal."""

_NESTED = 64
_DEEP = f"not JSON (nested deeper than {_NESTED} levels)"

ROWS_AT_ONCE = 1 << 16
"""Rows of a table that are written together."""


def item_id(task: str, prompt: str, answer: str, images: Sequence[bytes]) -> str:
    """The content id of an item: 32 hex digits of a SHA-256 over what the item is.

    Args:
        task: the task's name.
        prompt: the text shown to the model.
        answer: the gold answer as text (JSON where it is not a string).
        images: the pixels of each image, as `pixels` gives them; of prepared data their `pixel_digest`.
    """
    digest = hashlib.sha256()
    for part in (task.encode(), prompt.encode(), answer.encode(), *images):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]


def occurrence_id(item_id: str, occurrence: int) -> str:
    """The id of the same item's further occurrences (from 1) in an evaluation that asks it more than once."""
    return hashlib.sha256(f"{item_id} {occurrence}".encode()).hexdigest()[:32]


def pixels(image: "Image") -> bytes:
    """The bytes that stand for a PIL image in an item's id: size and pixels as `to_rgb` shows them."""
    rgb = to_rgb(image)
    return f"{rgb.width}x{rgb.height}:".encode() + bytes(rgb.tobytes())


def pixel_digest(image: "Image") -> bytes:
    """32 bytes that stand for an image's `pixels`: what a prepared folder keeps of each picture."""
    rgb = image if is_plain(image) else to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Item:
    """One prompt of a pool or of an evaluation set, without its images.

    Attributes:
        item_id: see `item_id`.
        task: the lmms-eval task it comes from.
        doc_id: its position in that task's documents; for messages only, never for joins.
        prompt: the user turn's text. Pictures come before it; where they do not, there is a MARK for each.
        answer: the gold answer as text.
        target: what SFT should teach the model to say.
        box: the gold as [x1, y1, x2, y2] in pixels of the upright image; None where the answer is no box.
        turns: all turns before the answer, as a JSON list of role and content with a MARK for each picture;
            None where there is one, of the user.
    """

    item_id: str
    task: str
    doc_id: int
    prompt: str
    answer: str
    target: str
    box: list[float] | None = None
    turns: str | None = None


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    Attributes:
        item_id: the item it answers.
        sample_index: 0..G-1.
        response: the generated text.
        score: 0..1, None where the response could not be scored.
        extracted: the answer found in the response (JSON where it is not a string), None if none was.
        n_tokens: generated tokens, the end mark included.
        finish_reason: "stop" or "length"; "error" where there is no response.
        seed: the run's seed.
        task, prompt, answer: the item's, repeated so that the table can be read alone.
        censored: whether the item's draws stopped before G because its label was settled: the share
            of right ones among them estimates nothing.
        error: why there is no response, None where there is one.
    """

    item_id: str
    sample_index: int
    response: str
    score: float | None
    extracted: str | None
    n_tokens: int
    finish_reason: str
    seed: int
    task: str
    prompt: str
    answer: str
    censored: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Label:
    """The difficulty of one item for one model.

    Attributes:
        item_id: the item.
        n: responses that were scored.
        k: responses that were right.
        pass_rate: k / n, in [0, 1]; None if no response could be scored, or the item is censored.
        low, high: 95 % Jeffreys interval of the pass rate, in [0, 1]; None where that is.
        difficulty: "easy" (k = n), "hard" (k = 0) or "medium"; None if no response could be scored.
        task: the item's task.
        censored: whether the draws stopped as soon as the item was sure to be medium: n and k then
            say when that was, and not how often it is solved.
    """

    item_id: str
    n: int
    k: int
    pass_rate: float | None
    low: float | None
    high: float | None
    difficulty: Difficulty | None
    task: str
    censored: bool = False


@dataclass(frozen=True)
class Score:
    """One evaluated item.

    Attributes:
        task: the lmms-eval task.
        item_id: the item.
        doc_id: its position in the task's documents; for messages only.
        score: 0..1, None where the response could not be scored.
        extracted: the answer found (JSON where it is not a string), None if none was found.
        response: the generated text.
        answer: the gold answer as text.
        n_tokens: generated tokens; None where the model reports none.
        cluster: items that share a cluster are not independent; None means on its own.
        finish_reason: "stop", or "length" at the limit of tokens; None where the model does not report it.
    """

    task: str
    item_id: str
    doc_id: int
    score: float | None
    extracted: str | None
    response: str
    answer: str
    n_tokens: int | None
    cluster: str | None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Response:
    """One of the K responses to an evaluated item.

    Attributes:
        task, item_id: the item's.
        sample_index: 0..K-1.
        score: 0..1, None where the response could not be scored.
        extracted: the answer found (JSON where it is not a string), None if none was found.
        vote: the first extracted answer of the item that its scorer takes as equal to this one.
        response: the generated text.
        n_tokens: generated tokens, the end mark included; None where the model reports none.
        finish_reason: "stop", or "length" at the limit of tokens; None where the model does not report it.
    """

    task: str
    item_id: str
    sample_index: int
    score: float | None
    extracted: str | None
    vote: str | None
    response: str
    n_tokens: int | None
    finish_reason: str | None = None


_ARROW = {
    "str": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "list[float]": pa.list_(pa.float64()),
    "Difficulty": pa.string(),
}


def schema(record: type) -> pa.Schema:
    """The Arrow schema of a record class: one column per field, nullable where the type allows None."""
    columns = []
    for column in fields(record):
        annotation = column.type if isinstance(column.type, str) else _spell(column.type)
        base = annotation.removesuffix(" | None")
        columns.append(pa.field(column.name, _ARROW[base], nullable=base != annotation))
    return pa.schema(columns)


def _spell(annotation: object) -> str:
    text = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    text = str(text).replace("typing.", "")
    return text.replace("Literal['easy', 'medium', 'hard']", "Difficulty").replace(
        "Optional[Difficulty]", "Difficulty | None"
    )


def write_table(path: Path, record: type, rows: Iterable[Any]) -> int:
    """Writes records of one class as Parquet, taking some at a time, and returns how many there were."""
    left, count, shape = iter(rows), 0, schema(record)
    with pq.ParquetWriter(path, shape, compression="zstd") as writer:
        while some := [vars(row) for row in islice(left, ROWS_AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(some, schema=shape))
            count += len(some)
    return count


def read_table(path: Path, record: type) -> pa.Table:
    """Reads a Parquet table as the columns of a record class, in their types.

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
    """Says of a Parquet file that is read in the block that it is missing or damaged.

    Raises:
        HarnessError: it is.
    """
    if not path.is_file():
        raise HarnessError(f"{path} does not exist", "Run the stage that writes it")
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise HarnessError(
            f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}", "Make the artefact again"
        ) from error


def defaults(path: Path, record: type, found: Sequence[str]) -> dict[str, pa.Scalar]:
    """The columns that are not there, and what stands in each cell instead.

    Raises:
        HarnessError: one of them has no default.
    """
    absent = {column.name: column.default for column in fields(record) if column.name not in found}
    missing = [name for name, default in absent.items() if default is MISSING]
    if missing:
        raise HarnessError(
            f"{path} lacks the column {missing[0]!r}", "Check that it was written by this stage"
        )
    types = schema(record)
    return {name: pa.scalar(default, types.field(name).type) for name, default in absent.items()}


def refuse_empty(path: Path, empty: int, wanted: pa.Field) -> None:
    """Refuses a column with so many empty cells where none may be.

    Raises:
        HarnessError: it has some.
    """
    if empty and not wanted.nullable:
        raise HarnessError(f"{path}: the column {wanted.name!r} has {empty} empty cells", "Fill them in")


def as_wanted(path: Path, found: pa.Array | pa.ChunkedArray, wanted: pa.Field) -> pa.Array | pa.ChunkedArray:
    """A column in its record's type: files written by others may hold int for float, say.

    Raises:
        HarnessError: it cannot be had in that type, or has empty cells where none may be.
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


def json_object(line: bytes) -> dict[str, Any]:
    """A line of JSONL from outside.

    Raises:
        ValueError: it is no UTF-8 or JSON, is no object, is nested deeper than `_NESTED`, or has a number
            beyond float64 (NaN and infinity included) or a string that is no Unicode text.
    """
    try:
        found = json.loads(
            line.decode("utf-8-sig"), parse_constant=_number, parse_float=_number, parse_int=_integer
        )
    except RecursionError:
        raise ValueError(_DEEP) from None
    except ValueError as error:
        raise ValueError(f"not JSON ({cut(str(error))})") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    waiting: list[tuple[Any, int]] = [(found, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _NESTED:
            raise ValueError(_DEEP)
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                code = f"\\u{ord(value[error.start]):04x}"
                raise ValueError(f"not JSON ({code}, half of a surrogate pair, is no text)") from error
        elif isinstance(value, dict):
            waiting += [(one, depth + 1) for pair in value.items() for one in pair]
        elif isinstance(value, list):
            waiting += [(one, depth + 1) for one in value]
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{cut(text, 60)} is not a finite number")
    return value


def _integer(text: str) -> int:
    if len(text) > 300:  # float64 ends at 309 digits, and Python refuses to read 4,300
        raise ValueError(f"{cut(text, 60)} is a number of {len(text.lstrip('-'))} digits")
    return int(text)


def as_text(value: object) -> str:
    """A gold or extracted answer as text: strings as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
