"""The suite's task sets: drawn once into the user's cache, then loaded from there.

Every row has its own generator, keyed by the set and the row's number, so a set does not change when another
one does. Sets of different splits share no real digit.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from dcsft_harness import environment
from dcsft_harness.data.digits import curriculum, drawing

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

VERSION = 3
"""Increased whenever a drawing, prompt or gold changes, so that no cache or result mixes two versions."""

SPOILT = {"plain": (0.56, 1.40), "rendition": (0.95, 1.95), "ground": (0.1, 1.25), "reason": (0.4, 1.4)}
"""Severity ranges of the drawings, so that each difficulty is at least a tenth of the pools."""

NOISE = 0.06
"""The share of a noisy pool's items whose label is replaced."""
RIGHT = "right"
"""The column of noisy pools that holds the right answer, as `answer` would have it."""

Row = dict[str, Any]


def _rng(name: str, row: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([*name.encode(), row]))


def _row(image: "Image", prompt: str, answer: object, target: str, cluster: str, **more: object) -> Row:
    return {
        "image": image,
        "prompt": prompt,
        "answer": json.dumps(answer),
        "target": target,
        "choices": more.get("choices", []),
        "width": image.width,
        "height": image.height,
        "cluster": cluster,
        "kind": more.get("kind", ""),
    }


def _naming(digits: drawing.Digits, each: int, renditions: bool, name: str) -> Iterator[Row]:
    styles = list(drawing.STYLES)
    for number in range(len(digits.values) * each):
        rng, (again, index) = _rng(name, number), divmod(number, len(digits.values))
        # Each drawing of a digit has another style, also where their number divides that of the digits.
        style = styles[(again + index) % len(styles)] if renditions else "plain"
        digit = digits.images[index]
        severity = float(rng.uniform(*SPOILT["rendition" if renditions else "plain"]))
        if renditions:
            image = drawing.rendition(digit, rng, style, severity)
        else:
            image = drawing.plain(digit, rng, severity)
        word = drawing.NAMES[int(digits.values[index])]
        yield _row(image, curriculum.CLASS_PROMPT, word, word, str(digits.ids[index]), kind=style)


def _noisy(name: str) -> Iterator[Row]:
    """The pool `name` with some labels replaced by the class that naive Bayes finds next likeliest.

    The pictures are the clean pool's, so that the two differ in their labels alone.
    """
    digits, wrong = drawing.split("pool"), replaced(name)
    confused = drawing.next_likeliest(digits)
    for number, row in enumerate(SETS[name](name)):
        right, index = row["answer"], number % len(digits.values)
        if number in wrong:
            word = drawing.NAMES[int(confused[index])]
            row |= {"answer": json.dumps(word), "target": word}
        yield row | {RIGHT: right}


def replaced(name: str) -> frozenset[int]:
    """The rows of a clean or noisy pool whose label the noisy one replaces, whatever their content."""
    clean = name.removesuffix(NOISY)
    count = len(drawing.split("pool").values) * DRAWINGS[clean]
    rng = np.random.Generator(np.random.PCG64([*f"{clean}{NOISY}".encode()]))
    return frozenset(rng.permutation(count)[: round(NOISE * count)].tolist())


def _grounding(digits: drawing.Digits, count: int, kind: str, name: str) -> Iterator[Row]:
    for number in range(count):
        rng = _rng(name, number)
        scene = drawing.draw_scene(
            digits, rng, int(rng.integers(2, 4)), float(rng.uniform(*SPOILT["ground"]))
        )
        expression, thing = drawing.EXPRESSIONS[kind](scene, rng)
        box = list(thing.box)
        yield _row(
            scene.image, drawing.PROMPT.format(expression), box, str(box), f"scene {number}", kind=kind
        )


def _reasoning(digits: drawing.Digits, count: int, renditions: bool, name: str) -> Iterator[Row]:
    styles = list(drawing.STYLES)
    for number in range(count):
        rng = _rng(name, number)
        style = styles[number % len(styles)] if renditions else None
        question = drawing.OTHER_QUESTIONS[0] if renditions else drawing.QUESTION
        drawn = drawing.draw_sum(digits, rng, style, question, float(rng.uniform(*SPOILT["reason"])))
        yield _row(
            drawn.image,
            drawn.prompt,
            str(sum(drawn.values)),
            drawn.equation,
            f"sum {number}",
            kind=style or "plain",
        )


