"""A user's own JSONL as a pool: read, checked row by row, and made an lmms-eval task on the fly."""

import atexit
import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness import lmms, pictures, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.artifacts.storage import AT_ONCE
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.pictures import to_rgb
from dcsft_harness.records import MARK, json_object
from dcsft_harness.sampling import ITEMS
from dcsft_harness.scoring import SCORERS, Scorer, get_scorer

# A line of a user's own JSONL as a row of its task: read in either format, and checked to the last field.
#
# The formats are those of the paper's release: `problem`, `solution`, `image`; and `messages`, `images`.

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.+?)\s*$", re.MULTILINE)
_IN_FRONT = re.compile(rf"^(\s*{MARK})+")
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SHOWN = "had an image that was not upright, or whose 16 or 32 bits were not scaled"
"""How former versions showed an image in another way."""


@dataclass(frozen=True)
class Root:
    """Where the images of a file's rows are.

    Attributes:
        folder: where relative paths start.
        outside: whether images may lie outside it, by absolute paths, "..", or links.
    """

    folder: Path
    outside: bool = False

    def read(self, name: object) -> bytes:
        """The content of an image file.

        Raises:
            HarnessError: it is refused, or cannot be read.
        """
        if not isinstance(name, str):
            raise HarnessError(f"an image is {type(name).__name__}, not a path", "Give paths as strings")
        if re.match(r"(data|https?):", name):
            raise HarnessError(f"image {cut(name)} is no path", "Save it as a file and name that")
        path = self.folder / name
        try:
            place, folder = path.resolve(), self.folder.resolve()
            if not self.outside and not place.is_relative_to(folder):
                raise HarnessError(
                    f"image {cut(str(path))} is outside {folder}",
                    "Give --image-root a folder that holds it, or --allow-outside-root",
                )
            return pictures.file_bytes(place)
        except (ValueError, RuntimeError) as error:  # NULs and circles of links, beside what is unreadable
            known = isinstance(error, pictures.UnreadableError)
            reason = str(error) if known else f"cannot be read ({cut(str(error))})"
            raise HarnessError(
                f"image {cut(str(path))} {reason}", "Check --image-root, or replace the file"
            ) from error


def checked(line: bytes, scorer: Scorer, root: Root) -> tuple[dict[str, Any], list[Any], HarnessError | None]:
    """A row of the task, its pictures, and what is wrong with them: it has none then.

    Raises:
        HarnessError: anything else is wrong with it. Messages do not name the file and line.
    """
    try:
        data = json_object(line)
    except ValueError as error:
        raise HarnessError(str(error), "Correct or remove the line") from error
    prompt, solution, images = _fields(data)
    if _listed(data.get("image")) and _listed(data.get("images")):
        raise HarnessError("both `image` and `images` name pictures", "Name all of them in `images`")
    marks = prompt.count(MARK)
    if marks != len(images) and (marks, len(images)) != (0, 1):  # a single image goes in front
        raise HarnessError(
            f"{marks} {MARK} marks for {len(images)} images",
            f"Write one {MARK} into the question where each image belongs",
        )
    in_front = _IN_FRONT.sub("", prompt)
    prompt = (prompt if MARK in in_front else in_front).strip()
    if not prompt.replace(MARK, "").strip():
        raise HarnessError("the question has no words", "Correct or remove the row")
    if "image_size" in scorer.fields and not images:
        raise HarnessError(f"no image, whose size the scorer {scorer.name} needs", "Add `image` to the row")
    reason = None
    try:
        found = [_image(name, root) for name in images]
    except HarnessError as error:
        found, reason = [], error
    first = found[0][0] if found else None
    gold = _gold(solution, scorer)
    row = {
        "prompt": prompt,
        "answer": json.dumps(gold),
        "target": solution if isinstance(solution, str) else json.dumps(solution),
        "images": [stored for _, stored in found],
        "choices": _choices(data, prompt) if "choices" in scorer.fields else [],
        "width": first.width if first else 0,
        "height": first.height if first else 0,
    }
    if reason is None:
        _refuse_gold(scorer, row)
    return row, [picture for picture, _ in found], reason


