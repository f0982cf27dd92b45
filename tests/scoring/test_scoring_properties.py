"""Properties of every scorer on any text: no error, one verdict, the same in every thread."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness.scoring import SCORERS, Verdict
from dcsft_harness.scoring.boxes import parse_box
from dcsft_harness.scoring.choice import choice

ANIMALS = ["squid", "lantern fish", "octopus", "sea horse"]
VALUES = ["30°", "2√5 cm", "$\\frac{3}{4}$", "0.25", "12:30"]
KEYWORDS = {
    "exact_word": [{"answer": "goose"}],
    "choice": [{"answer": "B", "choices": options} for options in (ANIMALS, VALUES, ["Yes", "No"], None)],
    "box_iou": [
        {"answer": [1, 2, 30, 40], "image_size": (64, 48), "box_space": "norm1000"},
        {"answer": [1, 2, 30, 40], "image_size": (64, 48), "threshold": 0.9},
    ],
    "math": [{"answer": "1/2"}],
}
CALLS = [(name, keywords) for name, cases in KEYWORDS.items() for keywords in cases]

PIECES = [
    *("The answer is ", "Answer: ", "answer", " is correct"),
    *("not ", "but ", "or ", "both ", "option ", "the third "),
    *("A", "B", "(C)", "(E) ", "A.", "Z", "B - ", "squid"),
    *("octopus", "Yes", "No", "three", "I ", "A triangle "),
    *("30°", "2√5", "≈ 4.47", "3/4", "0.25", "12 : 30", "1/0"),
    *("x = ", "-", "^", "√", "(", ")", "5 cm", "1,000"),
    *("\\boxed{", "}", "$", "\\frac{1}{", "\\text{", "\\sqrt"),
    *("^\\circ", "\\", "{", "**", "`", "# ", "> ", "| "),
    *("<think>", "</think>", "<answer>", "</answer>"),
    *("<|begin_of_box|>", "<|end_of_box|>", "◁/think▷", "<box>"),
    *("答案是", "故选", "而是", "选项", "正确", "。", "，", "İ", "ß", "\u200b", "\x00"),
    *("\n", " ", ". ", "\nQuestion: "),
    *("[1, 2, 30, 40]", "[1, 2,", "(1,2),(3,4)", "bbox_2d"),
    *(": ", "x1=1, y1=2", "nan", "1e999", "sorry", "cannot"),
]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.lists(st.sampled_from(PIECES), min_size=60, max_size=120).map(" ".join),
)


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_any_text_gets_one_verdict(text):
    for name, keywords in CALLS:  # all with the same text: generating one takes longer than scoring it
        if name != "math":
            verdict = SCORERS[name](text, **keywords)
            assert isinstance(verdict, Verdict), (name, keywords)
            assert verdict.score in (0.0, 1.0), (name, keywords)
            assert verdict.extracted is not None or verdict.score == 0.0, (name, keywords)
            assert verdict == SCORERS[name](text, **keywords), (name, keywords)


@given(text=TEXTS)
@settings(max_examples=40, deadline=None)
def test_math_gives_any_text_one_verdict(text):
    verdict = SCORERS["math"](text, answer="1/2")
    assert verdict.score in (0.0, 1.0)
    assert verdict.extracted is not None or verdict.score == 0.0


@pytest.mark.parametrize(("name", "keywords"), [call for call in CALLS if call[0] != "math"])
def test_threads_give_the_same_verdicts(name, keywords):
    texts = ["".join(PIECES[(step * n + 7 * n) % len(PIECES)] for n in range(25)) for step in range(1, 200)]
    alone = [SCORERS[name](text, **keywords) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: SCORERS[name](text, **keywords), texts)) == alone


TEMPLATES = [
    *("{letter}", "({letter})", "{letter}. {text}", "Answer: {letter}", "The answer is ({letter}) {text}."),
    *("\\boxed{{{letter}}}", "<answer>{letter}</answer>", "{text}", "So it is the {text}.", "故选{letter}。"),
    *("(A) is wrong. The correct answer is {letter}.", "**{letter}) {text}**", "Not {wrong} but {letter}."),
    *("The answer is not {wrong}.", "{letter} or {wrong}", "Option {letter} is incorrect.", "no idea"),
]  # fmt: skip


@given(st.sampled_from(TEMPLATES), st.permutations(range(4)), st.integers(0, 3), st.integers(1, 3))
def test_the_order_of_the_options_does_not_matter(template, order, meant, apart):
    """A response states the same option wherever the option is listed."""
    if template.startswith("(A)") and 0 in (meant, order.index(meant)):
        return  # the response would contradict itself

    def stated(options):
        letter = "ABCD"[options.index(ANIMALS[meant])]
        wrong = "ABCD"[options.index(ANIMALS[(meant + apart) % 4])]
        response = template.format(letter=letter, text=ANIMALS[meant], wrong=wrong)
        found = choice(response, answer=letter, choices=options).extracted
        return found and options["ABCD".index(found)]

    assert stated(ANIMALS) == stated([ANIMALS[index] for index in order])


WRITTEN = [
    *("[{0}, {1}, {2}, {3}]", "({0},{1}),({2},{3})"),
    *("<box>({0},{1}),({2},{3})</box>", "[[{0}, {1}], [{2}, {3}]]"),
    *('```json\n[{{"bbox_2d": [{0}, {1}, {2}, {3}], "label": "a dog"}}]\n```', "<box>{0} {1} {2} {3}</box>"),
    *("<|box_start|>({0},{1}),({2},{3})<|box_end|>", '{{"x1": {0}, "y1": {1}, "x2": {2}, "y2": {3}}}'),
    *("<think>[0, 0, 1, 1]</think><answer>[{0},{1},{2},{3}]</answer>", "from ({0}, {1}) to ({2}, {3})"),
    "<ref>dog</ref><box>[[{0}, {1}, {2}, {3}]]</box>",
    *("{0} {1} {2} {3}", "x_min={0}, y_min={1}, x_max={2}, y_max={3}"),
    "<|begin_of_box|>[[{0},{1},{2},{3}]]<|end_of_box|>",
    *("The box is [{0} {1} {2} {3}].", "{{{0}, {1}, {2}, {3}}}"),
]  # fmt: skip
NUMBERS = st.one_of(st.integers(0, 4000), st.floats(0, 4000).map(lambda number: round(number, 2)))


@pytest.mark.parametrize("form", WRITTEN)
@given(box=st.lists(NUMBERS, min_size=4, max_size=4))
@settings(max_examples=25)
def test_a_box_is_read_in_every_form_that_models_write(form, box):
    assert parse_box(form.format(*box)) == [float(number) for number in box]


@pytest.mark.parametrize("response", ["", " ", "\n", "<think>x</think>", "<answer></answer>"])
def test_an_empty_response_is_no_answer_even_if_an_option_is_blank(response):
    assert SCORERS["choice"](response, answer="A", choices=["", "x", " "]).extracted is None


ALIKE = [
    *(
        "5",
        "5 cm",
        "50 mm",
        "0.05 m",
        "5 m",
        "500 cm",
        "5 kg",
        "5.0",
        "500",
        r"500\%",
        r"5\%",
        "0.05",
        "1/20",
    ),
    *("x = 5", "y = 2x", "2x", "z = 2x", "x > 5", r"(5, \infty)", "y > 5", "1:20", "2:40", "1, 5", "5, 1"),
    *("24/7 ≈ 3.43", "24/7", "3.43", "five", "goose", "Goose", r"\{1, 5\}", "$1$\n$5$", "$5$\n$1$"),
]


@pytest.mark.parametrize("scorer", ["math", "open_answer"])
@given(
    texts=st.lists(st.sampled_from(ALIKE), min_size=2, max_size=7), order=st.randoms(use_true_random=False)
)
@settings(max_examples=60, deadline=None)
def test_sharing_a_vote_is_an_equivalence_in_any_order(scorer, texts, order):
    """Reflexive, symmetric and transitive, as in a partition; shuffled answers give the same partition."""

    def partition(answers):
        votes = SCORERS[scorer].votes(answers)
        assert all(vote in answers for vote in votes)
        return {
            frozenset(one for one, its in zip(answers, votes, strict=True) if its == vote) for vote in votes
        }

    found = partition(texts)
    assert sum(map(len, found)) == len(set(texts))  # no answer has two votes
    assert partition(order.sample(texts, len(texts))) == found
    same, form = SCORERS[scorer].same, SCORERS[scorer].form
    for group in found:
        for one, other in itertools.product(group, group):
            assert same(one, other) == same(other, one)
            assert one == other or form(one) != form(other) or same(one, other)
