"""Likely wrong labels: found among never-solved items, and reviewed by a person."""

import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import fsum
from pathlib import Path
from re import compile as pattern
from textwrap import indent
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcsft_harness import reading, records
from dcsft_harness.artifacts import storage
from dcsft_harness.artifacts.storage import AT_ONCE, PLACE, reordered, scan
from dcsft_harness.curation.conversations import placed
from dcsft_harness.data.digits import suite
from dcsft_harness.errors import HarnessError, cut, json_text, visible_lines
from dcsft_harness.sampling import ITEMS, ROLLOUTS
from dcsft_harness.scoring.boxes import iou

ANSWERED = 4
"""Samples with an answer that an item needs to be checked."""
OVERLAP = 0.5
"""Boxes with at least this IoU agree: the same threshold that makes a box right."""
COLUMNS = pa.schema(
    [("item_id", pa.string()), ("voice", pa.string()), ("share", pa.float64()), ("samples", pa.int64())]
)

_FLOAT = r"-?\d+\.\d+(?:e[+-]?\d+)?"
_BOX = pattern(rf"\[{', '.join([_FLOAT] * 4)}\]")
"""The spelling of floats in an extracted box, from `records.as_text`."""
_SAMPLES = pa.schema(
    [("score", pa.float64()), ("extracted", pa.string()), ("sample_index", pa.int64()), (PLACE, pa.int64())]
)
_ITEMS_AT_ONCE = 1 << 14


def find(hard: pa.Table, rollouts: Path, threshold: float) -> tuple[pa.Table, int]:
    """The suspects among never-solved items.

    An item is suspected if at least ANSWERED of its samples state an answer, and the share of all its samples
    that state the same one is at least the threshold. Samples without an answer or a score count against it.
    Only the extracted answers of these items are held in memory. `hard` are label rows of never-solved items,
    and the threshold is in (0.5, 1].

    Returns:
        A table with `COLUMNS`: voice, spelled as in the first sample with it, share of the samples in
        [threshold, 1], samples as a count; by falling share and then item_id. And the number of items with
        too few answers to be checked.

    Raises:
        HarnessError: the rollouts lack an item's samples, or no item has ANSWERED samples.
    """
    ids = hard["item_id"].combine_chunks()
    places: list[int] = []
    voices: list[str] = []
    shares: list[float] = []
    unjudged, counts = 0, np.zeros(0, np.int64)
    if len(ids):
        counts, answers = _answers(rollouts / ROLLOUTS, ids)
        most = int(counts.max())
        if most < ANSWERED:
            raise HarnessError(
                f"--suspect needs {ANSWERED} answers per item, but {rollouts} has {most} samples of each",
                f"Sample with --samples {ANSWERED} or more, or leave out --suspect",
            )
        for place, (samples, said) in enumerate(zip(counts.tolist(), answers, strict=True)):
            unjudged += len(said) < ANSWERED
            if len(said) >= ANSWERED:
                voice, times = one_voice(said)
                if times / samples >= threshold:
                    places.append(place)
                    voices.append(voice)
                    shares.append(times / samples)
    at = np.array(places, np.int64)
    found = pa.table([ids.take(pa.array(at)), voices, shares, counts[at]], schema=COLUMNS)
    return found.sort_by([("share", "descending"), ("item_id", "ascending")]), unjudged


def one_voice(answers: Sequence[str]) -> tuple[str, int]:
    """The most common answer, in its first spelling, and its count.

    Texts agree if they differ only in case and white space: extracted answers are already in their scorer's
    normal form. If all are boxes, the result is their medoid: the box with an IoU of at least OVERLAP with
    the most others; of several, the one with the largest sum of IoUs. A box without area agrees with none.
    The answers, at least one, are in the rollouts' format. The count is 0 if all are boxes without area.
    """
    if all(map(_BOX.fullmatch, answers)):
        return _medoid(answers)
    forms = [" ".join(answer.split()).casefold() for answer in answers]
    # Of several equally frequent ones, the smallest, so that the order of samples decides nothing.
    form, times = min(Counter(forms).items(), key=lambda pair: (-pair[1], pair[0]))
    return answers[forms.index(form)], times


def _medoid(answers: Sequence[str]) -> tuple[str, int]:
    boxes = [reading.from_json(answer) for answer in answers]
    best = (0, -1.0, "")
    for answer, box in sorted(zip(answers, boxes, strict=True)):
        overlaps = [iou(box, other) for other in boxes]
        agree, close = sum(overlap >= OVERLAP for overlap in overlaps), fsum(overlaps)
        if (agree, close) > best[:2]:
            best = (agree, close, answer)
    return best[2], best[0]


