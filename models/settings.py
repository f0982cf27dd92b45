"""The arguments of `dcsft_hf` and `dcsft_vllm`, read and checked before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, cast, get_args

from dcsft_harness import reading
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.errors import HarnessError, unknown_name

from .arguments import as_bool, as_dtype, as_float, as_int, as_text, is_unset, whole_from

AUTO_BATCH_SIZE = 64
"""The `auto` batch size where memory alone should decide: more is no faster, and a crash loses a batch."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

GENERATION_CONFIGS = ("neutral", "checkpoint")
"""The source of settings that a request leaves unset."""


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


def _share(name: str, value: object) -> float:
    if (share := as_float(name, value, 0.0, 1.0)) == 0.0:
        raise HarnessError(f"{name}={value!r} leaves no memory", "Give a number above 0, such as 0.9")
    return share


Reader = Callable[[str, object], object]


@dataclass(frozen=True)
class _Settings:
    """The arguments that both engines take.

    Attributes:
        pretrained: a checkpoint folder or hub name.
        adapter: a PEFT folder to put on top.
        dtype: weights' type, one of `arguments.DTYPES`.
        min_pixels: least area of a resized image, in pixels; None keeps the processor's.
        max_pixels: largest area of a resized image, in pixels; None keeps the processor's.
        box_space: the coordinates that it writes boxes in, one of `conventions.BoxSpace`; None uses those in
            its manifest or its family's. Set it for a checkpoint that was trained elsewhere on boxes in
            another space.
        trust_remote_code: whether code inside the checkpoint may run.
        generation_config: one of `GENERATION_CONFIGS`: "checkpoint" applies the penalties and sampling
            settings of the checkpoint's `generation_config.json` to requests that leave them unset.
        seed: seed of sampled responses; if unset, lmms-eval's `--seed` when lmms-eval opens the model.
        system_prompt: text, or a file of it, put before every chat that has no system message.
        chat_template_kwargs: further arguments of the chat template, such as {"enable_thinking": false}; None
            takes those that the adapter or checkpoint was trained with.
    """

    pretrained: str
    adapter: str | None = None
    dtype: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    box_space: BoxSpace | None = None
    trust_remote_code: bool = False
    generation_config: str = "neutral"
    seed: int = 0
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)

    READERS: ClassVar[Mapping[str, Reader]] = {
        "pretrained": as_text,
        "adapter": as_text,
        "dtype": as_dtype,
        "min_pixels": whole_from(1),
        "max_pixels": whole_from(1),
        "box_space": as_box_space,
        "trust_remote_code": as_bool,
        "generation_config": as_generation_config,
        "seed": whole_from(0),
        "system_prompt": as_text,
        "chat_template_kwargs": reading.json_option,
    }
    """Argument -> the function that reads its text."""

    def __post_init__(self) -> None:
        """Checks combinations of fields.

        Raises:
            HarnessError: for contradictory pixel limits.
        """
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise HarnessError(
                f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}", "Swap them"
            )

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Self:
        """Reads model arguments as lmms-eval passes them, as text and with unset values.

        Raises:
            HarnessError: for an unknown argument, a missing `pretrained` or a value out of range.
        """
        for name in given:
            if name not in cls.READERS:
                raise unknown_name("model argument", name, cls.READERS)
        values = {
            name: cls.READERS[name](name, value) for name, value in given.items() if not is_unset(value)
        }
        if "pretrained" not in values:
            remedy = "Give pretrained=CHECKPOINT_FOLDER"
            if "base_url" in cls.READERS:
                remedy += ", with base_url too: prompts and box coordinates need it"
            raise HarnessError("model argument pretrained is missing", remedy)
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelSettings(_Settings):
    """What `dcsft_hf` loads and how it runs it.

    Attributes:
        dtype: None is the checkpoint's own on CUDA and float32 on the CPU, where half precision is slow or
            missing.
        device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is any.
        attn_implementation: one of `ATTENTION` or a kernels-hub name; None leaves the choice to
            transformers.
        batch_size: most items (not rows) generated at once; "auto" is `AUTO_BATCH_SIZE`. Batches
            are smaller where memory asks for it.
        memory_gb: memory for a batch besides the weights, in 10^9 bytes; None uses what is free.
    """

    device: str | None = None
    attn_implementation: str | None = None
    batch_size: int = 1
    memory_gb: float | None = None

    READERS: ClassVar[Mapping[str, Reader]] = {
        **_Settings.READERS,
        "device": as_text,
        "attn_implementation": _attention,
        "batch_size": lambda name, value: AUTO_BATCH_SIZE if value == "auto" else as_int(name, value, 1),
        "memory_gb": lambda name, value: as_float(name, value, 0.0),
    }


