"""A task's document as an item with its images, and its metrics for a response."""

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from dcsft_harness import reading, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError, listed
from dcsft_harness.lmms.protocols import Documents, Model, Task
from dcsft_harness.pictures import UnreadableError, file_bytes, is_plain, opened, reason, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image


def score_of(task: Task, metrics: Mapping[str, Any]) -> tuple[float | None, str | None, str | None]:
    """The score, the extracted answer and the cluster in the result of `process_results`.

    Our tasks return `acc` as {"score", "cluster"}. For other tasks: the metric that `score_key` names, else
    `acc`, the only one that holds a number under this key, or the only number there is.

    Raises:
        HarnessError: no metric can be identified as the score; lower values are better; or the score is not a
            fraction.
    """
    key = str(task.get_config("score_key") or "score")
    chosen = metric_of(task, metrics)
    if chosen is None:
        raise _unscored(task, metrics)
    value = metrics[chosen]
    score = float(_inner(key, chosen, value))
    _refuse_no_fraction(task, chosen, score)
    cluster = (
        value.get(str(task.get_config("cluster_key") or "cluster")) if isinstance(value, Mapping) else None
    )
    extracted = metrics.get("extracted")
    return (
        None if score != score else score,
        None if extracted is None else records.as_text(extracted),
        None if cluster is None else str(cluster),
    )


def _unscored(task: Task, metrics: Iterable[str]) -> HarnessError:
    return HarnessError(
        f"task {task.config.task}: none of its metrics {sorted(metrics)} can be recognized as the score",
        "Set `score_key` in the task's YAML file",
    )


def metric_of(task: Task, metrics: Mapping[str, Any]) -> str | None:
    """The metric that is the score, by the rules of `score_of`; None if none can be identified.

    Raises:
        HarnessError: lower values of it are better.
    """
    numbers = _numbers(task, metrics)
    inside = [name for name in numbers if isinstance(metrics[name], Mapping)]
    return _chosen(task, numbers, _score_key(task), inside)


def _inner(key: str, metric: str, value: Any) -> Any:  # noqa: ANN401 - of another's task
    """The score in a metric's value, perhaps a mapping: under the key, or `score` if that is its name."""
    if not isinstance(value, Mapping):
        return value
    return value.get(key, value.get("score") if metric == key else None)


def _score_key(task: Task) -> str:
    return str(task.get_config("score_key") or "score")


