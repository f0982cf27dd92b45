"""What pre-training sees: endless seeded examples of the three families, easy ones first."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dcsft_harness.digits import drawing, scenes, sums
from dcsft_harness.digits.splits import Digits

CLASS_PROMPT = "Please provide the digit name in the image. Output the answer using one word."
"""The suite's counterpart of the paper's classification prompt."""

_NAMING = (
    (CLASS_PROMPT, "{name}", 0.45),
    (CLASS_PROMPT, "the {name}", 0.10),
    ("Which digit is this?", "{name}", 0.15),
    ("What is in the picture?", "the digit {name}", 0.15),
    ("Describe the image.", "a handwritten {name}", 0.15),
)
FAMILIES = ("naming", "ground", "sum")


class Example(NamedTuple):
    """One training conversation of a single turn."""

    family: str
    image: Image.Image
    prompt: str
    answer: str


def naming(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A digit and its name: clean ones first; a twentieth are renditions once the basics are in.

    Without the clean start the loss stays where guessing puts it: 3,900 steps did not leave it.
    """
    index = int(rng.integers(len(digits.values)))
    digit = digits.images[index]
    if rng.uniform() < 1 - 4 * progress:
        image = drawing.clean(digit, rng)
    elif progress > 0.3 and rng.uniform() < 0.05:
        style = str(rng.choice(list(drawing.STYLES)))
        image = drawing.rendition(digit, rng, style, float(rng.uniform(0, 0.5)))
    else:
        image = drawing.plain(digit, rng, float(rng.uniform(0, min(0.8, 4 * progress))))
    weights = [weight for _, _, weight in _NAMING]
    prompt, answer, _ = _NAMING[int(rng.choice(len(_NAMING), p=weights))]
    return Example("naming", image, prompt, answer.format(name=scenes.NAMES[int(digits.values[index])]))


def grounding(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A scene and one expression: a single digit first, two and three later."""
    most = 1 if progress < 0.08 else 2 if progress < 0.25 else 3
    least = 2 if progress > 0.25 else 1
    scene = scenes.draw(digits, rng, int(rng.integers(least, most + 1)))
    kinds = ["short"] if len(scene.things) == 1 else ["short", "long", "reasoned"]
    chances = [1.0] if len(kinds) == 1 else [0.9, 0.06, 0.04]
    expression, thing = scenes.EXPRESSIONS[str(rng.choice(kinds, p=chances))](scene, rng)
    return Example("ground", scene.image, scenes.PROMPT.format(expression), str(list(thing.box)))


def adding(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A sum with its worked answer; a twentieth drawn as renditions."""
    style = str(rng.choice(list(drawing.STYLES))) if progress > 0.3 and rng.uniform() < 0.05 else None
    question = sums.QUESTION if rng.uniform() < 0.85 else str(rng.choice(sums.OTHER_QUESTIONS))
    drawn = sums.draw(digits, rng, style, question)
    return Example("sum", drawn.image, drawn.prompt, drawn.solution)


MAKERS = {"naming": naming, "ground": grounding, "sum": adding}
EARLY, LATER = (0.55, 0.4, 0.05), (0.22, 0.5, 0.28)
"""Shares of the families in the first tenth of the steps, and after it."""


def batch(digits: Digits, rng: np.random.Generator, progress: float, size: int) -> list[Example]:
    """`size` examples at a point of the curriculum.

    Args:
        digits: the real digits to draw from.
        rng: the only source of randomness.
        progress: share of the steps already taken, 0..1.
        size: number of examples; see `EARLY` and `LATER` for the mix.
    """
    families = rng.choice(FAMILIES, size=size, p=EARLY if progress < 0.1 else LATER)
    return [MAKERS[str(family)](digits, rng, progress) for family in families]


def corpus(digits: Digits, rng: np.random.Generator) -> list[str]:
    """Text to fit the tokenizer: prompts and answers of every family, and every pixel number."""
    lines: list[str] = []
    for _ in range(1500):
        scene = scenes.draw(digits, rng, 3)
        lines += [scenes.PROMPT.format(make(scene, rng)[0]) for make in scenes.EXPRESSIONS.values()]
    lines += [text for example in batch(digits, rng, 1.0, 1500) for text in (example.prompt, example.answer)]
    lines += [
        f"{prompt}\n{answer.format(name=name)}" for prompt, answer, _ in _NAMING for name in scenes.NAMES
    ]
    lines += [question for question in sums.OTHER_QUESTIONS for _ in range(100)]
    lines += [f"[{n}, {n}, {n}, {n}]" for n in range(113) for _ in range(400)]
    return lines
