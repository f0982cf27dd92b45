"""Reads training conversations and checks all of them before a model is loaded.

The format is that of TRL, ms-swift and LLaMA-Factory: a column `messages` of role and content, where each
"<image>" in a user's content refers to the next image of the column `images`. A column `box` marks answers
that are boxes in original-image pixels; see `in_space`.
"""

import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset, DatasetDict
from PIL import Image as Pillow
from transformers import GenerationConfig, PreTrainedConfig, ProcessorMixin

from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.coordinates import BoxConvention
from dcsft_harness.curation.conversations import REFUSED, REJECTED, ROW
from dcsft_harness.errors import HarnessError, refused_rows
from dcsft_harness.models.chat_template import media_marks, render
from dcsft_harness.models.weights import error_line
from dcsft_harness.pictures import UnreadableError, file_bytes
from dcsft_harness.pictures import read as read_picture
from dcsft_harness.records import MARK, parts
from dcsft_harness.scoring.boxes import from_pixels, parse_box, rewritten

COLUMNS = ("messages", "images")
ROLES = ("system", "user", "assistant")

_T = TypeVar("_T")
Part = dict[str, str]
"""Content as chat templates take it: {"type": "text", "text": ...} or {"type": "image"}."""


@dataclass(frozen=True)
class Turns:
    """One conversation, split where the loss begins."""

    prompt: list[dict[str, Any]]  # the messages before the answer, images as placeholders
    answer: str  # the text of the assistant's last turn, which the model learns
    images: int  # the number of images in the prompt
    # the answer's [x1, y1, x2, y2] in pixels of the first image; None for other answers
    box: list[float] | None = None
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of each image, pixels

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the first image, pixels; None without images."""
        return self.sizes[0] if self.sizes else None


@dataclass(frozen=True)
class Conversations:
    """A checked training set: the usable rows, and why others are refused."""

    name: str  # the folder, for errors
    turns: list[Turns]  # the conversations, in order of the rows
    source: Dataset  # all rows in Arrow's format, with undecoded images
    item_ids: list[str] | None  # content ids, one per conversation; None if the set has none
    # the weight of each conversation in the loss, 0 or above; None if the set has no weights
    weights: list[float] | None
    numbers: list[int]  # the set's row number of each conversation, from 0
    refused: dict[int, HarnessError]  # row of the set -> why it cannot be trained on
    row_names: list[str] | None = None  # each row's name in errors; None if errors use row numbers
    tokens: int = 0  # of the longest conversation, images included; 0 before `screened` has counted them
    image_tokens: int = 0  # of the conversation with the largest images

    def images(self, position: int) -> list[Pillow.Image]:
        """The images of a conversation, RGB, in the form that `dcsft_hf` evaluates."""
        entries = _images(self.source[self.numbers[position]].to_pylist()[0])
        return [_decode(entry, self.where(position)) for entry in entries]

    def where(self, position: int) -> str:
        """A conversation's name in errors: the set and its row."""
        number = self.numbers[position]
        return f"{self.name}, {self.row_names[number] if self.row_names else f'row {number}'}"

    def without(self, refused: Mapping[int, HarnessError]) -> "Conversations":
        """The set without the conversations at these positions; records them as refused."""
        if not refused:
            return self
        kept = [position for position in range(len(self.turns)) if position not in refused]
        return replace(
            self,
            turns=[self.turns[position] for position in kept],
            item_ids=self.item_ids and [self.item_ids[position] for position in kept],
            weights=self.weights and [self.weights[position] for position in kept],
            numbers=[self.numbers[position] for position in kept],
            refused=self.refused | {self.numbers[position]: error for position, error in refused.items()},
        )

    def mapped(self, write: Callable[[Turns, str], _T]) -> tuple["Conversations", list[_T]]:
        """The conversations that `write` takes, with their name in errors; and what it makes of each."""
        made: list[_T] = []
        refused: dict[int, HarnessError] = {}
        for position, turns in enumerate(self.turns):
            try:
                made.append(write(turns, self.where(position)))
            except HarnessError as error:
                refused[position] = error
        return self.without(refused), made

    def dataset(self, **columns: Sequence[Any]) -> Dataset:
        """A trainer's set: `columns`, `row` (the position), and images, which are read row by row."""

        def filled(batch: Mapping[str, list[int]]) -> dict[str, list[Any]]:
            rows = batch["row"]
            more = {name: [values[row] for row in rows] for name, values in columns.items()}
            return {"row": rows, **more, "images": [self.images(row) for row in rows]}

        made = Dataset.from_dict({"row": range(len(self.turns))})
        # `with_transform` would hash all texts and images first, for a cache that no trainer uses.
        inspect.unwrap(Dataset.set_format)(made, "custom", transform=filled)
        return made

    def refuse(self, skip: bool = False) -> None:
        """Refuses a set with unusable rows, listing the first ones with their reasons and the total number.

        With `skip`, leaves them out instead, as long as other rows remain.
        """
        if not self.refused or (skip and self.turns):
            return
        bad = []
        for _, error in sorted(self.refused.items()):
            place, _, why = error.problem.removeprefix(f"{self.name}, ").partition(": ")
            bad.append((place, HarnessError(why, error.remedy)))
        raise refused_rows(self.name, bad, len(bad) + len(self.turns), "trained on", skippable=True)


