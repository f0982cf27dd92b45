"""Items that were never solved and confidently answered otherwise, in one voice: likely wrong labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from json import loads
from math import fsum
from pathlib import Path
from re import compile as pattern

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import records
from dcsft_harness.artifacts.reorder import PLACE
from dcsft_harness.artifacts.scanning import scan
from dcsft_harness.errors import HarnessError
from dcsft_harness.sampling import ROLLOUTS
from dcsft_harness.scoring.boxes import iou

ANSWERED = 4
"""Samples with an answer that an item needs before it can be suspected."""
OVERLAP = 0.5
"""Boxes with this IoU are one voice: what makes a box right makes two of them the same."""
COLUMNS = pa.schema(
    [("item_id", pa.string()), ("voice", pa.string()), ("share", pa.float64()), ("samples", pa.int64())]
)

_FLOAT = r"-?\d+\.\d+(?:e[+-]?\d+)?"
_BOX = pattern(rf"\[{', '.join([_FLOAT] * 4)}\]")
"""How `records.as_text` spells the floats of an extracted box."""
_SAMPLES = pa.schema(
    [
        ("score", pa.float64()),
        ("extracted", pa.string()),
        ("sample_index", pa.int64()),
        (PLACE, pa.int64()),
    ]
)
_ITEMS_AT_ONCE = 1 << 14


def find(hard: pa.Table, rollouts: Path, threshold: float) -> tuple[pa.Table, int]:
    """The suspects among never-solved items.

    An item is suspected if at least ANSWERED of its samples state an answer, and the share of its samples
    that state the same one is at least the threshold. Samples without an answer, or without a score,
    count against. Memory holds the extracted answers of these items alone.

    Args:
        hard: label rows of items that were never solved.
        rollouts: the folder that they were made of.
        threshold: a share, in (0.5, 1].

    Returns:
        A table with `COLUMNS`: voice as the first sample that has it spells it, share of the samples in
        [threshold, 1], samples as a count; by falling share and then item_id. And how many items could
        not be judged, for too few answers.

    Raises:
        HarnessError: the rollouts lack an item's samples, or no item has ANSWERED samples at all.
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
                f"--suspect needs {ANSWERED} answers of an item, and {rollouts} has {most} samples of each",
                f"Sample with --samples {ANSWERED} or more, or leave out --suspect",
            )
        for place, (samples, said) in enumerate(zip(counts.tolist(), answers, strict=True)):
            unjudged += len(said) < ANSWERED
            if len(said) >= max(ANSWERED, threshold * samples):
                voice, times = one_voice(said)
                if times / samples >= threshold:
                    places.append(place)
                    voices.append(voice)
                    shares.append(times / samples)
    at = np.array(places, np.int64)
    found = pa.table([ids.take(pa.array(at)), voices, shares, counts[at]], schema=COLUMNS)
    return found.sort_by([("share", "descending"), ("item_id", "ascending")]), unjudged


def one_voice(answers: Sequence[str]) -> tuple[str, int]:
    """The answer that most agree with, as the first of them spells it, and how many do.

    Texts agree if they differ in case and white space alone: extracted answers are in their scorer's own
    normal form already. Where all are boxes, the voice is their medoid: the box that most have an IoU of
    at least OVERLAP with, of several the one with the largest sum of IoUs. A box without area agrees with
    none.

    Args:
        answers: extracted answers as rollouts hold them, at least one.

    Returns:
        The answer, and a count from 1 to their number; 0 where every one is a box without area.
    """
    if all(map(_BOX.fullmatch, answers)):
        return _medoid(answers)
    forms = [" ".join(answer.split()).casefold() for answer in answers]
    # Of several that are equally frequent the least, so that the order of samples decides nothing.
    form, times = min(Counter(forms).items(), key=lambda pair: (-pair[1], pair[0]))
    return answers[forms.index(form)], times


def _medoid(answers: Sequence[str]) -> tuple[str, int]:
    boxes = [loads(answer) for answer in answers]
    best = (0, -1.0, "")
    for answer, box in sorted(zip(answers, boxes, strict=True)):
        overlaps = [iou(box, other) for other in boxes]
        agree, close = sum(overlap >= OVERLAP for overlap in overlaps), fsum(overlaps)
        if (agree, close) > best[:2]:
            best = (agree, close, answer)
    return best[2], best[0]


def _answers(path: Path, ids: pa.StringArray) -> tuple[NDArray[np.int64], Iterator[list[str]]]:
    """How many samples each item has, and the answers that its scored samples state, in their order.

    Raises:
        HarnessError: one has no samples, or the file is damaged.
    """
    rows = pa.Table.from_batches(samples_of(path, ids, ["score", "extracted", "sample_index"]), _SAMPLES)
    said = pc.if_else(pc.is_valid(rows["score"]), rows["extracted"], pa.scalar(None, pa.string()))
    counts = np.bincount(rows[PLACE].to_numpy(), minlength=len(ids))
    if not counts.all():
        missing = ids[int(np.argmin(counts))]
        raise HarnessError(f"{path} lacks item {missing}", "Labels and rollouts do not belong together")
    order = pc.sort_indices(rows, [(PLACE, "ascending"), ("sample_index", "ascending")])
    return counts, _split(said.take(order), counts)


def _split(said: pa.ChunkedArray, counts: NDArray[np.int64]) -> Iterator[list[str]]:
    """The answers of each item, of rows that lie item by item; a part of them at a time as Python's own."""
    start = 0
    for first in range(0, len(counts), _ITEMS_AT_ONCE):
        some = counts[first : first + _ITEMS_AT_ONCE].tolist()
        texts = iter(said.slice(start, sum(some)).to_pylist())
        for number in some:
            yield [answer for answer in islice(texts, number) if answer is not None]
        start += sum(some)


def samples_of(path: Path, ids: pa.StringArray, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rollouts of some items, read bit by bit.

    Args:
        path: the table of rollouts.
        ids: the items.
        names: the columns that are wanted.

    Yields:
        The columns, and PLACE: where an item is in `ids`, int64; in the table's order.

    Raises:
        HarnessError: see `scanning.scan`.
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
