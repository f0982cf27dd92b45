"""Functions of the digits tasks' YAML files: loading, the conversation's image and the score."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcsft_harness.data.digits import suite
from dcsft_harness.pictures import to_rgb
from dcsft_harness.tasks.verdicts import Doc, process

if TYPE_CHECKING:
    from datasets import Dataset


def load(placeholder: "Dataset") -> "Dataset":
    """The set named by the placeholder row of `index.json`, drawn on first use."""
    return suite.load(placeholder[0]["set"])


def visual(doc: Doc) -> list[Any]:
    """The document's image, as RGB."""
    return [to_rgb(doc["image"])]


def process_word(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores class names with `exact_word` (the paper's classification rule)."""
    return process("exact_word", doc, results)


def process_box(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores boxes with `box_iou` at 0.5, in the running model's declared coordinates."""
    return process("box_iou", doc, results)


def process_math(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores sums with `math`."""
    return process("math", doc, results)
