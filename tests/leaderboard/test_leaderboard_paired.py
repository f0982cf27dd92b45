"""Tests of differences and Holm's correction: against scipy and statsmodels, and under the null."""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.leaderboard import stats
from dcsft_harness.leaderboard.stats import holm, mcnemar, paired_test, sign_flips

norm = pytest.importorskip("scipy.stats").norm
multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
NormalIndPower = pytest.importorskip("statsmodels.stats.power").NormalIndPower
permutation_test = pytest.importorskip("scipy.stats").permutation_test


def scipys(sums):
    """scipy's paired permutation test over all patterns."""
    found = permutation_test(
        (np.asarray(sums), np.zeros(len(sums))),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    return float(found.pvalue)


class TestMcNemar:
    @given(st.integers(0, 300), st.integers(0, 300))
    def test_equals_two_binomial_tails(self, better, worse):
        n = better + worse
        tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
        assert mcnemar(better, worse) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-9, abs=1e-15)

    def test_counts_discordant_items(self):
        ours = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, np.nan, 0.0])
        theirs = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, np.nan])
        found = paired_test([ours], [theirs], [np.arange(8)])
        # Four better, one worse: 2 * (1 + 5) / 32.
        assert found == (0.375, "McNemar, exact", 4, 1)

    def test_equal_rows_have_p_1_and_disjoint_rows_no_test(self):
        same = np.array([1.0, 0.0, 1.0])
        assert paired_test([same], [same], [np.arange(3)]).p == 1.0
        assert paired_test([same, same], [same, same], [np.arange(3)] * 2).p == 1.0
        gaps = np.array([np.nan, 1.0, np.nan])
        assert paired_test([np.array([1.0, np.nan, 0.0])], [gaps], [np.arange(3)]) is None


