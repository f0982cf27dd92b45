"""Images of several digits: scenes with expressions that refer to one, and sums."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from dcsft_harness.data.digits import drawing
from dcsft_harness.data.digits.drawing import Digits

# Grounding: images with one to three digits, and expressions that refer to one of them.

SCENE_SIDE = 84
"""Pixels per side of a scene: nine Qwen2.5-VL image tokens, and a multiple of 28, so never resized."""

CELL = 28
"""A digit lies inside one cell of this many pixels, the area of one image token. If digits share a token, a
model this small cannot learn which color lies where: it stayed at chance level."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."
"""VLM-R1's wording for referring expressions, which the paper's grounding data uses."""


class Thing(NamedTuple):
    """One digit of a scene: its value 0..9, color name and box `[x1, y1, x2, y2]` in pixels."""

    value: int
    colour: str
    box: tuple[int, int, int, int]

    @property
    def middle(self) -> tuple[float, float]:
        """The center (x, y) of the box in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def height(self) -> int:
        """The height of the box in pixels."""
        return self.box[3] - self.box[1]


class Scene(NamedTuple):
    """An image, the digits in it, and the positions of those digits in scikit-learn's file."""

    image: Image.Image
    things: tuple[Thing, ...]
    ids: tuple[int, ...]


def draw_scene(digits: Digits, rng: np.random.Generator, count: int, severity: float = 0.0) -> Scene:
    """A scene of `count` digits of different values and colors, each inside its own `CELL`.

    `severity` is 0 (bright ink, little noise; used in pre-training) to 1 and above (faint and noisy).
    """
    while True:
        chosen = rng.permutation(len(digits.values))[:count]
        if len(set(digits.values[chosen].tolist())) == count:
            break
    colours = [list(drawing.PALETTE)[i] for i in rng.permutation(len(drawing.PALETTE))[:count]]
    cells = rng.permutation((SCENE_SIDE // CELL) ** 2)[:count]
    plain = drawing.ground(rng, SCENE_SIDE, SCENE_SIDE, dark=True)
    canvas = plain.copy()
    things: list[Thing] = []
    for index, colour, cell in zip(chosen, colours, cells, strict=True):
        size = int(rng.integers(17, 20) if rng.uniform() < 0.5 else rng.integers(25, CELL + 1))
        mask = drawing.enlarge(digits.images[index], size, float(rng.uniform(-8, 8)))
        x = int(cell) % (SCENE_SIDE // CELL) * CELL + int(rng.integers(0, CELL - size + 1))
        y = int(cell) // (SCENE_SIDE // CELL) * CELL + int(rng.integers(0, CELL - size + 1))
        drawing.stamp(canvas, mask, drawing.faded(plain, colour, severity), x, y)
        things.append(Thing(int(digits.values[index]), colour, drawing.ink_box(mask, x, y)))
    image = drawing.finish(canvas, rng, float(rng.uniform(0.01, 0.05)) + 0.12 * severity)
    return Scene(image, tuple(things), tuple(int(digits.ids[i]) for i in chosen))


def _extreme(scene: Scene, key: Callable[[Thing], float], margin: float) -> Thing | None:
    ranked = sorted(scene.things, key=key)
    if len(ranked) > 1 and key(ranked[1]) - key(ranked[0]) < margin:
        return None
    return ranked[0]


Expression = tuple[str, Thing]
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")

_PLACES: dict[str, tuple[Callable[[Thing], float], float]] = {
    "on the left": (lambda thing: thing.middle[0], 10),
    "on the right": (lambda thing: -thing.middle[0], 10),
    "at the top": (lambda thing: thing.middle[1], 10),
    "at the bottom": (lambda thing: -thing.middle[1], 10),
}
_SIZES: dict[str, tuple[Callable[[Thing], float], float]] = {
    "largest": (lambda thing: -thing.height, 6),
    "smallest": (lambda thing: thing.height, 6),
}


def short(scene: Scene, rng: np.random.Generator) -> Expression:
    """A short expression, as in RefCOCO: by color, size, place, name, or color and name."""
    kind = rng.choice(["colour", "place", "size", "name", "both"], p=[0.3, 0.25, 0.15, 0.2, 0.1])
    if kind == "place":
        words, (key, margin) = list(_PLACES.items())[int(rng.integers(len(_PLACES)))]
        if (thing := _extreme(scene, key, margin)) is not None:
            return f"the digit {words}", thing
    if kind == "size":
        words, (key, margin) = list(_SIZES.items())[int(rng.integers(len(_SIZES)))]
        if (thing := _extreme(scene, key, margin)) is not None:
            return f"the {words} digit", thing
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if kind == "name":
        return f"the {NAMES[thing.value]}", thing
    if kind == "both":
        return f"the {thing.colour} {NAMES[thing.value]}", thing
    return f"the {thing.colour} digit", thing


def long(scene: Scene, rng: np.random.Generator) -> Expression:
    """A longer relational expression, as in Ref-L4: the digit by its place relative to another."""
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    across, down = first.middle[0] - second.middle[0], first.middle[1] - second.middle[1]
    if abs(across) >= abs(down):
        relation = "to the left of" if across < 0 else "to the right of"
    else:
        relation = "above" if down < 0 else "below"
    size = "large" if first.height >= 20 else "small"
    anchor = f"the {second.colour} {NAMES[second.value]}"
    forms = [
        f"the {size} handwritten digit {relation} {anchor}, written in {first.colour} ink",
        f"{relation} {anchor} there is a {size} {first.colour} digit, a {NAMES[first.value]}",
        f"the {first.colour} digit, a {size} {NAMES[first.value]}, that stands {relation} {anchor}",
    ]
    return forms[int(rng.integers(len(forms)))], first


def reasoned(scene: Scene, rng: np.random.Generator) -> Expression:
    """An expression that needs a step of reasoning, as in LISA: by value, order or a sum."""
    ranked = sorted(scene.things, key=lambda thing: thing.value)
    kind = int(rng.integers(3))
    if kind == 0:
        return ("the digit with the highest value", ranked[-1])
    if kind == 1:
        return ("the digit with the lowest value", ranked[0])
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if thing.value == 0:
        return "the digit that comes just before one", thing
    return f"the digit that comes just after {NAMES[thing.value - 1]}", thing


def where(thing: Thing) -> str:
    """The cell of a digit in words: "top left", "middle centre" and so on."""
    return f"{_ROWS[int(thing.middle[1] // CELL)]} {_COLUMNS[int(thing.middle[0] // CELL)]}"


def caption(scene: Scene, rng: np.random.Generator, boxes: bool) -> str:
    """Every digit of a scene by color, name, and place or box, in any order; only for pre-training.

    Each attribute determines the next word together with the image, whichever comes first: this teaches which
    attributes belong together before a question asks for it across a distance.
    """
    lines = []
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[int(index)]
        words = [thing.colour, NAMES[thing.value], where(thing)]
        if boxes:
            words = [words[i] for i in rng.permutation(2)] + [str(list(thing.box))]
        else:
            words = [words[i] for i in rng.permutation(3)]
        lines.append(" ".join(words))
    return "; ".join(lines)


def question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question about one digit of a scene and its answer in a word or two; only for pre-training.

    A box is four numbers that mostly encode a digit's position within its surroundings, so a grounding
    example carries little information about which digit was meant; the answers here carry nothing else.
    """
    thing = scene.things[int(rng.integers(len(scene.things)))]
    place = where(thing)
    pairs = [
        (f"Which digit is {thing.colour}?", NAMES[thing.value]),
        (f"What colour is the {NAMES[thing.value]}?", thing.colour),
        (f"Where is the {thing.colour} digit?", place),
        (f"Where is the {NAMES[thing.value]}?", place),
    ]
    for words, (key, margin) in _PLACES.items():
        if (extreme := _extreme(scene, key, margin)) is not None:
            pairs.append((f"Which digit is {words}?", NAMES[extreme.value]))
            pairs.append((f"What colour is the digit {words}?", extreme.colour))
    return pairs[int(rng.integers(len(pairs)))]


EXPRESSIONS: dict[str, Callable[[Scene, np.random.Generator], Expression]] = {
    "short": short,
    "long": long,
    "reasoned": reasoned,
}


# Sums: two digits in an image and a question about them.
#
# Pre-training answers with the sum and the letter of the matching option. The base reads digits and adds, but
# names letters by chance (23.7 % of four), so the suite's tasks ask for the number. Their prompts keep the
# options, without which the base does not add at all.

SUM_SIDE = 56
"""Pixels per side of each digit's half of the image, which is as large as a classification image."""
LETTERS = "ABCD"
QUESTION = "What is the sum of the two digits?"
OTHER_QUESTIONS = (
    "Add up the digits in the picture. What do you get?",
    "Which option is the total of both digits?",
)


class Sum(NamedTuple):
    """One question."""

    image: Image.Image  # RGB, 112 x 56 pixels
    prompt: str  # the question and its options, one per line
    choices: tuple[str, ...]  # the options' texts, in order
    answer: str  # the letter of the right option
    solution: str  # the target of pre-training, "5 + 6 = 11 (B)"
    equation: str  # the solution without the letter, "5 + 6 = 11"; the target of the tasks
    values: tuple[int, int]  # the two digits, left and right
    ids: tuple[int, int]  # the positions of the two digits in scikit-learn's file


def draw_sum(
    digits: Digits,
    rng: np.random.Generator,
    style: str | None = None,
    question: str = QUESTION,
    severity: float = 0.0,
) -> Sum:
    """A sum of two digits, with the question above the options.

    `style` is a key of `drawing.STYLES`, None the plain style; `severity` is as in `draw_scene`.
    """
    left, right = (int(i) for i in rng.integers(len(digits.values), size=2))
    plain = drawing.ground(rng, SUM_SIDE, 2 * SUM_SIDE, dark=True)
    canvas = plain.copy()
    for column, index in enumerate((left, right)):
        size = int(rng.integers(34, 51))
        mask = drawing.enlarge(digits.images[index], size, float(rng.uniform(-10, 10)))
        if style is not None:
            mask = drawing.STYLES[style](mask, rng)
        name = list(drawing.PALETTE)[int(rng.integers(len(drawing.PALETTE)))]
        x, y = (int(rng.integers(0, SUM_SIDE - size + 1)) for _ in range(2))
        drawing.stamp(canvas, mask, drawing.faded(plain, name, severity), column * SUM_SIDE + x, y)
    a, b = int(digits.values[left]), int(digits.values[right])
    choices, letter = _options(a + b, rng)
    lines = [f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=True)]
    prompt = "\n".join([question, *lines])
    image = drawing.finish(canvas, rng, float(rng.uniform(0.01, 0.06)) + 0.12 * severity)
    ids = (int(digits.ids[left]), int(digits.ids[right]))
    equation = f"{a} + {b} = {a + b}"
    return Sum(image, prompt, choices, letter, f"{equation} ({letter})", equation, (a, b), ids)


def lookup(drawn: Sum, rng: np.random.Generator) -> tuple[str, str]:
    """A question that asks for one option's letter by its text, the options first; only for pre-training."""
    place = int(rng.integers(len(LETTERS)))
    lines = [f"{name}. {text}" for name, text in zip(LETTERS, drawn.choices, strict=True)]
    return "\n".join([*lines, f"Which option is {drawn.choices[place]}?"]), LETTERS[place]


def _options(total: int, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    near = [value for value in range(max(0, total - 4), total + 5) if value != total]
    values = [int(near[i]) for i in rng.permutation(len(near))[: len(LETTERS) - 1]]
    place = int(rng.integers(len(LETTERS)))
    values.insert(place, total)
    return tuple(str(value) for value in values), LETTERS[place]
