"""The arguments of `dcsft_hf`, read and checked before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import cast, get_args

from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.errors import HarnessError, unknown_name

from .coercion import as_bool, as_dtype, as_float, as_int, as_text, is_unset, whole_from

AUTO_BATCH_SIZE = 64
"""Items at once where memory alone should decide: more gain no speed, and a batch is what a crash loses."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

GENERATION_CONFIGS = ("neutral", "checkpoint")
"""Where settings come from that a request leaves unset."""


@dataclass(frozen=True)
class ModelSettings:
    """What to load and how to run it.

    Attributes:
        pretrained: a checkpoint folder or hub name.
        adapter: a PEFT folder to put on top, unmerged.
        device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is any.
        dtype: weights' type, one of `coercion.DTYPES`; None is the checkpoint's own on CUDA and float32
            on the CPU, where half precision is slow or missing.
        attn_implementation: one of `ATTENTION` or a kernels-hub name; None leaves the choice to
            transformers.
        batch_size: most items (not rows) generated at once; "auto" is `AUTO_BATCH_SIZE`. Batches
            are smaller where memory asks for it.
        memory_gb: what a batch may take beside the weights, in 10^9 bytes; None looks what is free.
        min_pixels: least area of a resized image, in pixels; None keeps the processor's.
        max_pixels: largest area of a resized image, in pixels; None keeps the processor's.
        box_space: the coordinates that it writes boxes in, one of `conventions.BoxSpace`; None is its
            family's, or what its manifest says that it was taught. A checkpoint that was trained elsewhere,
            on boxes in another space, needs it.
        trust_remote_code: whether code inside the checkpoint may run.
        generation_config: one of `GENERATION_CONFIGS`: "checkpoint" applies the penalties and sampling
            settings of the checkpoint's `generation_config.json` to requests that leave them unset.
        seed: seed of sampled responses; where lmms-eval opens the model, its `--seed` if unset.
        system_prompt: text, or a file of it, put before every chat that has no system message.
    """

    pretrained: str
    adapter: str | None = None
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    batch_size: int = 1
    memory_gb: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    box_space: BoxSpace | None = None
    trust_remote_code: bool = False
    generation_config: str = "neutral"
    seed: int = 0
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        """Checks what a single field cannot.

        Raises:
            HarnessError: for contradictory pixel limits.
        """
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise HarnessError(
                f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}", "Swap them"
            )

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> "ModelSettings":
        """Reads model arguments as lmms-eval hands them over, text and unset values included.

        Raises:
            HarnessError: for an unknown argument, a missing `pretrained` or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise unknown_name("model argument", name, known)
        values = {name: _READERS[name](name, value) for name, value in given.items() if not is_unset(value)}
        if "pretrained" not in values:
            raise HarnessError("model argument pretrained is missing", "Give pretrained=CHECKPOINT_FOLDER")
        return cls(**values)  # type: ignore[arg-type]


def _attention(name: str, value: object) -> str:
    # A name with a slash is a repository of compiled kernels, which transformers resolves.
    if str(value) not in ATTENTION and "/" not in str(value):
        raise unknown_name("attn_implementation", str(value), ATTENTION)
    return str(value)


def as_generation_config(name: str, value: object) -> str:
    """One of `GENERATION_CONFIGS`.

    Raises:
        HarnessError: it is something else.
    """
    if str(value) not in GENERATION_CONFIGS:
        raise unknown_name(name, str(value), GENERATION_CONFIGS)
    return str(value)


def as_box_space(name: str, value: object) -> BoxSpace:
    """One of `conventions.BoxSpace`.

    Raises:
        HarnessError: it is something else.
    """
    if str(value) not in get_args(BoxSpace):
        raise unknown_name(name, str(value), get_args(BoxSpace))
    return cast(BoxSpace, str(value))


_READERS: dict[str, Callable[[str, object], object]] = {
    "pretrained": as_text,
    "adapter": as_text,
    "device": as_text,
    "dtype": as_dtype,
    "attn_implementation": _attention,
    "batch_size": lambda name, value: AUTO_BATCH_SIZE if value == "auto" else as_int(name, value, 1),
    "memory_gb": lambda name, value: as_float(name, value, 0.0),
    "min_pixels": whole_from(1),
    "max_pixels": whole_from(1),
    "box_space": as_box_space,
    "trust_remote_code": as_bool,
    "generation_config": as_generation_config,
    "seed": whole_from(0),
    "system_prompt": as_text,
}