def _numbers(task: Task, metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that are numbers, or hold one under the score's key."""
    key = _score_key(task)
    inner = {name: _inner(key, name, one) for name, one in metrics.items()}
    # Numbers of numpy and torch are arrays of no dimension.
    values = [one.item() if getattr(one, "ndim", None) == 0 else one for one in inner.values()]
    return [name for name, one in zip(inner, values, strict=True) if isinstance(one, bool | int | float)]


def refuse_reversed(task: Task) -> None:
    """Refuses a task whose score is an error rate, by its configuration, before anything is generated."""
    _chosen(task, list(task.higher_is_better()), _score_key(task))


def refuse_unscored(task: Task) -> None:
    """Refuses a task with several metrics, none of them the score, before anything is generated.

    Its configuration does not list what `process_results` returns, so an empty response to the first document
    is scored, without images: what that raises is for real responses to show. A function that may ask another
    model is not called.
    """
    named = {"acc", _score_key(task)} & set(task.higher_is_better())
    if named or _asks_models(task.get_config("process_results")) or not len(task.eval_docs_no_media):
        return
    with contextlib.redirect_stdout(sys.stderr):
        try:
            metrics = task.process_results(task.eval_docs_no_media[0], [""])
        except Exception:  # noqa: BLE001 - whatever their code raises
            return
    if isinstance(metrics, Mapping) and len(_numbers(task, metrics)) > 1 and metric_of(task, metrics) is None:
        raise _unscored(task, metrics)


_MODELS = frozenset(
    (
        *("requests", "httpx", "aiohttp", "urllib", "urllib3", "openai", "anthropic", "google", "boto3"),
        *("torch", "transformers", "evaluate", "sentence_transformers", "bert_score", "qa_metrics", "clip"),
    )
)
"""Packages by which a task's functions ask judges, or load models of their own."""


def _asks_models(function: object) -> bool:
    """Whether a function or its file names one of `_MODELS`, or lmms-eval's judges."""
    function = inspect.unwrap(function) if callable(function) else function
    code, names = getattr(function, "__code__", None), dict(getattr(function, "__globals__", {}))
    if code is None:
        return function is not None  # lmms-eval's own metrics ask nobody
    for name, value in [*names.items(), *((name, None) for name in code.co_names)]:
        module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", name)
        parts = f"{name} {module}".replace(".", " ").split()
        if name.startswith(("API_", "OPENAI_")) or "llm_judge" in parts or _MODELS & {*parts[:2]}:
            return True
    return False


def _chosen(task: Task, names: Sequence[str], key: str, inside: Sequence[str] = ()) -> str | None:
    """The score among metrics that are numbers, of which those `inside` hold one under the key."""
    only = [*inside, *names][0] if 1 in (len(names), len(inside)) else None
    order = ("acc", key) if key == "score" else (key, "acc")  # lmms-eval fills in "score" where none is set
    chosen = next((name for name in order if name in names), only)
    if chosen is not None and task.higher_is_better().get(chosen) is False:
        raise HarnessError(
            f"task {task.config.task}: lower values of its metric {chosen} are better (higher_is_better: "
            "false), but a higher score must be better",
            "Let process_results return a score that is higher for better responses, such as 1 minus it",
        )
    return chosen


def _refuse_no_fraction(task: Task, metric: str, score: float) -> None:
    if not (score != score or 0 <= score <= 1):
        raise HarnessError(
            f"task {task.config.task}: a response has the {metric} {score:g}",
            "Scores are fractions from 0 to 1 (no percent, no counts): divide it in process_results, or set "
            "`score_key` in the task's YAML file to a metric that is one",
        )


def verdicts_of(
    task: Task, doc: Mapping[str, Any], responses: Sequence[str], metrics: Mapping[str, Any]
) -> list[tuple[float | None, str | None, str | None]]:
    """The score, extracted answer and vote of each response to one document.

    `metrics` is the result of the task's `process_results` for all of them. Our tasks list each response
    there; for other tasks each response is scored again.
    """
    listed = [metrics.get(name) for name in ("scores", "extracted", "votes")]
    if all(isinstance(one, list) and len(one) == len(responses) for one in listed):
        for score in listed[0] or ():
            _refuse_no_fraction(task, "scores", float(score))
        return [
            (float(score), None if found is None else records.as_text(found), vote)
            for score, found, vote in zip(*listed, strict=True)
        ]
    verdicts = [score_of(task, task.process_results(doc, [response])) for response in responses]
    return [(score, extracted, extracted) for score, extracted, _ in verdicts]


def describe(task: Task, doc_id: int, known: "Known | None" = None) -> tuple[records.Item, list["Image"]]:
    """One document of a task as an item, and its images; errors name task and document.

    With `known` the images are placeholders, and none is decoded.
    """
    from PIL.Image import DecompressionBombError

    name = task.config.task
    try:
        doc = task.eval_docs[doc_id] if known is None else known.document(task, doc_id)
        messages = task.doc_to_messages(doc)
        turns = [_parts(message["content"]) for message in messages]
        parts = [part for turn in turns for part in turn]
        images = [opened(part.get("url", part.get("image"))) for part in parts if part["type"] == "image"]
        # Images that were opened by path are first read here.
        contents = [_content(image) for image in images] if known is None else []
    except (OSError, SyntaxError, DecompressionBombError, UnreadableError) as error:
        raise HarnessError(
            f"task {name}, doc_id {doc_id}: an image cannot be read ({reason(error)})", "Replace it"
        ) from error
    item = _item(task, doc_id, doc, prompt_of(turns), contents)
    if known is not None:
        item = replace(item, item_id=known.item_id)
    return replace(item, turns=_written([message["role"] for message in messages], turns)), images


class Known(NamedTuple):
    """What is known of a user's row since it was checked; its task's `known` has it by doc_id.

    Its copy on disk has its images as they are shown, so nothing needs to decode them again.
    """

    item_id: str
    images: int  # how many it has

    def document(self, task: Task, doc_id: int) -> dict[str, Any]:
        """The row with an image of one pixel for each of its own."""
        from PIL import Image

        return {**task.eval_docs_no_media[doc_id], "images": [Image.new("RGB", (1, 1))] * self.images}


def _known(task: Task) -> Mapping[int, Known]:
    found: Mapping[int, Known] = getattr(task, "known", {})  # see `own_data.open_file`
    return found


def _written(roles: Sequence[str], turns: Sequence[Sequence[Mapping[str, Any]]]) -> str | None:
    """Turns in the format of `records.Item`."""
    if list(roles) == ["user"]:
        return None
    texts = ["".join(records.MARK if p["type"] == "image" else p.get("text", "") for p in t) for t in turns]
    return json.dumps(
        [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)], ensure_ascii=False
    )


