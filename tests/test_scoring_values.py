"""Numbers, units, roots and tags: what options and answers are compared by."""

from fractions import Fraction

import pytest

from dcsft_harness.scoring.plain_text import plain
from dcsft_harness.scoring.quantities import amounts, quantity, split_unit
from dcsft_harness.scoring.tags import answer_part, boxes, is_thinking


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        *(("2√5 cm", ("2√5", "cm")), ("12-π m", ("12-π", "m")), ("(30√3+30)m", ("(30√3+30)", "m"))),
        *(("5π cm^2", ("5π", "cm2")), ("2√5", ("2√5", None)), ("3√2 a", None)),
    ],
)  # fmt: skip
def test_units_are_known_or_refused(text, parts):
    assert split_unit(text) == parts


def test_quantities_keep_their_unit_and_decimals():
    assert quantity("0.50 meters") == (Fraction(1, 2), "m", 2)
    assert quantity("1 1/2") == (Fraction(3, 2), None, None)
    assert quantity("x = 5") is None
    assert [found.value for *_, found in amounts("There are three cats, 4 dogs and 1/2 a mouse")] == [
        3,
        4,
        0.5,
    ]
    assert list(amounts("the two sides of AB3 at 12:30")) == []


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        ("so $\\boxed{\\text{(B)} \\frac{1}{2}}$", "so (B) 1/2"),
        ("30^{\\circ} and $45^\\circ$ and 60*\\degree", "30° and 45° and 60°"),
        ("\\frac{\\sqrt{3}}{2} \\times \\left(1\\frac{1}{2}\\right)", "√3/2 × (1 1/2 )"),
        ("### **Answer**: *B*\n\n> `C`", "Answer: B\nC"),
        ("（Ａ）：５０％， 1 : 3", "(A):50%, 1:3"),
        ("2 * 3 * 4", "2 * 3 * 4"),
    ],
)
def test_plain_text_is_without_markup(latex, text):
    assert plain(latex) == text


@pytest.mark.parametrize(
    ("response", "part"),
    [
        *(("B", "B"), ("<think>A</think>B", "B"), ("<think>A</think>", "")),
        *(("a < b", "a < b"), ("<answer>B", "B")),
        *(("<thinking>A</thinking>B", "B"), ("◁think▷A◁/think▷B", "B"), ("[THINK]A[/THINK]B", "B")),
        *(("<seed:think>A</seed:think>B", "B"), ("<|begin_of_thought|>A<|end_of_thought|>B", "B")),
        *(("<REASONING>A</REASONING><CONCLUSION> B </CONCLUSION>", " B "), ("x <Answer>B</Answer> y", "B")),
        ("<answer>A</answer> no: <answer>B</answer>", "B"),
        ("A <answer> </answer>", "A <answer> </answer>"),
        *(("<|begin_of_box|>B<|end_of_box|>", "\\boxed{B}"), ("<|begin_of_box|>B", "\\boxed{B}")),
        *(("A</think>B</think>C", "C"), ("<think>A", "<think>A")),
    ],
)  # fmt: skip
def test_tags_mark_the_answer(response, part):
    assert answer_part(response) == part


def test_a_thought_without_an_end_is_known_as_one():
    assert is_thinking(answer_part(" <think>maybe A"))
    assert not is_thinking(answer_part("<think>maybe A</think>B"))


def test_boxes_come_last_first_with_their_braces():
    assert list(boxes("\\boxed{1} and \\boxed {\\frac{1}{2}}")) == ["\\frac{1}{2}", "1"]
    assert list(boxes("boxed{C} \x08oxed{D} \\boxed")) == ["D", "C"]
    assert list(boxes("\\boxed{open")) == ["open"]
