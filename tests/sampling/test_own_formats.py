"""Your own rows in every format and shape, read by every verb: the same rows are the same items."""

import base64
import csv
import datetime
import decimal
import gzip
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    load_from_disk,
)
from PIL import Image as Pillow

from dcsft_harness import records, sampling, stages
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation import overlap
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import own_data, own_files, own_rows, rollout_store
from dcsft_harness.scoring import get_scorer
from dcsft_harness.stages import opening
from dcsft_harness.stages.train_dpo import DpoOptions
from dcsft_harness.stages.train_sft import SftOptions
from dcsft_harness.training import data as training_data
from dcsft_harness.training import grpo

QUESTIONS = ("<image>Which bird?", "Same <image> and <image>?", "1 + 1, as a word?", "<image>Colors: [1, 2]?")
ANSWERS = ("goose", "no", "two", "3")
NAMES = (["0.png"], ["0.png", "1.jpg"], [], ["1.jpg"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images: a grey PNG, and a JPEG that has to be rotated."""
    place = tmp_path_factory.mktemp("rows")
    Pillow.effect_noise((40, 30), 50).save(place / "0.png")
    turned = Pillow.Exif()
    turned[274] = 6
    Pillow.effect_noise((48, 32), 60).convert("RGB").save(place / "1.jpg", exif=turned)
    return place


def url(path):
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def plain(question="problem", answer="solution", image="images", entry=lambda path: path.name, folder=None):
    """Rows of a question, an answer and images, in these columns."""
    rows = []
    for asked, said, names in zip(QUESTIONS, ANSWERS, NAMES, strict=True):
        entries = [entry(folder / name) for name in names]
        rows.append({question: asked, answer: said} | ({image: entries} if entries else {}))
    return rows


def parts(text, entries):
    """A text with markers as content parts, with images in place of the markers."""
    waiting, found = list(entries), []
    for number, piece in enumerate(text.split("<image>")):
        found += [waiting.pop(0)] if number else []
        found += [{"type": "text", "text": piece}] if piece else []
    return found


def talks(part, folder, role="role", content="content", names=("user", "assistant")):
    """Messages, each image as `part` makes it; with separate "images" if that gives placeholders."""
    rows = []
    for asked, said, pictures in zip(QUESTIONS, ANSWERS, NAMES, strict=True):
        made = asked if part is None else parts(asked, [part(folder / name) for name in pictures])
        rows.append(
            {"messages": [{role: names[0], content: made}, {role: names[1], content: said}]}
            | ({"images": pictures} if part is None else {})
        )
    return rows


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


def jsonl(make):
    def write(place, folder):
        (place / "data.jsonl").write_text(lines(make(folder)))
        return place / "data.jsonl"

    return write


def gz(place, folder):
    (place / "data.jsonl.gz").write_bytes(gzip.compress(lines(plain(folder=folder)).encode()))
    return place / "data.jsonl.gz"


def listed(place, folder):
    (place / "data.json").write_text(json.dumps(plain(folder=folder), indent=1))
    return place / "data.json"


def lines_in_json(place, folder):
    (place / "data.json").write_text(lines(plain(folder=folder)))
    return place / "data.json"


def objects_in_json(place, folder):
    (place / "data.json").write_text("\n".join(json.dumps(row, indent=2) for row in plain(folder=folder)))
    return place / "data.json"


def table(ending, delimiter):
    def write(place, folder):
        with (place / f"data.{ending}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ("question", "answer", "images"), delimiter=delimiter)
            writer.writeheader()
            for row in plain("question", "answer", folder=folder):
                writer.writerow({**row, "images": json.dumps(row["images"]) if "images" in row else ""})
        return place / f"data.{ending}"

    return write


def stored(path):
    return {"bytes": path.read_bytes(), "path": path.name}


def dataset(folder, question="problem", answer="solution"):
    """A dataset with images as `datasets` stores them: as bytes."""
    rows = plain(question, answer, entry=stored, folder=folder)
    text = Value("string")
    rows = [{"images": [], **row} for row in rows]
    return Dataset.from_list(rows, Features({question: text, answer: text, "images": List(Image())}))


def parquet(place, folder):
    dataset(folder).to_parquet(place / "data.parquet")
    return place / "data.parquet"


def parquet_of_paths(place, folder):
    rows = [{"images": [], **row} for row in plain(folder=folder)]
    Dataset.from_list(rows).to_parquet(place / "data.parquet")
    return place / "data.parquet"


def parquet_of_messages(place, folder):
    rows = talks(lambda path: {"type": "image", "bytes": path.read_bytes()}, folder)
    for row in rows:  # Arrow has one type per column
        content = row["messages"][1]["content"]
        row["messages"][1]["content"] = [{"type": "text", "text": content}]
    Dataset.from_list(rows).to_parquet(place / "data.parquet")
    return place / "data.parquet"


def saved(place, folder):
    dataset(folder).save_to_disk(place / "data")
    return place / "data"


def saved_messages(place, folder):
    Dataset.from_list(talks(None, folder)).save_to_disk(place / "data")
    return place / "data"


def saved_split(place, folder):
    DatasetDict({"train": dataset(folder, "question", "answer")}).save_to_disk(place / "data")
    return place / "data"


def shards(place, folder):
    (place / "data").mkdir()
    for number in range(2):
        dataset(folder).shard(2, number, contiguous=True).to_parquet(place / "data" / f"{number}.parquet")
    return place / "data"


def arrow(place, folder):
    dataset(folder).save_to_disk(place / "saved")
    shutil.copy(place / "saved" / "data-00000-of-00001.arrow", place / "data.arrow")
    return place / "data.arrow"


def in_memory(place, folder):
    return own_files.keep(dataset(folder))[0]


def dictionaries(place, folder):
    return own_files.keep(plain(entry=Pillow.open, folder=folder))[0]


def prompts_of(folder):
    return [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:], "images": row["images"]}
        for row in talks(None, folder)
    ]


def graded(folder):
    """A question as messages, with its gold in another column."""
    return [
        {**row, "messages": row["messages"][:1], "solution": row["messages"][1]["content"]}
        for row in talks(None, folder)
    ]


def sharegpt(folder):
    rows = talks(None, folder, "from", "value", ("human", "gpt"))
    return [{"conversations": row["messages"], "images": row["images"]} for row in rows]


def alpaca(folder):
    return [{**row, "input": "", "history": []} for row in plain("instruction", "output", folder=folder)]


def single(folder):
    """`image` for a single image; the marker is optional."""
    rows = plain(folder=folder)
    return [
        {**row, "problem": row["problem"].removeprefix("<image>"), "images": None, "image": row["images"][0]}
        if len(row.get("images", ())) == 1
        else row
        for row in rows
    ]


def objects_of(rows):
    """Rows whose answers are names in `objects`."""
    return [
        {
            **row,
            "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": "<ref-object>"}],
            "objects": {"ref": [row["messages"][-1]["content"]], "bbox": []},
        }
        for row in rows
    ]


def parquet_of_objects(place, folder):
    Dataset.from_list(objects_of(talks(None, folder))).to_parquet(place / "data.parquet")
    return place / "data.parquet"


FORMATS = {
    "jsonl": jsonl(lambda folder: plain(folder=folder)),
    "question and answer": jsonl(lambda folder: plain("question", "answer", folder=folder)),
    "prompt and completion": jsonl(lambda folder: plain("prompt", "completion", folder=folder)),
    "query and response": jsonl(lambda folder: plain("query", "response", folder=folder)),
    "Alpaca": jsonl(alpaca),
    "one image": jsonl(single),
    "data URLs": jsonl(lambda folder: plain(entry=url, folder=folder)),
    "paths in mappings": jsonl(lambda folder: plain(entry=lambda p: {"path": p.name}, folder=folder)),
    "file URLs": jsonl(lambda folder: plain(entry=lambda p: f"file://{p}", folder=folder)),
    "base64 in mappings": jsonl(
        lambda folder: plain(
            entry=lambda p: {"base64": base64.b64encode(p.read_bytes()).decode()}, folder=folder
        )
    ),
    "jsonl.gz": gz,
    "a list in json": listed,
    "lines in json": lines_in_json,
    "objects in json": objects_in_json,
    "csv": table("csv", ","),
    "tsv": table("tsv", "\t"),
    "parquet of bytes": parquet,
    "parquet of paths": parquet_of_paths,
    "parquet of messages": parquet_of_messages,
    "parquet in a folder": shards,
    "arrow": arrow,
    "saved": saved,
    "saved messages": saved_messages,
    "saved splits": saved_split,
    "datasets.Dataset": in_memory,
    "dictionaries": dictionaries,
    "messages": jsonl(lambda folder: talks(None, folder)),
    "content parts": jsonl(lambda folder: talks(lambda path: {"type": "image", "image": path.name}, folder)),
    "image_url": jsonl(
        lambda folder: talks(lambda p: {"type": "image_url", "image_url": {"url": url(p)}}, folder)
    ),
    "placeholders": jsonl(
        lambda folder: [
            {**row, "images": names}
            for row, names in zip(talks(lambda path: {"type": "image"}, folder), NAMES, strict=True)
        ]
    ),
    "ShareGPT": jsonl(sharegpt),
    "conversational prompt": jsonl(prompts_of),
    "messages and solution": jsonl(graded),
    "ms-swift's objects": jsonl(lambda folder: objects_of(talks(None, folder))),
    "parquet of ms-swift's objects": parquet_of_objects,
}


@pytest.fixture(scope="module")
def wanted(folder, tmp_path_factory):
    path = FORMATS["jsonl"](tmp_path_factory.mktemp("wanted"), folder)
    task = own_data.open_file(path, "exact_word", folder)
    items = sampling.read_items(task, 4)
    assert [item.prompt for item in items] == ["Which bird?", QUESTIONS[1], QUESTIONS[2], "Colors: [1, 2]?"]
    assert [item.answer for item in items] == list(ANSWERS)
    assert items[3].turns is None
    return [item.item_id for item in items]


STUB = {"model": "dcsft_stub", "model_args": "default=goose", "scorer": "exact_word"}


def by_sample(path, folder, out):
    stages.STAGES["sample"](out, samples=1, **STUB, data=path, image_root=folder)
    return load_from_disk(str(out / sampling.ITEMS))["item_id"][:]


def by_evaluate(path, folder, out):
    stages.STAGES["evaluate"](out, **STUB, data=path, image_root=folder)
    return records.read_table(out / "scores.parquet", records.Score)["item_id"].to_pylist()


def by_sft(path, folder, out):
    options = SftOptions(model="digits", data=str(path), image_root=folder)
    found = training_data.read(opening.training_data(str(path), options))
    images = [[picture.size for picture in found.images(number)] for number in range(len(found.turns))]
    assert images == [[(40, 30)], [(40, 30), (32, 48)], [], [(32, 48)]]
    return found.item_ids


def by_grpo(path, folder, out):
    rows, judge = grpo.open_data(str(path), "exact_word", folder)
    assert training_data.read(rows).item_ids == rows["item_id"][:]
    return rows["item_id"][:]


def by_overlap(path, folder, out):
    held = path.with_name("held" + "".join(path.suffixes))
    (shutil.copytree if path.is_dir() else shutil.copy)(path, held)
    stages.STAGES["data overlap"](
        out, pool=str(path), tasks=[str(held)], scorer="exact_word", image_root=folder
    )
    found = records.read_table(out / overlap.ITEMS, overlap.Shared)["item_id"].to_pylist()
    return list(dict.fromkeys(found))


VERBS = {
    "sample": by_sample,
    "evaluate": by_evaluate,
    "train sft": by_sft,
    "train grpo": by_grpo,
    "data overlap": by_overlap,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_verb_reads_every_format_as_the_same_items(tmp_path, folder, wanted, kind, verb):
    path = FORMATS[kind](tmp_path, folder)
    found = VERBS[verb](path, folder, tmp_path / "out")
    shown = wanted if verb != "data overlap" else [wanted[number] for number in (0, 1, 3)]
    assert sorted(found) == sorted(shown)


SAID = "Here: <bbox>"
OBJECTS = {
    # Decimals and integers keep their spelling.
    "a box": ("Where is <ref-object>?", SAID, {"ref": ["the cat"], "bbox": [[1, 2.5, 30, 40]]})
    + ("Where is the cat?", "Here: [1, 2.5, 30, 40]"),
    "called real": ("Where?", SAID, {"bbox": [[1, 2, 3, 4]], "bbox_type": "real"})
    + ("Where?", "Here: [1, 2, 3, 4]"),
    # 40 x 30 pixels.
    "shares": ("Where?", SAID, {"bbox": [[0.25, 0.5, 1, 1]], "bbox_type": "norm1"})
    + ("Where?", "Here: [10.0, 15.0, 40, 30]"),
    "a point": ("Where?", SAID, {"bbox": [[0.5, 0.1]], "bbox_type": "norm1", "image_id": [0]})
    + ("Where?", "Here: [20.0, 3.0]"),
    "a short image_id": (
        "Where?",
        "<bbox>, <bbox>",
        {"bbox": [[0.5, 0.1], [1, 1]], "bbox_type": "norm1", "image_id": [0]},
    )
    + ("Where?", "[20.0, 3.0], [40, 30]"),
    "in the question too": ("What is at <bbox>, <bbox>?", SAID, {"ref": [], "bbox": [[1, 2], [3, 4], [5, 6]]})
    + ("What is at [1, 2], [3, 4]?", "Here: [5, 6]"),
    "as a table cell": ("Where?", SAID, json.dumps({"bbox": [[1, 2, 3, 4]]}))
    + ("Where?", "Here: [1, 2, 3, 4]"),
    # Tags without an object come from another program.
    "unused": ("Where?", "There", {"bbox": [[1, 2, 3, 4]], "ref": None}) + ("Where?", "There"),
    "tags around numbers": ("Write <bbox>x1, y1, x2, y2</bbox>.", "There", {"bbox": []})
    + ("Write <bbox>x1, y1, x2, y2</bbox>.", "There"),
}


@pytest.mark.parametrize("shape", ["messages", "question", "query"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_names_and_boxes_of_ms_swift_replace_their_placeholders(tmp_path, shape, kind):
    asked, said, objects, question, answer = OBJECTS[kind]
    Pillow.new("RGB", (40, 30)).save(tmp_path / "0.png")
    texts = {"question": ("question", "answer"), "query": ("query", "response")}
    row = {"images": ["0.png"], "objects": objects}
    if shape == "messages":
        row["messages"] = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    else:
        row |= dict(zip(texts[shape], (asked, said), strict=True))
    found, _, reason = own_rows.checked(row, None, own_rows.Root(tmp_path))
    assert (found["prompt"], found["target"], reason) == (question, answer, None)


def test_a_box_of_ms_swift_is_the_gold_and_an_unreadable_image_the_reason(tmp_path):
    Pillow.new("RGB", (40, 30)).save(tmp_path / "0.png")
    row = {"question": "Where?", "answer": "<bbox>", "image": "0.png"}
    row["objects"] = {"bbox": [[0.25, 0.5, 1, 1]], "bbox_type": "norm1"}
    scorer, root = get_scorer("box_iou"), own_rows.Root(tmp_path)
    found, _, reason = own_rows.checked(row, scorer, root)
    assert (json.loads(found["answer"]), reason) == ([10, 15, 40, 30], None)
    with pytest.raises(HarnessError, match="gone.png does not exist"):
        own_rows.checked({**row, "image": "gone.png"}, scorer, root)
    # Boxes in pixels need no image: the row is kept as unscored where unreadable images are allowed.
    found, _, reason = own_rows.checked(
        {**row, "image": "gone.png", "objects": {"bbox": [[1, 2, 3, 4]]}}, None, root
    )
    assert found["target"] == "[1, 2, 3, 4]"
    assert "gone.png" in str(reason)


@pytest.mark.parametrize(
    ("row", "turns", "answer", "gold"),
    [
        (
            {"query": "c?", "response": "d", "system": "s", "history": [["a?", "b"]]},
            [("system", "s"), ("user", "a?"), ("assistant", "b"), ("user", "c?")],
            *("d", "d"),
        ),
        (
            {"conversation": [{"human": "a?", "assistant": "b"}, {"human": "c?", "assistant": "d"}]},
            [("user", "a?"), ("assistant", "b"), ("user", "c?")],
            *("d", "d"),
        ),
        ({"instruction": "Name it.", "input": "a", "output": "d"}, [("user", "Name it.\na")], "d", "d"),
        ({"query": "c?", "response": "so d", "solution": "d"}, [("user", "c?")], "so d", "d"),
        ({"question": "c?", "answer": "d", "query": "x", "response": "y"}, [("user", "c?")], "d", "d"),
        ({"instruction": "c?", "chosen": "d", "rejected": "e"}, [("user", "c?")], "d", "d"),
    ],
)
def test_pairs_of_other_programs_become_turns(row, turns, answer, gold):
    found = own_rows.exchange(row)
    assert [(turn["role"], turn["content"]) for turn in found.turns] == turns
    assert (found.target, found.solution) == (answer, gold)


LISTS = (
    *('["red", "white"]', '[{"bbox_2d": [1, 2, 30, 40], "label": "dog"}]', "[1, 2]", "[]", "[[1, 2]]"),
    *('[{"role": "user"}, 3]', '[{"label": "dog"}, {"role": "a"}]', "cat.png", "[cat.png]"),
)
"""Texts that are JSON lists, and names of files."""
ANSWERED = {
    "completion": {"prompt": "a?", "completion": None},
    "response": {"query": "a?", "response": None},
    "output": {"instruction": "a?", "output": None},
    "output and input": {"instruction": "a?", "input": "", "output": None},
    "chosen": {"prompt": "a?", "chosen": None, "rejected": "b"},
    "answer": {"question": "a?", "answer": None},
    "conversation": {"conversation": [{"human": "a?", "assistant": None}]},
    "messages": {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": None}]},
}
ASKING = {
    "prompt": {"prompt": None, "completion": "b"},
    "question": {"question": None, "answer": "b"},
    "query": {"query": None, "response": "b"},
    "instruction": {"instruction": None, "output": "b"},
    "input": {"instruction": "Name it.", "input": None, "output": "b"},
    "history": {"query": "b?", "response": "b", "history": [[None, "c"]]},
}


def with_text(row, text):
    """A row with a text in place of None."""
    return json.loads(json.dumps(row).replace("null", json.dumps(text)))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "memory"])
@pytest.mark.parametrize("text", LISTS)
def test_a_text_that_looks_like_a_json_list_or_a_file_stays_text(tmp_path, text, kind):
    for shape, row in (ANSWERED | ASKING).items():
        given = with_text(row, text)
        if kind == "csv" and not all(isinstance(one, str) for one in given.values()):
            continue
        path = tmp_path / f"data.{kind}"
        if kind == "jsonl":
            path.write_text(lines([given]))
        elif kind == "csv":
            with path.open("w", newline="") as file:
                csv.DictWriter(file, given).writerows([dict(zip(given, given, strict=True)), given])
        elif kind == "parquet":
            Dataset.from_list([given]).to_parquet(path)
        else:
            path, _ = own_files.keep([given])
        [(_, made, reason)] = own_data.examined(path, judge("exact_word"), own_data.Root(tmp_path))
        assert reason is None, (shape, str(reason))
        if shape in ANSWERED:
            assert (made["target"], json.loads(made["answer"])) == (text, text), shape
        else:
            assert text in made["prompt"].split("\n"), shape
    pair = {"prompt": "a?", "chosen": "b", "rejected": text}
    assert own_rows.exchange(pair).rejected == text
    assert own_rows.exchange({"prompt": "a?", "chosen": "b", "rejected_response": text}).rejected == text


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_line_endings_and_byte_order_marks_do_not_change_an_item(tmp_path, kind, end, mark):
    rows = [{"question": 'Which "one"?\n\nA, or B', "answer": "A"}, {"question": "q", "answer": "b\nc"}]
    written = io.StringIO()
    if kind in ("csv", "tsv"):
        table = csv.DictWriter(
            written, ("question", "answer"), delimiter=",\t"[kind == "tsv"], lineterminator="\n"
        )
        table.writeheader()
        table.writerows(rows)
    else:
        written.write(lines(rows) if kind == "jsonl" else json.dumps(rows, indent=1))
    path = tmp_path / f"data.{kind}"
    path.write_bytes((mark + written.getvalue().replace("\n", end)).encode())
    items = sampling.read_items(own_data.open_file(path, "exact_word", None), 2)
    assert [(one.prompt, one.answer) for one in items] == [tuple(row.values()) for row in rows]


TALK = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "<image>Is it a bird?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "Which one?"},
]
GIVEN = {"role": "assistant", "content": "goose"}
ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
TALKS = {
    "messages": {"messages": [*TALK, GIVEN], "images": ["0.png"]},
    "a missing marker": {
        "messages": [TALK[0], {"role": "user", "content": "Is it a bird?"}, *TALK[2:], GIVEN],
        "image": "0.png",
    },
    "content parts": {
        "messages": [
            {**turn, "content": parts(turn["content"], [{"type": "image", "path": "0.png"}])}
            for turn in [*TALK, GIVEN]
        ]
    },
    "ShareGPT with a system column": {
        "system": TALK[0]["content"],
        "conversations": [
            {"from": ROLES[turn["role"]], "value": turn["content"]} for turn in [*TALK[1:], GIVEN]
        ],
        "image": "0.png",
    },
    "prompt and completion": {"prompt": TALK, "completion": [GIVEN], "image": "0.png"},
    "prompt and answer": {"prompt": TALK, "answer": "goose", "images": ["0.png"]},
    "messages in a cell": {"messages": json.dumps([*TALK, GIVEN]), "images": "0.png"},
    "Arrow's nulls": {
        "messages": [
            {"role": turn["role"], "content": turn["content"], "from": None, "value": None}
            for turn in [*TALK, GIVEN]
        ],
        "images": ["0.png"],
        "problem": None,
    },
}


class TestConversations:
    @pytest.mark.parametrize("kind", TALKS)
    def test_have_the_same_turns_in_every_shape(self, tmp_path, folder, kind):
        path = tmp_path / "data.jsonl"
        path.write_text(lines([TALKS[kind]]))
        task = own_data.open_file(path, "exact_word", folder)
        shown = [
            (turn["role"], [part.get("text", part["type"]) for part in turn["content"]])
            for turn in task.doc_to_messages(task.eval_docs[0])
        ]
        assert shown == [
            ("system", ["Answer in one word."]),
            ("user", ["image", "Is it a bird?"]),
            ("assistant", ["yes"]),
            ("user", ["Which one?"]),
        ]
        (item,) = sampling.read_items(task, 1)
        assert item.prompt == "Answer in one word.\n<image>Is it a bird?\nyes\nWhich one?"
        assert json.loads(item.turns) == TALK
        assert (item.answer, item.target) == ("goose", "goose")

    def test_are_kept_by_training_and_curated_sets(self, tmp_path, folder):
        path = folder / "talks.jsonl"
        path.write_text(
            lines([TALKS["messages"], {"problem": "Which?", "solution": "goose", "image": "1.jpg"}])
        )
        for rows in (
            opening.training_data(str(path), SftOptions(model="digits", data=str(path))),
            grpo.open_data(str(path), "exact_word", None)[0],
        ):
            assert [row["messages"] for row in rows] == [
                [*TALK, GIVEN],
                [{"role": "user", "content": "<image>Which?"}, GIVEN],
            ]
        options = STUB | {"data": path, "samples": 2}
        stages.STAGES["sample"](tmp_path / "rollouts", **options)
        stages.STAGES["label"](tmp_path / "labels", rollouts=tmp_path / "rollouts")
        stages.STAGES["curate"](tmp_path / "curated", labels=tmp_path / "labels", keep=("easy",))
        curated = training_data.read(tmp_path / "curated")
        asked = sorted([[turn["role"] for turn in turns.prompt] for turns in curated.turns])
        assert asked == [["system", "user", "assistant", "user"], ["user"]]
        judged = grpo.open_data(str(tmp_path / "curated"), None, None)[1]
        assert judged is not None

    @pytest.mark.parametrize(
        ("texts", "prompt"),
        [
            (["<image>", "What of it?", "Name it"], "What of it?\nName it"),
            (["<image>", None, "Name it"], "Name it"),
            (["Hi", "", "<image>Name it"], "Hi\n\n<image>Name it"),
            (["<image>Hi", "", "Name it"], "Hi\nName it"),
            (["<image>\n<image>\nHi", "Yes", "Name it"], "<image>\n<image>\nHi\nYes\nName it"),
            (["", "Yes", "Name it"], "Yes\nName it"),
        ],
    )
    def test_are_the_same_item_in_training_and_sampling(self, tmp_path, folder, texts, prompt):
        roles = ("user", "assistant", "user")
        turns = [
            {"role": role, "content": text}
            for role, text in zip(roles, texts, strict=True)
            if text is not None
        ]
        path = tmp_path / "data.jsonl"
        images = ["0.png", "1.jpg"][: sum((text or "").count("<image>") for text in texts)]
        path.write_text(lines([{"messages": [*turns, GIVEN], "images": images}]))
        root = own_rows.Root(folder)
        ((_, row, reason),) = own_data.examined(path, get_scorer("exact_word"), root)
        (item,) = sampling.read_items(own_data.open_file(path, "exact_word", folder), 1)
        assert (reason, row["item_id"], row["prompt"], item.prompt) == (None, item.item_id, prompt, prompt)

    def test_the_separate_gold_counts_and_the_last_turn_is_the_target(self, tmp_path):
        path = tmp_path / "data.jsonl"
        said = {"role": "assistant", "content": "It honks, so it is a goose."}
        path.write_text(
            lines([{"messages": [{"role": "user", "content": "Which?"}, said], "answer": "goose"}])
        )
        (item,) = sampling.read_items(own_data.open_file(path, "exact_word", None), 1)
        assert (item.answer, item.target) == ("goose", said["content"])


ASKED = {"role": "user", "content": "<image>Which?"}
BETTER, WORSE = ({"role": "assistant", "content": text} for text in ("goose", "swan"))
PAIRS = {
    "TRL": {"prompt": "<image>Which?", "chosen": "goose", "rejected": "swan"},
    "TRL's conversations": {"prompt": [ASKED], "chosen": [BETTER], "rejected": [WORSE]},
    "without a prompt": {"chosen": [ASKED, BETTER], "rejected": [ASKED, WORSE]},
    "ms-swift": {"messages": [ASKED, BETTER], "rejected_response": "swan"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "<image>Which?"}],
        "chosen": {"from": "gpt", "value": "goose"},
        "rejected": {"from": "gpt", "value": "swan"},
    },
    "question and answer": {"question": "<image>Which?", "answer": "goose", "rejected": "swan"},
    "the question again in chosen": {
        "prompt": "<image>Which?",
        "chosen": [{"role": "user", "content": "Which?"}, BETTER],
        "rejected": [ASKED, WORSE],
    },
    "turns in cells": {
        "chosen": json.dumps([ASKED, BETTER]),
        "rejected": json.dumps([ASKED, WORSE]),
    },
}


PAIR = {"question": "Which?", "answer": "goose"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PAIR, "no `rejected` answer"),
        ({**PAIR, "rejected": ""}, "no `rejected` answer"),
        ({**PAIR, "rejected_response": " \n"}, "no `rejected` answer"),
        (
            {"prompt": [ASKED], "chosen": [BETTER], "rejected": [{**WORSE, "content": ""}]},
            "no `rejected` answer",
        ),
        ({**PAIR, "rejected": "goose"}, "`rejected` equals the right answer"),
        (
            {"prompt": [ASKED], "chosen": [BETTER], "rejected": [BETTER]},
            "`rejected` equals the right answer",
        ),
    ],
)
def test_rows_without_a_pair_are_refused_by_preference_training_only(tmp_path, folder, row, said):
    path = tmp_path / "data.jsonl"
    path.write_text(lines([row | ({"image": "0.png"} if "prompt" in row else {})]))
    options = DpoOptions(model="digits", data=str(path), image_root=folder)
    (found,) = opening.own_training_rows(str(path), options, pairs=True)
    assert found["row_name"] == "line 1" and found["refused"].startswith(said)
    assert len(own_data.open_file(path, "exact_word", folder).eval_docs) == 1


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_of_every_shape_are_equal(tmp_path, folder, kind):
    path = tmp_path / "data.jsonl"
    path.write_text(lines([PAIRS[kind] | {"images": ["0.png"]}]))
    options = DpoOptions(model="digits", data=str(path), image_root=folder)
    (row,) = opening.own_training_rows(str(path), options, pairs=True)
    assert (row["messages"], row["rejected"], row["refused"]) == ([ASKED, BETTER], "swan", None)


SAVED = {
    "a system column": {"system": "Be brief."},
    "objects": {"objects": {"ref": ["goose"], "bbox": []}},
    "a solution": {"solution": "goose"},
    "a video": {"video": "a.mp4"},
}


class TestSavedMessages:
    """A folder saved by `datasets`, with messages and images inside, is read like your own rows."""

    @pytest.fixture
    def save(self, tmp_path):
        def make(more, answer="goose", count=1):
            turns = [ASKED, {"role": "assistant", "content": answer}]
            rows = []
            for number in range(count):
                file = io.BytesIO()
                Pillow.new("RGB", (40, 30), (number, 0, 0)).save(file, "PNG")
                images = [{"bytes": file.getvalue(), "path": None}]
                rows.append({"messages": turns, "images": images, **more})
            made = Dataset.from_list(rows).cast_column("images", List(Image()))
            made.save_to_disk(tmp_path / "data")
            return tmp_path / "data"

        return make

    @pytest.mark.parametrize("kind", SAVED)
    def test_columns_next_to_messages_are_read_by_training_too(self, save, kind):
        path = save(SAVED[kind], "<ref-object>" if kind == "objects" else "goose")
        rows = opening.training_data(str(path), SftOptions(model="digits", data=str(path)))
        if kind == "a video":
            assert "`video` is not shown to a model" in rows[0]["refused"]
            return
        found = training_data.read(rows)
        sampled = sampling.read_items(own_data.open_file(path, "exact_word", None), 1)
        assert found.item_ids == [one.item_id for one in sampled]
        assert found.turns[0].answer == "goose"
        assert [turn["role"] for turn in found.turns[0].prompt] == ["system"] * ("system" in kind) + ["user"]

    @pytest.mark.parametrize("part", [None, {"type": "image", "path": "0.png", "text": None}])
    def test_messages_without_an_image_column_are_read_by_training_too(self, folder, tmp_path, part):
        question = [*([part] if part else []), {"type": "text", "text": "Which?"}]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": [question[-1]]}]
        Dataset.from_list([{"messages": turns}]).save_to_disk(tmp_path / "data")
        options = SftOptions(model="digits", data=str(tmp_path / "data"), image_root=None)
        shutil.copy(folder / "0.png", tmp_path)
        found = training_data.read(opening.training_data(options.data, options))
        assert [turns.images for turns in found.turns] == [int(part is not None)]

    @pytest.mark.parametrize("names", [("from", "value"), ("role", "content")])
    def test_turns_in_other_words_are_those_of_lines(self, save, names):
        path = save({})
        said = zip(("human", "gpt"), ("<image>Which?", "goose"), strict=True)
        turns = [dict(zip(names, one, strict=True)) for one in said]
        rows = load_from_disk(str(path)).remove_columns("messages").add_column("messages", [turns])
        rows.save_to_disk(path.with_name("shared"))
        options = SftOptions(model="digits", data=str(path.with_name("shared")))
        found = training_data.read(opening.training_data(options.data, options))
        assert [turn["role"] for turn in found.turns[0].prompt] == ["user"]
        assert (found.turns[0].answer, found.turns[0].images) == ("goose", 1)

    @pytest.mark.parametrize("more", [{"scorer": "exact_word"}, {"held_out": 0.5}])
    def test_options_for_rows_are_accepted(self, save, more):
        path = save({}, count=12)
        options = SftOptions(model="digits", data=str(path), **more)
        rows = opening.training_data(str(path), options)
        assert len(rows) < 12 if "held_out" in more else len(rows) == 12
        assert "item_id" in rows.column_names

    @pytest.mark.parametrize("names", [[], ["item_id", "difficulty", "weight"]])
    def test_a_set_without_such_columns_is_read_directly(self, save, names):
        path = save(dict.fromkeys(names, "1"))
        assert opening.training_data(str(path), SftOptions(model="digits", data=str(path))) == path


READERS = (
    "sample --model=dcsft_stub --model-args=default=goose --scorer=exact_word --data FILE",
    "evaluate --model=dcsft_stub --model-args=default=goose --scorer=exact_word --data FILE",
    "train sft --model=digits --max-steps=1 --data FILE",
    "train cold-start --model=digits --max-steps=1 --data FILE",
    "train grpo --model=digits --scorer=exact_word --max-steps=1 --data FILE",
    "data overlap --scorer=exact_word FILE dcsft_digits",
)
"""The commands that read rows without pairs."""


class TestRowsDifferingInRejected:
    """Rows that differ only in `rejected` are distinct for preference training, and one item elsewhere."""

    @pytest.fixture
    def path(self, tmp_path):
        row = {"question": "Which bird?", "answer": "goose"}
        (tmp_path / "mine.jsonl").write_text(lines([row | {"rejected": one} for one in ("swan", "duck")]))
        return tmp_path / "mine.jsonl"

    @pytest.mark.parametrize(
        "words", [*READERS, "data inspect FILE"], ids=lambda words: words.partition(" --")[0]
    )
    def test_the_second_is_refused_by_line(self, path, tmp_path, capsys, words):
        given = [str(path) if word == "FILE" else word for word in words.split()]
        assert main([*given, f"--output={tmp_path / 'out'}"]) == 1
        shown = capsys.readouterr()
        said = " ".join((shown.out + shown.err).split())
        assert "line 2: the same item as line 1 (same prompt, answer and image; `rejected` counts" in said

    def test_the_second_is_left_out_on_request(self, path, tmp_path):
        notes = stages.STAGES["sample"](tmp_path / "out", samples=1, **STUB, data=path, on_error="skip")
        assert (notes["items"], sorted(notes["left_out_rows"])) == (1, ["line 2"])

    def test_preference_training_reads_both(self, path):
        options = DpoOptions(model="digits", data=str(path))
        rows = opening.own_training_rows(str(path), options, pairs=True)
        assert (rows["rejected"][:], rows["refused"][:]) == (["swan", "duck"], [None, None])


FINE = {"problem": "Which bird?", "solution": "goose", "rejected": "swan"}
BAD = (
    *("{no", {"problem": "no answer?"}, {"problem": "lost", "solution": "a", "image": "9.png"}),
    *({"messages": [{"role": "tool", "content": "?"}]}, FINE, FINE),
)


class TestBadRows:
    @pytest.fixture
    def bad(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in BAD))
        return path

    @pytest.mark.parametrize(
        "words",
        [*READERS, "train dpo --model=digits --max-steps=1 --data FILE"],
        ids=lambda words: words.partition(" --")[0],
    )
    def test_all_are_listed_at_once(self, bad, tmp_path, capsys, words):
        given = [str(bad) if word == "FILE" else word for word in words.split()]
        assert main([*given, f"--output={tmp_path / 'out'}"]) == 1
        said = capsys.readouterr().err
        assert "5 of 6 rows" in said
        for row in (1, 2, 3, 4, 6):
            assert f"line {row}: " in said, row
        assert not (tmp_path / "out").exists()

    def test_sampling_and_evaluation_leave_them_out_with_an_option(self, bad, tmp_path, capsys):
        skip = STUB | {"data": bad, "on_error": "skip"}
        notes = stages.STAGES["sample"](tmp_path / "rollouts", samples=1, **skip)
        # An item with an unreadable image is recorded as unscored; a row that is no item cannot be.
        assert (notes["items"], notes["skipped"], notes["left_out"]) == (2, 1, 4)
        assert sorted(notes["left_out_rows"]) == ["line 1", "line 2", "line 4", "line 6"]
        notes = stages.STAGES["evaluate"](tmp_path / "scores", **skip)
        assert (notes["tasks"]["mine"]["n"], notes["left_out"]) == (1, 5)
        assert "the same item as line 5" in notes["left_out_rows"]["line 6"]

    def test_training_reads_the_other_rows(self, bad):
        rows = opening.training_data(str(bad), SftOptions(model="digits", data=str(bad)))
        found = training_data.examined(rows, "mine.jsonl")
        assert (len(found.turns), len(found.refused)) == (1, 5)
        assert found.where(0) == "mine.jsonl, line 5"
        assert found.refused[2].problem.startswith("mine.jsonl, line 3: image ")
        rows, judge = grpo.open_data(str(bad), "exact_word", None)
        found = training_data.examined(rows)
        assert (len(found.turns), len(found.refused)) == (1, 5)

    def test_a_file_with_only_bad_rows_is_refused(self, bad):
        bad.write_text("{no\n{no")
        with pytest.raises(HarnessError, match="2 of 2 rows cannot be used"):
            own_data.open_file(bad, "exact_word", None, skip=True)


class TestHostileFiles:
    def test_a_truncated_list_keeps_the_rows_before(self, tmp_path):
        path = tmp_path / "data.json"
        path.write_text('[{"problem": "?", "solution": "a"}, {"problem": "?"')
        assert [where for where, _ in own_files.rows(path)] == ["row 1", "row 2"]
        assert "not JSON" in str(list(own_files.rows(path))[1][1])

    @pytest.mark.parametrize("depth", [100, 100_000])
    def test_nesting_is_limited_in_lists(self, tmp_path, depth):
        path = tmp_path / "data.json"
        path.write_text('[{"problem": ' + "[" * depth + "]" * depth + "}]")
        ((_, error),) = own_files.rows(path)
        assert "nested" in str(error)

    def test_a_long_line_is_not_read_completely(self, tmp_path, monkeypatch):
        monkeypatch.setattr(own_files, "MOST_ROW", 1000)
        path = tmp_path / "data.jsonl.gz"
        long = json.dumps({"problem": "x" * 5_000_000, "solution": "a"})
        path.write_bytes(gzip.compress(f"{long}\n{lines(plain(folder=tmp_path)[2:3])}".encode()))
        (first, error), (second, row) = own_files.rows(path)
        assert (first, second, row["solution"]) == ("line 1", "line 2", "two")
        assert "longer than" in str(error)

    def test_a_large_list_is_read_in_pieces(self, tmp_path):
        path = tmp_path / "data.json"
        rows = [{"problem": f"{number} " + "y" * 5000, "solution": "é"} for number in range(700)]
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        assert [row for _, row in own_files.rows(path)] == rows

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("data.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "cannot be read"),
            ("data.parquet", b"PAR1 and nothing more", "cannot be read"),
            ("data.csv", b"a,b\n1,2\n", "no column of the questions; it has a, b"),
            ("data.csv", b"question,label\n1,2\n", "no column of the answers; it has question, label"),
            ("data.json", b'{"data": [{"question": "a"}]}', "Save the list `data` as the file"),
            ("data.jsonl", b'{"query": "a", "response": "b", "history": ["c"]}', "as history"),
            ("data.jsonl", b'{"conversation": [{"human": "a"}]}', "A row needs a question"),
            ("data.csv", b"question,answer\n", "no rows. Pass a file with rows"),
            ("data.csv", b"problem,solution\n1,2,3\n", "row 1: more cells than columns"),
            ("data.arrow", b"no arrow", "cannot be read"),
        ],
    )
    def test_damaged_files_are_refused_in_one_sentence(self, tmp_path, name, content, said):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HarnessError, match=said):
            own_data.open_file(tmp_path / name, "exact_word", None)

    @pytest.mark.parametrize("name", ["red/1.png", "2.JPG", "3.jpeg"])
    def test_a_folder_of_images_is_named_as_such(self, tmp_path, name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        with pytest.raises(HarnessError, match="is a folder of images without rows. Write a JSONL or CSV"):
            own_data.open_file(tmp_path, "exact_word", None)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("data.jsonl", json.dumps([{"problem": "a", "solution": "b"}])),  # a list named like JSON Lines
            ("data.jsonl", json.dumps({"problem": "a", "solution": "b"}, indent=1)),
            ("data.csv", "problem;solution\r\na;b\r\n"),  # a spreadsheet from a locale with decimal commas
            ("data.csv", "problem\tsolution\na\tb\n"),
            ("data.csv", '"problem";"solution"\n"a";"b"\n'),
        ],
    )
    def test_common_variants_of_a_format_are_read(self, tmp_path, name, content):
        (tmp_path / name).write_text(content)
        assert [row for _, row in own_files.rows(tmp_path / name)] == [{"problem": "a", "solution": "b"}]

    @pytest.mark.parametrize("verb", ["train sft", "train grpo", "train dpo"])
    def test_training_names_the_file_in_an_image_folder(self, tmp_path, verb):
        (tmp_path / "birds").mkdir()
        (tmp_path / "birds" / "metadata.csv").write_text("file_name,question,answer\n")
        with pytest.raises(HarnessError, match=r"birds is a folder without rows\. Name .*/metadata\.csv"):
            stages.STAGES[verb](tmp_path / "out", model="digits", data=str(tmp_path / "birds"))

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            (["train-00000-of-00002", "train-00001-of-00002"], None),
            (["train-00000-of-00001", "test-00000-of-00001"], r"holds the splits test, train\. Name a file"),
            (["data/train-00000-of-00001"], r"folder without rows\. Name .*/rows/data\."),
            (["train-00000-of-00002-b42a775f407cee45", "train-00001-of-00002-8f1e775f407cee45"], None),
            (
                ["train-00000-of-00001-b42a775f407cee45", "test-00000-of-00001-b42a775f407cee45"],
                "holds the splits test, train",
            ),
            (["train", "test"], "holds the splits test, train"),
            (["Train", "val_2"], "holds the splits train, val"),
            (["train-00000-of-00001", "test"], "holds the splits test, train"),
            (["train-00000-of-00001", "train"], None),
            (["train", "validation"], "holds the splits train, validation"),
            (["train", "valid"], "holds the splits train, valid"),
            (["train", "dev"], "holds the splits dev, train"),
            (["train", "eval"], "holds the splits eval, train"),
            (["mydata_train", "mydata-test"], "holds the splits test, train"),
            (["birds.training.v2", "birds 2validation"], "holds the splits validation, train"),
            (["birds_train_1", "birds_train_2", "train"], None),
            (["constraint_a", "latest_b", "retrain"], None),
            (["train_1", "train_2"], None),
            (["train", "more"], None),
            (["0000", "0001"], None),
        ],
    )
    def test_folders_of_parquet_files_must_hold_one_split(self, tmp_path, files, said):
        for number, name in enumerate(files):
            path = tmp_path / "rows" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"question": [f"a{number}"], "answer": ["b"]}), path)
        if said is None:
            assert len(list(own_files.rows(tmp_path / "rows"))) == len(files)
        else:
            with pytest.raises(HarnessError, match=said):
                list(own_files.rows(tmp_path / "rows"))

    @pytest.mark.parametrize("kind", ["parquet", "saved", "memory", "frame"])
    @pytest.mark.parametrize("size", [pa.float64(), pa.float32()], ids=str)
    def test_numbers_inside_mappings_are_read_as_in_json_lines(self, tmp_path, kind, size):
        """A column holds 10 as 10.0 if another row has a fraction; 32 bits hold 10.1 as 10.100000381."""
        boxes = [[[10, 20, 30, 40]], [[10.1, 20, 30.5, 40]]]
        objects = pa.array([{"bbox": one} for one in boxes], pa.struct({"bbox": pa.list_(pa.list_(size))}))
        table = pa.table({"question": ["a?", "b?"], "answer": ["<bbox>"] * 2, "objects": objects})
        path = tmp_path / "data.parquet"
        pq.write_table(table, path)
        if kind == "saved":
            path = tmp_path / "saved"
            Dataset(table).save_to_disk(path)
        elif kind != "parquet":
            path, _ = own_files.keep(Dataset(table) if kind == "memory" else pq.read_table(path).to_pandas())
        found = list(own_data.examined(path, own_data.ANY, own_data.Root(tmp_path)))
        assert [made["target"] for _, made, _ in found] == ["[10, 20, 30, 40]", "[10.1, 20, 30.5, 40]"]

    @pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "dictionaries", "frame"])
    def test_integers_stay_integers_in_every_format(self, tmp_path, kind):
        """pandas writes 3 as 3.0 if another row has a fraction or nothing, even to JSON."""
        rows = [{"question": "a\nb", "answer": 3.0, "choices": [1.0, 3.0, 2.5]}]
        rows += [{"question": "c", "answer": 2.5, "choices": [2.5, 1e3, -0.0]}]
        path = tmp_path / f"data.{kind}"
        if kind in ("dictionaries", "frame"):
            path, _ = own_files.keep(
                rows if kind == "dictionaries" else pa.Table.from_pylist(rows).to_pandas()
            )
        elif kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif kind == "csv":  # a list is JSON there, and any other text stays text
            cells = [
                {**row, "answer": f"{row['answer']:g}", "choices": json.dumps(row["choices"])} for row in rows
            ]
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, ("question", "answer", "choices"))
                table.writeheader()
                table.writerows(cells)
        else:
            path.write_text(lines(rows) if kind == "jsonl" else json.dumps(rows))
        found = [
            made for _, made, _ in own_data.examined(path, get_scorer("choice"), own_data.Root(tmp_path))
        ]
        shown = [(one["prompt"], one["answer"], one["target"], one["choices"]) for one in found]
        wanted = [("a\nb", '"3"', "3", ["1", "3", "2.5"]), ("c", '"2.5"', "2.5", ["2.5", "1000", "0"])]
        assert shown == wanted

    @pytest.mark.parametrize("kind", ["parquet", "saved", "memory"])
    def test_class_numbers_are_read_as_class_names(self, tmp_path, kind):
        one = ClassLabel(names=["goose", "swan"])
        features = Features({"question": Value("string"), "answer": one, "choices": List(List(one))})
        several = [[[1, 0]], [], None]
        rows = Dataset.from_dict(
            {"question": ["a", "b", "c"], "answer": [1, 0, -1], "choices": several}, features
        )
        path = tmp_path / "rows"
        if kind == "parquet":
            rows.to_parquet(path)
        elif kind == "saved":
            rows.save_to_disk(path)
        else:
            path, _ = own_files.keep(rows)
        assert [row["answer"] for _, row in own_files.rows(path)] == ["swan", "goose", None]
        listed = [row["choices"] for _, row in own_files.rows(path)]
        assert listed == [[["swan", "goose"]], [], None]

    def test_classes_in_the_form_of_older_versions_of_datasets_are_read(self):
        one = {"names": ["goose"], "_type": "ClassLabel"}
        forms = {"a": [one], "b": {"feature": one, "_type": "Sequence"}, "c": [{"x": one}], "d": []}
        said = json.dumps({"info": {"features": forms}})
        assert own_files.classes(pa.schema([], {b"huggingface": said})) == {"a": ["goose"], "b": ["goose"]}

    @pytest.mark.parametrize(
        "said", [b"\xff", b"{", b"3", b"[]", b'{"info": null}', b'{"info": {"features": 3}}']
    )
    def test_other_metadata_of_a_table_is_ignored(self, tmp_path, said):
        table = pa.table({"question": ["a"], "answer": [1]}).replace_schema_metadata({b"huggingface": said})
        pq.write_table(table, tmp_path / "rows.parquet")
        assert [row["answer"] for _, row in own_files.rows(tmp_path / "rows.parquet")] == [1]

    @pytest.mark.parametrize("name", ["input", "history", "output", "picture"])
    @pytest.mark.parametrize("kind", ["parquet", "saved"])
    def test_images_in_a_wrong_column_are_refused(self, tmp_path, folder, kind, name):
        found = [{"question": "Which?", "answer": "goose", name: str(folder / "0.png")}]
        rows = Dataset.from_list(found).cast_column(name, Image())
        path = tmp_path / "rows"
        rows.to_parquet(path) if kind == "parquet" else rows.save_to_disk(path)
        with pytest.raises(HarnessError, match=f"`{name}`"):
            own_data.open_file(path, "exact_word", None)

    def test_a_line_that_is_not_json_is_named_with_its_character(self, tmp_path):
        lines = ['{"problem": "a"}', '{"problem": "a"},', '{"problem": "a"} b']
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        _, *refused = own_files.rows(tmp_path / "data.jsonl")
        assert [(where, error.problem) for where, error in refused] == [
            ("line 2", "not JSON (a comma follows the object)"),
            ("line 3", "not JSON (Extra data at character 18)"),
        ]

    def test_several_splits_are_named(self, tmp_path, folder):
        DatasetDict({"train": dataset(folder), "test": dataset(folder)}).save_to_disk(tmp_path / "data")
        with pytest.raises(HarnessError, match="holds the splits train, test"):
            own_data.open_file(tmp_path / "data", "exact_word", None)
        assert len(own_data.open_file(tmp_path / "data" / "test", "exact_word", None).eval_docs) == 4

    def test_paths_inside_tables_must_be_inside_the_root(self, tmp_path, folder):
        rows = [{"problem": "?", "solution": "a", "image": {"bytes": None, "path": str(folder / "0.png")}}]
        Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
        with pytest.raises(HarnessError, match=r"data\.parquet, row 1: image .* is outside"):
            own_data.open_file(tmp_path / "data.parquet", "exact_word", None)


def test_rows_in_memory_can_be_passed_in_python(tmp_path, folder):
    import dcsft_harness as dcsft

    options = {"model_args": "default=goose", "scorer": "exact_word"}
    pictures = plain(entry=Pillow.open, folder=folder)
    for number, rows in enumerate((dataset(folder), pictures)):
        first, again = (
            dcsft.sample("dcsft_stub", data=rows, samples=1, output=tmp_path / str(number), **options)
            for _ in range(2)
        )
        assert first.notes["items"] == 4
        assert again.notes == first.notes
    for number, rows in enumerate((tuple(pictures), (row for row in pictures)), 10):
        made = dcsft.sample("dcsft_stub", data=rows, samples=1, output=tmp_path / str(number), **options)
        assert made.notes["items"] == 4
    scores = dcsft.evaluate("dcsft_stub", data=pictures, output=tmp_path / "scores", **options)
    assert scores.notes["tasks"]["data"]["accuracy"] == 0.25


def streamed(rows):
    """Rows as a stream, whose features `datasets` does not know."""
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("images", [list, lambda names: [{"bytes": None, "path": one} for one in names]])
@pytest.mark.parametrize("shape", ["dictionaries", "dataset", "stream", "frame"])
def test_in_memory_paths_are_relative_to_the_working_directory(tmp_path, folder, monkeypatch, shape, images):
    import pandas

    import dcsft_harness as dcsft

    monkeypatch.chdir(folder)
    rows = [{**row, "images": images(row.get("images", []))} for row in plain(folder=folder)]
    kinds = {"dictionaries": list, "dataset": Dataset.from_list, "stream": streamed}
    given = (kinds | {"frame": pandas.DataFrame})[shape](rows)
    options = {"model_args": "default=goose", "scorer": "exact_word"}
    made = dcsft.sample("dcsft_stub", data=given, samples=1, output=tmp_path / "rollouts", **options)
    assert made.notes["items"] == 4
    scores = dcsft.evaluate("dcsft_stub", data=given, output=tmp_path / "scores", **options)
    assert scores.notes["tasks"]["data"]["accuracy"] == 0.25
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarnessError, match="0.png does not exist"):
        dcsft.evaluate("dcsft_stub", data=given, output=tmp_path / "other", **options)
    there = dcsft.evaluate("dcsft_stub", data=given, output=tmp_path / "b", image_root=folder, **options)
    assert there.notes["tasks"]["data"]["items_sha256"] == scores.notes["tasks"]["data"]["items_sha256"]


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "path": "0.png"},
        {"type": "image", "url": "0.png"},
        {"type": "image", "image": "0.png"},
        {"type": "image", "image": {"path": "0.png"}},
        {"type": "image_url", "image_url": "0.png"},
        {"type": "image_url", "image_url": {"url": "0.png"}},
        {"type": "image", "bytes": None, "url": "0.png"},
    ],
    ids=str,
)
def test_in_memory_content_parts_have_paths_relative_to_the_working_directory(
    tmp_path, folder, monkeypatch, part, cell
):
    import dcsft_harness as dcsft

    monkeypatch.chdir(folder)
    turns = asked_in_turns([part, {"type": "text", "text": "Which?"}], "goose")
    rows = [{"messages": json.dumps(turns) if cell else turns}]
    assert own_files.keep(rows)[1]
    scores = dcsft.evaluate(
        "dcsft_stub", data=rows, scorer="exact_word", model_args="default=goose", output=tmp_path / "scores"
    )
    assert scores.notes["tasks"]["data"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("row", "has_path"),
    [
        ({"image": {"url": "0.png"}}, True),
        ({"image": {"image_url": {"url": "0.png"}}}, True),
        ({"images": [{"bytes": b"", "path": "0.png"}]}, True),
        ({"images": '["0.png"]'}, True),
        ({"images": ["0.png"], "type": "image"}, True),  # an extra column of the row
        ({"images": [{"bytes": b"x", "path": "0.png"}]}, False),
        ({"images": [{"base64": "AAAA", "path": "0.png"}]}, False),
        ({"image": {"url": "data:image/png;base64,AAAA"}}, False),
        ({"url": "https://example.org", "path": "a"}, False),  # columns that are not read
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "0.png"}]}]}, False),
    ],
)
def test_in_memory_rows_may_name_images_by_path(row, has_path):
    assert own_files.keep([row])[1] is has_path


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (lambda path: {"image": Pillow.open(path)}, None),  # `datasets` keeps the path of the file
        (lambda path: {"image": str(path)}, "is outside"),
        (lambda path: {"image": Pillow.open(path), "context": [{"image": str(path)}]}, "is outside"),
    ],
    ids=["a picture", "a path", "both"],
)
def test_images_opened_by_a_dataset_may_be_anywhere(tmp_path, folder, monkeypatch, capfd, shown, said):
    import datasets

    import dcsft_harness as dcsft

    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    rows = [{"question": "What?", "answer": "goose", **shown(folder / "0.png")}]
    options = {"model_args": "default=goose", "scorer": "exact_word", "output": tmp_path / "scores"}
    datasets.enable_progress_bars()
    if said is None:
        assert dcsft.evaluate("dcsft_stub", data=Dataset.from_list(rows), **options).notes["tasks"]
    else:
        with pytest.raises(HarnessError, match=said):
            dcsft.evaluate("dcsft_stub", data=Dataset.from_list(rows), **options)
    assert "Saving" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("named", "is_hub"),
    [("org/data", True), ("org/data.jsonl", False), ("here/data", False), ("data", False)],
)
def test_a_hub_name_is_distinguished_from_a_missing_file(tmp_path, monkeypatch, named, is_hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(HarnessError) as error:
        list(own_files.rows(Path(named)))
    assert ("load_dataset('org/data', split=" in error.value.remedy) == is_hub


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("<|vision_start|><|image_pad|><|vision_end|>What?", "goose", r"prompt has '<\|image_pad\|>', which"),
        ("What?", "a <|video_pad|>", r"answer has '<\|video_pad\|>', which"),
        ("<img>0.png</img>What?", "goose", "'<img>0.png</img>' in the text shows no image. Write <image>"),
        ("What does <img> do?", "goose", None),
    ],
)
def test_inspect_refuses_image_markers_of_other_programs(tmp_path, question, answer, said):
    (tmp_path / "mine.jsonl").write_text(lines([{"question": question, "answer": answer}]))
    notes = stages.STAGES["data inspect"](tmp_path / "out", data=tmp_path / "mine.jsonl", model="digits")
    assert notes["refused"] == (said is not None)
    assert said is None or re.search(said, notes["refused_rows"][0]["reason"])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"artefact": "rollouts"}, "holds rollouts, not rows of your own. Pass the rows"),
        ({"artefact": "overlap"}, "holds an overlap, not rows of your own"),
        ({"files": []}, None),  # of another program
    ],
)
def test_artifacts_are_not_rows(tmp_path, written, said):
    pq.write_table(pa.table({"prompt": ["a?"], "answer": ["b"]}), tmp_path / "rollouts.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps(written))
    if said is None:
        assert len(list(own_files.rows(tmp_path))) == 1
    else:
        with pytest.raises(HarnessError, match=said):
            list(own_files.rows(tmp_path))


def test_in_memory_images_may_be_path_objects(tmp_path, folder):
    rows = [{"question": "a?", "answer": "b", "image": folder / "0.png"}]
    path, has_paths = own_files.keep(rows)
    assert has_paths and [row["image"] for _, row in own_files.rows(path)] == [str(folder / "0.png")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no rows"),
        (["a?", "b?"], "row 1: it is str, not a dictionary"),
        ([{"question": "a?", "answer": "b"}, None], "row 2: it is NoneType, not a dictionary"),
        ({"question": ["a?"], "answer": ["b"]}, "is a dictionary of question, answer"),
        (
            DatasetDict({"train": Dataset.from_list([{"question": "a?", "answer": "b"}])}),
            "has the splits train",
        ),
        (3, "data=3 is not a path"),
        (
            [{"question": "a?", "answer": "b", "image": np.zeros((8, 8, 3))}],
            "row 1: an image is ndarray, not a",
        ),
        (
            [{"question": "a?", "answer": "b", "images": [np.zeros((8, 8))]}],
            "row 1: an image is ndarray, not a",
        ),
    ],
)
def test_other_in_memory_values_are_refused_in_one_sentence(tmp_path, rows, said):
    import dcsft_harness as dcsft

    with pytest.raises(HarnessError, match=re.escape(said)):
        dcsft.sample("dcsft_stub", data=rows, scorer="exact_word", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["sample", "evaluate", "train_sft", "train_grpo"])
@pytest.mark.parametrize("shape", ["dictionaries", "dataset", "frame"])
def test_errors_in_memory_name_the_row_and_not_the_cache_file(tmp_path, verb, shape):
    import pandas

    import dcsft_harness as dcsft

    rows = [{"question": "a?", "answer": "b"}, {"question": " ", "answer": "b"}]
    kinds = {"dictionaries": list, "dataset": Dataset.from_list, "frame": pandas.DataFrame}
    given = kinds[shape](rows), kinds[shape]([{"text": "a?"}, {"text": "b?"}])
    model = "dcsft_stub" if verb in ("sample", "evaluate") else "digits"
    options = {"scorer": "exact_word", "output": tmp_path / "out"}
    with pytest.raises(HarnessError) as one:
        getattr(dcsft, verb)(model, data=given[0], **options)
    with pytest.raises(HarnessError) as all_of_them:
        getattr(dcsft, verb)(model, data=given[1], **options)
    assert "row 2: the question has no words" in str(one.value)
    assert re.search("rows? 1.*: no `question`|has no column of the questions", str(all_of_them.value))
    assert "it has text" in str(all_of_them.value)
    assert re.search("question, answer(,| and) image", str(all_of_them.value))
    for said in (str(one.value), str(all_of_them.value)):
        assert said.startswith("the dataset")
        assert "data.jsonl" not in said and "line" not in said


@pytest.mark.parametrize("output", [None, 3, ["out"]])
def test_an_output_that_is_not_a_path_is_refused(output):
    import dcsft_harness as dcsft

    with pytest.raises(HarnessError, match="(needs an output|is not a path). Pass the folder to write"):
        dcsft.label("rollouts", output=output)


def test_a_data_frame_is_read_as_rows(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        [{"question": "a?", "answer": "b", "image": None}, {"question": "c?", "answer": 4}]
    )
    found = [row for _, row in own_files.rows(own_files.keep(frame)[0])]
    assert [{name: row[name] for name in ("question", "answer")} for row in found] == [
        {"question": "a?", "answer": "b"},
        {"question": "c?", "answer": 4},
    ]
    # An integer column with a missing value holds floats, in a file as in memory.
    frame = pandas.DataFrame({"question": ["a?", "b?", "c?"], "answer": [3, None, 0.5]})
    frame.to_parquet(tmp_path / "rows.parquet")
    for place in (own_files.keep(frame)[0], tmp_path / "rows.parquet"):
        assert [json.dumps(row.get("answer")) for _, row in own_files.rows(place)] == ["3", "null", "0.5"]
    place, _ = own_files.keep(frame.convert_dtypes())  # with pandas' own missing values
    assert [row.get("answer") for _, row in own_files.rows(place)] == [3, None, 0.5]


@pytest.mark.parametrize("make", [np.float16, np.float32, lambda value: np.array([[value, 4]], np.float32)])
def test_numbers_of_few_bits_in_rows_in_memory_are_those_that_were_written(make):
    torch = pytest.importorskip("torch")
    wanted = [[1.1, 4]] if make not in (np.float16, np.float32) else 1.1
    for value in (make(1.1), torch.from_numpy(np.asarray(make(1.1)))):
        path, _ = own_files.keep([{"question": "a?", "answer": value}])
        assert [row["answer"] for _, row in own_files.rows(path)] == [wanted]


def test_empty_rows_of_a_table_are_skipped_as_blank_lines_are(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer\n,\na?,b\n\n,\n")
    assert list(own_files.rows(tmp_path / "rows.csv")) == [("row 2", {"question": "a?", "answer": "b"})]


@pytest.mark.parametrize("scorer", ["exact_word", "open_answer", None])
def test_accents_of_answers_are_composed(tmp_path, scorer):
    """File names of macOS, and labels that are made of them, are decomposed."""
    (tmp_path / "rows.jsonl").write_text(lines([{"question": "a?", "answer": "cafe\u0301"}]))
    judge = own_data.ANY if scorer is None else get_scorer(scorer)
    ((_, row, _),) = own_data.examined(tmp_path / "rows.jsonl", judge, own_data.Root(tmp_path))
    gold = json.loads(row["answer"])
    assert row["target"] == "café" and gold in ("café", ["café"])
    assert scorer is None or judge("Café", answer=gold).score == 1.0


def test_nan_in_a_dictionary_is_a_missing_value():
    """pandas' `to_dict("records")` has it."""
    rows = [{"question": "a?", "answer": 3.0, "image": float("nan")}]
    (row,) = [row for _, row in own_files.rows(own_files.keep(rows)[0])]
    assert row == {"question": "a?", "answer": 3}


def test_a_data_set_with_a_transform_is_refused():
    made = Dataset.from_list([{"question": "a?", "answer": "b"}]).with_transform(dict)
    with pytest.raises(HarnessError, match="has a transform"):
        own_files.keep(made)


class TestNothingSolved:
    """Sampling and curation say why no response is right, and what to do next."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        path.write_text(lines([{"problem": "Which bird?", "solution": "goose"}]))
        return path

    @pytest.mark.parametrize(
        ("response", "said", "remedy"),
        [
            ("swan", "none of 2 responses is right: 2 wrong", "name another --scorer"),
            (
                "...",
                "none of 2 responses is right: 2 without an answer",
                "Explain in the question how to answer",
            ),
        ],
    )
    def test_reports_counts_and_the_first_example(self, path, tmp_path, capsys, response, said, remedy):
        model = ["--model=dcsft_stub", f"--model-args=default={response}", "--scorer=exact_word"]
        rollouts, labels = tmp_path / "rollouts", tmp_path / "labels"
        assert main(["sample", *model, f"--data={path}", "--samples=2", f"--output={rollouts}"]) == 0
        shown = capsys.readouterr().err
        assert said in shown and remedy in shown
        assert f"gold 'goose', response '{response}'" in shown
        assert main(["label", str(rollouts), f"--output={labels}"]) == 0
        capsys.readouterr()
        assert main(["curate", str(labels), "--keep=easy,medium", f"--output={tmp_path / 'set'}"]) == 1
        shown = capsys.readouterr().err
        assert "0 easy, 0 medium, 1 hard" in shown and said in shown and remedy in shown

    def test_counts_truncated_responses(self):
        row = {
            "score": 0.0,
            "extracted": None,
            "finish_reason": "length",
            "answer": "a",
            "response": "Let me",
        }
        problem, remedy = rollout_store.advice(rollout_store.unsolved([row, row]))
        assert "2 ran out of tokens" in problem
        assert remedy == "Raise --max-new-tokens"

    @pytest.mark.parametrize(("score", "right"), [(0.0, False), (0.3, False), (0.5, True), (1.0, True)])
    def test_counts_the_responses_that_labels_call_wrong(self, score, right):
        row = {"score": score, "extracted": "b", "finish_reason": "stop", "answer": "a", "response": "b"}
        found = rollout_store.unsolved([row])
        assert (found is None) == right
        assert right or found["wrong"] == 1

    def test_a_run_with_a_right_response_reports_nothing(self, path, tmp_path):
        notes = stages.STAGES["sample"](tmp_path / "out", samples=1, **STUB, data=path)
        assert "unsolved" not in notes and stages.STAGES["sample"].remarks(notes) == []


class TestInspect:
    def test_shows_images_prompt_tokens_target_and_verdict(self, folder, capsys):
        path = folder / "inspected.jsonl"
        said = {"role": "assistant", "content": "It is a large bird that I do not know."}
        talk = {"messages": [*TALK[:2], said], "answer": "goose", "image": "1.jpg"}
        path.write_text(lines([talk, {"problem": "lost", "solution": "a", "image": "9.png"}]))
        given = ["data", "inspect", str(path), "--scorer=exact_word", "--model=digits"]
        assert main([*given, "--on-error=skip"]) == 0
        shown, remarks = capsys.readouterr()
        assert "image 1: JPEG, 48 x 32 pixels, mode RGB, orientation 6, shown as 32 x 48 RGB" in shown
        assert "<|im_start|>system\n    | Answer in one word." in shown
        assert "<|vision_start|><|image_pad|><|vision_end|>Is it a bird?" in shown
        tokens, of_pictures = map(
            int, re.findall(r"prompt: (\d+) tokens, (\d+) of them for images", shown)[0]
        )
        assert 0 < of_pictures < tokens
        assert "the target as a response: wrong, score 0" in shown
        assert "1 row cannot be used:\n  line 2: image " in shown
        assert "2 rows, 1 of which cannot be used" in remarks
        assert "does not accept the row's own target in line 1" in remarks

    @pytest.mark.parametrize("more", [[], ["--output=OUT"]])
    def test_unusable_rows_are_an_error_unless_skipped(self, folder, tmp_path, capsys, more):
        path = folder / "partly.jsonl"
        path.write_text(lines([{"problem": "Which bird?", "solution": "goose"}, {"problem": "no answer"}]))
        given = ["data", "inspect", str(path), *(one.replace("OUT", str(tmp_path / "out")) for one in more)]
        for _ in range(2):  # the same command fails again
            assert main(given) == 1
            assert (
                "1 of 2 rows cannot be used. Correct them, or pass --on-error skip" in capsys.readouterr().err
            )
        assert main([*given[:3], "--on-error=skip"]) == 0
        assert "2 rows, 1 of which cannot be used" in capsys.readouterr().err

    def test_without_a_model_shows_only_the_rows(self, folder, tmp_path):
        path = FORMATS["saved"](tmp_path, folder)
        notes = stages.STAGES["data inspect"](tmp_path / "out", data=path, rows=2)
        assert [row["row"] for row in notes["rows"]] == ["row 1", "row 2"]
        assert notes["rows"][0]["turns"] == [{"role": "user", "content": "<image>Which bird?"}]
        assert "prompt" not in notes["rows"][0] and notes["count"] == 4
        assert json.loads((tmp_path / "out" / "rows.json").read_text())["rows"] == notes["rows"]


def said_in_turns(*texts):
    """Turns that start with the assistant."""
    return [{"role": ("assistant", "user")[number % 2], "content": text} for number, text in enumerate(texts)]


def asked_in_turns(asked, *texts):
    return [{"role": "user", "content": asked}, *said_in_turns(*texts)]


BIRD_ROW = {"question": "Which bird?", "answer": "goose"}
DEFECTS = {
    # Without its image, the question would be another one.
    "another case": ({**BIRD_ROW, "Image": "0.png"}, "`Image` is not read. Rename it to `image`"),
    "a list in another case": (
        {**BIRD_ROW, "Images": ["0.png"]},
        "`Images` is not read. Rename it to `images`",
    ),
    "spaces around a name": ({**BIRD_ROW, " image ": "0.png"}, "` image ` is not read. Rename it to `image`"),
    "questions in another case": (
        {"Question": "Which?", "Answer": "goose"},
        "`Question` and `Answer` are not read. Rename them to `question` and `answer`",
    ),
    "another name": (
        {**BIRD_ROW, "img": "0.png"},
        "`img` contains an image but is not read. Rename it to `image`",
    ),
    "a path": ({**BIRD_ROW, "image_path": "x/0.JPG"}, "`image_path` contains an image but is not read"),
    "a list of paths": (
        {**BIRD_ROW, "shots": ["0.png", "1.jpg"]},
        "`shots` contains an image but is not read",
    ),
    "a mapping": ({**BIRD_ROW, "photo": {"path": "0.png"}}, "`photo` contains an image but is not read"),
    "a data URL": (
        {**BIRD_ROW, "photo": "data:image/png;base64,AAAA"},
        "`photo` contains an image but is not read",
    ),
    "base64": (
        {**BIRD_ROW, "photo": "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQ"},
        "`photo` contains an image but is not read",
    ),
    "a list that starts with null": (
        {**BIRD_ROW, "shots": [None, "0.png"]},
        "`shots` contains an image but is not read",
    ),
    "base64 as a path": (
        {**BIRD_ROW, "image": "iVBORw0KGgoAAAANSUhEUgAAADwAAABQCAIAAADKqIEE"},
        "is base64, but is read as a path. Write data:image/png;base64, before it",
    ),
    "null next to another value": (
        {**BIRD_ROW, "image": None, "file": "0.png"},
        "`file` contains an image but is not read",
    ),
    "a video": ({**BIRD_ROW, "video": "a.mp4"}, "`video` is not shown to a model"),
    "a video next to an image": (
        {**BIRD_ROW, "image": "0.png", "videos": ["a"]},
        "`videos` is not shown to a model",
    ),
    "an empty path": ({**BIRD_ROW, "image": ""}, "image '': its path is empty"),
    # Placeholders of ms-swift would be learned as words.
    "a name placeholder": ({**BIRD_ROW, "question": "Find <ref-object>."}, "'<ref-object>' refers to"),
    "a box placeholder": ({**BIRD_ROW, "answer": "<bbox>"}, "'<bbox>' refers to an entry"),
    **{
        f"objects: {name}": ({**BIRD_ROW, "image": "0.png", "answer": "<bbox>", "objects": objects}, said)
        for name, objects, said in (
            ("a list", [1], "`objects` is list, not a mapping"),
            ("no boxes", {"ref": ["a"]}, "<ref-object> appears 0 times, but `objects` has 1 values for ref"),
            (
                "one box too many",
                {"bbox": [[1, 2, 3, 4]] * 2},
                "<bbox> appears 1 times, but `objects` has 2 values",
            ),
            (
                "a flat box",
                {"bbox": [1, 2, 3, 4]},
                "`objects` has the box 1. Write [x1, y1, x2, y2], or [x, y]",
            ),
            ("three numbers", {"bbox": [[1, 2, 3]]}, "`objects` has the box [1, 2, 3]"),
            ("texts", {"bbox": [["1", "2", "3", "4"]]}, "`objects` has the box ['1', '2', '3', '4']"),
            (
                "a number as name",
                {"ref": [1], "bbox": [[1, 2, 3, 4]]},
                "`objects` has a name that is not text",
            ),
            ("another kind", {"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1000"}, "the bbox_type 'norm1000'"),
            (
                "no such image",
                {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [1]},
                "`objects` has the image_id [1]: boxes 1, images 1",
            ),
            (
                "an image by a fraction",
                {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [0.5]},
                "`objects` has the image_id [0.5]: boxes 1, images 1. Write the image of each box as a",
            ),
            (
                "an image by a truth",
                {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [False]},
                "`objects` has the image_id [False]",
            ),
            (
                "more image numbers than boxes",
                {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1", "image_id": [0, 0]},
                "`objects` has the image_id [0, 0]: boxes 1, images 1",
            ),
            (
                "pixels as fractions",
                {"bbox": [[1, 2, 30, 40]], "bbox_type": "norm1"},
                "`objects` has the box [1, 2, 30, 40] as norm1, which is from 0 to 1",
            ),
            (
                "a negative fraction",
                {"bbox": [[-0.1, 0.5]], "bbox_type": "norm1"},
                "`objects` has the box [-0.1, 0.5] as norm1, which is from 0 to 1",
            ),
        )
    },
    "objects: a placeholder in a solution next to an answer": (
        {
            "messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "<bbox>"}],
            "solution": "<bbox>",
            "image": "0.png",
            "objects": {"bbox": [[1, 2, 3, 4]]},
        },
        "'<bbox>' refers to an entry of ms-swift's `objects`, which only questions and answers may use",
    ),
    # Markers of other programs would be read as words, and their places lost.
    "a marker in another case": (
        {**BIRD_ROW, "question": "<Image>a?", "image": "0.png"},
        "'<Image>' is not an image placeholder",
    ),
    "a numbered marker": (
        {**BIRD_ROW, "question": "<image 1> a?", "image": "0.png"},
        "'<image 1>' is not an image placeholder",
    ),
    "another program's marker": (
        {**BIRD_ROW, "question": "<img>a?", "image": "0.png"},
        "'<img>' is not an image placeholder",
    ),
    # One of two different values would be chosen silently.
    "two questions": ({**BIRD_ROW, "problem": "Which?"}, "`problem` and `question` differ. Keep one of them"),
    "two answers": ({**BIRD_ROW, "solution": "a goose"}, "`solution` and `answer` differ"),
    # Golds that no response can match.
    "a missing value of pandas": ({**BIRD_ROW, "answer": "nan"}, "the answer is 'nan', a missing value"),
    "an empty list": ({**BIRD_ROW, "answer": []}, "the answer is empty"),
    "a turn without a role": (
        {"conversations": [{"From": "human", "Value": "a?"}, {"From": "gpt", "Value": "b"}]},
        "`conversations` has a turn without a role: it has From, Value",
    ),
    # Without them, the turn would mean something else.
    **{
        f"a turn with {part}": (
            {
                "messages": [
                    {"role": "user", "content": "a?"},
                    {"role": "assistant", "content": "b", part: value},
                ]
            },
            f"`messages`: a turn has `{part}`, which is not read. Write it into the turn's content",
        )
        for part, value in (
            ("tool_calls", [{"type": "function", "function": {"name": "zoom", "arguments": "{}"}}]),
            ("reasoning_content", "It has a long neck."),
            ("images", ["0.png"]),
        )
    },
    "a turn without content": (
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": None}]},
        "`messages`: a turn of the assistant has no text: its content is empty",
    ),
    "messages as text": ({"messages": "hello", "answer": "a"}, "`messages` is str, not a list of turns"),
    # The last turn answers another question than the row's.
    "several turns as completion": (
        {"prompt": [{"role": "user", "content": "a?"}], "completion": said_in_turns("a", "b?", "b")},
        "`completion` has 3 turns, of which only the last would be trained on. Put those before",
    ),
    "several turns as completion in a cell": (
        {"prompt": "a?", "completion": json.dumps(said_in_turns("a", "b?", "b"))},
        "`completion` has 3 turns",
    ),
    "several turns as chosen": (
        {"prompt": "a?", "chosen": said_in_turns("a", "b?", "b"), "rejected": "c"},
        "`chosen` begins with other turns or images than the question",
    ),
    "another question in chosen": (
        {"prompt": "a?", "chosen": asked_in_turns("b?", "b"), "rejected": "c"},
        "`chosen` begins with other turns",
    ),
    "several turns as rejected": (
        {"prompt": "a?", "chosen": "b", "rejected": said_in_turns("a", "b?", "b")},
        "`rejected` begins with other turns",
    ),
    "another question in rejected": (
        {"chosen": asked_in_turns("a?", "b"), "rejected": asked_in_turns("b?", "c")},
        "`rejected` begins with other turns",
    ),
    "several turns as rejected_response": (
        {"messages": asked_in_turns("a?", "b"), "rejected_response": said_in_turns("a", "b?", "b")},
        "`rejected_response` begins with other turns",
    ),
    "an image only in chosen": (
        {
            "prompt": "a?",
            "chosen": asked_in_turns([{"type": "image", "image": "0.png"}, {"text": "a?"}], "b"),
            "rejected": "c",
        },
        "`chosen` begins with other turns or images",
    ),
}


class TestCommonDefects:
    """Rows as users have them: read as intended, or refused by row with a remedy."""

    @pytest.mark.parametrize("kind", DEFECTS)
    @pytest.mark.parametrize("scorer", ["exact_word", None])
    def test_silent_losses_are_refused(self, folder, kind, scorer):
        row, said = DEFECTS[kind]
        path = folder / "defect.jsonl"
        path.write_text(lines([row]))
        [(where, made, reason)] = own_data.examined(path, judge(scorer), own_data.Root(folder))
        assert where == "line 1" and reason is not None
        assert re.search(said.replace("(", r"\(").replace("[", r"\["), str(reason)), str(reason)

    @pytest.mark.parametrize(
        ("column", "said"),
        [
            ("Image", "`Image` is not read. Rename it to `image`"),
            ("img", "`img` contains an image but is not read"),
            ("image_0", "`image_0` contains an image but is not read"),
        ],
    )
    @pytest.mark.parametrize("kind", ["bytes", "struct", "path", "memory"])
    def test_images_in_other_columns_of_tables(self, folder, tmp_path, column, said, kind):
        content = (folder / "0.png").read_bytes()
        cell = {"bytes": content, "struct": {"bytes": content, "path": None}}.get(kind, "0.png")
        table = pa.table({"question": ["a?"], "answer": ["b"], column: [cell]})
        path = tmp_path / "data.parquet"
        pq.write_table(table, path)
        if kind == "memory":
            path, _ = own_files.keep(Dataset(table))
        [(_, _, reason)] = own_data.examined(path, own_data.ANY, own_data.Root(folder))
        assert said in str(reason)

    @pytest.mark.parametrize(
        "cells",
        [
            pa.array(["0.png"]),
            pa.array(["0.png"]).dictionary_encode(),
            pa.array(["0.png"], pa.string_view()),
            pa.array([["0.png"]], pa.list_(pa.string(), 1)),
            pa.array([[None, "0.png"]]),
            pa.array(["iVBORw0KGgoAAAANSUhEUgAAADwAAABQCAIAAADKqIEE"]),
            pa.array([{"base64": "iVBORw0KGgoAAAANSUhEUgAAADwAAABQCAIAAADKqIEE"}]),
            pa.array([b"GIF89a"], pa.binary_view()),
        ],
        ids=lambda cells: str(cells.type),
    )
    def test_images_in_table_columns_of_any_name_and_type(self, folder, cells):
        table = pa.table({"question": ["a?"], "answer": ["b"], "media": cells})
        pq.write_table(table, folder / "data.parquet")
        [(_, _, reason)] = own_data.examined(folder / "data.parquet", own_data.ANY, own_data.Root(folder))
        assert "`media` contains an image but is not read" in str(reason)

    @pytest.mark.parametrize(
        ("given", "found"),
        [
            ({"choices": [], "options": ["one", "two"]}, ["one", "two"]),
            ({"choices": ["one", "two"], "options": '["one", "two"]'}, ["one", "two"]),
            ({"choices": '{"A": "one", "B": "two"}'}, ["one", "two"]),
            ({"choices": ["one", "two"], "options": ["two", "one"]}, "`choices` and `options` differ"),
        ],
    )
    def test_options_in_two_columns(self, folder, given, found):
        path = folder / "options.jsonl"
        path.write_text(lines([{"question": "one or two?", "answer": "B", **given}]))
        [(_, made, reason)] = own_data.examined(path, judge("choice"), own_data.Root(folder))
        assert found in str(reason) if made is None else found == made["choices"]

    @pytest.mark.parametrize(
        ("row", "gold", "target"),
        [
            ({"prompt": "a?", "completion": "It is a goose.", "answer": "goose"}, "goose", "It is a goose."),
            ({"prompt": "a?", "answer": "4", "solution": "4"}, "4", "4"),
        ],
    )
    def test_a_gold_next_to_a_completion(self, folder, row, gold, target):
        path = folder / "beside.jsonl"
        path.write_text(lines([row]))
        [(_, made, reason)] = own_data.examined(path, judge("exact_word"), own_data.Root(folder))
        assert reason is None and (json.loads(made["answer"]), made["target"]) == (gold, target)

    @pytest.mark.parametrize(
        ("answers", "golds", "target"),
        [
            (["goose", "a goose"], ["goose", "a goose"], "goose"),
            (["3", 3], ["3", "3"], "3"),
            ([3, 3.5], ["3", "3.5"], "3"),
            ([3.5], ["3.5"], "3.5"),
        ],
    )
    def test_the_first_of_several_golds_is_the_target(self, folder, answers, golds, target):
        path = folder / "several.jsonl"
        path.write_text(lines([{**BIRD_ROW, "answer": answers}]))
        [(_, made, _)] = own_data.examined(path, judge("open_answer"), own_data.Root(folder))
        assert (json.loads(made["answer"]), made["target"]) == (golds, target)

    @pytest.mark.parametrize(
        ("answer", "target"), [({"city": "Zürich"}, '{"city": "Zürich"}'), (["é", 1], '["é", 1]')]
    )
    def test_structured_answers_are_taught_literally(self, folder, answer, target):
        found, _, _ = own_rows.checked({**BIRD_ROW, "answer": answer}, None, own_rows.Root(folder))
        assert found["target"] == target

    def test_options_keyed_by_letter_become_a_list(self, folder):
        path = folder / "options.jsonl"
        asked = {"question": "A. one\nB. two", "answer": "B"}
        rows = [{**asked, "choices": given} for given in ({"A": "one", "B": "two"}, {"B": "two"}, "one,two")]
        path.write_text(lines(rows))
        first, *others = own_data.examined(path, judge("choice"), own_data.Root(folder))
        assert first[1]["choices"] == ["one", "two"]
        assert ["dict" in str(others[0][2]), "str, not a list" in str(others[1][2])] == [True, True]

    def test_boxes_as_fractions_of_the_image(self, folder):
        path = folder / "shares.jsonl"
        path.write_text(lines([{**BIRD_ROW, "answer": [0.1, 0.1, 0.5, 0.75], "image": "0.png"}]))
        [(_, _, reason)] = own_data.examined(path, judge("box_iou"), own_data.Root(folder))
        assert "lies within one pixel of its image of 40 x 30 pixels. Write x1, y1, x2, y2 in pixels" in str(
            reason
        )

    @pytest.mark.parametrize(
        ("values", "wanted"),
        [
            (pa.array([0.1, 2.0], pa.float32()), ["0.1", "2"]),
            (pa.array(np.array([0.1, 2.0], np.float16)), ["0.1", "2"]),
            (pa.array([10.1, 2.0], pa.float32()), ["10.1", "2"]),
            (pa.array([[0.1, 2.5]] * 2, pa.list_(pa.float32())), [[0.1, 2.5]] * 2),
            (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), ["1.50", "2.00"]),
            (pa.array([datetime.datetime(2020, 1, 1)] * 2), "the answer is datetime, which has no text form"),
            (pa.array([b"goose"] * 2), "the answer is bytes, which has no text form"),
            (pa.array([float("inf"), 1.5]), ["the answer is infinite or not a number", "1.5"]),
        ],
    )
    def test_types_of_tables(self, folder, tmp_path, values, wanted):
        pq.write_table(pa.table({"question": ["a?", "b?"], "answer": values}), tmp_path / "data.parquet")
        scorer = own_data.ANY if isinstance(wanted[0], list) else judge("exact_word")
        found = list(own_data.examined(tmp_path / "data.parquet", scorer, own_data.Root(folder)))
        for (_, made, reason), one in zip(
            found, [wanted] * 2 if isinstance(wanted, str) else wanted, strict=True
        ):
            if reason is not None:
                assert one in str(reason)
            else:
                assert json.loads(made["answer"]) == (one if isinstance(one, str) else json.dumps(one))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("question,answer,image\na?,b\n", "row 1: fewer cells than columns"),
            ("question,answer,answer\na?,b,c\n", "two columns `answer`"),
            ("question|answer\na?|b\n", "it has question|answer"),
            ("question,answer, image\na?,b,0.png\n", "` image` is not read. Rename it to `image`"),
        ],
    )
    def test_tables_of_text(self, folder, text, said):
        path = folder / "defect.csv"
        path.write_text(text)
        with pytest.raises(HarnessError, match=re.escape(said)):
            own_data.open_file(path, "exact_word", None)

    @pytest.mark.parametrize("end", ["csv", "tsv", "semicolons.csv"])
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            (
                'tall?,"5\nbird?,goose\nfish?,eel\n',
                "row 1: a cell and the rows after it cannot be read: unexp",
            ),
            ('tall?,5\nbird?,"a gray goo', "row 2: a cell and the rows after it cannot be read"),
            ('"Shop" sign?,yes\n', "row 1: a cell and the rows after it cannot be read"),
            (
                '"5 inch?,yes\nbird?,goose\n"6 inch?,no\n',
                "row 1: a cell and the rows after it cannot be read",
            ),
            ('say?,"he said \\"hi\\""\n', "row 1: a cell and the rows after it cannot be read"),
            ('tall?,5"\na 6" pipe?,"7"""\n', [("tall?", '5"'), ('a 6" pipe?', '7"')]),
            ('"two\nlines",a\n', [("two\nlines", "a")]),
        ],
    )
    def test_quotes_in_text_tables_must_be_closed(self, folder, end, text, wanted):
        path = folder / f"quotes.{end}"
        delimiter = {"tsv": "\t", "semicolons.csv": ";"}.get(end, ",")
        path.write_text(f"question,answer\n{text}".replace(",", delimiter))
        if isinstance(wanted, list):
            assert [tuple(row.values()) for _, row in own_files.rows(path)] == wanted
            return
        with pytest.raises(HarnessError, match=wanted) as error:
            own_data.open_file(path, "exact_word", None, skip=True)
        assert "Quote cells that contain quotes" in str(error.value)

    def test_a_header_with_an_open_quote(self, folder):
        (folder / "quotes.csv").write_text('"question,answer\na,b\n')
        with pytest.raises(
            HarnessError, match=r"quotes\.csv, its header: a cell and the rows after it cannot be read"
        ):
            list(own_files.rows(folder / "quotes.csv"))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.zip", b"PK\x03\x04", "is a ZIP archive"),
            ("a.xlsx", b"PK\x03\x04", "is a ZIP archive"),
            ("a.tar", b"0.png" + bytes(252) + b"ustar\x00", "is a tar archive"),
            ("a.tar.gz", b"0.png" + bytes(252) + b"ustar\x00", "is a tar archive"),
            ("a.jsonl.bz2", b"BZh91AY", "is compressed with bzip2"),
            ("a.jsonl.xz", b"\xfd7zXZ\x00", "is compressed with xz"),
            ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
            ("a.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
            ("a.pkl", b"\x80\x04\x95", "is a pickle"),
            (
                "a.jsonl",
                '{"question": "a?", "answer": "b"}'.encode("utf-16"),
                "is text in UTF-16. Save it as UTF-8",
            ),
            ("a.csv", "question,answer\na,b\n".encode("utf-16"), "is text in UTF-16. Save it as UTF-8"),
        ],
    )
    @pytest.mark.parametrize("skip", [False, True])
    def test_files_of_other_types_are_named_as_such(self, tmp_path, name, content, said, skip):
        rest = b"\n" + lines([BIRD_ROW]).encode() + b"\n"  # a stored archive holds its rows uncompressed
        rest = gzip.compress(content + rest) if name.endswith(".gz") else content + rest
        (tmp_path / name).write_bytes(rest)
        with pytest.raises(HarnessError, match=f"{re.escape(name)} {re.escape(said)}"):
            own_data.open_file(tmp_path / name, "exact_word", None, skip)

    def test_what_a_model_may_not_see_is_reported(self, folder, caplog, capsys):
        frames = [Pillow.new("RGB", (8, 8), color) for color in ("red", "blue")]
        frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
        path = folder / "seen.jsonl"
        row = {"question": "Which is it?", "answer": "A", "choices": ["one", "two"], "image": "moving.gif"}
        more = [{**row, "question": ask, "image": "0.png"} for ask in ("one or two?", "In one word?")]
        path.write_text(lines([row, *more]))
        own_data.open_file(path, "choice", None)
        said = " ".join(caplog.messages)
        assert "an image with several frames, of which the model sees only the first: line 1" in said
        assert "options that their question does not name: line 1, line 3" in said and "line 2" not in said
        assert main(["data", "inspect", str(path), "--scorer=choice"]) == 0
        shown = capsys.readouterr()
        assert "GIF, frame 1 of 2, 8 x 8 pixels" in shown.out
        assert "options that their question does not name: line 1, line 3" in shown.err


