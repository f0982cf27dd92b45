"""Several seeds as one row: the variance by statsmodels, and the coverage of intervals."""

import numpy as np
import pytest

from dcsft_harness.leaderboard import load
from dcsft_harness.leaderboard.collect import group_of
from dcsft_harness.leaderboard.compare import summarize
from dcsft_harness.leaderboard.stats import (
    difference_of_seeds,
    mean_of_seeds,
    mean_over_tasks,
    part,
)
from tests.leaderboard.test_leaderboard import scores_folder

sm = pytest.importorskip("statsmodels.api")
ols = pytest.importorskip("statsmodels.formula.api").ols
pandas = pytest.importorskip("pandas")
t = pytest.importorskip("scipy.stats").t


def answers(rng, seeds, n, seed_sd, item_sd=0.35, noise=0.35):
    """Scores around 0.5 (not clipped to [0, 1]): seed effect, item effect and noise."""
    rows = (
        0.5
        + rng.normal(0, seed_sd, (seeds, 1))
        + rng.normal(0, item_sd, n)
        + rng.normal(0, noise, (seeds, n))
    )
    return [[row] for row in rows]


class TestVariance:
    @pytest.mark.parametrize("seeds", [2, 3, 6])
    def test_equals_a_two_way_analysis(self, seeds):
        scores = answers(np.random.default_rng(seeds), seeds, 40, 0.3)
        frame = pandas.DataFrame(
            {
                "y": np.concatenate([row[0] for row in scores]),
                "seed": np.repeat(np.arange(seeds), 40),
                "item": np.tile(np.arange(40), seeds),
            }
        )
        table = sm.stats.anova_lm(ols("y ~ C(seed) + C(item)", frame).fit())
        square = table["mean_sq"] / (40 * seeds)
        seed, item, noise = square["C(seed)"], square["C(item)"], square["Residual"]
        if seeds == 2:
            item -= noise
        else:
            seed -= noise
        margin = np.sqrt(t.ppf(0.975, 39) ** 2 * item + t.ppf(0.975, seeds - 1) ** 2 * seed)
        found = mean_of_seeds(scores, [np.arange(40)])
        mean = frame["y"].mean()
        assert found[:3] == pytest.approx((mean, mean - margin, mean + margin), abs=1e-9)

    def test_identical_seeds_leave_only_the_items_part(self):
        row = np.random.default_rng(0).integers(0, 2, 50).astype(float)
        combined, single = (
            mean_of_seeds([[row]] * 3, [np.arange(50)]),
            mean_over_tasks([row], [np.arange(50)]),
        )
        assert combined == pytest.approx(single, abs=1e-12)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ([1, 0, 0, 1], [1, 0, 1, 0]),
            ([1, 0, 0, 1], [1, 0, 0, 1]),
            ([0.1, 0.2, 0.3, 0.8], [0.3, 0.1, 0.8, 0.2]),  # equal up to rounding
            ([1, -1, 0, 0], [0, 0, 1, -1]),  # differences of paired seeds
        ],
    )
    def test_two_seeds_of_equal_means_leave_the_whole_items_part(self, one, other):
        rows, codes = [np.array(one, dtype=float), np.array(other, dtype=float)], [np.arange(4)]
        found = mean_of_seeds([[row] for row in rows], codes)
        assert found == pytest.approx(mean_over_tasks([np.mean(rows, axis=0)], codes), abs=1e-12)
        assert found.low < found.value < found.high

    def test_an_item_missing_for_one_seed_is_left_out_of_all(self):
        one, other = np.array([1.0, 0.0, 1.0, np.nan]), np.array([0.0, 0.0, np.nan, 1.0])
        found = part([[one], [other]], [np.arange(4)])
        assert (found.value, found.n) == (0.25, 2)
        assert found.deviation == pytest.approx(np.sqrt(0.125))
        assert part([[np.array([1.0, np.nan])], [np.array([np.nan, 1.0])]], [np.arange(2)]) is None


class TestDifference:
    def test_p_is_the_level_at_which_the_interval_reaches_zero(self):
        rng = np.random.default_rng(3)
        ours, theirs = answers(rng, 4, 60, 0.05), answers(rng, 3, 60, 0.05)
        found, p = difference_of_seeds(ours, theirs, [np.arange(60)])
        assert 0 < p < 1
        assert (p < 0.05) == (found.low > 0 or found.high < 0)
        mirrored, same = difference_of_seeds(theirs, ours, [np.arange(60)])
        assert (mirrored.value, mirrored.low, same) == pytest.approx((-found.value, -found.high, p), abs=1e-9)

    def test_of_identical_rows_is_zero_without_an_interval(self):
        row = [np.ones(5)]
        found, p = difference_of_seeds([row, row], [row], [np.arange(5)])
        assert (found.value, found.low, p) == (0.0, None, None)

    def test_of_varying_rows_with_equal_means(self):
        rows = [[np.array([1.0, 0.0, 1.0, 0.0])], [np.array([0.0, 1.0, 0.0, 1.0])]]
        assert difference_of_seeds(rows, [[np.full(4, 0.5)]], [np.arange(4)])[1] in (None, 1.0)


