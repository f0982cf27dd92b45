"""Metrics of K responses: brute force, invariants, and the coverage of their intervals."""

import functools
import itertools
import math
import resource
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness import records
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from dcsft_harness.curation.labels import label
from dcsft_harness.leaderboard.stats import accuracy
from dcsft_harness.sampling import ROLLOUTS
from dcsft_harness.scoring import at_k
from tests.fixtures.artifacts import item, rollout, rollouts


def brute(scores, votes, k):
    """An item's metrics over all subsets of k scored responses."""
    places = [i for i, score in enumerate(scores) if not math.isnan(score)]
    found = {name: [] for name in at_k.NAMES}
    worth = {
        vote: np.mean([scores[i] for i in places if votes[i] == vote]) for vote in {votes[i] for i in places}
    }
    for some in itertools.combinations(places, k):
        counts = {vote: sum(votes[i] == vote for i in some) for vote in {votes[i] for i in some} - {-1}}
        most = max(counts.values(), default=0)
        winners = [vote for vote, count in counts.items() if count == most]
        found["avg"].append(np.mean([scores[i] for i in some]))
        found["pass"].append(float(any(scores[i] >= 0.5 for i in some)))
        found["maj"].append(np.mean([worth[vote] for vote in winners]) if winners else 0.0)
        found["consistency"].append(most / k)
    return {name: math.fsum(values) / len(values) if values else math.nan for name, values in found.items()}


SCORES = st.sampled_from([0.0, 0.25, 1.0, math.nan])
ITEM = st.lists(st.tuples(SCORES, st.integers(-1, 4)), min_size=7, max_size=7)