def _refuse_gold(scorer: Scorer, row: dict[str, Any]) -> None:
    """Lets the scorer look at the gold now: after hours of sampling would be too late."""
    fields = {"choices": row["choices"], "image_size": (row["width"], row["height"])}
    given = {name: value for name, value in fields.items() if name in scorer.fields}
    gold = json.loads(row["answer"])
    try:
        if scorer.check is not None:
            scorer.check(gold, **given)
        # Golds of boxes are in pixels, whatever a model that is yet to be opened writes.
        scorer("", answer=gold, **given)
    except HarnessError as error:
        raise HarnessError(error.problem, error.remedy) from error


def differs_in_former(line: bytes, root: Root) -> str | None:
    """How former versions showed a row in another way; None if they did not, or that is not known."""
    try:
        data = json_object(line)
        if "messages" in data and image_names(data) != _listed(data.get("images", [])):
            return "had no image, as `image` was not read beside `messages`"
        if MARK in _IN_FRONT.sub("", _fields(data)[0]):
            return f"had its images before the text, and not at their {MARK} marks"
        if any(pictures.differs_in_former(root.read(name)) for name in image_names(data)):
            return SHOWN
    except (HarnessError, ValueError):
        pass
    return None


def image_names(data: Mapping[str, Any]) -> list[Any]:
    """The names of a row's images, of `image` or `images`; whether they are paths is not looked at."""
    return _listed(data.get("images")) or _listed(data.get("image"))


def _listed(images: object) -> list[Any]:
    """One name or several as a list; null is none."""
    return images if isinstance(images, list) else [] if images is None else [images]


def _fields(data: Mapping[str, Any]) -> tuple[str, Any, list[Any]]:
    """Prompt, solution and image names of a row in either format."""
    if "messages" in data:
        question, answer = _turns(data["messages"])
        return question, answer, image_names(data)
    for name in ("problem", "solution"):
        if data.get(name) is None:
            raise HarnessError(
                f"no `{name}` and no `messages`; it has {cut(', '.join(sorted(data))) or 'nothing'}",
                "A row needs problem, solution and image, or messages and images",
            )
    if not isinstance(data["problem"], str):
        kind = type(data["problem"]).__name__
        raise HarnessError(f"`problem` is {kind}, not text", "Correct or remove the row")
    return data["problem"], data["solution"], image_names(data)


def _turns(messages: object) -> tuple[str, str]:
    """The question and the answer of a conversation of one turn each; more would be dropped in silence."""
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    said = []
    for role in ("user", "assistant"):
        texts = [turn.get("content") for turn in turns if turn.get("role") == role]
        if not texts or not isinstance(texts[0], str):
            raise HarnessError(f"`messages` has no {role} turn with text", "Correct or remove the row")
        said.append(texts[0])
    if len(turns) != 2:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise HarnessError(
            f"`messages` has the turns {roles}", "An item is one user turn and one assistant turn"
        )
    return said[0], said[1]


def _image(name: object, root: Root) -> tuple[Any, dict[str, Any]]:
    """A picture as it is shown (`pictures.to_rgb`), and what is stored: the file if it holds just that."""
    content = root.read(name)
    try:
        picture, plain = pictures.read(content)
    except pictures.UnreadableError as error:
        path = cut(str(root.folder / str(name)))
        raise HarnessError(f"image {path} cannot be read ({error})", "Replace the file") from error
    return picture, {"bytes": content, "path": None} if plain else storage.png(picture)


def _gold(solution: object, scorer: Scorer) -> object:
    """The gold answer as the scorer reads it, of what stands in <answer> tags if there are any."""
    tagged = _ANSWER_TAG.search(solution) if isinstance(solution, str) else None
    return scorer.gold(tagged[1].strip() if tagged else solution)