class TestSignFlips:
    @given(st.lists(st.integers(-4096, 4096).map(lambda x: x / 4096), min_size=2, max_size=10))
    def test_equals_scipy_on_few_clusters(self, sums):
        assert sign_flips(np.array(sums))[0] == pytest.approx(scipys(sums), abs=1e-9)

    @given(st.lists(st.integers(-5, 5), min_size=2, max_size=12), st.sampled_from([1.0, 1 / 300, 0.07]))
    def test_equals_scipy_on_integer_steps(self, steps, unit):
        sums = np.array(steps) * unit
        p, method = sign_flips(sums)
        assert p == pytest.approx(scipys(steps), abs=1e-9) and method == "sign flips, exact"

    def test_equals_mcnemar_on_binary_scores(self):
        sums = np.array([1.0] * 70 + [-1.0] * 41 + [0.0] * 200) / 311
        assert sign_flips(sums)[0] == pytest.approx(mcnemar(70, 41), abs=1e-12)

    def test_many_clusters_of_integer_steps_are_counted_exactly(self):
        rng = np.random.default_rng(3)
        steps = rng.integers(-3, 4, 18)
        patterns = np.array(list(itertools.product([-1, 1], repeat=18)))
        exact = (np.abs(patterns @ np.abs(steps)) >= abs(steps.sum())).mean()
        assert sign_flips(steps / 41)[0] == pytest.approx(exact, abs=1e-9)

    def test_draws_agree_with_the_exact_distribution(self):
        rng = np.random.default_rng(4)
        steps = rng.integers(-3, 4, 400).astype(float)
        exact, method = sign_flips(steps)
        assert method.endswith("exact")
        # Irrational weights of equal size have no common unit, so the test has to draw.
        p, method = sign_flips(steps * (1 + 1e-6 * rng.standard_normal(400)))
        assert "draws" in method
        assert p == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000) + 1e-5)

    def test_draws_are_seeded_and_never_give_zero(self):
        sums = np.random.default_rng(5).random(24) + 0.5  # 2 of 2^24 patterns are as extreme
        assert sign_flips(sums) == sign_flips(sums)
        assert sign_flips(sums) == (pytest.approx(1 / 200_001), "sign flips, 200000 draws")

    def test_draws_of_equal_sizes_are_binomial(self):
        from scipy.stats import binom

        drawn = stats._Drawn(np.array([3.0] * 37))
        parts = [drawn.sums(part) for part in range(stats.PARTS)]
        expected = 200_000 * binom.pmf(np.arange(38), 37, 0.5)
        found = np.bincount(((np.concatenate(parts) / 3 + 37) / 2).astype(int), minlength=38)
        assert (((found - expected) ** 2 / expected)[expected > 5]).sum() < 50  # chi square, 25 degrees
        assert abs(np.corrcoef(parts[0], parts[1])[0, 1]) < 0.03
        both = stats._Drawn(np.array([1.0] * 37 + [1.5] * 37)).sums(0)
        assert both.var() == pytest.approx(37 * (1 + 1.5**2), rel=0.05)  # uncorrelated

    def test_draws_of_two_equal_sizes_have_all_four_patterns(self):
        sums = stats._Drawn(np.array([1.0, 1.0])).sums(0)
        assert [(sums == value).mean() for value in (-2, 0, 2)] == pytest.approx([0.25, 0.5, 0.25], abs=0.02)

    @pytest.mark.parametrize("share", [0.5, 0.55, 0.6])
    def test_nearly_equal_sizes_give_nearly_the_exact_result(self, share):
        # Ten tasks of nearly equal size, as with a few unscored items.
        signs = np.sign(np.random.default_rng(7).random(2000) - (1 - share))
        exact, method = sign_flips(signs)
        assert method.endswith("exact")
        drawn, method = sign_flips(signs * np.repeat(1 + np.arange(10) * 1e-6 * np.pi, 200))
        assert not method.endswith("exact")
        assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000) + 1e-5)

    def test_a_p_value_too_small_for_draws_is_bounded(self):
        sums = np.random.default_rng(5).random(60) + 0.5
        p, method = sign_flips(sums)
        assert method == "sign flips, bound" and 2.0**-59 < p < 1 / 200_001
        assert 0 < sign_flips(np.random.default_rng(5).random(5000) + 0.5)[0] < 1e-300

    def test_the_bound_is_hoeffdings(self):
        assert stats._bound(np.array([1.0, 1.0, 1.0, 1.0]), 2.0) == pytest.approx(2 * math.exp(-4 / 8))
        assert stats._bound(np.array([3.0, 4.0]), 5.0) == pytest.approx(2 * math.exp(-25 / 50))

    @given(st.lists(st.floats(0.01, 1), min_size=1, max_size=10), st.floats(0, 1))
    def test_the_bound_is_never_too_small(self, sizes, share):
        values = np.array(sizes)
        sums = np.abs(np.array(list(itertools.product([-1, 1], repeat=len(sizes)))) @ values)
        threshold = share * float(values.sum())
        assert stats._bound(values, threshold) >= (sums >= threshold).mean() - 1e-12

    def test_more_distinct_sizes_than_can_be_grouped(self):
        sizes = np.repeat(1 + np.sqrt(np.arange(2, 60)) / 100, 3)
        signs = np.where(np.random.default_rng(9).random(len(sizes)) < 0.6, 1, -1)
        p, method = sign_flips(sizes * signs)
        near = abs(float((sizes * signs).sum())) / np.sqrt((sizes**2).sum())
        assert "draws" in method and p == pytest.approx(2 * norm.sf(near), rel=0.15)

    def test_a_cluster_counts_once(self):
        # Ten items in two clusters that all point one way are two tosses: 2 / 4.
        ours, theirs = np.ones(10), np.zeros(10)
        assert paired_test([ours], [theirs], [np.repeat([0, 1], 5)]).p == 0.5
        assert paired_test([ours], [theirs], [np.arange(10)]).p == pytest.approx(2 / 1024)

    def test_a_cluster_shared_by_tasks_is_one_toss(self):
        ours, theirs = [np.ones(4), np.ones(4)], [np.zeros(4), np.zeros(4)]
        assert paired_test(ours, theirs, [np.arange(4)] * 2).p == pytest.approx(2 / 16)
        assert paired_test(ours, theirs, [np.arange(4), np.arange(4, 8)]).p == pytest.approx(2 / 256)


