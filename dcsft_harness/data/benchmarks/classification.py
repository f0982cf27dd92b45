"""ImageNet, ImageNet-R and ImageNet-A: one image, one word; and the training pool."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dcsft_harness import reading
from dcsft_harness.data.benchmarks import (
    Entry,
    Hub,
    Opened,
    Row,
    Source,
    View,
    downloads,
    read_file,
    read_text,
)
from dcsft_harness.data.benchmarks.questions import content_name
from dcsft_harness.errors import HarnessError


class ImageClass(NamedTuple):
    """A class of ImageNet, as used in the paper."""

    wnid: str  # its WordNet id ("n01498041"), the name of its folder
    word: str  # the answer, case kept ("Chihuahua")
    label: int  # its index among ImageNet's 1,000 classes
    trained: bool  # whether it is one of the 100 classes of pool, cold start and validation
    renditions: int  # the number of its images in ImageNet-R, 0 if the paper does not use it
    adversarial: int  # the number of its images in ImageNet-A, 0 if the paper does not use it


@cache
def class_table() -> dict[str, ImageClass]:
    """The 186 classes by wnid, in order of wnid."""
    return {
        row["wnid"]: ImageClass(
            row["wnid"],
            row["word"],
            int(row["label"]),
            row["trained"] == "1",
            int(row["renditions"]),
            int(row["adversarial"]),
        )
        for row in reading.own_table("dcsft_harness.data.benchmarks", "imagenet_classes.csv")
    }


def trained() -> dict[str, ImageClass]:
    """The 100 classes of pool, cold start and validation by wnid."""
    return {wnid: some for wnid, some in class_table().items() if some.trained}


# The classes are the paper's (section 4; the released data files): a class is used if its WordNet synset has
# a single lemma of one word. All published images of -R and -A for these classes are used.

PROMPT = "Please provide the object name in the image. Output the answer using one word."
"""The paper's prompt, for all its classification files."""

COLUMNS = {"class": "string", "seen": "bool"}
"""wnid; whether the class is one of the pool's 100."""

VAL = Hub("ILSVRC/imagenet-1k", split="validation", gated=True)
RENDITIONS = Hub("axiong/imagenet-r", split="test", config="test")
ADVERSARIAL = Hub("barkermrl/imagenet-a", split="train")

_EXTENSIONS = {".jpg", ".jpeg", ".png"}
_SOLUTION = "LOC_val_solution.csv"
"""Kaggle's list of the validation images' classes: ImageId, and a string that begins with the wnid."""


def row(opened: Opened, raw: tuple[ImageClass, str, Callable[[], bytes]]) -> Row:
    """The row that asks what an image shows, from its class, its unique name and a function that reads it."""
    some, name, read = raw
    data = read()
    return {
        "prompt": PROMPT,
        "answer": json.dumps(some.word),
        "target": some.word,
        # Not its file name, which differs between folder and hub: results of both must be comparable.
        "cluster": content_name(data),
        "images": [opened.pictures.add(name, lambda: data).index],
        "class": some.wnid,
        "seen": some.trained,
    }


