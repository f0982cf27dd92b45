"""Suspects for a person to look at, and that person's verdicts: suspects.jsonl beside a curated set."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dcsft_harness import dataset_folder
from dcsft_harness.errors import HarnessError
from dcsft_harness.reorder import AT_ONCE
from dcsft_harness.sampling import ITEMS, ROLLOUTS
from dcsft_harness.suspects import samples_of

SUSPECTS, PAGE, PICTURES = "suspects.jsonl", "suspects.md", "suspects"
PICTURED = 1000
"""Suspects that get a place on the page and their pictures beside it, those of the largest share first."""
KEEP, DROP = "keep", "drop"


def write(folder: Path, rollouts: Path, suspected: pa.Table) -> int:
    """Writes suspects.jsonl, one line a suspect; and of the first ones a page with pictures, suspects.md.

    A line has item_id, doc_id, task, prompt, gold (the answer that counted as right), voice, share,
    samples, responses (all of them, in order), images (files relative to the folder; empty after the first
    PICTURED suspects, whose pictures are in the rollouts' items) and verdict, which is null: a reviewer
    writes "keep" or "drop" there, and `read` takes the file.

    Args:
        folder: the curated set's.
        rollouts: what the suspects were found in.
        suspected: as `suspects.find` gives them.

    Returns:
        How many suspects came too late for the page, and so have no pictures beside it.

    Raises:
        HarnessError: the rollouts' items lack one of them.
    """
    ids = suspected["item_id"].combine_chunks()
    items = {item["item_id"]: item for item in _items(folder, rollouts / ITEMS, ids)}
    said = samples_of(rollouts / ROLLOUTS, ids, ["sample_index", "response"])
    said = said.take(pc.sort_indices(said, [("place", "ascending"), ("sample_index", "ascending")]))
    responses: dict[int, list[str]] = {}
    for place, response in zip(said["place"].to_pylist(), said["response"].to_pylist(), strict=True):
        responses.setdefault(place, []).append(response)
    with (
        (folder / SUSPECTS).open("w", encoding="utf-8") as file,
        (folder / PAGE).open("w", encoding="utf-8") as page,
    ):
        page.write(_OPENING.format(shown=min(len(ids), PICTURED), found=len(ids)))
        for place, suspect in enumerate(suspected.to_pylist()):
            if suspect["item_id"] not in items:
                raise HarnessError(
                    f"{rollouts / ITEMS} lacks item {suspect['item_id']}",
                    "Labels and rollouts do not belong together",
                )
            line = {**items[suspect["item_id"]], **suspect, "responses": responses[place], "verdict": None}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if place < PICTURED:
                page.write(_entry(place + 1, line))
    return max(0, len(ids) - PICTURED)


_OPENING = """# Suspects

{shown} of {found} items that were never solved and mostly answered alike. Write "keep" or "drop" as their
verdicts into suspects.jsonl, and give that file to `dcsft curate --reviewed`.
"""


def _entry(number: int, line: dict[str, Any]) -> str:
    """A suspect's place on the page; texts are indented, so that nothing in them is taken for Markdown."""
    share = f"{line['share']:.0%} of {line['samples']} samples"
    texts = {"Prompt": line["prompt"], "Gold": line["gold"], f"Voice, {share}": line["voice"]}
    parts = [f"\n## {number}: document {line['doc_id']}, {line['item_id']}\n"]
    parts += [f"![{name}]({name})\n" for name in line["images"]]
    parts += [f"{name}:\n\n{indent(text, '    ')}\n" for name, text in texts.items()]
    return "\n".join(parts)


def _items(folder: Path, items: Path, ids: pa.StringArray) -> Iterator[dict[str, Any]]:
    """What a line says of each item, in the order of the rollouts; the first ones' pictures are written."""
    names = ["item_id", "doc_id", "task", "prompt", "answer", dataset_folder.IMAGES]
    for table in dataset_folder.read(items, names, AT_ONCE) if len(ids) else ():
        place = pc.index_in(table["item_id"], value_set=ids)
        rows = table.append_column("place", place).filter(pc.is_valid(place))
        pictured = rows.filter(pc.less(rows["place"], PICTURED))
        files = dict(_pictures(folder, pictured))
        for item in rows.drop_columns([dataset_folder.IMAGES, "place"]).to_pylist():
            item["gold"] = item.pop("answer")
            yield {**item, "images": files.get(item["item_id"], [])}


def _pictures(folder: Path, rows: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Writes the pictures of items as they are stored; gives item_id and the files' names."""
    from PIL import Image

    for row in dataset_folder.embedded(rows).to_pylist():
        names = []
        for number, image in enumerate(row[dataset_folder.IMAGES]):
            with Image.open(io.BytesIO(image["bytes"])) as opened:
                kind = str(opened.format).lower()
            names.append(f"{PICTURES}/{row['item_id']}{f'-{number}' if number else ''}.{kind}")
            (folder / PICTURES).mkdir(exist_ok=True)
            (folder / names[-1]).write_bytes(image["bytes"])
        yield row["item_id"], names


def read(path: Path, known: pa.ChunkedArray) -> dict[str, str]:
    """A reviewer's verdicts by item_id: "keep" or "drop"; lines whose verdict is empty give none.

    Args:
        path: JSONL whose lines have item_id and verdict; other keys are not looked at.
        known: the ids of the labels.

    Raises:
        HarnessError: the file is missing or malformed, has another verdict, an item twice, or one that
            is not in the labels; names the line.
    """
    if not path.is_file():
        raise HarnessError(f"--reviewed {path} does not exist", "Give a suspects.jsonl with verdicts")
    lines: dict[str, int] = {}
    found: dict[str, str] = {}
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                where = f"--reviewed {path}, line {number}"
                item_id, verdict = _verdict(where, text)
                if item_id in lines:
                    raise HarnessError(
                        f"{where}: item {item_id} is in line {lines[item_id]} already", "Remove one of them"
                    )
                lines[item_id] = number
                if verdict is not None:
                    found[item_id] = verdict
    ids = pa.array(list(lines), pa.string())
    strange = ids.filter(pc.invert(pc.is_in(ids, value_set=known.combine_chunks())))
    if len(strange):
        item_id = strange[0].as_py()
        raise HarnessError(
            f"--reviewed {path}, line {lines[item_id]}: item {item_id} is not in the labels",
            "Review the suspects of these labels; an item whose answer was mended has another id",
        )
    return found


def _verdict(where: str, text: bytes) -> tuple[str, str | None]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise HarnessError(f"{where}: not JSON ({error})", "Mend or remove the line") from error
    if not isinstance(line, dict) or not isinstance(line.get("item_id"), str):
        raise HarnessError(f"{where}: no item_id", "Write one JSON object a line, with item_id and verdict")
    verdict = line.get("verdict")
    if verdict is not None and verdict not in (KEEP, DROP):
        raise HarnessError(
            f"{where}: the verdict {verdict!r} is neither {KEEP!r} nor {DROP!r}",
            "Leave it null where nothing is decided; mend a wrong answer in your data and sample again",
        )
    return line["item_id"], verdict