class TestTasksOfUnequalSize:
    def test_each_task_has_the_same_weight(self):
        # Two items of 2, three of 8: contributions 1/4, 1/4 and -1/16 three times, 5/16 in total. Signs reach
        # that whenever the two large ones agree, and never otherwise.
        scores = [np.ones(2), np.zeros(8)]
        others = [np.zeros(2), np.array([1.0] * 3 + [0.0] * 5)]
        found = paired_test(scores, others, [np.arange(2), np.arange(2, 10)])
        assert found == (pytest.approx(0.5), "sign flips, exact", 2, 3)

    @pytest.mark.parametrize("gaps", [False, True])
    def test_equals_scipy_on_the_difference_of_means(self, gaps):
        rng = np.random.default_rng(5)
        sizes = (3, 5, 4)
        ours, theirs = ([rng.random(n) for n in sizes] for _ in range(2))
        if gaps:  # not scored in one row: the task is one item smaller
            ours[1][2] = theirs[2][0] = np.nan
        clusters = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        pairs = [one - other for one, other in zip(ours, theirs, strict=True)]
        sums = [d / len(pairs) / np.sum(~np.isnan(task)) for task in pairs for d in task[~np.isnan(task)]]
        assert sum(sums) == pytest.approx(np.mean([np.nanmean(task) for task in pairs]))
        assert paired_test(ours, theirs, clusters).p == pytest.approx(scipys(sums), abs=1e-9)


class TestHolm:
    @pytest.mark.parametrize(
        ("p_values", "adjusted"),
        [
            ([0.03], [0.03]),
            ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 * 0.01; 2 * 0.03; 1 * 0.04 is below the one before
            ([0.5, 0.001, 0.02, 0.02], [0.5, 0.004, 0.06, 0.06]),
            ([0.9, 0.6, 1e-300], [1.0, 1.0, 3e-300]),
        ],
    )
    def test_equals_a_computation_by_hand(self, p_values, adjusted):
        assert holm(p_values) == pytest.approx(adjusted, rel=1e-12)

    @given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 1.0]), min_size=1, max_size=12))
    def test_equals_statsmodels(self, p_values):
        with mock.patch("gc.collect"):  # at each call in statsmodels: a second where torch is loaded
            theirs = multipletests(p_values, method="holm")[1]
        assert holm(p_values) == pytest.approx(theirs, rel=1e-12)

    def test_of_nothing_is_empty(self):
        assert holm([]) == []


class TestPower:
    @given(st.floats(0.01, 0.99), st.integers(2, 100_000))
    def test_equals_statsmodels(self, accuracy, n):
        # Its effect size is in standard deviations of one row's items, and rows have n each.
        effect = stats.unpaired(accuracy, n) / np.sqrt(accuracy * (1 - accuracy))
        assert NormalIndPower().power(effect, n, 0.05, ratio=1) == pytest.approx(0.8, abs=1e-9)

    @pytest.mark.parametrize(
        ("clusters", "n"),
        [
            ([np.arange(100)], 100),
            ([np.arange(100) // 4], 25),
            ([np.arange(100), np.arange(100)], 100),  # both tasks ask about the same images
            ([np.arange(100), np.arange(100, 200)], 200),
            ([np.arange(30), np.arange(30, 1030)], 4 / (1 / 30 + 1 / 1000)),  # not 1,030
            ([np.arange(30), 30 + np.arange(100) // 4], 4 / (1 / 30 + 1 / 25)),
        ],
    )
    def test_a_mean_over_tasks_is_as_uncertain_as_its_smallest_ones(self, clusters, n):
        assert stats.independent(clusters) == pytest.approx(n)
        rng, draws = np.random.default_rng(0), 4000
        right = rng.random((draws, 2000)) < 0.6
        means = np.mean([right[:, codes].mean(axis=1) for codes in clusters], axis=0)
        assert means.var() == pytest.approx(0.6 * 0.4 / n, rel=0.1)


class TestUnderTheNull:
    def family(self, rng, clustered):
        """p-values of eight rows against an equally good baseline, on two tasks and their mean."""
        codes = [np.arange(80), np.arange(80, 200)]
        if clustered:
            codes = [np.arange(80) // 4, np.arange(120) // 4]
        ability = [rng.random(200)[code] for code in codes]
        rows = [[(rng.random(len(able)) < able).astype(float) for able in ability] for _ in range(9)]
        found = []
        for row in rows[1:]:
            found += [paired_test([row[t]], [rows[0][t]], [codes[t]]).p for t in (0, 1)]
            found.append(paired_test(row, rows[0], codes).p)
        return found

    @pytest.mark.slow
    @pytest.mark.parametrize("clustered", [False, True])
    def test_corrected_families_err_at_most_one_time_in_twenty(self, clustered):
        rng, rounds = np.random.default_rng(11), 160
        wrong = sum(min(holm(self.family(rng, clustered))) <= 0.05 for _ in range(rounds))
        assert wrong / rounds <= 0.05
