"""Options and golds in the forms in which benchmarks publish them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.data.benchmarks import questions
from dcsft_harness.errors import HarnessError

JOINED = [
    ("A. 300, 400;B. 400, 300; C. No correct answer", ["300, 400", "400, 300", "No correct answer"]),
    # Separators that are missing, inside an option, or before a name that ends a sentence.
    ("A. 45° B. 60° ;C. 120°; D. None", ["45°", "60°", "120°", "None"]),
    ("A. 4 B. 3 C. 2 ;D. 1; E. None", ["4", "3", "2", "1", "None"]),
    ("A. ①; ③;B. ②; ③;C. ②; ④", ["①; ③", "②; ③", "②; ④"]),
    ("A. angle ∠AB;E.; B. angle ∠AB;C.; C. none.; D. E", ["angle ∠ABE.", "angle ∠ABC.", "none.", "E"]),
    (
        "A. go to ;C.  ;B. walk to ;C.  ;C. run to ;C. ;D. stay",
        ["go to C.", "walk to C.", "run to C.", "stay"],
    ),
    ("A. right;  ; B. left;  ; C. No.", ["right", "left", "No."]),
    # A missing letter keeps its place, so that the others keep theirs.
    ("A. yes;B. yes, round ;O.;C. No.; F. None", ["yes", "yes, round O.", "No.", "", "", "None"]),
    ("A. 1;B. 2;C. 3;D. 4;E. 5;F. 6; G. None", ["1", "2", "3", "4", "5", "6", "None"]),
]


@pytest.mark.parametrize(("text", "expected"), JOINED)
def test_joined_options_are_split(text, expected):
    assert questions.joined(text) == expected


@pytest.mark.parametrize("text", ["", "45°; 60°", "B. 1; C. 2", "A. only one"])
def test_joined_options_of_another_form_are_refused(text):
    with pytest.raises(HarnessError, match="'A. ...; B. ...'"):
        questions.joined(text)


INSIDE = [
    ("Size?\nChoices:\nA:40°\nB:60°\nC:120°", ["40°", "60°", "120°"]),
    ("Size?\nA. $$10.5$$\nB.2.3\nC. x = 1", ["$$10.5$$", "2.3", "x = 1"]),
    ("Size?\n(A) 1\n(B) 2", ["1", "2"]),
    ("Gas?\nA、O2\nB、H2", ["O2", "H2"]),
    ("On one line? A. I  B. II  C. III  D. IV", ["I", "II", "III", "IV"]),
    # Two on a line, as in narrow columns: half a list would make a wrong "D, 4" no option at all.
    ("Size?\nA. 1    B. 2\nC. 3    D. 4", ["1", "2", "3", "4"]),
    ("Size? A. 1  B. 2\n\nC. 3  D. 4\n\n(see the figure)", ["1", "2", "3", "4"]),
    ("Size?\nA. 1 B. 2 C. 3\nD. 4", ["1", "2", "3", "4"]),
    ("Size?\nA. 1\nB. 2\nC. 3  D. 4", ["1", "2", "3", "4"]),
    ("Size?\nA. 1\nB. 2  C. 3\nD. 4", ["1", "2", "3", "4"]),
    ("Germ?\nA. yeast\nB. mould\nC. algae\nD. the bacterium E. coli",
     ["yeast", "mould", "algae", "the bacterium E. coli"]),
    ("Size? A. 1  B. 2\nBut why?", ["1", "2"]),
    # "A." refers to an earlier point; a blank line separates two options; one option has no text.
    ("Point A. is on BC.\nA.2\nB.3", ["2", "3"]),
    ("Part?\nA. root\nB. stem\n\nC. leaf", ["root", "stem", "leaf"]),
    ("Part?\nA:root\nB:\nC:leaf", ["root", "", "leaf"]),
    ("Part?\nA. root\nand more\nB. stem\n\n(see the figure)", ["root\nand more", "stem"]),
    ("AB: 3, A is a point", []),
    ("No options at all", []),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("question", "expected"), INSIDE)
def test_options_inside_a_question_are_found(question, expected):
    assert questions.inside(question) == expected


PLAIN = st.text(
    st.sampled_from(string.ascii_lowercase + string.digits + " °$\\,=+-"), min_size=1, max_size=12
)
TEXTS = st.lists(PLAIN.map(str.strip).filter(bool), min_size=2, max_size=10)


@given(TEXTS)
def test_listed_options_can_be_parsed_again(texts):
    assert questions.inside(questions.prompt("Which?", texts)) == texts
    assert questions.joined(questions.prompt("", texts)[1:].replace("\n", ";")) == texts


LETTERED = [
    ("B", ["1", "2"], "B"),
    (" b. ", ["1", "2"], "B"),
    ("(C)", ["1", "2", "3"], "C"),
    ("False", ["True", "False"], "B"),
    ("090^\\circ T", ["090^\\circ T", "180^\\circ T"], "A"),
    ("C\nD", ["1", "2", "3", "4"], ["C", "D"]),
    ("AC", [], ["A", "C"]),
    ("I", [], "I"),
    # Options that are letters themselves: the gold is a label.
    ("C", ["A", "C", "C", "D"], "C"),
]


@pytest.mark.parametrize(("answer", "choices", "expected"), LETTERED)
def test_golds_may_be_letters(answer, choices, expected):
    assert questions.lettered(answer, choices) == expected


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("E", ["1", "2"]),
        ("3", ["1", "2"]),
        ("", ["1"]),
        ("D", ["1", "", "", ""]),
        ("K", []),
        ("CD", ["1", "2"]),
    ],
)
def test_a_gold_that_matches_no_option_is_named(answer, choices):
    with pytest.raises(HarnessError, match="not one of the (options|letters)") as caught:
        questions.lettered(answer, choices)
    assert repr(answer) in str(caught.value) and "--on-error skip" in str(caught.value)


def test_golds_may_be_texts():
    assert questions.worded("18", ["9", "18", "18"]) == "B"
    assert questions.worded("A", ["C", "A"]) == "B"
    with pytest.raises(HarnessError, match="'b' is not one of the options"):
        questions.worded("b", ["a", "B"])
    with pytest.raises(HarnessError, match="more than one"):
        questions.letter("AB", ["1", "2"])
