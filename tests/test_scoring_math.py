"""Free-form mathematics, in threads, within a budget that no signal enforces."""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import Verdict, math_answer, math_worker
from dcsft_harness.scoring.math_answer import math


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("1/2", "0.5", 1.0),
        ("so x = 0.5", "1/2", 1.0),
        ("\\boxed{\\frac{1}{2}}", "$\\frac12$", 1.0),
        ("The answer is $2\\sqrt{3}$.", "2\\sqrt{3}", 1.0),
        ("The answer is $2\\sqrt{3}$.", "2\\sqrt{2}", 0.0),
        ("\\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        ("1,000", 1000, 1.0),
        # characters that are not LaTeX's, and LaTeX without dollar signs: math-verify alone reads a part
        ("\\boxed{60°}", "60^{\\circ}", 1.0),
        ("\\boxed{60°}", "60", 1.0),
        ("\\boxed{2√3}", "2\\sqrt{3}", 1.0),
        ("The answer is 2√3.", "2\\sqrt{3}", 1.0),
        ("The answer is 2√3.", "2", 0.0),
        ("2\\sqrt{3}", "2√3", 1.0),
        ("2", "2√3", 0.0),
        ("The area is 12π cm².", "12\\pi", 1.0),
        ("The area is 12π cm².", "12", 0.0),
        ("so it is 12\\pi", "12", 0.0),
        ("so it is \\frac{1}{2}", "0.5", 1.0),
        ("\\boxed{x²}", "x^2", 1.0),
        ("−3", "-3", 1.0),
        ("答案是5厘米", "5", 1.0),
        ("答案：-5。", "-5", 1.0),
        ("It is 3.", 4, 0.0),
        ("<think>It is 7.</think><answer>4</answer>", 4, 1.0),
        ("<think>It is 4.</think><answer>7</answer>", 4, 0.0),
        ("<thinking>It is 7.</thinking>It is 4.", 4, 1.0),
        ("<think>hm</think><answer><|begin_of_box|>4<|end_of_box|></answer>", 4, 1.0),
        ("So <|begin_of_box|>\\frac{1}{2}<|end_of_box|> of the 7 parts.", "0.5", 1.0),
        # units in boxes, with and without \text, and what is no unit
        ("\\boxed{12 cm}", "12", 1.0),
        ("\\boxed{12~cm}", "12", 1.0),
        ("\\boxed{5\\,cm^2}", "5", 1.0),
        ("\\boxed{5 m^3}", "5", 1.0),
        ("\\boxed{5 m^3}", "5m^3", 1.0),
        ("\\boxed{2g}", "2g", 1.0),
        ("\\boxed{12 km/h}", "12", 1.0),
        ("\\boxed{12\\pi cm^2}", "12\\pi", 1.0),
        ("\\boxed{12\\pi cm^2}", "12", 0.0),
        ("\\boxed{V = 12\\ m^3}", "12", 1.0),
        ("\\boxed{60^\\circ}", "60", 1.0),
        ("\\boxed{60\\degree}", "60", 1.0),
        ("\\boxed{25\\%}", "25", 1.0),
        ("\\boxed{12 dollars}", "12", 1.0),
        ("\\boxed{12平方厘米}", "12", 1.0),
        ("\\boxed{60度}", "60", 1.0),
        ("\\boxed{1\\,000}", "1000", 1.0),
        ("\\boxed{x=5}", "5", 1.0),
        ("\\boxed{(2,3)}", "(2,3)", 1.0),
        ("\\boxed{(3,2)}", "(2,3)", 0.0),
        ("\\boxed{A}", "A", 1.0),
        ("\\boxed{\\text{Answer: } 5}", "5", 1.0),
        ("\\boxed{\\textcolor{red}{5}}", "5", 1.0),
        ("\\boxed{5.}", "5", 1.0),
        # other forms of an answer
        ("<b>5</b>", "5", 1.0),
        ('{"reasoning": "2 + 3", "answer": "5"}', "5", 1.0),
        ('{"answer": "\\\\frac{1}{2}"}', "0.5", 1.0),
        ("It is minus 3.", "-3", 1.0),
        ("It is minus 3.", "3", 0.0),
        ("10 minus 3 is 7", "7", 1.0),
        ("5 and a half", "5.5", 1.0),
        ("five", "5", 1.0),
    ],
)
def test_equal_expressions_are_right(response, answer, score):
    verdict = math(response, answer=answer)
    assert verdict.score == score
    assert isinstance(verdict.extracted, str)


