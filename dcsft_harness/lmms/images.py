"""The images of a pool's items as rollouts keep them, read one item at a time."""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import records
from dcsft_harness.artifacts import dataset_folder
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.documents import describe
from dcsft_harness.pictures import UnreadableError, file_bytes, is_plain, to_rgb


def stored_images(
    task: Any,  # noqa: ANN401
    items: Iterable[records.Item],
    refused: Collection[int] = (),
) -> Iterator[list[dict[str, Any]]]:
    """The images of each item as `datasets` stores them, read one item at a time.

    A file stays as it is where it holds just the RGB pixels that the task shows: one in the document itself,
    if its files are the item's images, all of them and unchanged, or one that the task opened by its path.
    Other images become PNG files.

    Args:
        task: as `harness.open_tasks` gives it.
        items: its items, as `describe` or `describe_item` gave them.
        refused: doc_ids of items that have no responses: what cannot be read of their images is left out.

    Raises:
        HarnessError: an image cannot be read, or is another than when the item was described.
    """
    held, known_by = _held_files(task.eval_docs)
    for item in items:
        files = [(file, _picture(file)) for file in held(item.doc_id)]
        contents = [known_by(picture) for _, picture in files if picture is not None]
        if len(contents) == len(files) and _is_of(item, contents):
            yield [file for file, _ in files]
            continue
        try:
            yield _images_now(task, item)
        except HarnessError:
            if item.doc_id not in refused:
                raise
            yield []


def _images_now(task: Any, item: records.Item) -> list[dict[str, Any]]:  # noqa: ANN401
    found, images = describe(task, item.doc_id)
    if found.item_id != item.item_id:
        raise HarnessError(
            f"task {item.task}, doc_id {item.doc_id}: its images have changed since the run began",
            "Put the former ones back",
        )
    return [_opened_file(image) or dataset_folder.png(image) for image in images]


def _is_of(item: records.Item, contents: list[bytes]) -> bool:
    return records.item_id(item.task, item.prompt, item.answer, contents) == item.item_id


def _held_files(docs: Any) -> tuple[Callable[[int], list[dict[str, Any]]], Callable[[Any], bytes]]:  # noqa: ANN401
    """What gives the image files that a document holds, by doc_id, and what an item's id knows each by."""
    from datasets import Dataset, Image, List, Value

    if not isinstance(docs, Dataset):
        return lambda doc_id: [], records.pixels
    if "source" in docs.features and docs.features.get("images") == List(Value("int64")):
        return lambda doc_id: _published_files(docs[doc_id]), records.pixel_digest
    listed = {name: kind.feature for name, kind in docs.features.items() if isinstance(kind, List)}
    names = [name for name, kind in {**docs.features, **listed}.items() if isinstance(kind, Image)]
    files = docs.select_columns(names).with_format("arrow")  # where images stay encoded

    def held(doc_id: int) -> list[dict[str, Any]]:
        rows = files[doc_id : doc_id + 1].to_pylist()
        cells = [cell if name in listed else [cell] for row in rows for name, cell in row.items()]
        return [file for cell in cells for file in cell or [] if file is not None]

    return held, records.pixels


def _published_files(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The image files of a prepared benchmark's row."""
    from dcsft_harness.data.benchmarks import prepared

    return [{"bytes": prepared.encoded(doc["source"], index), "path": None} for index in doc["images"]]


def _picture(file: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a PIL image
    """The picture in a file, None where the file holds anything but upright RGB pixels."""
    from PIL import Image

    try:
        content = file["bytes"] or file_bytes(Path(file["path"]))
        with Image.open(io.BytesIO(content)) as image:
            return to_rgb(image) if is_plain(image) else None
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return None  # the error comes where its document is described


def _opened_file(image: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a PIL image
    """The file that a task opened, None where it has no path or shows something else."""
    try:
        file = {"bytes": file_bytes(Path(getattr(image, "filename", "") or "")), "path": None}
    except UnreadableError:
        return None
    picture = _picture(file)
    return file if picture is not None and records.pixels(picture) == records.pixels(image) else None
