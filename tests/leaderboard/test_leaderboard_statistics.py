"""Intervals: by hand, against statsmodels, and by their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.leaderboard.stats import accuracy, difference, mean_over_tasks, sandwich, wilson

sm = pytest.importorskip("statsmodels.api")


def alone(*sizes):
    """Clusters of single items, over all tasks."""
    return [np.arange(size) + sum(sizes[:i]) for i, size in enumerate(sizes)]


def least_squares(values, clusters):
    """The same estimate by statsmodels: task indicators, cluster covariance, t quantile."""
    y, groups = np.concatenate(values), np.concatenate(clusters)
    design = np.zeros((len(y), len(values)))
    design[np.arange(len(y)), np.repeat(np.arange(len(values)), [len(v) for v in values])] = 1
    # use_correction multiplies by G / (G - 1) * (N - 1) / (N - T), as ours does.
    fit = sm.OLS(y, design).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}, use_t=True
    )
    test = fit.t_test(np.full(len(values), 1 / len(values)))
    return float(test.effect[0]), *map(float, test.conf_int()[0])


class TestAccuracy:
    @given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_wilson_holds_what_a_score_test_does_not_reject(self, counts):
        right, n = counts
        for end in wilson(right, n):
            assert abs(right / n - end) == pytest.approx(
                1.959963984540054 * math.sqrt(end * (1 - end) / n), abs=1e-9
            )
        assert (wilson(0, n)[0], wilson(n, n)[1]) == (0.0, 1.0)

    def test_unscored_items_are_left_out(self):
        found = accuracy(np.array([1.0, np.nan, 0.0, np.nan]), np.arange(4))
        assert found == accuracy(np.array([1.0, 0.0]), np.arange(2))
        assert accuracy(np.array([np.nan]), np.arange(1)) is None

    def test_shared_clusters_widen_the_interval(self):
        scores, codes = np.tile([1.0, 1.0, 0.0, 1.0], 10), np.tile(np.arange(4), 10)
        clustered, separate = accuracy(scores, codes), accuracy(scores, np.arange(40))
        assert clustered.value == separate.value
        assert clustered.low < separate.low and clustered.high == 1.0

    def test_all_right_in_shared_clusters_counts_clusters(self):
        found = accuracy(np.ones(20), np.repeat(np.arange(5), 4))
        assert (found.low, found.high, found.n) == (*wilson(5, 5), 20)
        none = accuracy(np.zeros(20), np.repeat(np.arange(5), 4))
        assert (none.low, none.high) == wilson(0, 5)

    def test_partial_credit_gets_a_t_interval(self):
        scores = np.array([0.5, 0.25, 0.75, 0.5])
        found = accuracy(scores, np.arange(4))
        margin = 3.182446 * scores.std(ddof=1) / 2
        assert (found.low, found.high) == pytest.approx((0.5 - margin, 0.5 + margin), abs=1e-6)


class TestMeans:
    def test_tasks_of_one_item_have_no_variance(self):
        assert sandwich(np.array([0.1, -0.1]), 2, 2) is None
        # 2 / 1 clusters, 2 / 1 items beyond the task's mean, 0.02 in squares.
        assert sandwich(np.array([0.1, -0.1]), 3, 2) == pytest.approx(2 * 2 * 0.02)

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("sizes", [(40,), (30, 30), (12, 200, 45)])
    def test_agree_with_statsmodels(self, sizes, shared):
        rng = np.random.default_rng(sum(sizes))
        values = [rng.integers(-1, 2, size).astype(float) for size in sizes]
        clusters = [rng.integers(0, 9, size) for size in sizes] if shared else alone(*sizes)
        found = mean_over_tasks(values, clusters)
        assert (found.value, found.low, found.high) == pytest.approx(
            least_squares(values, clusters), abs=1e-9
        )
        assert found.n == sum(sizes)

    @given(st.data())
    def test_agree_with_statsmodels_on_random_data(self, data):
        sizes = data.draw(st.lists(st.integers(2, 15), min_size=1, max_size=4))
        number = st.floats(-1, 1).map(lambda x: round(x, 3))
        values = [np.array(data.draw(st.lists(number, min_size=n, max_size=n))) for n in sizes]
        clusters = [np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))) for n in sizes]
        found = mean_over_tasks(values, clusters)
        assert found.value == pytest.approx(np.mean([v.mean() for v in values]), abs=1e-12)
        if found.low is not None:
            assert (found.value, found.low, found.high) == pytest.approx(
                least_squares(values, clusters), abs=1e-9
            )

    def test_tasks_have_the_same_weight_at_any_size(self):
        assert mean_over_tasks([np.ones(3), np.zeros(300)], alone(3, 300)).value == 0.5

    def test_tasks_on_the_same_items_are_not_twice_the_evidence(self):
        values = np.random.default_rng(0).integers(0, 2, 50).astype(float)
        once = mean_over_tasks([values], alone(50))
        shared = mean_over_tasks([values, values], [np.arange(50)] * 2)
        separate = mean_over_tasks([values, values], alone(50, 50))
        assert shared.high - shared.low == pytest.approx(once.high - once.low, rel=0.02)
        assert separate.high - separate.low == pytest.approx((once.high - once.low) / math.sqrt(2), rel=0.02)

    @pytest.mark.parametrize(
        ("values", "clusters"),
        [
            ([1.0], [0]),  # one item
            ([1.0, 0.0], [0, 0]),  # one cluster
            ([0.3, 0.3, 0.3], [0, 1, 2]),  # no variation
            ([1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1]),  # none between clusters
        ],
    )
    def test_no_interval_where_the_data_cannot_give_one(self, values, clusters):
        found = mean_over_tasks([np.array(values)], [np.array(clusters)])
        assert found.low is None and found.high is None
        assert found.value == pytest.approx(np.mean(values))

    def test_no_mean_if_a_task_has_no_scores(self):
        assert mean_over_tasks([np.ones(2), np.array([np.nan])], alone(2, 1)) is None
        assert mean_over_tasks([], []) is None


class TestDifferences:
    def test_only_pair_items_scored_in_both_rows(self):
        ours, theirs = np.array([1.0, 1.0, np.nan, 0.0]), np.array([0.0, np.nan, 1.0, 0.0])
        found = difference([ours], [theirs], alone(4))
        assert (found.value, found.n) == (0.5, 2)

    def test_swapping_the_rows_mirrors_the_interval(self):
        rng = np.random.default_rng(1)
        ours, theirs = rng.integers(0, 2, (2, 60)).astype(float)
        one, other = difference([ours], [theirs], alone(60)), difference([theirs], [ours], alone(60))
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def covered(draw, truth, rounds=3000):
    """The coverage of an interval over `rounds` draws; its own standard error is 0.004."""
    rng = np.random.default_rng(7)
    estimates = [draw(rng) for _ in range(rounds)]
    return sum(e.low is not None and e.low <= truth <= e.high for e in estimates) / rounds


class TestCoverage:
    @pytest.mark.parametrize(("truth", "n"), [(0.5, 60), (0.9, 150), (0.3, 400)])
    def test_of_an_accuracy(self, truth, n):
        def draw(rng):
            return accuracy((rng.random(n) < truth).astype(float), np.arange(n))

        assert 0.93 <= covered(draw, truth) <= 0.97

    def test_of_an_accuracy_in_clusters(self):
        codes = np.arange(240) // 4

        def draw(rng):
            ability = rng.beta(2, 2, 60)[codes]
            return accuracy((rng.random(240) < ability).astype(float), codes)

        assert 0.93 <= covered(draw, 0.5) <= 0.97

    def test_of_a_paired_difference(self):
        def draw(rng):
            ability = rng.random(120)  # shared difficulty: the rows' verdicts correlate
            theirs = (rng.random(120) < 0.8 * ability).astype(float)
            ours = (rng.random(120) < 0.8 * ability + 0.1).astype(float)
            return difference([ours], [theirs], alone(120))

        assert 0.93 <= covered(draw, 0.1) <= 0.97

    def test_of_a_mean_over_tasks_that_share_clusters(self):
        codes = np.repeat(np.arange(60), 3)

        def draw(rng):
            common = rng.normal(0, 1, 60)  # one effect per cluster, in both tasks
            first = 0.1 + common[codes] + rng.normal(0, 1, 180)
            second = 0.3 + common + rng.normal(0, 1, 60)
            return mean_over_tasks([first, second], [codes, np.arange(60)])

        assert 0.93 <= covered(draw, 0.2) <= 0.97
