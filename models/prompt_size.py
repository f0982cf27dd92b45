"""How many tokens a prompt has once its images are in it, without processing the images."""

from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from .batching import process


def tokenize(processor: ProcessorMixin, text: str) -> list[int]:
    """Token ids of a rendered prompt, images as placeholders.

    A template that writes the first token itself must not get a second one from the tokenizer.
    """
    bos = processor.tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    return list(processor.tokenizer(text, add_special_tokens=special)["input_ids"])


def count_tokens(processor: ProcessorMixin, text: str, tokens: list[int], images: list[Image.Image]) -> int:
    """Tokens of prompt and images together.

    Args:
        processor: the checkpoint's, with its pixel limits.
        text: the rendered prompt.
        tokens: the same as token ids, one placeholder an image.
        images: its images.
    """
    if not images:
        return len(tokens)
    counted: Any = getattr(processor, "_get_num_multimodal_tokens", None)
    if counted is None:
        return int(process(processor, [text], [images])["input_ids"].shape[1])
    sizes = [(image.height, image.width) for image in images]
    return len(tokens) - len(images) + int(sum(counted(image_sizes=sizes)["num_image_tokens"]))