def read(data: Path | Dataset) -> Conversations:
    """Opens a training set and checks all of its rows, images included; see `examined`.

    Raises:
        HarnessError: the set cannot be opened, or some of its rows cannot be trained on.
    """
    found = examined(data)
    found.refuse()
    return found


def examined(data: Path | Dataset, source: str | None = None) -> Conversations:
    """Opens a training set and finds the rows that can be trained on, independent of the model.

    A row is unusable if it does not end with an answer, has an unreadable image, has different numbers of
    images and placeholders, has another box in its column `box` than in its answer, or has an invalid weight.
    `data` is a curated set (its rows are under data/), a folder written by `save_to_disk`, or an open
    `datasets.Dataset`, whose column `ROW` names its rows, if present, and whose name in errors is `source`.

    Raises:
        HarnessError: the set is missing, has changed since it was curated, is empty or lacks a column.
    """
    if not isinstance(data, Dataset):
        manifest.refuse_changed(data)
    name = source or "the given dataset" if isinstance(data, Dataset) else str(data)
    found = data if isinstance(data, Dataset) else _open(data)
    missing = [column for column in COLUMNS if column not in found.column_names]
    if missing:
        raise HarnessError(
            f"{name} lacks the column {missing[0]!r}; it has {', '.join(found.column_names)}",
            "Pass a set written by `dcsft curate`, or one with the columns messages and images",
        )
    if len(found) == 0:
        raise HarnessError(
            f"{name} has no rows to train on", "Keep other difficulties or label a larger pool"
        )
    # `cast_column` to undecoded images would write a cache file into the set's own folder.
    rows = found.select_columns(list(COLUMNS)).with_format("arrow")

    def column(name: str) -> list[Any] | None:
        return found[name][:] if name in found.column_names else None

    weights, ids, row_names = column("weight"), column("item_id"), column(ROW)
    boxes, reasons = (column(name) or [None] * len(found) for name in ("box", REFUSED))
    turns, numbers, refused = [], [], {}
    for number, (row, box) in enumerate(zip(_rows(rows), boxes, strict=True)):
        where, images = f"{name}, {row_names[number] if row_names else f'row {number}'}", _images(row)
        try:
            if (reason := reasons[number]) is not None:
                named = reason.partition(f"{row_names[number]}: ")[2] if row_names else ""
                problem, _, remedy = (named or reason).partition("\n")
                raise HarnessError(f"{where}: {problem}", remedy or "Correct or remove it")
            sizes = tuple(_decode(entry, where).size for entry in images)
            one = replace(_split(row["messages"], len(images), where), sizes=sizes)
            one = one if box is None else _boxed(one, box, where)
            weight = 1.0 if weights is None else weights[number]
            if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise HarnessError(f"{where}: weight {weight!r}", "Use a finite number of at least 0")
        except HarnessError as error:
            refused[number] = error
            continue
        turns.append(one)
        numbers.append(number)
    item_ids = ids and [ids[number] for number in numbers]
    weights = weights and [weights[number] for number in numbers]
    return Conversations(name, turns, rows, item_ids, weights, numbers, refused, row_names)


