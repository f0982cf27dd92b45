"""The settings of pre-training, checked before torch is imported."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dcsft_harness.digits.blank import ARCHITECTURES
from dcsft_harness.digits.curriculum import FAMILIES
from dcsft_harness.errors import HarnessError, unknown_name


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How a base checkpoint is made; the defaults are the embedded one's.

    Attributes:
        steps: optimizer steps; the curriculum spreads over them.
        batch_size: examples a step.
        learning_rate: the highest one; see `pretrain.optimizers`.
        seed: of weights and examples.
        architecture: one of `blank.ARCHITECTURES`.
        families: what is learned, of `curriculum.FAMILIES`; in their order, however it was given.
    """

    steps: int = 8000
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0
    architecture: str = ARCHITECTURES[0]
    families: Sequence[str] = FAMILIES

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            HarnessError: names the option and the value.
        """
        try:
            # YAML reads 3e-3 as text.
            object.__setattr__(self, "learning_rate", float(self.learning_rate))
        except (TypeError, ValueError) as error:
            problem = f"--learning-rate {self.learning_rate} is not a number"
            raise HarnessError(problem, "Give one such as 3e-3") from error
        for option, value, least in (
            ("--steps", self.steps, 1),
            ("--batch-size", self.batch_size, 1),
            ("--seed", self.seed, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise HarnessError(
                    f"{option} {value} is out of range", f"Give an integer of at least {least}"
                )
        if not 0 < self.learning_rate < 1:
            raise HarnessError(
                f"--learning-rate {self.learning_rate} is out of range", "Give a number above 0 and below 1"
            )
        if self.architecture not in ARCHITECTURES:
            raise unknown_name("architecture", str(self.architecture), ARCHITECTURES)
        self._order_families()

    def _order_families(self) -> None:
        given = [self.families] if isinstance(self.families, str) else list(self.families)
        for name in given:
            if name not in FAMILIES:
                raise unknown_name("family", str(name), FAMILIES)
        if not given:
            raise HarnessError("--families names no family", f"Choose from {', '.join(FAMILIES)}")
        if len(set(given)) != len(given):
            raise HarnessError(f"--families {','.join(given)} names a family twice", "Name each once")
        object.__setattr__(self, "families", tuple(name for name in FAMILIES if name in given))

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-serialisable values, as a manifest records them."""
        return asdict(self) | {"families": list(self.families)}
