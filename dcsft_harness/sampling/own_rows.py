"""One row of a user's own, in any shape: its turns, answers, options and images, checked to the last field.

Shapes: `question` (or `problem`, `prompt`) with `answer` (or `solution`, `completion`); `messages` with texts
or content parts; ShareGPT's `conversations`; a conversation as `prompt` with `completion`; `query` with
`response`; Alpaca's `instruction`, `input` and `output`. Conversations may have a system turn and several
turns; the last answer is the target, and the gold unless there is a `solution` or `answer`. Names and
boxes of ms-swift's `objects` are written into their places. Images are in `image` or `images`, or in content
parts: a path, a data URL, bytes, or a mapping with one of these.
"""

import base64
import binascii
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from dcsft_harness import lmms, pictures, reading, records
from dcsft_harness.artifacts import disk, storage
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.records import MARK
from dcsft_harness.sampling import own_files
from dcsft_harness.sampling.own_files import CONVERSATIONS, GOLDS, HOLDS, QUESTIONS, REJECTED
from dcsft_harness.scoring import Scorer

_ROLES = {
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"},
    **{"system": "system", "developer": "system"},
}
_OPTION = re.compile(r"^[^\S\n]*\(?([A-Z])[.):](.*)$", re.MULTILINE)
_OTHER_MARK = re.compile(r"<\s*(?-i:(?!image>))(?:image|img|picture)[ _-]?\d*\s*/?>", re.IGNORECASE)
"""Marks of other programs, which models would read as words."""
_INSIDE = re.compile(r"<img>\s*[^<>\n]{1,1000}</img>", re.IGNORECASE)
"""A picture that Qwen-VL's and older ms-swift's rows name in the text."""
_PLACE = re.compile(r"<ref-object>|<bbox>(?!.*</bbox>)", re.DOTALL)
"""Where ms-swift writes names and boxes from its column `objects`."""
_FILE = re.compile(
    r"[^\n]{1,1000}\.(?:png|jpe?g|gif|webp|bmp|tiff?|avif|heic|mp4|webm|mov|avi|mkv|mp3|wav|flac)", re.I
)
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGODdh|R0lGODlh|UklGR)[A-Za-z0-9+/\s]{20}")
"""How the files of common kinds of images begin in base64."""
_FILMS = ("video", "videos", "audio", "audios")
MISSING = ("nan", "NaN", "<NA>", "NaT")
"""What pandas writes for a missing value."""
IN_FRONT = re.compile(rf"^(\s*{MARK})+")
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_REMEDY = (
    "A row needs a question and its answer (question, answer, image), or a conversation (messages, images)"
)

_T = TypeVar("_T")
Turn = dict[str, str]
"""A turn: `role` (system, user or assistant) and `content`, a text with a MARK where each picture belongs."""


@dataclass(frozen=True)
class Exchange:
    """What a row holds, whatever its shape."""

    turns: list[Turn]  # all before the answer, in order; at least one is the user's
    target: Any  # what supervised training teaches the model to say
    solution: Any  # the gold as the row has it
    images: list[Any]  # the pictures in order of their marks, as the row has them
    # the answer that preference training is to avoid; None where the row has none
    rejected: str | None = None
    objects: Any = None  # ms-swift's names and boxes, where the texts have places for them


