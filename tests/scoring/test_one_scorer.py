"""One scorer, three users: labeling, the reward of RL and evaluation give the same verdict."""

import itertools
import json
from pathlib import Path

import pytest

from dcsft_harness import evaluation as evaluating
from dcsft_harness import lmms, records, sampling
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.lmms.tasks import listing
from dcsft_harness.models.stub import DcsftStub
from dcsft_harness.sampling import own_data
from dcsft_harness.scoring import SCORERS, Verdict
from dcsft_harness.training.grpo import Judge
from tests.fixtures import published
from tests.fixtures import reasoning as reasoning_fixtures

pytestmark = pytest.mark.usefixtures("pixels")

# The scorer of each family, and responses other than the target itself: right in other words, wrong, none.
FAMILIES = {
    "classification": ("exact_word", [" {target}. ", "the {target}", "heron", ""]),
    "grounding": ("box_iou", ["Box: {target}", "[0, 0, 3, 3]", "[9, 9, 1, 1]", "over there"]),
    "reasoning": ("math", ["{answer}", "= {answer} (B)", "So it is {wrong}.", "A or B", "", "no idea"]),
}


def suite(row):
    """Tasks of the embedded suite, and the paper's."""
    return "digits" if row["task"].startswith("dcsft_digits") else "paper"


# The paper's reasoning pool asks for what its evaluations do not (fill-in, not multiple choice): see below.
# The large pool is the small one's task on more drawings (`test_digits_suite`).
COMPARED = [
    row
    for row in listing()
    if (suite(row), row["family"]) != ("paper", "reasoning") and row["task"] != "dcsft_digits_pool_large"
]
POOLS = {(suite(row), row["family"]): row["task"] for row in reversed(COMPARED) if row["role"] == "pool"}
EVALUATIONS = [(suite(row), row["family"], row["task"]) for row in COMPARED if row["role"] == "evaluation"]


SCORED = (Path(__file__).parents[1] / "fixtures" / "scored_cases.jsonl").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    "case", map(json.loads, SCORED), ids=lambda one: f"{one['kind']}: {one['response'][:40]}"
)
def test_a_response_is_scored_like_a_careful_reader_would(case: dict) -> None:
    """In our own words, after kinds of public reports about answer extraction."""
    assert SCORERS[case["scorer"]](case["response"], **case["arguments"]).score == case["score"]


def verdict(family: str, doc, response: str) -> Verdict:
    """The verdict of `SCORERS` itself."""
    scorer = FAMILIES[family][0]
    more = {}
    if scorer == "box_iou":
        more = {"image_size": (doc["width"], doc["height"]), "box_space": "pixel"}
    return SCORERS[scorer](response, answer=json.loads(doc["answer"]), **more)


def responses(family, doc):
    answer = json.loads(doc["answer"])
    words = {"target": doc["target"], "answer": answer, "wrong": "77777"}
    return [doc["target"], *(text.format(**words) for text in FAMILIES[family][1])]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Every pool and evaluation, the paper's with the sources that the tests make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(prepared.VARIABLE, str(published.prepare_all(tmp_path_factory.mktemp("published"))))
        yield lmms.open_tasks([*POOLS.values(), *(task for *_, task in EVALUATIONS)])


def test_every_family_has_a_pool_and_evaluations():
    assert set(POOLS) == {(suite, family) for suite, family, _ in EVALUATIONS}
    assert {family for _, family in POOLS} == set(FAMILIES)
    pools = {row["task"] for row in listing() if row["role"] == "pool"}
    others = ("dcsft_mmk12_pool", "dcsft_digits_pool_large", "dcsft_digits_pool_noisy")
    assert pools == {*POOLS.values(), *others, "dcsft_digits_pool_large_noisy"}


@pytest.mark.slow  # its fixture opens every task: 20 s
@pytest.mark.parametrize(("suite", "family", "task"), EVALUATIONS)
def test_labels_evaluation_and_the_scorer_agree(opened, suite, family, task):
    pool, evaluation = opened[POOLS[suite, family]], opened[task]
    seen = set()
    for number in range(min(5, len(evaluation.eval_docs_no_media))):
        doc = evaluation.eval_docs_no_media[number]
        for response in responses(family, doc):
            expected = verdict(family, doc, response)
            # Both tasks get the same document, as they name the same function or must agree.
            labeled = lmms.score_of(pool, pool.process_results(doc, [response]))
            evaluated = lmms.score_of(evaluation, evaluation.process_results(doc, [response]))
            assert labeled == evaluated
            assert labeled[0] == expected.score
            assert (labeled[1] is None) == (expected.extracted is None)
            seen.add((expected.score, expected.extracted is None))
    # With only right answers the table would prove little.
    assert seen == {(1.0, False), (0.0, False), (0.0, True)}


