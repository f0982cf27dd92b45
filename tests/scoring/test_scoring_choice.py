"""Tests of `choice`: the option that a response states, by kind, and properties of any response."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS, phrases
from dcsft_harness.scoring.choice import choice
from dcsft_harness.scoring.options import amount, option_set

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "fixtures" / "choice_cases.jsonl")
    .read_text("utf-8")
    .splitlines()
]
CEREALS = ["wheat", "barley", "oats", "rye"]
GENOTYPES = ["TT", "Tt", "tt", "unknown"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['response'][:40]}")
def test_a_response_is_read_like_a_careful_reader_would(case: dict) -> None:
    """Every row is an example of its kind, in our own words."""
    gold = case["stated"] or "A"
    verdict = choice(case["response"], answer=gold, choices=case["choices"])
    assert (verdict.extracted, verdict.score) == (case["stated"], float(case["stated"] is not None))


@pytest.mark.parametrize("phrase", phrases.PHRASES, ids=lambda phrase: phrase.example)
def test_every_phrase_states_its_example(phrase: phrases.Phrase) -> None:
    """The table's own examples, with each option in turn."""
    for letter in "ABCD":
        named = f"point {letter}" if "oint B" in phrase.example else f"option {letter}"
        text = phrase.example.replace("Point B", "{}").format(named)
        options = [f"{one} is closer" for one in "ABCD"] if "closer." in phrase.example else CEREALS
        assert choice(text, answer=letter, choices=options).score == 1.0, text


@pytest.mark.parametrize("form", ["{}. {}", "({}) {}", "{}) {}", "{}: {}", "{}．{}", "{}、{}"])
def test_options_that_begin_with_their_letters_match_their_texts(form: str) -> None:
    """As in many published sets; a response is often the text alone."""
    labeled = [form.format(letter, text) for letter, text in zip("ABCD", CEREALS, strict=True)]
    for said in ("barley", "The answer is barley.", "B", labeled[1], f"B. {labeled[1]}"):
        assert choice(said, answer="B", choices=labeled) == choice(said, answer="B", choices=CEREALS)
        assert choice(said, answer="barley", choices=labeled).score == 1.0
    for texts in (["A. Smith", "C. Jones"], ["B. cat", "A. dog"], ["A:B", "B:C"], ["A", "B"], ["A. x", "y"]):
        assert option_set(tuple(texts)).texts == tuple(texts)


@given(st.sampled_from(CASES), st.sampled_from("ABCD"))
def test_a_final_box_decides(case: dict, letter: str) -> None:
    """Whatever precedes it, except for a boxed answer to the question."""
    if "<" not in case["response"] and "\nHuman: Which is next?" not in case["response"]:
        assert choice(f"{case['response']}\n\\boxed{{{letter}}}", answer=letter, choices=CEREALS).score == 1.0


@given(st.sampled_from(["{0} ({1})", "({1}) {0}", "The answer is ({1}) {0}.", "Answer: {1}. {0}"]),
       st.sampled_from("ABCD"), st.integers(0, 3))  # fmt: skip
def test_a_letter_outweighs_the_text_next_to_it(form: str, letter: str, other: int) -> None:
    """Whichever option's text that is."""
    assert choice(form.format(CEREALS[other], letter), answer=letter, choices=CEREALS).score == 1.0


@pytest.mark.parametrize(
    ("response", "stated"),
    [
        ("The answer is B.", None),
        (r"So \boxed{B}, since", "B"),
        (r"\boxed{A} or \boxed{B", "A"),
        ("<answer>C</answer>", "C"),
        ("<answer>C", None),
        (r"<think>Maybe \boxed{A}</think> The answer", None),
        ("B", None),
    ],
)
def test_a_truncated_response_only_states_closed_answers(response: str, stated: str | None) -> None:
    """A truncated response might have been revised."""
    assert choice(response, answer="B", choices=CEREALS, truncated=True).extracted == stated


@pytest.mark.parametrize(
    "answer", ["{letter}. {text}", "({letter}) {text}", "{letter}) {text}", "{letter}: {text}."]
)
def test_a_gold_may_name_its_option_by_letter_and_text(answer: str) -> None:
    """As many datasets write it: both must agree."""
    for letter, text in zip("ABCD", CEREALS, strict=False):
        gold = answer.format(letter=letter, text=text)
        assert choice(letter, answer=gold, choices=CEREALS).score == 1


