"""Multiple choice: which responses state an option, and which do not."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS
from dcsft_harness.scoring.choice import choice

NUMBERS = ["3", "5", "7", "9"]
ANGLES = ["30°", "45°", "60°", "90°"]
LENGTHS = ["$4 \\mathrm{~cm}$", "$4.5 \\mathrm{~cm}$", "$5 \\mathrm{~cm}$", "$12 \\mathrm{~cm}$"]
ANIMALS = ["squid", "lantern fish", "octopus", "sea horse"]
SHAPES = ["triangle", "square", "a circle", "both triangle and square"]
YES_NO = ["Yes", "No"]
LETTERS = ["A", "B", "C", "D", "E"]
NINE = [f"item {n}" for n in range(1, 10)]
FRACTIONS = ["\\frac{1}{2}", "$\\frac{3}{4}$", "2\\sqrt{3}", "$\\frac{\\sqrt{3}}{2}$", "1\\frac{1}{2}"]
POINTS = ["(-2,0)", "(2,0)", "(0,-2)", "[0, 2]"]

STATED = [
    # the letter alone
    ("B", NUMBERS, "B"),
    ("b", NUMBERS, "B"),
    (" (B). ", NUMBERS, "B"),
    ("B.", NUMBERS, "B"),
    ("**B**", NUMBERS, "B"),
    ("$B$", NUMBERS, "B"),
    ("Option B", NUMBERS, "B"),
    ("**Option B**", NUMBERS, "B"),
    ("B: 5", NUMBERS, "B"),
    ("B) 5", NUMBERS, "B"),
    ("B - 5", NUMBERS, "B"),
    ("(B) 5. This is because 2 + 3 = 5.", NUMBERS, "B"),
    ("[B]", NUMBERS, "B"),
    ("（B）", NUMBERS, "B"),
    ("Ｂ", NUMBERS, "B"),
    ("I", NINE, "I"),
    ("B\n\nThere are five of them.", NUMBERS, "B"),
    # tags and boxes
    ("<answer>B</answer>", NUMBERS, "B"),
    ("<answer> (C) octopus </answer>", ANIMALS, "C"),
    ("<answer>octopus</answer>", ANIMALS, "C"),
    ("<think>It could be A or D. The answer is D? No.</think><answer>B</answer>", NUMBERS, "B"),
    ("<think>The answer is A.</think>\nThe answer is B.", NUMBERS, "B"),
    ("<think>hm</think><answer>The answer is **C**.</answer>", NUMBERS, "C"),
    ("<answer>\\boxed{D}</answer>", NUMBERS, "D"),
    ("<answer>B", NUMBERS, "B"),
    ("The answer is $\\boxed{B}$.", NUMBERS, "B"),
    ("\\boxed{\\text{B}}", NUMBERS, "B"),
    ("\\boxed{\\textbf{(D) } 9}", NUMBERS, "D"),
    ("\\[\n\\boxed{C}\n\\]", NUMBERS, "C"),
    ("so \\boxed{5}", NUMBERS, "B"),
    ("so \\boxed{5.0}", NUMBERS, "B"),
    ("\\boxed{4.5}", LENGTHS, "B"),
    ("\\boxed{12\\text{ cm}}", LENGTHS, "D"),
    ("\\boxed{x = 7}", NUMBERS, "C"),
    ("first \\boxed{3}, no: \\boxed{9}", NUMBERS, "D"),
    ("$\\boxed{45^\\circ}$", ANGLES, "B"),
    ("$\\boxed{\\dfrac{\\sqrt{3}}{2}}$", FRACTIONS, "D"),
    ("\\boxed{3/4}", FRACTIONS, "B"),
    ("\\boxed{0.75}", FRACTIONS, "B"),
    ("\\boxed{1.5}", FRACTIONS, "E"),
    ("The answer is $2 \\sqrt{3}$.", FRACTIONS, "C"),
    ("We get 1. Thus \\boxed{540}. The answer is: (C)", NUMBERS, "C"),
    # cues, the last of which wins
    ("The answer is (B) 5.", NUMBERS, "B"),
    ("the answer is b.", NUMBERS, "B"),
    ("The correct answer is B because the others are too small.", NUMBERS, "B"),
    ("Answer: B", NUMBERS, "B"),
    ("**Answer:** B", NUMBERS, "B"),
    ("**Answer: B. 5**", NUMBERS, "B"),
    ("### Final Answer\n\n**B**", NUMBERS, "B"),
    ("The correct option is:\n\n**C. 7**", NUMBERS, "C"),
    ("Final answer: $\\text{C}$", NUMBERS, "C"),
    ("The answer might be A. Checking D gives 8. So the correct answer is C.", NUMBERS, "C"),
    ("Option A is too small. Option B is too large. Therefore, the correct choice is D.", NUMBERS, "D"),
    ("The answer is not B but C.", NUMBERS, "C"),
    ("The answer is not B, it's D.", NUMBERS, "D"),
    ("B is not the answer. The answer is A.", NUMBERS, "A"),
    ("A is the correct option. Two sides meet at T, so z = 3, not 5.", NUMBERS, "A"),
    ("Option (D) is the correct answer.", NUMBERS, "D"),
    ("(A) squid is the best answer, as it eats clams.", ANIMALS, "A"),
    ("I would choose option B.", NUMBERS, "B"),
    ("Therefore, I choose C.", NUMBERS, "C"),
    ("This matches option (D).", NUMBERS, "D"),
    ("The answer is (C) 13. The radius is 3, so the rest is 2 x 3 = 9.", NUMBERS, "C"),
    ("The correct answer is: \n\n(B)", NUMBERS, "B"),
    ("The answer to the question of how many there are is C", NUMBERS, "C"),
    ("Based on the graph, the answer would be **D**.", NUMBERS, "D"),
    ("Answer: I", NINE, "I"),
    ("Answer: octopus", ANIMALS, "C"),
    ("The answer is sea horse.", ANIMALS, "D"),
    ("The answer is both triangle and square.", SHAPES, "D"),
    ("The answer is a circle.", SHAPES, "C"),
    ("The answer is 5.", NUMBERS, "B"),
    ("the correct answer is 60 degrees", ANGLES, "C"),
    # Chinese
    ("答案是B", NUMBERS, "B"),
    ("选B", NUMBERS, "B"),
    ("故选：C", NUMBERS, "C"),
    ("因此，正确答案是（D）。", NUMBERS, "D"),
    ("所以，BF的值为8，选项为(D)。", NUMBERS, "D"),
    ("选项中没有16，所以正确答案是(D) 8.", NUMBERS, "D"),
    ("综上所述，答案为：B。", NUMBERS, "B"),
    ("正确选项是 C。", NUMBERS, "C"),
    ("故答案为B", NUMBERS, "B"),
    # options repeated before the answer
    ("(A) 3\n(B) 5\n(C) 7\n(D) 9\n\nThe answer is (C).", NUMBERS, "C"),
    ("A. 3\nB. 5\nC. 7\nD. 9\n\nB. 5", NUMBERS, "B"),
    ("(A) 3 (B) 5 (C) 7 (D) 9 Answer: D", NUMBERS, "D"),
    # text and values
    ("octopus", ANIMALS, "C"),
    ("Octopus.", ANIMALS, "C"),
    ("5", NUMBERS, "B"),
    ("5.0", NUMBERS, "B"),
    ("$5$", NUMBERS, "B"),
    ("x = 9", NUMBERS, "D"),
    ("4.50 cm", LENGTHS, "B"),
    ("60 degrees", ANGLES, "C"),
    ("(2, 0)", POINTS, "B"),
    ("(-2, 0)", POINTS, "A"),
    ("Yes, there are fewer of them.", YES_NO, "A"),
    ("No, the boy cannot reach it.", YES_NO, "B"),
    ("No. There is no bicycle.", YES_NO, "B"),
    ("A: No", YES_NO, "B"),
    ("If the clams died, the squid would be most affected, as it eats clams.", ANIMALS, "A"),
    ("It lives in the reef. Therefore it is the octopus.", ANIMALS, "C"),
    ("The length of AC is 5 cm.", LENGTHS, "C"),
    ("Since AC = 12, we have AB = 12 - 7 = 5.", NUMBERS, "B"),
    ("The angle A is 30°. Hence the angle B is equal to 60°.", ANGLES, "C"),
    ("A triangle has three sides.\nTherefore the answer is B.", SHAPES, "B"),
    ("The next shape in the sequence is C.", LETTERS, "C"),
    # a made-up next question is not part of the response
    ("The answer is (B) 5.\n\nQuestion: What else?\nChoices:\n(A) 1\nAnswer: (A) 1", NUMBERS, "B"),
]

NOT_STATED = [
    ("", NUMBERS),
    ("   \n", NUMBERS),
    ("I'm sorry, I cannot see the image.", NINE),
    ("I cannot answer this question.", NINE),
    ("I think it is hard to say.", NINE),
    ("A triangle has three sides.", NUMBERS),
    ("A large number of objects can be seen.", YES_NO),
    ("C is the midpoint of AB.", NUMBERS),
    ("The answer is A or B.", NUMBERS),
    ("\\boxed{A, B, C, D}", LETTERS),
    ("A, b, c, d", LETTERS),
    ("A and B", NUMBERS),
    ("The answer is (F).", NUMBERS),
    ("F", NUMBERS),
    ("277", NUMBERS),
    ("The area is 5 + 3, so \\boxed{8}. The answer is: 8", NUMBERS),
    ("The sides are 3 and 5, so the perimeter is 16.", NUMBERS),
    ("(A) 3\n(B) 5\n(C) 7\n(D) 9", NUMBERS),
    ("(A) 3 (B) 5 (C) 7 (D) 9", NUMBERS),
    ("The answer is not B.", NUMBERS),
    ("A is not the correct option.", NUMBERS),
    ("Option B is incorrect.", NUMBERS),
    ("The correct answer is not provided.", NUMBERS),
    ("There is no difference between them.", YES_NO),
    ("The food is half eaten.", YES_NO),
    ("The correct answer cannot be determined.", NUMBERS),
    ("Mongoose", ["goose", "moose"]),
    ("Star", LETTERS),
    ("Yes", LETTERS),
    ("<image1>", LETTERS),
    ("5 m", ["3 cm", "5 cm"]),
    ("squid and octopus", ANIMALS),
    ("The answer is either squid or octopus.", ANIMALS),
    ("Choose the correct option letter:\n\n(A) 3\n(B) 5\n(C) 7\n(D) 9", NUMBERS),
]


@pytest.mark.parametrize(("response", "choices", "letter"), STATED)
def test_finds_the_stated_option(response, choices, letter):
    verdict = choice(response, answer=letter, choices=choices)
    assert (verdict.extracted, verdict.score) == (letter, 1.0)
    other = "A" if letter != "A" else "B"
    assert choice(response, answer=other, choices=choices).score == 0.0


@pytest.mark.parametrize(("response", "choices"), NOT_STATED)
def test_finds_nothing_where_nothing_is_stated(response, choices):
    verdict = choice(response, answer="A", choices=choices)
    assert (verdict.extracted, verdict.score) == (None, 0.0)


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "$B$", "5", "5.0 "[:1]])
def test_gold_is_a_letter_or_a_text(answer):
    assert choice("B", answer=answer, choices=NUMBERS).score == 1.0


@pytest.mark.parametrize("answer", ["E", "", "False", "C\nD", "090^\\circ T", "4"])
def test_refuses_a_gold_that_is_no_option(answer):
    with pytest.raises(HarnessError, match="no option"):
        choice("B", answer=answer, choices=NUMBERS)


def test_equal_texts_are_equally_right():
    assert choice("C", answer="D", choices=["9", "12", "18", "18"]).score == 1.0
    assert choice("18", answer="D", choices=["9", "12", "18", "18"]).score == 1.0
    assert choice("B", answer="D", choices=["9", "12", "18", "18"]).score == 0.0


def test_texts_that_differ_in_a_sign_or_a_star_are_not_equal():
    assert choice("B", answer="A", choices=["(-2,0)", "(2,0)"]).score == 0.0
    assert choice("A", answer="C", choices=["s", "s+", "s*"]).score == 0.0
    assert choice("A", answer="B", choices=["[0,2]", "(0,2)"]).score == 0.0


@pytest.mark.parametrize("choices", [None, [], ()])
def test_options_may_be_in_the_figure_only(choices):
    assert choice("The answer is (D).", answer="D", choices=choices).extracted == "D"
    assert choice("Z", answer="D", choices=choices).extracted is None


def test_choices_may_be_numbers():
    assert choice("The value is 2.50", answer="B", choices=[1, 2.5, 3]).extracted == "B"


def test_options_that_are_lower_case_letters_out_of_order():
    choices = ["(c)", "(a)", "(b)"]
    assert choice("(c)", answer="A", choices=choices).extracted == "A"
    assert choice("The answer is (c).", answer="A", choices=choices).extracted == "A"
    assert choice("The answer is (C).", answer="A", choices=choices).extracted == "C"


def test_reads_a_megabyte_in_linear_time(benchmark_seconds=2.0):
    import time

    for unit in (
        "The answer is ",
        "(A) ",
        "\\boxed{",
        "\\frac{1}",
        "is is is not ",
        "<answer>",
        "A. \n",
        "*a* ",
        "if ",
        "octopus but squid and ",
        "(A) or (B), ",
        "√(",
        "≈ 3 ",
        "there are two ",
        "</think>",
        "<|begin_of_box|>",
        "\nQuestion",
        "option 3 # ",
        "A: No\n",
        "A: no, B: yes, ",
        "if it were red the answer would be A, ",
        "would ",
        '{"answer": ',
        "<b><p ",
        "\n|---",
        "~~a",
        "_a ",
        "one might think the answer ",
    ):
        text = unit * (1_000_000 // len(unit))
        start = time.perf_counter()
        choice(text, answer="B", choices=NUMBERS)
        choice(text + "The answer is B.", answer="B", choices=ANIMALS)
        assert time.perf_counter() - start < benchmark_seconds, unit


PIECES = st.sampled_from(
    ["The answer is ", "A", "B", "(C)", " not ", "but ", "\\boxed{", "}", "$", "\n", "5", "5.0 cm", "**",
     "答案是", "<answer>", "</answer>", "</think>", "octopus", "Yes", ", ", ". ", "1/0", "is correct",
     "option ", "\\frac{1}{", "=", "-", "("]
)  # fmt: skip
RESPONSES = st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=25).map("".join))
CHOICES = st.one_of(
    st.none(),
    st.sampled_from([NUMBERS, ANIMALS, YES_NO, LETTERS, NINE, FRACTIONS, POINTS]),
    st.lists(st.text(max_size=20), min_size=1, max_size=26),
)


@given(RESPONSES, CHOICES)
@settings(max_examples=250, deadline=None)
def test_any_text_gives_a_valid_letter_or_none(response, choices):
    verdict = SCORERS["choice"](response, answer="A", choices=choices)
    valid = string.ascii_uppercase[: len(choices)] if choices else string.ascii_uppercase[:10]
    assert verdict.extracted is None or (len(verdict.extracted) == 1 and verdict.extracted in valid)
    assert verdict == SCORERS["choice"](response, answer="A", choices=choices)


@given(st.sampled_from(NUMBERS + ANIMALS), st.sampled_from("ABCD"))
def test_a_cue_at_the_end_wins_over_anything_before(noise, letter):
    text = f"It could be {noise}, or (A), or B.\nOption C looks wrong.\nTherefore, the answer is {letter}."
    assert choice(text, answer="A", choices=NUMBERS).extracted == letter


def test_a_value_before_the_cue_does_not_outweigh_the_letter_that_the_answer_names():
    options = ["3", "5", "2", "4"]
    for response in ("1 + 1 = 2, so the answer is D", "It is 2; hence the answer is D", "2, so D"):
        assert choice(response, answer="D", choices=options).extracted == "D", response