@dataclass(frozen=True)
class Root:
    """Where the images of a file's rows are."""

    folder: Path  # where relative paths start
    outside: bool = False  # whether images may lie outside it, by absolute paths, "..", or links

    def read(self, entry: object) -> bytes:
        """The content of an image file, or of one that the row itself holds.

        Raises:
            HarnessError: it is refused, or cannot be read.
        """
        return self._taken(entry, pictures.file_bytes)

    def sha256(self, entry: object) -> str:
        """The hash of what `read` returns; a file's is remembered, see `disk.settled_sha256`.

        Raises:
            HarnessError: as `read`.
            OSError: the file does not exist or cannot be looked at.
        """
        found = self._taken(entry, lambda path: disk.settled_sha256(path, _file_sha256))
        return found if isinstance(found, str) else hashlib.sha256(found).hexdigest()

    def _taken(self, entry: object, of_file: Callable[[Path], _T]) -> bytes | _T:
        """The content that the row holds, or what a function makes of the image's file."""
        inner = held(entry)
        if not inner:
            raise HarnessError("image '': its path is empty", "Name the file, or leave the image out")
        if isinstance(inner, bytes):
            if len(inner) > pictures.FILE_BYTES:
                raise HarnessError(
                    f"an embedded image is larger than {pictures.FILE_BYTES >> 20} MiB", "Make it smaller"
                )
            return inner
        if inner.startswith("data:"):
            return _of_url(inner)
        if re.match(r"https?:", inner):
            raise HarnessError(f"image {cut(inner)} is not a path", "Save it as a file and name that")
        if _BASE64.match(inner):
            raise HarnessError(
                f"image {cut(inner)} is base64, but is read as a path",
                "Write data:image/png;base64, before it",
            )
        path = self.folder / inner.removeprefix("file://")
        try:
            place = path.resolve()
            if not self.outside and not place.is_relative_to(self._resolved):
                raise HarnessError(
                    f"image {cut(str(path))} is outside {self._resolved}",
                    "Pass --image-root a folder that holds it, or --allow-outside-root",
                )
            return of_file(place)
        except (ValueError, RuntimeError) as error:  # NULs and circles of links, beside what is unreadable
            known = isinstance(error, pictures.UnreadableError)
            reason = str(error) if known else f"cannot be read ({cut(str(error))})"
            remedy = "Check --image-root, or replace the file"
            if "\\" in inner:  # of another system
                remedy = "Write paths with / instead of \\"
            raise HarnessError(f"image {cut(str(path))} {reason}", remedy) from error

    @cached_property
    def _resolved(self) -> Path:
        return self.folder.resolve()

    def name(self, entry: object) -> str:
        """What a message calls an image."""
        inner = held(entry)
        if isinstance(inner, bytes):
            return f"an embedded image of {len(inner):,} bytes"
        return f"image {cut(inner if inner.startswith('data:') else str(self.folder / inner))}"


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(pictures.file_bytes(path)).hexdigest()


def held(entry: object) -> str | bytes:
    """The path, data URL or bytes that an image of a row is; anything else is an error."""
    if isinstance(entry, Mapping):
        for name in HOLDS:
            if entry.get(name):
                inner = held(entry[name])
                return f"data:;base64,{inner}" if name == "base64" and isinstance(inner, str) else inner
        raise HarnessError(
            f"an image is a mapping of {cut(', '.join(map(str, entry))) or 'nothing'}, without bytes or path",
            f"Add one of {', '.join(HOLDS)}",
        )
    if not isinstance(entry, str | bytes):
        raise HarnessError(
            f"an image is {type(entry).__name__}, not a path",
            "Use paths as strings, data URLs, or mappings with bytes or path",
        )
    return entry