def prompt_of(turns: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The text of messages, with `<image>` at each image's position unless all images come first.

    Parts of a turn follow each other without a space, as the model reads them; turns are lines.

    A task's own text may contain `<image>` without an image. Then every image gets one too, so that the
    numbers of placeholders and images differ.
    """
    kinds = [part["type"] for turn in turns for part in turn]
    texts = [part["text"] for turn in turns for part in turn if part["type"] == "text"]
    first = kinds.index("text") if texts else len(kinds)
    if "image" not in kinds[first:] and not ("image" in kinds and any(records.MARK in one for one in texts)):
        written = [[part["text"] for part in turn if part["type"] == "text"] for turn in turns]
        return "\n".join("".join(one) for one in written if one)
    marks = {"image": records.MARK}
    return "\n".join(
        "".join(marks.get(part["type"], part.get("text", "")) for part in turn) for turn in turns
    )


def describe_item(task: Task, doc_id: int) -> records.Item:
    """The item of `describe` alone; images of prepared data and of own rows are not decoded.

    Raises:
        HarnessError: an image cannot be read; names task and document.
    """
    with prepared.unopened():
        return describe(task, doc_id, _known(task).get(doc_id))[0]


def refuse_marked(
    model: Model, task: Task, items: Iterable[records.Item], refused: dict[tuple[str, int], str] | None = None
) -> None:
    """Refuses items whose text contains the model's own image tokens, before any item is answered.

    A model that does not name its tokens passes. `refused`, if given, is filled with (task, doc_id) -> the
    reason instead. The error lists the first items, and their number.
    """
    marks = [mark for mark in getattr(model, "media_marks", ()) if mark != records.MARK]
    named: Mapping[int, str] = getattr(task, "row_names", {})  # see `own_data.open_file`
    name, bad = task.config.task, {}
    for item in items:
        if (mark := next((one for one in marks if one in item.prompt), None)) is not None:
            place = named.get(item.doc_id, f"doc_id {item.doc_id}")
            bad[name, item.doc_id] = f"{place}: the prompt has {mark!r} in its text"
    why = "which the model reads as its own image token"
    if refused is not None:
        refused.update({place: f"task {name}, {said}, {why}" for place, said in bad.items()})
    elif len(bad) == 1:
        raise HarnessError(f"task {name}, {next(iter(bad.values()))}, {why}", "Change it or remove the item")
    elif bad:
        raise HarnessError(
            f"task {name}: {len(bad)} prompts have a text that the model reads as its own image token: "
            f"{listed(list(bad.values()))}",
            "Change them or remove the items",
        )


def _content(image: "Image") -> bytes:
    """An image's part of its item's id."""
    kept = image.info.get(prepared.DIGEST)
    return kept if isinstance(kept, bytes) else records.pixels(image)


def describe_without_images(task: Task, doc_id: int) -> records.Item:
    """A document with unreadable images: its id depends on its position instead of its content."""
    doc = task.eval_docs_no_media[doc_id]
    return _item(task, doc_id, doc, str(task.doc_to_text(doc)), [f"unreadable, doc_id {doc_id}".encode()])


def data_name(task: Task) -> str:
    """The name of a task's rows: also of a user's task that includes the file of one of the suite's."""
    return str(task.get_config("dataset_name") or task.config.task)


def data_fingerprint(task: Task) -> str:
    """A hash of the rows that a task asks, with their images; see `names_images` for files that rows name."""
    folders = prepared.inputs([data_name(task)])
    rows = getattr(task.eval_docs, "_fingerprint", "")
    return json_sha256([rows, *map(manifest.fingerprint, folders.values())])


def names_images(task: Task) -> bool:
    """Whether a task's rows hold no images themselves, so that they may name files, whose content may change.

    The first row decides.
    """
    if prepared.inputs([data_name(task)]) or not len(task.eval_docs_no_media):
        return False
    files = _held_files(task.eval_docs)[0](0)
    return not files or any(not file["bytes"] for file in files)


def metadata(task: Task) -> dict[str, Any]:
    """What a task's file has as `metadata`; see `reading.merged`."""
    return reading.merged(task.config.metadata)


def _item(
    task: Task, doc_id: int, doc: Mapping[str, Any], prompt: str, contents: list[bytes]
) -> records.Item:
    name, target = task.config.task, records.as_text(task.doc_to_target(doc))
    said = metadata(task)
    column = said.get("answer_column")
    gold = reading.from_json(doc[column]) if column else target
    answer = records.as_text(gold)
    if own := said.get("id_column"):  # a benchmark may repeat a question: MathVerse's versions do
        contents = [*contents, str(doc[own]).encode()]
    key = records.item_id(name, prompt, answer, contents)
    return records.Item(key, name, doc_id, prompt, answer, target, _box(gold))


def _box(gold: object) -> list[float] | None:
    """The gold, if it is four numbers: only the box scorer takes a list of numbers."""
    if not isinstance(gold, list) or len(gold) != 4 or not all(type(side) in (int, float) for side in gold):
        return None
    return [float(side) for side in gold]


def _parts(content: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


# The images of a pool's items in storage format, read one item at a time.


def stored_images(
    task: Task, items: Iterable[records.Item], refused: Collection[int] = ()
) -> Iterator[list[dict[str, Any]]]:
    """The images of each item in the format of `datasets`, read one item at a time.

    A file is stored unchanged if it holds exactly the RGB pixels that the task shows: either the document's
    own file, if the document's files are all of the item's images, or one that the task opened by its path.
    Other images become PNG files. Items in `refused`, by doc_id, have no responses: their unreadable images
    are left out.

    Raises:
        HarnessError: an image cannot be read, or has changed since the item was described.
    """
    held, known_by = _held_files(task.eval_docs)
    own, known = metadata(task).get("id_column"), _known(task)
    for item in items:
        if item.doc_id in known and known[item.doc_id].item_id == item.item_id:
            yield held(item.doc_id)
            continue
        files = [(file, _picture(file)) for file in held(item.doc_id)]
        contents = [known_by(picture) for _, picture in files if picture is not None]
        if own:
            contents.append(str(task.eval_docs_no_media[item.doc_id][own]).encode())
        same = records.item_id(item.task, item.prompt, item.answer, contents) == item.item_id
        if same and all(picture is not None for _, picture in files):
            yield [file for file, _ in files]
            continue
        try:
            yield _images_now(task, item)
        except HarnessError:
            if item.doc_id not in refused:
                raise
            yield []


def _images_now(task: Task, item: records.Item) -> list[dict[str, Any]]:
    found, images = describe(task, item.doc_id)
    if found.item_id != item.item_id:
        raise HarnessError(
            f"task {item.task}, doc_id {item.doc_id}: its images have changed since the run began",
            "Restore the original images",
        )
    return [_opened_file(image) or storage.png(image) for image in images]


def _held_files(
    docs: Documents,
) -> tuple[Callable[[int], list[dict[str, Any]]], Callable[["Image"], bytes]]:
    """A function from doc_id to a document's image files, and each image's part of the item's id."""
    from datasets import Dataset, Image, List, Value

    if not isinstance(docs, Dataset):
        return lambda doc_id: [], records.pixels
    if "source" in docs.features and docs.features.get("images") == List(Value("int64")):
        return lambda doc_id: _published_files(docs[doc_id]), records.pixel_digest
    listed = {name: kind.feature for name, kind in docs.features.items() if isinstance(kind, List)}
    names = [name for name, kind in {**docs.features, **listed}.items() if isinstance(kind, Image)]
    files = docs.select_columns(names).with_format("arrow")  # if images stay encoded

    def held(doc_id: int) -> list[dict[str, Any]]:
        rows = files[doc_id : doc_id + 1].to_pylist()
        cells = [cell if name in listed else [cell] for row in rows for name, cell in row.items()]
        return [file for cell in cells for file in cell or [] if file is not None]

    return held, records.pixels


def _published_files(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"bytes": prepared.encoded(doc["source"], index), "path": None} for index in doc["images"]]


def _picture(file: Mapping[str, Any]) -> "Image | None":
    """The image in a file; None unless the file holds exactly upright RGB pixels."""
    from PIL import Image

    try:
        content = file["bytes"] or file_bytes(Path(file["path"]))
        with Image.open(io.BytesIO(content)) as image:
            return to_rgb(image) if is_plain(image) else None
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return None  # the error comes where its document is described


def _opened_file(image: "Image") -> dict[str, Any] | None:
    """The file that a task opened; None if it has no path or differs from the image shown."""
    try:
        file = {"bytes": file_bytes(Path(getattr(image, "filename", "") or "")), "path": None}
    except UnreadableError:
        return None
    picture = _picture(file)
    return file if picture is not None and records.pixels(picture) == records.pixels(image) else None
