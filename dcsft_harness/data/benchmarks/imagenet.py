"""ImageNet, ImageNet-R and ImageNet-A as the paper asks them: one image, one word.

The classes are the paper's (section 4; the released data files): a class takes part if its WordNet synset
has a single lemma of one word. The images of -R and -A are all that the published sets have of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dcsft_harness.data.benchmarks import classes, tables
from dcsft_harness.data.benchmarks.classes import ImageClass
from dcsft_harness.data.benchmarks.questions import content_name
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source, read_file, read_text
from dcsft_harness.errors import HarnessError

PROMPT = "Please provide the object name in the image. Output the answer using one word."
"""The paper's, for all its classification files."""

COLUMNS = {"class": "string", "seen": "bool"}
"""wnid; whether the class is one of the 100 that the pool has."""

VAL = Hub("ILSVRC/imagenet-1k", split="validation", gated=True)
RENDITIONS = Hub("axiong/imagenet-r", split="test", config="test")
ADVERSARIAL = Hub("barkermrl/imagenet-a", split="train")

_EXTENSIONS = {".jpg", ".jpeg", ".png"}
_SOLUTION = "LOC_val_solution.csv"
"""Kaggle's list of the validation images' classes: ImageId, and a string that begins with the wnid."""


def row(opened: Opened, raw: tuple[ImageClass, str, Callable[[], bytes]]) -> Row:
    """The row that asks what an image shows.

    Args:
        opened: takes the image.
        raw: its class, its name (unique in the set) and what reads its bytes.
    """
    some, name, read = raw
    data = read()
    return {
        "prompt": PROMPT,
        "answer": json.dumps(some.word),
        "target": some.word,
        # Not its name, which is another one in a folder than on the hub: results of both can be compared.
        "cluster": content_name(data),
        "images": [opened.pictures.add(name, lambda: data).index],
        "class": some.wnid,
        "seen": some.trained,
    }


