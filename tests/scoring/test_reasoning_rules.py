"""We-Math's four dimensions and MMMU's open rows, by tables and against a second implementation."""

import itertools
import math
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.scoring import SCORERS
from dcsft_harness.tasks.reasoning import doc as four


def problem(name, steps, whole):
    rows = [
        {"problem": name, "steps": len(steps), "step": str(at), "right": right}
        for at, right in enumerate(steps, 1)
    ]
    return [*rows, {"problem": name, "steps": len(steps), "step": "multi", "right": whole}]


KINDS = [
    # steps, whole -> IK, IG, strict CM, loose CM, strict RM, loose RM
    ((True, True), True, (0, 0, 1, 1, 0, 0)),
    ((True, True), False, (0, 1, 0, 0, 0, 0)),
    ((True, False), True, (0, 0, 0, 1, 1, 0)),
    ((True, False), False, (1, 0, 0, 0, 0, 0)),
    ((False, False), True, (0, 0, 0, 0, 1, 1)),
    ((False, False, False), False, (1, 0, 0, 0, 0, 0)),
    ((True, True, True), True, (0, 0, 1, 1, 0, 0)),
    ((False, True, True), True, (0, 0, 0, 1, 1, 0)),
]


@pytest.mark.parametrize(("steps", "whole", "expected"), KINDS)
def test_a_problem_is_of_one_kind(steps, whole, expected):
    assert tuple(four.count(problem("p", steps, whole)).values()) == (1, *expected)


def test_scores_of_a_full_run_match_published_tables():
    # 525 problems: IK 200, IG 100, strict CM 125, strict RM 100, of which 40 are rote by the loose rule.
    kinds = [((False, True), False)] * 200 + [((True, True), False)] * 100 + [((True, True), True)] * 125
    kinds += [((True, False), True)] * 60 + [((False, False), True)] * 40
    items = list(itertools.chain.from_iterable(problem(str(at), *kind) for at, kind in enumerate(kinds)))
    assert four.strict(items) == pytest.approx((525 - 50 - 100 - 200) / 525)
    assert four.loose(items) == pytest.approx((525 - 50 - 40 - 200) / 525)
    assert four.insufficient_knowledge(items) == pytest.approx(200 / 525)
    assert four.inadequate_generalisation(items) == pytest.approx(100 / 525)
    assert four.complete_mastery_strict(items) == pytest.approx(125 / 525)
    assert four.complete_mastery_loose(items) == pytest.approx(185 / 525)
    assert four.rote_memorisation_strict(items) == pytest.approx(100 / 225)
    assert four.rote_memorisation_loose(items) == pytest.approx(40 / 225)


SCORES = (
    four.strict,
    four.loose,
    four.insufficient_knowledge,
    four.inadequate_generalisation,
    four.complete_mastery_strict,
    four.complete_mastery_loose,
    four.rote_memorisation_strict,
    four.rote_memorisation_loose,
)


@pytest.mark.parametrize(
    "items", [[], problem("p", (True, True), True)[:2], problem("p", (False, False), False)]
)
def test_no_score_divides_by_zero(items):
    assert all(isinstance(score(items), float) for score in SCORES)
    assert math.isnan(four.rote_memorisation_strict(items))


PROBLEMS = st.lists(
    st.tuples(st.lists(st.booleans(), min_size=2, max_size=3), st.booleans()), min_size=1, max_size=30
)


@given(PROBLEMS, st.randoms(use_true_random=False))
def test_every_problem_is_of_one_of_four_kinds_in_any_order(problems, random):
    items = list(itertools.chain.from_iterable(problem(str(at), *one) for at, one in enumerate(problems)))
    random.shuffle(items)
    count = types.SimpleNamespace(**four.count(items))
    assert count.ik + count.ig + count.cm_strict + count.rm_strict == count.problems == len(problems)
    assert count.ik + count.ig + count.cm_loose + count.rm_loose == count.problems
    # One point for a mastered whole, half a point if only the last step fails.
    assert four.strict(items) == pytest.approx((count.cm_strict + count.ig / 2) / len(problems))
    assert four.strict(items) <= four.loose(items)


