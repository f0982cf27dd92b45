"""Label noise: classes by pass rate, estimates from counts against known pass rates, the documented table."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from dcsft_harness.curation import pass_rates

RATES = (0.0, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 1.0)
SAMPLES = (4, 8, 16, 32)


@pytest.mark.parametrize("g", [1, *SAMPLES])
def test_class_probabilities_of_a_pass_rate_are_binomial(g):
    easy, medium, hard = pass_rates.placement(np.array(RATES), g).T
    assert easy == pytest.approx(binom.pmf(g, g, RATES), abs=1e-12)
    assert hard == pytest.approx(binom.pmf(0, g, RATES), abs=1e-12)
    assert medium == pytest.approx(1 - easy - hard, abs=1e-12)


def test_the_documented_table_matches_the_code():
    def cell(shares):
        return " / ".join(f"{100 * one:.0f}" for one in shares)

    text = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text(encoding="utf-8")
    for rate in RATES:
        cells = [cell(pass_rates.placement(np.array([rate]), g)[0]) for g in SAMPLES]
        assert f"| {rate:g} | {' | '.join(cells)} |" in text


rng = np.random.default_rng(17)
POOLS = {
    "U-shaped": rng.beta(0.3, 0.3, 800),
    "nearly solved": rng.beta(3.0, 0.4, 800),
    "in the middle": rng.beta(2.0, 2.0, 800),
    "unsolved, nearly solved, and in between": np.concatenate(
        [np.full(120, 0.01), np.full(350, 0.97), rng.random(330)]
    ),
    "never, always, and in between": np.concatenate([np.zeros(120), np.ones(350), rng.random(330)]),
}


@pytest.mark.parametrize("g", [4, 8, 16])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_the_noise_is_estimated_from_counts(pool, g):
    """Against the true pass rates, and against labels that were drawn twice."""
    draws = np.random.default_rng([g, 3]).binomial(g, pool, (40, len(pool)))
    kinds = np.where(draws == 0, 0, np.where(draws == g, 2, 1))
    truth = pass_rates.of_rates(pool, g)
    assert (kinds[::2] != kinds[1::2]).mean() == pytest.approx(truth["changed"], abs=0.01)
    usual = np.stack([(kinds == kind).mean(axis=0) for kind in range(3)]).max(axis=0)
    assert 1 - usual.mean() == pytest.approx(truth["misplaced"], abs=0.02)
    for k in draws[:6]:
        found = pass_rates.of_counts(np.full(len(pool), g), k)
        assert found["changed"] == pytest.approx(truth["changed"], abs=0.08)
        assert found["misplaced"] == pytest.approx(truth["misplaced"], abs=0.08)
    means = [pass_rates.of_counts(np.full(len(pool), g), k) for k in draws[:6]]
    for name in ("changed", "misplaced"):
        assert np.mean([one[name] for one in means]) == pytest.approx(truth[name], abs=0.035)


def test_items_without_scores_do_not_count_and_one_response_gives_no_estimate():
    n, k = np.array([8, 8, 0]), np.array([3, 8, 0])
    assert pass_rates.of_counts(n, k) == pass_rates.of_counts(n[:2], k[:2])
    assert pass_rates.of_counts(np.array([1, 1]), np.array([0, 1])) is None
    assert pass_rates.of_counts(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None


def test_an_item_that_is_always_or_never_solved_is_never_misplaced():
    found = pass_rates.of_rates(np.array([1.0, 0.0]), 8)
    assert found == {"samples": 8, "changed": 0.0, "misplaced": 0.0, "source": "exact"}


def test_the_chi_squared_test_accepts_true_pass_rates_and_rejects_others():
    rates = np.random.default_rng(2).beta(0.7, 0.4, 800)
    n = np.full(800, 8)
    z = [pass_rates.chi_squared(rates, n, np.random.default_rng(s).binomial(8, rates))[2] for s in range(200)]
    assert np.mean(z) == pytest.approx(0, abs=0.25) and np.std(z) == pytest.approx(1, abs=0.15)
    more = np.full(800, 64)
    statistic, items, far = pass_rates.chi_squared(
        rates, more, np.random.default_rng(0).binomial(64, rates**1.3)
    )
    assert far > 5 and statistic > items
