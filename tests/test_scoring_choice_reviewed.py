"""Responses of which a review found the verdict wrong: what is said behind JSON, or behind verdicts."""

import pytest

from dcsft_harness.scoring.choice import choice
from dcsft_harness.scoring.math import math

SCENES = ["The dog is running", "The cat sleeps", "A bird flies", "The fish swims"]
ODD = ["3", "5", "7", "9"]
COLOURS = ["red", "blue", "green", "yellow"]
BOXES = '```json [{"bbox_2d": [10, 20, 30, 40], "label": "red"}] ``` '
ONE_IS_GOOD = "A: no\nB: yes\nC: no\n\n"


@pytest.mark.parametrize(
    ("response", "choices", "expected"),
    [
        (BOXES + "The colour of the ball is blue, so the answer is B.", COLOURS, "B"),
        (
            '<tool_call>{"name": "zoom", "arguments": {"label": "red"}}</tool_call>\nThe answer is B',
            COLOURS,
            "B",
        ),
        ('{"answer": "A"}\nWait, I misread the figure. The answer is B.', COLOURS, "B"),
        ('First attempt: {"answer": "A"}\nAfter checking, the final answer is **B**.', COLOURS, "B"),
        ('Code: result = {"label": 3}\nThen x = 5, so the answer is B.', ODD, "B"),
        ('{"option": "A", "verdict": "wrong"}', COLOURS, None),
        ('{"answer": "B"}\nLet me know if you need more.', COLOURS, "B"),
        ('{"reasoning": "We see red. So the answer is A.", "answer": "I don\'t know"}', COLOURS, None),
        ('{"answer": "I think the answer is B"}', COLOURS, "B"),
        ('```json\n{"option": "B"}\n```', COLOURS, "B"),
    ],
)
def test_an_object_counts_unless_something_is_stated_behind_it(response, choices, expected):
    assert choice(response, answer="A", choices=choices).extracted == expected


@pytest.mark.parametrize(
    ("response", "choices", "expected"),
    [
        *(
            (ONE_IS_GOOD + said, ODD, "D")
            for said in ("D", "D. 9", "(D) 9", "Thus option D.", "I'd go with D.")
        ),
        (ONE_IS_GOOD + "**D. The fish swims**", SCENES, "D"),
        (ONE_IS_GOOD + "= 7", ODD, "C"),
        (ONE_IS_GOOD + "Done.", SCENES, "B"),
        (ONE_IS_GOOD + "I cannot determine the answer.", SCENES, None),
        ("A) ✗\nB) ✗\nC) ✓\nD) ✗\n\nBut the question asks for the one NOT shown: hence **D**.", SCENES, "D"),
        ("A: Yes\nB: No\nC: No\n\nHmm, rechecking B: the cat does sleep. So B.", SCENES, "B"),
        ("A = true\nB = false\nC = false\nSo the number of gates is 7.", ODD, "C"),
        ("A: No, B: No, C: No → D", SCENES, "D"),
        ("A: No, B: No, C: No — D.", SCENES, "D"),
        ("(A) is too small. (B) is too large. (C) is negative. (D) fits perfectly.", ODD, "D"),
        ("(A) is too small, (B) is too large, (C) is negative. So (D) remains.", ODD, "D"),
        ("(A) red (B) blue (C) green (D) yellow", COLOURS, None),
    ],
)
def test_a_conclusion_counts_over_verdicts_one_by_one(response, choices, expected):
    assert choice(response, answer="A", choices=choices).extracted == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("If the hawks were removed, the correct answer would be (B) The cat sleeps.", "B"),
        ("If the hawks were removed, the cat would sleep, so the correct answer would be B.", "B"),
        ("Even if the hawks were removed, the answer would be B.", "B"),
        ("If the hawks were removed, the answer would be B.", None),
    ],
)
def test_what_is_supposed_may_be_what_was_asked(response, expected):
    assert choice(response, answer="A", choices=SCENES).extracted == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("With a<b the value is x=7, since y>0.", "C"),
        ("If a<b then x=7>0.", "C"),
        ("Since i<b and the answer = B, c>d", "B"),
        ('<span style="color:red">B</span>', "B"),
    ],
)
def test_inequalities_are_no_tags(response, expected):
    assert choice(response, answer="A", choices=ODD).extracted == expected


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ('{"answer": 4}\nWait, that is wrong. The answer is 5.', "4", 0),
        ('{"answer": 4}\nWait, that is wrong. The answer is 5.', "5", 1),
        ('{"answer": 4}\nDone.', "4", 1),
        (BOXES + "There are 7 apples.", "7", 1),
        ("With a<b the value is x=7, since y>0.", "7", 1),
    ],
)
def test_math_reads_them_so_too(response, gold, score):
    assert math(response, answer=gold).score == score
