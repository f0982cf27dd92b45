"""The keyed draws: the right distribution, the right keys, nothing else."""

import numpy as np
import pytest
import torch
from scipy import stats

from dcsft_harness.models.decoding import gumbels, noisy, row_key, uniforms

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def splitmix(state):
    """One SplitMix64 output from a state, in exact integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize("key", [0, -1, 1 << 62, -(1 << 63), 123456789])
@pytest.mark.parametrize("step", [0, 1, 5000])
def test_the_hash_equals_splitmix64_bit_for_bit(key, step):
    tokens = torch.tensor([0, 1, 151935])
    drawn = uniforms(torch.tensor(key), torch.tensor(step), tokens)
    state = splitmix((key + (step + 1) * GOLDEN) & MASK)
    for token, value in zip(tokens.tolist(), drawn.tolist(), strict=True):
        assert value == ((splitmix((state + (token + 1) * GOLDEN) & MASK) >> 12) + 0.5) / 2**52


def test_splitmix64_gives_its_reference_values():
    # The first outputs of the published generator for seed 1234567.
    assert splitmix((1234567 + GOLDEN) & MASK) == 6457827717110365317
    assert splitmix((1234567 + 2 * GOLDEN) & MASK) == 3203168211198807973


def test_uniforms_are_open_uniform_and_uncorrelated():
    keys = torch.tensor([row_key(0, f"item {n}", 0) for n in range(200)])
    drawn = uniforms(keys[:, None], torch.tensor(3), torch.arange(500))
    assert 0.0 < drawn.min() and drawn.max() < 1.0
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 0.01
    later = uniforms(keys[:, None], torch.tensor(4), torch.arange(500))
    for a, b in ((drawn[:, :-1], drawn[:, 1:]), (drawn[:-1], drawn[1:]), (drawn, later)):
        assert abs(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]) < 0.015


def test_gumbels_stay_finite_at_the_ends_of_the_hash():
    ends = torch.tensor([0.5, 2**52 - 0.5], dtype=torch.float64) * 2.0**-52
    assert torch.isfinite(-torch.log(-torch.log(ends))).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_the_largest_noisy_logit_is_a_draw_from_the_softmax(sparse):
    logits = torch.linspace(-2.0, 3.0, 24)
    logits[::3] = -torch.inf
    rows = 20000
    keys = torch.tensor([row_key(7, "item", n) for n in range(rows)])
    drawn = noisy(logits.expand(rows, -1), keys, torch.full_like(keys, 4), sparse).argmax(-1)
    kept = torch.isfinite(logits)
    counts = torch.bincount(drawn, minlength=24)
    assert counts[~kept].sum() == 0
    expected = torch.softmax(logits.double(), -1)[kept] * rows
    assert stats.chisquare(counts[kept], expected * rows / expected.sum()).pvalue > 0.01


def test_sparse_and_dense_noise_are_equal():
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    scores[:, 5:30] = -torch.inf
    keys = torch.tensor([row_key(0, str(n), 0) for n in range(6)])
    steps = torch.arange(6)
    assert torch.equal(noisy(scores, keys, steps, True), noisy(scores, keys, steps, False))


def test_each_part_of_the_key_matters_and_rows_are_independent():
    keys = {row_key(seed, item, index) for seed in (0, 1) for item in ("a", "b") for index in (0, 1)}
    assert len(keys) == 8
    some = torch.tensor(sorted(keys))
    step, tokens = torch.tensor(2), torch.arange(50)
    together = gumbels(some[:, None], step, tokens)
    assert torch.equal(gumbels(some[3], step, tokens), together[3])


def test_the_noise_is_cheap():
    import time

    keys = torch.tensor([row_key(0, "x", n) for n in range(8)])
    scores = torch.randn(8, 152_000)
    noisy(scores, keys, torch.full_like(keys, 2), False)
    start = time.perf_counter()
    noisy(scores, keys, torch.full_like(keys, 2), False)
    # A forward pass of a model with this vocabulary takes seconds; the noise takes 40 ms.
    assert time.perf_counter() - start < 1.0
