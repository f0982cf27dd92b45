"""Whether a model decodes batches, and behind shared prompts, as it does one prompt by itself: tried."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from dcsft_harness.errors import HarnessError

from .packing import out_of_memory
from .prefill import UnsuitedModelError, prefill
from .shared_decoding import Decoder

# Largest difference of two logits, in standard deviations of the logits. Rounding stays well
# below; a missing position offset, window or cap is of the order of one.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_HALF_TOLERANCE = 0.3


# What models run into that prepare their inputs or attend in a way of their own.
_FAILURES = (AttributeError, TypeError, LookupError, ValueError, RuntimeError)


class Alone(NamedTuple):
    """What a model makes of one prompt by itself.

    Attributes:
        token: int64 `(1,)`, the likeliest first token but an end.
        logits: float32 `(2, vocabulary)`, for the first token and for the one behind it.
    """

    token: Tensor
    logits: Tensor


@torch.inference_mode()
def alone(model: PreTrainedModel, batch: dict[str, Tensor]) -> Alone | str:
    """Two tokens by `generate`; why there are none of a model that cannot take the prompt.

    Args:
        model: a transformers model, in evaluation mode.
        batch: inputs of one prompt, on the model's device.

    Raises:
        RuntimeError: it is out of memory.
    """
    try:
        tokens, logits = _by_generate(model, batch)
    except _FAILURES as error:
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    return Alone(tokens, logits[:, 0])


@torch.inference_mode()
def apart(
    model: PreTrainedModel, together: Callable[[], dict[str, Tensor]], singly: Sequence[Alone]
) -> str | None:
    """Why prompts cannot go through `generate` together; None where they can.

    Args:
        model: a transformers model, in evaluation mode.
        together: makes inputs of all prompts as one batch, on the model's device.
        singly: what the model makes of each of them by itself.

    Raises:
        RuntimeError: it is out of memory.
    """
    try:
        tokens, logits = _by_generate(model, together())
    except _FAILURES as error:
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    for row, one in enumerate(singly):
        # Behind another first token, as where two are equally likely, logits are others.
        steps = 2 if int(tokens[row]) == int(one.token) else 1
        if (reason := _difference(model, logits[:steps, row], one.logits[:steps])) is not None:
            return f"{reason} in a batch"
    return None


@torch.inference_mode()
def objection(
    model: PreTrainedModel, batch: dict[str, Tensor], singly: Sequence[Alone] | None = None
) -> str | None:
    """Why the samples of items cannot share their prompts in this model; None where they can.

    Two tokens are decoded both ways and their logits compared.

    Args:
        model: a transformers model, in evaluation mode.
        batch: inputs of one prompt or several, on the model's device.
        singly: what the model makes of each by itself; None computes it, of one.

    Raises:
        HarnessError: the model does not take the prompt at all.
        RuntimeError: it is out of memory.
    """
    if not model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    if singly is None:
        made = alone(model, batch)
        if isinstance(made, str):
            raise HarnessError(
                f"the {type(model).__name__} cannot answer a prompt with a picture ({made})",
                "Check that its config.json, its processor's files and its weights are of one checkpoint",
            )
        singly = [made]
    try:
        decoder = Decoder(model)
        decoder.admit(prefill(model, batch), [2] * len(singly))
        with decoder.attending():
            found = decoder.step(torch.cat([one.token.expand(2) for one in singly]))
    except UnsuitedModelError as error:
        return str(error)
    except _FAILURES as error:
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    for row, one in enumerate(singly):
        if (reason := _difference(model, found[2 * row : 2 * row + 2], one.logits[1:])) is not None:
            return reason
    return None


def _difference(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> str | None:
    """How far logits are apart, if by more than rounding."""
    difference = float((found.float() - wanted).abs().max() / wanted.std())
    if difference <= _TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
        return None
    return f"its logits would change by {difference:.2g} standard deviations"


def _by_generate(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The likeliest first tokens but an end, `(rows,)`, and both steps' logits, `(2, rows, vocabulary)`."""
    config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=2, min_new_tokens=2)
    config.update(output_logits=True, return_dict_in_generate=True)
    output = model.generate(**batch, generation_config=config)
    return output.sequences[:, -2], torch.stack([step.float() for step in output.logits[:2]])
