"""Sampling by content: noise that is a function of what is sampled, not of when.

Adding an independent Gumbel draw to each logit and taking the largest is an exact draw from
their softmax (the Gumbel-max trick). Here the draw of a token is a hash of (seed, item,
sample index, step, token id), so batch size, order, process count and restarts cannot change
it. The hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): row key and step choose the
state of one stream, the token id is the position in it.
"""

import hashlib

import torch

_MASK = (1 << 64) - 1
_SIGN = 1 << 63


def _signed(value: int) -> int:
    """An unsigned 64-bit number as the int64 of the same bits."""
    value &= _MASK
    return value - (1 << 64) if value & _SIGN else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def row_key(seed: int, item_key: str, sample_index: int) -> int:
    """The int64 that a row's whole stream hangs on.

    Args:
        seed: the run's seed.
        item_key: what the item is, as text (its content hash).
        sample_index: which of the item's responses, from 0.
    """
    digest = hashlib.sha256(f"{seed}\0{sample_index}\0{item_key}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, elementwise on int64 (products wrap)."""
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def uniforms(row_keys: torch.Tensor, step: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Uniform draws in the open interval (0, 1), float64.

    Args:
        row_keys: int64, any shape that broadcasts with `tokens`.
        step: tokens that the row has generated before this one; a tensor is shaped as `row_keys`.
        tokens: int64 token ids.
    """
    offset = _signed((step + 1) * _GOLDEN) if isinstance(step, int) else (step + 1) * _GOLDEN
    state = _mix(row_keys + offset)
    bits = _mix(state + (tokens + 1) * _GOLDEN)
    # 52 bits and a half: with 53 the largest value would round to 1, whose Gumbel is infinite.
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def gumbels(row_keys: torch.Tensor, step: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel draws, float64, shaped as the arguments broadcast (see `uniforms`)."""
    return -torch.log(-torch.log(uniforms(row_keys, step, tokens)))


def noisy(
    scores: torch.Tensor, row_keys: torch.Tensor, step: int | torch.Tensor, sparse: bool
) -> torch.Tensor:
    """Scores with the noise of one step.

    Args:
        scores: float32 `(rows, vocabulary)`, minus infinity where a token is ruled out.
        row_keys: int64 `(rows,)`.
        step: tokens that the rows have generated before this one, also as int64 `(rows,)`.
        sparse: whether most tokens are ruled out; then noise is drawn for the others alone.

    Returns:
        float64 `(rows, vocabulary)` whose row-wise argmax is the draw.
    """
    summed = scores.double()
    if sparse:
        rows, tokens = torch.nonzero(torch.isfinite(scores), as_tuple=True)
        summed[rows, tokens] += gumbels(row_keys[rows], step if isinstance(step, int) else step[rows], tokens)
        return summed
    tokens = torch.arange(scores.shape[1], device=scores.device)
    return summed + gumbels(row_keys[:, None], step if isinstance(step, int) else step[:, None], tokens)


class KeyedGumbel:
    """The last logits processor of a sampled generation: makes greedy search draw."""

    def __init__(self, row_keys: list[int], prompt_length: int, sparse: bool) -> None:
        """Noise for one call of `generate`.

        Args:
            row_keys: one key per row of the batch, from `row_key`.
            prompt_length: columns of the batch before the first generated token.
            sparse: whether the processors before this one rule most tokens out; then noise is
                drawn for the remaining ones alone.
        """
        self._keys = torch.tensor(row_keys, dtype=torch.int64)
        self._prompt_length = prompt_length
        self._sparse = sparse

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Adds the noise of this step.

        Args:
            input_ids: int64 `(rows, columns)`, prompt and what is generated so far.
            scores: float32 `(rows, vocabulary)`, minus infinity where a token is ruled out.

        Returns:
            float64 `(rows, vocabulary)` whose row-wise argmax is the draw.
        """
        self._keys = self._keys.to(scores.device)
        return noisy(scores, self._keys, input_ids.shape[1] - self._prompt_length, self._sparse)
