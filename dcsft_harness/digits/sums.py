"""Multiple-choice reasoning: two digits in a picture, a question about them, four options."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dcsft_harness.digits import drawing
from dcsft_harness.digits.splits import Digits

HEIGHT, WIDTH = 56, 84
LETTERS = "ABCD"
QUESTION = "What is the sum of the two digits?"
OTHER_QUESTIONS = (
    "Add up the digits in the picture. What do you get?",
    "Which option is the total of both digits?",
)


class Sum(NamedTuple):
    """One question.

    Attributes:
        image: RGB, 84 x 56 pixels.
        prompt: the question and its options, one per line.
        choices: the options' texts, in order.
        answer: the letter of the right option.
        solution: a worked answer that ends in the letter.
        ids: the positions of the two digits in scikit-learn's file.
    """

    image: Image.Image
    prompt: str
    choices: tuple[str, ...]
    answer: str
    solution: str
    ids: tuple[int, int]


def draw(digits: Digits, rng: np.random.Generator, style: str | None = None, question: str = QUESTION) -> Sum:
    """A sum of two digits, in the plain style or in one of `drawing.STYLES`."""
    left, right = (int(i) for i in rng.integers(len(digits.values), size=2))
    canvas = drawing.ground(rng, HEIGHT, WIDTH, dark=True)
    for column, index in enumerate((left, right)):
        size = int(rng.integers(30, 41))
        mask = drawing.enlarge(digits.images[index], size, float(rng.uniform(-10, 10)))
        if style is not None:
            mask = drawing.STYLES[style](mask, rng)
        colour = list(drawing.PALETTE.values())[int(rng.integers(len(drawing.PALETTE)))]
        x = column * (WIDTH // 2) + int(rng.integers(0, WIDTH // 2 - size + 1))
        drawing.stamp(canvas, mask, colour, x, int(rng.integers(0, HEIGHT - size + 1)))
    a, b = int(digits.values[left]), int(digits.values[right])
    choices, letter = _options(a + b, rng)
    lines = [f"{name}. {text}" for name, text in zip(LETTERS, choices, strict=True)]
    prompt = "\n".join([question, *lines])
    image = drawing.finish(canvas, rng, float(rng.uniform(0.01, 0.06)))
    ids = (int(digits.ids[left]), int(digits.ids[right]))
    return Sum(image, prompt, choices, letter, f"{a} + {b} = {a + b}, so the answer is {letter}", ids)


def _options(total: int, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    near = [value for value in range(max(0, total - 4), total + 5) if value != total]
    values = [int(near[i]) for i in rng.permutation(len(near))[: len(LETTERS) - 1]]
    place = int(rng.integers(len(LETTERS)))
    values.insert(place, total)
    return tuple(str(value) for value in values), LETTERS[place]
