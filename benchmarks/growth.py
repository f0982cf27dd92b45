"""How the engine's time grows with G and with the image's size.

python -m benchmarks.growth
"""

import argparse
import json
from dataclasses import replace

from benchmarks import shapes
from benchmarks.measuring import median, rounds
from benchmarks.sampling import draw
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import Item

GS = (1, 2, 4, 8, 16, 32)
SIDES = (56, 112, 224, 448)
ITEMS = 16


def with_samples(model: DcsftHF, number: int, samples: int) -> list[Item]:
    """Items that are asked for this many responses."""
    wanted = list(range(samples))
    return [
        replace(one, positions=wanted, sample_indices=list(wanted)) for one in shapes.items(model, number)
    ]


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="digits", choices=["digits", *shapes.PUBLISHED])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    model = shapes.load(given.shape, 112)
    prepared = shapes.prepare(model, shapes.items(model, ITEMS))
    asked = {samples: with_samples(model, ITEMS, samples) for samples in GS}
    by_g = rounds(
        {
            str(samples): lambda items=items: draw(model, items, prepared, shapes.ARGUMENTS)
            for samples, items in asked.items()
        },
        given.rounds,
    )
    by_side = {}
    for side in SIDES:
        sized = shapes.load(given.shape, side)
        items = shapes.items(sized, ITEMS)
        ready = shapes.prepare(sized, items)
        found = rounds(
            {"engine": lambda m=sized, i=items, r=ready: draw(m, i, r, shapes.ARGUMENTS)}, given.rounds
        )
        by_side[str(side)] = {"prompt tokens": ready[0].tokens, "seconds": round(median(found, "engine"), 4)}
    seconds = {samples: round(median(by_g, samples), 4) for samples in by_g}
    print(json.dumps({"items": ITEMS, "seconds by G at 112 px": seconds, "by side": by_side}))


if __name__ == "__main__":
    main()