def _boxed(turns: Turns, box: Sequence[float], where: str) -> Turns:
    """A conversation, with the box of its answer."""
    stated = parse_box(turns.answer)
    if not isinstance(box, list) or not all(isinstance(end, int | float) for end in box):
        raise HarnessError(
            f"{where}: its column box is {box!r}, which is not a list of four numbers",
            "Write the answer's box in original-image pixels there, or give the column another name",
        )
    # Targets are written with two decimals.
    same = (
        stated is not None
        and len(box) == 4
        and all(abs(a - b) <= 0.011 for a, b in zip(stated, box, strict=True))
    )
    if not same or turns.size is None:
        lacks = "an image" if same else f"that box: {turns.answer[:80]!r}"
        raise HarnessError(
            f"{where}: its column box is {list(box)}, and it lacks {lacks}",
            "Write the answer's box in original-image pixels there, or leave the cell empty",
        )
    width, height = turns.size
    if not (box[0] < box[2] and box[1] < box[3] and box[0] < width and box[1] < height and min(box[2:]) > 0):
        raise HarnessError(
            f"{where}: the box {box} has no area in its image of {width} x {height} pixels",
            "Write x1, y1, x2, y2 in original-image pixels, x1 < x2 and y1 < y2",
        )
    return replace(turns, box=list(box))


def digest(data: Dataset) -> str:
    """A hash of an open set, which has no folder with a manifest.

    It covers texts, images, weights, boxes, rejected answers, and item ids, which depend on the gold.
    """
    rows = [
        [row["messages"], [hashlib.sha256(entry["bytes"] or b"").hexdigest() for entry in _images(row)]]
        for row in _rows(data.select_columns(list(COLUMNS)).with_format("arrow"))
    ]
    columns = ("weight", "box", "item_id", REJECTED)
    more = [data[name][:] for name in columns if name in data.column_names]
    return json_sha256([rows, *more] if more else rows)


def _rows(source: Dataset) -> Iterator[dict[str, Any]]:
    for table in source.iter(batch_size=64):
        yield from table.to_pylist()


def _images(row: Mapping[str, Any]) -> list[Any]:
    return row["images"] or []


def _open(folder: Path) -> Dataset:
    if (folder / manifest.NAME).is_file() and not (folder / "data").is_dir():
        manifest.read(folder, "curated set")  # which says what it holds instead
    rows = folder / "data" if (folder / "data").is_dir() else folder
    try:
        found = storage.load(rows)
    except HarnessError as error:
        raise HarnessError(
            f"{folder} is not a training set: {error.problem}",
            "Pass a folder written by `dcsft curate` or by datasets' save_to_disk",
        ) from error
    if isinstance(found, DatasetDict):
        raise HarnessError(
            f"{folder} holds the splits {', '.join(found)}", "Save one of them to a folder of its own"
        )
    return found