def below(folder: Path, *names: str) -> Path:
    """The first existing folder of some below another one, else that one itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def class_folders(
    opened: Opened, folder: Path, wanted: Iterable[ImageClass]
) -> Iterator[tuple[ImageClass, list[Path]]]:
    """Each class and its image files, by name; an error if the whole set is required and some are missing."""
    all_of_them = list(wanted)
    missing = [some.wnid for some in all_of_them if not (folder / some.wnid).is_dir()]
    if missing and (not opened.any_count or len(missing) == len(all_of_them)):
        named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise HarnessError(
            f"{folder} lacks {len(missing)} of {len(all_of_them)} class folders: {named}",
            "Each class is a folder named by its wnid; --any-count accepts what is there",
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
        yield from (image_entry(some, path) for path in files)


def _flat(opened: Opened, folder: Path, solution: Path) -> Iterator[Entry]:
    """Validation images in one folder, with the list of their classes."""
    opened.inputs[solution.name] = solution
    wanted = trained()
    for line in read_text(solution).splitlines()[1:]:
        name, _, boxes = line.partition(",")
        some = wanted.get(boxes.strip().split(" ")[0])
        if some is not None:
            yield image_entry(some, folder / f"{name}.JPEG")


def _labelled(opened: Opened, by_label: dict[int, ImageClass]) -> Iterator[Entry]:
    """Validation images from the hub, with the numbers of their classes."""
    named: set[str] = set()
    number = 0
    for table in downloads.tables(opened, VAL, ("image", "label")):
        _refuse_other_labels(table, by_label)
        for where, raw in downloads.entries(table, ("image", "label"), ("label", list(by_label))):
            name = (raw["image"].get("path") if isinstance(raw["image"], dict) else None) or str(number)
            some = by_label[raw["label"]]
            name = f"{some.wnid}/{number if name in named else name}"  # copies of the set may repeat it
            named.add(name.partition("/")[2])
            number += 1
            yield Entry(where, (some, name, downloads.image_bytes(raw["image"])))


def _refuse_other_labels(table: downloads.Table, by_label: dict[int, ImageClass]) -> None:
    """Refuses labels in another order than ImageNet's, as in a copy of a part of the set.

    Names are a class's synonyms or its wnid; without names the order cannot be checked.
    """
    names = getattr(table.features["label"], "names", None) or []
    if not names or all(name.isdigit() for name in names):
        return
    for label, some in by_label.items():
        name = names[label] if label < len(names) else None
        if name is None or name.split(",")[0].strip().lower() not in (some.word.lower(), some.wnid):
            raise HarnessError(
                f"{table.name}: label {label} is {name!r}, where ImageNet has {some.word!r} ({some.wnid})",
                f"Its 1,000 labels have to be in the order of {VAL.path}: pass that, or val/ by wnid",
            )


def _val_entries(opened: Opened) -> Iterator[Entry]:
    wanted, above = trained(), downloads.unpacked(opened)
    if above is None:
        yield from _labelled(opened, {some.label: some for some in wanted.values()})
        return
    folder = below(above, "val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "validation")
    if any(folder.glob("ILSVRC2012_val_*.JPEG")):
        solution = next((up / _SOLUTION for up in (above, folder) if (up / _SOLUTION).is_file()), None)
        if solution is None:
            raise HarnessError(
                f"{folder} has no class folders, and {above / _SOLUTION} does not exist",
                f"Put Kaggle's {_SOLUTION} beside it, or sort the images into folders named by wnid",
            )
        yield from _flat(opened, folder, solution)
        return
    yield from _foldered(opened, folder, wanted.values())


def _renditions(opened: Opened) -> Iterator[Entry]:
    wanted = {wnid: some for wnid, some in class_table().items() if some.renditions}
    if (folder := downloads.unpacked(opened)) is not None:
        yield from _foldered(opened, below(folder, "imagenet-r", "images"), wanted.values())
        return
    rows = downloads.rows(opened, RENDITIONS, ("image", "wnid"), ("wnid", list(wanted)))
    for number, (where, raw) in enumerate(rows):
        name = f"{raw['wnid']}/{number}"
        yield Entry(where, (wanted[raw["wnid"]], name, downloads.image_bytes(raw["image"])))


def _adversarial(opened: Opened) -> Iterator[Entry]:
    wanted = {wnid: some for wnid, some in class_table().items() if some.adversarial}
    if (folder := downloads.unpacked(opened)) is not None:
        yield from _foldered(opened, below(folder, "imagenet-a", "images"), wanted.values())
        return
    number = 0
    for table in downloads.tables(opened, ADVERSARIAL, ("image", "label")):
        names = _label_names(table)
        labels = [at for at, name in enumerate(names) if name in wanted]
        for where, raw in downloads.entries(table, ("image", "label"), ("label", labels)):
            some = wanted[names[raw["label"]]]
            yield Entry(where, (some, f"{some.wnid}/{number}", downloads.image_bytes(raw["image"])))
            number += 1


def _label_names(table: downloads.Table) -> list[str]:
    """The wnids of ImageNet-A's labels: the names in its ClassLabel column."""
    names: list[str] = getattr(table.features["label"], "names", None) or []
    if not all(name.startswith("n") and name[1:].isdigit() for name in names) or not names:
        raise HarnessError(
            f"{table.name}: the names of the column label are not wnids: {names[:3]}",
            f"This is not the current {ADVERSARIAL.path}: download it again",
        )
    return names