@pytest.mark.parametrize("response", ["", "   ", "goose", "I cannot answer this.", "<think>It is 4.</think>"])
def test_nothing_mathematical_is_no_answer(response):
    assert math(response, answer="4") == Verdict(0.0, None)


@pytest.mark.parametrize(
    "answer",
    [
        *("", "goose", "goose and duck", "a goose", "No solution", "the answer is seven apples"),
        *("$seven apples$", "\\boxed{goose}", "It is a goose.", "goose!", "café", "七", "-", "?"),
    ],
)
def test_refuses_an_answer_that_is_not_mathematics(answer):
    with pytest.raises(HarnessError, match="not mathematics"):
        math("4", answer=answer)


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("xy", "$yx$"),
        ("7 apples", "7"),
        ("x = 3", "x = 3"),
        ("\\text{even}", "\\boxed{\\text{even}}"),
        ("\\infty", "$\\infty$"),
        ("30^\\circ", "$30$"),
        ("x \\in (1, 2)", "\\boxed{(1, 2)}"),
        ("\\sqrt{2}", "$\\sqrt{2}$"),
    ],
)
def test_an_answer_of_few_letters_or_in_latex_is_mathematics(answer, response):
    assert math(response, answer=answer).score == 1.0


def test_threads_get_the_verdicts_of_their_own_responses():
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda n: math(f"The answer is {n}.", answer=n - n % 2), range(60)))
    assert [verdict.score for verdict in verdicts] == [float(n % 2 == 0) for n in range(60)]
    assert [verdict.extracted for verdict in verdicts] == [str(n) for n in range(60)]


def test_a_response_that_never_ends_is_given_up_and_the_next_one_is_scored(monkeypatch):
    """The kernel ends the child, in one second here; the watch would take half a minute."""
    brief = "from dcsft_harness.scoring import math_worker as one; one.CPU_SECONDS = 0; one.main()"
    with monkeypatch.context() as patch:
        patch.setattr(math_answer, "_command", lambda: [sys.executable, "-P", "-c", brief])
        worker = math_answer._Worker()
        start = time.perf_counter()
        assert worker.ask("$9^{9^{9^{9^{9}}}} + 1$", "7")[1:] in ([], [False])
        assert time.perf_counter() - start < 25.0
        assert worker.ask("4", "4") == ["4", True]
        worker.stop()


def test_a_child_that_was_killed_is_replaced():
    for _ in range(2):
        math("4", answer="4")
        os.kill(math_answer._worker._child.pid, signal.SIGKILL)
        assert math("4", answer="4").score == 1.0


def busy(seconds, then="exit"):
    """A child that computes for so long before it answers; 0 seconds: it waits and answers nothing."""
    work = f"while time.process_time() < {seconds}: pass" if seconds else "time.sleep(60)"
    lines = ["import sys, time, os, signal", "print('ready', flush=True)", "sys.stdin.readline()", work]
    answers = "print('\"4\"', flush=True); print('true', flush=True)"
    return [sys.executable, "-c", "\n".join([*lines, then.replace("answer", answers)])]