def _of_url(url: str) -> bytes:
    head, _, text = url.partition(",")
    if not head.endswith(";base64"):
        raise HarnessError(f"image {cut(url)} is a data URL that is not in base64", "Encode it in base64")
    if len(text) > pictures.FILE_BYTES // 3 * 4:
        raise HarnessError(
            f"image {cut(url)} is larger than {pictures.FILE_BYTES >> 20} MiB", "Make it smaller"
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HarnessError(f"image {cut(url)} is not valid base64 ({error})", "Encode it again") from error


def checked(
    data: Mapping[str, Any], scorer: Scorer | None, root: Root
) -> tuple[dict[str, Any], list[Any], HarnessError | None]:
    """A row of the task, its images, and what is wrong with them: it has none then.

    The scorer says how the answer is read and judged; None takes any answer that has words.

    Raises:
        HarnessError: anything else is wrong with it. Messages do not name the file and row.
    """
    found = exchange(data)
    turns, images = _marked(found.turns, len(found.images)), found.images
    if not _prompt(turns).replace(MARK, "").strip():
        raise HarnessError("the question has no words", "Correct or remove the row")
    if scorer is not None and "image_size" in scorer.fields and not images:
        raise HarnessError(f"no image; the scorer {scorer.name} needs its size", "Add `image` to the row")
    reason = None
    try:
        shown = [_image(entry, root) for entry in images]
    except HarnessError as error:
        shown, reason = [], error
    first = shown[0][0].shown if shown else None
    answer, solution = found.target, found.solution
    if found.objects is not None:
        try:
            turns, answer = _filled(turns, answer, found.objects, [read.shown.size for read, _, _ in shown])
        except HarnessError as error:  # shares of an image that cannot be read
            raise reason or error from error
        solution = answer if solution is found.target else solution
    prompt = _prompt(turns)
    gold = _target(answer) if scorer is None else _gold(solution, scorer)
    target = _target(answer, gold if solution is answer else None)
    if not target.strip():
        raise HarnessError("the answer is empty", "Correct or remove the row")
    row = {
        "prompt": prompt,
        "turns": None if [turn["role"] for turn in turns] == ["user"] else json.dumps(turns),
        "answer": json.dumps(gold),
        "target": target,
        "images": [stored for _, stored, _ in shown],
        "choices": choices(data, prompt) if scorer is not None and "choices" in scorer.fields else [],
        "width": first.width if first else 0,
        "height": first.height if first else 0,
        "rejected": found.rejected,
        "unseen": [] if reason else _unseen(data, prompt, scorer, [read.frames for read, _, _ in shown]),
        "originals": [content for _, _, content in shown],
    }
    if reason is None and scorer is not None:
        _refuse_gold(scorer, row)
    return row, [read.shown for read, _, _ in shown], reason


def _filled(
    turns: Sequence[Turn], answer: object, objects: object, sizes: Sequence[tuple[int, int]]
) -> tuple[list[Turn], object]:
    """The turns and the answer with names, boxes and points in their places, in the order of the text.

    `objects` is ms-swift's: `ref` has names, `bbox` has boxes and points, in pixels. Where its `bbox_type`
    is norm1, in shares of the sides of the image that `image_id` numbers. What is written is in pixels.
    """
    objects = own_files.unpacked(objects)
    if not isinstance(objects, Mapping):
        raise HarnessError(f"`objects` is {type(objects).__name__}, not a mapping", "Write ref and bbox")
    names, boxes = as_list(objects.get("ref")), as_list(objects.get("bbox"))
    if not all(isinstance(name, str) for name in names):
        raise HarnessError("`objects` has a name that is not text", "Write texts as `ref`")
    kind = objects.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise HarnessError(f"`objects` has the bbox_type {cut(repr(kind))}", "Write boxes as real, or norm1")
    scales: list[tuple[int, int] | None] = [None] * len(boxes)
    if kind == "norm1":
        shown = as_list(objects.get("image_id"))
        shown = [*shown, *[0] * (len(boxes) - len(shown))]  # as ms-swift fills a short one
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in shown)
        if not whole or len(shown) != len(boxes) or any(at not in range(len(sizes)) for at in shown):
            raise HarnessError(
                f"`objects` has the image_id {cut(repr(shown))}: boxes {len(boxes)}, images {len(sizes)}",
                "Write the image of each box as a whole number, counted from 0",
            )
        scales = [sizes[number] for number in shown]
    placed = [_placed(box, scale) for box, scale in zip(boxes, scales, strict=True)]
    texts = [*(turn["content"] for turn in turns), *([answer] if isinstance(answer, str) else [])]
    places = [place for text in texts for place in _PLACE.findall(text)]
    for place, name, values in (("<ref-object>", "ref", names), ("<bbox>", "bbox", placed)):
        if places.count(place) != len(values):
            raise HarnessError(
                f"{place} appears {places.count(place)} times, but `objects` has {len(values)} values"
                f" for {name}",
                "Correct or remove the row",
            )
    left = {"<ref-object>": iter(names), "<bbox>": iter(placed)}
    filled = [_PLACE.sub(lambda place: next(left[place[0]]), text) for text in texts]
    said = filled.pop() if isinstance(answer, str) else answer
    return [{**turn, "content": text} for turn, text in zip(turns, filled, strict=True)], said