class TestCoverage:
    @pytest.mark.parametrize("seed_sd", [0.0, 0.03, 0.2])
    @pytest.mark.parametrize("seeds", [3, 5])
    def test_of_a_mean(self, seeds, seed_sd):
        rng, rounds = np.random.default_rng(17), 1500
        codes = [np.arange(200)]
        held = 0
        for _ in range(rounds):
            found = mean_of_seeds(answers(rng, seeds, 200, seed_sd), codes)
            held += found.low <= 0.5 <= found.high
        assert 0.93 <= held / rounds <= 0.97

    def test_of_two_seeds_is_at_least_as_stated(self):
        rng, rounds = np.random.default_rng(18), 1500
        held = 0
        for _ in range(rounds):
            found = mean_of_seeds(answers(rng, 2, 200, 0.1), [np.arange(200)])
            held += found.low <= 0.5 <= found.high
        assert held / rounds >= 0.94

    def test_of_two_seeds_with_right_or_wrong_items_which_often_tie(self):
        rng, rounds, codes = np.random.default_rng(19), 1500, [np.arange(40)]
        held = 0
        for _ in range(rounds):
            chances = rng.beta(2, 2, 40)
            ours, theirs = ([[(rng.random(40) < chances).astype(float)] for _ in "12"] for _ in "ab")
            found, p = difference_of_seeds(ours, theirs, codes, paired=True)
            held += found.low <= 0 <= found.high
            assert (p <= 0.05) == (not found.low <= 0 <= found.high)
        assert held / rounds >= 0.94

    def test_of_a_difference_of_paired_seeds(self):
        """Seeds that share a cold start: coverage as stated, and narrower than for unrelated seeds."""
        rng, rounds = np.random.default_rng(22), 1000
        held, widths = 0, []
        for _ in range(rounds):
            items, shared = rng.normal(0, 0.35, 150), rng.normal(0, 0.05, 4)
            ours, theirs = (
                [[0.5 + s + rng.normal(0, 0.01) + items + rng.normal(0, 0.3, 150)] for s in shared]
                for _ in "ab"
            )
            found, p = difference_of_seeds(ours, theirs, [np.arange(150)], paired=True)
            held += found.low <= 0 <= found.high
            assert (p <= 0.05) == (not found.low <= 0 <= found.high)
            unpaired, _ = difference_of_seeds(ours, theirs, [np.arange(150)])
            widths.append((found.high - found.low) / (unpaired.high - unpaired.low))
        assert 0.93 <= held / rounds <= 0.98
        assert np.median(widths) < 0.8

    def test_of_a_difference_matches_its_false_positives(self):
        rng, rounds = np.random.default_rng(20), 1000
        held, found_false = 0, 0
        for _ in range(rounds):
            items = rng.normal(0, 0.35, 150)
            ours, theirs = (
                [[0.5 + rng.normal(0, 0.05) + items + rng.normal(0, 0.3, 150)] for _ in range(4)]
                for _ in "ab"
            )
            found, p = difference_of_seeds(ours, theirs, [np.arange(150)])
            held += found.low <= 0 <= found.high
            found_false += p <= 0.05
        assert 0.93 <= held / rounds <= 0.98
        assert found_false == rounds - held


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("SFT (seed 1)", "SFT"),
        ("SFT seed 12", "SFT"),
        ("sft-m-seed2", "sft-m"),
        ("SFT_seed=3", "SFT"),
        ("SFT, Seed: 4", "SFT"),
        ("linseed 4", None),
        ("seed 4", None),
        ("SFT", None),
        ("SFT seed", None),
    ],
)
def test_a_seed_is_parsed_from_a_rows_name(name, group):
    assert group_of(name) == group
    assert group_of(name, "told") == "told"


@pytest.mark.parametrize(
    ("rows", "baseline"),
    [
        (["SFT", "SFT (seed 2)"], "SFT"),  # a row of exactly that name
        (["other", "SFT (seed 2)"], "SFT (seed 2)"),  # one seed of the group
        (["SFT", "SFT (seed 1)", "SFT (seed 2)"], "SFT"),
        (["other", "SFT (seed 1)", "SFT (seed 2)"], "SFT"),  # the group
    ],
)
def test_a_row_takes_precedence_over_a_seed_of_its_name_as_the_baseline(tmp_path, rows, baseline):
    folders = [scores_folder(tmp_path / str(n), name, {"id1": [1.0, 0.0]}) for n, name in enumerate(rows)]
    board = load(folders, "SFT")
    assert board.baseline == baseline
    summary = summarize(board)
    assert [line.name for line in summary.lines if line.is_baseline] == [baseline]


@pytest.mark.parametrize(("second", "mean"), [([1.0, 1.0, 0.0, 0.0], 0.5), ([None, 1.0, 0.0, 0.0], 1 / 3)])
def test_a_row_of_seeds_says_if_it_is_over_fewer_items_than_its_seeds(tmp_path, second, mean):
    rows = {"SFT (seed 1)": [1.0, 0.0, 1.0, 0.0], "SFT (seed 2)": second}
    folders = [scores_folder(tmp_path / name, name, {"id1": scores}) for name, scores in rows.items()]
    summary = summarize(load(folders))
    assert summary.lines[0].entries[0].accuracy.value == pytest.approx(mean)
    said = [remark for remark in summary.remarks if "SFT combines 2 seeds" in remark]
    assert ["over the items that were scored with every seed" in one for one in said] == [None in second]
