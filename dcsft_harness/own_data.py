"""A user's own JSONL as a pool: read, checked row by row, and made an lmms-eval task on the fly."""

import atexit
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import dataset_folder, harness, own_rows, records
from dcsft_harness.errors import HarnessError
from dcsft_harness.hashing import file_sha256, json_sha256
from dcsft_harness.pictures import on_white
from dcsft_harness.scoring import SCORERS, Scorer, get_scorer


def open_file(path: Path, scorer: str | None, image_root: Path | None, skip: bool = False) -> Any:  # noqa: ANN401 - an lmms-eval task
    """Reads a JSONL file and returns it as a chat task.

    Args:
        path: one JSON object a line.
        scorer: how answers are judged: a key of `scoring.SCORERS`, or "package.module:function".
        image_root: where relative image paths start; None means the file's own folder.
        skip: whether a row with an unreadable image becomes a document without one; the task's
            `unreadable` then says why, by doc_id. Otherwise it is an error.

    Raises:
        HarnessError: an unknown scorer, a malformed row, an unreadable image, or a duplicate row.
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
            writer.rows(_rows(path, judge, image_root or path.parent, skip, unreadable))
        undoing.pop_all()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    task = harness.make_task(_config(path.stem, judge, folder))
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
        "doc_to_visual": lambda doc: list(map(on_white, doc["images"])),
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "process_results": lambda doc, results: process(scorer, doc, results),
        "generation_kwargs": {"max_new_tokens": 128, "until": []},
        "metric_list": [{"metric": "acc", "aggregation": mean_score, "higher_is_better": True}],
        "score_key": "score",
        "cluster_key": "cluster",
        "metadata": {"version": 1, "answer_column": "answer", **family},
    }


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not path.is_file():
        raise HarnessError(f"--data {path} does not exist", "Check the path")
    # Bytes, so that a line in another encoding than UTF-8 is known by its number.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
            except ValueError as error:
                raise HarnessError(
                    f"{path}, line {number}: not JSON ({error})", "Mend or remove the line"
                ) from error
            if not isinstance(data, dict):
                raise HarnessError(f"{path}, line {number}: not a JSON object", "Write one object a line")
            yield number, data


def _rows(
    path: Path, scorer: Scorer, root: Path, skip: bool, unreadable: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """The rows of the task, one at a time; `unreadable` is filled as `open_file` says.

    Raises:
        HarnessError: see `open_file`.
    """
    seen: dict[str, int] = {}
    count = 0
    for number, data in _lines(path):
        row, pictures, reason = own_rows.checked(f"{path}, line {number}", data, scorer, root)
        if reason is not None and not skip:
            raise reason
        if reason is not None:
            unreadable[count] = str(reason)
        else:
            key = records.item_id("", row["prompt"], row["answer"], list(map(records.pixels, pictures)))
            if key in seen:
                raise HarnessError(
                    f"{path}, line {number}: the same item as line {seen[key]}"
                    " (same prompt, answer and image)",
                    "Remove one of them; joins go by content",
                )
            seen[key] = number
        count += 1
        yield {**row, "cluster": str(number)}
    if count == 0:
        raise HarnessError(f"{path} holds no rows", "Write one JSON object a line")


def images_sha256(path: Path, image_root: Path | None) -> str:
    """A hash of the contents of every image that a JSONL file names.

    Rows that cannot be read and images that are not there count as they are: what is wrong with them is
    said when the file is opened.
    """
    found: list[str | None] = []
    with path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                data = json.loads(line)
                for name in own_rows.image_names(data) if isinstance(data, dict) else []:
                    file = (image_root or path.parent) / str(name)
                    found.append(file_sha256(file) if file.is_file() else None)
    return json_sha256(found)
