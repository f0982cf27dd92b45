"""Real 8x8 digits: their splits, and color images of them in several styles."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from sklearn.naive_bayes import GaussianNB

SIZES = {"pretrain": 500, "cold": 100, "pool": 400, "eval": 300, "adversarial": 497}
"""Real digits per split; together all 1,797. The filter chooses from "adversarial"."""

SPLIT_SEED = 2602


class Digits(NamedTuple):
    """Some real digits."""

    images: NDArray[np.float32]  # float32 array (n, 8, 8), ink in [0, 1]
    values: NDArray[np.int64]  # int array (n,), 0..9
    ids: NDArray[np.int64]  # int array (n,), the position in scikit-learn's file


@cache
def _all() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)
    return Digits(images, data.target.astype(np.int64), np.arange(len(images)))


@cache
def split(name: str) -> Digits:
    """The real digits of one split, a key of `SIZES`; splits are disjoint."""
    digits = _all()
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(digits.values))
    start = 0
    for key, size in SIZES.items():
        if key == name:
            chosen = order[start : start + size]
            return Digits(digits.images[chosen], digits.values[chosen], digits.ids[chosen])
        start += size
    raise KeyError(name)


@cache
def _bayes() -> "GaussianNB":
    from sklearn.naive_bayes import GaussianNB

    train = split("pretrain")
    return GaussianNB(var_smoothing=1e-3).fit(train.images.reshape(len(train.values), -1), train.values)


def next_likeliest(digits: Digits) -> NDArray[np.int64]:
    """The class other than the right one that naive Bayes finds likeliest: int array (n,), 0..9."""
    odds = _bayes().predict_joint_log_proba(digits.images.reshape(len(digits.values), -1))
    odds[np.arange(len(digits.values)), digits.values] = -np.inf
    found: NDArray[np.int64] = odds.argmax(1).astype(np.int64)
    return found


@cache
def adversarial() -> Digits:
    """The digits of the "adversarial" split that a reference classifier gets wrong.

    ImageNet-A was made this way (Hendrycks et al., 2021): natural images that a reference classifier gets
    wrong. The references here are Gaussian naive Bayes and the nearest class mean, fitted to the pre-training
    split; a digit is kept if either is wrong.
    """
    train, candidates = split("pretrain"), split("adversarial")
    inputs = train.images.reshape(len(train.values), -1)
    queries = candidates.images.reshape(len(candidates.values), -1)
    bayes = _bayes().predict(queries)
    means = np.stack([inputs[train.values == value].mean(0) for value in range(10)])
    nearest = np.square(queries[:, None] - means).sum(-1).argmin(1)
    wrong = (bayes != candidates.values) | (nearest != candidates.values)
    return Digits(candidates.images[wrong], candidates.values[wrong], candidates.ids[wrong])


# Real 8x8 digits as color images: the plain style, and renditions in other styles.

Mask = NDArray[np.float32]
"""Ink of one digit at image resolution: float32 (size, size) in [0, 1]."""
Canvas = NDArray[np.float32]
"""An image being drawn: float32 (height, width, 3) in [0, 1]."""

PALETTE = {
    "red": (0.90, 0.16, 0.16),
    "green": (0.16, 0.78, 0.24),
    "blue": (0.26, 0.42, 0.98),
    "yellow": (0.96, 0.86, 0.16),
    "pink": (0.96, 0.42, 0.80),
    "white": (0.96, 0.96, 0.96),
}
"""The colors that grounding expressions name."""

SIDE = 56
"""Pixels per side of a classification image: four Qwen2.5-VL image tokens."""


def enlarge(digit: NDArray[np.float32], size: int, angle: float = 0.0) -> Mask:
    """One real digit, float32 (8, 8) in [0, 1], as smooth ink.

    `size` is the side of the result in pixels; `angle` is in degrees, counter-clockwise.
    """
    image = Image.fromarray((digit * 255).astype(np.uint8), mode="L")
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if angle:
        image = image.rotate(angle, Image.Resampling.BILINEAR)
    ink = np.asarray(image, dtype=np.float32) / 255.0
    drawn: Mask = np.clip((ink - 0.25) / 0.5, 0.0, 1.0)
    return drawn


def ink_box(mask: Mask, x: int, y: int) -> tuple[int, int, int, int]:
    """The tight box of a mask whose top left corner is at (x, y) in the image."""
    rows, columns = np.nonzero(mask.max(1) > 0.4)[0], np.nonzero(mask.max(0) > 0.4)[0]
    return (int(x + columns[0]), int(y + rows[0]), int(x + columns[-1] + 1), int(y + rows[-1] + 1))


def stamp(canvas: Canvas, mask: Mask, color: tuple[float, float, float], x: int, y: int) -> None:
    """Paints a mask onto a canvas in place, clipped at its edges."""
    height, width = canvas.shape[:2]
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + mask.shape[0]), min(width, x + mask.shape[1])
    ink = mask[top - y : bottom - y, left - x : right - x, None]
    region = canvas[top:bottom, left:right]
    region += ink * (np.asarray(color, dtype=np.float32) - region)


def ground(rng: np.random.Generator, height: int, width: int, dark: bool = False) -> Canvas:
    """A background: a random color with a linear gradient."""
    base = rng.uniform(0.0, 0.28 if dark else 1.0, 3)
    slope = rng.uniform(-0.12, 0.12, 2)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * slope[0]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * slope[1]
    drawn: Canvas = np.clip(base[None, None, :].astype(np.float32) + across + down, 0.0, 1.0).astype(
        np.float32
    )
    return drawn


def faded(paper: NDArray[np.float32], color: str, severity: float) -> tuple[float, float, float]:
    """A color of `PALETTE` blended with a canvas's mean `paper`, float32 (3,) in [0, 1].

    Not at all at severity 0, three fifths at 1.
    """
    red, green, blue = paper + (np.asarray(PALETTE[color]) - paper) * max(0.0, 1 - 0.6 * severity)
    return float(red), float(green), float(blue)


def finish(canvas: Canvas, rng: np.random.Generator, noise: float) -> Image.Image:
    """Adds pixel noise of the given standard deviation (in [0, 1]) and rounds to 8-bit RGB."""
    noisy = rng.normal(0.0, noise, canvas.shape)
    # In place: new arrays of this size cost more than what is computed on them.
    noisy += canvas
    np.clip(noisy, 0.0, 1.0, out=noisy)
    noisy *= 255
    return Image.fromarray(np.rint(noisy, out=noisy).astype(np.uint8), mode="RGB")


def _contrasting(rng: np.random.Generator, canvas: Canvas, contrast: float) -> tuple[float, float, float]:
    paper = canvas.mean((0, 1))
    direction = -1.0 if paper.mean() > 0.5 else 1.0
    shift = direction * contrast + rng.uniform(-0.12, 0.12, 3)
    red, green, blue = np.clip(paper + shift, 0.0, 1.0)
    return float(red), float(green), float(blue)


def _place(rng: np.random.Generator, digit: NDArray[np.float32]) -> tuple[Mask, int, int]:
    size = int(rng.integers(34, 51))
    mask = enlarge(digit, size, float(rng.uniform(-14, 14)))
    room = SIDE - size
    return mask, int(rng.integers(0, room + 1)), int(rng.integers(0, room + 1))


def plain(digit: NDArray[np.float32], rng: np.random.Generator, severity: float) -> Image.Image:
    """The plain style: one digit, float32 (8, 8) in [0, 1], in one color, more or less degraded.

    `severity` is 0 (clean) to 1 and above (low contrast, noise, a stray stroke across).
    """
    canvas = ground(rng, SIDE, SIDE)
    color = _contrasting(rng, canvas, max(0.1, 0.62 - 0.40 * severity))
    mask, x, y = _place(rng, digit)
    stamp(canvas, mask, color, x, y)
    if rng.uniform() < 0.8 * severity:
        _stroke(canvas, rng, color, length=int(8 + 26 * severity))
    return finish(canvas, rng, 0.02 + 0.12 * severity)


def clean(digit: NDArray[np.float32], rng: np.random.Generator) -> Image.Image:
    """White ink on a dark background, large and hardly rotated: pre-training begins with these."""
    canvas = ground(rng, SIDE, SIDE, dark=True)
    size = int(rng.integers(42, 51))
    mask = enlarge(digit, size, float(rng.uniform(-8, 8)))
    x, y = (int(rng.integers(0, SIDE - size + 1)) for _ in range(2))
    stamp(canvas, mask, PALETTE["white"], x, y)
    return finish(canvas, rng, 0.02)


def _stroke(canvas: Canvas, rng: np.random.Generator, color: tuple[float, float, float], length: int) -> None:
    height, width = canvas.shape[:2]
    x, y = rng.uniform(8, width - 8), rng.uniform(8, height - 8)
    angle = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(-length / 2, length / 2, length * 2)
    columns = np.clip(x + np.cos(angle) * steps, 0, width - 2).astype(int)
    rows = np.clip(y + np.sin(angle) * steps, 0, height - 2).astype(int)
    for shift in ((0, 0), (0, 1), (1, 0)):
        canvas[rows + shift[0], columns + shift[1]] = color


def _outline(mask: Mask, rng: np.random.Generator) -> Mask:
    solid = Image.fromarray((mask * 255).astype(np.uint8), mode="L")
    wide = np.asarray(solid.filter(ImageFilter.MaxFilter(3)), dtype=np.float32)
    thin = np.asarray(solid.filter(ImageFilter.MinFilter(3)), dtype=np.float32)
    drawn: Mask = np.clip((wide - thin) / 255.0, 0.0, 1.0).astype(np.float32)
    return drawn


def _stipple(mask: Mask, rng: np.random.Generator) -> Mask:
    dots = (rng.uniform(size=mask.shape) < 0.34 * mask).astype(np.float32)
    wide = Image.fromarray((dots * 255).astype(np.uint8), mode="L").filter(ImageFilter.MaxFilter(3))
    half = np.asarray(wide, dtype=np.float32) / 255.0 * 0.55
    drawn: Mask = np.maximum(dots, half).astype(np.float32)
    return drawn


def _hatch(mask: Mask, rng: np.random.Generator) -> Mask:
    rows, columns = np.indices(mask.shape)
    period = int(rng.integers(4, 7))
    lines = ((rows + columns * int(rng.choice([-1, 1]))) % period) < period // 2
    return np.where(lines, mask, 0.15 * mask).astype(np.float32)


def _mosaic(mask: Mask, rng: np.random.Generator) -> Mask:
    cell = 4
    side = -(-mask.shape[0] // cell)
    small = Image.fromarray((mask * 255).astype(np.uint8), mode="L").resize(
        (side, side), Image.Resampling.BOX
    )
    tiles = np.asarray(small, dtype=np.float32) / 255.0 * rng.uniform(0.5, 1.0, (side, side))
    blocks = np.kron(tiles, np.ones((cell, cell), dtype=np.float32))[: mask.shape[0], : mask.shape[1]]
    blocks[::cell, :] *= 0.2
    blocks[:, ::cell] *= 0.2
    return blocks.astype(np.float32)


STYLES: dict[str, Callable[[Mask, np.random.Generator], Mask]] = {
    "outline": _outline,
    "stipple": _stipple,
    "hatch": _hatch,
    "mosaic": _mosaic,
}
"""The rendition styles, the counterparts of ImageNet-R's art, sketch, mosaic and so on."""


