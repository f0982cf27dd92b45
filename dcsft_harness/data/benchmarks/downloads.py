"""Published files and rows, from the hub or from a user's folder."""

import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dcsft_harness import reading
from dcsft_harness.artifacts import storage
from dcsft_harness.data.benchmarks import Entry, Hub, Opened, read_file
from dcsft_harness.errors import HarnessError

# Finds a dataset's files by name in a user's folder: unpacked, or still in their archives.

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error)


class Files:
    """The files below a folder, and those in its zip archives."""

    def __init__(self, root: Path) -> None:
        """Reads nothing yet."""
        self.root = root
        self._archives: list[tuple[Path, zipfile.ZipFile, dict[str, list[str]]]] | None = None

    def image(self, name: str, *folders: str) -> Callable[[], bytes]:
        """Returns a function that reads an image.

        Args:
            name: its path in the annotations ("train2014/COCO_train2014_000000000009.jpg").
            folders: where users unpack it, below the root.

        Raises, when it is called:
            HarnessError: the image is missing, or cannot be read.
        """
        base = PurePosixPath(name).name
        places = [
            self.root / name,
            *(self.root / folder / part for folder in folders for part in (name, base)),
        ]

        def read() -> bytes:
            for place in places:
                if place.is_file():
                    return read_file(place)()
            packed = self._packed(name)
            if packed is None:
                raise HarnessError(
                    f"the image {name} is neither below {self.root} nor in its zip archives",
                    "Put the images there, or leave the row out with --on-error skip",
                )
            path, archive, member = packed
            with reporting_damage(path):
                return archive.read(member)

        return read

    def find(self, *names: str) -> tuple[Path, str | None] | None:
        """The first existing file of some names: each in the root, in one of its folders, or in a zip."""
        for name in names:
            for place in (self.root / name, *sorted(self.root.glob(f"*/{name}"))):
                if place.is_file():
                    return place, None
            packed = self._packed(name, exact=True)
            if packed is not None:
                return packed[0], packed[2]
        return None

    def _packed(self, name: str, exact: bool = False) -> tuple[Path, zipfile.ZipFile, str] | None:
        """The archive with a file of this path, or else of this base name, and the file's path in it.

        With `exact`, a path's folders must agree. Paths may begin with a folder that has the archive's own
        name. Several files with different contents are an error.
        """
        if self._archives is None:
            self._archives = []
            for path in sorted(self.root.glob("*.zip")):
                with reporting_damage(path):
                    archive = zipfile.ZipFile(path)
                members: dict[str, list[str]] = {}
                for member in archive.namelist():
                    members.setdefault(PurePosixPath(member).name, []).append(member)
                self._archives.append((path, archive, members))
        base = PurePosixPath(name).name
        found = [
            (path, archive, member)
            for path, archive, members in self._archives
            for member in members.get(base, ())
        ]
        agreeing = [one for one in found if f"/{one[0].stem}/{one[2]}".endswith(f"/{name}")]
        found = agreeing if exact else agreeing or found
        if len({(file.CRC, file.file_size) for file in (one[1].getinfo(one[2]) for one in found)}) > 1:
            raise HarnessError(
                f"{name} can be {' or '.join(f'{path.name}: {member}' for path, _, member in found)}",
                f"Unpack the right one below {self.root}, to the place that its name says",
            )
        return next(iter(found), None)


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turns errors of a truncated, damaged or unreadable archive into `HarnessError`."""
    try:
        yield
    except PermissionError as error:
        raise HarnessError(f"{path} cannot be read ({error.strerror})", "Check its permissions") from error
    except _DAMAGED as error:
        raise HarnessError(
            f"{path} is damaged or truncated ({type(error).__name__}: {error})", "Download it again"
        ) from error


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a tar archive in its order, as (path in it, bytes), read sequentially.

    Raises:
        HarnessError: the archive is damaged or truncated.
    """
    with reporting_damage(path), tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile():
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()


