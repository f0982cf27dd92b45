"""A log's items under the content ids of a scores folder, where both asked the same documents."""

import json
from dataclasses import replace

from dcsft_harness.artifacts.hashing import json_sha256

from .result import Documents, Measured


def aligned(reference: Measured, measured: Measured) -> Measured:
    """A log's part with the reference's item ids, or as it is where they cannot be shown to be the same.

    The log knows no image. Two parts are of the same items if they have the same document numbers and,
    number by number, the same gold; the hash of the prompts, in the order of the reference's ids, is
    compared with the other conditions afterwards.
    """
    theirs = measured.documents() if measured.item_ids != reference.item_ids else None
    if theirs is None or theirs.prompts is None:
        return measured
    ours = reference.documents()
    if ours.prompts is not None or sorted(ours.numbers) != sorted(theirs.numbers):
        return measured
    places = {number: at for at, number in enumerate(theirs.numbers)}
    order = [places[number] for number in ours.numbers]
    moved = theirs.reordered(order)
    if not all(map(_same, ours.answers, moved.answers)):
        return measured
    found = Documents(ours.ids, moved.numbers, moved.answers, moved.prompts)
    return replace(
        measured,
        item_ids=reference.item_ids,
        clusters=tuple(measured.clusters[at] for at in order),
        scores=measured.scores[order],
        conditions={
            **measured.conditions,
            "prompt hash": json_sha256(list(moved.prompts or ())),
            "item set": json_sha256(list(ours.ids)),
        },
        documents=lambda: found,
        renamed=dict(zip(moved.ids, ours.ids, strict=True)),
    )


def _same(one: str, other: str) -> bool:
    """Golds may be the same JSON in another spelling."""
    if one == other:
        return True
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False
