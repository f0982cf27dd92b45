"""How an adapter reaches vLLM: as it is where vLLM serves its modules, else merged."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedConfig

from dcsft_harness.errors import HarnessError, refusal

from .adapters import attach, read_config
from .batching import Features
from .checkpoint import skeleton
from .merging import merge
from .settings import ModelSettings
from .vllm_engine import SERVED_RANKS

_LOG = logging.getLogger(__name__)

# Ways to begin a LoRA that leave the base's weights as they are.
_PLAIN_STARTS = (True, False, None, "gaussian")

_OPTIONS = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "alora_invocation_tokens",
)
"""Options of PEFT's LoRA that one version of vLLM or another ignores or refuses."""


class Adapted:
    """A base with or without an adapter, as vLLM can load it.

    Attributes:
        rank: of the adapter, where it goes on as a LoRA request; else None.
    """

    def __init__(self, settings: ModelSettings, config: PreTrainedConfig, always_merge: bool) -> None:
        """Looks at the adapter; nothing is merged yet.

        Args:
            settings: the base, and its adapter if it has one.
            config: the base's.
            always_merge: whether to merge what could be served.

        Raises:
            HarnessError: the adapter does not fit the base.
        """
        self._settings = settings
        served = settings.adapter is not None and not always_merge
        self.rank = served_rank(settings, config) if served else None
        self._merged: tempfile.TemporaryDirectory[str] | None = None

    def checkpoint(self, features: Callable[[], Features]) -> str:
        """The base, or its merge with the adapter, which is made on first use.

        Args:
            features: gives what the processor makes of a prompt, which the merge is compared on.

        Raises:
            HarnessError: the merge does not do what the adapter does.
        """
        settings = self._settings
        if settings.adapter is None or self.rank is not None:
            return settings.pretrained
        if self._merged is None:
            self._merged = self._merge(settings.adapter, features())
        return self._merged.name

    def _merge(self, adapter: str, features: Features) -> "tempfile.TemporaryDirectory[str]":
        """A folder of its own, which the end of the process removes at the latest."""
        settings = self._settings
        folder = tempfile.TemporaryDirectory(prefix="dcsft_merged_")
        try:
            parity = merge(
                settings.pretrained, adapter, Path(folder.name), [features], settings.trust_remote_code
            )
        except BaseException as error:
            folder.cleanup()
            if (reason := refusal(error)) is None:
                raise
            raise HarnessError(
                f"the merge of adapter {adapter} cannot be written to {folder.name} ({os.strerror(reason)})",
                "Make room there, or set TMPDIR to a folder with room for the whole model",
            ) from error
        _LOG.info("merged %s; logits differ by %.2g standard deviations", adapter, parity.in_deviations)
        return folder

    def remove(self) -> None:
        """Removes the merged checkpoint, if there is one."""
        if self._merged is not None:
            self._merged.cleanup()
            self._merged = None


def served_rank(settings: ModelSettings, config: PreTrainedConfig) -> int | None:
    """The rank with which vLLM can serve `settings.adapter` as a LoRA request; None where it must be merged.

    vLLM serves plain LoRA on linear layers of the language model. It ignores some of PEFT's
    options and leaves out modules elsewhere, the vision tower's among them, so whatever is not
    certain is merged.

    Raises:
        HarnessError: the adapter does not fit the base.
    """
    assert settings.adapter is not None
    adapter = read_config(settings.adapter, settings.pretrained)
    if not _plain(adapter):
        return None
    model = skeleton(config, settings.trust_remote_code)
    attach(model, settings.adapter, settings.pretrained)
    decoder = model.get_decoder()
    if decoder is model:
        return None
    served = {
        id(module)
        for module in decoder.modules()
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), torch.nn.Linear)
    }
    adapted = {id(module) for module in model.modules() if isinstance(module, LoraLayer)}
    return int(adapter.r) if adapted <= served else None


def _plain(adapter: PeftConfig) -> bool:
    """Whether an adapter is LoRA without any of its options."""
    if str(getattr(adapter.peft_type, "value", adapter.peft_type)) != "LORA" or adapter.r > SERVED_RANKS[-1]:
        return False
    return (
        not any(getattr(adapter, name, None) for name in _OPTIONS)
        and adapter.bias == "none"
        and adapter.init_lora_weights in _PLAIN_STARTS
    )