def _source(task: str, count: int, **more: Any) -> Source:  # noqa: ANN401 - Source's other fields
    return Source(task=task, version=2, count=count, columns=COLUMNS, row=row, **more)


_EVALUATION = (
    _source(
        "dcsft_imagenet",
        5_000,
        entries=_val_entries,
        hub=VAL,
        needs="--source is ImageNet's folder with val/ in it (sorted by wnid, or flat beside"
        f" {_SOLUTION}), or a download of {VAL.path}",
        get="It is at image-net.org and, gated, on the hub",
        tally=("class", {wnid: 50 for wnid in trained()}),
    ),
    _source(
        "dcsft_imagenet_r",
        10_741,
        entries=_renditions,
        hub=RENDITIONS,
        needs=f"--source is the unpacked imagenet-r folder, or a download of {RENDITIONS.path}",
        get="The archive is at github.com/hendrycks/imagenet-r",
        tally=("class", {some.wnid: some.renditions for some in class_table().values() if some.renditions}),
    ),
    _source(
        "dcsft_imagenet_a",
        3_015,
        entries=_adversarial,
        hub=ADVERSARIAL,
        needs=f"--source is the unpacked imagenet-a folder, or a download of {ADVERSARIAL.path}",
        get="The archive is at github.com/hendrycks/natural-adv-examples",
        tally=("class", {some.wnid: some.adversarial for some in class_table().values() if some.adversarial}),
    ),
)

# The paper's classification pool (96 images of each class) and cold start (4), from ImageNet's train folder.
#
# Two files of the paper's release list these images: imagenet_left_sft and imagenet_cold_sft. Without them
# 100 images of each class are drawn by name alone, disjoint between the two tasks.

TRAIN_LISTS = {"dcsft_imagenet_pool": "imagenet_left_sft", "dcsft_imagenet_cold": "imagenet_cold_sft"}
"""Task -> the stem of the release file that lists its images."""
TRAIN_EACH = {"dcsft_imagenet_pool": 96, "dcsft_imagenet_cold": 4}
TRAIN_SEED = 2602
_WNID = re.compile(r"(?:^|/)(n\d{8})/")
_TAG = re.compile(r"</?answer>")
_AS_RELEASED = "Take the file of the paper's release as it is, or leave the row out with --on-error skip"


def _train_entries(task: str, opened: Opened) -> Iterator[Entry]:
    if opened.folder is None:
        raise HarnessError(f"{task} needs --source DIR", _TRAIN_NEEDS)
    found = {name: _list_file(opened.folder, stem) for name, stem in TRAIN_LISTS.items()}
    folder = below(opened.folder, "train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train")
    path = found[task]
    if path is not None:
        opened.inputs[path.name] = path
        opened.notes["chosen"] = f"the paper's, as {path.name} lists them"
        yield from _listed(opened, path, folder, task)
        return
    other = next((str(one) for one in found.values() if one), None)
    if other is not None:
        raise HarnessError(
            f"{other} is there, but no {TRAIN_LISTS[task]}.json: images drawn without it could be in both",
            "Put the paper's other file beside it, or move this one away",
        )
    said = f"not the paper's: {TRAIN_EACH[task]} of each class drawn by file name, seed {TRAIN_SEED}"
    opened.notes["chosen"] = said
    opened.say(f"{TRAIN_LISTS[task]}.json is not in {opened.folder}; the images are {said}")
    yield from _drawn(opened, folder, task)