def judge(name):
    return own_data.ANY if name is None else get_scorer(name)


@pytest.mark.slow
class TestTraining:
    """Each method trains a step on own rows."""

    @pytest.fixture
    def path(self, folder):
        path = folder / "trained.jsonl"
        rows = [{**row, "rejected": "swan"} for row in plain("prompt", "completion", folder=folder)]
        path.write_text(lines([*rows, TALKS["messages"] | {"rejected_response": "swan"}, {"problem": "bad"}]))
        return path

    @pytest.mark.parametrize("method", ["sft", "cold-start", "dpo", "grpo"])
    def test_works_with_every_method(self, path, tmp_path, method, capsys):
        if method == "grpo":  # which takes rows that all have images, or none
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text(lines([row for row in rows if row.get("images") or "problem" in row]))
        more = ["--max-steps=1", "--batch-size=2", "--on-error=skip"]
        more += ["--scorer=exact_word", "--num-generations=2"] if method == "grpo" else []
        given = ["train", method, "--model=digits", f"--data={path}", *more]
        assert main([*given, f"--output={tmp_path / 'out'}"]) == 0, capsys.readouterr().err
        notes = manifest.read(tmp_path / "out").notes
        assert notes["skipped"]["count"] == 1


@pytest.mark.parametrize(
    "behind", ["\n", " \n\t", "]", '[{"question": "b?"}]', "\n\n{}", " " * (1 << 21) + "x"]
)
def test_anything_after_a_json_list_is_an_error(tmp_path, behind):
    path = tmp_path / "data.json"
    path.write_text('[\n{"question": "a?", "answer": "cat"}]' + behind)
    (_, row), *more = own_files.rows(path)
    assert row == {"question": "a?", "answer": "cat"}
    assert [str(one).startswith("not JSON (the list is followed by") for _, one in more] == [True] * bool(
        behind.strip()
    )