NOISY = "_noisy"
"""The suffix of a noisy pool's name."""
DRAWINGS = {"dcsft_digits_pool": 2, "dcsft_digits_pool_large": 10}
"""Classification pools -> drawings of each of their real digits."""

SETS: dict[str, Callable[[str], Iterator[Row]]] = {
    "dcsft_digits": lambda name: _naming(drawing.split("eval"), 1, False, name),
    "dcsft_digits_r": lambda name: _naming(drawing.split("eval"), 1, True, name),
    "dcsft_digits_a": lambda name: _naming(drawing.adversarial(), 4, False, name),
    # Several drawings of each digit, none of them in the sets above: for comparisons that must find a point.
    "dcsft_digits_x3": lambda name: _naming(drawing.split("eval"), 3, False, name),
    "dcsft_digits_r_x3": lambda name: _naming(drawing.split("eval"), 3, True, name),
    "dcsft_digits_a_x12": lambda name: _naming(drawing.adversarial(), 12, False, name),
    **{pool: lambda name: _naming(drawing.split("pool"), DRAWINGS[name], False, name) for pool in DRAWINGS},
    **{f"{pool}{NOISY}": lambda name: _noisy(name.removesuffix(NOISY)) for pool in DRAWINGS},
    "dcsft_digits_cold": lambda name: _naming(drawing.split("cold"), 4, False, name),
    "dcsft_digits_ground": lambda name: _grounding(drawing.split("eval"), 300, "short", name),
    "dcsft_digits_ground_l4": lambda name: _grounding(drawing.split("eval"), 300, "long", name),
    "dcsft_digits_ground_lisa": lambda name: _grounding(drawing.split("eval"), 300, "reasoned", name),
    "dcsft_digits_ground_x3": lambda name: _grounding(drawing.split("eval"), 900, "short", name),
    "dcsft_digits_ground_l4_x3": lambda name: _grounding(drawing.split("eval"), 900, "long", name),
    "dcsft_digits_ground_lisa_x3": lambda name: _grounding(drawing.split("eval"), 900, "reasoned", name),
    "dcsft_digits_ground_pool": lambda name: _grounding(drawing.split("pool"), 800, "short", name),
    "dcsft_digits_ground_cold": lambda name: _grounding(drawing.split("cold"), 400, "short", name),
    "dcsft_digits_reason": lambda name: _reasoning(drawing.split("eval"), 300, False, name),
    "dcsft_digits_reason_r": lambda name: _reasoning(drawing.split("eval"), 300, True, name),
    "dcsft_digits_reason_x3": lambda name: _reasoning(drawing.split("eval"), 900, False, name),
    "dcsft_digits_reason_r_x3": lambda name: _reasoning(drawing.split("eval"), 900, True, name),
    "dcsft_digits_reason_pool": lambda name: _reasoning(drawing.split("pool"), 800, False, name),
    "dcsft_digits_reason_cold": lambda name: _reasoning(drawing.split("cold"), 400, False, name),
}


def load(name: str) -> "Dataset":
    """One set, a key of `SETS`, as a `datasets.Dataset`, drawn on first use.

    Columns: image (RGB), prompt, answer (JSON: a word, a box `[x1, y1, x2, y2]` in pixels, or a number as
    text), target (for SFT), choices (empty: no set asks for letters), width and height in pixels, cluster
    (shared by rows with the same real digit), kind (style or expression). Noisy pools also have `RIGHT`.
    """
    from datasets import load_from_disk  # noqa: TID251 - our cache

    folder = environment.cache_root() / f"digits-v{VERSION}" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _build(name, folder)
    return load_from_disk(str(folder))  # noqa: TID251


def _build(name: str, folder: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value

    from dcsft_harness.artifacts.storage import png

    text, number = Value("string"), Value("int64")
    rows = [{**row, "image": png(row["image"])} for row in SETS[name](name)]
    features = Features(
        {
            "image": Image(),
            "prompt": text,
            "answer": text,
            "target": text,
            "choices": List(text),
            "width": number,
            "height": number,
            "cluster": text,
            "kind": text,
            **({RIGHT: text} if RIGHT in rows[0] else {}),
        }
    )
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        Dataset.from_list(rows, features=features).save_to_disk(str(unfinished))
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
