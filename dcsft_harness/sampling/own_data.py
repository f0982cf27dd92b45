"""A user's own JSONL as a pool: read, checked row by row, and made an lmms-eval task on the fly."""

import atexit
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsft_harness import lmms, records
from dcsft_harness.artifacts import dataset_folder, manifest
from dcsft_harness.artifacts.hashing import json_sha256
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.pictures import to_rgb
from dcsft_harness.sampling import own_rows
from dcsft_harness.scoring import SCORERS, Scorer, get_scorer

LISTED = 20
"""Bad rows that a refusal lists."""


def open_file(
    path: Path, scorer: str | None, image_root: Path | None, skip: bool = False, outside: bool = False
) -> Any:  # noqa: ANN401 - an lmms-eval task
    """Reads a JSONL file and returns it as a chat task.

    Args:
        path: one JSON object a line.
        scorer: how answers are judged: a key of `scoring.SCORERS`, or "package.module:function".
        image_root: where relative image paths start; None means the file's own folder.
        skip: whether a row with an unreadable image becomes a document without one; the task's
            `unreadable` then says why, by doc_id. Otherwise it is an error.
        outside: whether images may lie outside the image root.

    Raises:
        HarnessError: an unknown scorer; or malformed rows, unreadable images or duplicate rows, of which
            the first LISTED are listed.
    """
    if scorer is None:
        raise HarnessError(
            "--data needs --scorer", f"Choose one of {', '.join(SCORERS)}, or package.module:function"
        )
    judge = get_scorer(scorer)
    from datasets import Dataset, DatasetDict, Features, Image, List, Value

    unreadable: dict[int, str] = {}
    text, number = Value("string"), Value("int64")
    names = ("prompt", "answer", "target", "cluster")
    features = Features(
        {
            **dict.fromkeys(names, text),
            "images": List(Image()),
            "choices": List(text),
            "width": number,
            "height": number,
        }
    )
    folder = Path(tempfile.mkdtemp(prefix="dcsft-"))
    with contextlib.ExitStack() as undoing:
        undoing.callback(shutil.rmtree, folder, ignore_errors=True)
        DatasetDict({"test": Dataset(features.arrow_schema.empty_table())}).save_to_disk(str(folder))
        with dataset_folder.writing(folder / "test", features) as writer:
            root = own_rows.Root(image_root or path.parent, outside)
            writer.rows(_rows(path, judge, root, skip, unreadable))
        undoing.pop_all()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    task = lmms.make_task(_config(path.stem, judge, folder))
    task.unreadable = unreadable
    return task


def _config(name: str, scorer: Scorer, folder: Path) -> dict[str, Any]:
    from dcsft_harness.tasks.verdicts import mean_score, process

    family = {"family": "grounding"} if "box_space" in scorer.fields else {}
    return {
        "task": name,
        "dataset_path": str(folder),
        "dataset_kwargs": {"load_from_disk": True},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_messages": _messages,
        "doc_to_visual": lambda doc: list(map(to_rgb, doc["images"])),
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "process_results": lambda doc, results: process(scorer, doc, results),
        "generation_kwargs": {"max_new_tokens": 128, "until": []},
        "metric_list": [{"metric": "acc", "aggregation": mean_score, "higher_is_better": True}],
        "score_key": "score",
        "cluster_key": "cluster",
        "metadata": {"version": 1, "answer_column": "answer", **family},
    }


def _messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The user turn, each picture at its mark; without marks they come first."""
    prompt, images = doc["prompt"], [{"type": "image", "url": to_rgb(image)} for image in doc["images"]]
    if records.MARK not in prompt:
        return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]
    content: list[dict[str, Any]] = []
    for number, text in enumerate(prompt.split(records.MARK)):
        content += images[number - 1 : number] if number else []
        content += [{"type": "text", "text": text}] if text else []
    return [{"role": "user", "content": content}]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by number."""
    if not path.is_file():
        raise HarnessError(f"--data {path} does not exist", "Check the path")
    with path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _rows(
    path: Path, scorer: Scorer, root: own_rows.Root, skip: bool, unreadable: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """The rows of the task, one at a time; `unreadable` is filled as `open_file` says.

    Raises:
        HarnessError: see `open_file`; after the last line, so that all bad rows are known.
    """
    seen: dict[bytes, int] = {}
    bad: list[tuple[int, HarnessError]] = []
    count = 0
    for number, line in _lines(path):
        count += 1
        try:
            row, pictures, reason = own_rows.checked(line, scorer, root)
            if reason is not None and not skip:
                raise reason
            if reason is not None:
                unreadable[count - 1] = str(_placed(path, number, reason))
            else:
                key = records.item_id("", row["prompt"], row["answer"], list(map(records.pixels, pictures)))
                first = seen.setdefault(bytes.fromhex(key), number)
                if first != number:
                    raise HarnessError(
                        f"the same item as line {first} (same prompt, answer and image)",
                        "Remove one of them; joins go by content",
                    )
        except HarnessError as error:
            bad.append((number, error))
            continue
        if not bad:
            yield {**row, "cluster": str(number)}
    if count == 0:
        raise HarnessError(f"{path} holds no rows", "Write one JSON object a line")
    if bad:
        raise _refusal(path, bad, count)


def _placed(path: Path, number: int, error: HarnessError) -> HarnessError:
    return HarnessError(f"{path}, line {number}: {cut(error.problem, 400)}", cut(error.remedy, 400))


def _refusal(path: Path, bad: Sequence[tuple[int, HarnessError]], count: int) -> HarnessError:
    """The error that lists bad rows."""
    if len(bad) == 1:
        return _placed(path, *bad[0])
    listed = [f"line {number}: {cut(error.problem)}" for number, error in bad[:LISTED]]
    listed += [f"and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    remedies = list(dict.fromkeys(cut(error.remedy) for _, error in bad if error.remedy))
    return HarnessError(
        f"{path}: {len(bad)} of {count} rows cannot be used: {'; '.join(listed)}", "; ".join(remedies[:3])
    )


def refuse_former(rollouts: manifest.Manifest) -> None:
    """Refuses rollouts of a JSONL file that a former version showed to the model in another way.

    Only what lies where it was can be looked at: the file, and images in its folder.

    Raises:
        HarnessError: names the first such line.
    """
    entry = rollouts.inputs.get("data")
    if entry is None or "pictures" in rollouts.notes:
        return
    path = (rollouts.folder / entry["path"]).resolve()
    for number, line in _lines(path) if path.is_file() else ():
        reason = own_rows.differs_in_former(line, own_rows.Root(path.parent, outside=True))
        if reason is not None:
            raise HarnessError(
                f"{rollouts.folder} was sampled by a former version of dcsft, in which {path.name}, line"
                f" {number}, {reason}",
                "Sample and label again",
            )


def images_sha256(path: Path, image_root: Path | None, outside: bool = False) -> str:
    """A hash of the contents of every image that a JSONL file names.

    Rows that cannot be read and images that are refused count as they are: the error comes when the file is
    opened.
    """
    root = own_rows.Root(image_root or path.parent, outside)
    found: list[str | None] = []
    for _, line in _lines(path):
        with contextlib.suppress(ValueError):
            for name in own_rows.image_names(records.json_object(line)):
                try:
                    found.append(hashlib.sha256(root.read(name)).hexdigest())
                except HarnessError:
                    found.append(None)
    return json_sha256(found)
