"""Long ragged answers against an ideal batch: no padding, no finished rows.

    python -m benchmarks.answers --items 64 --longest 256

Row lengths are uniform between 1 and `longest`; they are forced on the engine. The ideal batch has rows of
one length that all end together, with the same work: the same number of tokens, and of pairs of a token and
an earlier one that it attends to. For lengths L this means fewer rows, of E[L^2] / E[L] tokens each. A third
batch has the original number of rows with the mean length, and so fewer pairs than the ragged one.
"""

import json
import statistics
from collections.abc import Sequence

import torch

from benchmarks import shapes
from benchmarks.measuring import median, ratio, rounds
from benchmarks.sampling import draw
from dcsft_harness.models import engine
from dcsft_harness.models.decoding import Endings
from dcsft_harness.models.engine import Prepared
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import Item


def with_lengths(
    model: DcsftHF, items: Sequence[Item], prepared: Sequence[Prepared], longest: int, lengths: Sequence[int]
) -> None:
    """The engine with rows of these lengths, in the order in which rows join the batch."""
    arguments = shapes.ARGUMENTS.changed(max_new_tokens=longest, min_new_tokens=longest)
    plain, left = engine._note, iter(lengths)
    known: dict[int, tuple[engine.Row, int]] = {}  # by identity: the row kept next to it has its own

    def note(rows: Sequence[engine.Row], tokens: Sequence[int], endings: Endings) -> int:
        ended = plain(rows, tokens, endings)
        for row in rows:
            if id(row) not in known:
                known[id(row)] = row, next(left)
            if not row.ended and len(row.tokens) == known[id(row)][1]:
                row.ended, ended = True, ended + 1
        return ended

    engine._note = note
    try:
        draw(model, items, prepared, arguments)
    finally:
        engine._note = plain
    short = [one for one in known.values() if len(one[0].tokens) != one[1]]
    assert not short and next(left, None) is None, "rows have other lengths than those given"


def main() -> None:
    """Measures and prints JSON."""
    parser = shapes.parser()
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--longest", type=int, default=256)
    given = parser.parse_args()
    if given.layers:
        given.items, given.longest = min(given.items, shapes.FEW), min(given.longest, 16)
    model = shapes.load(given.shape, given.side, given.layers)
    items = shapes.items(model, given.items)
    prepared = shapes.prepare(model, items)
    generator = torch.Generator().manual_seed(0)
    rows = given.items * shapes.SAMPLES
    lengths = torch.randint(1, given.longest + 1, (rows,), generator=generator).tolist()
    mean = statistics.mean(lengths)
    even = round(statistics.mean(length**2 for length in lengths) / mean)
    fewer = round(sum(lengths) / even / shapes.SAMPLES)

    def work(number: int, wanted: list[int]) -> None:
        with_lengths(model, items[:number], prepared[:number], given.longest, wanted)

    ways = {
        "engine": lambda: work(given.items, lengths),
        "ideal": lambda: work(fewer, [even] * (fewer * shapes.SAMPLES)),
        "mean": lambda: work(given.items, [round(mean)] * rows),
    }
    found = rounds(ways, given.rounds)
    print(
        json.dumps(
            {
                "rows": rows,
                "longest": given.longest,
                "ideal": {"rows": fewer * shapes.SAMPLES, "tokens": even},
                "seconds": {name: round(median(found, name), 3) for name in ways},
                "over ideal": round(ratio(found, "engine", "ideal"), 3),
                "over rows of the mean length": round(ratio(found, "engine", "mean"), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
