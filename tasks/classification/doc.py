"""Functions of the classification tasks' YAML files: the score, also by classes seen in training or not."""

from collections.abc import Sequence
from typing import Any

from dcsft_harness.tasks.verdicts import Doc, part, process


def process_word(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores class names with `exact_word` (the paper's classification rule)."""
    return process("exact_word", doc, results)


def process_word_by_class(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same; acc_seen counts classes in the training pool, acc_unseen the others."""
    metrics = process_word(doc, results)
    score = metrics["acc"]["score"]
    return {
        **metrics,
        "acc_seen": part(score, doc, doc["seen"]),
        "acc_unseen": part(score, doc, not doc["seen"]),
    }