@pytest.mark.parametrize(
    "answer", ["E", "", "maize", "AB", "A. maize", f"B. {CEREALS[0]}", f"Z. {CEREALS[0]}"]
)
def test_a_gold_that_matches_no_option_is_refused(answer: str) -> None:
    """The error lists the options and letters."""
    with pytest.raises(HarnessError, match="is not one of the options .*'rye'"):
        choice("B", answer=answer, choices=CEREALS)


@pytest.mark.parametrize("gas", ["CO2", "CO₂", "$CO_2$", r"\mathrm{CO}_{2}"])
def test_subscripts_are_read_in_any_notation(gas: str) -> None:
    for response in ("CO2", "CO$_2$", r"\boxed{\text{CO}_2}", "The answer is CO₂.", "It is $CO_2$, a gas."):
        assert choice(response, answer=gas, choices=["O2", gas]) == choice(
            "B", answer="B", choices=["O2", gas]
        )


@pytest.mark.parametrize(("answer", "choices"), [("tT", GENOTYPES), ("105", ["10⁵", "105"])])
def test_a_gold_that_may_be_several_options_is_refused(answer: str, choices: list[str]) -> None:
    with pytest.raises(HarnessError, match="is not one of the options"):
        choice("A", answer=answer, choices=choices)
    assert [choice(letter, answer="B", choices=choices).score for letter in "AB"] == [0.0, 1.0]


def test_more_options_than_letters_are_refused() -> None:
    """26 is the maximum."""
    with pytest.raises(HarnessError, match="27 choices"):
        choice("B", answer="B", choices=list(range(27)))


@pytest.mark.parametrize("answer", ["b", "(B)", "Barley", " B. "])
def test_a_gold_is_a_letter_or_a_text(answer: str) -> None:
    """As datasets write it."""
    assert choice("It is B.", answer=answer, choices=CEREALS).score == 1.0


@pytest.mark.parametrize(
    ("response", "choices", "stated"),
    [
        ("The left image is painted, so the real photo is the right one.", ["left", "right"], "B"),
        ("The earlier map is the second one.", ["the first", "the second", "the third"], "B"),
        ("It is the right one, as it has no seams.", ["the left", "the right"], "B"),
    ],
)
@pytest.mark.parametrize("noun", ["image", "picture"])
def test_a_qualifier_can_replace_the_noun_shared_by_all_options(
    response: str, choices: list[str], stated: str, noun: str
) -> None:
    """As people refer to two images."""
    options = [f"{one} {noun}" for one in choices]
    assert choice(response, answer=stated, choices=options).extracted == stated
    assert choice("So it is the right one.", answer="A", choices=["the left dog", "the right cat"]).score == 0


def test_an_answer_between_long_explanations_is_read() -> None:
    """As models write that explain themselves twice."""
    text = "The ears are long. " * 20 + "\n\n**Answer: B**\n\n" + "The husks are dry and thin. " * 25
    assert choice(text, answer="B", choices=CEREALS).score == 1.0


def test_an_option_with_the_golds_text_is_right_too() -> None:
    """MathVista has such rows."""
    assert choice("C", answer="D", choices=["9", "12", "18", "18"]).score == 1.0


@pytest.mark.parametrize(
    ("choices", "response", "stated"),
    [
        *((GENOTYPES, letter, letter) for letter in "ABC"),
        *((GENOTYPES, text, letter) for text, letter in zip(GENOTYPES, "ABC", strict=False)),
        (GENOTYPES, "The answer is Tt.", "B"),
        (GENOTYPES, "Tt, because both parents carry it.", "B"),
        (GENOTYPES, "**tt**", "C"),
        (GENOTYPES, "tT", None),
        (GENOTYPES, "Unknown", "D"),
        (["5 mW", "5 MW", "5 kW"], "It is 5 MW", "B"),
        (["5 mW", "5 MW", "5 kW"], "5 KW", "C"),
        (["x²", "X²"], "B", "B"),
    ],
)
def test_options_may_differ_in_case_alone(choices: list[str], response: str, stated: str | None) -> None:
    assert choice(response, answer="A", choices=choices).extracted == stated
    right = [choice(response, answer=letter, choices=choices).score for letter in "ABCD"[: len(choices)]]
    assert right == [float(letter == stated) for letter in "ABCD"[: len(choices)]]
    if stated:  # a gold may be a text, too
        gold = choices["ABCD".index(stated)]
        assert choice(response, answer=gold, choices=choices).score == 1.0


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("2 1/2 hours", 2.5, (("s", 1),)),
        ("3·2^5", 96.0, None),
        ("(3√2)/2", 2.1213203435596424, None),
        ("1,000", 1000.0, None),
        ("50%", 50.0, (("%", 1),)),
        ("12 square cm", 12.0, (("m", 2),)),
        ("5 million", 5e6, None),
        ("5 m", 5.0, (("m", 1),)),
        ("6:π", 1.909859317102744, None),
    ],
)
def test_values_are_read_with_their_units(text: str, number: float, unit: tuple | None) -> None:
    """Numbers, fractions, roots, powers and ratios."""
    found = amount(text)
    assert found is not None
    assert float(found[0]) == pytest.approx(number, rel=1e-6)
    assert (found[1] and found[1].dimension) == unit