def _list_file(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}.json", f"{stem}.jsonl")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _listed(opened: Opened, path: Path, folder: Path, task: str) -> Iterator[Entry]:
    """The images of one of the paper's lists, found by class and file name below the train folder."""
    rows = _objects(path)
    if len(rows) != 100 * TRAIN_EACH[task] and not opened.any_count:
        raise HarnessError(
            f"{path} lists {len(rows):,} images, but {100 * TRAIN_EACH[task]:,} are published",
            "Take the file of the paper's release as it is",
        )
    for number, data in enumerate(rows, 1):
        yield Entry(f"{path}, row {number}", (folder, data))


def _objects(path: Path) -> list[Any]:
    text = read_text(path)
    try:
        if text.lstrip().startswith("["):
            return list(reading.from_json(text))
        return [reading.from_json(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise HarnessError(f"{path} is not JSON ({error})", "Download it again") from error


def _train_row(
    opened: Opened, raw: tuple[Path, Mapping[str, Any]] | tuple[ImageClass, str, Callable[[], bytes]]
) -> Row:
    if len(raw) == 3:
        return row(opened, raw)
    folder, data = raw
    some, name = _named(data)
    return row(opened, image_entry(some, folder / some.wnid / name).raw)


def _named(data: Mapping[str, Any]) -> tuple[ImageClass, str]:
    """The class and file name of a listed row, in either format; its answer must be that class's word."""
    try:
        image = data["images"][0] if "images" in data else data["image"]
        said = str(data["messages"][-1]["content"] if "messages" in data else data["solution"])
        match = _WNID.search(image)
    except (KeyError, IndexError, TypeError) as error:
        raise HarnessError(f"no image or no answer in {str(data)[:100]}", _AS_RELEASED) from error
    some = trained().get(match[1]) if match else None
    if some is None:
        raise HarnessError(f"the image {image!r} is in none of the 100 class folders", _AS_RELEASED)
    if _TAG.sub("", said).strip().lower() != some.word.lower():
        raise HarnessError(
            f"the answer {said!r} is not {some.word!r}, the class of {some.wnid}", _AS_RELEASED
        )
    return some, Path(image).name


def _drawn(opened: Opened, folder: Path, task: str) -> Iterator[Entry]:
    for some, files in class_folders(opened, folder, trained().values()):
        if len(files) < sum(TRAIN_EACH.values()) and not opened.any_count:
            raise HarnessError(
                f"{folder / some.wnid} has {len(files)} images, but {sum(TRAIN_EACH.values())} are drawn",
                "Complete the folder; --any-count accepts what is there",
            )
        cold, pool = split(path.name for path in files)
        chosen = cold if task == "dcsft_imagenet_cold" else pool
        for path in files:
            if path.name in chosen:
                yield image_entry(some, path)


def split(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """A class's file names for the cold start and for the pool, drawn without overlap.

    A name's position depends only on the name and the seed, not on the rest of the folder.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{TRAIN_SEED} {name}".encode()).digest())
    cold, pool = TRAIN_EACH["dcsft_imagenet_cold"], TRAIN_EACH["dcsft_imagenet_pool"]
    return set(ranked[:cold]), set(ranked[cold : cold + pool])


_TRAIN_NEEDS = (
    "--source is ImageNet's folder with train/ in it, sorted by wnid; and for the paper's own images its"
    " imagenet_left_sft.json and imagenet_cold_sft.json beside train/"
)


def _train_source(task: str) -> Source:
    return Source(
        task=task,
        version=2,
        count=100 * TRAIN_EACH[task],
        columns=COLUMNS,
        entries=lambda opened: _train_entries(task, opened),
        row=_train_row,
        distinct=True,
        needs=_TRAIN_NEEDS,
        get="ImageNet is at image-net.org; the lists come with the paper's code (arXiv 2602.10815)",
        tally=("class", {wnid: TRAIN_EACH[task] for wnid in trained()}),
    )


SOURCES = (*_EVALUATION, *(_train_source(task) for task in TRAIN_LISTS))
VIEWS: tuple[View, ...] = ()
