"""Ref-L4 (Chen et al., 2024): long expressions for boxes in COCO and Objects365 images.

The rows are in two Parquet files without images. The images are in one archive, which is read once from
front to back, so that it need not be unpacked.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dcsft_harness.errors import HarnessError
from dcsft_harness.sources import tables
from dcsft_harness.sources.files import tar_members
from dcsft_harness.sources.grounding import COLUMNS, ask, box_row, four, from_xywh
from dcsft_harness.sources.source import Entry, Hub, Opened, Row, Source, View, read_file

PATH = "JierunChen/Ref-L4"
ARCHIVE = "images.tar.gz"
COUNTS = {"val": 13_420, "test": 31_921}
_COLUMNS = ("id", "caption", "bbox", "ori_category_id", "height", "width", "file_name")


@cache
def categories() -> dict[str, str]:
    """COCO's categories in Objects365's ("refcoco_10" -> "o365_41"), as Ref-L4's evaluation maps them."""
    text = files("dcsft_harness.sources").joinpath("ref_l4_categories.csv").read_text(encoding="utf-8")
    return {f"refcoco_{row['refcoco']}": f"o365_{row['o365']}" for row in csv.DictReader(text.splitlines())}


def _entries(opened: Opened) -> Iterator[Entry]:
    by_file: dict[str, list[Entry]] = defaultdict(list)
    for split in COUNTS:
        for where, raw in tables.rows(opened, Hub(PATH, split=split), _COLUMNS):
            by_file[raw["file_name"]].append(Entry(where, {**raw, "split": split}))
    folder = None if opened.folder is None else opened.folder / "images"
    if folder is not None and folder.is_dir():
        for name in sorted(by_file):
            yield from _with_image(by_file[name], read_file(folder / name))
        return
    yield from _from_archive(opened, by_file)


def _from_archive(opened: Opened, by_file: dict[str, list[Entry]]) -> Iterator[Entry]:
    archive = _archive(opened)
    opened.inputs[archive.name] = archive
    for path, data in tar_members(archive):
        name = path.removeprefix("./").removeprefix("images/")
        if name in by_file:
            yield from _with_image(by_file.pop(name), lambda data=data: data)  # type: ignore[misc]
    for name, entries in sorted(by_file.items()):
        yield from _with_image(entries, _absent(archive, name))


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


def _with_image(entries: list[Entry], read: Callable[[], bytes]) -> Iterator[Entry]:
    for where, raw in entries:
        yield Entry(where, (raw, read))


def _absent(archive: Path, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise HarnessError(
            f"the image {name} is not in {archive}",
            "Download it again, or leave the row out: --on-error skip",
        )

    return read


def _row(opened: Opened, raw: tuple[dict[str, Any], Callable[[], bytes]]) -> Row:
    data, read = raw
    category = str(data["ori_category_id"])
    box = from_xywh(four(data["bbox"], "bbox"))
    size = (data["width"], data["height"])
    return {
        **box_row(opened, data["file_name"], read, ask(data["caption"]), box, size),
        "category": categories().get(category, category),
        "split": data["split"],
    }


SOURCES = (
    Source(
        task="dcsft_ref_l4",
        version=1,
        count=sum(COUNTS.values()),
        columns={**COLUMNS, "category": "string", "split": "string"},
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
