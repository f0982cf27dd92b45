"""The arguments of `dcsft_hf` and `dcsft_vllm`, read and checked before anything is loaded."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, get_args

from dcsft_harness import reading
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.errors import HarnessError, unknown_name

from .arguments import as_bool, as_dtype, as_float, as_int, as_text, is_unset, whole_from

AUTO_BATCH_SIZE = 64
"""The `auto` batch size where memory alone should decide: more is no faster, and a crash loses a batch."""
BATCH_SIZE = 256
"""The default batch size of vLLM, which schedules items itself; a crash loses a batch."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

GENERATION_CONFIGS = ("neutral", "checkpoint")
"""The source of settings that a request leaves unset."""


Reader = Callable[[str, object], object]
"""Reads an argument's text, by its name in errors."""


def _read(reader: Reader, default: object = MISSING, **more: Any) -> Any:  # noqa: ANN401 - of dataclasses.field
    """A field with the function that reads its text."""
    return field(default=default, metadata={"reader": reader}, **more)


def _one_of(known: Collection[str]) -> Reader:
    def read(name: str, value: object) -> str:
        if str(value) not in known:
            raise unknown_name(name, str(value), known)
        return str(value)

    return read


def _attention(name: str, value: object) -> object:
    # A name with a slash is a repository of compiled kernels, which transformers resolves.
    return str(value) if "/" in str(value) else _one_of(ATTENTION)(name, value)


def _share(name: str, value: object) -> float:
    if (share := as_float(name, value, 0.0, 1.0)) == 0.0:
        raise HarnessError(f"{name}={value!r} leaves no memory", "Give a number above 0, such as 0.9")
    return share


def _batch_size(auto: int) -> Reader:
    return lambda name, value: auto if value == "auto" else as_int(name, value, 1)


def _from_zero(name: str, value: object) -> float:
    return as_float(name, value, 0.0)


@dataclass(frozen=True)
class _Settings:
    """The arguments that both engines take."""

    pretrained: str = _read(as_text)  # a checkpoint folder or hub name
    adapter: str | None = _read(as_text, None)  # a PEFT folder to put on top
    # Weights' type, one of `arguments.DTYPES`; None is the checkpoint's own on CUDA and float32 on the CPU,
    # where half precision is slow or missing, and vLLM's "auto".
    dtype: str | None = _read(as_dtype, None)
    # Least and largest area of a resized image, in pixels; None keeps the processor's.
    min_pixels: int | None = _read(whole_from(1), None)
    max_pixels: int | None = _read(whole_from(1), None)
    # The coordinates that it writes boxes in, one of `conventions.BoxSpace`; None uses those in its manifest
    # or its family's. Set it for a checkpoint that was trained elsewhere on boxes in another space.
    box_space: BoxSpace | None = _read(_one_of(get_args(BoxSpace)), None)
    trust_remote_code: bool = _read(as_bool, False)  # whether code inside the checkpoint may run
    # "checkpoint" applies the penalties and sampling settings of the checkpoint's `generation_config.json` to
    # requests that leave them unset.
    generation_config: str = _read(_one_of(GENERATION_CONFIGS), "neutral")
    # Seed of sampled responses; if unset, lmms-eval's `--seed` when lmms-eval opens the model.
    seed: int = _read(whole_from(0), 0)
    # Text, or a file of it, put before every chat that has no system message.
    system_prompt: str | None = _read(as_text, None)
    # Further arguments of the chat template, such as {"enable_thinking": false}; None takes those that the
    # adapter or checkpoint was trained with.
    chat_template_kwargs: Mapping[str, Any] | None = _read(reading.json_option, None, hash=False)

    def __post_init__(self) -> None:
        """Refuses contradictory pixel limits."""
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
        readers: dict[str, Reader] = {one.name: one.metadata["reader"] for one in fields(cls)}
        for name in given:
            if name not in readers:
                raise unknown_name("model argument", name, readers)
        values = {name: readers[name](name, value) for name, value in given.items() if not is_unset(value)}
        if "pretrained" not in values:
            remedy = "Give pretrained=CHECKPOINT_FOLDER"
            if "base_url" in readers:
                remedy += ", with base_url too: prompts and box coordinates need it"
            raise HarnessError("model argument pretrained is missing", remedy)
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelSettings(_Settings):
    """What `dcsft_hf` loads and how it runs it."""

    device: str | None = _read(as_text, None)  # "cpu", "cuda" or "cuda:N"; None takes CUDA where there is any
    # One of `ATTENTION` or a kernels-hub name; None leaves the choice to transformers.
    attn_implementation: str | None = _read(_attention, None)
    # Most items (not rows) generated at once; "auto" is `AUTO_BATCH_SIZE`. Batches are smaller where memory
    # asks for it.
    batch_size: int = _read(_batch_size(AUTO_BATCH_SIZE), 1)
    # Memory for a batch besides the weights, in 10^9 bytes; None uses what is free.
    memory_gb: float | None = _read(_from_zero, None)


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

    With `base_url`, `pretrained` is what the server serves. `adapter` is sent as a LoRA request if vLLM can
    serve its modules, else merged.
    """

    # Whether to merge in any case: for checkpoints without LoRA support in vLLM, and because merged weights
    # are faster.
    merge_adapter: bool = _read(as_bool, False)
    # Most items submitted at once; "auto" is `BATCH_SIZE`. With `base_url`, also the most concurrent
    # requests.
    batch_size: int = _read(_batch_size(BATCH_SIZE), BATCH_SIZE)
    # Most tokens of prompt and response; None is the longest prompt of the first request list and its
    # response.
    max_model_len: int | None = _read(whole_from(1), None)
    # Most images of a prompt; None is the most in the first request list.
    max_images: int | None = _read(whole_from(0), None)
    # Share of the device's memory, in (0, 1]; None is vLLM's default.
    gpu_memory_utilization: float | None = _read(_share, None)
    # Devices that share the weights, of each process.
    tensor_parallel_size: int | None = _read(whole_from(1), None)
    # Most responses decoded at once; None is vLLM's default.
    max_num_seqs: int | None = _read(whole_from(1), None)
    # Whether to skip compilation, which takes minutes and pays off later.
    enforce_eager: bool = _read(as_bool, False)
    # The API of a running `vllm serve`, such as `http://localhost:8000/v1`. Its key, if it has one, is read
    # from OPENAI_API_KEY, because arguments are written into manifests. A server on a CPU needs
    # `--no-enable-chunked-prefill`; without it the first long batch crashes it.
    base_url: str | None = _read(as_text, None)
    # The server's name for the model; None uses the only model it serves.
    served_model_name: str | None = _read(as_text, None)
    # The number of tries of a request while the server cannot be reached or is overloaded.
    attempts: int = _read(whole_from(1), 8)
    timeout: float = _read(_from_zero, 600.0)  # seconds until a request without an answer counts as failed

    def __post_init__(self) -> None:
        """Refuses contradictory pixel limits, launches, and an engine's arguments beside a server."""
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
