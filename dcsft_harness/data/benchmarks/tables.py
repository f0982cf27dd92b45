"""Published rows from the hub, or from what was downloaded of it: a Parquet folder, or a `datasets` folder.

Pictures stay encoded: a column of type Image gives {"bytes": ..., "path": ...}.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened
from dcsft_harness.errors import HarnessError

Only = tuple[str, Sequence[Any]] | None

_BATCH = 32
"""Rows read at once: with pictures of a megabyte this is what reading costs in memory."""


@dataclass(frozen=True)
class Table:
    """One file or split of published rows.

    Attributes:
        name: what messages call it.
        features: the `datasets.Features`, ClassLabel names among them.
        batches: its rows as Arrow tables of a few rows each.
    """

    name: str
    features: Any
    batches: Iterator[Any]


def rows(opened: Opened, hub: Hub, columns: Sequence[str], only: Only = None) -> Iterator[Entry]:
    """Every published row, in order; its raw form is a dictionary of the columns, and no others.

    Args:
        opened: what is being read.
        hub: where it is published.
        columns: those that are read; each must be there.
        only: a column and the values of it that count; other rows are passed over unread.

    Raises:
        HarnessError: the data cannot be had, a file is damaged, or a column is missing.
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
    """The files or configurations that the rows come in; see `rows`."""
    found = _from_hub(opened, hub) if opened.folder is None else _from_folder(opened, opened.folder, hub)
    for table in found:
        missing = [name for name in columns if name not in table.features]
        if missing:
            raise HarnessError(
                f"{table.name} has no column {', '.join(missing)}; it has {', '.join(table.features)}",
                f"This is not {hub.path} as it is now: download it again",
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
        except Exception as error:  # noqa: BLE001 - the hub's client has a dozen kinds of refusal
            raise _unreachable(hub, error) from error
        name = f"{hub.path}{f' ({config})' if config else ''}, split {hub.split}"
        yield Table(name, data.features, data.with_format("arrow").iter(batch_size=_BATCH))


def _shards(hub: Hub) -> Path | None:
    """A split's Parquet files, downloaded without the other splits', which `load_dataset` would fetch too.

    None where the repository has no such files or cannot be asked: `load_dataset` then tries its own ways.
    """
    from huggingface_hub import snapshot_download

    split = hub.split
    patterns = [f"*{split}-*.parquet", f"*{split}.parquet", f"*{split}/*.parquet"]
    try:
        folder = Path(snapshot_download(hub.path, repo_type="dataset", allow_patterns=patterns))
    except Exception:  # noqa: BLE001 - told by `load_dataset`, if that fails too
        return None
    return folder if parquet_files(folder, hub) else None


def fetch(hub: Hub) -> Path:
    """Downloads a source's files, unless they are in the hub's cache, and returns their folder.

    Raises:
        HarnessError: they cannot be had.
    """
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
            " give what you hold already with --source DIR",
        )
    return HarnessError(
        f"{hub.path} cannot be loaded from the hub: {type(error).__name__}: {said}",
        "Run this where the hub can be reached; or download the repository and give --source DIR",
    )


def _from_folder(opened: Opened, folder: Path, hub: Hub) -> Iterator[Table]:
    saved = [path for path in (folder / hub.split, folder) if (path / "state.json").is_file()]
    if saved:
        from datasets import load_from_disk

        yield _arrow(saved[0], load_from_disk)
        return
    files = parquet_files(folder, hub)
    cached = [] if files else arrow_files(folder, hub)
    if cached:
        from datasets import Dataset

        for path in cached:
            yield _arrow(path, Dataset.from_file)
        return
    if not files:
        raise HarnessError(
            f"--source {folder} has no Parquet file of the split {hub.split!r}",
            f"Give the folder that `hf download --repo-type dataset {hub.path} --local-dir DIR` fills",
        )
    for path in files:
        opened.inputs[str(path.relative_to(folder))] = path
        yield _parquet(path)


def _arrow(path: Path, open_it: Callable[[str], Any]) -> Table:
    """A `datasets` folder, or an Arrow file of its cache."""
    import pyarrow as pa

    try:
        data = open_it(str(path))
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
        # Else pyarrow keeps all that it has read: a whole row group, or with pre_buffer the whole file.
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


def holds_tables(folder: Path) -> bool:
    """Whether a folder is a download of a hub repository or a `datasets` folder."""
    saved = ("dataset_info.json", "dataset_dict.json", "state.json")
    written = (found for kind in ("*.parquet", "*.arrow") for found in folder.rglob(kind))
    return any((folder / name).is_file() for name in saved) or any(written)


def image_bytes(image: Any) -> Callable[[], bytes]:  # noqa: ANN401 - what an Image column holds
    """Reads the bytes of an undecoded Image column.

    Raises, when it is called:
        HarnessError: the column holds no bytes.
    """

    def read() -> bytes:
        data = image.get("bytes") if isinstance(image, dict) else None
        if not data:
            raise HarnessError("there is no image in the row", "Download the data again")
        return bytes(data)

    return read