def _placed(box: object, size: tuple[int, int] | None) -> str:
    """A box or a point in words; shares of an image of this size become pixels, to a tenth."""
    numbers: list[Any] = box if isinstance(box, list) and len(box) in (2, 4) else [None]
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not isfinite(one) for one in numbers):
        raise HarnessError(f"`objects` has the box {cut(repr(box))}", "Write [x1, y1, x2, y2], or [x, y]")
    if size is not None and any(not 0 <= one <= 1 for one in numbers):
        raise HarnessError(
            f"`objects` has the box {cut(repr(box))} as norm1, which is from 0 to 1",
            "Write shares of the image's sides, or boxes in pixels with the bbox_type real",
        )
    return json.dumps(
        numbers if size is None else [round(one * size[at % 2], 1) for at, one in enumerate(numbers)]
    )


def _target(answer: object, accepted: object = None) -> str:
    """An answer as what training teaches: the first of several texts, or of answers that a scorer accepts."""
    texts = accepted if isinstance(accepted, list) else answer
    if (
        isinstance(answer, list)
        and answer
        and isinstance(texts, list)
        and all(isinstance(one, str) for one in texts)
    ):
        answer = answer[0]
    return unicodedata.normalize("NFC", records.as_text(answer))


UNSEEN = {
    "bare": "have no image, while others have one",
    "asked": "repeat an earlier row's question about the same image, with another answer",
    "frames": "have an image with several frames, of which the model sees only the first",
    "options": "have options that their question does not name",
}
"""What may be a mistake in a row, and no error forbids: Why -> in words, after "N rows"."""


def _unseen(data: Mapping[str, Any], prompt: str, scorer: Scorer | None, frames: Sequence[int]) -> list[str]:
    """The keys of `UNSEEN` that hold for a row, whose images have these numbers of frames."""
    found = [] if frames else ["bare"]
    found += ["frames"] if any(number > 1 for number in frames) else []
    if scorer is not None and "choices" in scorer.fields:
        said = prompt.casefold()
        listed = _options(data)
        named = sum(str(text).strip().casefold() in said for text in listed)
        if listed and 2 * named <= len(listed):  # words of the question may be one of them
            found.append("options")
    return found


def _refuse_gold(scorer: Scorer, row: dict[str, Any]) -> None:
    """Lets the scorer look at the gold now: after hours of sampling would be too late."""
    fields = {"choices": row["choices"], "image_size": (row["width"], row["height"])}
    given = {name: value for name, value in fields.items() if name in scorer.fields}
    gold = reading.from_json(row["answer"])
    if scorer.check is not None:
        scorer.check(gold, **given)
    # Golds of boxes are in pixels, whatever a model that is yet to be opened writes.
    scorer("", answer=gold, **given)


def _marked(turns: Sequence[Turn], images: int) -> list[Turn]:
    """Turns with `<image>` for each image, white space around them removed; an error if the numbers differ.

    A single image without `<image>` belongs in front of the user's first turn. A single question whose
    placeholders are all in front has them removed.
    """
    marks = sum(turn["content"].count(MARK) for turn in turns)
    for turn in turns:
        if inside := _INSIDE.search(turn["content"]):
            raise HarnessError(
                f"{cut(inside[0])!r} in the text shows no image",
                f"Write {MARK} in its place, and the file into `images`",
            )
        if images and not marks and (other := _OTHER_MARK.search(turn["content"])):
            raise HarnessError(
                f"{other[0]!r} is not an image placeholder, so the model would read it as text",
                f"Write {MARK} where each image belongs; in front of the question if these words are meant",
            )
    if marks != images and (marks, images) != (0, 1):
        raise HarnessError(
            f"{marks} {MARK} placeholders for {images} images",
            f"Write one {MARK} into the question where each image belongs",
        )
    if [turn["role"] for turn in turns] == ["user"]:
        prompt = turns[0]["content"]
        in_front = IN_FRONT.sub("", prompt)
        return [{"role": "user", "content": (prompt if MARK in in_front else in_front).strip()}]
    placed = [{**turn, "content": turn["content"].strip()} for turn in turns]
    if marks < images:
        first = next(turn for turn in placed if turn["role"] == "user")
        first["content"] = MARK + first["content"]
    return placed