def rendition(
    digit: NDArray[np.float32], rng: np.random.Generator, style: str, severity: float
) -> Image.Image:
    """One digit, float32 (8, 8) in [0, 1], in one of `STYLES`; milder than `plain` at the same severity."""
    canvas = ground(rng, SIDE, SIDE)
    color = _contrasting(rng, canvas, 0.62 - 0.25 * severity)
    mask, x, y = _place(rng, digit)
    stamp(canvas, STYLES[style](mask, rng), color, x, y)
    return finish(canvas, rng, 0.02 + 0.06 * severity)


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
    color: str
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
    colors = [list(PALETTE)[i] for i in rng.permutation(len(PALETTE))[:count]]
    cells = rng.permutation((SCENE_SIDE // CELL) ** 2)[:count]
    plain = ground(rng, SCENE_SIDE, SCENE_SIDE, dark=True)
    canvas, paper = plain.copy(), plain.mean((0, 1))
    things: list[Thing] = []
    for index, color, cell in zip(chosen, colors, cells, strict=True):
        size = int(rng.integers(17, 20) if rng.uniform() < 0.5 else rng.integers(25, CELL + 1))
        mask = enlarge(digits.images[index], size, float(rng.uniform(-8, 8)))
        x = int(cell) % (SCENE_SIDE // CELL) * CELL + int(rng.integers(0, CELL - size + 1))
        y = int(cell) // (SCENE_SIDE // CELL) * CELL + int(rng.integers(0, CELL - size + 1))
        stamp(canvas, mask, faded(paper, color, severity), x, y)
        things.append(Thing(int(digits.values[index]), color, ink_box(mask, x, y)))
    image = finish(canvas, rng, float(rng.uniform(0.01, 0.05)) + 0.12 * severity)
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
    kind = rng.choice(["color", "place", "size", "name", "both"], p=[0.3, 0.25, 0.15, 0.2, 0.1])
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
        return f"the {thing.color} {NAMES[thing.value]}", thing
    return f"the {thing.color} digit", thing


def long(scene: Scene, rng: np.random.Generator) -> Expression:
    """A longer relational expression, as in Ref-L4: the digit by its place relative to another."""
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    across, down = first.middle[0] - second.middle[0], first.middle[1] - second.middle[1]
    if abs(across) >= abs(down):
        relation = "to the left of" if across < 0 else "to the right of"
    else:
        relation = "above" if down < 0 else "below"
    size = "large" if first.height >= 20 else "small"
    anchor = f"the {second.color} {NAMES[second.value]}"
    forms = [
        f"the {size} handwritten digit {relation} {anchor}, written in {first.color} ink",
        f"{relation} {anchor} there is a {size} {first.color} digit, a {NAMES[first.value]}",
        f"the {first.color} digit, a {size} {NAMES[first.value]}, that stands {relation} {anchor}",
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
        words = [thing.color, NAMES[thing.value], where(thing)]
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
        (f"Which digit is {thing.color}?", NAMES[thing.value]),
        (f"What colour is the {NAMES[thing.value]}?", thing.color),
        (f"Where is the {thing.color} digit?", place),
        (f"Where is the {NAMES[thing.value]}?", place),
    ]
    for words, (key, margin) in _PLACES.items():
        if (extreme := _extreme(scene, key, margin)) is not None:
            pairs.append((f"Which digit is {words}?", NAMES[extreme.value]))
            pairs.append((f"What colour is the digit {words}?", extreme.color))
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

    `style` is a key of `STYLES`, None the plain style; `severity` is as in `draw_scene`.
    """
    left, right = (int(i) for i in rng.integers(len(digits.values), size=2))
    plain = ground(rng, SUM_SIDE, 2 * SUM_SIDE, dark=True)
    canvas, paper = plain.copy(), plain.mean((0, 1))
    for column, index in enumerate((left, right)):
        size = int(rng.integers(34, 51))
        mask = enlarge(digits.images[index], size, float(rng.uniform(-10, 10)))
        if style is not None:
            mask = STYLES[style](mask, rng)
        name = list(PALETTE)[int(rng.integers(len(PALETTE)))]
        x, y = (int(rng.integers(0, SUM_SIDE - size + 1)) for _ in range(2))
        stamp(canvas, mask, faded(paper, name, severity), column * SUM_SIDE + x, y)
    a, b = int(digits.values[left]), int(digits.values[right])
    choices, letter = _options(a + b, rng)
    lines = [f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=True)]
    prompt = "\n".join([question, *lines])
    image = finish(canvas, rng, float(rng.uniform(0.01, 0.06)) + 0.12 * severity)
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