def _answers(path: Path, ids: pa.StringArray) -> tuple[NDArray[np.int64], Iterator[list[str]]]:
    """The number of samples of each item, at least 1, and the answers of its scored ones, in order."""
    rows = pa.Table.from_batches(samples_of(path, ids, ["score", "extracted", "sample_index"]), _SAMPLES)
    said = pc.if_else(pc.is_valid(rows["score"]), rows["extracted"], pa.scalar(None, pa.string()))
    counts = np.bincount(rows[PLACE].to_numpy(), minlength=len(ids))
    if not counts.all():
        missing = ids[int(np.argmin(counts))]
        raise HarnessError(f"{path} lacks item {missing}", "Labels and rollouts do not belong together")
    order = pc.sort_indices(rows, [(PLACE, "ascending"), ("sample_index", "ascending")])
    return counts, _split(said.take(order), counts)


def _split(said: pa.ChunkedArray, counts: NDArray[np.int64]) -> Iterator[list[str]]:
    """Groups consecutive rows by item into lists of answers; converts only one part to Python at a time."""
    start = 0
    for first in range(0, len(counts), _ITEMS_AT_ONCE):
        some = counts[first : first + _ITEMS_AT_ONCE].tolist()
        texts = iter(said.slice(start, sum(some)).to_pylist())
        for number in some:
            yield [answer for answer in islice(texts, number) if answer is not None]
        start += sum(some)


