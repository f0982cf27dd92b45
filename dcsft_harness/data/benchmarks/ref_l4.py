"""Ref-L4 (Chen et al., 2024): long expressions for boxes in COCO and Objects365 images.

The rows are in two Parquet files without images. The images are in one archive, which is read once from
front to back, so that it need not be unpacked.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dcsft_harness.data.benchmarks import tables
from dcsft_harness.data.benchmarks.files import tar_members
from dcsft_harness.data.benchmarks.grounding import COLUMNS, ask, box_row, four, from_xywh
from dcsft_harness.data.benchmarks.questions import text
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source, View, read_file
from dcsft_harness.errors import HarnessError

PATH = "JierunChen/Ref-L4"
ARCHIVE = "images.tar.gz"
COUNTS = {"val": 13_420, "test": 31_921}
_COLUMNS = ("id", "caption", "bbox", "ori_category_id", "height", "width", "file_name")


@cache
def categories() -> dict[str, str]:
    """COCO's categories in Objects365's ("refcoco_10" -> "o365_41"), as Ref-L4's evaluation maps them."""
    text = (
        resources.files("dcsft_harness.data.benchmarks")
        .joinpath("ref_l4_categories.csv")
        .read_text(encoding="utf-8")
    )
    return {f"refcoco_{row['refcoco']}": f"o365_{row['o365']}" for row in csv.DictReader(text.splitlines())}


class _Rows:
    """All published rows as Arrow, and which of them ask about an image."""

    def __init__(self, opened: Opened) -> None:
        import pyarrow as pa

        parts = []
        self._starts: list[tuple[int, str, str]] = []  # first row, file, split
        self.by_file: dict[str, list[int]] = defaultdict(list)
        count = 0
        for split in COUNTS:
            for table in tables.tables(opened, Hub(PATH, split=split), _COLUMNS):
                self._starts.append((count, table.name, split))
                for batch in table.batches:
                    parts.append(pa.Table.from_pydict({name: batch.column(name) for name in _COLUMNS}))
                    for name in batch.column("file_name").to_pylist():
                        self.by_file[name].append(count)
                        count += 1
        self._table: Any = pa.concat_tables(parts).combine_chunks() if parts else None  # None: no rows

    def entries(self, name: str, read: Callable[[], bytes]) -> Iterator[Entry]:
        """The rows of an image, which `read` reads."""
        for at in self.by_file[name]:
            start, file, split = next(known for known in reversed(self._starts) if known[0] <= at)
            raw = self._table.slice(at, 1).to_pylist()[0]
            yield Entry(f"{file}, row {at - start}", ({**raw, "split": split}, read))


def _entries(opened: Opened) -> Iterator[Entry]:
    rows = _Rows(opened)
    folder = None if opened.folder is None else opened.folder / "images"
    if folder is not None and folder.is_dir():
        for name in sorted(rows.by_file):
            yield from rows.entries(name, read_file(folder / name))
        return
    archive = _archive(opened)
    opened.inputs[archive.name] = archive
    found = set()
    for path, data in tar_members(archive):
        name = path.removeprefix("./").removeprefix("images/")
        if name in rows.by_file and name not in found:
            found.add(name)
            yield from rows.entries(name, lambda data=data: data)  # type: ignore[misc]
    for name in sorted(set(rows.by_file) - found):
        yield from rows.entries(name, _absent(archive, name))


def _archive(opened: Opened) -> Path:
    if opened.folder is None:
        opened.say(f"downloading {ARCHIVE} of {PATH}")
        return tables.fetch(Hub(PATH, split="", files=(ARCHIVE,))) / ARCHIVE
    if not (opened.folder / ARCHIVE).is_file():
        raise HarnessError(
            f"{opened.folder} has neither {ARCHIVE} nor the folder images",
            f"The archive is beside the Parquet files of {PATH} on the hub",
        )
    return opened.folder / ARCHIVE


def _absent(archive: Path, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise HarnessError(
            f"the image {name} is not in {archive}",
            "Download it again, or leave the row out: --on-error skip",
        )

    return read


def _row(opened: Opened, raw: tuple[dict[str, Any], Callable[[], bytes]]) -> Row:
    data, read = raw
    category = text(data, "ori_category_id")
    box = from_xywh(four(data["bbox"], "bbox"))
    size = (data["width"], data["height"])
    return {
        **box_row(opened, data["file_name"], read, ask(data["caption"]), box, size),
        "category": categories().get(category, category),
        "box_width": float(data["bbox"][2]),
        "box_height": float(data["bbox"][3]),
        "split": data["split"],
    }


SOURCES = (
    Source(
        task="dcsft_ref_l4",
        version=2,
        count=sum(COUNTS.values()),
        columns={
            **COLUMNS,
            "category": "string",
            "split": "string",
            # As published: of the corners' differences some are on another side of a size class's limit.
            "box_width": "float64",
            "box_height": "float64",
        },
        entries=_entries,
        row=_row,
        hub=Hub(PATH, split="val"),
        needs=f"--source is a download of {PATH}: two Parquet files and {ARCHIVE} (or the folder images)",
        get="Without --source it is downloaded, 3.5 GB",
        tally=("split", COUNTS),
    ),
)

VIEWS = tuple(
    View(f"dcsft_ref_l4_{split}", "dcsft_ref_l4", "split", (split,), COUNTS[split]) for split in COUNTS
)