def _split(messages: Sequence[Mapping[str, Any]], images: int, where: str) -> Turns:
    if not messages or messages[-1].get("role") != "assistant":
        last = repr(messages[-1].get("role")) if messages else "missing"
        raise HarnessError(
            f"{where}: the last turn is {last}, not the assistant's answer", "End every conversation with one"
        )
    prompt = []
    for message in messages[:-1]:
        if message.get("role") not in ROLES:
            raise HarnessError(f"{where}: unknown role {message.get('role')!r}", f"Use {', '.join(ROLES)}")
        literal = message["role"] == "assistant"
        prompt.append({"role": message["role"], "content": _parts(message["content"], literal, where)})
    answer = "".join(part.get("text", "") for part in _parts(messages[-1]["content"], True, where))
    if not answer.strip():
        raise HarnessError(f"{where}: the assistant's answer is empty", "Remove the row or add an answer")
    if not any(message["role"] == "user" for message in prompt):
        raise HarnessError(
            f"{where}: there is no user turn before the answer", "Add one to every conversation"
        )
    placeholders = sum(part["type"] == "image" for message in prompt for part in message["content"])
    if (placeholders, images) == (0, 1):  # a single image goes in front of the first user turn
        first = next(message for message in prompt if message["role"] == "user")
        first["content"] = [{"type": "image"}, *first["content"]]
    elif placeholders != images:
        raise HarnessError(
            f"{where}: {placeholders} {MARK} placeholders for {images} images",
            f"Write one {MARK} into the user's content where each image belongs",
        )
    return Turns(prompt, answer, images)


def _parts(content: object, literal: bool, where: str) -> list[Part]:
    """A message's content as parts; with `literal`, a placeholder is text like any other."""
    if isinstance(content, str):
        if not literal:
            return parts(content)
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise HarnessError(f"{where}: a message's content is {type(content).__name__}", "Make it text")
    kinds = {part.get("type") for part in content} - {"text", "image"}
    if kinds:
        raise HarnessError(
            f"{where}: content of type {kinds.pop()!r}", "Only text and images can be trained on"
        )
    return [
        {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]}
        for part in content
    ]


def _decode(entry: object, where: str) -> Pillow.Image:
    """An image as `datasets` stores it ({"bytes", "path"}), as `pictures.to_rgb` shows it."""
    try:
        if not isinstance(entry, Mapping) or not (entry.get("bytes") or entry.get("path")):
            raise UnreadableError(f"{type(entry).__name__} instead of an image of `datasets`")
        return read_picture(entry.get("bytes") or file_bytes(Path(entry["path"])))[0]
    except UnreadableError as error:
        raise HarnessError(
            f"{where}: an image cannot be read ({error})", "Replace the image or remove the row"
        ) from error


# Checks a training set's rows against the base's processor, before any weights are read.
#
# The processor takes 20 to 60 ms per megapixel, minutes for a large set. So it only processes unusual input:
# each narrow or long image size once, as a blank image, and one row per number of images. Other sizes use the
# processor's own size arithmetic, and texts use the tokenizer.

NARROW = 32
"""The processor itself checks images with a side below this, in pixels."""
LONG = 20
"""It also checks images with at least this ratio of the sides."""
TEXTS_AT_ONCE = 256


def screened(
    conversations: Conversations,
    texts: Sequence[str],
    processor: ProcessorMixin,
    config: PreTrainedConfig,
    completion: int = 0,
) -> Conversations:
    """The set without rows that the processor or the base refuses; those are added to `refused`.

    A row is refused if its text contains an image token of the model family, if the processor does not
    support the size of one of its images, or if it has more tokens than the base has positions. `texts` are
    the tokenizer's inputs, image tokens included; `completion` is the tokens that a row may have besides.
    """
    refused: dict[int, HarnessError] = {}
    marks, sizes = media_marks(processor, config), _Sizes(processor)
    for position, turns in enumerate(conversations.turns):
        found = _mark(turns, marks) or sizes.refusal(turns.sizes)
        if found is not None:
            refused[position] = HarnessError(f"{conversations.where(position)}: {found}", "Remove the row")
    refused |= _refused_whole(conversations, texts, processor, refused)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    lengths = _lengths(conversations.turns, texts, processor, sizes)
    for position, tokens in enumerate(lengths):
        if longest is not None and tokens + completion > longest:
            more = f" with {completion} of the completion" if completion else ""
            problem = f"{tokens + completion} tokens{more}, but the base has {longest} positions"
            refused.setdefault(
                position,
                HarnessError(
                    f"{conversations.where(position)}: {problem}",
                    f"Shorten the row{' or lower max_completion_length' if completion else ''}",
                ),
            )
    kept = [position for position in range(len(lengths)) if position not in refused]
    images = (sum(map(sizes.tokens, conversations.turns[position].sizes)) for position in kept)
    return replace(
        conversations.without(refused),
        tokens=max((lengths[position] for position in kept), default=0),
        image_tokens=max(images, default=0),
    )


