"""Responses a second and core of each scorer, on text that this script makes itself.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --responses 2000 --rounds 9

Kinds of text: bare answers; one sentence; reasoning of `--characters` characters, in prose and in
LaTeX, that ends in a statement of its answer; the same that ends in a value or breaks off, where
all of it has to be searched. Figures are medians over the rounds, in processor time of one thread,
which does not count what else runs on the machine; math works in a child process, and is timed by
the clock. Prints one JSON object.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable

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
    """So many characters of sentences in random order."""
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


def rate(
    score: Callable[[str], object], responses: list[str], rounds: int, clock: Callable[[], float]
) -> float:
    """The median number of responses a second."""
    seconds = []
    for _ in range(rounds):
        start = clock()
        for response in responses:
            score(response)
        seconds.append(clock() - start)
    return round(len(responses) / statistics.median(seconds))


def measure(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Responses a second by scorer and kind of text."""
    rng = random.Random(0)
    texts = multiple_choice(rng, given.responses, given.characters)
    cpu, wall = time.process_time, time.perf_counter

    def choice(options: list[str]) -> Callable[[str], object]:
        return lambda response: SCORERS["choice"](response, answer="B", choices=options)

    def math(response: str) -> object:
        return SCORERS["math"](response, answer="1/2")

    def box_iou(response: str) -> object:
        return SCORERS["box_iou"](response, answer=[10, 20, 300, 400], image_size=(640, 480))

    def exact_word(response: str) -> object:
        return SCORERS["exact_word"](response, answer="goose")

    words = {"word": ["Goose."] * given.responses, "prose": texts["prose_then_sentence"]}
    few = max(1, given.responses // 20)
    sums = {"number": ["0.5"] * few, "latex_then_box": texts["latex_then_box"][:few]}
    located = boxes(rng, given.responses, given.characters)
    return {
        "exact_word": {kind: rate(exact_word, some, given.rounds, cpu) for kind, some in words.items()},
        "box_iou": {kind: rate(box_iou, some, given.rounds, cpu) for kind, some in located.items()},
        "choice_numbers": {
            kind: rate(choice(OPTIONS[0]), some, given.rounds, cpu) for kind, some in texts.items()
        },
        "choice_words": {
            kind: rate(choice(OPTIONS[1]), some, given.rounds, cpu) for kind, some in texts.items()
        },
        "math": {kind: rate(math, some, given.rounds, wall) for kind, some in sums.items()},
    }


def main() -> None:
    """Runs the measurement that the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=int, default=500)
    parser.add_argument("--characters", type=int, default=2000, help="length of the reasoning")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    machine = {"python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    print(json.dumps({**vars(given), **machine, "responses_per_second": measure(given)}))


if __name__ == "__main__":
    main()
