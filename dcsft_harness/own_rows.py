"""A line of a user's own JSONL as a row of its task: read in either format, and checked to the last field.

The formats are those of the paper's release: `problem`, `solution`, `image`; and `messages`, `images`.
"""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import dataset_folder
from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import is_plain, on_white
from dcsft_harness.scoring import Scorer

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.+?)\s*$", re.MULTILINE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def checked(
    where: str, data: Mapping[str, Any], scorer: Scorer, root: Path
) -> tuple[dict[str, Any], list[Any], HarnessError | None]:
    """A row of the task, its pictures, and what is wrong with them: it has none then.

    Raises:
        HarnessError: anything else is wrong with it.
    """
    prompt, solution, images = _fields(where, data)
    if prompt.count("<image>") not in (0, len(images)):
        raise HarnessError(
            f"{where}: {prompt.count('<image>')} <image> placeholders for {len(images)} images",
            "Name one image for each",
        )
    prompt = prompt.replace("<image>", "").strip()
    if not prompt:
        raise HarnessError(f"{where}: the question has no words", "Mend or remove the row")
    if "image_size" in scorer.fields and not images:
        raise HarnessError(
            f"{where}: no image, whose size the scorer {scorer.name} needs", "Add `image` to the row"
        )
    reason = None
    try:
        pictures = [_image(where, name, root) for name in images]
    except HarnessError as error:
        pictures, reason = [], error
    first = pictures[0][0] if pictures else None
    gold = _gold(where, solution, scorer)
    row = {
        "prompt": prompt,
        "answer": json.dumps(gold),
        "target": solution if isinstance(solution, str) else json.dumps(solution),
        "images": [stored for _, stored in pictures],
        "choices": _choices(where, data, prompt) if "choices" in scorer.fields else [],
        "width": first.width if first else 0,
        "height": first.height if first else 0,
    }
    if reason is None:
        _refuse_gold(where, scorer, row)
    return row, [picture for picture, _ in pictures], reason


def _refuse_gold(where: str, scorer: Scorer, row: dict[str, Any]) -> None:
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
        raise HarnessError(f"{where}: {error.problem}", error.remedy) from error


def image_names(data: Mapping[str, Any]) -> list[Any]:
    """The names of a row's images, in either format; whether they are paths is not looked at."""
    images = data.get("images", []) if "messages" in data else data.get("image", data.get("images", []))
    return images if isinstance(images, list) else [images]


def _fields(where: str, data: Mapping[str, Any]) -> tuple[str, Any, list[Any]]:
    """Prompt, solution and image names of a row in either format."""
    if "messages" in data:
        question, answer = _turns(where, data["messages"])
        return question, answer, image_names(data)
    for name in ("problem", "solution"):
        if data.get(name) is None:
            raise HarnessError(
                f"{where}: no `{name}` and no `messages`; it has {', '.join(sorted(data)) or 'nothing'}",
                "A row needs problem, solution and image, or messages and images",
            )
    if not isinstance(data["problem"], str):
        kind = type(data["problem"]).__name__
        raise HarnessError(f"{where}: `problem` is {kind}, not text", "Mend or remove the row")
    return data["problem"], data["solution"], image_names(data)


def _turns(where: str, messages: object) -> tuple[str, str]:
    """The question and the answer of a conversation of one turn each; more would be dropped in silence."""
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    said = []
    for role in ("user", "assistant"):
        texts = [turn.get("content") for turn in turns if turn.get("role") == role]
        if not texts or not isinstance(texts[0], str):
            raise HarnessError(f"{where}: `messages` has no {role} turn with text", "Mend or remove the row")
        said.append(texts[0])
    if len(turns) != 2:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise HarnessError(
            f"{where}: `messages` has the turns {roles}", "An item is one user turn and one assistant turn"
        )
    return said[0], said[1]


def _image(where: str, name: object, root: Path) -> tuple[Any, dict[str, Any]]:
    """A picture in RGB, and what is stored of it: the file as it is if it holds just that."""
    from PIL import ExifTags, Image, ImageFile

    if not isinstance(name, str):
        raise HarnessError(f"{where}: an image is {type(name).__name__}, not a path", "Give paths as strings")
    path = root / name
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        # lmms-eval tells the whole process to pass images that were cut short.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            picture = on_white(image)
            # `datasets` would turn the picture, where boxes are in pixels of the file.
            plain = is_plain(image) and ExifTags.Base.Orientation not in image.getexif()
        return picture, {"bytes": content, "path": None} if plain else dataset_folder.png(picture)
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
        reason = "does not exist" if not path.is_file() else f"cannot be read ({error})"
        raise HarnessError(
            f"{where}: image {path} {reason}", "Check --image-root, or replace the file"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _gold(where: str, solution: object, scorer: Scorer) -> object:
    """The gold answer as the scorer reads it, of what stands in <answer> tags if there are any."""
    tagged = _ANSWER_TAG.search(solution) if isinstance(solution, str) else None
    try:
        return scorer.gold(tagged[1].strip() if tagged else solution)
    except HarnessError as error:
        raise HarnessError(f"{where}: {error.problem}", error.remedy) from error


def _choices(where: str, data: Mapping[str, Any], prompt: str) -> list[str]:
    """The options: the row's own `choices` or `options`, else the lines "A. ...", "B. ..." of its prompt."""
    given = data.get("choices", data.get("options"))
    if isinstance(given, list) and given:
        for text in given:
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                kind = type(text).__name__
                raise HarnessError(f"{where}: an option is {kind}, not text or a number", "Mend the row")
        return [str(text) for text in given]
    found: list[str] = []
    for letter, text in _OPTION.findall(prompt):  # "I. ..." numbers a statement, and the last list counts
        if letter == "A":
            found = [text]
        elif found and ord(letter) == ord("A") + len(found):
            found.append(text)
    if len(found) < 2:
        raise HarnessError(f"{where}: no options found", "Give `choices`, or write them as lines 'A. ...'")
    return found
