"""One finished response, as the observers of a model see it."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """One response to one item.

    Attributes:
        task: the lmms-eval task's name.
        doc_id: the item's position in the task's split, as lmms-eval numbers it.
        sample_index: which of the item's G responses this is, from 0.
        response: the text, cut at the task's stop texts, without special tokens.
        n_prompt_tokens: tokens of prompt and images together.
        n_tokens: tokens generated, the end token (or those of the stop text) included.
        finish_reason: "stop" at an end token or stop text, "length" at the token limit.
        seed: the seed that the draw was keyed with.
        flops: floating-point operations that it took, estimated, with its share of its item's prompt; None
            where the model does not say what a token costs.
    """

    task: str
    doc_id: int
    sample_index: int
    response: str
    n_prompt_tokens: int
    n_tokens: int
    finish_reason: FinishReason
    seed: int
    flops: float | None = field(default=None, compare=False)


def cut_at(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before its first stop text, and whether there was one."""
    found = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    return (text[: min(found)], True) if found else (text, False)