@pytest.mark.parametrize("text", ["3x+2", "3 4", "3 (B)", "1/0", "√-1", "(" * 50 + "1", "", "x"])
def test_text_that_is_not_arithmetic_has_no_value(text: str) -> None:
    """Another number is never guessed."""
    assert amount(text) is None


def test_the_nearest_option_is_never_chosen() -> None:
    """Nor the one that a value rounds to."""
    options = option_set(("5", "5.4", "2√5"))
    assert [options.named(text) for text in ("5.43", "5.40", "√20", "4.5", "4.9")] == [None, 1, 2, None, None]


FILLING = "The ears stand close together, and the stalks are short. " * 20


@pytest.mark.parametrize(
    ("response", "stated"),
    [
        (f"The correct option is C. {FILLING}", "C"),
        (f"{FILLING}The correct option is C.\n{FILLING[:300]}", "C"),
        (f"{FILLING}The answer is C. {FILLING}", "C"),
        (f"{FILLING}The correct option is C. {FILLING}", None),
        (f"{FILLING}\n\n(C) oats", "C"),
        (f"{FILLING}\nA. wheat\nB. barley\nC. oats\nD. rye", None),
    ],
    ids=["start", "end", "the word answer", "the middle", "last line", "list"],
)
def test_a_long_response_is_read_at_its_start_end_and_last_answer(response: str, stated: str | None) -> None:
    """At its start, at its end, and at its last "answer" between them."""
    assert choice(response, answer="C", choices=CEREALS).extracted == stated


@pytest.mark.parametrize("mark", [".", ":", ")"])
@pytest.mark.parametrize("between", [" ", "\n"])
def test_a_list_of_the_options_states_none_of_them(mark: str, between: str) -> None:
    """However the list is written."""
    listed = between.join(f"{letter}{mark} {text}" for letter, text in zip("ABCD", CEREALS, strict=True))
    assert choice(f"Which is it?{between}{listed}", answer="D", choices=CEREALS).extracted is None


HOSTILE = (
    *(
        "{",
        "\\",
        " \n",
        "*a",
        "A, ",
        "A or ",
        "(A) ",
        "A. ",
        "the answer is ",
        "is most similar ",
        "first image, ",
    ),
    *("matches ", "1 ", "1/", "1,", "√2", "((", "if ", "答案", "than ", "not ", "not a ", "B. 3 ", "1.5 cm "),
    *("best part ", "\\boxed{", "Wait ", "while a", "(A", "closer is ", "<answer>", '"answer": '),
    *("[ ]✅", "x, but ", "\nQ: ", " be:\n(A) x\n", "wheat and the barley, "),
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_every_text_is_read_quickly(unit: str) -> None:
    """100 kB of text that patterns may be slow on."""
    start = time.process_time()
    for options in (CEREALS, ["3 cm", "2√5 cm"], None):
        choice("The answer is " + unit * (100_000 // len(unit)), answer="A", choices=options)
    assert time.process_time() - start < 3.0


@given(st.text(alphabet="ABCD()[]{}.,:;?\\ \nabcxyz0123√π=-*_$'\"|<>/是选答案", max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_verdict(text: str) -> None:
    """No error, and the same verdict again."""
    for options in (CEREALS, ["3 cm", "2√5 cm"], ["yes", "no"], None):
        assert SCORERS["choice"](text, answer="B", choices=options) == choice(
            text, answer="B", choices=options
        )
