"""From lmms-eval's request list to items: what is asked once, and how many responses it needs.

lmms-eval asks for G responses by repeating a request G times in one list. The repeats share
everything up to the first drawn token, so they are one item here, and the position of a repeat
among its siblings is its sample index.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import Instance

from .arguments import GenerationArguments

Messages = list[dict[str, Any]]


@dataclass
class Item:
    """One document with one set of generation arguments.

    Attributes:
        task: the lmms-eval task's name.
        split: the split that the document is in.
        doc_id: its position there.
        arguments: how its responses are generated.
        context: the prompt text that lmms-eval built, for models that do not read messages.
        to_messages: the task's function from document to chat messages.
        positions: where its responses belong in the request list.
        sample_indices: the sample index of each, in the same order.
    """

    task: str
    split: str
    doc_id: int
    arguments: GenerationArguments
    context: str
    to_messages: Callable[[Any], Messages]
    positions: list[int] = field(default_factory=list)
    sample_indices: list[int] = field(default_factory=list)


def plan(requests: Sequence[Instance], checkpoint: Mapping[str, object] | None = None) -> list[Item]:
    """The items behind a request list, in order of first appearance.

    Requests that lmms-eval adds to even out ranks (`__padding_only__`) are left out: their
    responses are never read, and no collective of ours waits for them.

    Args:
        requests: as lmms-eval hands them over.
        checkpoint: the checkpoint's settings for what requests leave unset.

    Raises:
        HarnessError: for a generation argument that is not supported.
    """
    items: dict[tuple[str, str, int, GenerationArguments], Item] = {}
    clones: dict[tuple[str, str, int], int] = {}
    parsed: dict[tuple[str, str], GenerationArguments] = {}
    for position, request in enumerate(requests):
        if request.metadata.get("__padding_only__"):
            continue
        context, to_messages, given, doc_id, task, split = request.args
        written = (task, repr(given))
        if written not in parsed:
            parsed[written] = GenerationArguments.parse(given or {}, task, checkpoint)
        key = (task, split, doc_id, parsed[written])
        item = items.setdefault(key, Item(*key, context=context, to_messages=to_messages))
        item.positions.append(position)
        item.sample_indices.append(clones.get(key[:3], 0))
        clones[key[:3]] = item.sample_indices[-1] + 1
    return list(items.values())
