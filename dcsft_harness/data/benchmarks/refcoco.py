"""RefCOCO's testA and testB from lmms-lab's rows, one object each, with all expressions for it.

    dcsft_refcoco_testa: 1,975 objects (people), dcsft_refcoco_testb: 1,810 objects (everything else)

Every expression becomes a row. The split "val" of that data set mixes two splits of RefCOCO, so the
validation task reads VLM-R1's file instead (`vlm_r1`). Boxes are COCO's [x, y, width, height] in pixels.
"""

import re
from collections.abc import Iterator
from typing import Any

from dcsft_harness.data.benchmarks import tables
from dcsft_harness.data.benchmarks.grounding import COLUMNS, ask, box_row, four, from_xywh
from dcsft_harness.data.benchmarks.questions import content_name, text
from dcsft_harness.data.benchmarks.source import Entry, Hub, Opened, Row, Source
from dcsft_harness.errors import HarnessError

_COLUMNS = ("image", "answer", "bbox", "file_name")
OBJECTS = {"testA": 1_975, "testB": 1_810}


def _entries(opened: Opened, hub: Hub) -> Iterator[Entry]:
    objects, named = 0, dict[str, str]()
    for where, raw in tables.rows(opened, hub, _COLUMNS):
        objects += 1
        answers = raw["answer"] if isinstance(raw["answer"], list) else [raw["answer"]]
        for number, expression in enumerate(answers or [None]):
            yield Entry(f"{where}, expression {number}", (raw, expression, named))
    if objects != OBJECTS[hub.split] and not opened.any_count:
        raise HarnessError(
            f"RefCOCO {hub.split} has {OBJECTS[hub.split]:,} published objects, and {objects:,} were found",
            "Complete the source; --any-count takes what is there, and says so in the manifest",
        )


def _row(opened: Opened, raw: tuple[dict[str, Any], str, dict[str, str]]) -> Row:
    data, expression, named = raw
    # COCO_train2014_000000581857_16.jpg is the 16th object of an image that other rows have too.
    name = re.sub(r"^(COCO_\w+?_\d{12})_\d+(?=\.)", r"\1", text(data, "file_name"))
    box = from_xywh(four(data["bbox"], "bbox"))
    picture = tables.image_bytes(data["image"])()
    content = content_name(picture)
    if named.setdefault(name, content) != content:  # a copy of the set may name all alike
        name = f"{name} ({content})"
    return box_row(opened, name, lambda: picture, ask(expression), box)


def _source(split: str) -> Source:
    hub = Hub("lmms-lab-encoder/RefCOCO", split=split)
    return Source(
        task=f"dcsft_refcoco_{split.lower()}",
        version=1,
        count=None,
        columns=COLUMNS,
        entries=lambda opened: _entries(opened, hub),
        row=_row,
        hub=hub,
        needs=f"--source is a download of {hub.path}",
        get="Without --source it is loaded from the hub",
    )


SOURCES = tuple(_source(split) for split in OBJECTS)
