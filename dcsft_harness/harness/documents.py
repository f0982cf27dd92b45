"""What a document of a task is, as an item, and what its metrics say of a response."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import dataset_folder, records
from dcsft_harness.errors import HarnessError


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
        parts = [part for message in messages for part in _parts(message["content"])]
        images = [part["url"] for part in parts if part["type"] == "image"]
        # Pictures that a task opened by path are read here and not before.
        contents = [records.pixels(image) for image in images]
    except (OSError, SyntaxError, DecompressionBombError) as error:
        raise HarnessError(
            f"task {name}, doc_id {doc_id}: an image cannot be read ({error})", "Replace it"
        ) from error
    prompt = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return _item(task, doc_id, doc, prompt, contents), images


def describe_without_images(task: Any, doc_id: int) -> records.Item:  # noqa: ANN401
    """A document whose images cannot be read: no content tells its id, so its position has to."""
    doc = task.eval_docs_no_media[doc_id]
    return _item(task, doc_id, doc, str(task.doc_to_text(doc)), [f"unreadable, doc_id {doc_id}".encode()])


def stored_images(task: Any, items: Iterable[records.Item]) -> Iterator[list[dict[str, Any]]]:  # noqa: ANN401
    """The images of each item as `datasets` stores them, read one item at a time.

    A file stays as it is where it holds just the RGB pixels that the task shows: one in the document itself,
    if its files are the item's images, all of them and unchanged, or one that the task opened by its path.
    Other images become PNG files.

    Raises:
        HarnessError: an image cannot be read, or is another than when the item was described.
    """
    held = _held_files(task.eval_docs)
    for item in items:
        files = [(file, _picture(file)) for file in held(item.doc_id)]
        contents = [records.pixels(picture) for _, picture in files if picture is not None]
        if len(contents) == len(files) and _is_of(item, contents):
            yield [file for file, _ in files]
            continue
        images = describe(task, item.doc_id)[1]
        if not _is_of(item, [records.pixels(image) for image in images]):
            raise HarnessError(
                f"task {item.task}, doc_id {item.doc_id}: its images have changed since the run began",
                "Put the former ones back",
            )
        yield [_opened_file(image) or dataset_folder.png(image) for image in images]


def _is_of(item: records.Item, contents: list[bytes]) -> bool:
    return records.item_id(item.task, item.prompt, item.answer, contents) == item.item_id


def _held_files(docs: Any) -> Callable[[int], list[dict[str, Any]]]:  # noqa: ANN401 - a datasets.Dataset, or a list
    """What gives the image files that a document holds, by doc_id."""
    from datasets import Dataset, Image, List

    if not isinstance(docs, Dataset):
        return lambda doc_id: []
    listed = [name for name, kind in docs.features.items() if isinstance(kind, List)]
    kinds = {
        name: docs.features[name].feature if name in listed else docs.features[name] for name in docs.features
    }
    # As Arrow, images stay encoded.
    files = docs.select_columns([name for name in kinds if isinstance(kinds[name], Image)]).with_format(
        "arrow"
    )

    def held(doc_id: int) -> list[dict[str, Any]]:
        rows = files[doc_id : doc_id + 1].to_pylist()
        cells = [cell if name in listed else [cell] for row in rows for name, cell in row.items()]
        return [file for cell in cells for file in cell or [] if file is not None]

    return held


def _picture(file: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a PIL image
    """What readers of a curated set see of a file, None where that is no RGB picture."""
    from datasets import Image
    from PIL.Image import DecompressionBombError

    try:
        picture = Image().decode_example(dict(file))
    except (OSError, SyntaxError, ValueError, DecompressionBombError):
        return None  # what is wrong with it is said where its document is described
    return picture if picture.mode == "RGB" else None


def _opened_file(image: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a PIL image
    """The file that a task opened, None where it has no path or shows something else."""
    path = Path(getattr(image, "filename", "") or "")
    if not path.is_file():
        return None
    file = {"bytes": path.read_bytes(), "path": None}
    picture = _picture(file)
    return file if picture is not None and records.pixels(picture) == records.pixels(image) else None


def _item(task: Any, doc_id: int, doc: Any, prompt: str, contents: list[bytes]) -> records.Item:  # noqa: ANN401
    name, target = task.config.task, records.as_text(task.doc_to_target(doc))
    metadata = task.config.metadata if isinstance(task.config.metadata, dict) else {}
    column = metadata.get("answer_column")
    answer = records.as_text(json.loads(doc[column])) if column else target
    key = records.item_id(name, prompt, answer, contents)
    return records.Item(key, name, doc_id, prompt, answer, target)


def _parts(content: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