def _mark(turns: Turns, marks: Sequence[str]) -> str | None:
    """The error for a conversation whose text contains an image token."""
    texts = [("prompt", part.get("text", "")) for message in turns.prompt for part in message["content"]]
    for mark in marks:
        for name, text in [*texts, ("answer", turns.answer)]:
            if mark in text:
                why = "which the model reads as its own image token"
                return f"the {name} has {mark!r} in its text, {why}"
    return None


class _Sizes:
    """Supported image sizes of a processor, and their token counts; each size is checked once."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self.tokens = cache(self._tokens)
        self._refusal = cache(self._refused)

    def refusal(self, sizes: Sequence[tuple[int, int]]) -> str | None:
        """The processor's error for one of these (width, height); None if all are supported."""
        return next((said for said in map(self._refusal, sizes) if said is not None), None)

    def _refused(self, size: tuple[int, int]) -> str | None:
        width, height = size
        try:
            if min(size) < NARROW or max(size) >= LONG * min(size):
                self._processor.image_processor(images=[Pillow.new("RGB", size)], return_tensors="pt")
            elif count := getattr(self._processor.image_processor, "get_number_of_image_patches", None):
                count(height, width)
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError, AttributeError) as error:
            kind = type(self._processor.image_processor).__name__
            return f"the {kind} does not accept an image of {width} x {height} pixels: {error_line(error)}"
        return None

    def _tokens(self, size: tuple[int, int]) -> int:
        """Tokens of an image; 0 if the processor cannot count them without one."""
        try:
            counts: Any = self._processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])
            return int(counts["num_image_tokens"][0])
        except (AttributeError, KeyError, ValueError, TypeError, NotImplementedError, ZeroDivisionError):
            return 0


def _lengths(
    turns: Sequence[Turns], texts: Sequence[str], processor: ProcessorMixin, sizes: _Sizes
) -> list[int]:
    """Tokens of each conversation, image tokens included."""
    counts: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[start : start + TEXTS_AT_ONCE])
        counts += map(len, processor.tokenizer(some, add_special_tokens=False)["input_ids"])
    return [
        count + sum(map(sizes.tokens, one.sizes)) - one.images
        for count, one in zip(counts, turns, strict=True)
    ]


def _refused_whole(
    conversations: Conversations,
    texts: Sequence[str],
    processor: ProcessorMixin,
    refused: dict[int, HarnessError],
) -> dict[int, HarnessError]:
    """Rows that the processor refuses as a whole: one is tried per number of images; if it fails, all are."""
    kinds: dict[int, list[int]] = {}
    for position, turns in enumerate(conversations.turns):
        if position not in refused:
            kinds.setdefault(turns.images, []).append(position)
    found: dict[int, HarnessError] = {}
    for number, positions in kinds.items():
        for position in positions:
            images = {"images": [conversations.images(position)]} if number else {}
            try:
                processor(text=[texts[position]], return_tensors="pt", **images)
            except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                said = f"{conversations.where(position)}: the processor refuses it: {error_line(error)}"
                found[position] = HarnessError(said, "Remove the row")
            else:
                if position == positions[0]:
                    break
    return found


