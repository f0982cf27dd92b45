"""The paper's classification pool (96 images of each class) and cold start (4), from ImageNet's train folder.

Which images they are stands in two files of the paper's release, imagenet_left_sft and imagenet_cold_sft.
Without them 100 images of each class are drawn, by name alone, so that the two tasks share none.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dcsft_harness.data.benchmarks import classes
from dcsft_harness.data.benchmarks.classes import ImageClass
from dcsft_harness.data.benchmarks.imagenet import COLUMNS, below, class_folders, image_entry, row
from dcsft_harness.data.benchmarks.source import Entry, Opened, Row, Source, read_text
from dcsft_harness.errors import HarnessError

LISTS = {"dcsft_imagenet_pool": "imagenet_left_sft", "dcsft_imagenet_cold": "imagenet_cold_sft"}
"""Task -> the stem of the file of the paper's release that lists its images."""
EACH = {"dcsft_imagenet_pool": 96, "dcsft_imagenet_cold": 4}
SEED = 2602
_WNID = re.compile(r"(?:^|/)(n\d{8})/")
_TAG = re.compile(r"</?answer>")
_AS_RELEASED = "Take the file of the paper's release as it is, or leave the row out with --on-error skip"


def _entries(task: str, opened: Opened) -> Iterator[Entry]:
    if opened.folder is None:
        raise HarnessError(f"{task} needs --source DIR", _NEEDS)
    found = {name: _list_file(opened.folder, stem) for name, stem in LISTS.items()}
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
            f"{other} is there, but no {LISTS[task]}.json: images drawn without it could be in both",
            "Put the paper's other file beside it, or move this one away",
        )
    said = f"not the paper's: {EACH[task]} of each class drawn by file name, seed {SEED}"
    opened.notes["chosen"] = said
    opened.say(f"{LISTS[task]}.json is not in {opened.folder}; the images are {said}")
    yield from _drawn(opened, folder, task)


def _list_file(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}.json", f"{stem}.jsonl")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _listed(opened: Opened, path: Path, folder: Path, task: str) -> Iterator[Entry]:
    """The images of one of the paper's lists, found by class and file name below the train folder."""
    rows = _objects(path)
    if len(rows) != 100 * EACH[task] and not opened.any_count:
        raise HarnessError(
            f"{path} lists {len(rows):,} images, and {100 * EACH[task]:,} are published",
            "Take the file of the paper's release as it is",
        )
    for number, data in enumerate(rows, 1):
        yield Entry(f"{path}, row {number}", (folder, data))


def _objects(path: Path) -> list[Any]:
    text = read_text(path)
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise HarnessError(f"{path} is not JSON ({error})", "Fetch it again") from error


def _row(opened: Opened, raw: Any) -> Row:  # noqa: ANN401 - an image, or a listed row and where images are
    if not isinstance(raw[0], Path):
        return row(opened, raw)
    folder, data = raw
    some, name = _named(data)
    return row(opened, image_entry(some, folder / some.wnid / name).raw)


def _named(data: Any) -> tuple[ImageClass, str]:  # noqa: ANN401 - what the JSON says
    """The class and file name of a listed row, in either format; the word that it gives is that class's.

    Raises:
        HarnessError: the row has no image or answer, or they are of no class or of two.
    """
    try:
        image = data["images"][0] if "images" in data else data["image"]
        said = str(data["messages"][-1]["content"] if "messages" in data else data["solution"])
        match = _WNID.search(image)
    except (KeyError, IndexError, TypeError) as error:
        raise HarnessError(f"no image or no answer in {str(data)[:100]}", _AS_RELEASED) from error
    some = classes.trained().get(match[1]) if match else None
    if some is None:
        raise HarnessError(f"the image {image!r} is in none of the 100 class folders", _AS_RELEASED)
    if _TAG.sub("", said).strip().lower() != some.word.lower():
        raise HarnessError(
            f"the answer {said!r} is not {some.word!r}, the class of {some.wnid}", _AS_RELEASED
        )
    return some, Path(image).name


def _drawn(opened: Opened, folder: Path, task: str) -> Iterator[Entry]:
    for some, files in class_folders(opened, folder, classes.trained().values()):
        if len(files) < sum(EACH.values()) and not opened.any_count:
            raise HarnessError(
                f"{folder / some.wnid} has {len(files)} images, where {sum(EACH.values())} are drawn",
                "Complete the folder; --any-count takes what is there",
            )
        cold, pool = split(path.name for path in files)
        chosen = cold if task == "dcsft_imagenet_cold" else pool
        for path in files:
            if path.name in chosen:
                yield image_entry(some, path)


def split(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """The file names of a class that are drawn for the cold start and for the pool; no name is in both.

    A name's place follows from the name and the seed, whatever else is in the folder.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{SEED} {name}".encode()).digest())
    cold, pool = EACH["dcsft_imagenet_cold"], EACH["dcsft_imagenet_pool"]
    return set(ranked[:cold]), set(ranked[cold : cold + pool])


_NEEDS = (
    "--source is ImageNet's folder with train/ in it, sorted by wnid; and for the paper's own images its"
    " imagenet_left_sft.json and imagenet_cold_sft.json beside train/"
)


def _source(task: str) -> Source:
    return Source(
        task=task,
        version=2,
        count=100 * EACH[task],
        columns=COLUMNS,
        entries=lambda opened: _entries(task, opened),
        row=_row,
        distinct=True,
        needs=_NEEDS,
        get="ImageNet is at image-net.org; the lists come with the paper's code (arXiv 2602.10815)",
        tally=("class", {wnid: EACH[task] for wnid in classes.trained()}),
    )


SOURCES = tuple(_source(task) for task in LISTS)
