"""Rows of a user's own data, whatever file or folder holds them: JSON, tables, `datasets` folders, memory.

Everything is read row by row and in bounded memory. What is wrong with a row is an error in its place, so
that its reader can list all of them.
"""

import base64
import codecs
import contextlib
import csv
import decimal
import gzip
import hashlib
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcsft_harness import environment, pictures, reading
from dcsft_harness.artifacts import manifest, storage, usage
from dcsft_harness.errors import HarnessError, cut

if TYPE_CHECKING:
    from datasets import Dataset

QUESTIONS = ("problem", "question", "prompt")
GOLDS = ("solution", "answer")
ANSWERS = (*GOLDS, "completion")
CONVERSATIONS = ("messages", "conversations")
REJECTED = ("rejected", "rejected_response")
PAIRS = {"query": "response", "instruction": "output"}
"""Questions of ms-swift and of Alpaca, and their answers; `input` and `history` are optional."""
TALK = "conversation"
"""ms-swift's list of mappings with `human` and `assistant`."""
COLUMNS = (
    *(*QUESTIONS, *ANSWERS, *CONVERSATIONS, *REJECTED),
    *("chosen", "system", "image", "images", "choices", "options"),
)
"""What is read of a row of any shape."""
OF_PAIRS = (*PAIRS, *PAIRS.values(), "input", "history", TALK, "objects")
HOLDS = ("bytes", "base64", "path", "url", "image", "image_url")
"""Where a mapping has its picture, first come first."""
_ASK = {*CONVERSATIONS, *QUESTIONS, *PAIRS, "chosen", TALK}
_ANSWER = {*CONVERSATIONS, *ANSWERS, *PAIRS.values(), "chosen", TALK}
KINDS = "JSONL, JSON, CSV, TSV (each also as .gz), Parquet, Arrow, or a folder that `datasets` saved"
MOST_ROW = 1 << 28
"""Bytes of one row in JSON or of one cell of a table, pictures in base64 included."""
_AT_ONCE = 64
_OTHERS = {
    **{
        b"PK\x03\x04": "is a ZIP archive",
        b"BZh": "is compressed with bzip2",
        b"\xfd7zXZ\x00": "is compressed with xz",
    },
    **{b"\x28\xb5\x2f\xfd": "is compressed with zstd", b"7z\xbc\xaf\x27\x1c": "is a 7z archive"},
    **{b"\x89HDF": "is an HDF5 file", b"SQLite": "is an SQLite database", b"\x80\x04\x95": "is a pickle"},
    **{b"\x80\x05\x95": "is a pickle", b"\xff\xfe": "is text in UTF-16", b"\xfe\xff": "is text in UTF-16"},
}
"""How files of other kinds begin. An archive may hold its rows as they are, so that some would be read."""
_SHARD = re.compile(r"(.+)-\d+-of-\d+(?:-[0-9a-f]+)?")
"""The names that `datasets` and the hub give to the files of a split."""
_SPLIT = re.compile(
    r"(train|test|validation|valid|val|dev|eval)"
    r"|.*?[-._ 0-9](?:(train|test)(?:ing)?|(validation|valid|val|dev)|(eval)(?:uation)?)(?![^-._ 0-9])",
    re.I,
)
"""How the name of another file of a split begins, or a word in it, separated as `datasets` takes it."""
_ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".gz", ".arrow")
_PICTURE = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?)$", re.I)
_NAMED = re.compile(r"ima?ge?|pic|photo|screen|figure|frame|shot|visual|video|audio|file|path|url", re.I)
"""Names of columns of texts that may show something, in a table that also has a column of images."""

Row = tuple[str, "dict[str, Any] | HarnessError"]
"""What an error calls a row ("line 3", "row 3", from 1), and the row, or what is wrong with it."""


def name_of(path: Path) -> str:
    """The name of the task that a file or folder becomes: its own, without endings."""
    return Path(path.name.removesuffix(".gz")).stem if path.is_file() else path.name