@given(PROBLEMS, st.data())
def test_problems_cut_by_a_limit_do_not_count(problems, data):
    items = list(itertools.chain.from_iterable(problem(str(at), *one) for at, one in enumerate(problems)))
    cut = data.draw(st.integers(0, len(items)))
    whole = sum(1 for steps in itertools.accumulate(len(steps) + 1 for steps, _ in problems) if steps <= cut)
    assert four.count(items[:cut])["problems"] == whole


OPEN = [
    # golds, response, score, whether an answer was found
    (["360"], "\\boxed{360}", 1, True),
    (["360"], "It is \\boxed{\\$360.00} a year.", 1, True),
    (["360"], "The answer is 36.", 0, True),
    (["360"], "", 0, False),
    (["360"], "I cannot tell.", 0, False),
    (["2000000"], "Answer: $2,000,000", 1, True),
    (["6.333"], "\\boxed{6.33}", 1, True),  # equal to two decimals, as in MMMU's evaluation
    (["6.333"], "\\boxed{6.34}", 0, True),
    (["24.32"], "\\boxed{24.32\\text{ g/mol}}", 1, True),
    (["551"], "\\boxed{551.0 kN}", 1, True),
    (["551"], "\\boxed{515 kN}", 0, True),
    (["-141"], "The angle is \\boxed{-141^\\circ}", 1, True),
    (["24/7", "3.429"], "so \\boxed{\\frac{24}{7}}", 1, True),
    (["24/7", "3.429"], "so \\boxed{3.43}", 1, True),
    (["24/7", "3.429"], "so \\boxed{3.5}", 0, True),
    (["1/64"], "\\boxed{0.015625}", 1, True),
    (["$MgS$", "MgS"], "\\boxed{\\text{MgS}}", 1, True),
    (["$MgS$", "MgS"], "\\boxed{MgO}", 0, True),
    (["Tampa", "Florida"], "The answer is Tampa, Florida.", 1, True),
    (["Transformation"], "This process is called transformation.", 1, True),
    (["Transformation"], "The answer is transduction.", 0, True),
    (["Transformation"], "It is not transformation.", 0, True),
    (["Transformation"], "Bacteria take up DNA. They change. So the process in the picture, in which free "
     "DNA enters a cell, is transformation.", 1, True),
    (["Transformation"], "Transformation is one of three ways. Here a phage carries the DNA, so by all that "
     "the figure shows this is transduction.", 0, True),
    (["Transformation"], "The answer is transformation. Wait, the answer is transduction.", 0, True),
    (["Transformation"], "The answer is transduction. No: the answer is transformation.", 1, True),
    (["Transformation"], "Answer:\ntransformation, as the figure shows", 1, True),
    (["embryonic"], "\\boxed{\\text{Embryonic stage}}", 1, True),
    (["trans-1-Chloro-4-methylcyclohexane"], "\\boxed{trans-1-chloro-4-methylcyclohexane}", 1, True),
    (["trans-1-Chloro-4-methylcyclohexane"], "\\boxed{cis-1-chloro-4-methylcyclohexane}", 0, True),
    (["C"], "\\boxed{C}", 1, True),
    (["C"], "The structure is labeled B, so the answer is B.", 0, True),
    (["A"], "A capacitor stores charge, which is why I cannot say.", 0, False),
    (["3"], "<think>maybe 4</think>The answer is 3.", 1, True),
]  # fmt: skip


@pytest.mark.parametrize(("golds", "response", "score", "answered"), OPEN)
def test_open_rows_are_scored(golds, response, score, answered):
    verdict = SCORERS["open_answer"](response, answer=golds)
    assert (verdict.score, verdict.extracted is not None) == (score, answered), verdict
