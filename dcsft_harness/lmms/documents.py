"""What a document of a task is, as an item, and what its metrics say of a response."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dcsft_harness import records
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import UnreadableError


def score_of(task: Any, metrics: Mapping[str, Any]) -> tuple[float | None, str | None, str | None]:  # noqa: ANN401
    """The score, the extracted answer and the cluster in what `process_results` returned.

    Our tasks return `acc` as {"score", "cluster"}. For others: the metric that `score_key` names, or
    the only number there is.

    Raises:
        HarnessError: no metric can be told to be the score.
    """
    key = task.get_config("score_key") or "score"
    numbers = {}
    for name, value in metrics.items():
        inner = value.get(key) if isinstance(value, Mapping) else value
        if isinstance(inner, bool | int | float):
            numbers[name] = (float(inner), value)
    chosen = "acc" if "acc" in numbers else key if key in numbers else None
    if chosen is None and len(numbers) == 1:
        chosen = next(iter(numbers))
    if chosen is None:
        raise HarnessError(
            f"task {task.config.task}: none of its metrics {sorted(metrics)} can be told to be the score",
            "Set `score_key` in the task's YAML file",
        )
    score, value = numbers[chosen]
    cluster = value.get(task.get_config("cluster_key") or "cluster") if isinstance(value, Mapping) else None
    extracted = metrics.get("extracted")
    return (
        None if score != score else score,
        None if extracted is None else records.as_text(extracted),
        None if cluster is None else str(cluster),
    )


def describe(task: Any, doc_id: int) -> tuple[records.Item, list[Any]]:  # noqa: ANN401
    """One document of a task as an item, and its images.

    Raises:
        HarnessError: an image cannot be read; names task and document.
    """
    from PIL.Image import DecompressionBombError

    name = task.config.task
    try:
        doc = task.eval_docs[doc_id]
        messages = task.doc_to_messages(doc)
        turns = [_parts(message["content"]) for message in messages]
        parts = [part for turn in turns for part in turn]
        images = [part["url"] for part in parts if part["type"] == "image"]
        # Pictures that a task opened by path are read here and not before.
        contents = [_content(image) for image in images]
    except (OSError, SyntaxError, DecompressionBombError, UnreadableError) as error:
        raise HarnessError(
            f"task {name}, doc_id {doc_id}: an image cannot be read ({error})", "Replace it"
        ) from error
    return _item(task, doc_id, doc, _prompt(turns), contents), images


def _prompt(turns: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The text of messages; with a mark at each picture's place, unless all come before the text.

    A task's own text may contain marks that stand for no picture. Then every picture has a mark too, so that
    the numbers of marks and pictures differ.
    """
    kinds = [part["type"] for turn in turns for part in turn]
    texts = [part["text"] for turn in turns for part in turn if part["type"] == "text"]
    first = kinds.index("text") if texts else len(kinds)
    if "image" not in kinds[first:] and not ("image" in kinds and any(records.MARK in one for one in texts)):
        return "\n".join(texts)
    marks = {"image": records.MARK}
    return "\n".join(
        "".join(marks.get(part["type"], part.get("text", "")) for part in turn) for turn in turns
    )


def describe_item(task: Any, doc_id: int) -> records.Item:  # noqa: ANN401
    """The item of `describe` alone; of prepared data no picture is decoded.

    Raises:
        HarnessError: an image cannot be read; names task and document.
    """
    with prepared.unopened():
        return describe(task, doc_id)[0]


def _content(image: Any) -> bytes:  # noqa: ANN401 - a PIL image
    """What stands for an image in its item's id."""
    kept = image.info.get(prepared.DIGEST)
    return kept if isinstance(kept, bytes) else records.pixels(image)


def describe_without_images(task: Any, doc_id: int) -> records.Item:  # noqa: ANN401
    """A document whose images cannot be read: no content tells its id, so its position has to."""
    doc = task.eval_docs_no_media[doc_id]
    return _item(task, doc_id, doc, str(task.doc_to_text(doc)), [f"unreadable, doc_id {doc_id}".encode()])


def _item(task: Any, doc_id: int, doc: Any, prompt: str, contents: list[bytes]) -> records.Item:  # noqa: ANN401
    name, target = task.config.task, records.as_text(task.doc_to_target(doc))
    metadata = task.config.metadata if isinstance(task.config.metadata, dict) else {}
    column = metadata.get("answer_column")
    gold = json.loads(doc[column]) if column else target
    answer = records.as_text(gold)
    if own := metadata.get("id_column"):  # a benchmark may ask the same twice: MathVerse's versions do
        contents = [*contents, str(doc[own]).encode()]
    key = records.item_id(name, prompt, answer, contents)
    return records.Item(key, name, doc_id, prompt, answer, target, _box(gold))


def _box(gold: object) -> list[float] | None:
    """The gold, if it is four numbers: no scorer but that of boxes takes a list of numbers."""
    if not isinstance(gold, list) or len(gold) != 4 or not all(type(side) in (int, float) for side in gold):
        return None
    return [float(side) for side in gold]


def _parts(content: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
