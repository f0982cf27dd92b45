"""Rows of a training set against the rules of the base's processor, before any weights are read.

The processor itself takes 20 to 60 ms per megapixel, minutes for a large set, so it only sees what is
unusual: each narrow or long picture size once, as a blank picture, and one row for each number of pictures.
Other sizes go through its own arithmetic, texts through the tokenizer.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from PIL import Image as Pillow
from transformers import PreTrainedConfig, ProcessorMixin

from dcsft_harness.errors import HarnessError
from dcsft_harness.training.data import Conversations, Turns

NARROW = 32
"""A picture with a side below this is shown to the processor itself, pixels."""
LONG = 20
"""So is one whose sides have at least this ratio."""
TEXTS_AT_ONCE = 256
_MEDIA = re.compile(r"\w*(image|video|vision|audio|boi|eoi|boa|eoa)\w*_(token|tag)(_id|_index)?")


def screened(
    conversations: Conversations,
    texts: Sequence[str],
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    completion: int = 0,
) -> Conversations:
    """The set without rows that the processor or the base refuses; they are in `refused` then.

    A row is refused if its text states one of the family's own marks of pictures, if the processor does not
    take the size of one of its pictures, or if it has more tokens than the base has positions for.

    Args:
        conversations: the set.
        texts: what each conversation is to the tokenizer, marks of pictures included.
        processor: the base's, with the pixel limits of training.
        config: the base's configuration.
        completion: tokens that a row may have beside its text.
    """
    refused: dict[int, HarnessError] = {}
    marks, sizes = media_marks(processor, config), _Sizes(processor)
    for position, turns in enumerate(conversations.turns):
        found = _mark(turns, marks) or sizes.refusal(turns.sizes)
        if found is not None:
            refused[position] = HarnessError(f"{conversations.where(position)}: {found}", "Remove the row")
    for position, error in _refused_whole(conversations, texts, processor, refused).items():
        refused[position] = error
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    for position, tokens in enumerate(_lengths(conversations.turns, texts, processor, sizes)):
        if longest is not None and tokens + completion > longest:
            more = f" with {completion} of the completion" if completion else ""
            problem = f"{tokens + completion} tokens{more}, and the base has {longest} positions"
            refused.setdefault(
                position,
                HarnessError(
                    f"{conversations.where(position)}: {problem}",
                    f"Shorten the row{' or lower max_completion_length' if completion else ''}",
                ),
            )
    return conversations.without(refused)


def media_marks(processor: ProcessorMixin, config: PreTrainedConfig) -> list[str]:
    """The tokens by which a family marks pictures, videos and sounds in a prompt, as text."""
    tokenizer = processor.tokenizer
    # Ordinary tokens are no marks: a configuration may have default ids that its tokenizer uses otherwise.
    known = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    named = [(name, value) for holder in (processor, config) for name, value in vars(holder).items()]
    named += [(name, getattr(tokenizer, name, None)) for name in ("image_token", "video_token")]
    found = [value for name, value in named if _MEDIA.fullmatch(name)]
    texts = [tokenizer.convert_ids_to_tokens(one) if type(one) is int else one for one in found]
    return sorted({text for text in texts if isinstance(text, str) and text in known})


def _mark(turns: Turns, marks: Sequence[str]) -> str | None:
    """What is wrong with a conversation whose texts state a mark of pictures."""
    texts = [part.get("text", "") for message in turns.prompt for part in message["content"]]
    for mark in marks:
        if any(mark in text for text in texts):
            return f"the prompt has {mark!r} in its text, which the model reads as its own mark of pictures"
        if mark in turns.answer:
            return f"the answer has {mark!r} in its text, which the model reads as its own mark of pictures"
    return None


class _Sizes:
    """Picture sizes that a processor takes, and the tokens that it makes of them; each is looked at once."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self.tokens = cache(self._tokens)
        self._refusal = cache(self._refused)

    def refusal(self, sizes: Sequence[tuple[int, int]]) -> str | None:
        """What the processor says against one of these (width, height); None if it takes all."""
        return next((said for said in map(self._refusal, sizes) if said is not None), None)

    def _refused(self, size: tuple[int, int]) -> str | None:
        width, height = size
        try:
            if min(size) < NARROW or max(size) >= LONG * min(size):
                self._processor.image_processor(images=[Pillow.new("RGB", size)], return_tensors="pt")
            elif count := getattr(self._processor.image_processor, "get_number_of_image_patches", None):
                count(height, width)
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError, AttributeError) as error:
            kind = type(self._processor.image_processor).__name__
            return f"the {kind} does not take a picture of {width} x {height} pixels: {_line(error)}"
        return None

    def _tokens(self, size: tuple[int, int]) -> int:
        """Tokens of a picture; 0 where the processor does not tell without one."""
        try:
            told: Any = self._processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])
            return int(told["num_image_tokens"][0])
        except (AttributeError, KeyError, ValueError, TypeError, NotImplementedError, ZeroDivisionError):
            return 0


def _lengths(
    turns: Sequence[Turns], texts: Sequence[str], processor: ProcessorMixin, sizes: _Sizes
) -> list[int]:
    """Tokens of each conversation, its pictures' included."""
    counts: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[start : start + TEXTS_AT_ONCE])
        counts += map(len, processor.tokenizer(some, add_special_tokens=False)["input_ids"])
    return [
        count + sum(map(sizes.tokens, one.sizes)) - one.images
        for count, one in zip(counts, turns, strict=True)
    ]


def _refused_whole(
    conversations: Conversations,
    texts: Sequence[str],
    processor: ProcessorMixin,
    refused: dict[int, HarnessError],
) -> dict[int, HarnessError]:
    """Rows that the processor refuses as a whole: one for each number of pictures, all if that one is."""
    kinds: dict[int, list[int]] = {}
    for position, turns in enumerate(conversations.turns):
        if position not in refused:
            kinds.setdefault(turns.images, []).append(position)
    found: dict[int, HarnessError] = {}
    for number, positions in kinds.items():
        for position in positions:
            images = {"images": [conversations.images(position)]} if number else {}
            try:
                processor(text=[texts[position]], return_tensors="pt", **images)
            except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                said = f"{conversations.where(position)}: the processor refuses it: {_line(error)}"
                found[position] = HarnessError(said, "Remove the row")
            else:
                if position == positions[0]:
                    break
    return found


def _line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
