"""`dcsft_hf` against `generate(num_return_sequences=8)`, for families whose prompts are copied, not shared.

    python -m benchmarks.families --rounds 5

Tiny checkpoints with random weights, features prepared beforehand, responses of equal length.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import shapes
from benchmarks.measuring import median, ratio, rounds
from benchmarks.sampling import Peer, draw
from dcsft_harness.models.hf import DcsftHF

TESTS = str(Path(__file__).parents[1] / "tests" / "fixtures")
"""Other packages install a package `tests` too, so that the folder is named."""
FAMILIES = ("qwen3_5", "gemma3", "gemma4", "kimi_k25", "minicpmv4_6")
PEER = "generate(num_return_sequences=8)"


def measured(family: str, number: int, tokens: int, many: int) -> dict[str, object]:
    """One family's seconds, and the ratio of the transformers way to the engine."""
    sys.path.insert(0, TESTS)
    from tiny_checkpoints import checkpoint  # type: ignore[import-not-found]

    model = DcsftHF(pretrained=checkpoint(family), device="cpu", batch_size=number)
    items = shapes.items(model, number)
    prepared = shapes.prepare(model, items)
    peer = Peer(model, tokens)
    arguments = shapes.ARGUMENTS.changed(max_new_tokens=tokens, min_new_tokens=tokens)
    found = rounds(
        {
            "engine": lambda: draw(model, items, prepared, arguments),
            PEER: lambda: peer.draw(prepared, number, shapes.SAMPLES),
        },
        many,
    )
    return {
        "family": family,
        "items": number,
        "tokens": tokens,
        "seconds": {way: round(median(found, way), 4) for way in found},
        "over the engine": round(ratio(found, PEER, "engine"), 2),
    }


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--tokens", type=int, nargs="+", default=(4, 64, 128))
    parser.add_argument("--only", nargs="+", default=FAMILIES)
    given = parser.parse_args()
    with torch.inference_mode():
        results = [
            measured(family, number, tokens, given.rounds)
            for family in given.only
            for tokens in given.tokens
            for number in given.items
        ]
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
