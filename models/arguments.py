"""Model and generation arguments from lmms-eval: each one is applied or refused by name.

lmms-eval passes a free dictionary with each request (`generation_kwargs` of the task, `--gen_kwargs` on the
command line). Models that ignore unknown entries publish scores under settings that were never used.
`GenerationArguments` applies every entry or raises.
"""

import logging
from collections.abc import Container, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dcsft_harness import reading
from dcsft_harness.coordinates import BoxSpace
from dcsft_harness.data import digits
from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.reading import is_unset
from dcsft_harness.settings import Settings, extra, option


class Arguments(Settings):
    """Arguments as lmms-eval passes them: numbers and booleans also as text, unset ones as "None".

    lmms-eval reads every value that looks like a number as one, also where text is meant (`pretrained=600`).
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)
    KIND = "model argument"

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Validates what is set; the error names the argument, the value and the allowed ones."""
        known = type(self).model_fields
        super().__init__(**{k: value for k, value in values.items() if k not in known or not is_unset(value)})

    @classmethod
    def said(cls, name: str, *value: object) -> str:
        """An argument, with its value if that is wrong, as errors quote it."""
        return f"{name}={cut(repr(value[0]))}" if value else f"{cls.KIND} {name}"


# The arguments of `dcsft_hf` and `dcsft_vllm`, read and checked before anything is loaded.

