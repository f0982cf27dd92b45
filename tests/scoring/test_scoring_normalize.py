"""What all scorers read of a response."""

import time

import pytest

from dcsft_harness.scoring import normalize


@pytest.mark.parametrize(
    ("response", "part"),
    [
        ("It is B.", "It is B."),
        ("<think>A?</think>It is B.", "It is B."),
        ("A? The answer is A.</think>", ""),
        ("Maybe A.\n</thinking>\nB", "\nB"),
        ("<think>It is A.", ""),
        ("<think>It is A. <answer>B</answer>", "B"),
        (r"<think>So \boxed{B}. Then", r"\boxed{B}"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<answer>B", "B"),
        ("<CONCLUSION>It is C</CONCLUSION>", "It is C"),
        ("<|begin_of_box|>C<|end_of_box|>", r"\boxed{C}"),
        ("◁think▷A◁/think▷B", "B"),
        ("<s> A</s><|im_end|>", " A"),
        ("```text\nIt is B.\n```", "It is B."),
        ("It\u2009is \u200b(\u2060B\u2060).\u200e", "It is (B)."),
    ],
)
def test_the_answer_follows_the_reasoning_or_is_in_tags(response: str, part: str) -> None:
    """Reasoning is never the answer."""
    assert normalize.answer_part(response) == part


@pytest.mark.parametrize(
    ("response", "part"),
    [
        ("It is B.", ""),
        ("<answer>B", ""),
        ("<answer>B</answer>", "B"),
        (r"\boxed{B} as", r"\boxed{B}"),
        (r"\boxed{A} and \boxed{B", r"\boxed{A}"),
        ("<|begin_of_box|>C", ""),
        ("<think>A</think> It is B", ""),
    ],
)
def test_a_truncated_response_needs_a_closed_tag_or_box(response: str, part: str) -> None:
    """An answer before the tokens ran out might have been revised."""
    assert normalize.answer_part(response, truncated=True) == part


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{3}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} \boxed{ }", "3"),
        (r"\boxed {3", "3"),
        ("\boxed{3}", "3"),
        ("none", None),
    ],
)
def test_the_last_box_is_read_with_nested_braces(text: str, box: str | None) -> None:
    """Blank boxes are skipped."""
    assert normalize.last_box(text) == box


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"reason": "ice", "answer": "B"}', "B"),
        ("{'answer': 'B'}", "B"),
        ('{"final_answer": 4}', "4"),
        ('"No answer here": it is B', None),
    ],
)
def test_the_answer_key_of_json_is_read(text: str, value: str | None) -> None:
    """In either kind of quotes, and numbers without them."""
    assert normalize.json_answer(text) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So it is $\boxed{\text{(B)} \frac{1}{2}}$, **surely**.", "So it is (B) 1/2, surely."),
        (r"\dfrac{\sqrt{3}}{2}", "√3/2"),
        (r"90^{\circ}", "90°"),
        ("答案：（Ｂ）", "答案:(B)"),
        ("x  =\t5 \n\n y", "x = 5\ny"),
        ("### Answer\n`C`", "Answer\nC"),
    ],
)
def test_markup_is_removed(text: str, expected: str) -> None:
    """LaTeX, Markdown and full-width characters."""
    assert normalize.plain(text) == expected


HOSTILE = (
    *("{", "\\", " \n", "\\text{", "<", "*a", "_a ", "\\frac{", '"answer": ', "<answer>", "<think>", "~~a"),
    *("oxed{", "|-", "\n|- ", "#", "\t", " : ", "\nQ", "√ ", "^{ ", "<|a", ". ", "\\begin{"),
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_every_step_takes_linear_time(unit: str) -> None:
    """100 kB of text that patterns may be slow on."""
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for step in (normalize.plain, normalize.answer_part, normalize.last_box, normalize.json_answer):
        step(text)
    assert time.process_time() - start < 2.0