def _prompt(turns: Sequence[Turn]) -> str:
    """The text of turns as an item has it, with `<image>` placeholders unless all images come first."""
    return lmms.prompt_of([records.parts(turn["content"]) for turn in turns])


def image_entries(data: Mapping[str, Any]) -> list[Any]:
    """A row's images as it has them; whether they can be read is not looked at."""
    try:
        return exchange(data).images
    except HarnessError:
        return as_list(data.get("images")) or as_list(data.get("image"))


def as_list(images: object) -> list[Any]:
    """One image or several as a list; null is none. Cells of tables hold lists as JSON."""
    images = own_files.unpacked(images)
    return images if isinstance(images, list) else [] if images is None else [images]


def exchange(data: Mapping[str, Any]) -> Exchange:
    """What a row holds, in one of the shapes.

    Raises:
        HarnessError: it has none of the shapes, or a part of another type.
    """
    given = {name: value for name, value in data.items() if value is not None}
    _refuse_misnamed(given)
    given |= _paired(given)
    talks = isinstance(_spoken(given.get("chosen")), list)  # which may begin with what was asked
    known = (*CONVERSATIONS, *QUESTIONS, *(("chosen",) if talks else ()))
    asked = next((name for name in known if name in given), None)
    if asked is None:
        has = cut(", ".join(sorted(given))) or "nothing"
        rows = next((name for name, value in given.items() if _is_rows(value)), None)
        remedy = _REMEDY if rows is None else f"Save the list `{rows}` as the file: each member is a row"
        raise HarnessError(f"no `question` and no `messages`; it has {has}", remedy)
    parts: list[Any] = []
    turns = _turns(asked, given[asked], parts, asked not in QUESTIONS)
    if isinstance(given.get("system"), str) and given["system"].strip() and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": given["system"]})
    named = [as_list(given.get(name)) for name in ("images", "image")]
    images = parts or named[0] or named[1]
    answer, gold = _answers(given, turns, asked, images)
    if turns and turns[-1]["role"] == "assistant":
        raise HarnessError(
            f"`{asked}` ends with an assistant turn, but the row has another answer", "Keep one of them"
        )
    if not any(turn["role"] == "user" for turn in turns):
        raise HarnessError(f"`{asked}` has no user turn", "Correct or remove the row")
    if any(MARK in turn["content"] for turn in turns if turn["role"] == "assistant"):
        raise HarnessError(
            f"an assistant turn has {MARK}", "Only user turns can show images: correct the row"
        )
    if sum(map(bool, [*named, parts])) > 1:
        both = "`image` and `images`" if all(named) else "`messages` and `images`"
        raise HarnessError(f"both {both} name images", "Name all of them in `images`")
    if not images:
        _refuse_unread(data, given)
    rejected = next((_said(name, given[name], turns, images) for name in REJECTED if name in given), None)
    if not isinstance(rejected, str | None):
        raise HarnessError(f"`rejected` is {type(rejected).__name__}, not text", "Correct or remove the row")
    rejected = rejected if rejected and rejected.strip() else None  # an empty cell of a table is none
    filled, others = [*(turn["content"] for turn in turns), answer], [rejected]
    objects = _objects(given, filled, others if gold is answer else [*others, gold])
    return Exchange(turns, answer, gold, images, rejected, objects)


def _objects(given: Mapping[str, Any], filled: Sequence[object], others: Sequence[object]) -> object:
    """ms-swift's `objects` if a text that is filled has a place for an entry; None elsewhere."""
    inside, outside = (
        next((found for text in texts if isinstance(text, str) and (found := _PLACE.search(text))), None)
        for texts in (filled, others)
    )
    lacks = "objects" not in given
    if place := outside or (inside if lacks else None):
        where = "the row lacks" if lacks else "only questions and answers may use"
        raise HarnessError(
            f"{place[0]!r} refers to an entry of ms-swift's `objects`, which {where}",
            "Write the name or the box in its place",
        )
    return given["objects"] if inside else None


