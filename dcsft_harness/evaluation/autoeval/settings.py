"""What a checkpoint is scored on, and how."""

from dataclasses import dataclass
from typing import Any

from dcsft_harness import lmms
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.lmms.listing import members

SUITES = {
    "digits": "dcsft_digits_all",
    "classification": "dcsft_classification",
    "grounding": "dcsft_grounding",
    "reasoning": "dcsft_reasoning",
    "paper": "dcsft_paper",
}
"""Suite -> the group of its tasks."""
SUBJECT = ("pretrained", "adapter")
"""Model arguments that say what is scored."""
INDIFFERENT = (
    *("batch_size", "device", "memory_gb", "gpu_memory_utilization", "tensor_parallel_size"),
    *("max_num_seqs", "max_model_len", "attempts", "timeout"),
)
"""Model arguments that decide no response, so that tasks of one row may differ in them."""


def as_pairs(model_args: str) -> dict[str, str]:
    """Model arguments by name."""
    parts = (part.partition("=") for part in model_args.split(",") if part)
    return {name.strip(): value for name, _, value in parts}


def decisive(model_args: str) -> dict[str, str]:
    """Those of the model arguments that decide responses, beside what is scored."""
    return {k: v for k, v in as_pairs(model_args).items() if k not in (*SUBJECT, *INDIFFERENT)}


@dataclass(frozen=True)
class Settings:
    """How checkpoints are scored.

    Attributes:
        suite: a name of `SUITES`.
        model: an lmms-eval model.
        model_args: its arguments, but for those of `SUBJECT`.
        limit: only the first documents of each task; None takes all.
        group: the configuration that the row is one seed of.
    """

    suite: str
    model: str = "dcsft_hf"
    model_args: str = ""
    limit: int | None = None
    group: str | None = None

    @property
    def tasks(self) -> list[str]:
        """The suite's tasks."""
        return list(members(SUITES[self.suite]))

    def check(self) -> None:
        """Refuses what could not score, without loading anything.

        Raises:
            HarnessError: a name, value or model argument is unknown, out of range or not to be given here.
        """
        if self.suite not in SUITES:
            raise unknown_name("suite", self.suite, SUITES)
        if self.limit is not None and self.limit < 1:
            raise HarnessError(f"--limit {self.limit} is out of range", "It must be at least 1")
        lmms.check_model(self.model, self.model_args)
        for name in as_pairs(self.model_args):
            if name in SUBJECT:
                raise HarnessError(
                    f"--model-args names {name}, which CKPT says",
                    "Give the adapter or checkpoint as CKPT, and an adapter's base as --base",
                )

    def recorded(self, model_args: str) -> dict[str, Any]:
        """What a result's manifest says of it, with the whole of the model arguments."""
        named = {} if self.group is None else {"group": self.group}
        return {"model": self.model, "model_args": model_args, **named}

    def differing(self, config: dict[str, Any]) -> list[str]:
        """In what an earlier result was measured otherwise, as "option: then -> now"."""
        ours: dict[str, Any] = {"model": self.model, "limit": self.limit}
        theirs: dict[str, Any] = {name: config.get(name) for name in ours}
        ours |= decisive(self.model_args)
        theirs |= decisive(str(config.get("model_args", "")))
        names = dict.fromkeys([*theirs, *ours])
        return [
            f"{name}: {theirs.get(name, 'none')} -> {ours.get(name, 'none')}"
            for name in names
            if theirs.get(name) != ours.get(name)
        ]
