"""The settings of pre-training, checked before torch is imported."""

from typing import Literal

from pydantic import field_validator

from dcsft_harness.data.digits.curriculum import FAMILIES
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.settings import Settings, option


class PretrainConfig(Settings):
    """How a base checkpoint is made; the defaults are the embedded one's."""

    steps: int = option(8000, "Optimizer steps; the curriculum spreads over them.", ge=1)
    batch_size: int = option(32, "Examples per step.", ge=1)
    learning_rate: float = option(3e-3, "The highest learning rate.", gt=0, lt=1)
    seed: int = option(0, "Decides weights and examples.", ge=0)
    architecture: Literal["qwen2_5_vl", "qwen3_vl"] = option("qwen2_5_vl", "A transformers model type.")
    families: tuple[str, ...] = option(
        FAMILIES, f"What is learned, comma-separated: {','.join(FAMILIES)}.", metavar="NAME,..."
    )

    @field_validator("families")
    @classmethod
    def _in_order(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in FAMILIES:
                raise unknown_name("family", name, FAMILIES)
        if not given:
            raise HarnessError("--families names no family", f"Choose from {', '.join(FAMILIES)}")
        if len(set(given)) != len(given):
            raise HarnessError(f"--families {','.join(given)} names a family twice", "Name each once")
        return tuple(name for name in FAMILIES if name in given)