AUTO_BATCH_SIZE = 64
"""The `auto` batch size where memory alone should decide: more is no faster, and a crash loses a batch."""
BATCH_SIZE = 256
"""The default batch size of vLLM, which schedules items itself; a crash loses a batch."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def _attention(name: str) -> str:
    # A name with a slash is a repository of compiled kernels, which transformers resolves.
    if "/" not in name and name not in ATTENTION:
        raise unknown_name("attn_implementation", name, ATTENTION)
    return name


def _auto(size: int) -> BeforeValidator:
    return BeforeValidator(lambda value: size if value == "auto" else value)


class EngineArguments(Arguments):
    """The arguments that both engines take."""

    pretrained: str = option("", "A checkpoint folder or hub name; required.")
    adapter: str | None = option(None, "A PEFT adapter folder to apply.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = option(
        None,
        "Weights' type; None is the checkpoint's own on CUDA and float32 on the CPU, where half precision is "
        'slow or missing, and vLLM\'s "auto".',
    )
    min_pixels: int | None = option(
        None, "Minimum area of a resized image, in pixels; None keeps the processor's.", ge=1
    )
    max_pixels: int | None = option(
        None, "Maximum area of a resized image, in pixels; None keeps the processor's.", ge=1
    )
    box_space: BoxSpace | None = option(
        None,
        "The coordinate space of its boxes; None uses the one in its manifest or its family's. Set it "
        "for a checkpoint that was trained elsewhere on boxes in another space.",
    )
    trust_remote_code: bool = option(False, "Whether code inside the checkpoint may run.")
    generation_config: Literal["neutral", "checkpoint"] = option(
        "neutral",
        '"checkpoint" applies the penalties and sampling settings of the checkpoint\'s '
        "`generation_config.json` to requests that leave them unset.",
    )
    seed: int = option(
        0, "Seed of sampled responses; lmms-eval's `--seed` when lmms-eval opens the model.", ge=0
    )
    system_prompt: str | None = option(
        None, "Text, or a file of it, put before every chat that has no system message."
    )
    chat_template_kwargs: Mapping[str, Any] | None = option(
        None,
        'Further arguments of the chat template, such as {"enable_thinking": false}; None takes those that '
        "the adapter or checkpoint was trained with.",
    )

    @field_validator("pretrained")
    @classmethod
    def _opened(cls, given: str) -> str:
        """The folder of the embedded base, where lmms-eval passes its name; our commands have resolved it."""
        return digits.resolve(given) if given == digits.DIGITS else given

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _object(cls, given: object) -> dict[str, Any]:
        return reading.json_option("chat_template_kwargs", given)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.pretrained:
            remedy = "Name a checkpoint by --model CKPT, or by pretrained=CKPT among the model arguments"
            if "base_url" in type(self).model_fields:
                remedy += ", with base_url too: prompts and box coordinates need it"
            raise HarnessError("model argument pretrained is missing", remedy)
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise HarnessError(
                f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}", "Swap them"
            )
        return self


class ModelSettings(EngineArguments):
    """What `dcsft_hf` loads and how it runs it."""

    device: str | None = option(
        None, '"cpu", "cuda" or "cuda:N"; None takes CUDA where there is any.', decides=False
    )
    attn_implementation: Annotated[str, AfterValidator(_attention)] | None = option(
        None, "One of `ATTENTION` or a kernels-hub name; None leaves the choice to transformers."
    )
    batch_size: Annotated[int, _auto(AUTO_BATCH_SIZE)] = option(
        AUTO_BATCH_SIZE,
        'Most items (not rows) generated at once; "auto" is `AUTO_BATCH_SIZE`. Batches are smaller where '
        "memory asks for it.",
        ge=1,
        decides=False,
    )
    memory_gb: float | None = option(
        None,
        "Memory for a batch besides the weights, in 10^9 bytes; None uses what is free.",
        ge=0,
        decides=False,
    )


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


class VLLMSettings(EngineArguments):
    """What `dcsft_vllm` serves, and how.

    With `base_url`, `pretrained` is what the server serves. `adapter` is sent as a LoRA request if vLLM can
    serve its modules, else merged.
    """

    merge_adapter: bool = option(
        False,
        "Whether to merge in any case: for checkpoints without LoRA support in vLLM, and because merged "
        "weights are faster.",
    )
    batch_size: Annotated[int, _auto(BATCH_SIZE)] = option(
        BATCH_SIZE,
        'Most items submitted at once; "auto" is `BATCH_SIZE`. With `base_url`, also the most concurrent '
        "requests.",
        ge=1,
        decides=False,
    )
    max_model_len: int | None = option(
        None,
        "Most tokens of prompt and response; None is the longest prompt of the first request list and its "
        "response.",
        ge=1,
    )
    max_images: int | None = option(
        None, "Most images of a prompt; None is the most in the first request list.", ge=0
    )
    gpu_memory_utilization: float | None = option(
        None, "Share of the device's memory; None is vLLM's default.", gt=0, le=1, decides=False
    )
    tensor_parallel_size: int | None = option(None, "Devices that share the weights, of each process.", ge=1)
    max_num_seqs: int | None = option(
        None, "Most responses decoded at once; None is vLLM's default.", ge=1, decides=False
    )
    enforce_eager: bool = option(
        False, "Whether to skip compilation, which takes minutes and pays off later."
    )
    # A server's key, if it has one, is read from OPENAI_API_KEY, because arguments are written into
    # manifests.
    base_url: str | None = option(
        None,
        "The API of a running `vllm serve`, such as `http://localhost:8000/v1`. A server on a CPU needs "
        "`--no-enable-chunked-prefill`; without it the first long batch crashes it.",
    )
    served_model_name: str | None = option(
        None, "The server's name for the model; None uses the only model it serves."
    )
    attempts: int = option(
        8,
        "The number of tries of a request while the server cannot be reached or is overloaded.",
        ge=1,
        decides=False,
    )
    timeout: float = option(
        600.0, "Seconds until a request without an answer counts as failed.", ge=0, decides=False
    )
    device: str | None = option(None, "Refused: lmms-eval passes --device on to every model.", decides=False)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        """Refuses an engine's arguments beside a server, and a server's without one."""
        if self.device is not None:
            raise HarnessError(
                f"device={self.device!r}: vLLM runs on the device that it was built for",
                "Leave it out; CUDA_VISIBLE_DEVICES chooses among several GPUs",
            )
        for name in _LOCAL if self.base_url is not None else _REMOTE:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise self._misplaced(name)
        return self

    def _misplaced(self, name: str) -> HarnessError:
        if self.base_url is None:
            return HarnessError(f"{name} belongs to a server, and there is no base_url", "Leave it out")
        remedy = "Use the equivalent option of `vllm serve`"
        if name == "adapter":
            remedy = "Serve it with --enable-lora --lora-modules NAME=FOLDER, and set served_model_name=NAME"
        return HarnessError(f"{name}: with base_url, the server decides", remedy)


def indifferent() -> frozenset[str]:
    """The model arguments that change no response, so that a resumed run may change them."""
    every = {**ModelSettings.model_fields, **VLLMSettings.model_fields}
    return frozenset(name for name, one in every.items() if extra(one, "decides") is False) | {"delay"}


# Generation arguments: every one that a task can set is applied here or refused by name.

_LOG = logging.getLogger(__name__)

DEFAULT_MAX_NEW_TOKENS = 1024
"""Token limit of a response where the task sets none: no value would be neutral."""

# lmms-eval writes this into every task whose YAML sets no `until`. Applied literally, it would end every
# chain of thought at its first blank line.
_FILLED_IN_UNTIL = ("\n\n",)
_FILLED_IN = (
    "Task %r: until=['\\n\\n'] is what lmms-eval fills in when a task sets none; it is not used as a "
    "stop text. A task that wants it sets stop: ['\\n\\n']."
)

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
_NAMES = {"max_gen_toks": "max_new_tokens", "max_tokens": "max_new_tokens"} | dict.fromkeys(
    ("stop_sequences", "stop_strings"), "stop"
)
"""Other names of arguments, each with the canonical one."""


def _texts(given: object, info: ValidationInfo) -> list[str]:
    if not isinstance(given, list | tuple) or not all(one is None or isinstance(one, str) for one in given):
        raise HarnessError(
            f"{info.field_name}={cut(repr(given))} is not a text or a list of texts",
            'Write it like ["</answer>"]',
        )
    return [one for one in given if one]


_Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""Texts without empty and missing entries."""