def samples_of(path: Path, ids: pa.StringArray, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rollouts of some items, read in chunks, see `storage.scan`.

    Yields:
        The columns, and PLACE: an item's position in `ids`, int64; in the table's order.
    """
    from pyarrow import acero

    place = pc.index_in(pc.field("item_id"), value_set=ids).cast(pa.int64())
    columns = [*map(pc.field, names), place]
    plan = [
        scan(path, records.Rollout, ["item_id", *names]),
        acero.Declaration("project", acero.ProjectNodeOptions(columns, [*names, PLACE])),
        acero.Declaration("filter", acero.FilterNodeOptions(pc.is_valid(pc.field(PLACE)))),
    ]
    with records.readable(path):
        yield from acero.Declaration.from_sequence(plan).to_reader(use_threads=False)


class Detection(TypedDict):
    """Items that are left out, against the wrong labels that a pool is known to have."""

    items: int  # the number left out
    found: int  # those of them whose label is wrong
    precision: float | None  # found / items; None if none is left out
    recall: float | None  # found / all wrong labels; None if the pool has none


def detection(left_out: Collection[str], wrong: Collection[str]) -> Detection:
    """How well leaving out some items, given by their ids, finds the known wrong labels of a pool."""
    items, bad = set(left_out), set(wrong)
    found = len(items & bad)
    return {
        "items": len(items),
        "found": found,
        "precision": found / len(items) if items else None,
        "recall": found / len(bad) if bad else None,
    }


def known_wrong(rollouts: Path, task: str | None) -> list[str] | None:
    """The ids of the pool's items whose labels are known to be wrong; None unless the pool lists them.

    Pools of the digits suite with label noise do, see `suite.replaced`.
    """
    if task is None or not (task.endswith(suite.NOISY) and task in suite.SETS):
        return None
    wrong = pa.array(sorted(suite.replaced(task)), pa.int64())
    found: list[str] = []
    for table in storage.read(rollouts / ITEMS, ["item_id", "doc_id"], AT_ONCE):
        found += table.filter(pc.is_in(table["doc_id"], value_set=wrong))["item_id"].to_pylist()
    return found


# Suspects for a person to review, and that person's verdicts: suspects.jsonl beside a curated set.

SUSPECTS, PAGE, PICTURES = "suspects.jsonl", "suspects.md", "suspects"
PICTURED = 1000
"""The number of suspects on the page, with images, those with the largest share first."""
KEEP, DROP = "keep", "drop"


def write_review(folder: Path, rollouts: Path, suspected: pa.Table) -> int:
    """Writes suspects.jsonl, one line per suspect, and a page with the first ones' images, suspects.md.

    A line has item_id, doc_id, task, prompt, gold (the answer that counted as right), voice, share, samples,
    responses (all of them, in order), images (files relative to the folder; empty after the first PICTURED
    suspects, whose images are in the rollouts' items) and verdict, which is null. A reviewer replaces it with
    "keep" or "drop", and `read_review` reads the file. Returns the number of suspects that are not on the
    page and have no images beside it.

    Raises:
        HarnessError: the rollouts' items lack one of them.
    """
    pages = [folder / SUSPECTS, folder / PAGE]
    with pages[0].open("w", encoding="utf-8") as file, pages[1].open("w", encoding="utf-8") as page:
        count = int(suspected.num_rows)
        page.write(_OPENING.format(shown=min(count, PICTURED), found=count))
        for number, line in enumerate(_lines(folder, rollouts, suspected), 1):
            file.write(json_text(line) + "\n")
            if number <= PICTURED:
                page.write(_entry(number, line))
    return max(0, count - PICTURED)


_OPENING = """# Suspects

{shown} of {found} items that were never solved and mostly got the same answer. Set their verdicts in
suspects.jsonl to "keep" or "drop", and pass that file to `dcsft curate --reviewed`.
"""


def _entry(number: int, line: dict[str, Any]) -> str:
    share = f"{line['share']:.0%} of {line['samples']} samples"
    texts = [("Prompt", line["prompt"]), ("Gold", line["gold"]), (f"Voice, {share}", line["voice"])]
    return page_entry(f"## {number}: document {line['doc_id']}, {line['item_id']}", line["images"], texts)


def page_entry(title: str, images: Iterable[str], texts: Iterable[tuple[str, str]]) -> str:
    """An item on a page of Markdown; texts are indented, so that none is read as markup."""
    parts = [f"\n{title}\n", *(f"![{name}]({name})\n" for name in images)]
    parts += [f"{name}:\n\n{indent(visible_lines(text), '    ')}\n" for name, text in texts]
    return "\n".join(parts)


def _lines(folder: Path, rollouts: Path, suspected: pa.Table) -> Iterator[dict[str, Any]]:
    """The record of each suspect, in order; writes the first ones' images."""
    count, ids = suspected.num_rows, suspected["item_id"]
    if count == 0:
        return
    path = rollouts / ROLLOUTS
    size = _size(path, int(pc.sum(suspected["samples"]).as_py()))
    said = samples_of(path, ids.combine_chunks(), ["sample_index", "response"])
    # Equal counts and sizes: both come in the same batches of suspects.
    described = reordered(_items(folder, rollouts / ITEMS, ids), count, size, folder / ".items")
    answered = reordered(storage.tables(said, AT_ONCE), count, size, folder / ".responses")
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
    """The approximate bytes of this number of rollout rows with their items' texts."""
    with records.readable(path), pq.ParquetFile(path) as file:
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        whole = sum(int(one.total_uncompressed_size) for one in columns if one.path_in_schema == "response")
        return wanted * (whole // max(1, int(file.metadata.num_rows)) + 100)


def _items(folder: Path, items: Path, ids: pa.ChunkedArray) -> Iterator[pa.Table]:
    """The items with the names of their image files, in the order of the rollouts; see `placed`."""
    images = storage.IMAGES
    for table in placed(items, ids, ["item_id", "doc_id", "task", "prompt", "answer", images]):
        files = dict(_pictures(folder, table.filter(pc.less(table[PLACE], PICTURED))))
        names = [files.get(key, []) for key in table["item_id"].to_pylist()]
        where = table.schema.get_field_index(images)
        yield table.set_column(where, images, pa.array(names, pa.list_(pa.string())))


def _pictures(folder: Path, rows: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Writes the stored images of items; yields item_id and the files' names."""
    for row in storage.embedded(rows).to_pylist():
        yield row["item_id"], write_pictures(folder, PICTURES, row["item_id"], row[storage.IMAGES])


def write_pictures(folder: Path, within: str, item_id: str, images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes an item's stored images, all of them or none, and returns the files' names in the folder."""
    from PIL import Image

    names = []
    for number, image in enumerate(images):
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            kind = str(opened.format).lower()
        names.append(f"{within}/{item_id}{f'-{number}' if number else ''}.{kind}")
    for name, image in zip(names, images, strict=True):
        (folder / within).mkdir(exist_ok=True)
        (folder / name).write_bytes(image["bytes"])
    return names


def read_review(path: Path, known: pa.ChunkedArray) -> dict[str, str]:
    """A reviewer's verdicts by item_id: "keep" or "drop"; lines with an empty verdict are skipped.

    Other keys of the JSONL's lines than item_id and verdict are ignored. `known` are the ids of the labels.

    Raises:
        HarnessError: the file is missing or malformed, has another verdict, an item twice, or one that is not
            in the labels; names the line.
    """
    if not path.is_file():
        raise HarnessError(f"--reviewed {path} does not exist", "Pass a suspects.jsonl with verdicts")
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
            "Review the suspects of these labels; an item whose answer was corrected has another id",
        )
    return found


def _verdict(where: str, text: bytes) -> tuple[str, str | None]:
    try:
        line = reading.json_object(text)
    except ValueError as error:
        raise HarnessError(f"{where}: {error}", "Correct or remove the line") from error
    if not isinstance(line.get("item_id"), str):
        raise HarnessError(f"{where}: no item_id", "Write one JSON object per line, with item_id and verdict")
    verdict = line.get("verdict")
    if verdict is not None and verdict not in (KEEP, DROP):
        raise HarnessError(
            f"{where}: the verdict {cut(repr(verdict))} is neither {KEEP!r} nor {DROP!r}",
            "Leave it null if undecided; correct a wrong answer in your data and sample again",
        )
    return line["item_id"], verdict