def json_rows(found: tuple[Path, str | None]) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON list or JSON Lines file of `Files.find`, singly, each with its position.

    Raises:
        HarnessError: it is not JSON, or is truncated.
    """
    path, member = found
    name = str(path) if member is None else f"{path}: {member}"
    with reporting_damage(path):
        raw: IO[bytes] = path.open("rb") if member is None else zipfile.ZipFile(path).open(member)
    with io.TextIOWrapper(raw, encoding="utf-8") as file, reporting_damage(path):
        try:
            for number, (value, _) in enumerate(reading.json_values(file, json.JSONDecoder()), 1):
                yield f"{name}, row {number}", value
        except ValueError as error:  # not JSON, or not UTF-8
            raise HarnessError(
                f"{name} is not JSON, or is truncated ({error})", "Download it again"
            ) from error


# Published rows from the hub, or from a download of it: a Parquet folder, or a `datasets` folder.
#
# Images stay encoded: a column of type Image gives {"bytes": ..., "path": ...}.

Only = tuple[str, Sequence[Any]] | None

_BATCH = 32
"""Rows read at once: with images of a megabyte this determines the memory of reading."""


@dataclass(frozen=True)
class Table:
    """One file or split of published rows."""

    name: str  # its name in messages
    features: Any  # the `datasets.Features`, with ClassLabel names
    batches: Iterator[Any]  # its rows as Arrow tables of a few rows each


def rows(opened: Opened, hub: Hub, columns: Sequence[str], only: Only = None) -> Iterator[Entry]:
    """Every published row, in order; its raw form is a dictionary with only the requested columns.

    All `columns` are required. `only` is a column and its accepted values; other rows are skipped without
    reading their images.

    Raises:
        HarnessError: the data is not available, a file is damaged, or a column is missing.
    """
    for table in tables(opened, hub, columns):
        yield from entries(table, columns, only)


def entries(table: Table, columns: Sequence[str], only: Only = None) -> Iterator[Entry]:
    """The rows of one table; see `rows`."""
    start = 0
    for batch in table.batches:
        if only is None:
            places = list(range(batch.num_rows))
        else:
            places = [
                at for at, value in enumerate(batch.column(only[0]).to_pylist()) if value in set(only[1])
            ]
        chosen = batch.select(list(columns)).take(places) if places else batch.slice(0, 0)
        for place, raw in zip(places, chosen.to_pylist(), strict=True):
            yield Entry(f"{table.name}, row {start + place}", raw)
        start += batch.num_rows


def tables(opened: Opened, hub: Hub, columns: Sequence[str]) -> Iterator[Table]:
    """The files or configurations of the rows; see `rows`."""
    found = _from_hub(opened, hub) if opened.folder is None else _from_folder(opened, opened.folder, hub)
    for table in found:
        missing = [name for name in columns if name not in table.features]
        if missing:
            raise HarnessError(
                f"{table.name} has no column {', '.join(missing)}; it has {', '.join(table.features)}",
                f"This is not the current {hub.path}: download it again",
            )
        yield table


def _from_hub(opened: Opened, hub: Hub) -> Iterator[Table]:
    shards = _shards(hub)
    if shards is not None:
        yield from _from_folder(opened, shards, hub)
        return
    from datasets import load_dataset

    configs = hub.config if isinstance(hub.config, tuple) else (hub.config,)
    for config in configs:
        try:
            data = load_dataset(hub.path, config, split=hub.split)
        except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen kinds of errors
            raise _unreachable(hub, error) from error
        name = f"{hub.path}{f' ({config})' if config else ''}, split {hub.split}"
        yield Table(name, data.features, data.with_format("arrow").iter(batch_size=_BATCH))


def _shards(hub: Hub) -> Path | None:
    """Downloads a split's Parquet files; `load_dataset` would fetch those of the other splits too.

    None if the repository has none or cannot be reached: then `load_dataset` tries its own methods.
    """
    from huggingface_hub import snapshot_download

    split = hub.split
    patterns = [f"*{split}-*.parquet", f"*{split}.parquet", f"*{split}/*.parquet"]
    try:
        folder = Path(snapshot_download(hub.path, repo_type="dataset", allow_patterns=patterns))
    except Exception:  # noqa: BLE001 - reported by `load_dataset` if that fails too
        return None
    return folder if parquet_files(folder, hub) else None


def fetch(hub: Hub) -> Path:
    """The folder of a source's files, from the cache or downloaded; an error if they are not available."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub.path, repo_type="dataset", allow_patterns=list(hub.files)))
    except Exception as error:  # noqa: BLE001 - as for `load_dataset`
        raise _unreachable(hub, error) from error