class GenerationArguments(Arguments):
    """How to generate responses to one request; hashable, so that equal requests share a batch."""

    KIND = "generation argument"

    max_new_tokens: int = option(
        DEFAULT_MAX_NEW_TOKENS, "Most tokens of a response, the end token included.", ge=1
    )
    min_new_tokens: int = option(0, "Tokens before which no end token is allowed.", ge=0)
    temperature: float = option(0.0, "0 is greedy decoding; above 0 responses are sampled at it.", ge=0)
    top_p: float = option(1.0, "Nucleus mass kept; 1 keeps everything.", ge=0, le=1)
    top_k: Annotated[int, AfterValidator(lambda value: max(value, 0))] = option(
        0, "Most likely tokens kept; 0, and also -1, keeps everything.", ge=-1
    )
    min_p: float = option(
        0.0, "Least probability kept, relative to the likeliest token's; 0 keeps everything.", ge=0, le=1
    )
    repetition_penalty: float = option(
        1.0,
        "Divides the positive logits (multiplies the negative ones) of tokens already in prompt or response; "
        "1 changes nothing.",
        gt=0,
    )
    stop: _Texts = option((), "Texts that end a response; neither they nor what follows is part of it.")
    seed: int | None = option(
        None, "Seed of the draws that the task itself asks for; None uses the model's.", ge=0
    )
    skip_special_tokens: bool = option(True, "Whether special tokens are left out of the text.")
    use_cache: bool = option(True, "Whether generation keeps keys and values between steps.")

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
        `stop: ["\n\n"]`. None and "None" mean unset. `checkpoint`, from `checkpoint_settings`, has settings
        for what the request leaves unset: sampling settings apply to requests that sample, `do_sample` to
        requests that do not set it.

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
        if values.get("until") == _FILLED_IN_UNTIL:
            warn_once(_FILLED_IN, task)
        values["stop"] = _stops(values)
        values.pop("until", None)
        return cls.from_options(values)


class _Given(GenerationArguments):
    """What a request may name besides."""

    do_sample: bool | None = None
    until: _Texts = ()

    @classmethod
    def read(cls, name: str, value: object) -> object:
        """The value of one argument."""
        return getattr(cls.from_options({name: value}), name)


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
        elif name not in _NAMES and name not in _Given.model_fields:
            raise unknown_name("generation argument", name, [*_Given.model_fields, *_NAMES])
        elif not is_unset(value):
            known = _NAMES.get(name, name)
            value = [value] if isinstance(value, str) and known in ("stop", "until") else value
            read = _Given.read(known, value)
            if values.setdefault(known, read) != read:
                raise HarnessError(
                    f"{name}={value!r} disagrees with {known}={values[known]!r}", "Use only one of them"
                )
    return values


def token_limit(given: Mapping[str, object] | None) -> int | None:
    """The longest response that `generation_kwargs` ask for in tokens, by any of its names; None if unset.

    Raises:
        HarnessError: it is no whole number above 0.
    """
    found = _read(_named(given, "max_new_tokens")).get("max_new_tokens")
    assert found is None or isinstance(found, int)
    return found


def stop_texts(given: Mapping[str, object] | None) -> tuple[str, ...]:
    """The texts that end a response by `generation_kwargs`, under any of their names, as `parse` reads them.

    Raises:
        HarnessError: they are no texts.
    """
    return _stops(_read(_named(given, "stop", "until")))


def _named(given: Mapping[str, object] | None, *names: str) -> dict[str, object]:
    """Some of the arguments, under any of their names."""
    return {name: value for name, value in (given or {}).items() if _NAMES.get(name, name) in names}


def _stops(values: Mapping[str, object]) -> tuple[str, ...]:
    """`until`, unless lmms-eval has filled it in, and `stop`."""
    until = values.get("until")
    some = (() if until == _FILLED_IN_UNTIL else until, values.get("stop"))
    return tuple(dict.fromkeys(text for texts in some if isinstance(texts, tuple) for text in texts))


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
    `found` are the settings that the file `where` names, and `known` the names that transformers knows;
    `remedy` says what to do about a setting that cannot be applied. Returns settings for
    `GenerationArguments.parse`, by its names.

    Raises:
        HarnessError: for a setting that these models cannot apply, or a value out of range.
    """
    settings: dict[str, object] = {}
    for name, value in found.items():
        if name in CHECKPOINT_SETTINGS:
            try:
                if not is_unset(value):
                    settings[name] = _Given.read(name, value)
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


@cache
def warn_once(message: str, task: str) -> None:
    """Logs a warning with the task's name, once per task."""
    _LOG.warning(message, task)
