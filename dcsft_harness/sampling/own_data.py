"""Rows of a user's own as a pool: a file or folder, checked row by row, becomes a task on the fly.

`own_files` says which files and folders are read, `own_rows` what a row may hold.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dcsft_harness import lmms, pictures, reading, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.lock import Scratch
from dcsft_harness.artifacts.storage import AT_ONCE
from dcsft_harness.data import OwnPart, OwnRows
from dcsft_harness.errors import (
    LISTED,
    HarnessError,
    grouped,
    in_row,
    near,
    refused_rows,
    reporting_refusals,
)
from dcsft_harness.pictures import to_rgb
from dcsft_harness.records import MARK
from dcsft_harness.sampling import ITEMS, own_files, own_rows
from dcsft_harness.sampling.own_rows import Root
from dcsft_harness.scoring import SCORERS, Scorer, get_scorer
from dcsft_harness.scoring.verdict import NOT_FOUND

_LOG = logging.getLogger(__name__)
SHOWN = "had an image that was not upright, or whose 16 or 32 bits were not scaled"
"""How former versions showed an image in another way."""
ANY = Scorer("none", lambda response, **given: NOT_FOUND, gold=records.as_text)
"""Stands where nothing judges responses: supervised training takes any answer."""


def open_file(
    path: Path,
    scorer: str | Scorer | None,
    image_root: Path | None,
    skip: bool = False,
    outside: bool = False,
    keep_unreadable: bool = True,
    part: "Part | None" = None,
) -> lmms.Task:
    """Reads a file or folder of rows and returns it as a chat task.

    Args:
        path: see `own_files`.
        scorer: how answers are judged: a key of `scoring.SCORERS`, or "package.module:function".
        image_root: where relative image paths start; None means `own_files.root_of`.
        skip: whether rows that cannot be used are left out; the task's `left_out` then says why, by row.
            Otherwise they are an error. The task's `row_names` are the rows' places, by doc_id.
        outside: whether images may lie outside the image root.
        keep_unreadable: with `skip`, whether a row with an unreadable image stays, as a document without one;
            the task's `unreadable` then says why, by doc_id.
        part: the part to read; None reads all rows.

    Raises:
        HarnessError: an unknown scorer; or malformed rows, unreadable images or duplicate rows, of which
            the first LISTED are listed; or no row is left.
    """
    own_files.refuse_missing(path)
    if scorer is None:
        raise HarnessError(
            "--data needs --scorer", f"Choose one of {', '.join(SCORERS)}, or package.module:function"
        )
    judge = get_scorer(scorer)
    bad: list[tuple[str, HarnessError]] = []
    unreadable: dict[int, str] = {}
    row_names: dict[int, str] = {}
    known: dict[int, lmms.Known] = {}
    unseen: dict[str, list[str]] = {}

    def documents() -> Iterator[dict[str, Any]]:
        total, root = 0, Root(image_root or own_files.root_of(path), outside)
        for where, row, reason in examined(path, judge, root, part):
            total += 1
            if row is None or (reason is not None and not (skip and keep_unreadable)):
                assert reason is not None
                bad.append((where, reason))
                continue
            if bad and not skip:
                continue
            if reason is not None:
                unreadable[len(row_names)] = str(in_row(own_files.called(path), where, reason))
            else:
                known[len(row_names)] = lmms.Known(row["item_id"], len(row["images"]))
            for why in row["unseen"]:
                unseen.setdefault(why, []).append(where)
            row_names[len(row_names)] = where
            yield {"cluster": where, **row}
        if bad and not (skip and row_names):
            raise refused_rows(own_files.called(path), bad, total, "used", skippable=True)

    task = lmms.make_task(_config(task_name(path, part), judge, _stored(documents())))
    left_out = {where: str(in_row(own_files.called(path), where, error)) for where, error in bad}
    vars(task).update(unreadable=unreadable, left_out=left_out, row_names=row_names, known=known)
    for said in [
        *unseen_notice(path, unseen, len(row_names)),
        *([notice(path, left_out)] if left_out else []),
    ]:
        _LOG.warning("%s", said)
    return task


def open_task(name: str, option: str) -> lmms.Task:
    """The lmms-eval task that an option names; an error if there is none, or several."""
    if option == "--data" and name not in lmms.task_index():
        meant = near(name, lmms.task_index())
        also = f"Did you mean {' or '.join(meant)}? " if meant else "Check the path; "
        raise HarnessError(
            f"--data {name} is neither a file nor a folder nor a task",
            f"{also}`dcsft tasks list` lists all tasks",
        )
    tasks = lmms.open_tasks([name])
    if len(tasks) != 1:
        raise HarnessError(
            f"{option} {name} is a group of {len(tasks)} tasks ({', '.join(tasks)})", "Name one of them"
        )
    return next(iter(tasks.values()))


def _stored(rows: Iterator[dict[str, Any]]) -> Path:
    """A folder with rows as the split "test", until the process exits."""
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("int64")
    columns = dict.fromkeys(("prompt", "turns", "answer", "target", "cluster"), text)
    columns |= {"images": List(Image()), "choices": List(text), "width": number, "height": number}
    features = Features(columns)
    place = Path(tempfile.gettempdir())
    with reporting_refusals("rows that were read", place, "nothing was kept", "TMPDIR"):
        scratch = Scratch("dcsft_rows")
        try:
            with storage.writing(scratch.folder / "test", features) as writer:
                writer.rows({name: row.get(name) for name in features} for row in rows)
            (scratch.folder / storage.SPLITS).write_text('{"splits": ["test"]}', encoding="utf-8")
        except BaseException:
            scratch.remove()
            raise
    return scratch.folder


@dataclass(frozen=True)
class Part:
    """One of the two parts of a pool: the rows held out from training, or the others.

    A row belongs to a part by its cluster (see `_cluster`). So rows that share an image stay together, and
    neither their order nor other rows move one to the other part.
    """

    share: float  # the probability of a row, or of all rows of an image, to be held out; between 0 and 1
    held: bool = False  # whether this is the held-out part

    def has(self, cluster: str) -> bool:
        """Whether rows of a cluster belong to it."""
        return (int(cluster, 16) / 2**64 < self.share) == self.held

    def refuse_empty(self, path: Path, count: int) -> None:
        """Refuses a part without rows, naming the share; `count` rows are in the other one."""
        which, change = ("in", "larger") if self.held else ("outside", "smaller")
        raise HarnessError(
            f"--held-out {self.share:g} of {own_files.called(path)}: none of its {count} rows"
            f" is {which} the held-out part",
            f"Use a {change} share; rows that share an image stay together",
        )


def _cluster(row: Mapping[str, Any], shown: Sequence[bytes]) -> str:
    """16 hex digits by the first image's pixels (`records.pixels`), or by the prompt without one.

    Rows that share an image, or of those without images a prompt (as several preferences of one question do),
    are not independent. No scorer changes either, so every command finds the same part of the rows (`Part`).
    """
    content = hashlib.sha256(shown[0]).digest() if shown else str(row["prompt"]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def unseen_notice(path: Path, rows: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """What is said of rows by the keys of `own_rows.UNSEEN`: their first LISTED, and how many there are.

    `count` rows are used in all.
    """
    said = []
    for why, places in rows.items():
        if why == "bare" and len(places) == count:
            continue
        more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
        rows_said, words = f"{len(places)} row{'s' * (len(places) > 1)}", own_rows.UNSEEN[why]
        if len(places) == 1:
            words = words.replace("have", "has", 1).replace("repeat", "repeats", 1)
        said.append(f"{own_files.called(path)}: {rows_said} {words}: {', '.join(places[:LISTED])}{more}")
    return said


def task_name(path: Path, part: Part | None = None) -> str:
    """The name of the task that a file or folder, or its held-out part, becomes."""
    return own_files.name_of(path) + ("_held_out" if part is not None and part.held else "")


def notice(path: Path, left_out: Mapping[str, str]) -> str:
    """What is said of rows that were left out, by place: rows with the same problem together."""
    name = own_files.called(path)
    said = grouped((where, why.removeprefix(f"{name}, {where}: ")) for where, why in left_out.items())
    count = f"{len(left_out)} rows are" if len(left_out) > 1 else "1 row is"
    return f"{name}: {count} left out: {' '.join(said)}"


def examined(
    path: Path, scorer: Scorer, root: Root, part: Part | None = None, pairs: bool = False
) -> Iterator[tuple[str, dict[str, Any] | None, HarnessError | None]]:
    """The rows of a file or folder, in its order, with what is wrong with each.

    Rows that cannot be used belong to both parts: their content is not known. With `pairs`, for preference
    training, rows that differ in `rejected` alone are several.

    Yields:
        What an error calls the row; the row of the task, with its `item_id`, or None where it cannot be
        used; and what is wrong with it. A row with an unreadable image is there, without any.

    Raises:
        HarnessError: the file cannot be read, or it or its part has no rows.
    """
    seen: dict[str, str] = {}
    asked: dict[str, str] = {}
    name, where = task_name(path, part), None
    elsewhere = given = 0
    for where, data in own_files.rows(path):
        row: dict[str, Any] | None
        try:
            if isinstance(data, HarnessError):
                raise data
            row, pictures, reason = own_rows.checked(data, None if scorer is ANY else scorer, root)
            if reason is None:
                answer = records.as_text(reading.from_json(row["answer"]))
                shown = list(map(records.pixels, pictures))
                key = records.item_id(name, row["prompt"], answer, shown)
                row |= {"item_id": key, "cluster": _cluster(row, shown)}
                first = seen.setdefault(key + (row["rejected"] or "") if pairs else key, where)
                if first != where:
                    alone = "; `rejected` counts only for train dpo"
                    other = "" if pairs or row["rejected"] is None else alone
                    raise HarnessError(
                        f"the same item as {first} (same prompt, answer and image{other})",
                        "Remove one of them; items are joined by content",
                    )
                question = f"{row['cluster']}\0{row['prompt']}" if len(shown) == 1 else key
                answered = asked.setdefault(question, answer)
                if answered != answer and row["rejected"] is None:
                    row["unseen"].append("asked")
                if part is not None and not part.has(row["cluster"]):
                    elsewhere += 1
                    continue
        except HarnessError as error:
            row, reason = None, error
        given += 1
        # Another error: the trace of this one, and of its causes, would keep the row's pictures.
        yield where, row, None if reason is None else HarnessError(reason.problem, reason.remedy)
    if where is None:
        raise HarnessError(f"{own_files.called(path)} holds no rows", "Pass a file with rows")
    if part is not None and not given:
        part.refuse_empty(path, elsewhere)


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
        "metric_list": [
            {"metric": "acc", "aggregation": mean_score, "higher_is_better": True},
            {"metric": "answered", "aggregation": fmean, "higher_is_better": True},
        ],
        "score_key": "score",
        "cluster_key": "cluster",
        "metadata": {"version": 1, "answer_column": "answer", "distribution": "id", **family},
    }


def _messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns, each image at its placeholder; without placeholders they come first."""
    images = [{"type": "image", "url": to_rgb(image)} for image in doc["images"]]
    turns = reading.from_json(doc["turns"]) if doc["turns"] else [{"role": "user", "content": doc["prompt"]}]
    if not any(records.MARK in turn["content"] for turn in turns):
        turns[0]["content"] = records.MARK * len(images) + turns[0]["content"]
    shown = iter(images)
    return [{"role": turn["role"], "content": records.parts(turn["content"], shown)} for turn in turns]