@given(st.lists(ITEM, min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_metrics_equal_the_average_over_all_subsets(items):
    scores = np.array([[score for score, _ in item] for item in items])
    votes = np.array([[vote for _, vote in item] for item in items])
    found = at_k.metrics(scores, votes).values
    for number, k in itertools.product(range(len(items)), range(1, 8)):
        wanted = brute(scores[number], votes[number], k)
        for name, value in wanted.items():
            assert found[name][number, k - 1] == pytest.approx(value, abs=1e-12, nan_ok=True), (name, k)


@given(st.lists(ITEM, min_size=1, max_size=6), st.randoms())
@settings(deadline=None, max_examples=40)
def test_metrics_ignore_response_order_and_answer_names(items, random):
    names = random.sample(range(5), 5)
    shuffled = [random.sample(item, len(item)) for item in items]
    tables = []
    for some, renamed in ((items, False), (shuffled, True)):
        scores = np.array([[score for score, _ in item] for item in some])
        votes = np.array([[names[v] if renamed and v >= 0 else v for _, v in item] for item in some])
        tables.append(at_k.metrics(scores, votes).values)
    for name in at_k.NAMES:
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=1e-12)


def test_at_one_all_metrics_but_consistency_equal_the_mean():
    scores = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = at_k.metrics(scores, np.array([[0, 1, 0, -1], [0, 0, 0, 0]]))
    means = found.means()
    assert means["avg"][0] == means["maj"][0] == means["pass"][0] == 0.75
    assert means["consistency"][0] == 7 / 8  # one response of eight has no answer
    assert means["pass"][3] == 1.0 and means["maj"][3] == 1.0


def test_ties_are_shared_and_a_response_without_an_answer_does_not_vote():
    scores = np.array([[1.0, 0.0, 0.0]])
    assert at_k.metrics(scores, np.array([[0, 1, -1]])).values["maj"][0, 2] == 0.5
    assert at_k.metrics(scores, np.array([[0, 1, 2]])).values["maj"][0, 2] == pytest.approx(1 / 3)
    assert at_k.metrics(np.zeros((1, 2)), np.array([[-1, -1]])).values["maj"][0].tolist() == [0.0, 0.0]


def test_without_votes_there_is_no_majority():
    assert set(at_k.metrics(np.ones((2, 3))).values) == {"avg", "pass"}


def test_random_subsets_replace_counting_where_there_are_too_many_patterns(monkeypatch):
    rng = np.random.default_rng(1)
    votes = rng.integers(-1, 5, (30, 20))
    scores = (votes == 0).astype(float)
    exact = at_k.metrics(scores, votes)
    monkeypatch.setattr(at_k, "PATTERNS", 0)
    drawn = at_k.metrics(scores, votes)
    assert np.all(exact.errors == 0) and np.all(drawn.errors[:, 2:-1].max(axis=0) > 0)
    for k in (1, 5, 12, 20):
        gap = abs(exact.means()["maj"][k - 1] - drawn.means()["maj"][k - 1])
        assert gap <= 4 * drawn.error(k) + 1e-12
    again = at_k.metrics(scores, votes)
    np.testing.assert_array_equal(again.values["maj"], drawn.values["maj"])
    other = at_k.metrics(scores, votes, seed=1)
    assert not np.array_equal(other.values["maj"], drawn.values["maj"])


def test_votes_of_up_to_sixteen_responses_are_always_counted_exactly(monkeypatch):
    monkeypatch.setattr(at_k, "PATTERNS", 0)
    votes = np.random.default_rng(2).integers(-1, 5, (5, 17))
    errors = [at_k.metrics((votes[:, :n] == 0) * 1.0, votes[:, :n]).errors for n in (16, 17)]
    assert np.all(errors[0] == 0) and np.any(errors[1] > 0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_labels_of_fewer_responses_equal_the_average_over_all_subsets(pairs):
    items = [(max(pair), min(pair)) for pair in pairs]
    found = at_k.of_pool(np.array([n for n, _ in items]), np.array([c for _, c in items]))
    assert len(found) == max(n for n, _ in items)
    for g, one in enumerate(found, start=1):
        shares = []
        for n, c in items:
            counts = [sum(some) for some in itertools.combinations([1] * c + [0] * (n - c), g)]
            if counts:
                easy, hard = counts.count(g) / len(counts), counts.count(0) / len(counts)
                shares.append((1 - hard, easy, 1 - easy - hard, hard))
        wanted = np.mean(shares, axis=0)
        assert [one[name] for name in ("pass", "easy", "medium", "hard")] == pytest.approx(wanted, abs=1e-12)


def test_votes_are_numbered_per_item():
    found = at_k.coded(np.array([1, 0, 1, 1, 0, 2]), np.array([7, 7, -1, 3, 7, -1]))
    assert found.tolist() == [1, 0, -1, 0, 0, -1]
    assert at_k.coded(np.array([0]), np.array([-1])).tolist() == [-1]


def simulated(rng, items, width, clusters):
    """Items with varying pass rates, in clusters that share a part of it."""
    shared = rng.normal(0, 1, clusters)[np.arange(items) % clusters]
    chance = 1 / (1 + np.exp(-(shared + rng.normal(0, 1, items))))
    votes = np.where(rng.random((items, width)) < chance[:, None], 0, rng.integers(1, 5, (items, width)))
    return (votes == 0).astype(float), votes


@functools.cache
def truth(width):
    """The means over a very large set of the same kind, which do not depend on clusters."""
    return at_k.metrics(*simulated(np.random.default_rng(8), 400_000, width, 400_000)).means()


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [200, 60])
def test_intervals_cover_the_truth_in_93_to_97_percent_of_runs(clusters):
    rng, items, width, k = np.random.default_rng(7), 200, 8, 4
    large = truth(width)
    inside = dict.fromkeys(("avg", "maj", "pass"), 0)
    runs = 1500
    codes = np.arange(items) % clusters
    for _ in range(runs):
        values = at_k.metrics(*simulated(rng, items, width, clusters)).values
        for name in inside:
            found = accuracy(values[name][:, k - 1], codes)
            inside[name] += found.low <= large[name][k - 1] <= found.high
    for name, count in inside.items():
        assert 0.93 <= count / runs <= 0.97, (name, count / runs)


def test_a_million_responses_take_seconds():
    items, width = 6_250, 16  # a tenth of a million; the whole is in docs/how-to/test-time.md
    rng = np.random.default_rng(0)
    scores, votes = simulated(rng, items, width, items)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = at_k.metrics(scores, votes)
    for values in found.values.values():
        for k in range(width):
            accuracy(values[:, k], np.arange(items))
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_label_prints_the_labels_that_fewer_responses_would_give(tmp_path, capsys):
    rollouts(tmp_path / "rollouts", [[1.0] * 4, [1.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0, 1.0, None, None]])
    assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
    notes = manifest.read(tmp_path / "labels").notes
    assert "exact" not in notes
    found = notes["at_g"]
    shares = {"easy": 2.25 / 4, "medium": 0, "hard": 1.75 / 4}
    assert found[0] == pytest.approx({"pass": 2.25 / 4, **shares, "items": 4})
    assert found[3] == pytest.approx(
        {"pass": 2 / 3, "easy": 1 / 3, "medium": 1 / 3, "hard": 1 / 3, "items": 3}
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # The last item, two of whose responses could not be scored, counts up to g = 2.
    assert ["2", "62.5", "%", "50.0", "%", "12.5", "%", "37.5", "%", "4"] in lines
    assert ["4", "66.7", "%", "33.3", "%", "33.3", "%", "33.3", "%", "3"] in lines
    assert [line[0] for line in lines if len(line) == 10] == ["1", "2", "4"]


def test_label_prints_the_number_of_items_only_where_it_differs(tmp_path, capsys):
    rollouts(tmp_path / "rollouts", [[1.0, 0.0], [None, None], [0.0, 0.0]])
    assert main(["label", str(tmp_path / "rollouts"), "--output", str(tmp_path / "labels")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2", "50.0", "%", "0.0", "%", "50.0", "%", "50.0", "%"] in lines


def test_a_pool_with_early_stopped_items_has_no_labels_at_fewer_responses(tmp_path):
    some = item(0)
    rows = [replace(rollout(some, at, score), censored=True) for at, score in enumerate((1.0, 0.0))]
    with manifest.writing("rollouts", tmp_path / "rollouts", {"task": "pool", "samples": 4}) as draft:
        records.write_table(draft.folder / ROLLOUTS, records.Rollout, rows)
    assert label(tmp_path / "rollouts", tmp_path / "labels")["at_g"] is None