def _unreachable(hub: Hub, error: Exception) -> HarnessError:
    said = " ".join(str(error).split())[:200]
    refused = any(word in said.lower() for word in ("gated", "authenticat", "401", "403"))
    if hub.gated or refused:
        state = (
            "is gated on the hub, and access was refused"
            if refused
            else "(gated) cannot be loaded from the hub"
        )
        return HarnessError(
            f"{hub.path} {state}: {type(error).__name__}: {said}",
            f"Accept its terms on the page of {hub.path}, log in with `hf auth login`, and run this again; or"
            " pass what you already have with --source DIR",
        )
    return HarnessError(
        f"{hub.path} cannot be loaded from the hub: {type(error).__name__}: {said}",
        "Run this on a machine that can reach the hub; or download the repository and pass --source DIR",
    )


def _from_folder(opened: Opened, folder: Path, hub: Hub) -> Iterator[Table]:
    saved = [path for path in (folder / hub.split, folder) if (path / "state.json").is_file()]
    if saved:
        yield _arrow(saved[0], storage.load)
        return
    files = parquet_files(folder, hub)
    cached = [] if files else arrow_files(folder, hub)
    if cached:
        from datasets import Dataset

        for path in cached:
            yield _arrow(path, lambda file: Dataset.from_file(str(file)))
        return
    if not files:
        raise HarnessError(
            f"--source {folder} has no Parquet file of the split {hub.split!r}",
            f"Pass the folder that `hf download --repo-type dataset {hub.path} --local-dir DIR` fills",
        )
    for path in files:
        opened.inputs[str(path.relative_to(folder))] = path
        yield _parquet(path)


def _arrow(path: Path, open_it: Callable[[Path], Any]) -> Table:
    """A `datasets` folder, or an Arrow file of its cache."""
    import pyarrow as pa

    try:
        data = open_it(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return Table(str(path), data.features, data.with_format("arrow").iter(batch_size=_BATCH))


def arrow_files(folder: Path, hub: Hub) -> list[Path]:
    """The Arrow files of a split in the cache of `datasets`: *-split.arrow, *-split-00000-of-00013.arrow."""
    named = re.compile(rf"(?:.*-)?{re.escape(hub.split)}(?:-\d+-of-\d+)?")
    return [path for path in sorted(folder.rglob("*.arrow")) if named.fullmatch(path.stem)]


def parquet_files(folder: Path, hub: Hub) -> list[Path]:
    """The Parquet files of a split below a folder: split-*.parquet, *-split.parquet, split/*.parquet."""
    configs = {hub.config} if isinstance(hub.config, str) else set(hub.config or ())
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        parts = path.relative_to(folder).parts
        if configs and len(parts) > 1 and not configs & set(parts[:-1]) and "data" not in parts[:-1]:
            continue
        stem = path.stem
        named = stem == hub.split or stem.startswith(f"{hub.split}-") or stem.endswith(f"-{hub.split}")
        if named or hub.split in parts[:-1]:
            found.append(path)
    return found


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        # Otherwise pyarrow keeps all that it has read: a whole row group, or with pre_buffer the whole file.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        features = Features.from_arrow_schema(file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error

    def batches() -> Iterator[Any]:
        try:
            yield from file.iter_batches(batch_size=_BATCH)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error

    return Table(str(path), features, batches())


def _damaged(path: Path, error: Exception) -> HarnessError:
    return HarnessError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}", "Download it again")


def unpacked(opened: Opened) -> Path | None:
    """The folder of published files; None for rows, of the hub, a download of it, or a `datasets` folder."""
    saved, folder = ("dataset_info.json", "dataset_dict.json", "state.json"), opened.folder
    if folder is None or any((folder / name).is_file() for name in saved):
        return None
    return None if any(any(folder.rglob(kind)) for kind in ("*.parquet", "*.arrow")) else folder


def image_bytes(image: object) -> Callable[[], bytes]:
    """Returns a function that reads the bytes of an undecoded Image column.

    Raises, when it is called:
        HarnessError: the column holds no bytes.
    """

    def read() -> bytes:
        data = image.get("bytes") if isinstance(image, dict) else None
        if not data:
            raise HarnessError("there is no image in the row", "Download the data again")
        return bytes(data)

    return read