def count(path: Path) -> int | None:
    """The number of rows of a file of lines, or of Parquet; None for others, which would be read whole.

    Blank lines count; so it is for estimates.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if head == b"PAR1":
                return int(pq.read_metadata(path).num_rows)
            if path.suffix != ".jsonl" or head[:2] == b"\x1f\x8b":
                return None
            lines, last = head.count(b"\n"), head[-1:]
            while piece := file.read(reading.PIECE):
                lines, last = lines + piece.count(b"\n"), piece[-1:]
            return lines + (last not in (b"", b"\n"))
    except (OSError, pa.ArrowException):
        return None


def is_data(named: str) -> bool:
    """Whether a name is that of a file, or of a folder that `datasets` saved and no stage of ours did."""
    path = Path(named)
    return path.is_file() or (path.is_dir() and not (path / "manifest.json").is_file() and _holds(path))


def refuse_missing(path: Path) -> None:
    """Refuses a path that is neither a file nor a folder: missing, or a device, pipe or socket."""
    if not (path.is_file() or path.is_dir()):
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise HarnessError(f"--data {path} {problem}", _where_to_look(str(path)))


def _where_to_look(named: str) -> str:
    """The remedy for a path that does not exist; it may be a name of the hub's."""
    if not re.fullmatch(r"[\w.-]+/[\w-]+", named) or Path(named).parent.exists():
        return "Check the path"
    saved = f"load_dataset({named!r}, split=...).save_to_disk(FOLDER)"
    return f"Check the path; save a dataset of the hub first: {saved}"


def refuse_lost(named: str) -> None:
    """Refuses a missing path, and a folder without rows that no stage made; others may be tasks."""
    path = Path(named)
    stage = any((path / name).exists() for name in (manifest.NAME, manifest.UNFINISHED, "data/state.json"))
    if path.is_dir() and not stage and not is_data(named):
        raise _without_rows(path)
    if ("/" in named or "\\" in named or path.suffix) and not path.exists():
        raise HarnessError(f"{named} does not exist, and is not a task", _where_to_look(named))


def _holds(folder: Path) -> bool:
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return saved or any(folder.glob("*.parquet"))


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file or folder, in their order; an error if it does not exist or cannot be read on."""
    return usage.counted(_rows(path), lambda: count(path))


def _rows(path: Path) -> Iterator[Row]:
    refuse_missing(path)
    try:
        if path.is_dir():
            yield from _of_folder(path)
            return
        with path.open("rb") as file:
            head = file.read(265)
        if packed := head[:2] == b"\x1f\x8b":
            with gzip.open(path) as inside:
                head = inside.read(265)
        if kind := next((kind for start, kind in _OTHERS.items() if head.startswith(start)), None):
            raise HarnessError(
                f"{path} {kind}", "Save it as UTF-8" if kind.endswith("UTF-16") else f"Pass {KINDS}"
            )
        if head[257:262] == b"ustar":
            raise HarnessError(
                f"{path} is a tar archive", f"Unpack it, write a row for each sample, and pass {KINDS}"
            )
        if head[:4] == b"PAR1":
            yield from _numbered(_of_parquet(path))
        elif path.suffix == ".arrow":
            from datasets import Dataset

            yield from _numbered(_of_dataset(Dataset.from_file(str(path)), path))
        else:
            ending = Path(path.name.removesuffix(".gz")).suffix.lower()
            with gzip.open(path) if packed else path.open("rb") as opened:
                yield from _of_text(path, opened, ending)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise HarnessError(f"{path} cannot be read: {cut(said)}", f"Pass {KINDS}") from error


def _of_text(path: Path, file: IO[bytes], ending: str) -> Iterator[Row]:
    if ending in (".csv", ".tsv"):
        yield from _of_table(path, file, "\t" if ending == ".tsv" else ",")
        return
    buffered = io.BufferedReader(file, reading.PIECE)  # type: ignore[type-var]
    if _is_one_document(buffered.peek(reading.PIECE)[: reading.PIECE], ending):
        yield from _numbered(_of_json(buffered))
        return
    place = "row" if is_kept(path) else "line"
    for number, line in _lines(buffered):
        yield f"{place} {number}", _json_row(line)


def _is_one_document(head: bytes, ending: str) -> bool:
    """Whether a text is JSON over several lines, whatever its name: a list, or objects that are indented."""
    line, _, rest = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return ending == ".json" or line.startswith(b"[")
    try:
        reading.json_object(line)
    except ValueError:
        longer = len(line) == len(head)  # a row of more than a piece
        return not longer and (ending == ".json" or (line.strip() == b"{" and bool(rest)))
    return False


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by number; of those that are too long the beginning, which is no JSON."""
    number = 0
    while line := file.readline(MOST_ROW + 1):
        number += 1
        if len(line) > MOST_ROW:
            while (rest := file.readline(reading.PIECE)) and not rest.endswith(b"\n"):
                pass
        if line.strip():
            yield number, line


