"""Models to measure: the embedded digits checkpoint, or a published size with random weights."""

import argparse
import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dcsft_harness.data import digits
from dcsft_harness.data.digits import suite
from dcsft_harness.models import published
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.engine import Prepared
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import Item

SAMPLES = 8
# The paper's sampling; every response has exactly NEW_TOKENS tokens, so that all ways do equal work.
NEW_TOKENS = 4
ARGUMENTS = GenerationArguments(
    max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, temperature=0.9, top_k=50
)

FEW = 2
"""Items of a trial with fewer layers, which only shows that a part runs."""

PUBLISHED = ("qwen2.5-vl-3b",)
"""The sizes of `models.published` with pixel limits for their images and known targets."""


@cache
def folder(shape: str, layers: int | None = None) -> str:
    """The checkpoint folder of a shape; random weights are made once a process and go with it.

    Args:
        shape: "digits", or a key of `PUBLISHED`.
        layers: decoder layers, for a trial; None has all.
    """
    if shape == "digits":
        return str(digits.path())
    home = tempfile.mkdtemp(prefix="dcsft-bench-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return str(published.write(shape, Path(home) / shape, layers))


def parser() -> argparse.ArgumentParser:
    """The options of every part that is measured by shape."""
    options = argparse.ArgumentParser()
    options.add_argument("--shape", default="digits", choices=["digits", *PUBLISHED])
    options.add_argument("--layers", type=int, help="decoder layers, for a trial of a published size")
    options.add_argument("--rounds", type=int, default=5)
    return options


def device_of(shape: str) -> str:
    """Where a shape is measured: digits on the CPU, to compare machines; others on CUDA."""
    return "cuda" if shape != "digits" and torch.cuda.is_available() else "cpu"


def load(shape: str, side: int, layers: int | None = None, **given: object) -> DcsftHF:
    """A model whose images all have one size."""
    pixels = side**2
    return DcsftHF(
        pretrained=folder(shape, layers),
        device=device_of(shape),
        min_pixels=pixels,
        max_pixels=pixels,
        **given,
    )


def items(model: DcsftHF, number: int, arguments: GenerationArguments = ARGUMENTS) -> list[Item]:
    """Digits of the pool."""
    model.task_dict["bench"] = {"test": suite.load("dcsft_digits_pool")}
    wanted = list(range(SAMPLES))
    return [
        Item("bench", "test", at, arguments, "", to_messages, wanted, list(wanted)) for at in range(number)
    ]


def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the image, then the question."""
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["prompt"]}]
    return [{"role": "user", "content": content}]


def prepare(model: DcsftHF, asked: list[Item]) -> list[Prepared]:
    """Items through the model's processor."""
    return [model._prepare(one) for one in asked]
