"""A base and its adapter as one checkpoint on disk, compared with the two of them on a real input."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from dcsft_harness.errors import HarnessError

from .adapters import wrap
from .batching import Features

_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_HALF_TOLERANCE = 0.3
"""Largest difference of two logits, in standard deviations of the logits: rounding of merged weights
stays well below, while a module that was left out or merged twice is of the order of one."""


def merge(pretrained: str, adapter: str, folder: Path, features: Features, trust_remote_code: bool) -> float:
    """Writes a checkpoint that does by itself what the base does with the adapter.

    The weights are merged on the CPU in the type that the base is stored in, and written as
    safetensors with the processor, the tokenizer and the chat template beside them. They are then
    read again, so that what is compared is what an engine will load.

    Args:
        pretrained: the base.
        adapter: the PEFT folder.
        folder: an empty folder.
        features: what the processor made of a prompt.
        trust_remote_code: whether code inside the base may run.

    Returns:
        The largest difference of a logit on that prompt, in standard deviations of the logits.

    Raises:
        HarnessError: the merged model answers otherwise, or the folder cannot be written.
    """
    base = _load(pretrained, trust_remote_code)
    peft_model = wrap(base, adapter, pretrained)
    wanted = _logits(base, features)
    try:
        peft_model.merge_and_unload(safe_merge=True).save_pretrained(folder)
        AutoProcessor.from_pretrained(pretrained, trust_remote_code=trust_remote_code).save_pretrained(folder)
    except OSError as error:
        raise HarnessError(
            f"the merge of adapter {adapter} cannot be written to {folder} ({error.strerror or error})",
            "Make room there, or set TMPDIR to a folder with room for the whole model",
        ) from error
    except ValueError as error:  # what safe_merge calls weights that are not finite
        raise _unlike(adapter, pretrained, str(error)) from error
    del base, peft_model  # before the second model: one of them may fill half the memory
    merged = _load(str(folder), trust_remote_code)
    difference = float((_logits(merged, features) - wanted).abs().max() / wanted.std())
    if not difference <= _TOLERANCE.get(merged.dtype, _HALF_TOLERANCE):
        raise _unlike(adapter, pretrained, f"logits change by {difference:.2g} standard deviations")
    return difference


def _load(checkpoint: str, trust_remote_code: bool) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype="auto", trust_remote_code=trust_remote_code
    ).eval()


@torch.inference_mode()
def _logits(model: PreTrainedModel, features: Features) -> Tensor:
    """Logits of all positions of one prompt, float32."""
    inputs = {
        name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in features.items()
    }
    logits: Tensor = model(**inputs).logits
    return logits[0].float()


def _unlike(adapter: str, pretrained: str, why: str) -> HarnessError:
    return HarnessError(
        f"adapter {adapter} cannot be merged into {pretrained}: {why}",
        "Use dcsft_hf, which runs it unmerged",
    )
