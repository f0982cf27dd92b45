"""Suspects for a person to look at, and that person's verdicts: suspects.jsonl beside a curated set."""

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from textwrap import indent
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dcsft_harness import records
from dcsft_harness.artifacts import dataset_folder
from dcsft_harness.artifacts.reorder import AT_ONCE, PLACE, reordered
from dcsft_harness.curation.conversations import placed
from dcsft_harness.curation.suspects import samples_of
from dcsft_harness.errors import HarnessError, cut, visible_lines
from dcsft_harness.sampling import ITEMS, ROLLOUTS

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
    pages = [folder / SUSPECTS, folder / PAGE]
    with pages[0].open("w", encoding="utf-8") as file, pages[1].open("w", encoding="utf-8") as page:
        count = int(suspected.num_rows)
        page.write(_OPENING.format(shown=min(count, PICTURED), found=count))
        for number, line in enumerate(_lines(folder, rollouts, suspected), 1):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if number <= PICTURED:
                page.write(_entry(number, line))
    return max(0, count - PICTURED)


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
    parts += [f"{name}:\n\n{indent(visible_lines(text), '    ')}\n" for name, text in texts.items()]
    return "\n".join(parts)


def _lines(folder: Path, rollouts: Path, suspected: pa.Table) -> Iterator[dict[str, Any]]:
    """What is told of each suspect, in order; the first ones' pictures are written."""
    count, ids = suspected.num_rows, suspected["item_id"]
    if count == 0:
        return
    path = rollouts / ROLLOUTS
    size = _size(path, int(pc.sum(suspected["samples"]).as_py()))
    said = samples_of(path, ids.combine_chunks(), ["sample_index", "response"])
    # Equal counts and sizes: both come in the same stretches of suspects.
    described = reordered(_items(folder, rollouts / ITEMS, ids), count, size, folder / ".items")
    answered = reordered(dataset_folder.tables(said, AT_ONCE), count, size, folder / ".responses")
    done = 0
    for items, samples in zip(described, answered, strict=True):
        ordered = samples.sort_by([(PLACE, "ascending"), ("sample_index", "ascending")])
        texts = iter(ordered["response"].to_pylist())
        found = suspected.slice(done, items.num_rows).to_pylist()
        done += items.num_rows
        for item, suspect in zip(items.drop_columns(PLACE).to_pylist(), found, strict=True):
            gold = {"gold": item.pop("answer")}
            responses = list(islice(texts, suspect["samples"]))
            yield {**item, **gold, **suspect, "responses": responses, "verdict": None}


def _size(path: Path, wanted: int) -> int:
    """About how many bytes so many rows of the rollouts take with their items' texts."""
    with records.readable(path), pq.ParquetFile(path) as file:
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        whole = sum(int(one.total_uncompressed_size) for one in columns if one.path_in_schema == "response")
        return wanted * (whole // max(1, int(file.metadata.num_rows)) + 100)


def _items(folder: Path, items: Path, ids: pa.ChunkedArray) -> Iterator[pa.Table]:
    """The items with the names of their pictures' files, in the order of the rollouts; see `placed`."""
    images = dataset_folder.IMAGES
    for table in placed(items, ids, ["item_id", "doc_id", "task", "prompt", "answer", images]):
        files = dict(_pictures(folder, table.filter(pc.less(table[PLACE], PICTURED))))
        names = [files.get(key, []) for key in table["item_id"].to_pylist()]
        where = table.schema.get_field_index(images)
        yield table.set_column(where, images, pa.array(names, pa.list_(pa.string())))


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
        line = records.json_object(text)
    except ValueError as error:
        raise HarnessError(f"{where}: {error}", "Correct or remove the line") from error
    if not isinstance(line.get("item_id"), str):
        raise HarnessError(f"{where}: no item_id", "Write one JSON object a line, with item_id and verdict")
    verdict = line.get("verdict")
    if verdict is not None and verdict not in (KEEP, DROP):
        raise HarnessError(
            f"{where}: the verdict {cut(repr(verdict))} is neither {KEEP!r} nor {DROP!r}",
            "Leave it null where nothing is decided; mend a wrong answer in your data and sample again",
        )
    return line["item_id"], verdict
