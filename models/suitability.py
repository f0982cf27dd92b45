"""Whether a model decodes behind shared prompts as it does by itself: tried, not looked up."""

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from .packing import out_of_memory
from .prefill import UnsuitedModelError, prefill
from .shared_decoding import Decoder

# Largest difference of two logits, in standard deviations of the logits. Rounding stays well
# below; a missing position offset, window or cap is of the order of one.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_HALF_TOLERANCE = 0.3


@torch.inference_mode()
def objection(model: PreTrainedModel, batch: dict[str, Tensor]) -> str | None:
    """Why the samples of an item cannot share its prompt in this model; None where they can.

    Two tokens are decoded both ways and their logits compared.

    Args:
        model: a transformers model, in evaluation mode.
        batch: inputs of one prompt, on the model's device.
    """
    if not model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    wanted, tokens = _by_generate(model, batch)
    try:
        decoder = Decoder(model)
        decoder.admit(prefill(model, batch), [2])
        with decoder.attending():
            found = decoder.step(tokens.expand(2))
    except UnsuitedModelError as error:
        return str(error)
    # What models run into that prepare their inputs or attend in a way of their own.
    except (AttributeError, TypeError, LookupError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    difference = float((found.float() - wanted).abs().max() / wanted.std())
    if difference <= _TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
        return None
    return f"its logits would change by {difference:.2g} standard deviations"


def _by_generate(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The likeliest first token but an end, `(1,)`, and the logits behind it, float32 `(1, vocabulary)`."""
    config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=2, min_new_tokens=2)
    config.update(output_logits=True, return_dict_in_generate=True)
    output = model.generate(**batch, generation_config=config)
    return output.logits[1].float(), output.sequences[:, -2]