# Conversations as text, in the form of evaluation, split into prompt and completion.
#
# TRL would render the chat template itself, once per sample and step. It would also include in the loss what
# a template writes after the end mark (Qwen's newline), which no model ever has to generate. So conversations
# are rendered here once, and TRL gets prompt and completion as plain text.


_CLOSING = {"<think>": "</think>", "<|channel>thought": "<channel|>"}
"""How thoughts begin -> how they end: Qwen, GLM, InternVL and others; Gemma 4."""


class Rendered(NamedTuple):
    """The text of one sample."""

    prompt: str  # everything before the answer, the same text as in evaluation
    completion: str  # the answer and its end mark; the loss covers exactly this


@dataclass(frozen=True)
class Template:
    """A checkpoint's template for conversations."""

    processor: ProcessorMixin  # its processor, chat template and tokenizer included
    stops: tuple[str, ...]  # end marks that stop generation, as text
    arguments: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the template

    @classmethod
    def of(
        cls,
        processor: ProcessorMixin,
        generation: GenerationConfig | None,
        arguments: Mapping[str, Any] | None = None,
    ) -> "Template":
        """A checkpoint's template with its end marks: the tokenizer's and those of its generation config.

        Without any, no answer could ever end: an error.
        """
        tokenizer = processor.tokenizer
        ids = getattr(generation, "eos_token_id", None)
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        marks = [tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(ids)]
        stops = tuple(dict.fromkeys(mark for mark in marks if mark))
        if not stops:
            raise HarnessError(
                "the model has no end token (eos_token)", "Set one in its tokenizer_config.json"
            )
        return cls(processor, stops, dict(arguments or {}))

    def render(self, turns: Turns, where: str, sampled: bool = False) -> Rendered:
        """A conversation as text: the prompt of evaluation, and what the model has to write from there.

        A `sampled` answer is what the model wrote there: only the template's end mark is added.

        A template that begins an answer differently than its generation prompt, other than in white space,
        is refused: the prompts of training and evaluation would differ.
        """
        if sampled:
            plain = self.render(replace(turns, answer="B"), where)
            return plain._replace(completion=turns.answer + plain.completion.partition("B")[2].lstrip())
        answer = {"role": "assistant", "content": [{"type": "text", "text": turns.answer}]}
        prompt = render(self.processor, turns.prompt, where, True, self.arguments)
        whole = render(self.processor, [*turns.prompt, answer], where, False, self.arguments)
        whole = _with_one_thought(whole, turns.answer.strip())
        if whole.startswith(prompt):
            completion = whole[len(prompt) :]
        else:
            completion = self._after_thought(turns, prompt, whole, where)
        return Rendered(self._with_bos(prompt), self._ended(completion))

    def _after_thought(self, turns: Turns, prompt: str, whole: str, where: str) -> str:
        """The completion where the generation prompt alone opens a thought, or gives an empty one.

        So it is where the two differ in white space. Refused if they differ in something else, or only the
        answer has a thought.
        """
        answer, common = turns.answer.strip(), len(os.path.commonprefix([prompt, whole]))
        for opening, closing in _CLOSING.items():
            if answer.startswith(opening) and prompt.rstrip().endswith(closing):
                raise HarnessError(
                    f"{where}: the answer begins with {opening}, but the prompt already has an empty thought",
                    "Train with --chat-template-kwargs that let the model think, or remove the thought",
                )
        begins = whole.find(answer, common)
        if begins >= 0 and whole[:begins].split() == prompt.split():  # LLaVA-OneVision's "assistant \n"
            return whole[begins:]
        at, thought = common + 1, None
        # From the end: the turn's header may have the answer's text, too, as "assistant" has "ant".
        while thought is None and (at := whole.rfind(answer, 0, at + len(answer) - 1)) >= 0:
            thought = _thought(prompt[at:])
        if thought is None:
            raise HarnessError(
                f"{where}: the chat template ends prompts with {prompt[-40:]!r} but begins answers"
                " differently",
                "Use a chat template whose generation prompt begins its assistant turns, or other"
                " arguments with --chat-template-kwargs",
            )
        rest, (opening, closed) = whole[at:], thought
        if not closed:  # the model closes the thought
            if rest.startswith(opening):
                return rest.removeprefix(opening).lstrip("\n")
            return rest if _CLOSING[opening] in answer else f"\n{_CLOSING[opening]}\n\n{rest}"
        return rest

    def _with_bos(self, prompt: str) -> str:
        """The prompt with the first token that the tokenizer adds in evaluation; in TRL it adds none."""
        tokenizer = self.processor.tokenizer
        bos = tokenizer.bos_token
        if not bos or prompt.startswith(bos) or tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
            return prompt
        return str(bos) + prompt

    def _ended(self, completion: str) -> str:
        """The completion up to its end mark, which is added if the template writes none."""
        ends = [completion.rfind(mark) + len(mark) for mark in self.stops if mark in completion]
        return completion[: max(ends)] if ends else completion + self.stops[0]