def _is_rows(value: object) -> bool:
    asked = {*CONVERSATIONS, *QUESTIONS, *own_files.PAIRS}
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and bool(asked & {*first})


def _paired(given: Mapping[str, Any]) -> dict[str, Any]:
    """The turns and answer of ms-swift's (query, response, history) or Alpaca's rows (instruction, ...)."""
    if any(name in given for name in (*CONVERSATIONS, *QUESTIONS)):
        return {}
    talk = as_list(given.get(own_files.TALK))
    if talk and all(isinstance(one, Mapping) and {"human", "assistant"} <= {*one} for one in talk):
        history = [[one["human"], one["assistant"]] for one in talk[:-1]]
        return _paired({"query": talk[-1]["human"], "response": talk[-1]["assistant"], "history": history})
    asked = next((name for name in own_files.PAIRS if name in given), None)
    if asked is None:
        return {}
    texts = [given[asked], *([given["input"]] if asked == "instruction" and given.get("input") else [])]
    history = as_list(given.get("history"))
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    if not pairs or not all(
        isinstance(text, str) for text in (*texts, *(t for pair in history for t in pair))
    ):
        raise HarnessError(
            f"`{asked}`, `input` or `history` contains values that are not text",
            'Write texts, and [["question", "answer"]] as history',
        )
    said = [*(text for pair in history for text in pair), "\n".join(texts)]
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    answer = own_files.PAIRS[asked]
    completion = {"completion": given[answer]} if answer in given and "completion" not in given else {}
    return {"prompt": turns, **completion}


def _refuse_misnamed(given: Mapping[str, Any]) -> None:
    """Refuses films, and columns whose names differ in case or white space from those that are read.

    Columns for the same must be equal.
    """
    if wrong := own_files.misnamed(given):
        one = len(wrong) == 1
        names, rights = (" and ".join(f"`{cut(name)}`" for name in some) for some in (wrong, wrong.values()))
        raise HarnessError(
            f"{names} {'is' if one else 'are'} not read", f"Rename {'it' if one else 'them'} to {rights}"
        )
    if film := next((name for name in _FILMS if given.get(name)), None):
        raise HarnessError(
            f"`{film}` is not shown to a model: only images are", f"Remove `{film}` or the row"
        )
    for known in (QUESTIONS, GOLDS):
        there = [name for name in known if name in given]
        if any(given[name] != given[there[0]] for name in there):
            raise HarnessError(
                f"{' and '.join(f'`{name}`' for name in there)} differ",
                "Keep one of them, or make them equal",
            )


def _beside(given: Mapping[str, Any]) -> object:
    """The answer that has a column of its own; None without one."""
    there = next((name for name in GOLDS if name in given), None)
    if there is None:
        return None
    value = given[there]
    if value == []:
        raise HarnessError("the answer is empty", "Correct or remove the row")
    if value in MISSING:
        raise HarnessError(f"the answer is {value!r}, a missing value", "Correct or remove the row")
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise HarnessError(
            f"the answer is {type(value).__name__}, which has no text form", "Save it as text or a number"
        ) from error
    except ValueError as error:
        raise HarnessError("the answer is infinite or not a number", "Correct or remove the row") from error
    return value