def _choices(data: Mapping[str, Any], prompt: str) -> list[str]:
    """The options: the row's own `choices` or `options`, else the lines "A. ...", "B. ..." of its prompt."""
    given = data.get("choices", data.get("options"))
    if isinstance(given, list) and given:
        for text in given:
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                kind = type(text).__name__
                raise HarnessError(
                    f"an option is {kind}, not text or a number", "Write its options as text or numbers"
                )
        return [str(text) for text in given]
    found: list[str] = []
    for letter, text in _OPTION.findall(prompt):  # "I. ..." numbers a statement, and the last list counts
        if letter == "A":
            found = [text]
        elif found and ord(letter) == ord("A") + len(found):
            found.append(text)
    if len(found) < 2:
        raise HarnessError("no options found", "Give `choices`, or write them as lines 'A. ...'")
    return found


LISTED = 20
"""Bad rows that a refusal lists."""


def open_file(
    path: Path, scorer: str | None, image_root: Path | None, skip: bool = False, outside: bool = False
) -> lmms.Task:
    """Reads a JSONL file and returns it as a chat task.

    Args:
        path: one JSON object a line.
        scorer: how answers are judged: a key of `scoring.SCORERS`, or "package.module:function".
        image_root: where relative image paths start; None means the file's own folder.
        skip: whether a row with an unreadable image becomes a document without one; the task's
            `unreadable` then says why, by doc_id. Otherwise it is an error. The task's `row_names` are the
            lines, by doc_id.
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
    row_names: dict[int, str] = {}
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
        with storage.writing(folder / "test", features) as writer:
            root = Root(image_root or path.parent, outside)
            writer.rows(_rows(path, judge, root, skip, unreadable, row_names))
        undoing.pop_all()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    task = lmms.make_task(_config(path.stem, judge, folder))
    vars(task)["unreadable"] = unreadable
    vars(task)["row_names"] = row_names
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
    path: Path,
    scorer: Scorer,
    root: Root,
    skip: bool,
    unreadable: dict[int, str],
    row_names: dict[int, str],
) -> Iterator[dict[str, Any]]:
    """The rows of the task, one at a time; `unreadable` and `row_names` are filled as `open_file` says.

    Raises:
        HarnessError: see `open_file`; after the last line, so that all bad rows are known.
    """
    seen: dict[bytes, int] = {}
    bad: list[tuple[int, HarnessError]] = []
    count = 0
    for number, line in _lines(path):
        count += 1
        try:
            row, pictures, reason = checked(line, scorer, root)
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
        row_names[count - 1] = f"line {number}"
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

    Only what lies where it was can be looked at: the file, images in its folder, and those of the items.

    Raises:
        HarnessError: names the first such line or item.
    """
    entry = rollouts.inputs.get("data")
    if entry is None or "pictures" in rollouts.notes:
        return
    former = f"{rollouts.folder} was sampled by a former version of dcsft, in which"
    path = (rollouts.folder / entry["path"]).resolve()
    for number, line in _lines(path) if path.is_file() else ():
        reason = differs_in_former(line, Root(path.parent, outside=True))
        if reason is not None:
            raise HarnessError(f"{former} {path.name}, line {number}, {reason}", "Sample and label again")
    for table in storage.read(rollouts.folder / ITEMS, ["item_id", "images"], AT_ONCE):
        for item in table.to_pylist():
            if any(pictures.differs_in_former(image.get("bytes") or b"") for image in item["images"] or ()):
                raise HarnessError(f"{former} item {item['item_id']} {SHOWN}", "Sample and label again")


def images_sha256(path: Path, image_root: Path | None, outside: bool = False) -> str:
    """A hash of the contents of every image that a JSONL file names.

    Rows that cannot be read and images that are refused count as they are: the error comes when the file is
    opened.
    """
    root = Root(image_root or path.parent, outside)
    found: list[str | None] = []
    for _, line in _lines(path):
        with contextlib.suppress(ValueError):
            for name in image_names(records.json_object(line)):
                try:
                    found.append(hashlib.sha256(root.read(name)).hexdigest())
                except HarnessError:
                    found.append(None)
    return json_sha256(found)
