"""RefCOCO, LISA-Grounding and Ref-L4: one expression, one box, in pixels of the upright image.

Published boxes are in pixels of the file as encoded: annotation tools and the published evaluations ignore
the EXIF orientation. If a file has one, its boxes are rotated with it.
"""

import ast
import hashlib
import heapq
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from dcsft_harness import reading
from dcsft_harness.data.benchmarks import Entry, Hub, Opened, Row, Source, View, downloads, read_file
from dcsft_harness.data.benchmarks.downloads import Files, json_rows, tar_members
from dcsft_harness.data.benchmarks.questions import content_name, text
from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import upright_box

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."
"""VLM-R1's prompt, which the paper's grounding data uses (`problem` of rec_jsons_processed)."""

COLUMNS = {"width": "int64", "height": "int64"}
"""Size of the image, in pixels."""


def ask(expression: str) -> str:
    """The prompt for an expression; an error without words."""
    text = expression.strip().rstrip(".").rstrip() if isinstance(expression, str) else ""
    if not text:
        raise HarnessError(f"the expression {expression!r} has no words", "Correct the row or leave it out")
    return PROMPT.format(text)


def box_row(
    opened: Opened,
    name: str,
    read: Callable[[], bytes],
    prompt: str,
    box: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Row:
    """The row that asks for a box.

    `name` is unique in the set. Rows that share an image are one cluster, called by its file name without a
    folder, so that sets of the same COCO images share clusters. `box` is [x1, y1, x2, y2] in pixels
    of the image as encoded; `size` is (width, height) in the annotation. If only the upright image has this
    size, the box is in its pixels.

    Raises:
        HarnessError: the box has no area or is not inside the image, or the image has another size.
    """
    picture = opened.pictures.add(name, read)
    width, height = picture.width, picture.height
    encoded = (height, width) if picture.orientation in (5, 6, 7, 8) else (width, height)
    if size is None or tuple(size) == encoded:
        box = upright_box(box, picture.orientation, (width, height))
    elif tuple(size) != (width, height):
        raise HarnessError(
            f"the image {name} has {width} x {height} pixels, but its annotation says {size[0]} x {size[1]}",
            "The box would not fit: download the original image, not a resized or rotated one",
        )
    _refuse_box(box, width, height)
    return {
        "prompt": prompt,
        "answer": json.dumps([float(value) for value in box]),
        "target": f"[{', '.join(f'{round(float(value), 2):g}' for value in box)}]",
        "cluster": PurePosixPath(name).name,
        "images": [picture.index],
        "width": width,
        "height": height,
    }


def _refuse_box(box: Sequence[float], width: int, height: int) -> None:
    """Refuses an invalid box: corners in the wrong order, no area, mostly outside the image."""
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise HarnessError(
            f"the box {list(box)} has no area, or a negative one", "Correct the row: x1 < x2 and y1 < y2"
        )
    inside = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
    # Published boxes exceed their image by a pixel or two; a box in another space exceeds it by half.
    if inside < 0.5 * (x2 - x1) * (y2 - y1):
        raise HarnessError(
            f"most of the box {list(box)} is outside its image of {width} x {height} pixels",
            "Boxes are in pixels of the original image",
        )


def four(value: object, name: str) -> list[float]:
    """Four finite numbers; the error for something else names the column."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 4 or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    ):
        raise HarnessError(
            f"{name} is {str(value)[:80]!r}, not four numbers", "Correct the row or leave it out"
        )
    return [float(n) for n in numbers]


def from_xywh(box: Sequence[float]) -> list[float]:
    """[x, y, width, height] as [x1, y1, x2, y2]."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


# RefCOCO's validation and training expressions and LISA-Grounding, as VLM-R1 published them (omlab/VLM-R1).
#
# Its files are JSON lists (`problem`, `solution`) or the JSON Lines that its trainer reads (`conversations`).
# A solution is [x1, y1, x2, y2] in pixels of the original image. For RefCOCO the lower right corner is one
# pixel further than COCO's; this is kept as published (and is what the paper trains on).

VLM_R1_HUB = "omlab/VLM-R1"
OTHER = "rec_jsons_internvl"
"""The stem of the archive that has the same file names, with boxes from 0 to 1000."""
ANNOTATIONS, COCO, LISA = "rec_jsons_processed.zip", "train2014.zip", "lisa_test.zip"
TRAIN = ("refcoco_train.jsonl", "refcoco_train.json")
COLD, POOL = 400, 9_600
"""Row counts of the paper's 10,000: the cold start, and the others."""
VLM_R1_SEED = 2602
_FOLDERS = ("train2014", "images", "coco", "coco/train2014", "lisa_test", "lisa-test", "lisa")


def _files(opened: Opened, hub: Hub) -> Files:
    if opened.folder is None:
        opened.say(f"downloading {', '.join(hub.files)} of {hub.path}")
    return Files(opened.folder or downloads.fetch(hub))


def _annotations(opened: Opened, files: Files, names: tuple[str, ...]) -> tuple[Path, str | None]:
    # Files in pixels come first if both archives are in the same folder.
    found = files.find(*(f"{Path(ANNOTATIONS).stem}/{name}" for name in names), *names)
    if found is None:
        raise HarnessError(
            f"{files.root} has no {' or '.join(names)}, not in a zip archive either",
            f"It is in {ANNOTATIONS} of {VLM_R1_HUB} on the hub",
        )
    if OTHER in f"{found[0].relative_to(files.root)}/{found[1] or ''}":
        raise HarnessError(
            f"{': '.join(str(part) for part in found if part)} has boxes in thousandths, for InternVL",
            f"Take the file of {ANNOTATIONS}, whose boxes are in pixels: its name is the same",
        )
    opened.inputs[found[0].name] = found[0]
    return found


def _every(opened: Opened, hub: Hub, names: tuple[str, ...]) -> Iterator[Entry]:
    files = _files(opened, hub)
    for where, data in json_rows(_annotations(opened, files, names)):
        yield Entry(where, (files, data))


def _drawn(opened: Opened, hub: Hub, cold: bool) -> Iterator[Entry]:
    """The training rows of one of the two splits, drawn by content and independent of their order.

    The first pass keeps 10,000 digests, the second reads the rows again.
    """
    files = _files(opened, hub)
    found = _annotations(opened, files, TRAIN)
    opened.notes["chosen"] = (
        f"not the paper's: {COLD + POOL:,} distinct rows drawn by content, seed {VLM_R1_SEED}"
    )
    opened.say(f"the paper's list of rows is not published; these are {opened.notes['chosen']}")
    lowest: list[int] = []
    known: set[int] = set()
    for _, data in json_rows(found):
        rank = _rank(data)
        if rank in known or (len(lowest) == COLD + POOL and rank >= -lowest[0]):
            continue
        known.add(rank)
        heapq.heappush(lowest, -rank)
        if len(lowest) > COLD + POOL:
            known.discard(-heapq.heappop(lowest))
    ranks = sorted(known)
    wanted = set(ranks[:COLD] if cold else ranks[COLD:])
    for where, data in json_rows(found):
        if (rank := _rank(data)) in wanted:
            wanted.discard(rank)  # some rows occur twice; a repeat is the same item
            yield Entry(where, (files, data))


def _rank(data: Mapping[str, Any]) -> int:
    try:
        image, problem, solution = _vlm_r1_fields(data)
        what = [image, problem, four(_vlm_r1_box(solution), "solution")]
    except HarnessError:
        what = [str(data)]  # reported when the row is read
    return int.from_bytes(hashlib.sha256(f"{VLM_R1_SEED} {json.dumps(what)}".encode()).digest()[:8], "big")


def _vlm_r1_fields(data: Mapping[str, Any]) -> tuple[str, str, object]:
    """Image, problem and solution of a row in either format."""
    try:
        if "conversations" in data:
            question, answer = (turn["value"] for turn in data["conversations"])
        else:
            question, answer = data["problem"], data["solution"]
        image = data["image"]
    except (KeyError, TypeError, ValueError) as error:
        has = ", ".join(sorted(data)) if isinstance(data, Mapping) else type(data).__name__
        raise HarnessError(
            f"a row needs image, problem and solution, or image and conversations; this one has {has}",
            f"Take {ANNOTATIONS} of {VLM_R1_HUB} as it is now",
        ) from error
    for name, value in (("image", image), ("problem", question)):
        if not isinstance(value, str):
            raise HarnessError(f"{name} is {str(value)[:80]!r}, not text", "Correct the row or leave it out")
    return image, question.replace("<image>", "").strip(), answer


def _vlm_r1_box(solution: object) -> object:
    if not isinstance(solution, str):
        return solution
    text = solution.replace("<answer>", "").replace("</answer>", "").strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _vlm_r1_row(opened: Opened, raw: tuple[Files, Any]) -> Row:
    files, data = raw
    image, problem, solution = _vlm_r1_fields(data)
    if not problem:
        raise HarnessError("the problem has no words", "Correct the row or leave it out")
    size = (data["width"], data["height"]) if {"width", "height"} <= set(data) else None
    box = four(_vlm_r1_box(solution), "solution")
    if size is not None and "normalized_solution" in data:
        _refuse_thousandths(box, four(data["normalized_solution"], "normalized_solution"), size)
    return box_row(opened, image, files.image(image, *_FOLDERS), problem, box, size)


def _refuse_thousandths(box: Sequence[float], thousandths: Sequence[float], size: tuple[int, int]) -> None:
    """Refuses a solution that is not in pixels, if the row also states it in thousandths."""
    scaled = [1000 * value / size[at % 2] for at, value in enumerate(box)]
    same, apart = (max(abs(a - b) for a, b in zip(one, thousandths, strict=True)) for one in (box, scaled))
    if same <= 1 and apart > 10:
        raise HarnessError(
            f"the solution {list(box)} is in thousandths of the image of {size[0]} x {size[1]} pixels",
            f"Take the file of {ANNOTATIONS}, whose boxes are in pixels",
        )


def _vlm_r1_source(task: str, count: int, entries: Any, hub: Hub, names: str, **more: Any) -> Source:  # noqa: ANN401
    return Source(
        task=task,
        version=2,
        changed="names clusters as the other sets of COCO images do",
        count=count,
        columns=COLUMNS,
        entries=partial(entries, hub=hub),
        row=_vlm_r1_row,
        hub=hub,
        needs=f"--source is a folder with {names}, unpacked or not",
        get=f"{' and '.join(hub.files)} of {VLM_R1_HUB} on the hub; without --source they are downloaded",
        **more,
    )


_REFCOCO = Hub(VLM_R1_HUB, split="", files=(ANNOTATIONS, COCO))

VLM_R1_SOURCES = (
    _vlm_r1_source(
        "dcsft_refcoco_val",
        10_834,
        partial(_every, names=("refcoco_val.json",)),
        _REFCOCO,
        "refcoco_val.json and COCO's train2014",
    ),
    _vlm_r1_source(
        "dcsft_lisa",
        1_658,
        partial(_every, names=("lisa_test.json",)),
        Hub(VLM_R1_HUB, split="", files=(ANNOTATIONS, LISA)),
        "lisa_test.json and the images of lisa_test",
    ),
    *(
        _vlm_r1_source(
            task,
            count,
            partial(_drawn, cold=cold),
            _REFCOCO,
            "refcoco_train.jsonl (or .json) and COCO's train2014",
            distinct=True,
        )
        for task, count, cold in (("dcsft_refcoco_pool", POOL, False), ("dcsft_refcoco_cold", COLD, True))
    ),
)

# RefCOCO's testA and testB from lmms-lab's rows: one object per row, with all of its expressions.
#
#     dcsft_refcoco_testa: 1,975 objects (people), dcsft_refcoco_testb: 1,810 objects (everything else)
#
# Every expression becomes a row. The split "val" of that dataset mixes two splits of RefCOCO, so the
# validation task reads VLM-R1's file instead. Boxes are COCO's [x, y, width, height] in pixels.

_REFCOCO_COLUMNS = ("image", "answer", "bbox", "file_name")
OBJECTS = {"testA": 1_975, "testB": 1_810}


def _refcoco_entries(opened: Opened, hub: Hub) -> Iterator[Entry]:
    objects, named = 0, dict[str, str]()
    for where, raw in downloads.rows(opened, hub, _REFCOCO_COLUMNS):
        objects += 1
        answers = raw["answer"] if isinstance(raw["answer"], list) else [raw["answer"]]
        for number, expression in enumerate(answers or [None]):
            yield Entry(f"{where}, expression {number}", (raw, expression, named))
    if objects != OBJECTS[hub.split] and not opened.any_count:
        raise HarnessError(
            f"RefCOCO {hub.split} has {OBJECTS[hub.split]:,} published objects, but {objects:,} were found",
            "Complete the source; --any-count accepts what is there and records it in the manifest",
        )


def _refcoco_row(opened: Opened, raw: tuple[dict[str, Any], str, dict[str, str]]) -> Row:
    data, expression, named = raw
    # COCO_train2014_000000581857_16.jpg is the 16th object of an image that occurs in other rows too.
    name = re.sub(r"^(COCO_\w+?_\d{12})_\d+(?=\.)", r"\1", text(data, "file_name"))
    box = from_xywh(four(data["bbox"], "bbox"))
    picture = downloads.image_bytes(data["image"])()
    content = content_name(picture)
    if named.setdefault(name, content) != content:  # a copy of the set may give all the same name
        name = f"{name} ({content})"
    return box_row(opened, name, lambda: picture, ask(expression), box)


def _refcoco_source(split: str) -> Source:
    hub = Hub("lmms-lab-encoder/RefCOCO", split=split)
    return Source(
        task=f"dcsft_refcoco_{split.lower()}",
        version=1,
        count=None,
        columns=COLUMNS,
        entries=partial(_refcoco_entries, hub=hub),
        row=_refcoco_row,
        hub=hub,
        needs=f"--source is a download of {hub.path}",
        get="Without --source it is loaded from the hub",
    )


# Ref-L4 (Chen et al., 2024): long expressions for boxes in COCO and Objects365 images.
#
# The rows are in two Parquet files without images. The images are in one archive, which is read once,
# sequentially, so it need not be unpacked.

REF_L4 = "JierunChen/Ref-L4"
ARCHIVE = "images.tar.gz"
COUNTS = {"val": 13_420, "test": 31_921}
_REF_L4_COLUMNS = ("id", "caption", "bbox", "ori_category_id", "height", "width", "file_name")


@cache
def categories() -> dict[str, str]:
    """COCO's categories in Objects365's ("refcoco_10" -> "o365_41"), as Ref-L4's evaluation maps them."""
    rows = reading.own_table("dcsft_harness.data.benchmarks", "ref_l4_categories.csv")
    return {f"refcoco_{row['refcoco']}": f"o365_{row['o365']}" for row in rows}


class _Rows:
    """All published rows as Arrow, and the places of those that ask about each image."""

    def __init__(self, opened: Opened) -> None:
        import pyarrow as pa

        parts = []
        self._starts: list[tuple[int, str, str]] = []  # first row, file, split
        self.by_file: dict[str, list[int]] = defaultdict(list)
        count = 0
        for split in COUNTS:
            for table in downloads.tables(opened, Hub(REF_L4, split=split), _REF_L4_COLUMNS):
                self._starts.append((count, table.name, split))
                for batch in table.batches:
                    parts.append(pa.Table.from_pydict({name: batch.column(name) for name in _REF_L4_COLUMNS}))
                    for name in batch.column("file_name").to_pylist():
                        self.by_file[name].append(count)
                        count += 1
        self._table: Any = pa.concat_tables(parts).combine_chunks() if parts else None  # None: no rows

    def entries(self, name: str, read: Callable[[], bytes]) -> Iterator[Entry]:
        """The rows of an image, which `read` loads."""
        for at in self.by_file[name]:
            start, file, split = next(known for known in reversed(self._starts) if known[0] <= at)
            raw = self._table.slice(at, 1).to_pylist()[0]
            yield Entry(f"{file}, row {at - start}", ({**raw, "split": split}, read))


def _ref_l4_entries(opened: Opened) -> Iterator[Entry]:
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
        yield from rows.entries(name, partial(_absent, archive, name))


def _archive(opened: Opened) -> Path:
    if opened.folder is None:
        opened.say(f"downloading {ARCHIVE} of {REF_L4}")
        return downloads.fetch(Hub(REF_L4, split="", files=(ARCHIVE,))) / ARCHIVE
    if not (opened.folder / ARCHIVE).is_file():
        raise HarnessError(
            f"{opened.folder} has neither {ARCHIVE} nor the folder images",
            f"The archive is beside the Parquet files of {REF_L4} on the hub",
        )
    return opened.folder / ARCHIVE


def _absent(archive: Path, name: str) -> bytes:
    raise HarnessError(
        f"the image {name} is not in {archive}", "Download it again, or leave the row out: --on-error skip"
    )


def _ref_l4_row(opened: Opened, raw: tuple[dict[str, Any], Callable[[], bytes]]) -> Row:
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


REF_L4_SOURCE = Source(
    task="dcsft_ref_l4",
    version=2,
    count=sum(COUNTS.values()),
    columns={
        **COLUMNS,
        "category": "string",
        "split": "string",
        # As published: some differences of the corners fall on the other side of a size class's limit.
        "box_width": "float64",
        "box_height": "float64",
    },
    entries=_ref_l4_entries,
    row=_ref_l4_row,
    hub=Hub(REF_L4, split="val"),
    needs=f"--source is a download of {REF_L4}: two Parquet files and {ARCHIVE} (or the folder images)",
    get="Without --source it is downloaded, 3.5 GB",
    tally=("split", COUNTS),
)

VIEWS = tuple(
    View(f"dcsft_ref_l4_{split}", "dcsft_ref_l4", "split", (split,), COUNTS[split]) for split in COUNTS
)
SOURCES = (*VLM_R1_SOURCES, *(_refcoco_source(split) for split in OBJECTS), REF_L4_SOURCE)