def _json_row(line: bytes) -> dict[str, Any] | HarnessError:
    if len(line) > MOST_ROW:
        return HarnessError(
            f"it is longer than {MOST_ROW >> 20} MiB", "Save its images as files and use their paths"
        )
    try:
        return reading.json_object(line)
    except ValueError as error:
        encoded = isinstance(error.__cause__, UnicodeDecodeError)
        return HarnessError(str(error), "Save the file as UTF-8" if encoded else "Correct or remove the line")


def _of_json(file: IO[bytes]) -> Iterator[dict[str, Any] | HarnessError]:
    """The members of a JSON list, or values one after another; read one at a time."""
    # Numbers stay texts here: each value is read again, with the limits of a row.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    try:
        for _, text in reading.json_values(
            io.TextIOWrapper(file, "utf-8-sig", newline=""), decoder, MOST_ROW
        ):
            yield _json_row(text.encode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        yield HarnessError(f"not JSON ({cut(str(error))})", "Save the file as UTF-8")
    except RecursionError:
        yield HarnessError("not JSON (nested too deep)", "Correct the file; rows after it are not read")
    except ValueError as error:
        yield HarnessError(f"not JSON ({cut(str(error))})", "Correct the file; rows after it are not read")


def _of_table(path: Path, file: IO[bytes], delimiter: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file; an empty cell is none. Line ends in cells are those of JSON rows."""
    before, number = csv.field_size_limit(MOST_ROW), 0
    try:
        text = io.TextIOWrapper(file, "utf-8-sig", newline=None)
        head = text.readline()
        if delimiter not in head:  # spreadsheets save so in countries where numbers have a decimal comma
            delimiter = next((one for one in ";\t" if one in head), delimiter)
        # Without `strict`, the cell of a quote that is not closed has all rows behind it.
        reader = csv.DictReader(chain([head], text), delimiter=delimiter, strict=True)
        names = list(reader.fieldnames or ())
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise HarnessError(f"{path} has two columns `{twice}`", "Rename or remove one of them")
        _refuse_columns(path, [name.strip().lower() for name in names])
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                few = "more" if None in row else "fewer"
                yield (
                    f"row {number}",
                    HarnessError(
                        f"{few} cells than columns", "Quote cells that hold commas; leave others empty"
                    ),
                )
                continue
            cells = {name: cell for name, cell in row.items() if cell}
            if cells:  # spreadsheets end with rows of empty ones
                yield f"row {number}", cells
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path} cannot be read: {cut(str(error))}", "Save it as UTF-8") from error
    except csv.Error as error:
        where = f"row {number + 1}" if reader.line_num else "its header"
        raise HarnessError(
            f"{path}, {where}: a cell and the rows after it cannot be read: {error}",
            "Quote cells that contain quotes, double each quote inside them, and close them",
        ) from error
    finally:
        csv.field_size_limit(before)


def _of_parquet(path: Path) -> Iterator[dict[str, Any] | HarnessError]:
    with pq.ParquetFile(path) as file:
        wanted, named = read_columns(path, file.schema_arrow), classes(file.schema_arrow)
        for batch in file.iter_batches(batch_size=_AT_ONCE, columns=wanted):
            yield from of_batch(batch, named)


def _of_folder(path: Path) -> Iterator[Row]:
    """The rows of a folder that `datasets` saved, of a curated set, or of Parquet files."""
    if (path / manifest.NAME).is_file() and (path / "data" / "state.json").is_file():
        path = path / "data"
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import Dataset

        found = storage.load(path)
        if not isinstance(found, Dataset) and len(found) != 1:
            raise HarnessError(
                f"{path} holds the splits {', '.join(found)}",
                f"Name one of them: {path / next(iter(found), 'train')}",
            )
        one = found if isinstance(found, Dataset) else next(iter(found.values()))
        yield from _numbered(_of_dataset(one, path))
        return
    _refuse_artifact(path)
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise _without_rows(path)
    splits = dict.fromkeys(split for one in files if (split := _split(one.stem)) is not None)
    if len(splits) > 1:
        raise HarnessError(
            f"{path} holds the splits {', '.join(splits)}",
            "Name a file of one split, or put its files into a folder of their own",
        )
    yield from _numbered(row for file in files for row in _of_parquet(file))


def _without_rows(path: Path) -> HarnessError:
    inside = sorted(one for one in [*path.glob("*"), *path.glob("*/*")] if one.suffix in _ENDINGS)
    there = dict.fromkeys(str(one.parent if one.suffix == ".parquet" else one) for one in inside)
    if not there and any(_PICTURE.search(str(one)) for one in (*path.glob("*"), *path.glob("*/*"))):
        return HarnessError(
            f"{path} is a folder of images without rows",
            "Write a JSONL or CSV file beside it with a row for each image: question, answer, image",
        )
    return HarnessError(
        f"{path} is a folder without rows",
        f"Name {'one of ' * (len(there) > 1)}{cut(', '.join(there))}" if there else f"Pass {KINDS}",
    )


def _refuse_artifact(folder: Path) -> None:
    """Refuses the folder of a stage: what it keeps of items looks like rows, and lacks their images."""
    with contextlib.suppress(OSError, ValueError):  # other programs, too, write files of this name
        found = reading.json_file(folder / manifest.NAME)
        if isinstance(found, dict) and isinstance(kind := found.get("artefact"), str) and kind:
            raise HarnessError(
                f"{folder} holds {manifest.indefinite(cut(kind))}, not rows of your own",
                "Pass the rows that it was made from, or a curated set",
            )


def _split(stem: str) -> str | None:
    """The split that a file is named after; None where it is named after none."""
    if shard := _SHARD.fullmatch(stem):
        return shard[1]
    named = _SPLIT.match(stem)
    return None if named is None else str(named[named.lastindex or 0]).lower()


def _of_dataset(found: "Dataset", where: object) -> Iterator[dict[str, Any] | HarnessError]:
    schema = found.features.arrow_schema
    wanted, named = read_columns(where, schema), classes(schema)
    for table in found.select_columns(wanted).with_format("arrow").iter(batch_size=_AT_ONCE):
        for batch in table.to_batches():
            yield from of_batch(batch, named)


def classes(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of classes, by the columns that `datasets` marks as numbers of them, or as lists of these."""
    try:
        said = reading.from_json((schema.metadata or {}).get(b"huggingface", b"{}").decode())
        features = dict(said["info"]["features"])
    except (ValueError, KeyError, TypeError):  # other writers' own words
        return {}
    found = {}
    for name, one in features.items():
        while (isinstance(one, list) and one) or (isinstance(one, dict) and "feature" in one):
            one = one[0] if isinstance(one, list) else one["feature"]
        if isinstance(one, dict) and one.get("_type") == "ClassLabel" and isinstance(one.get("names"), list):
            found[name] = one["names"]
    return found


def _refuse_columns(where: object, names: Iterable[str]) -> list[str]:
    """The columns that are read: a question and its answer, or a conversation, are among them."""
    there = list(names)
    wanted = [name for name in (*COLUMNS, *OF_PAIRS) if name in there]
    missing = "question" if not _ASK & set(there) else "answer" if not _ANSWER & set(there) else None
    if missing is not None:
        raise HarnessError(
            f"{where} has no column of the {missing}s; it has {cut(', '.join(map(str, there))) or 'nothing'}",
            "Rename its columns to question, answer and image, or to messages and images",
        )
    return wanted


def misnamed(names: Iterable[str]) -> dict[str, str]:
    """Names that differ from an absent column's in case and white space alone: name -> column."""
    there = list(names)
    known = {name: name.strip().lower() for name in there if name not in COLUMNS}
    return {name: right for name, right in known.items() if right in COLUMNS and right not in there}


def read_columns(where: object, schema: pa.Schema) -> list[str]:
    """The columns to read: `COLUMNS`, and those that may hold what a row lacks, which is refused by row."""
    wrong = misnamed(schema.names)
    wanted = _refuse_columns(where, [*schema.names, *wrong.values()])
    pictured = "image" in wanted or "images" in wanted
    others = [
        field.name
        for field in schema
        if field.name not in wanted and (field.name in wrong or _may_show(field, pictured))
    ]
    return [name for name in [*wanted, *others] if name in schema.names]


def _may_show(field: pa.Field, pictured: bool) -> bool:
    """Whether a column may hold pictures; those in the table itself are read where it has no other."""
    kind = field.type
    while hasattr(kind, "value_type"):  # of lists of any size, and of repeated values stored once
        kind = kind.value_type
    if str(kind).removeprefix("large_").removesuffix("_view") == "string":
        return not pictured or bool(_NAMED.search(field.name))
    inside = pa.types.is_struct(kind) and {*HOLDS} & {one.name for one in kind}
    return not pictured and bool(inside or "binary" in str(kind))


def of_batch(
    batch: pa.RecordBatch, named: Mapping[str, list[str]]
) -> Iterator[dict[str, Any] | HarnessError]:
    """Rows of a Parquet file, with NaN as None and whole numbers as such; an error for text that is none.

    `named` has the names of classes, see `classes`.
    """
    for at in range(batch.num_rows):
        try:
            row = batch.slice(at, 1).to_pylist()[0]
        except (ValueError, pa.ArrowException) as error:  # text that is not UTF-8
            yield HarnessError(f"it cannot be read ({cut(str(error))})", "Correct or remove the row")
            continue
        row |= {name: _classified(row[name], named[name]) for name in named.keys() & row.keys()}
        kinds = batch.schema
        yield {name: _whole(value, kinds.field(name).type) for name, value in row.items()}


def _classified(value: Any, names: Sequence[str]) -> Any:  # noqa: ANN401 - a number, or lists of them
    """The names of classes in place of their numbers; None for -1, a class that is not known."""
    if isinstance(value, list):
        return [_classified(one, names) for one in value]
    return None if value is None or value < 0 else names[value]


def _whole(value: Any, kind: pa.DataType) -> Any:  # noqa: ANN401 - Arrow's own types
    """A cell with whole numbers as such: a column holds 4 as 4.0 where any of its rows has a fraction.

    Numbers of 16 and 32 bits are those that were written: 0.1 and not 0.10000000149; decimals keep their
    digits.
    """
    if isinstance(value, float):
        if pa.types.is_float32(kind) or pa.types.is_float16(kind):
            value = float(str(kind.to_pandas_dtype()(value)))
        return None if value != value else int(value) if value.is_integer() else value
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, np.ndarray) and value.ndim == 1:  # a list of a Parquet file, as pandas reads it
        kind = pa.from_numpy_dtype(value.dtype) if value.dtype in (np.float16, np.float32) else kind
        value = value.tolist()
    if isinstance(value, list):
        inner = getattr(kind, "value_type", kind)  # of a data frame's cell the kind of any number
        return [_whole(one, inner) for one in value]
    if isinstance(value, dict):
        inside = pa.types.is_struct(kind)
        return {name: _whole(one, kind.field(name).type if inside else kind) for name, one in value.items()}
    return value


def _numbered(found: Iterable[dict[str, Any] | HarnessError]) -> Iterator[Row]:
    yield from ((f"row {number}", row) for number, row in enumerate(found, 1))


def keep(given: Any) -> tuple[Path, bool]:  # noqa: ANN401 - a `datasets.Dataset`, or mappings
    """Saves rows in memory as a file named by its content, so that the same rows give the same file.

    It is in the cache's folder `own`, and stays there: rollouts of it name it as their pool. The second value
    says whether a row names an image by a path. Rows are a `datasets.Dataset`, a `pandas.DataFrame`, or
    dictionaries, whose images may be PIL images.

    Raises:
        HarnessError: it is something else or has no rows, or a value cannot be stored as JSON, bytes or an
            image.
    """
    above = _kept()
    above.mkdir(parents=True, exist_ok=True)
    source = _in_memory(given)
    handle, name = tempfile.mkstemp(dir=above)
    try:
        digest, number, has_paths = hashlib.sha256(), 0, False
        with os.fdopen(handle, "wb") as file:
            for number, row in enumerate(source, 1):
                if not isinstance(row, Mapping | HarnessError):
                    raise HarnessError(
                        f"the dataset, row {number}: it is {type(row).__name__}, not a dictionary",
                        "Pass a list of dictionaries, such as {'question': ..., 'answer': ..., 'image': ...}",
                    )
                if isinstance(row, HarnessError):
                    raise HarnessError(f"the dataset, row {number}: {row.problem}", row.remedy)
                row = {key: one for key, one in row.items() if not (isinstance(one, float) and one != one)}
                shown = [one for key in _PICTURES for one in _listed(row.get(key))]
                if (shaped := next((one for one in shown if hasattr(one, "ndim")), None)) is not None:
                    raise HarnessError(
                        f"the dataset, row {number}: an image is {type(shaped).__name__}, not an image",
                        "Pass a PIL image, as PIL.Image.fromarray makes of an array, or a path",
                    )
                line = _json_line(row, number)
                has_paths = has_paths or any(_has_path(one, key in _PICTURES) for key, one in row.items())
                digest.update(line)
                file.write(line)
        if not number:
            raise HarnessError("the dataset holds no rows", "Pass a list of dictionaries")
        kept = above / digest.hexdigest()[:32] / "data.jsonl"
        kept.parent.mkdir(exist_ok=True)
        os.replace(name, kept)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return kept, has_paths


def is_kept(path: Path) -> bool:
    """Whether a file is one that `keep` wrote."""
    return path.name == "data.jsonl" and path.absolute().parent.parent == _kept().absolute()


def _kept() -> Path:
    return environment.cache_root() / "own"


def called(path: Path) -> str:
    """What an error calls a file or folder: its path, or "the dataset" for rows that were in memory."""
    return "the dataset" if is_kept(path) else str(path)


def root_of(path: Path) -> Path:
    """Where relative image paths start by default: in a file's folder, or where Python runs.

    Rows that were in memory have no folder of their own.
    """
    return Path(".") if is_kept(path) else path.parent


def _has_path(value: object, is_image: bool = False) -> bool:
    """Whether a row's value, or a part of one, names an image by a path."""
    if not is_image:
        value = unpacked(value)
    if isinstance(value, Mapping):
        if is_image or value.get("type") in ("image", "image_url"):
            given = {name: value.get(name) for name in HOLDS}
            # Others than these, such as arrays, may have no truth value.
            there = [name for name, one in given.items() if not isinstance(one, str | bytes | None) or one]
            return bool(there) and there[0] not in ("bytes", "base64") and _has_path(value[there[0]], True)
        return any(_has_path(one, key in _PICTURES) for key, one in value.items())
    if isinstance(value, list | tuple):
        return any(_has_path(one, is_image) for one in value)
    is_path = isinstance(value, os.PathLike) or (isinstance(value, str) and not value.startswith("data:"))
    return is_image and is_path


def unpacked(value: object) -> object:
    """A list or mapping that a table's cell holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError):
            return reading.from_json(value, whole=True)
    return value


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


_PICTURES = ("image", "images")


def _in_memory(given: Any) -> Iterable[Any]:  # noqa: ANN401 - what `keep` is given
    """The rows of a dataset in memory; a mapping (splits, or columns) is refused."""
    if isinstance(given, Mapping):
        named = cut(", ".join(map(str, given)))
        if all(hasattr(one, "with_format") for one in given.values()):
            raise HarnessError(f"the dataset has the splits {named}", "Pass one of them: data[SPLIT]")
        raise HarnessError(
            f"the dataset is a dictionary of {named or 'nothing'}",
            "Pass a list of dictionaries, one per row",
        )
    if hasattr(given, "with_format") and hasattr(given, "select_columns") and hasattr(given, "num_rows"):
        if given.format["type"] == "custom":
            raise HarnessError(
                "the dataset has a transform, which saved data has not",
                "Apply it by map(), and reset_format()",
            )
        return (row for _, row in _numbered(_of_dataset(given, "the dataset")))
    if hasattr(given, "to_dict") and hasattr(given, "iterrows"):  # a `pandas.DataFrame`
        return _of_frame(given)
    found: Iterator[Any] = iter(given)
    return found


def _of_frame(given: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - a `pandas.DataFrame`
    """The rows of a data frame, without missing values."""
    kinds = [pa.float32() if str(kind) == "float32" else pa.float64() for kind in given.dtypes]
    names, given = list(map(str, given.columns)), given.astype(object).where(given.notna(), None)
    for cells in given.itertuples(index=False, name=None):
        row = {name: _whole(cell, kind) for name, cell, kind in zip(names, cells, kinds, strict=True)}
        yield {name: cell for name, cell in row.items() if cell is not None}


def _json_line(row: Mapping[str, Any], number: int) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise HarnessError(
            f"the dataset, row {number}: {cut(str(error))}", "Use texts, numbers, lists and images"
        ) from error


def _plain(value: Any) -> Any:  # noqa: ANN401 - what JSON has no form for
    """A picture or bytes as a data URL, and numpy's values as Python's."""
    from PIL import Image

    if isinstance(value, Image.Image):
        file = io.BytesIO()
        pictures.to_rgb(value).save(file, "PNG", compress_level=1)
        value = file.getvalue()
    if isinstance(value, bytes):
        return f"data:;base64,{base64.b64encode(value).decode()}"
    if hasattr(value, "tolist"):
        value, kind = value.tolist(), str(getattr(value, "dtype", "")).removeprefix("torch.")
        if kind in ("float16", "float32"):  # 0.1 and not 0.10000000149, as `_whole` has it
            return np.array(value, kind).astype(str).astype(float).tolist()
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value is {type(value).__name__}")