@pytest.mark.slow  # its fixture opens every task: 20 s
@pytest.mark.parametrize(("suite", "family"), POOLS)
def test_responses_scored_together_have_the_mean_of_their_verdicts(opened, suite, family):
    pool = opened[POOLS[suite, family]]
    for number in range(5):
        doc = pool.eval_docs_no_media[number]
        texts = responses(family, doc)
        expected = [verdict(family, doc, text).score for text in texts]
        together = pool.process_results(doc, [texts])
        assert lmms.score_of(pool, together)[0] == sum(expected) / len(expected)
        alone = [lmms.score_of(pool, pool.process_results(doc, [text]))[0] for text in texts]
        assert alone == expected
        # The reward of GRPO.
        judge = Judge(pool, {"item": number})
        assert [judge.reward("item", text) for text in texts] == expected


@pytest.mark.slow  # its fixture opens every task: 20 s
@pytest.mark.parametrize(("of", "family"), POOLS)
def test_a_pool_has_the_prompts_of_its_in_distribution_evaluations(opened, of, family):
    """A label is informative about the evaluation only if the prompt and the budget are the same."""
    evaluations = [
        row["task"]
        for row in COMPARED
        if (suite(row), row["family"], row["role"], row["distribution"]) == (of, family, "evaluation", "id")
    ]
    assert evaluations
    for evaluation in evaluations:
        one, other = opened[POOLS[of, family]].config, opened[evaluation].config
        assert one.generation_kwargs["max_new_tokens"] == other.generation_kwargs["max_new_tokens"]
        assert one.process_results is other.process_results
        assert (one.doc_to_text, one.doc_to_target) == (other.doc_to_text, other.doc_to_target)


def test_all_three_score_the_fill_in_pool_by_math(tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(reasoning_fixtures.prepare(tmp_path)))
    pool = lmms.open_tasks(["dcsft_mmk12_pool"])["dcsft_mmk12_pool"]
    seen = set()
    for number in range(5):
        doc = pool.eval_docs_no_media[number]
        gold = json.loads(doc["answer"])
        texts = [doc["target"], f"so it is {gold}", "\\boxed{77777}", "", "no idea"]
        judge = Judge(pool, {"item": number})
        assert [judge.reward("item", text) for text in texts] == [
            SCORERS["math"](text, answer=gold).score for text in texts
        ]
        rewards = [SCORERS["math"](text, answer=gold) for text in texts]
        labeled = [lmms.score_of(pool, pool.process_results(doc, [text])) for text in texts]
        together = pool.process_results(doc, [texts])
        assert [score for score, *_ in labeled] == [verdict.score for verdict in rewards]
        assert [found is None for _, found, _ in labeled] == [
            verdict.extracted is None for verdict in rewards
        ]
        assert lmms.score_of(pool, together)[0] == sum(verdict.score for verdict in rewards) / len(texts)
        seen |= {(verdict.score, verdict.extracted is None) for verdict in rewards}
    assert seen == {(1.0, False), (0.0, False), (0.0, True)}


def test_all_three_know_a_truncated_response(tmp_path):
    """Of two responses of six words, the one without a closed box has no answer."""
    row = {"problem": "What is 3 + 4?", "solution": "7"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    task = own_data.open_file(tmp_path / "mine.jsonl", "math", None)
    said = ["The answer is 7 since three and four", "so \\boxed{7} as three and four make", "It is 7."]
    samples = itertools.cycle(said)
    config = sampling.SamplingConfig(samples=3, max_new_tokens=6)
    sampling.sample(
        DcsftStub(answers=lambda question: next(samples)), task, tmp_path / "rollouts", config, {}
    )
    rows = records.read_table(tmp_path / "rollouts" / sampling.ROLLOUTS, records.Rollout).to_pylist()
    found = [(one["finish_reason"], one["score"], one["extracted"]) for one in rows]
    assert found == [("length", 0.0, None), ("length", 1.0, "7"), ("stop", 1.0, "7")]
    judge = Judge(task, {"item": 0})
    cut = [" ".join(text.split()[:6]) for text in said]
    assert [judge.reward("item", text, len(text.split()) > 5) for text in cut] == [0.0, 1.0, 1.0]

    task = own_data.open_file(tmp_path / "mine.jsonl", "math", None)
    lmms.set_generation(task, 1, {"max_new_tokens": 6})
    model = DcsftStub(answers=lambda question: said[0])
    evaluating.evaluate(model, {"mine": task}, tmp_path / "scores", "a", {})
    (one,) = records.read_table(tmp_path / "scores" / evaluating.SCORES, records.Score).to_pylist()
    assert (one["finish_reason"], one["score"], one["extracted"]) == ("length", 0.0, None)