def _refuse_unread(data: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses a row without images one of whose other columns holds some, naming it.

    `given` are the row's columns and those that were made of its pairs, see `_paired`.
    """
    pairs = given.get("prompt") is not data.get("prompt")  # whose texts may name files
    read = (*own_files.COLUMNS, *(own_files.OF_PAIRS if pairs else ()))
    for name, value in given.items():
        if name not in read and _is_picture(value):
            raise HarnessError(
                f"`{cut(name)}` contains an image but is not read",
                "Rename it to `image`, or remove it if the model should not see it",
            )


def _is_picture(value: object) -> bool:
    """Whether a value of a column is a picture or film, or names one."""
    if isinstance(value, str):
        is_content = value.startswith("data:image/") or _BASE64.match(value) is not None
        return is_content or _FILE.fullmatch(value.strip()) is not None
    if isinstance(value, list):
        return _is_picture(next((one for one in value if one is not None), None))
    if isinstance(value, Mapping):
        return any(_is_picture(value.get(name)) for name in HOLDS)
    return isinstance(value, bytes) and bool(value)


def _answers(
    given: Mapping[str, Any], turns: list[Turn], asked: str, images: Sequence[Any]
) -> tuple[Any, Any]:
    """The target and the gold; takes the last answer from the turns."""
    answer: Any
    beside, talks = _beside(given), asked not in QUESTIONS
    answered = next((name for name in ("chosen", "completion") if name in given), None)
    if talks and turns[-1]["role"] == "assistant" and ("chosen" not in given or asked == "chosen"):
        answer = turns.pop()["content"]
    elif answered is not None:
        answer = _said(answered, given[answered], turns, images)
    elif beside is not None:
        answer = beside
    elif talks:
        raise HarnessError(f"`{asked}` does not end with an assistant turn", "Add the answer, or `solution`")
    else:
        has = cut(", ".join(sorted(given)))
        raise HarnessError(f"no `answer`, `solution` or `completion`; it has {has}", _REMEDY)
    return answer, answer if beside is None else beside


def _said(name: str, value: object, asked: Sequence[Turn], images: Sequence[Any]) -> Any:  # noqa: ANN401 - any answer
    """An answer that may be a text, a turn, or turns that end with it.

    Only those of a preference may begin with the turns and images that were asked; other turns would be lost.
    """
    value = _spoken(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return value
    shown: list[Any] = []
    *before, last = _turns(name, value, shown, True)
    if last["role"] != "assistant":
        raise HarnessError(f"`{name}` does not end with an assistant turn", "Add the answer")
    if before and name == "completion":
        raise HarnessError(
            f"`completion` has {len(before) + 1} turns, of which only the last would be trained on",
            "Put those before the last one into `prompt`",
        )
    others = bool(shown) and list(map(held, shown)) != list(map(held, images))
    if others or (before and not _repeats(before, asked)):
        raise HarnessError(
            f"`{name}` begins with other turns or images than the question",
            "Begin it as the question does, or keep its last turn alone",
        )
    return last["content"]


def _repeats(before: Sequence[Turn], asked: Sequence[Turn]) -> bool:
    """Whether turns are those that were asked, with or without the system's; marks in front do not count."""

    def plain(turns: Sequence[Turn]) -> list[tuple[str, str]]:
        return [(turn["role"], IN_FRONT.sub("", turn["content"]).strip()) for turn in turns]

    others = asked[1:] if asked and asked[0]["role"] == "system" else asked
    return plain(before) in (plain(asked), plain(others))


def _spoken(value: object) -> object:
    """Turns that a table's cell holds as JSON; other texts as they are, though they may be lists in JSON."""
    turns = own_files.unpacked(value)
    if not isinstance(value, str) or not isinstance(turns, list) or not turns:
        return value
    are_turns = all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in turns)
    return turns if are_turns else value


_UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "image")
"""Parts of a turn that other formats have beside its content; without them the turn means something else."""


def _turns(name: str, value: object, images: list[Any], wanted: bool) -> list[Turn]:
    """Turns; pictures that content parts hold are added to `images`.

    A text is the user's turn, unless turns are `wanted`. Unknown roles and turns without a text are errors.
    """
    unpacked = own_files.unpacked(value) if wanted else _spoken(value)
    if isinstance(unpacked, list) and (wanted or all(isinstance(one, Mapping) for one in unpacked)):
        value = unpacked
    elif isinstance(value, str) and not wanted:
        return [{"role": "user", "content": value}]
    else:
        wants = "a list of turns" if wanted else "text"
        raise HarnessError(f"`{name}` is {type(value).__name__}, not {wants}", "Correct or remove the row")
    if not value:
        raise HarnessError(f"`{name}` has no user turn", "Correct or remove the row")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise HarnessError(f"`{name}` has a turn that is {type(turn).__name__}", "Write role and content")
        role = turn.get("role") if turn.get("role") is not None else turn.get("from")
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        if role is None:
            raise HarnessError(
                f"`{name}` has a turn without a role: it has {cut(', '.join(map(str, turn))) or 'nothing'}",
                "Write role and content, or from and value",
            )
        if not isinstance(role, str) or role not in _ROLES:
            raise HarnessError(
                f"`{name}` has a turn of the unknown role {cut(repr(role))}", "Use system, user and assistant"
            )
        if lost := next((part for part in _UNREAD if turn.get(part)), None):
            raise HarnessError(
                f"`{name}`: a turn has `{lost}`, which is not read",
                "Write it into the turn's content, or remove it",
            )
        known = _ROLES[role]
        turns.append({"role": known, "content": _content(f"`{name}`", known, content, images)})
    return turns


