r"""Bounding boxes: reading one out of a response, and IoU >= 0.5 against the gold.

    box_iou('```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "dog"}]\n```',
            answer=[12, 18, 108, 225], image_size=(640, 480))
        -> Verdict(1.0, [10.0, 20.0, 110.0, 220.0])

Convention: a box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2; the gold is in pixels of the
original image. The space of the prediction is a property of the model (Qwen2.5-VL: pixels of the
resized input; Qwen2-VL, Qwen3-VL, InternVL: 0-1000) and is stated by the caller. It is never
guessed from the numbers: the best of several readings is an oracle, not a score.

IoU is the plain one, (intersection area) / (union area). VLM-R1 and DC-SFT add one pixel to the
sides of the intersection only; the difference matters on tiny boxes.
"""

import ast
import math
import re
from collections.abc import Sequence

from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.scoring.normalize import THOUGHT_END, THOUGHT_START, answer_part, boxes, unified
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict

BOX_SPACES = ("pixel", "resized", "norm1000")

# Repetitions are bounded so that no response, however long, costs more than linear time.
_N = r"(-?\d{1,12}(?:\.\d{0,15})?)"
_GAP = r"\s{0,40}"
_COMMA = rf"{_GAP}[,，]{_GAP}"
_BETWEEN = rf"(?:{_COMMA}|\s{{1,40}})"
_FOUR = _BETWEEN.join([_N] * 4)
_PAIR_REST = rf"{_GAP}(?:x\w?\s?[=:]\s?)?{_N}{_COMMA}(?:y\w?\s?[=:]\s?)?{_N}{_GAP}[\])]"
_WORDS = r"[^\d\[\](){}]"
# It begins with all characters that a box can begin with, which makes the search several times faster.
_CORNERS = re.compile(
    r"[\[({<](?:"
    rf"{_GAP}{_FOUR}{_GAP}(?:[\])}}]|,\s?\"[a-z])"  # [x1, y1, x2, y2], in ( ) or { }, or not closed
    # (x1, y1), (x2, y2), nested or not, or with words between, or "2.", or "(x2, y2) ="
    rf"|{_PAIR_REST}(?:{_WORDS}{{0,40}}|{_WORDS}{{0,60}}corner{_WORDS}{{0,60}}|{_WORDS}{{0,9}}\n\s{{0,4}}2\.{_WORDS}{{0,60}}"
    rf"|{_WORDS}{{0,40}}\(x\w{{0,4}},\s?y\w{{0,4}}\)\s?[=:]\s?)"
    rf"[\[(]{_PAIR_REST}"
    rf"|b?box>{_GAP}{_FOUR}{_GAP}</b?box>)"
)
_PAIR = re.compile(rf"[^\d\[\](){{}}]{{0,40}}[\[(]{_PAIR_REST}")
_NO_CORNER = re.compile(
    r"(?:cent(?:er|re)|size|resolution|dimensions?|image)[\"']?\s?(?:is|of|at|:)?\s{0,3}$", re.I
)
"""Text before a pair of numbers that is not a corner."""
_APART = re.compile(r"(?i:(?!.{0,40}(?:corner|right|bottom|lower)).*\b(?:is|are) at\b|.*\bsize\b)", re.DOTALL)
"""Text between two pairs of numbers that belong to different things."""
# {"x1": 10, "y1": 20, "x2": 110, "y2": 220}, x_min=10, left: 10, <x1>10</x1>, "x": 10, "y": 20, "width": 100
_NAMES_OF_SIDES = (
    "x_?(?:1|min)|min_?x|left|x", "y_?(?:1|min)|min_?y|top|y",
    "x_?(?:2|max)|max_?x|right|w(?:idth)?", "y_?(?:2|max)|max_?y|bottom|h(?:eight)?",
)  # fmt: skip
_SIDE = re.compile(
    rf"[\"'<]?(?<![A-Za-z_\d])"
    rf"(?:{'|'.join(f'(?P<side{side}>{name})' for side, name in enumerate(_NAMES_OF_SIDES))})"
    rf"(?:[\"'*)]{{0,3}}{_GAP}[:=]\*{{0,2}}|>){_GAP}[\"']?{_N}",
    re.IGNORECASE,
)
_LAST_SIDES = ("y2", "y_2", "max", "bottom", "height", '"h"', " h:")
_WIDTH = re.compile(r"\bw(?:idth)?\W+$", re.IGNORECASE)
_REACH = 60
"""Characters between one named side and the next."""
_KEYED = re.compile(r"bbox(?:_2d)?[\"']?\s{0,40}[:=]", re.IGNORECASE)
# "The bounding box is 10, 20, 110, 220.", bbox_2d: "10, 20, 110, 220": four numbers and no fifth.
_SAID = re.compile(
    rf"(?:[Bb]ox|oordinate)(?:_2d)?[^\d\[\](){{}}<.]{{0,40}}?{_COMMA.join([_N] * 4)}"
    rf"(?![\d%]|\.\d|{_COMMA}[-+.\d])"
)
_BARE = re.compile(
    rf"[\s*`]*(?:[^\W\d_][^\W\d_ '-]{{0,20}}(?: [^\W\d_'-]{{1,20}}){{0,8}}\s?[:：])?\s*{_FOUR}\.?[\s*`]*"
)
"""Nothing but four numbers, or these behind a label."""
# Tags that a text in JSON holds ("label": "<think>the left one</think>") mark no thought and no answer.
_QUOTED = re.compile(r"""["']\s{0,40}:\s{0,40}"(?:[^"\\]|\\.){0,1500}"|"</?[a-z]{1,20}>\"""")
_QUOTED_NUMBER = re.compile(r"(?<=[\[\s,])[\"'](-?\d{1,12}(?:\.\d{0,15})?)[\"'](?=\s?[,\]])")
_OPENS = re.compile(r"\s*(?:```(?:json)?\s*)?[\[({]")

