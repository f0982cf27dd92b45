"""One-word answers, the registry of scorers, and the verdict that all of them return."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS, Verdict, get_scorer
from dcsft_harness.scoring.words import exact_word


@pytest.mark.parametrize(
    ("response", "answer", "score", "extracted"),
    [
        ("goose", "goose", 1.0, "goose"),
        (" Goose.\n", "goose", 1.0, "goose"),
        ("GOOSE...", "Goose", 1.0, "goose"),
        ("jack-o'-lantern", "Jack-o'-lantern.", 1.0, "jack-o'-lantern"),
        ("mongoose", "goose", 0.0, "mongoose"),  # no substring counts
        ("a goose", "goose", 0.0, "a goose"),
        ("It is a goose.", "goose", 0.0, "it is a goose"),
        ("goose!", "goose", 0.0, "goose!"),  # the paper strips periods alone
        ("geese", "goose", 0.0, "geese"),
        ("goose .", "goose", 0.0, "goose "),  # stripped in the paper's order: spaces, then periods
        ("<answer>goose</answer>", "goose", 0.0, "<answer>goose</answer>"),  # the whole response counts
        ("", "goose", 0.0, None),
        (" \n\t", "goose", 0.0, None),
        ("...", "goose", 0.0, None),
    ],
)
def test_the_whole_response_is_the_word(response, answer, score, extracted):
    assert exact_word(response, answer=answer) == Verdict(score, extracted)


@pytest.mark.parametrize("answer", ["", "  ", "."])
def test_refuses_a_blank_answer(answer):
    with pytest.raises(HarnessError, match="blank"):
        exact_word("goose", answer=answer)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_case_does_not_matter_and_normalising_twice_changes_nothing(text):
    verdict = exact_word(text, answer="goose")
    assert exact_word(text.upper(), answer="GOOSE") == exact_word(text.lower(), answer="goose") == verdict


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_verdict_refuses_a_score_outside_the_unit_interval(score):
    with pytest.raises(ValueError, match="score"):
        Verdict(score, "goose")


def test_a_verdict_without_an_answer_scores_nothing():
    with pytest.raises(ValueError, match="no answer"):
        Verdict(1.0, None)


def test_scorers_are_found_by_name_and_called_alike():
    keywords = {
        "exact_word": {},
        "choice": {"choices": ["3", "5"]},
        "box_iou": {"image_size": (9, 9)},
        "math": {},
        "open_answer": {},
    }
    answers = {"exact_word": "goose", "choice": "B", "box_iou": [1, 2, 9, 8], "math": "1/2"}
    answers["open_answer"] = ["20", "twenty"]
    responses = {"exact_word": "Goose.", "choice": "(B)", "box_iou": "[1, 2, 9, 9]", "math": "so x = 0.5"}
    responses["open_answer"] = "20 m"
    assert set(SCORERS) == set(keywords)
    for name in SCORERS:
        scorer = get_scorer(name)
        assert scorer(responses[name], answer=answers[name], **keywords[name]).score == 1.0
        assert scorer("", answer=answers[name], **keywords[name]) == Verdict(0.0, None)


def test_an_unknown_scorer_is_named_with_near_matches():
    with pytest.raises(HarnessError, match="choise.*choice"):
        get_scorer("choise")


def test_importing_the_scorers_imports_nothing_heavy():
    script = "import sys, dcsft_harness.scoring; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"sympy", "math_verify", "torch", "numpy", "lmms_eval"} & set(loaded)