def _content(where: str, role: str, content: object, images: list[Any]) -> str:
    """A turn's content as text with `<image>` placeholders."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        form = "empty" if content is None else type(content).__name__
        raise HarnessError(
            f"{where}: a turn of the {role} has no text: its content is {form}",
            "Correct or remove the row",
        )
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in ("image", "image_url"):
            if role == "assistant":
                raise HarnessError(
                    f"{where}: an assistant turn has an image", "Only user turns can show images"
                )
            picture = {name: part[name] for name in HOLDS if part.get(name)}
            images += [picture] if picture else []
            texts.append(MARK)
        elif isinstance(part, Mapping) and kind in ("text", None) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise HarnessError(
                f"{where} has content of type {cut(repr(kind))}", "Only texts and images can be shown"
            )
    return "".join(texts)


def _image(entry: object, root: Root) -> tuple[pictures.Read, dict[str, Any], bytes]:
    """A picture, what is stored (its file, if that holds just what is shown), and its file."""
    content = root.read(entry)
    try:
        found = pictures.read(content)
    except pictures.UnreadableError as error:
        raise HarnessError(f"{root.name(entry)} cannot be read ({error})", "Replace the file") from error
    return found, {"bytes": content, "path": None} if found.plain else storage.png(found.shown), content


def _gold(solution: object, scorer: Scorer) -> object:
    """The gold answer as the scorer reads it, the content of <answer> tags if there are any."""
    tagged = _ANSWER_TAG.search(solution) if isinstance(solution, str) else None
    given = tagged[1].strip() if tagged else solution
    return scorer.gold(unicodedata.normalize("NFC", given) if isinstance(given, str) else given)


def _options(data: Mapping[str, Any]) -> list[Any]:
    """The options that a row lists, a list or a mapping of the letters from A on; empty without any."""
    known = ("choices", "options")
    there = {name: own_files.unpacked(data[name]) for name in known if data.get(name) not in (None, "", [])}
    name, given = next(iter(there.items()), (None, []))
    if any(other != given for other in there.values()):
        raise HarnessError("`choices` and `options` differ", "Keep one of them, or make them equal")
    if isinstance(given, Mapping):
        named = {letter: text for letter, text in given.items() if text is not None}
        letters = [chr(ord("A") + number) for number in range(len(named))]
        given = [named[letter] for letter in letters] if set(named) == set(letters) else given
    if not isinstance(given, list):
        kind = type(given).__name__
        raise HarnessError(
            f"`{name}` is {kind}, not a list of options", 'Write ["one", "two"], or {"A": "one", "B": "two"}'
        )
    return given


def choices(data: Mapping[str, Any], prompt: str) -> list[str]:
    """The options: the row's own `choices` or `options`, else the lines "A. ...", "B. ..." of its prompt.

    Raises:
        HarnessError: it has none, or they are no texts or numbers.
    """
    given = _options(data)
    if given:
        for text in given:
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                kind = type(text).__name__
                raise HarnessError(
                    f"an option is {kind}, not text or a number", "Write its options as text or numbers"
                )
        return [str(text) for text in given]
    lists: list[list[str]] = []
    for letter, text in _OPTION.findall(prompt):  # "I. ..." numbers a statement
        if letter == "A":
            lists.append([])
        if lists and ord(letter) == ord("A") + len(lists[-1]):
            lists[-1].append(text.strip())
    found = [one for one in lists if len(one) > 1]  # a line "A:" alone is where the answer belongs
    if not found:
        raise HarnessError("no options found", "Add `choices`, or write them as lines 'A. ...'")
    return found[-1]
