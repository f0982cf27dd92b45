"""A line of a user's own JSONL as a row of its task: read in either format, and checked to the last field.

The formats are those of the paper's release: `problem`, `solution`, `image`; and `messages`, `images`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness import pictures
from dcsft_harness.artifacts import dataset_folder
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.records import MARK, json_object
from dcsft_harness.scoring import Scorer

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.+?)\s*$", re.MULTILINE)
_IN_FRONT = re.compile(rf"^(\s*{MARK})+")
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


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
        if MARK in _IN_FRONT.sub("", _fields(data)[0]):
            return f"had its images before the text, and not at their {MARK} marks"
        if any(pictures.differs_in_former(root.read(name)) for name in image_names(data)):
            return "had an image that was not upright, or whose 16 or 32 bits were not scaled"
    except (HarnessError, ValueError):
        pass
    return None


def image_names(data: Mapping[str, Any]) -> list[Any]:
    """The names of a row's images, in either format; whether they are paths is not looked at."""
    images = data.get("images", []) if "messages" in data else data.get("image", data.get("images", []))
    return images if isinstance(images, list) else [images]


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
        raise HarnessError(f"`problem` is {kind}, not text", "Mend or remove the row")
    return data["problem"], data["solution"], image_names(data)


def _turns(messages: object) -> tuple[str, str]:
    """The question and the answer of a conversation of one turn each; more would be dropped in silence."""
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    said = []
    for role in ("user", "assistant"):
        texts = [turn.get("content") for turn in turns if turn.get("role") == role]
        if not texts or not isinstance(texts[0], str):
            raise HarnessError(f"`messages` has no {role} turn with text", "Mend or remove the row")
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
    return picture, {"bytes": content, "path": None} if plain else dataset_folder.png(picture)


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
                raise HarnessError(f"an option is {kind}, not text or a number", "Mend the row")
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
