"""Turns lmms-eval's request list into items, reads their prompts, and selects the next samples.

lmms-eval asks for G responses by repeating a request G times in one list. The repeats share everything up to
the first drawn token, so here they are one item. The position of a repeat among its copies is its sample
index.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lmms_eval.api.instance import Instance
from PIL import Image

from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.pictures import opened, reason, strictly, to_rgb

from .arguments import GenerationArguments, warn_once

# From lmms-eval's request list to items: one prompt each, with the number of responses it needs.

_LOG = logging.getLogger(__name__)
_COPIES = (
    "Task %r asks for several responses per document at temperature 0, which are copies of one: pass@k "
    "equals the accuracy. Give `--gen_kwargs do_sample=true,temperature=0.9`, or leave --repeats out."
)
Messages = list[dict[str, Any]]


@dataclass
class Item:
    """One document with one set of generation arguments."""

    task: str  # the lmms-eval task's name
    split: str  # the split that the document is in
    doc_id: int  # its position there
    arguments: GenerationArguments  # how its responses are generated
    context: str  # the prompt text that lmms-eval built, for models that do not read messages
    to_messages: Callable[[Any], Messages]  # the task's function from document to chat messages
    positions: list[int] = field(default_factory=list)  # where all its responses belong in the request list
    sample_indices: list[int] = field(default_factory=list)  # which of its responses are asked for, from 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"task {self.task!r}, doc_id {self.doc_id}"


def plan(requests: Sequence[Instance], checkpoint: Mapping[str, object] | None = None) -> list[Item]:
    """The items behind lmms-eval's requests, in order of first appearance.

    Requests that lmms-eval adds to even out ranks (`__padding_only__`) are left out: nothing reads their
    responses, and none of our collectives waits for them. `checkpoint` has settings for what requests leave
    unset.

    Raises:
        HarnessError: for a generation argument that is not supported, or requests from lmms-eval's cache.
    """
    items: dict[tuple[str, str, int, GenerationArguments], Item] = {}
    clones: dict[tuple[str, str, int], int] = {}
    parsed: dict[tuple[str, str], GenerationArguments] = {}
    for position, request in enumerate(requests):
        if request.metadata.get("__padding_only__"):
            continue
        context, to_messages, given, doc_id, task, split = request.args
        if to_messages is None:
            raise HarnessError(
                f"task {task!r}: requests from lmms-eval's cache have lost the function for their messages",
                "Leave --cache_requests out",
            )
        written = (task, repr(given))
        if written not in parsed:
            parsed[written] = GenerationArguments.parse(given or {}, task, checkpoint)
        key = (task, split, doc_id, parsed[written])
        item = items.setdefault(key, Item(*key, context=context, to_messages=to_messages))
        item.positions.append(position)
        item.sample_indices.append(clones.get(key[:3], 0))
        clones[key[:3]] = item.sample_indices[-1] + 1
    for item in items.values():
        if len(item.positions) > 1 and item.arguments.greedy:
            warn_once(_COPIES, item.task)
    return list(items.values())


# From a task's document to the prompt text and images for a processor.

_T = TypeVar("_T")

# What Pillow raises on damaged files; a bomb warning raised to an error counts as damage too.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Prompt:
    """One chat, with its images taken out."""

    messages: Messages  # chat messages as transformers' chat templates take them, images as placeholders
    images: list[Image.Image]  # the images in order of appearance, RGB


def read_prompt(item: Item, documents: Mapping[str, Any], system_prompt: str | None) -> Prompt:
    """The prompt of a document in `documents`, lmms-eval's `task_dict`: task to split to documents.

    The system prompt comes first unless the task's messages bring their own.

    Raises:
        HarnessError: for an image that cannot be read, or content that is neither text nor
            image, naming the task and the document.
    """
    where = item.name
    try:
        # The document's own images are decoded here, when the dataset yields the row.
        messages = _read(lambda: item.to_messages(documents[item.task][item.split][item.doc_id]), where)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise HarnessError(
            f"{where}: the document cannot be read ({reason(error)})", "Replace or remove it"
        ) from error
    images: list[Image.Image] = []
    chat = [{"role": message["role"], "content": _content(message, images, where)} for message in messages]
    if system_prompt and (not chat or chat[0]["role"] != "system"):
        chat.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    return Prompt(chat, images)


def filled(prompt: Prompt, part: Callable[[Image.Image], dict[str, Any]]) -> Messages:
    """A prompt's messages with its images in them, each as the `part` that is made of it."""
    images = iter(prompt.images)
    return [
        {
            "role": message["role"],
            "content": [part(next(images)) if one["type"] == "image" else one for one in message["content"]],
        }
        for message in prompt.messages
    ]


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
        return _read(lambda: to_rgb(opened(source)), where)
    except _UNREADABLE as error:
        raise HarnessError(
            f"{where}: an image cannot be read ({reason(error)})", "Replace or remove it"
        ) from error


def _read(read: Callable[[], _T], where: str) -> _T:
    """Reads strictly first, so that a truncated image is noticed.

    lmms-eval makes Pillow fill the missing part of such an image with gray, for the whole process. Published
    scores include these images, so they are used, with a warning.
    """
    try:
        with strictly():
            return read()
    except OSError:
        pass
    result = read()  # which fails again where Pillow is strict anyway
    _LOG.warning("%s: an image is truncated; its missing part is blank", where)
    return result


# The next samples of an item: none that is kept, and none once its label is settled.

Settled = Callable[[Item, Sequence[Generation]], bool]
"""Whether an item needs no more samples than those so far; called with them in order."""

FIRST_ROUND = 2
"""Samples of the first round: the fewest that can differ."""


def goals(samples: int) -> list[int]:
    """Sample counts after which to check whether an item is settled: 2, 4, 8 and so on, then all.

    Doubling draws fewer than twice the samples needed, in at most log2(G) rounds. The counts depend only on
    G, so an interrupted run stops at the same count as an uninterrupted one.
    """
    found = []
    goal = FIRST_ROUND
    while goal < samples:
        found.append(goal)
        goal *= 2
    return [*found, samples]


@dataclass
class Drawing:
    """An item in progress."""

    item: Item  # with all the requested samples
    # sample index to response, for samples already drawn
    have: dict[int, Generation] = field(default_factory=dict)

    def next(self, settled: Settled | None) -> Item | None:
        """What to draw next, as an item with those samples; None if nothing is left.

        `settled` None draws all samples at once.
        """
        indices = self.item.sample_indices
        for goal in goals(len(indices)) if settled is not None else [len(indices)]:
            if missing := [index for index in indices[:goal] if index not in self.have]:
                return replace(self.item, sample_indices=missing)
            if settled is not None and settled(self.item, [self.have[index] for index in indices[:goal]]):
                return None
        return None


Asked = tuple[Drawing, Item]
"""An item in progress, and the part of it to draw next."""
