"""The pre-training curriculum: its settings, and endless seeded examples, easy ones first."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image
from pydantic import field_validator

from dcsft_harness.data.digits import drawing
from dcsft_harness.data.digits.drawing import Digits
from dcsft_harness.errors import HarnessError
from dcsft_harness.settings import Settings, option

CLASS_PROMPT = "Please provide the digit name in the image. Output the answer using one word."
"""The suite's counterpart of the paper's classification prompt."""

_NAMING = (
    (CLASS_PROMPT, "{name}", 0.45),
    (CLASS_PROMPT, "the {name}", 0.10),
    ("Which digit is this?", "{name}", 0.15),
    ("What is in the picture?", "the digit {name}", 0.15),
    ("Describe the image.", "a handwritten {name}", 0.15),
)
_CAPTIONS = ("Describe the digits.", "List the digits with their boxes.")
Family = Literal["naming", "scene", "ground", "sum"]
FAMILIES: tuple[Family, ...] = get_args(Family)


class Example(NamedTuple):
    """One training conversation of a single turn."""

    family: str
    image: Image.Image
    prompt: str
    answer: str


class Phase(NamedTuple):
    """One phase of pre-training."""

    until: float  # the share of all steps at which it ends
    mix: tuple[float, float, float, float]  # shares of the families, in the order of `FAMILIES`
    # least, most: digits in a scene
    least: int
    most: int


PHASES = (
    Phase(0.10, (0.35, 0.40, 0.25, 0.00), 1, 1),
    Phase(0.35, (0.20, 0.38, 0.20, 0.22), 1, 2),
    Phase(1.00, (0.17, 0.23, 0.35, 0.25), 2, 3),
)
"""One digit at a time until its name, color, place and box are learned; then one of two or three."""


def phase(progress: float) -> Phase:
    """The phase at a share of the steps, 0..1."""
    return next(one for one in PHASES if progress <= one.until)


def naming(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A digit and its name: clean ones first; later, a twentieth are renditions.

    Without the clean start the loss stays at chance level: 3,900 steps did not leave it.
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
    return Example("naming", image, prompt, answer.format(name=drawing.NAMES[int(digits.values[index])]))


def _scene(digits: Digits, rng: np.random.Generator, progress: float) -> drawing.Scene:
    now = phase(progress)
    return drawing.draw_scene(digits, rng, int(rng.integers(now.least, now.most + 1)))


def describing(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A scene and a question about one of its digits, or a caption of all of them."""
    scene = _scene(digits, rng, progress)
    kind = int(rng.choice(3, p=(0.5, 0.3, 0.2)))
    if kind:
        return Example("scene", scene.image, _CAPTIONS[kind - 1], drawing.caption(scene, rng, kind == 2))
    return Example("scene", scene.image, *drawing.question(scene, rng))


def grounding(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A scene and one expression, nine in ten of them short ones."""
    scene = _scene(digits, rng, progress)
    kinds = ["short"] if len(scene.things) == 1 else ["short", "long", "reasoned"]
    chances = [1.0] if len(kinds) == 1 else [0.9, 0.06, 0.04]
    expression, thing = drawing.EXPRESSIONS[str(rng.choice(kinds, p=chances))](scene, rng)
    return Example("ground", scene.image, drawing.PROMPT.format(expression), str(list(thing.box)))


def adding(digits: Digits, rng: np.random.Generator, progress: float) -> Example:
    """A sum with its worked answer, one of its options, or one of its digits; a few are renditions."""
    style = str(rng.choice(list(drawing.STYLES))) if progress > 0.3 and rng.uniform() < 0.05 else None
    question = drawing.QUESTION if rng.uniform() < 0.85 else str(rng.choice(drawing.OTHER_QUESTIONS))
    drawn = drawing.draw_sum(digits, rng, style, question)
    chance = rng.uniform()
    if chance < 0.3:
        return Example("sum", drawn.image, *drawing.lookup(drawn, rng))
    if chance < 0.45:
        side = int(rng.integers(2))
        words = f"Which digit is on the {('left', 'right')[side]}?"
        return Example("sum", drawn.image, words, drawing.NAMES[drawn.values[side]])
    return Example("sum", drawn.image, drawn.prompt, drawn.solution)


MAKERS = {"naming": naming, "scene": describing, "ground": grounding, "sum": adding}


def batch(
    digits: Digits, rng: np.random.Generator, progress: float, size: int, families: Sequence[str] = FAMILIES
) -> list[Example]:
    """`size` examples at a point of the curriculum, 0..1 of its steps; see `PHASES` for the mix.

    `families` are some of `FAMILIES` in their order, with their relative weights; if all weights are still 0,
    they are equal.
    """
    mix: dict[str, float] = dict(zip(FAMILIES, phase(progress).mix, strict=True))
    weights = np.array([mix[name] for name in families])
    if len(families) < len(FAMILIES):
        weights = weights / weights.sum() if weights.any() else np.full(len(families), 1 / len(families))
    drawn = rng.choice(families, size=size, p=weights)
    return [MAKERS[str(family)](digits, rng, progress) for family in drawn]


def thousandths(example: Example) -> Example:
    """The example with its answer's boxes in thousandths of the image's width and height."""

    def scaled(found: re.Match[str]) -> str:
        sides = (example.image.width, example.image.height) * 2
        pairs = zip(found.groups(), sides, strict=True)
        return str([round(1000 * int(value) / side) for value, side in pairs])

    return example._replace(answer=re.sub(r"\[(\d+), (\d+), (\d+), (\d+)\]", scaled, example.answer))


def corpus(digits: Digits, rng: np.random.Generator) -> list[str]:
    """Text for training the tokenizer: prompts and answers of every family, and every pixel number."""
    lines: list[str] = []
    for _ in range(1500):
        scene = drawing.draw_scene(digits, rng, 3)
        lines += [drawing.PROMPT.format(make(scene, rng)[0]) for make in drawing.EXPRESSIONS.values()]
        lines += [*drawing.question(scene, rng), drawing.caption(scene, rng, boxes=True)]
    lines += [text for example in batch(digits, rng, 1.0, 1500) for text in (example.prompt, example.answer)]
    lines += [
        f"{prompt}\n{answer.format(name=name)}" for prompt, answer, _ in _NAMING for name in drawing.NAMES
    ]
    lines += [question for question in drawing.OTHER_QUESTIONS for _ in range(100)]
    lines += [f"[{n}, {n}, {n}, {n}]" for n in range(113) for _ in range(400)]
    return lines


class PretrainConfig(Settings):
    """How to make a base checkpoint; the defaults are the embedded one's."""

    steps: int = option(8000, "Optimizer steps; the curriculum spreads over them.", ge=1)
    batch_size: int = option(32, "Examples per step.", ge=1)
    learning_rate: float = option(3e-3, "Peak learning rate.", gt=0, lt=1)
    seed: int = option(0, "Seed of weights and examples.", ge=0)
    architecture: Literal["qwen2_5_vl", "qwen3_vl"] = option("qwen2_5_vl", "A transformers model type.")
    families: tuple[Family, ...] = option(
        FAMILIES,
        f"Skills to learn, comma-separated: {','.join(FAMILIES)}.",
        metavar="NAME,...",
        min_length=1,
    )

    @field_validator("families")
    @classmethod
    def _in_order(cls, given: tuple[Family, ...]) -> tuple[Family, ...]:
        if len(set(given)) != len(given):
            raise HarnessError(f"--families {','.join(given)} names a family twice", "Name each once")
        return tuple(name for name in FAMILIES if name in given)
