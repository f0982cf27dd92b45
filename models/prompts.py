"""From a document of a task to the prompt text and images that a processor takes."""

import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import UnreadableError, file_bytes, strictly, to_rgb

from .requests import Item, Messages

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

# What Pillow raises on damaged files; a bomb warning raised to an error counts as damage too.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Prompt:
    """One chat, with its images taken out.

    Attributes:
        messages: chat messages as transformers' chat templates take them, images as
            placeholders.
        images: the images in order of appearance, RGB.
    """

    messages: Messages
    images: list[Image.Image]


def content_key(text: str, images: Sequence[Image.Image]) -> str:
    """A hash of the rendered prompt and its pixels, for items that have no content id."""
    digest = hashlib.sha256(text.encode())
    for image in images:
        digest.update(f"\0{image.size}\0".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def read_prompt(item: Item, documents: Mapping[str, Any], system_prompt: str | None) -> Prompt:
    """The prompt of a document.

    Args:
        item: the document's address and its task's message function.
        documents: lmms-eval's `task_dict`: task to split to documents.
        system_prompt: put before the chat unless the task's messages bring their own.

    Raises:
        HarnessError: for an image that cannot be read, or content that is neither text nor
            image, naming the task and the document.
    """
    where = f"task {item.task!r}, doc_id {item.doc_id}"
    try:
        # The document's own images are decoded here, when the data set yields the row.
        messages = _read(lambda: item.to_messages(documents[item.task][item.split][item.doc_id]), where)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise HarnessError(
            f"{where}: the document cannot be read ({error})", "Replace or remove it"
        ) from error
    images: list[Image.Image] = []
    chat = [{"role": message["role"], "content": _content(message, images, where)} for message in messages]
    if system_prompt and (not chat or chat[0]["role"] != "system"):
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    return Prompt(chat, images)


def _content(message: Mapping[str, Any], images: list[Image.Image], where: str) -> list[dict[str, Any]]:
    """One message's parts, its images appended to `images`."""
    given = message["content"]
    parts = []
    for part in [{"type": "text", "text": given}] if isinstance(given, str) else given:
        if part["type"] == "text":
            parts.append({"type": "text", "text": part["text"]})
        elif part["type"] == "image":
            images.append(_image(part.get("url", part.get("image")), where))
            parts.append({"type": "image"})
        else:
            raise HarnessError(
                f"{where}: content of type {part['type']!r}", "This model takes text and images"
            )
    return parts


def _image(source: object, where: str) -> Image.Image:
    """An image of any usual kind, as `pictures.to_rgb` shows it."""
    try:
        return _read(lambda: _decode(source), where)
    except _UNREADABLE as error:
        raise HarnessError(f"{where}: an image cannot be read ({error})", "Replace or remove it") from error


def _decode(source: object) -> Image.Image:
    """An image, path or file content as `pictures.to_rgb` shows it.

    Raises:
        OSError: for a missing or damaged file.
        SyntaxError: for some kinds of damage.
        ValueError: for anything else.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError("it is a web address; download it first")
    if not isinstance(source, str | Path | bytes):
        raise ValueError(f"a {type(source).__name__} is neither an image nor a path")
    if not isinstance(source, bytes):
        path = str(source).removeprefix("file://")
        try:
            source = file_bytes(Path(path))
        except UnreadableError as error:
            raise ValueError(f"{path} {error}") from error
    with Image.open(io.BytesIO(source)) as opened:
        return to_rgb(opened)


def _read(read: Callable[[], _T], where: str) -> _T:
    """Reads strictly first, so that an image that was cut short does not pass unnoticed.

    lmms-eval tells Pillow, for the whole process, to fill the missing part of such an image
    with grey. Published scores include them, so they are kept, but named.
    """
    try:
        with strictly():
            return read()
    except OSError:
        pass
    result = read()  # which fails again where Pillow is strict anyway
    _LOG.warning("%s: an image is cut short; its missing part is blank", where)
    return result
