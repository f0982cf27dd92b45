"""Model and generation arguments from lmms-eval: each one is applied or refused by name.

lmms-eval passes a free dictionary with each request (`generation_kwargs` of the task, `--gen_kwargs` on the
command line). Models that ignore unknown entries publish scores under settings that were never used.
`GenerationArguments` applies every entry or raises.
"""

import logging
import math
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Self, get_args

from dcsft_harness import reading
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.data import digits
from dcsft_harness.errors import HarnessError, unknown_name

# lmms-eval passes values as they are: numbers and booleans may arrive as text.

DTYPES = ("auto", "float32", "bfloat16", "float16")
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


def is_unset(value: object) -> bool:
    """Whether a value means "not given": None, or its text form on a command line."""
    return value is None or (isinstance(value, str) and value.strip().lower() in {"none", "null", ""})


def as_int(name: str, value: object, low: int) -> int:
    """A whole number of at least `low`; errors, for booleans too, call it `name`."""
    number = as_float(name, value, float(low))
    if number != int(number):
        raise HarnessError(f"{name}={value!r} is not a whole number", f"Give an integer of at least {low}")
    return int(number)


def as_float(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number in `[low, high]`; errors, for booleans too, call it `name`."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not (low <= number <= high) or math.isinf(number):
        bound = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise HarnessError(f"{name}={value!r} is out of range or not a number", f"Give a number {bound}")
    return number


def as_bool(name: str, value: object) -> bool:
    """True or False, also as text in any case; errors call it `name`."""
    text = str(value).strip().lower()
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise HarnessError(f"{name}={value!r} is neither true nor false", "Give True or False")


def as_text(name: str, value: object) -> str:
    """Any value as text."""
    return str(value)


def as_dtype(name: str, value: object) -> str:
    """One of `DTYPES`; the error for anything else names near matches."""
    if str(value) not in DTYPES:
        raise unknown_name(name, str(value), DTYPES)
    return str(value)


def whole_from(low: int) -> Callable[[str, object], int]:
    """`as_int` with this minimum."""
    return lambda name, value: as_int(name, value, low)


# The arguments of `dcsft_hf` and `dcsft_vllm`, read and checked before anything is loaded.

AUTO_BATCH_SIZE = 64
"""The `auto` batch size where memory alone should decide: more is no faster, and a crash loses a batch."""
BATCH_SIZE = 256
"""The default batch size of vLLM, which schedules items itself; a crash loses a batch."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

GENERATION_CONFIGS = ("neutral", "checkpoint")
"""The source of settings that a request leaves unset."""


Reader = Callable[[str, object], object]
"""Reads an argument's text, by its name in errors."""


def _argument(reader: Reader, default: object = MISSING, **more: Any) -> Any:  # noqa: ANN401 - of dataclasses.field
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

    pretrained: str = _argument(as_text)  # a checkpoint folder or hub name
    adapter: str | None = _argument(as_text, None)  # a PEFT folder to put on top
    # Weights' type, one of `DTYPES`; None is the checkpoint's own on CUDA and float32 on the CPU,
    # where half precision is slow or missing, and vLLM's "auto".
    dtype: str | None = _argument(as_dtype, None)
    # Least and largest area of a resized image, in pixels; None keeps the processor's.
    min_pixels: int | None = _argument(whole_from(1), None)
    max_pixels: int | None = _argument(whole_from(1), None)
    # The coordinates that it writes boxes in, one of `conventions.BoxSpace`; None uses those in its manifest
    # or its family's. Set it for a checkpoint that was trained elsewhere on boxes in another space.
    box_space: BoxSpace | None = _argument(_one_of(get_args(BoxSpace)), None)
    trust_remote_code: bool = _argument(as_bool, False)  # whether code inside the checkpoint may run
    # "checkpoint" applies the penalties and sampling settings of the checkpoint's `generation_config.json` to
    # requests that leave them unset.
    generation_config: str = _argument(_one_of(GENERATION_CONFIGS), "neutral")
    # Seed of sampled responses; if unset, lmms-eval's `--seed` when lmms-eval opens the model.
    seed: int = _argument(whole_from(0), 0)
    # Text, or a file of it, put before every chat that has no system message.
    system_prompt: str | None = _argument(as_text, None)
    # Further arguments of the chat template, such as {"enable_thinking": false}; None takes those that the
    # adapter or checkpoint was trained with.
    chat_template_kwargs: Mapping[str, Any] | None = _argument(reading.json_option, None, hash=False)

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
            remedy = "Name a checkpoint by --model CKPT, or by pretrained=CKPT among the model arguments"
            if "base_url" in readers:
                remedy += ", with base_url too: prompts and box coordinates need it"
            raise HarnessError("model argument pretrained is missing", remedy)
        if values["pretrained"] == digits.DIGITS:  # as given to lmms-eval; our commands have resolved it
            values["pretrained"] = digits.resolve(digits.DIGITS)
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelSettings(_Settings):
    """What `dcsft_hf` loads and how it runs it."""

    device: str | None = _argument(
        as_text, None
    )  # "cpu", "cuda" or "cuda:N"; None takes CUDA where there is any
    # One of `ATTENTION` or a kernels-hub name; None leaves the choice to transformers.
    attn_implementation: str | None = _argument(_attention, None)
    # Most items (not rows) generated at once; "auto" is `AUTO_BATCH_SIZE`. Batches are smaller where memory
    # asks for it.
    batch_size: int = _argument(_batch_size(AUTO_BATCH_SIZE), 1)
    # Memory for a batch besides the weights, in 10^9 bytes; None uses what is free.
    memory_gb: float | None = _argument(_from_zero, None)


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
    merge_adapter: bool = _argument(as_bool, False)
    # Most items submitted at once; "auto" is `BATCH_SIZE`. With `base_url`, also the most concurrent
    # requests.
    batch_size: int = _argument(_batch_size(BATCH_SIZE), BATCH_SIZE)
    # Most tokens of prompt and response; None is the longest prompt of the first request list and its
    # response.
    max_model_len: int | None = _argument(whole_from(1), None)
    # Most images of a prompt; None is the most in the first request list.
    max_images: int | None = _argument(whole_from(0), None)
    # Share of the device's memory, in (0, 1]; None is vLLM's default.
    gpu_memory_utilization: float | None = _argument(_share, None)
    # Devices that share the weights, of each process.
    tensor_parallel_size: int | None = _argument(whole_from(1), None)
    # Most responses decoded at once; None is vLLM's default.
    max_num_seqs: int | None = _argument(whole_from(1), None)
    # Whether to skip compilation, which takes minutes and pays off later.
    enforce_eager: bool = _argument(as_bool, False)
    # The API of a running `vllm serve`, such as `http://localhost:8000/v1`. Its key, if it has one, is read
    # from OPENAI_API_KEY, because arguments are written into manifests. A server on a CPU needs
    # `--no-enable-chunked-prefill`; without it the first long batch crashes it.
    base_url: str | None = _argument(as_text, None)
    # The server's name for the model; None uses the only model it serves.
    served_model_name: str | None = _argument(as_text, None)
    # The number of tries of a request while the server cannot be reached or is overloaded.
    attempts: int = _argument(whole_from(1), 8)
    timeout: float = _argument(
        _from_zero, 600.0
    )  # seconds until a request without an answer counts as failed

    def __post_init__(self) -> None:
        """Refuses contradictory pixel limits, and an engine's arguments beside a server."""
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


# Generation arguments: every one that a task can set is applied here or refused by name.

_LOG = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024
"""Token limit of a response where the task sets none: no value would be neutral."""

# lmms-eval writes this into every task whose YAML sets no `until`. Applied literally, it would end every
# chain of thought at its first blank line.
_FILLED_IN_UNTIL = ("\n\n",)

_NEUTRAL_ONLY: dict[str, object] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "n": 1,
    "best_of": 1,
    "early_stopping": False,
    "length_penalty": 1,
    "diversity_penalty": 0,
    "no_repeat_ngram_size": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "image_aspect_ratio": "original",
    "visual_cot": False,
}
"""Arguments accepted only at the value that changes nothing."""

