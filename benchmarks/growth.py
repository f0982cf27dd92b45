"""How the engine's time grows with G and with the image's size.

python -m benchmarks.growth
"""

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
    """Items with this number of responses each."""
    wanted = list(range(samples))
    return [
        replace(one, positions=wanted, sample_indices=list(wanted)) for one in shapes.items(model, number)
    ]


def main() -> None:
    """Measures and prints JSON."""
    given = shapes.parser().parse_args()
    gs, sides, number = (GS[:2], SIDES[:2], shapes.FEW) if given.layers else (GS, SIDES, ITEMS)
    model = shapes.load(given.shape, 112, given.layers)
    prepared = shapes.prepare(model, shapes.items(model, number))
    asked = {samples: with_samples(model, number, samples) for samples in gs}
    by_g = rounds(
        {
            str(samples): lambda items=items: draw(model, items, prepared, shapes.ARGUMENTS)
            for samples, items in asked.items()
        },
        given.rounds,
    )
    by_side = {}
    for side in sides:
        sized = shapes.load(given.shape, side, given.layers)
        items = shapes.items(sized, number)
        ready = shapes.prepare(sized, items)
        found = rounds(
            {"engine": lambda m=sized, i=items, r=ready: draw(m, i, r, shapes.ARGUMENTS)}, given.rounds
        )
        by_side[str(side)] = {"prompt tokens": ready[0].tokens, "seconds": round(median(found, "engine"), 4)}
    seconds = {samples: round(median(by_g, samples), 4) for samples in by_g}
    print(json.dumps({"items": number, "seconds by G at 112 px": seconds, "by side": by_side}))


if __name__ == "__main__":
    main()
