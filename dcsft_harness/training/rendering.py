"""Conversations as text, in the form of evaluation, split into prompt and completion.

TRL would render the chat template itself, once per sample and step. It would also include in the loss what a
template writes after the end mark (Qwen's newline), which no model ever has to generate. So conversations are
rendered here once, and TRL gets prompt and completion as plain text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import GenerationConfig, ProcessorMixin

from dcsft_harness.coordinates import BoxConvention
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.chat_template import render
from dcsft_harness.scoring.boxes import from_pixels, rewritten
from dcsft_harness.training.data import Conversations, Turns

_CLOSING = {"<think>": "</think>", "<|channel>thought": "<channel|>"}
"""How thoughts begin -> how they end: Qwen, GLM, InternVL and others; Gemma 4."""


class Rendered(NamedTuple):
    """The text of one sample."""

    prompt: str  # everything before the answer, the same text as in evaluation
    completion: str  # the answer and its end mark; the loss covers exactly this


@dataclass(frozen=True)
class Template:
    """A checkpoint's template for conversations."""

    processor: ProcessorMixin  # its processor, chat template and tokenizer included
    stops: tuple[str, ...]  # end marks that stop generation, as text
    arguments: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the template

    @classmethod
    def of(
        cls,
        processor: ProcessorMixin,
        generation: GenerationConfig | None,
        arguments: Mapping[str, Any] | None = None,
    ) -> "Template":
        """A checkpoint's template with its end marks: the tokenizer's and those of its generation config.

        Without any, no answer could ever end: an error.
        """
        tokenizer = processor.tokenizer
        ids = getattr(generation, "eos_token_id", None)
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        marks = [tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(ids)]
        stops = tuple(dict.fromkeys(mark for mark in marks if mark))
        if not stops:
            raise HarnessError(
                "the model has no end mark (eos_token)", "Set one in its tokenizer_config.json"
            )
        return cls(processor, stops, dict(arguments or {}))

    def render(self, turns: Turns, where: str) -> Rendered:
        """A conversation as text: the prompt of evaluation, and what the model has to write from there.

        A template that begins an answer differently than its generation prompt is refused: the prompts of
        training and evaluation would differ.
        """
        answer = {"role": "assistant", "content": [{"type": "text", "text": turns.answer}]}
        prompt = render(self.processor, turns.prompt, where, True, self.arguments)
        whole = render(self.processor, [*turns.prompt, answer], where, False, self.arguments)
        if whole.startswith(prompt):
            completion = whole[len(prompt) :]
        else:
            completion = self._after_thought(turns, prompt, whole, where)
        return Rendered(self._with_bos(prompt), self._ended(completion))

    def _after_thought(self, turns: Turns, prompt: str, whole: str, where: str) -> str:
        """The completion where the generation prompt alone opens a thought, or gives an empty one.

        Refused if the two differ in something else, or only the answer has a thought.
        """
        before = render(self.processor, turns.prompt, where, False, self.arguments)
        at = whole.find(turns.answer.strip(), len(before)) if whole.startswith(before) else -1
        thought = _thought(prompt[at:]) if at >= 0 and prompt.startswith(whole[:at]) else None
        if thought is None:
            raise HarnessError(
                f"{where}: the chat template asks for answers by {prompt[-40:]!r} but begins them otherwise",
                "Give the model a chat template whose generation prompt begins its assistant turns, or other"
                " arguments with --chat-template-kwargs",
            )
        rest, (opening, closed) = whole[at:], thought
        thinks = rest.startswith(opening)
        if not closed:  # the model closes the thought
            return rest.removeprefix(opening).lstrip("\n") if thinks else f"\n{_CLOSING[opening]}\n\n{rest}"
        if thinks:
            raise HarnessError(
                f"{where}: the answer begins with {opening}, and the prompt already has an empty thought",
                "Train with --chat-template-kwargs that let the model think, or remove the thought",
            )
        return rest

    def _with_bos(self, prompt: str) -> str:
        """The prompt with the first token that the tokenizer adds in evaluation; in TRL it adds none."""
        tokenizer = self.processor.tokenizer
        bos = tokenizer.bos_token
        if not bos or prompt.startswith(bos) or tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
            return prompt
        return str(bos) + prompt

    def _ended(self, completion: str) -> str:
        """The completion up to its end mark, which is added if the template writes none."""
        ends = [completion.rfind(mark) + len(mark) for mark in self.stops if mark in completion]
        return completion[: max(ends)] if ends else completion + self.stops[0]


def _thought(text: str) -> tuple[str, bool] | None:
    """How the end of a generation prompt opens a thought, and whether it ends it at once; None if neither."""
    text = text.strip()
    for opening, closing in _CLOSING.items():
        if text == opening:
            return opening, False
        if text.startswith(opening) and text.removeprefix(opening).strip() == closing:
            return opening, True
    return None


def in_space(turns: Turns, convention: BoxConvention, where: str, truncated: bool = False) -> Turns:
    """A conversation with the answer's box in the model's own coordinates.

    Sets hold boxes in original-image pixels, for any model. A Qwen2.5-VL trained on those learns to be off by
    the resize factor, and a model that writes thousandths unlearns its own space.

    Args:
        turns: the conversation.
        convention: the coordinates of the training targets.
        where: the row's name in errors.
        truncated: whether boxes in original pixels are cut to whole numbers; otherwise the answer keeps its
            decimals.

    Raises:
        HarnessError: the image's sides differ by more than the processor supports, the box cannot be replaced
            in the answer's text, or the box without decimals has no area.
    """
    if turns.box is None or turns.size is None:
        return turns
    if convention.space == "pixel":
        return _truncated(turns, turns.box, where) if truncated else turns
    resized = None
    if convention.space == "resized":
        try:
            resized = convention.resized_size(turns.size)
        except ValueError as error:
            raise HarnessError(f"{where}: {error}", "Remove the row") from error
        if resized is None or resized == turns.size:
            return turns
    assert convention.space is not None  # `Setup.box_convention` refuses boxes without
    numbers = from_pixels(turns.box, image_size=turns.size, box_space=convention.space, resized_size=resized)
    return _stating(turns, numbers, where)


def _truncated(turns: Turns, box: Sequence[float], where: str) -> Turns:
    """A conversation whose answer has its box without decimals."""
    numbers = [math.trunc(end) for end in box]
    if numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise HarnessError(
            f"{where}: the box {list(box)} truncated to whole pixels is {numbers}, which has no area",
            "Remove the row, or leave out --box-rounding",
        )
    return _stating(turns, numbers, where)


def _stating(turns: Turns, numbers: Sequence[int], where: str) -> Turns:
    """A conversation whose answer has these numbers as its box."""
    answer = rewritten(turns.answer, numbers)
    if answer is None:
        raise HarnessError(
            f"{where}: the box cannot be replaced in {turns.answer[:80]!r}", "Write it as [x1, y1, x2, y2]"
        )
    return replace(turns, answer=answer)


def rendered(
    conversations: Conversations, template: Template, convention: BoxConvention, truncated: bool = False
) -> tuple[Conversations, list[Rendered]]:
    """The conversations that can be rendered, and their texts; others are added to `refused`."""
    return conversations.mapped(
        lambda turns, where: template.render(in_space(turns, convention, where, truncated), where)
    )
