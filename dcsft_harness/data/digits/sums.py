"""Multiple-choice reasoning: two digits in a picture, a question about them, four options."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dcsft_harness.data.digits import drawing
from dcsft_harness.data.digits.splits import Digits

SIDE = 56
"""Pixels per side of each digit's half of the picture, which is as large as a classification picture."""
LETTERS = "ABCD"
QUESTION = "What is the sum of the two digits?"
OTHER_QUESTIONS = (
    "Add up the digits in the picture. What do you get?",
    "Which option is the total of both digits?",
)


class Sum(NamedTuple):
    """One question.

    Attributes:
        image: RGB, 112 x 56 pixels.
        prompt: the question and its options, one per line.
        choices: the options' texts, in order.
        answer: the letter of the right option.
        solution: a worked answer that ends in the letter.
        values: the two digits, left and right.
        ids: the positions of the two digits in scikit-learn's file.
    """

    image: Image.Image
    prompt: str
    choices: tuple[str, ...]
    answer: str
    solution: str
    values: tuple[int, int]
    ids: tuple[int, int]


def draw(
    digits: Digits,
    rng: np.random.Generator,
    style: str | None = None,
    question: str = QUESTION,
    severity: float = 0.0,
) -> Sum:
    """A sum of two digits.

    Args:
        digits: the real digits to draw from.
        rng: the only source of randomness.
        style: a key of `drawing.STYLES`; None is the plain style.
        question: what is asked above the options.
        severity: 0 (bright ink, little noise; what pre-training sees) to 1 and above (faint and noisy).
    """
    left, right = (int(i) for i in rng.integers(len(digits.values), size=2))
    plain = drawing.ground(rng, SIDE, 2 * SIDE, dark=True)
    canvas = plain.copy()
    for column, index in enumerate((left, right)):
        size = int(rng.integers(34, 51))
        mask = drawing.enlarge(digits.images[index], size, float(rng.uniform(-10, 10)))
        if style is not None:
            mask = drawing.STYLES[style](mask, rng)
        name = list(drawing.PALETTE)[int(rng.integers(len(drawing.PALETTE)))]
        x, y = (int(rng.integers(0, SIDE - size + 1)) for _ in range(2))
        drawing.stamp(canvas, mask, drawing.faded(plain, name, severity), column * SIDE + x, y)
    a, b = int(digits.values[left]), int(digits.values[right])
    choices, letter = _options(a + b, rng)
    lines = [f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=True)]
    prompt = "\n".join([question, *lines])
    image = drawing.finish(canvas, rng, float(rng.uniform(0.01, 0.06)) + 0.12 * severity)
    ids = (int(digits.ids[left]), int(digits.ids[right]))
    solution = f"{a} + {b} = {a + b} ({letter})"
    return Sum(image, prompt, choices, letter, solution, (a, b), ids)


def lookup(drawn: Sum, rng: np.random.Generator) -> tuple[str, str]:
    """A question that asks for one option's letter by its text, the options first; for pre-training alone."""
    place = int(rng.integers(len(LETTERS)))
    lines = [f"{name}. {text}" for name, text in zip(LETTERS, drawn.choices, strict=True)]
    return "\n".join([*lines, f"Which option is {drawn.choices[place]}?"]), LETTERS[place]


def _options(total: int, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    near = [value for value in range(max(0, total - 4), total + 5) if value != total]
    values = [int(near[i]) for i in rng.permutation(len(near))[: len(LETTERS) - 1]]
    place = int(rng.integers(len(LETTERS)))
    values.insert(place, total)
    return tuple(str(value) for value in values), LETTERS[place]
