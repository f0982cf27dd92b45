"""ImageNet, ImageNet-R and ImageNet-A as the paper asks them: one image, one word.

The classes are the paper's (section 4; the released data files): a class takes part if its WordNet synset
has a single lemma of one word. The images of -R and -A are all that the published sets have of them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dcsft_harness.errors import HarnessError
from dcsft_harness.sources import classes, tables
from dcsft_harness.sources.classes import ImageClass
from dcsft_harness.sources.source import Entry, Hub, Opened, Row, Source

PROMPT = "Please provide the object name in the image. Output the answer using one word."
"""The paper's, for all its classification files."""

COLUMNS = {"class": "string", "seen": "bool"}
"""wnid; whether the class is one of the 100 that the pool has."""

EXTENSIONS = {".jpg", ".jpeg", ".png"}

_R = Hub("axiong/imagenet-r", split="test", config="test")


def name_row(opened: Opened, some: ImageClass, name: str, read: Callable[[], bytes]) -> Row:
    """The row that asks what an image of a class shows. `name` is unique in the set."""
    picture = opened.pictures.add(name, read)
    return {
        "prompt": PROMPT,
        "answer": json.dumps(some.word),
        "target": some.word,
        "cluster": name,
        "images": [picture.index],
        "class": some.wnid,
        "seen": some.trained,
    }


def class_folders(
    opened: Opened, folder: Path, wanted: list[ImageClass]
) -> Iterator[tuple[ImageClass, Path]]:
    """The folder of each class, by its wnid.

    Raises:
        HarnessError: some are not there, and not any number of rows is enough.
    """
    missing = [some.wnid for some in wanted if not (folder / some.wnid).is_dir()]
    if missing and (not opened.any_count or len(missing) == len(wanted)):
        named = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise HarnessError(
            f"{folder} lacks {len(missing)} of {len(wanted)} class folders: {named}",
            "Each class is a folder named by its wnid, with its images inside",
        )
    for some in wanted:
        if some.wnid not in missing:
            yield some, folder / some.wnid


def class_images(folder: Path) -> list[Path]:
    """The image files of a class's folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)


def _folder_rows(opened: Opened, folder: Path, wanted: list[ImageClass]) -> Iterator[Entry]:
    for some, place in class_folders(opened, folder, wanted):
        for path in class_images(place):
            yield Entry(str(path), (some, f"{some.wnid}/{path.name}", path.read_bytes))


def _below(folder: Path, *names: str) -> Path:
    """The first of some folders below another that is there, else that one."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _row(opened: Opened, raw: Any) -> Row:  # noqa: ANN401 - class, name, read
    return name_row(opened, *raw)


def _rendition_entries(opened: Opened) -> Iterator[Entry]:
    wanted = {wnid: some for wnid, some in classes.table().items() if some.renditions}
    if opened.folder is not None and not tables.holds_tables(opened.folder):
        yield from _folder_rows(opened, _below(opened.folder, "imagenet-r", "images"), list(wanted.values()))
        return
    for number, (where, raw) in enumerate(tables.rows(opened, _R, ("image", "wnid"))):
        if raw["wnid"] in wanted:
            image = tables.image_bytes(raw["image"])
            yield Entry(where, (wanted[raw["wnid"]], f"{raw['wnid']}/{number}", image))


RENDITIONS = Source(
    task="dcsft_imagenet_r",
    version=1,
    count=10_741,
    columns=COLUMNS,
    entries=_rendition_entries,
    row=_row,
    hub=_R,
    needs="--source is the unpacked imagenet-r folder, or a download of axiong/imagenet-r",
    get="The archive is at github.com/hendrycks/imagenet-r",
    tally=("class", {some.wnid: some.renditions for some in classes.table().values() if some.renditions}),
)

SOURCES = (RENDITIONS,)
