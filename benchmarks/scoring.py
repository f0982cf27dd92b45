"""Responses per second and core for each scorer, on generated text.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --responses 2000 --rounds 9

Kinds of text: bare answers; one sentence; reasoning of `--characters` characters, in prose and in
LaTeX, that ends in a statement of its answer; the same ending in a value or breaking off, so that all of
it has to be searched; and truncated texts. `math` and `open_answer` read numbers that all differ, and their
caches are cleared before every round; "batch" is 8 responses to one item at once. Figures are medians over
the rounds, in CPU time of one thread, which does not include other work on the machine. Prints one JSON
object.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from dcsft_harness.scoring import SCORERS

OPTIONS = [["30°", "45°", "60°", "90°"], ["squid", "lantern fish", "octopus", "sea horse"]]
PROSE = [
    "We look at the figure first and see that triangle ABC is isosceles.",
    "The angle at B is 30° because AB is as long as AC.",
    "Option A would need a larger radius, so it does not fit.",
    "The shaded area is 12 + 3 = 15 square units.",
    "Step 2: **apply the theorem** to the right triangle.",
]
LATEX = [
    "Since $\\angle ABC = 30^\\circ$ and $AB = AC$, we have $\\angle ACB = 30^\\circ$.",
    "Then \\(x = \\frac{1}{2} \\times 6 = 3\\), and $\\sqrt{3} \\cdot 2 = 2\\sqrt{3}$.",
    "### Step 3: **The area**",
    "\\[\nA = \\frac{1}{2} \\cdot b \\cdot h = \\frac{1}{2} \\cdot 4 \\cdot 5\n\\]",
]


def reasoning(rng: random.Random, parts: list[str], characters: int) -> str:
    """Sentences in random order, this many characters in total."""
    text = ""
    while len(text) < characters:
        text += rng.choice(parts) + ("\n" if parts is LATEX else " ")
    return text[:characters]


def multiple_choice(rng: random.Random, count: int, characters: int) -> dict[str, list[str]]:
    """Responses by kind of text."""

    def many(make: Callable[[str], str]) -> list[str]:
        return [make(rng.choice("ABCD")) for _ in range(count)]

    return {
        "letter": many(lambda letter: letter),
        "sentence": many(lambda letter: f"The correct answer is ({letter}) because it is the largest."),
        "prose_then_sentence": many(
            lambda letter: reasoning(rng, PROSE, characters) + f"\n\n**Answer:** {letter}"
        ),
        "latex_then_box": many(lambda letter: reasoning(rng, LATEX, characters) + f"\n\\boxed{{{letter}}}"),
        "latex_then_sentence": many(
            lambda letter: reasoning(rng, LATEX, characters) + f"\nThus the correct option is **{letter}**."
        ),
        "thoughts_then_answer": many(
            lambda letter: f"<think>{reasoning(rng, PROSE, characters)}</think>The answer is {letter}."
        ),
        "prose_then_value": many(lambda letter: reasoning(rng, PROSE, characters) + "\nThe angle is 60°."),
        "latex_breaks_off": many(lambda letter: reasoning(rng, LATEX, characters) + "\nSo"),
    }


def boxes(rng: random.Random, count: int, characters: int) -> dict[str, list[str]]:
    """Responses with a box, by kind of text."""

    def box() -> str:
        return str([rng.randrange(300), rng.randrange(300), rng.randrange(300, 600), rng.randrange(300, 600)])

    return {
        "json": [f'```json\n[{{"bbox_2d": {box()}, "label": "dog"}}]\n```' for _ in range(count)],
        "prose_then_box": [reasoning(rng, PROSE, characters) + f" So {box()}." for _ in range(count)],
        "no_box": [reasoning(rng, PROSE, characters) for _ in range(count)],
    }


def expressions(rng: random.Random, count: int, characters: int) -> dict[str, list[str]]:
    """Responses with a mathematical answer, by kind of text; no two of a kind have the same."""

    def many(make: Callable[[int], str]) -> list[str]:
        return [make(number) for number in range(count)]

    return {
        "number": many(str),
        "box": many(lambda number: f"\\boxed{{\\frac{{{number}}}{{7}}\\sqrt{{3}}}}"),
        "sentence": many(lambda number: f"There are {number} birds, so the total weight is {number}.5 kg."),
        "latex_then_box": many(
            lambda number: reasoning(rng, LATEX, characters) + f"\n\\boxed{{{number}\\pi + 1}}"
        ),
        "prose_then_value": many(
            lambda number: reasoning(rng, PROSE, characters) + f"\nThe angle is {number}°."
        ),
        "latex_breaks_off": many(lambda number: reasoning(rng, LATEX, characters) + f"\nSo {number} +"),
    }


def forget() -> None:
    """Clears what the scorers cache of earlier texts."""
    for name, module in list(sys.modules.items()):
        if name.startswith("dcsft_harness.scoring."):
            for one in vars(module).values():
                getattr(one, "cache_clear", lambda: None)()


def rate(score: Callable[[str], object], responses: Sequence[str], rounds: int) -> float:
    """The median number of responses per second."""
    return batch_rate(lambda batch: score(batch[0]), [[one] for one in responses], rounds)


def batch_rate(score: Callable[[list[str]], object], batches: list[list[str]], rounds: int) -> float:
    """The median number of responses per second when scored in batches."""
    seconds = []
    for _ in range(rounds):
        forget()
        score(batches[0])  # caches what a whole run builds once
        start = time.process_time()
        for batch in batches:
            score(batch)
        seconds.append(time.process_time() - start)
    return round(sum(map(len, batches)) / statistics.median(seconds))


def measure(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Responses per second by scorer and kind of text."""
    rng = random.Random(0)
    texts = multiple_choice(rng, given.responses, given.characters)

    def choice(options: list[str]) -> Callable[[str], object]:
        return lambda response: SCORERS["choice"](response, answer="B", choices=options)

    def math(response: str) -> object:
        return SCORERS["math"](response, answer="1/2")

    def box_iou(response: str) -> object:
        return SCORERS["box_iou"](response, answer=[10, 20, 300, 400], image_size=(640, 480))

    def exact_word(response: str) -> object:
        return SCORERS["exact_word"](response, answer="goose")

    words = {"word": ["Goose."] * given.responses, "prose": texts["prose_then_sentence"]}
    formulas = expressions(rng, given.responses, given.characters)

    def eights(responses: list[str]) -> list[list[str]]:
        return [responses[start : start + 8] for start in range(0, len(responses), 8)]

    def math_batch(answer: str) -> Callable[[list[str]], object]:
        return lambda batch: SCORERS["math"].score_many(batch, answer=answer)

    def truncated(scorer: str, **item: object) -> Callable[[str], object]:
        return lambda response: SCORERS[scorer](response, truncated=True, **item)

    def open_answer(response: str) -> object:
        return SCORERS["open_answer"](response, answer=["20"])

    cut_off = {
        "choice": (truncated("choice", answer="B", choices=OPTIONS[0]), texts["latex_breaks_off"]),
        "choice, boxed": (truncated("choice", answer="B", choices=OPTIONS[0]), texts["latex_then_box"]),
        "math": (truncated("math", answer="1/2"), formulas["latex_breaks_off"]),
        "open_answer": (truncated("open_answer", answer=["20"]), formulas["latex_breaks_off"]),
    }
    located = boxes(rng, given.responses, given.characters)
    return {
        "exact_word": {kind: rate(exact_word, some, given.rounds) for kind, some in words.items()},
        "box_iou": {kind: rate(box_iou, some, given.rounds) for kind, some in located.items()},
        "choice_numbers": {
            kind: rate(choice(OPTIONS[0]), some, given.rounds) for kind, some in texts.items()
        },
        "choice_words": {kind: rate(choice(OPTIONS[1]), some, given.rounds) for kind, some in texts.items()},
        "math": {
            **{kind: rate(math, some, given.rounds) for kind, some in formulas.items()},
            "number_batch": batch_rate(math_batch("1/2"), eights(formulas["number"]), given.rounds),
            "latex_then_box_batch": batch_rate(
                math_batch("1/2"), eights(formulas["latex_then_box"]), given.rounds
            ),
        },
        "open_answer": {kind: rate(open_answer, some, given.rounds) for kind, some in formulas.items()},
        "truncated": {kind: rate(score, some, given.rounds) for kind, (score, some) in cut_off.items()},
    }


def main() -> None:
    """Runs the requested measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=int, default=500)
    parser.add_argument("--characters", type=int, default=2000, help="length of the reasoning")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    machine = {"python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    print(json.dumps({**vars(given), **machine, "responses_per_second": measure(given)}))


if __name__ == "__main__":
    main()