def differs_in_former(data: Mapping[str, Any], root: Root) -> str | None:
    """How former versions showed a row in another way; None if they did not, or that is not known."""
    try:
        images = own_rows.image_entries(data)
        if "messages" in data and images != own_rows.as_list(data.get("images", [])):
            return "had no image, as `image` was not read beside `messages`"
        if MARK in own_rows.IN_FRONT.sub("", own_rows.exchange(data).turns[0]["content"]):
            return f"had its images before the text, and not at their {MARK} placeholders"
        if any(pictures.differs_in_former(root.read(name)) for name in images):
            return SHOWN
    except (HarnessError, ValueError):
        pass
    return None


def refuse_former(rollouts: manifest.Manifest) -> None:
    """Refuses rollouts of a JSONL file that an earlier version showed the model differently; names the row.

    Only what lies where it was can be looked at: the file, images in its folder, and those of the items.
    """
    entry = rollouts.inputs.get("data")
    if entry is None or "pictures" in rollouts.notes:
        return
    former = f"{rollouts.folder} was sampled by an earlier version of dcsft, in which"
    path = (rollouts.folder / entry["path"]).resolve()
    for where, data in own_files.rows(path) if path.is_file() else ():
        root = Root(path.parent, outside=True)
        reason = None if isinstance(data, HarnessError) else differs_in_former(data, root)
        if reason is not None:
            raise HarnessError(f"{former} {path.name}, {where}, {reason}", "Sample and label again")
    for table in storage.read(rollouts.folder / ITEMS, ["item_id", "images"], AT_ONCE):
        for item in table.to_pylist():
            if any(pictures.differs_in_former(image.get("bytes") or b"") for image in item["images"] or ()):
                raise HarnessError(f"{former} item {item['item_id']} {SHOWN}", "Sample and label again")


def part_of(options: OwnPart, held: bool = False) -> Part | None:
    """The part of the rows that `--held-out` leaves, or holds out; None for all rows."""
    return None if options.held_out is None else Part(options.held_out, held)


def described(path: Path, options: OwnRows) -> dict[str, Any]:
    """What a manifest says of a file of rows: besides their content, it decides the items and their ids."""
    images = images_sha256(path, options.image_root, options.allow_outside_root)
    share = getattr(options, "held_out", None)
    return {
        "scorer": options.scorer,
        "images_sha256": images,
        **({} if share is None else {"held_out": share}),
    }


def images_sha256(path: Path, image_root: Path | None, outside: bool = False) -> str:
    """A hash of the contents of every image that the rows of a file name or hold.

    Rows that cannot be read and images that are refused count as they are: the error comes when the file is
    opened.
    """
    root = Root(image_root or own_files.root_of(path), outside)
    found: list[str | None] = []
    for _, data in own_files.rows(path):
        for entry in [] if isinstance(data, HarnessError) else own_rows.image_entries(data):
            try:
                found.append(root.sha256(entry))
            except (HarnessError, OSError):
                found.append(None)
    return json_sha256(found)