@pytest.fixture
def worker(monkeypatch):
    """Makes a worker of the given children, one after the other; looks are a third of a second apart."""
    monkeypatch.setattr(math_answer, "PATIENCE", 0.35)
    made = []

    def make(*commands):
        children = iter(commands)
        monkeypatch.setattr(math_answer, "_command", lambda: next(children))
        made.append(math_answer._Worker())
        return made[-1], children

    yield make
    for one in made:
        one.stop()


def test_no_clock_ends_a_child_that_computes(worker):
    one, children = worker(busy(2.0, "answer"))
    assert one.ask("4", "4") == ["4", True]


@pytest.mark.parametrize(
    "undecided",
    [busy(0), busy(0.1, "os.kill(os.getpid(), signal.SIGKILL)"), busy(0.1, "os.kill(os.getpid(), 15)")],
)
def test_a_child_that_decided_nothing_is_followed_by_another(worker, undecided):
    one, _ = worker(undecided, undecided, busy(0.1, "answer"))
    assert one.ask("4", "4") == ["4", True]


def test_a_child_that_used_up_its_budget_has_decided(worker):
    one, children = worker(busy(0.1, "os.kill(os.getpid(), signal.SIGXCPU)"), busy(0.1, "answer"))
    assert one.ask("4", "4") == []
    assert len(list(children)) == 1


def test_a_budget_that_the_system_does_not_keep_is_kept_by_the_watch(worker, monkeypatch):
    monkeypatch.setattr(math_worker, "CPU_SECONDS", 0.05)
    one, children = worker(busy(60.0), busy(0.1, "answer"))
    assert one.ask("4", "4") == []
    assert len(list(children)) == 1


def test_an_item_that_no_child_decides_is_refused(worker):
    one, _ = worker(*[busy(0.1, "os.kill(os.getpid(), signal.SIGKILL)")] * 3, busy(0.1, "answer"))
    with pytest.raises(HarnessError, match="no verdict on the answer '4': 3 in turn were ended"):
        one.ask("4", "4")
    assert one.ask("4", "4") == ["4", True]


def test_what_an_interrupted_item_still_gets_belongs_to_no_other(worker, monkeypatch):
    one, _ = worker(busy(0.1, "answer"), busy(0.1, "print('null', flush=True); print('false', flush=True)"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(math_answer.json, "dumps", lambda value: (_ for _ in ()).throw(KeyboardInterrupt))
        one.ask("4", "4")
    assert one.ask("5", "4") == [None, False]


def test_a_forked_process_leaves_the_childs_pipes_alone():
    math("4", answer="4")
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        forked = pool.apply_async(_score, (5,))
        assert [_score(n) for n in range(10)] == [1.0] * 10
        assert forked.get(timeout=60) == 1.0


def _score(number):
    return math(f"It is {number}.", answer=number).score


def test_a_megabyte_is_read_from_its_end():
    start = time.perf_counter()
    assert math("1 + " * 250_000 + " so the answer is 4.", answer="4").score == 1.0
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize(("end", "score"), [("and so maybe", 0.0), ("so \\boxed{5}, let me see", 1.0)])
def test_a_thought_that_breaks_off_is_no_answer_without_a_box(end, score):
    text = "<think>" + "First 3, then 5. " * 40 + end
    assert math(text, answer="5").score == score
    assert math(text.replace("<think>", ""), answer="5").score == 1.0


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        ("\u20113", "-3", 1),
        ("It takes 1½ hours.", "1/2", 0),
        ("It takes 1½ hours.", "1.5", 1),
        ("面积是12π平方厘米。", "12", 0),
        ("面积是12π平方厘米。", r"12\pi", 1),
        ("12π meters squared", r"12\pi", 1),
        ("2√5 miles", r"2\sqrt{5}", 1),
        ("3π/4 rad", r"\frac{3\pi}{4}", 1),
        (r"\boxed{30\degree C}", "30", 1),
        (r"\boxed{30°C}", "30", 1),
    ],
)
def test_signs_mixed_numbers_and_units_in_words(response, gold, score):
    assert math(response, answer=gold).score == score