BATCH_SIZE = 256
"""The default batch size: vLLM schedules items itself, and a crash loses a batch."""
_LOCAL = (
    "adapter",
    "merge_adapter",
    "dtype",
    "max_model_len",
    "max_images",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "max_num_seqs",
    "enforce_eager",
)
"""Arguments that only the server's own command line can set."""
_REMOTE = ("served_model_name", "attempts", "timeout")


@dataclass(frozen=True)
class VLLMSettings(_Settings):
    """What `dcsft_vllm` serves, and how.

    Attributes:
        pretrained: with `base_url`, what the server serves.
        adapter: sent as a LoRA request if vLLM can serve its modules, else merged.
        dtype: None is vLLM's "auto".
        merge_adapter: whether to merge in any case: for checkpoints without LoRA support in vLLM, and because
            merged weights are faster.
        batch_size: most items submitted at once; "auto" is `BATCH_SIZE`. With `base_url`, also the most
            concurrent requests.
        max_model_len: most tokens of prompt and response; None is the longest prompt of the first
            request list and its response.
        max_images: most images of a prompt; None is the most in the first request list.
        gpu_memory_utilization: share of the device's memory, in (0, 1]; None is vLLM's default.
        tensor_parallel_size: devices that share the weights; in a launch, of each process.
        max_num_seqs: most responses decoded at once; None is vLLM's default.
        enforce_eager: whether to skip compilation, which takes minutes and pays off later.
        base_url: the API of a running `vllm serve`, such as `http://localhost:8000/v1`. Its key, if it has
            one, is read from OPENAI_API_KEY, because arguments are written into manifests. A server on a CPU
            needs `--no-enable-chunked-prefill`; without it the first long batch crashes it.
        served_model_name: the server's name for the model; None uses the only model it serves.
        attempts: the number of tries of a request while the server cannot be reached or is overloaded.
        timeout: seconds until a request without an answer counts as failed.
    """

    merge_adapter: bool = False
    batch_size: int = BATCH_SIZE
    max_model_len: int | None = None
    max_images: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    base_url: str | None = None
    served_model_name: str | None = None
    attempts: int = 8
    timeout: float = 600.0

    READERS: ClassVar[Mapping[str, Reader]] = {
        **_Settings.READERS,
        "merge_adapter": as_bool,
        "batch_size": lambda name, value: BATCH_SIZE if value == "auto" else as_int(name, value, 1),
        "max_model_len": whole_from(1),
        "max_images": whole_from(0),
        "gpu_memory_utilization": _share,
        "tensor_parallel_size": whole_from(1),
        "max_num_seqs": whole_from(1),
        "enforce_eager": as_bool,
        "base_url": as_text,
        "served_model_name": as_text,
        "attempts": whole_from(1),
        "timeout": lambda name, value: as_float(name, value, 0.0),
    }

    def __post_init__(self) -> None:
        """Checks combinations of fields.

        Raises:
            HarnessError: for contradictory pixel limits, or arguments of an engine beside a server's
                address.
        """
        super().__post_init__()
        defaults = {one.name: one.default for one in fields(self)}
        for name in _LOCAL if self.base_url is not None else _REMOTE:
            if getattr(self, name) != defaults[name]:
                raise self._misplaced(name)

    def _misplaced(self, name: str) -> HarnessError:
        if self.base_url is None:
            return HarnessError(f"{name} belongs to a server, and there is no base_url", "Leave it out")
        remedy = "Give the option of the same meaning to `vllm serve`"
        if name == "adapter":
            remedy = (
                "Give `vllm serve` --enable-lora --lora-modules NAME=FOLDER, and served_model_name=NAME here"
            )
        return HarnessError(f"{name}: with base_url, the server decides", remedy)

    def checkpoint(self) -> ModelSettings:
        """The arguments of `checkpoint.open_config` and related functions."""
        return ModelSettings(**{one.name: getattr(self, one.name) for one in fields(_Settings)})

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Self:
        """Reads model arguments; see `_Settings.parse`."""
        # lmms-eval passes --device on to every model.
        if not is_unset(given.get("device")):
            raise HarnessError(
                f"device={given['device']!r}: vLLM runs on what it was built for",
                "Leave it out; CUDA_VISIBLE_DEVICES chooses among several GPUs",
            )
        return super().parse({name: value for name, value in given.items() if name != "device"})