def _with_one_thought(whole: str, answer: str) -> str:
    """A conversation without the empty thought that its template writes before an answer with its own."""
    at = whole.rfind(answer)
    before = whole[:at].rstrip() if at >= 0 else ""
    for opening, closing in _CLOSING.items():
        head = before.removesuffix(closing).rstrip()
        if closing in answer and before.endswith(closing) and head.endswith(opening):
            return head.removesuffix(opening) + whole[at:]
    return whole


def _thought(text: str) -> tuple[str, bool] | None:
    """How the end of a generation prompt opens a thought, and whether it ends it at once; None if neither."""
    text = text.strip()
    for opening, closing in _CLOSING.items():
        if text == opening:
            return opening, False
        if text.startswith(opening) and text.removeprefix(opening).strip() == closing:
            return opening, True
    return None


def in_space(turns: Turns, convention: BoxConvention, where: str, truncated: bool = False) -> Turns:
    """A conversation with the answer's box in the model's own coordinates.

    Sets hold boxes in original-image pixels, for any model. A Qwen2.5-VL trained on those learns to be off by
    the resize factor, and a model that writes thousandths unlearns its own space. With `truncated`, boxes in
    original pixels are cut to whole numbers. `where` is the row's name in errors.

    Raises:
        HarnessError: the image's sides differ by more than the processor supports, the box cannot be replaced
            in the answer's text, or the box without decimals has no area.
    """
    if turns.box is None or turns.size is None:
        return turns
    space, resized = convention.space, None
    assert space is not None  # `Setup.box_convention` refuses boxes without
    if space == "pixel":
        if not truncated:
            return turns
        numbers = [math.trunc(end) for end in turns.box]
        if numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
            raise HarnessError(
                f"{where}: the box {turns.box} truncated to whole pixels is {numbers}, which has no area",
                "Remove the row, or leave out --box-rounding",
            )
    else:
        if space == "resized":
            try:
                resized = convention.resized_size(turns.size)
            except ValueError as error:
                raise HarnessError(f"{where}: {error}", "Remove the row") from error
            if resized is None or resized == turns.size:
                return turns
        numbers = from_pixels(turns.box, image_size=turns.size, box_space=space, resized_size=resized)
    answer = rewritten(turns.answer, numbers)
    if answer is None:
        raise HarnessError(
            f"{where}: the box cannot be replaced in {turns.answer[:80]!r}", "Write it as [x1, y1, x2, y2]"
        )
    return replace(turns, answer=answer)


def rendered(
    conversations: Conversations,
    template: Template,
    convention: BoxConvention,
    truncated: bool = False,
    sampled: bool = False,
) -> tuple[Conversations, list[Rendered]]:
    """The conversations that can be rendered, and their texts; others are added to `refused`.

    `sampled` answers are written as they are, see `Template.render`.
    """
    return conversations.mapped(
        lambda turns, where: template.render(in_space(turns, convention, where, truncated), where, sampled)
    )