def below(folder: Path, *names: str) -> Path:
    """The first of some folders below another that is there, else that folder itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def class_folders(
    opened: Opened, folder: Path, wanted: Iterable[ImageClass]
) -> Iterator[tuple[ImageClass, list[Path]]]:
    """Each class and its image files, sorted by name.

    Raises:
        HarnessError: folders are not there, and not any number of rows is enough.
    """
    all_of_them = list(wanted)
    missing = [some.wnid for some in all_of_them if not (folder / some.wnid).is_dir()]
    if missing and (not opened.any_count or len(missing) == len(all_of_them)):
        named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise HarnessError(
            f"{folder} lacks {len(missing)} of {len(all_of_them)} class folders: {named}",
            "Each class is a folder named by its wnid; --any-count takes what is there",
        )
    for some in all_of_them:
        if some.wnid not in missing:
            try:
                files = list((folder / some.wnid).iterdir())
            except OSError as error:
                raise HarnessError(
                    f"{folder / some.wnid} cannot be read ({error.strerror})", "Check its permissions"
                ) from error
            yield some, sorted(path for path in files if path.suffix.lower() in _EXTENSIONS)


def image_entry(some: ImageClass, path: Path) -> Entry:
    """An image file of a class."""
    return Entry(str(path), (some, f"{some.wnid}/{path.name}", read_file(path)))


def _foldered(opened: Opened, folder: Path, wanted: Iterable[ImageClass]) -> Iterator[Entry]:
    for some, files in class_folders(opened, folder, wanted):
        for path in files:
            yield image_entry(some, path)


def _flat(opened: Opened, folder: Path, solution: Path) -> Iterator[Entry]:
    """Validation images that lie in one folder, by the list of their classes."""
    opened.inputs[solution.name] = solution
    wanted = classes.trained()
    for line in read_text(solution).splitlines()[1:]:
        name, _, boxes = line.partition(",")
        some = wanted.get(boxes.strip().split(" ")[0])
        if some is not None:
            yield image_entry(some, folder / f"{name}.JPEG")


def _labelled(opened: Opened, by_label: dict[int, ImageClass]) -> Iterator[Entry]:
    """Validation images from the hub, by the numbers of their classes."""
    named: set[str] = set()
    number = 0
    for table in tables.tables(opened, VAL, ("image", "label")):
        _refuse_other_labels(table, by_label)
        for where, raw in tables.entries(table, ("image", "label"), ("label", list(by_label))):
            name = (raw["image"].get("path") if isinstance(raw["image"], dict) else None) or str(number)
            some = by_label[raw["label"]]
            name = f"{some.wnid}/{number if name in named else name}"  # a copy of the set may name all alike
            named.add(name.partition("/")[2])
            number += 1
            yield Entry(where, (some, name, tables.image_bytes(raw["image"])))


def _refuse_other_labels(table: tables.Table, by_label: dict[int, ImageClass]) -> None:
    """Refuses labels in another order than ImageNet's, as a copy of a part of the set may have them.

    Names are a class's synonyms or its wnid; where there are none, nothing tells the order.
    """
    names = getattr(table.features["label"], "names", None) or []
    if not names or all(name.isdigit() for name in names):
        return
    for label, some in by_label.items():
        name = names[label] if label < len(names) else None
        if name is None or name.split(",")[0].strip().lower() not in (some.word.lower(), some.wnid):
            raise HarnessError(
                f"{table.name}: label {label} is {name!r}, where ImageNet has {some.word!r} ({some.wnid})",
                f"Its 1,000 labels have to be in the order of {VAL.path}: give that, or val/ by wnid",
            )


def _val_entries(opened: Opened) -> Iterator[Entry]:
    wanted = classes.trained()
    if opened.folder is None or tables.holds_tables(opened.folder):
        yield from _labelled(opened, {some.label: some for some in wanted.values()})
        return
    folder = below(opened.folder, "val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "validation")
    if any(folder.glob("ILSVRC2012_val_*.JPEG")):
        solution = next(
            (up / _SOLUTION for up in (opened.folder, folder) if (up / _SOLUTION).is_file()), None
        )
        if solution is None:
            raise HarnessError(
                f"{folder} has no class folders, and {opened.folder / _SOLUTION} is not there",
                f"Put Kaggle's {_SOLUTION} beside it, or sort the images into folders named by wnid",
            )
        yield from _flat(opened, folder, solution)
        return
    yield from _foldered(opened, folder, wanted.values())


def _renditions(opened: Opened) -> Iterator[Entry]:
    wanted = {wnid: some for wnid, some in classes.table().items() if some.renditions}
    if opened.folder is not None and not tables.holds_tables(opened.folder):
        yield from _foldered(opened, below(opened.folder, "imagenet-r", "images"), wanted.values())
        return
    rows = tables.rows(opened, RENDITIONS, ("image", "wnid"), ("wnid", list(wanted)))
    for number, (where, raw) in enumerate(rows):
        name = f"{raw['wnid']}/{number}"
        yield Entry(where, (wanted[raw["wnid"]], name, tables.image_bytes(raw["image"])))


def _adversarial(opened: Opened) -> Iterator[Entry]:
    wanted = {wnid: some for wnid, some in classes.table().items() if some.adversarial}
    if opened.folder is not None and not tables.holds_tables(opened.folder):
        yield from _foldered(opened, below(opened.folder, "imagenet-a", "images"), wanted.values())
        return
    number = 0
    for table in tables.tables(opened, ADVERSARIAL, ("image", "label")):
        names = _label_names(table)
        labels = [at for at, name in enumerate(names) if name in wanted]
        for where, raw in tables.entries(table, ("image", "label"), ("label", labels)):
            some = wanted[names[raw["label"]]]
            yield Entry(where, (some, f"{some.wnid}/{number}", tables.image_bytes(raw["image"])))
            number += 1


def _label_names(table: tables.Table) -> list[str]:
    """The wnids that ImageNet-A's labels stand for, which are the names of its ClassLabel column."""
    names: list[str] = getattr(table.features["label"], "names", None) or []
    if not all(name.startswith("n") and name[1:].isdigit() for name in names) or not names:
        raise HarnessError(
            f"{table.name}: the names of the column label are not wnids: {names[:3]}",
            f"This is not {ADVERSARIAL.path} as it is now: download it again",
        )
    return names


def _source(task: str, count: int, **more: Any) -> Source:  # noqa: ANN401 - Source's other fields
    return Source(task=task, version=2, count=count, columns=COLUMNS, row=row, **more)


SOURCES = (
    _source(
        "dcsft_imagenet",
        5_000,
        entries=_val_entries,
        hub=VAL,
        needs="--source is ImageNet's folder with val/ in it (sorted by wnid, or flat beside"
        f" {_SOLUTION}), or a download of {VAL.path}",
        get="It is at image-net.org and, gated, on the hub",
        tally=("class", {wnid: 50 for wnid in classes.trained()}),
    ),
    _source(
        "dcsft_imagenet_r",
        10_741,
        entries=_renditions,
        hub=RENDITIONS,
        needs=f"--source is the unpacked imagenet-r folder, or a download of {RENDITIONS.path}",
        get="The archive is at github.com/hendrycks/imagenet-r",
        tally=("class", {some.wnid: some.renditions for some in classes.table().values() if some.renditions}),
    ),
    _source(
        "dcsft_imagenet_a",
        3_015,
        entries=_adversarial,
        hub=ADVERSARIAL,
        needs=f"--source is the unpacked imagenet-a folder, or a download of {ADVERSARIAL.path}",
        get="The archive is at github.com/hendrycks/natural-adv-examples",
        tally=(
            "class",
            {some.wnid: some.adversarial for some in classes.table().values() if some.adversarial},
        ),
    ),
)