CHECKPOINT_SETTINGS = (
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_new_tokens",
    "max_new_tokens",
)
"""Settings that `generation_config=checkpoint` reads from a checkpoint's generation config."""
_OF_SAMPLING = ("top_p", "top_k", "min_p")
_WITHOUT_EFFECT = frozenset(
    (
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length"),
        *("transformers_version", "use_cache", "cache_implementation", "cache_config", "prefill_chunk_size"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "return_legacy_cache", "compile_config", "disable_compile"),
        *("low_memory", "renormalize_logits", "is_assistant", "num_assistant_tokens"),
        *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_early_exit", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    )
)
"""Settings of a generation config that are read elsewhere or change no token."""
_READERS: dict[str, Callable[[str, object], object]] = {
    "max_new_tokens": lambda name, value: as_int(name, value, 1),
    "min_new_tokens": lambda name, value: as_int(name, value, 0),
    "temperature": lambda name, value: as_float(name, value, 0.0),
    "do_sample": as_bool,
    "top_p": lambda name, value: as_float(name, value, 0.0, 1.0),
    "top_k": lambda name, value: max(as_int(name, value, -1), 0),
    "min_p": lambda name, value: as_float(name, value, 0.0, 1.0),
    "repetition_penalty": lambda name, value: _positive(name, value),
    "until": lambda name, value: _strings(name, value),
    "stop": lambda name, value: _strings(name, value),
    "seed": lambda name, value: as_int(name, value, 0),
    "skip_special_tokens": as_bool,
    "use_cache": as_bool,
}
_NAMES = {
    **{name: name for name in _READERS},
    **{"max_gen_toks": "max_new_tokens", "max_tokens": "max_new_tokens"},
    **{"stop_sequences": "stop", "stop_strings": "stop"},
}
"""Supported argument names, each with its canonical name."""


@dataclass(frozen=True)
class GenerationArguments:
    """How to generate responses to one request; hashable, so that equal requests share a batch."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS  # most tokens of a response, the end token included
    min_new_tokens: int = 0  # tokens before which no end token is allowed
    temperature: float = 0.0  # 0 is greedy decoding; above 0 responses are sampled at it
    top_p: float = 1.0  # nucleus mass kept, in `[0, 1]`; 1 keeps everything
    top_k: int = 0  # most likely tokens kept; 0 keeps everything
    min_p: float = 0.0  # least probability kept, relative to the likeliest token's; 0 keeps everything
    # divides the positive logits (multiplies the negative ones) of tokens already in prompt or response; 1
    # changes nothing
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()  # texts that end a response; neither they nor what follows is part of it
    seed: int | None = None  # seed of the draws that the task itself asks for; None uses the model's
    skip_special_tokens: bool = True  # whether special tokens are left out of the text
    use_cache: bool = True  # whether generation keeps keys and values between steps

    @property
    def greedy(self) -> bool:
        """Whether all responses to a prompt are identical."""
        return self.temperature == 0.0

    @classmethod
    def parse(
        cls, given: Mapping[str, object], task: str, checkpoint: Mapping[str, object] | None = None
    ) -> "GenerationArguments":
        r"""Reads a request's `generation_kwargs`.

        `do_sample: true` without a temperature samples at 1, a temperature above 0 without `do_sample`
        samples, and a temperature of 0 is greedy. lmms-eval fills in an `until` of exactly one blank line
        where a task sets none, so that value counts as unset, with a warning; a task that wants it writes
        `stop: ["\n\n"]`.

        Args:
            given: argument name to value; None and "None" mean unset.
            task: the task's name, for errors.
            checkpoint: settings for what the request leaves unset, from `checkpoint_settings`. Sampling
                settings apply to requests that sample; `do_sample` applies to requests that do not set it.

        Raises:
            HarnessError: for an unknown or unsupported argument, a value out of range, two
                names of one argument that disagree, or `do_sample: false` beside a temperature
                above 0.
        """
        try:
            values = _read(given)
            _sampling(values, checkpoint or {})
        except HarnessError as error:
            raise HarnessError(
                f"generation argument of task {task!r}: {error.problem}", error.remedy
            ) from None
        until = values.pop("until", ())
        if until == _FILLED_IN_UNTIL:
            _warn_about_filled_in_until(task)
            until = ()
        stop = (text for texts in (until, values.get("stop")) if isinstance(texts, tuple) for text in texts)
        values["stop"] = tuple(dict.fromkeys(stop))
        return cls(**values)  # type: ignore[arg-type]


def _read(given: Mapping[str, object]) -> dict[str, object]:
    """Argument name to checked value; synonyms are merged and unset values left out."""
    values: dict[str, object] = {}
    for name, value in given.items():
        if name in _NEUTRAL_ONLY:
            if not is_unset(value) and not _is_neutral(name, value):
                raise HarnessError(
                    f"{name}={value!r} is not supported by this model",
                    f"Override it with `--gen_kwargs {name}={_NEUTRAL_ONLY[name]}` if that is what you want",
                )
        elif name not in _NAMES:
            raise unknown_name("generation argument", name, _NAMES)
        elif not is_unset(value):
            known = _NAMES[name]
            read = _READERS[known](name, value)
            if values.setdefault(known, read) != read:
                raise HarnessError(
                    f"{name}={value!r} disagrees with {known}={values[known]!r}", "Give one of them"
                )
    return values


def _sampling(values: dict[str, object], checkpoint: Mapping[str, object]) -> None:
    """Folds `do_sample` into the temperature and fills unset values from the checkpoint's, in place."""
    do_sample = values.pop("do_sample", None)
    if do_sample is None and "temperature" not in values:
        do_sample = checkpoint.get("do_sample")
    if do_sample and "temperature" not in values:
        values["temperature"] = checkpoint.get("temperature", 1.0)
    samples = values.get("temperature", 0.0) != 0.0
    for name, value in checkpoint.items():
        if name not in ("do_sample", "temperature") and (samples or name not in _OF_SAMPLING):
            values.setdefault(name, value)
    if do_sample is False and values.get("temperature", 0.0) != 0.0:
        raise HarnessError(
            f"do_sample=False contradicts temperature={values['temperature']}",
            "Override one of them, as in `--gen_kwargs temperature=0` or `--gen_kwargs do_sample=True`",
        )


def checkpoint_settings(
    found: Mapping[str, object], known: Container[str], where: str, remedy: str
) -> dict[str, object]:
    """Reads the settings of a checkpoint's `generation_config.json`.

    Token ids, names unknown to transformers and settings that change no token (caches, outputs, speculative
    decoding) are left out. So is `max_length`: it yields to any limit on new tokens, and there is always one.

    Args:
        found: the settings that the file names.
        known: the names that transformers knows.
        where: the file, for errors.
        remedy: what to do about a setting that cannot be applied.

    Returns:
        Settings for `GenerationArguments.parse`, by its names.

    Raises:
        HarnessError: for a setting that these models cannot apply, or a value out of range.
    """
    settings: dict[str, object] = {}
    for name, value in found.items():
        if name in CHECKPOINT_SETTINGS:
            try:
                if not is_unset(value):
                    settings[name] = _READERS[name](name, value)
            except HarnessError as error:
                raise HarnessError(f"{where}: {error.problem}", remedy) from None
        elif name.startswith("_") or name not in known or name in _WITHOUT_EFFECT:
            continue
        elif value and not _is_neutral(name, value):
            raise HarnessError(f"{where} sets {name}={str(value)[:80]}, which cannot be applied", remedy)
    return settings


def _is_neutral(name: str, value: object) -> bool:
    neutral = _NEUTRAL_ONLY.get(name)
    return value == neutral or str(value).strip().lower() in {str(neutral).lower(), f"{neutral}.0"}


def _positive(name: str, value: object) -> float:
    number = as_float(name, value, 0.0)
    if number == 0.0:
        raise HarnessError(f"{name}={value!r} is not positive", "1 leaves the distribution as it is")
    return number


def _strings(name: str, value: object) -> tuple[str, ...]:
    """A string or a list of strings as a tuple, without empty and missing entries."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not all(
        entry is None or isinstance(entry, str) for entry in entries
    ):
        raise HarnessError(
            f"{name}={value!r} is not a text or a list of texts", 'Write it like ["</answer>"]'
        )
    return tuple(entry for entry in entries if entry)


@cache
def _warn_about_filled_in_until(task: str) -> None:
    """Warns once per task."""
    _LOG.warning(
        "Task %r: until=['\\n\\n'] is what lmms-eval fills in when a task sets none; it is not used as a "
        "stop text. A task that wants it sets stop: ['\\n\\n'].",
        task,
    )