Span = tuple[int, int]
Box = list[float]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes in the same space, in [0, 1].

    A box without area (x2 <= x1 or y2 <= y1, so also one with its corners reversed) has IoU 0
    with everything: corners are not put in order for the model.
    """
    if a[2] <= a[0] or a[3] <= a[1] or b[2] <= b[0] or b[3] <= b[1]:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    # Rounding can push equal boxes a hair past 1, and areas of denormal size to zero.
    return min(1.0, both / union) if union > 0 else 0.0


def parse_box(response: str, *, truncated: bool = False) -> Box | None:
    r"""The one box that a response states, as written, or None.

    Which one, if there are several: only what follows a closed <think> block counts; of that, only
    the last <answer> block, if there is one; of that, the last \boxed{...}; else the first box given as bbox
    or bbox_2d, else the first box. Never the best of several. An unfinished thought holds none.

    A box is exactly four numbers in one pair of brackets, two pairs of numbers, a <box> or <bbox>
    tag, the names x1, y1, x2, y2 (or x_min, ..., or left, top, right, bottom, or x, y, width, height), or
    nothing but four numbers, perhaps behind a label; failing these, four numbers with commas behind "box"
    or "coordinates". A list of three or five numbers is not a box. Without names the order is x1, y1, x2, y2;
    models that write y first (Gemini's box_2d, PaliGemma) are not read as such.

    Args:
        response: what the model wrote.
        truncated: whether it ran out of tokens. Then only a closed tag or \boxed counts, or a box in brackets
            that has its key or with which the response begins: others may be of a thought without its tag.
    """
    part = _part(response, truncated)
    spans = _find(part)
    if spans is None:
        return None
    box = [float(part[start:end]) for start, end in spans]
    is_size = _WIDTH.search(part[: spans[2][0]][-12:]) is not None
    return [*box[:2], box[0] + box[2], box[1] + box[3]] if is_size else box


def _part(response: str, truncated: bool = False) -> str:
    """The part of a response that may state a box, its quoted tags masked."""
    response = unified(response)
    if "<" in response and ":" in response and ('"' in response or "'" in response):
        response = _QUOTED.sub(lambda match: match[0].replace("<", "‹"), response)
    part = answer_part(response, truncated=truncated)
    if part:
        return part
    if THOUGHT_START.match(response) and not THOUGHT_END.search(response):
        # A thought that never ends, but comes to its end: real responses state their box in it.
        return "" if truncated or len(response) > 400 and response.rstrip()[-1:].isalnum() else response
    rest = answer_part(response) if truncated else ""
    key = _KEYED.search(rest)
    if key is None:
        return rest if _OPENS.match(rest) else ""
    keyed = _CORNERS.search(rest, key.end(), key.end() + 200)
    return rest[keyed.start() :] if keyed and not rest[key.end() : keyed.start()].strip(" \n\t[\"'") else ""


def _find(text: str) -> list[Span] | None:
    """Where the four numbers of the box stand that a text states: x1, y1, x2, y2."""
    if "\\ " in text or "\\," in text:
        text = text.replace("\\ ", "  ").replace("\\,", "  ")
    if '["' in text or "['" in text:
        text = _QUOTED_NUMBER.sub(r" \1 ", text)
    for begin, end, _ in boxes(text):
        inside = _BARE.fullmatch(text, begin, end)
        if (found := _groups(inside) if inside else _corners(text, begin, end)) is not None:
            return found
    bare = _BARE.fullmatch(text) if len(text) < 300 else None
    if bare:
        return _groups(bare)
    lowered = text.lower()  # literals are found much faster than patterns
    key = _KEYED.search(text) if "bbox" in lowered else None
    for start in (key.end(), 0) if key else (0,):
        if (found := _corners(text, start, len(text))) is not None:
            return found
    sides = _sides(text) if any(name in lowered for name in _LAST_SIDES) else None
    if sides is not None:
        return sides
    said = _SAID.search(text) if "box" in lowered or "oordinate" in lowered else None
    return _groups(said) if said else None


def _corners(text: str, start: int, end: int) -> list[Span] | None:
    """The first four numbers in brackets, two points, or the box of all corners where more points follow."""
    while match := _CORNERS.search(text, start, end):
        spans = _groups(match)
        is_pairs = text[spans[1][1] : spans[2][0]].strip(" ,，\n\t") != ""
        before = text[max(0, match.start() - 30) : match.start()]
        if is_pairs and (_NO_CORNER.search(before) or _APART.match(text, spans[1][1], spans[2][0])):
            start = match.start() + 1
            continue
        while is_pairs and (more := _PAIR.match(text, match.end(), end)):
            match = more
            spans += _groups(more)
        if len(spans) > 4:
            sides = [
                sorted(spans[side::2], key=lambda span: float(text[span[0] : span[1]])) for side in (0, 1)
            ]
            is_box = all(len({float(text[a:b]) for a, b in side}) == 2 for side in sides) and len(spans) == 8
            spans = [sides[0][0], sides[1][0], sides[0][-1], sides[1][-1]] if is_box else spans[:4]
        return spans
    return None


def _groups(match: "re.Match[str]") -> list[Span]:
    return [span for span in map(match.span, range(1, len(match.groups()) + 1)) if span[0] >= 0]


def _sides(text: str) -> list[Span] | None:
    """Four sides by their names, close to each other."""
    found: dict[str, Span] = {}
    end = sizes = 0
    for match in _SIDE.finditer(text):
        side = str(next(name for name, value in match.groupdict().items() if value))
        if match.start() - end > _REACH or side in found:
            found = {}
        is_point = text.rfind("<point", max(0, match.start() - _REACH), match.start()) >= 0  # Molmo's
        name = match[side].lower()
        is_of_image = len(found) < 2 and name[0] in "wh"  # a size before its corner
        is_center = len(name) == 1 and "cent" in text[max(0, match.start() - 14) : match.start()].lower()
        if not (is_point or is_of_image or is_center):
            found[side], end = match.span(match.lastindex or 0), match.end()
            sizes = sizes + (name[0] in "wh") if len(found) > 1 else 0
        if len(found) == 4:
            return [found[side] for side in sorted(found)] if sizes != 1 else None
    return None


def to_pixels(
    box: Sequence[float],
    *,
    image_size: tuple[int, int],
    box_space: str = "pixel",
    resized_size: tuple[int, int] | None = None,
    clip: bool = True,
) -> Box:
    """A predicted box in original-image pixels, clipped to the image.

    Args:
        box: [x1, y1, x2, y2] in `box_space`.
        image_size: (width, height) of the original image, pixels.
        box_space: "pixel" (original image), "resized" (the image that the model's processor made)
            or "norm1000" (0 to 1000 over each side).
        resized_size: (width, height) of the processor's image, pixels; needed for "resized" alone.
        clip: whether to cut off parts outside the image, which other evaluations do not do.

    Raises:
        HarnessError: for an unknown space, or a size that is missing or not positive.
    """
    width, height = _size("image_size", image_size)
    spaces = {"pixel": (width, height), "norm1000": (1000.0, 1000.0), "resized": resized_size}
    if box_space not in spaces:
        raise HarnessError(f"unknown box_space {box_space!r}", f"It is one of {', '.join(BOX_SPACES)}")
    limits = spaces[box_space]
    if limits is None:
        raise HarnessError(
            "box_space 'resized' without resized_size (got None)",
            "Pass the (width, height) that the model's image processor makes of the image",
        )
    return _scaled(box, _size("resized_size", limits), (width, height), clip=clip)


def _scaled(box: Sequence[float], size: tuple[float, float], new: tuple[float, float], *, clip: bool) -> Box:
    """A box of an image of that size in one of the new size."""
    scaled = [value * (new[side % 2] / size[side % 2]) for side, value in enumerate(box)]
    return [min(max(value, 0.0), new[side % 2]) for side, value in enumerate(scaled)] if clip else scaled


def rewritten(response: str, numbers: Sequence[int]) -> str | None:
    """The text with its box's numbers replaced; None if it states no box, or its place is ambiguous.

    rewritten('[{"bbox_2d": [10, 20, 110, 220]}]', [15, 41, 171, 458]) -> '[{"bbox_2d": [15, 41, 171, 458]}]'
    """
    response = unified(response)
    part = answer_part(response)
    spans, start = _find(_part(response)), response.rfind(part)
    if spans is None or start < 0 or len(_part(response)) != len(part):
        return None
    for (begin, end), number in sorted(zip(spans, numbers, strict=True), reverse=True):
        part = f"{part[:begin]}{number}{part[end:]}"
    whole = response[:start] + part + response[start + len(answer_part(response)) :]
    # The same text may follow the part that counts.
    return whole if parse_box(whole) == [float(number) for number in numbers] else None


def from_pixels(
    box: Sequence[float],
    *,
    image_size: tuple[int, int],
    box_space: str | None,
    resized_size: tuple[int, int] | None,
) -> list[int]:
    """A box as a model of that space writes it: whole numbers, at least one apart. See `to_pixels`.

    Args:
        box: [x1, y1, x2, y2] in original-image pixels.
        image_size: (width, height) of the original image, pixels.
        box_space: "resized" or "norm1000".
        resized_size: (width, height) of the processor's image, pixels; needed for "resized" alone.

    Raises:
        HarnessError: for another space, or a size that is missing or not positive.
    """
    if box_space not in ("resized", "norm1000"):
        raise HarnessError(f"box_space {box_space!r}", "It is resized or norm1000")
    limits = (1000.0, 1000.0) if box_space == "norm1000" else _size("resized_size", resized_size or (0, 0))
    scaled = _scaled(box, _size("image_size", image_size), limits, clip=True)
    written = [round(value) for value in scaled]
    for low, high in ((0, 2), (1, 3)):
        if written[low] >= written[high]:
            written[low] = min(math.floor(scaled[low]), math.ceil(limits[low]) - 1)
            written[high] = written[low] + 1
    return written


def _size(name: str, size: tuple[float, float]) -> tuple[float, float]:
    if size is None or len(size) != 2 or not all(0 < side < math.inf for side in size):
        raise HarnessError(f"{name} is not two positive numbers: {size!r}", "Pass (width, height) in pixels")
    return float(size[0]), float(size[1])


def _gold(answer: Sequence[float]) -> Box:
    try:
        box = [float(number) for number in answer]
    except (TypeError, ValueError, OverflowError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] <= box[0] or box[3] <= box[1]:
        raise HarnessError(
            f"the answer is not a box with an area: {answer!r}",
            "Write [x1, y1, x2, y2] in original-image pixels with x1 < x2 and y1 < y2",
        )
    return box


def box_iou(
    response: str,
    *,
    answer: Sequence[float],
    image_size: tuple[int, int],
    box_space: str = "pixel",
    resized_size: tuple[int, int] | None = None,
    threshold: float = 0.5,
    truncated: bool = False,
) -> Verdict:
    """Score 1.0 if the stated box overlaps the gold with IoU >= threshold, else 0.0.

    Args:
        response: what the model wrote; `parse_box` says which box counts.
        answer: the gold [x1, y1, x2, y2], original-image pixels.
        image_size: (width, height) of the original image, pixels.
        box_space: the space of the predicted numbers; see `to_pixels`.
        resized_size: (width, height) of the processor's image; needed for "resized" alone.
        truncated: whether the response ran out of tokens; see `parse_box`.
        threshold: in (0, 1]; the paper (section 4) and VLM-R1 use 0.5.

    Returns:
        A score of 0.0 or 1.0; extracted is the box in original-image pixels, clipped to the image.
        A degenerate box (corners reversed, no area) was found and is wrong; None means no box.

    Raises:
        HarnessError: for a gold that is no box, an unknown space, a wrong or missing size, or a
            threshold outside (0, 1].
    """
    gold = _gold(answer)
    if not 0.0 < threshold <= 1.0:
        raise HarnessError(f"threshold {threshold!r} is outside (0, 1]", "The usual one is 0.5")
    # Also checks the space and the sizes where the response holds no box.
    stated = parse_box(response, truncated=truncated)
    box = to_pixels(stated or gold, image_size=image_size, box_space=box_space, resized_size=resized_size)
    if stated is None:
        return NOT_FOUND
    return Verdict(float(iou(box, gold) >= threshold), box)


def parse_gold(solution: object) -> object:
    """A gold box of a row of own data: four numbers, or text that is a list of them.

    Raises:
        HarnessError: it is no box with an area.
    """
    value: object = solution
    if isinstance(solution, str):
        try:
            value = ast.literal_eval(solution.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise HarnessError(
                f"the answer {cut(repr(solution))} is not a box", "Write [x1, y1, x2, y2]"
            ) from error
    if isinstance(value, list | tuple) and all(type(one) in (int, float) for one in value):
        if len(value) == 4 and -1e9 < value[0] < value[2] < 1e9 and -1e9 < value[1] < value[3] < 1e9:
            return list(value)
    raise HarnessError(
        f"the answer {cut(repr(value))} is not a box",
        "Write two corners in pixels, [x1, y1, x2, y2] with x1 < x2 and y1 < y2, not width and height",
    )


def check_gold(answer: Sequence[float], *, image_size: tuple[int, int]) -> None:
    """Refuses a box that leaves its image by more than annotations are rounded by, which is one pixel.

    Raises:
        HarnessError: it does, or is no box.
    """
    box, (width, height) = _gold(answer), image_size
    if min(box) >= 0 and max(box) <= 1 < min(width, height):
        raise HarnessError(
            f"the box {list(answer)} lies within one pixel of its image of {width:g} x {height:g} pixels",
            "Write x1, y1, x2, y2 in pixels, not in shares of the image",
        )
    if min(box) < -1 or box[2] > width + 1 or box[3] > height + 1:
        raise HarnessError(
            f"the box {list(answer)} leaves its image of {width:g} x {height:g} pixels",
            "Write x1, y1, x2, y2 in pixels of the upright image (its EXIF orientation applied), not resized",
        )


SCORER = Scorer(
    "box_iou",
    box_iou,
    gold=parse_gold,
    fields=("image_size", "box_space", "resized_size"),
    check=check_gold,
    version=11,
)
