"""Real 8x8 digits: their splits, and color images of them in several styles."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from sklearn.naive_bayes import GaussianNB

# The split of each real digit: pre-training, cold start, pool or evaluation.

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
    """Gaussian naive Bayes, fitted to the pre-training split."""
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


def stamp(canvas: Canvas, mask: Mask, colour: tuple[float, float, float], x: int, y: int) -> None:
    """Paints a mask onto a canvas in place, clipped at its edges."""
    height, width = canvas.shape[:2]
    top, left = max(0, y), max(0, x)
    bottom, right = min(height, y + mask.shape[0]), min(width, x + mask.shape[1])
    ink = mask[top - y : bottom - y, left - x : right - x, None]
    region = canvas[top:bottom, left:right]
    region += ink * (np.asarray(colour, dtype=np.float32) - region)


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


def faded(canvas: Canvas, colour: str, severity: float) -> tuple[float, float, float]:
    """A color of `PALETTE` blended with a canvas's mean: not at all at severity 0, three fifths at 1."""
    paper = canvas.mean((0, 1))
    red, green, blue = paper + (np.asarray(PALETTE[colour]) - paper) * max(0.0, 1 - 0.6 * severity)
    return float(red), float(green), float(blue)


def finish(canvas: Canvas, rng: np.random.Generator, noise: float) -> Image.Image:
    """Adds pixel noise of the given standard deviation (in [0, 1]) and rounds to 8-bit RGB."""
    noisy = canvas + rng.normal(0.0, noise, canvas.shape)
    return Image.fromarray((np.clip(noisy, 0.0, 1.0) * 255).round().astype(np.uint8), mode="RGB")


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
    colour = _contrasting(rng, canvas, max(0.1, 0.62 - 0.40 * severity))
    mask, x, y = _place(rng, digit)
    stamp(canvas, mask, colour, x, y)
    if rng.uniform() < 0.8 * severity:
        _stroke(canvas, rng, colour, length=int(8 + 26 * severity))
    return finish(canvas, rng, 0.02 + 0.12 * severity)


def clean(digit: NDArray[np.float32], rng: np.random.Generator) -> Image.Image:
    """White ink on a dark background, large and hardly rotated: pre-training begins with these."""
    canvas = ground(rng, SIDE, SIDE, dark=True)
    size = int(rng.integers(42, 51))
    mask = enlarge(digit, size, float(rng.uniform(-8, 8)))
    x, y = (int(rng.integers(0, SIDE - size + 1)) for _ in range(2))
    stamp(canvas, mask, PALETTE["white"], x, y)
    return finish(canvas, rng, 0.02)


def _stroke(
    canvas: Canvas, rng: np.random.Generator, colour: tuple[float, float, float], length: int
) -> None:
    height, width = canvas.shape[:2]
    x, y = rng.uniform(8, width - 8), rng.uniform(8, height - 8)
    angle = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(-length / 2, length / 2, length * 2)
    columns = np.clip(x + np.cos(angle) * steps, 0, width - 2).astype(int)
    rows = np.clip(y + np.sin(angle) * steps, 0, height - 2).astype(int)
    for shift in ((0, 0), (0, 1), (1, 0)):
        canvas[rows + shift[0], columns + shift[1]] = colour


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
    colour = _contrasting(rng, canvas, 0.62 - 0.25 * severity)
    mask, x, y = _place(rng, digit)
    stamp(canvas, STYLES[style](mask, rng), colour, x, y)
    return finish(canvas, rng, 0.02 + 0.06 * severity)
