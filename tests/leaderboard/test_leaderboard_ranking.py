"""Ranks, Pareto front and retention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.leaderboard.stats import (
    bootstrap,
    dense_sums,
    front,
    front_shares,
    ranks,
    retention,
)

sm = pytest.importorskip("statsmodels.api")


def sums_of(rows, codes, size):
    found = np.zeros((len(rows), size), dtype=np.float32)
    for row, into in zip(rows, found, strict=True):
        dense_sums([row], [codes], into)
    return found


class TestDenseSums:
    def test_each_task_has_the_same_weight(self):
        values = [np.array([1.0, 0.0]), np.array([1.0, 0.0, np.nan, 0.0, 1.0])]
        found = np.zeros(7, dtype=np.float32)
        dense_sums(values, [np.arange(2), np.arange(2, 7)], found)
        # 1/2 from the mean, over two tasks times 2 or 4 scored items; nothing for the unscored one.
        expected = [1 / 8, -1 / 8, 1 / 16, -1 / 16, 0, -1 / 16, 1 / 16]
        assert found == pytest.approx(expected, abs=1e-7)


class TestRanks:
    @pytest.mark.parametrize(("share", "interval"), [(0.04, (1, 2)), (0.02, (1, 1))])
    def test_the_interval_leaves_out_one_draw_in_forty_on_either_side(self, share, interval):
        draws = np.tile([0.6, 0.5], (1000, 1))
        draws[: int(1000 * share)] = [0.4, 0.5]
        found = ranks(np.array([0.6, 0.5]), draws)[0]
        assert (found.low, found.high) == interval

    def test_ties_share_the_better_place(self):
        draws = np.tile([0.5, 0.7, 0.7, 0.1], (10, 1))
        found = ranks(np.array([0.5, 0.7, 0.7, 0.1]), draws)
        assert [tuple(one) for one in found] == [(3, 3, 3, 4), (1, 1, 1, 4), (1, 1, 1, 4), (4, 4, 4, 4)]

    def test_rows_of_similar_accuracy_share_their_intervals(self):
        rng = np.random.default_rng(0)
        rows = [(rng.random(400) < p).astype(float) for p in (0.2, 0.79, 0.8, 0.81)]
        values = [np.array([[row.mean()]]) for row in rows]
        draws = bootstrap(values, sums_of(rows, np.arange(400), 400))
        found = ranks(np.array([row.mean() for row in rows]), draws[:, :, 0])
        assert tuple(found[0]) == (4, 4, 4, 4)
        assert all(one.low == 1 and one.high == 3 for one in found[1:])

    def test_the_bootstrap_has_the_variance_of_the_mean(self):
        rng = np.random.default_rng(1)
        codes = np.arange(600) // 3
        row = rng.random(200)[codes] + rng.random(600)
        draws = bootstrap([np.array([[row.mean()]])], sums_of([row], codes, 200), draws=4000)
        error = row.reshape(200, 3).mean(axis=1).std(ddof=1) / np.sqrt(200)
        assert draws.std() == pytest.approx(error, rel=0.05)
        assert draws.mean() == pytest.approx(row.mean(), abs=error / 10)

    def test_rows_are_resampled_together(self):
        row = np.random.default_rng(2).integers(0, 2, 100).astype(float)
        values = [np.array([[row.mean()]])] * 2
        draws = bootstrap(values, sums_of([row, row], np.arange(100), 100))
        assert np.array_equal(draws[:, 0], draws[:, 1])

    def test_seeds_are_resampled_too(self):
        values = [np.array([[0.4], [0.5], [0.6]])]
        draws = bootstrap(values, np.zeros((3, 5), dtype=np.float32), draws=4000)
        assert draws.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.05)

    def test_equal_seeds_give_equal_draws(self):
        row = np.random.default_rng(3).random(50)
        given_ = ([np.array([[row.mean()]])], sums_of([row], np.arange(50), 50))
        assert np.array_equal(bootstrap(*given_), bootstrap(*given_))


class TestFront:
    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
    def test_holds_exactly_the_undominated_rows(self, points):
        points = np.array(points, dtype=float)

        def beaten(one):
            return any((other >= one).all() and (other > one).any() for other in points)

        assert front(points).tolist() == [not beaten(one) for one in points]

    def test_shares_count_draws(self):
        draws = np.array([[[1, 1], [0, 0]], [[1, 0], [0, 1]]], dtype=float)
        assert front_shares(draws).tolist() == [1.0, 0.5]


class TestRetention:
    def delta(self, own, ood, own_codes, ood_codes):
        """The same by statsmodels: task indicators, cluster covariance, and the gradient of the ratio."""
        values, codes = [*own, *ood], np.concatenate([*own_codes, *ood_codes])
        design = np.repeat(np.eye(len(values)), [len(v) for v in values], axis=0)
        fit = sm.OLS(np.concatenate(values), design).fit(
            cov_type="cluster", cov_kwds={"groups": codes, "use_correction": True}, use_t=True
        )
        below, above = fit.params[: len(own)].mean(), fit.params[len(own) :].mean()
        gradient = np.array([-above / below**2 / len(own)] * len(own) + [1 / below / len(ood)] * len(ood))
        return above / below, float(gradient @ fit.cov_params() @ gradient), len(np.unique(codes)) - 1

    @pytest.mark.parametrize("shared", [False, True])
    def test_equals_statsmodels(self, shared):
        rng = np.random.default_rng(5)
        own, ood = [rng.random(80)], [rng.random(60), rng.random(90)]
        codes = (
            [rng.integers(0, 40, n) for n in (80, 60, 90)] if shared else np.split(np.arange(230), [80, 140])
        )
        found = retention([own], [ood], codes[:1], codes[1:])
        value, variance, degrees = self.delta(own, ood, codes[:1], codes[1:])
        margin = pytest.importorskip("scipy.stats").t.ppf(0.975, degrees) * np.sqrt(variance)
        assert found[:3] == pytest.approx((value, value - margin, value + margin), abs=1e-9)
        assert found.n == 230

    def test_interval_covers_the_truth(self):
        rng, rounds, held = np.random.default_rng(6), 1500, 0
        codes = [np.arange(200)], [np.arange(200, 400)]
        for _ in range(rounds):
            own, ood = (rng.random(200) < 0.8).astype(float), (rng.random(200) < 0.6).astype(float)
            found = retention([[own]], [[ood]], *codes)
            held += found.low <= 0.75 <= found.high
        assert 0.93 <= held / rounds <= 0.97

    def test_an_item_missing_for_one_seed_is_left_out_of_all(self):
        rng = np.random.default_rng(7)
        own, ood = rng.random((2, 3, 40))
        codes = [np.arange(40)], [np.arange(40, 80)]
        own[0, 3], ood[2, 5] = np.nan, np.nan
        found = retention([[one] for one in own], [[one] for one in ood], *codes)
        left = np.delete(own, 3, axis=1), np.delete(ood, 5, axis=1)
        wanted = retention(
            [[one] for one in left[0]], [[one] for one in left[1]], [np.arange(39)], [np.arange(39, 78)]
        )
        assert found.low is not None and found == pytest.approx(wanted)

    @pytest.mark.parametrize("seeds", [2, 3, 5])
    def test_seeds_alone_make_an_interval(self, seeds):
        """Where no item's mean over seeds varies, as in the accuracies beside it."""
        ids, oods = np.linspace(0.6, 1.0, seeds), 0.5 + 0.1 * np.arange(seeds) % 0.2
        codes = [np.arange(4)], [np.arange(4, 8)]
        found = retention(*([[np.full(4, one)] for one in side] for side in (ids, oods)), *codes)
        ratio = oods.mean() / ids.mean()
        deviation = np.std(oods - ratio * ids, ddof=1) / ids.mean() / np.sqrt(seeds)
        margin = pytest.importorskip("scipy.stats").t.ppf(0.975, seeds - 1) * deviation
        assert found[:3] == pytest.approx((ratio, max(0, ratio - margin), ratio + margin))
        same = retention([[np.full(4, 0.7)]] * seeds, [[np.full(4, 0.3)]] * seeds, *codes)
        assert same[:3] == (pytest.approx(3 / 7), None, None)

    def test_of_a_row_that_is_never_right(self):
        zeros = np.zeros(4)
        assert retention([[zeros]], [[np.ones(4)]], [np.arange(4)], [np.arange(4)]) is None
        assert retention([[np.ones(4)]], [[zeros]], [np.arange(4)], [np.arange(4)]).value == 0.0
