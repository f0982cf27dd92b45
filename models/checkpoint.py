"""Opens a vision-language checkpoint: configuration and processor first, weights last."""

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dcsft_harness import ranks, reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.coordinates import SPACE_FILE, BoxConvention, BoxSpace, box_space
from dcsft_harness.errors import HarnessError, cut, json_text

from . import chat_template, weights
from .adapters import attach
from .arguments import EngineArguments, ModelSettings, checkpoint_settings
from .batching import process
from .pixel_limits import limits_in_force, resizes_like_qwen, set_limits
from .vision import attend_by_length, embed_by_product

_LOG = logging.getLogger(__name__)
GENERATION = "generation_config.json"
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_DECIDING = (
    *("*.safetensors", "*.index.json", "*.bin", "*.jinja", "config.json", "adapter_config.json"),
    *(GENERATION, SPACE_FILE),
    *("*processor*config.json", "chat_template*", "additional_chat_templates", "tokenizer*", "vocab*"),
    *("merges.txt", "added_tokens.json", "special_tokens_map.json", "custom_generate"),
)
"""Names of files that affect a model's responses, as patterns."""


class Unreached(HarnessError):
    """The hub that has a checkpoint is not reached, which has taken half a minute."""


def open_config(settings: EngineArguments) -> PreTrainedConfig:
    """The checkpoint's configuration.

    Raises:
        HarnessError: there is none, the model does not turn images and text into text, or a newer version of
            this package wrote the checkpoint or the adapter.
    """
    name = settings.pretrained
    for folder in filter(None, (name, settings.adapter)):
        manifest.refuse_newer(Path(folder))
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise HarnessError(f"model {name} does not exist", "Pass a checkpoint folder or hub name")
    if (Path(name) / "adapter_config.json").is_file():
        if not (Path(name) / "config.json").is_file():
            raise HarnessError(
                f"model {name} is an adapter",
                "Pass its base, with --adapter to train it further; or merge it into its base",
            )
        raise HarnessError(
            f"model {name} holds a base and an adapter, which transformers would apply unasked",
            "Move the adapter to a separate folder, and name it with adapter=",
        )
    weights.refuse_absurd(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # every family checks its settings in its own way
        kind, remedy = HarnessError, "Pass a checkpoint folder or hub name"
        if any(said in str(error).lower() for said in ("couldn't connect", "offline")):
            kind = Unreached
            remedy = (
                "Check the network and HF_ENDPOINT, or download it elsewhere "
                f"(`hf download {name} --local-dir DIR`) and give that folder; HF_HUB_OFFLINE=1 allows only "
                "what is in the hub's cache"
            )
        if settings.adapter is not None and not Path(name).is_dir():  # PEFT writes paths as they were given
            remedy += (
                f". If it is a folder that adapter {settings.adapter} was trained on, say where that is now: "
                "--base DIR (of `dcsft merge` and `dcsft score`), or --model-args pretrained=DIR"
            )
        raise kind(
            f"model {name} cannot be opened ({weights.error_line(error)})",
            _remedy(name, remedy, "config.json"),
        ) from error
    remote = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not remote:
        raise HarnessError(
            f"model {name} is a {config.model_type!r} model, not an image-text-to-text one",
            "Pass a vision-language checkpoint such as Qwen2.5-VL",
        )
    return config


def open_processor(settings: EngineArguments) -> ProcessorMixin:
    """The checkpoint's processor, with the requested pixel limits; see `saved_processor`, `check_mark`."""
    name, trust = settings.pretrained, settings.trust_remote_code
    processor = saved_processor(name, trust)
    check_mark(processor, settings)
    chat_template.check_arguments(processor, template_arguments(settings), name)
    set_limits(processor, name, settings.min_pixels, settings.max_pixels, trust)
    return processor


def template_arguments(settings: EngineArguments, warn: bool = False) -> dict[str, Any]:
    """The chat template's arguments in force: the given ones, else those of training.

    With `warn`, logs that the given ones differ from those of training.
    """
    trained = chat_template.recorded(settings.adapter, settings.pretrained)
    if settings.chat_template_kwargs is None:
        return trained or {}
    given = dict(settings.chat_template_kwargs)
    if warn and trained is not None and trained != given:
        _LOG.warning(
            "%s was trained with %s %s, and its prompts are now written with %s",
            settings.adapter or settings.pretrained, chat_template.NAME, json_text(trained), json_text(given),
        )  # fmt: skip
    return given


def check_mark(processor: ProcessorMixin, settings: EngineArguments) -> None:
    """Refuses a configuration whose image token differs from the processor's; the error names both."""
    mark, tokenizer = getattr(open_config(settings), "image_token_id", None), processor.tokenizer
    if not isinstance(mark, int):
        return
    said = f"model {settings.pretrained}: its config.json says image_token_id {mark}"
    if not 0 <= mark < len(tokenizer):
        raise HarnessError(
            f"{said}, but its tokenizer has {len(tokenizer)} tokens", "Take both from one checkpoint"
        )
    known = _marks_of_pictures(processor)
    if known is not None and mark not in known:
        other = " or ".join(f"{one} ({tokenizer.convert_ids_to_tokens(one)!r})" for one in known[:3])
        raise HarnessError(
            f"{said} ({tokenizer.convert_ids_to_tokens(mark)!r}), but its processor marks images "
            f"{f'with {other}' if known else 'otherwise'}",
            "Take both from one checkpoint",
        )


def _marks_of_pictures(processor: ProcessorMixin) -> list[int] | None:
    """The tokens that a prompt has for an image alone, and most often; None if no trial works.

    A processor's own mark does not decide: some families (Gemma 3) declare the token before an image's own.
    """

    def trial(*images: Image.Image) -> list[int] | None:
        asked = chat_template.question(len(images))
        try:
            text = chat_template.render(processor, asked, "trial", add_generation_prompt=True)
            return list(process(processor, [text], [images])["input_ids"][0].tolist())
        except Exception:  # noqa: BLE001 - unsupported input is refused elsewhere, with its reason
            return None

    tokens, without = trial(Image.new("RGB", (64, 64))), trial()
    if tokens is None:
        return None
    counts = Counter(token for token in tokens if token not in (without or ()))
    return [token for token, count in counts.items() if count == max(counts.values())]


def saved_processor(name: str, trust_remote_code: bool = False) -> ProcessorMixin:
    """A checkpoint's processor as saved, tried on a chat with an image.

    Raises:
        HarnessError: there is none, it needs a package that is missing, or it has no usable chat template or
            image processor.
    """
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise HarnessError(
            f"model {name}: its processor needs a package that is not installed "
            f"({weights.error_line(error)})",
            "Install it",
        ) from error
    except Exception as error:  # tokenizers raises no class of its own for a damaged file
        folder = weights.files_of(name)
        if folder is not None and not any((folder / file).is_file() for file in PROCESSOR):
            raise HarnessError(
                f"model {name} has no processor: its folder has neither {' nor '.join(PROCESSOR)}",
                "Copy the files of the processor, the tokenizer and the chat template from the checkpoint "
                "that it was trained from",
            ) from error
        raise HarnessError(
            f"model {name} has no usable processor ({weights.error_line(error)})",
            _remedy(name, "Save one beside it", *PROCESSOR, "tokenizer.json", "tokenizer_config.json"),
        ) from error
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise HarnessError(
            f"model {name}: its {type(processor).__name__} has no image processor or no chat template",
            "Pass a checkpoint that was tuned for chats with images",
        )
    chat_template.check(processor, name)
    _try_pictures(processor, name, trust_remote_code)
    return processor


def _try_pictures(processor: ProcessorMixin, name: str, trust_remote_code: bool) -> None:
    """Refuses an image processor that cannot process any image, such as one with a patch size of 0."""
    if _failure(processor) is None:
        return
    saved = processor.image_processor
    # Limits under other names than transformers 5 reads are an error until `set_limits` restates them.
    set_limits(processor, name, None, None, trust_remote_code)
    error = _failure(processor)
    processor.image_processor = saved
    if error is not None:
        raise HarnessError(
            f"model {name}: its {type(saved).__name__} cannot process an image "
            f"({type(error).__name__}: {weights.error_line(error)})",
            _remedy(name, "Correct its settings", *PROCESSOR),
        ) from error


def _remedy(name: str, otherwise: str, *files: str) -> str:
    """The remedy for unusable settings, with the names of the checkpoint's files."""
    folder = weights.files_of(name)
    found = [file for file in files if folder is not None and (folder / file).is_file()]
    return f"Correct its {' or '.join(found)}, or copy the checkpoint again" if found else otherwise


def _failure(processor: ProcessorMixin) -> Exception | None:
    """The error that processing a small image raises, or one that names values that are not finite."""
    try:
        made = processor.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")
        for key, value in made.items():
            if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{key} is not finite")
    except Exception as error:  # any error of the processor's arithmetic
        return error
    return None


def open_generation(settings: EngineArguments) -> GenerationConfig:
    """The checkpoint's generation settings, without its weights; defaults where it has none.

    Raises:
        HarnessError: its file cannot be read.
    """
    folder = weights.files_of(settings.pretrained)
    try:
        if folder is not None and (folder / GENERATION).is_file():
            reading.json_file(folder / GENERATION)
        found = GenerationConfig.from_pretrained(settings.pretrained)
        _check_tokens(found)
        return found
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if folder is not None and (folder / GENERATION).is_file():
            raise HarnessError(
                f"{folder / GENERATION} cannot be read ({weights.error_line(error)})",
                "Correct it, or copy it again",
            ) from error
    return GenerationConfig.from_model_config(open_config(settings))


def checkpoint_generation(settings: EngineArguments) -> dict[str, object]:
    """The settings that `generation_config=checkpoint` takes from the generation config; empty otherwise.

    One that cannot be applied, or a file that cannot be read, is an error.
    """
    if settings.generation_config != "checkpoint":
        return {}
    found, folder = open_generation(settings), weights.files_of(settings.pretrained)
    if folder is None or not (folder / GENERATION).is_file():  # a checkpoint need not have one
        return {}
    where = f"generation_config=checkpoint: {Path(settings.pretrained) / GENERATION}"
    remedy = "Leave out generation_config=checkpoint, or take the setting out of the file"
    return checkpoint_settings(found.to_diff_dict(), vars(GenerationConfig()), where, remedy)


def _check_tokens(found: GenerationConfig) -> None:
    """Refuses special tokens that are not ids, by a `ValueError` that names the first."""
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value = getattr(found, name, None)
        several = value if name == "eos_token_id" and isinstance(value, list) else [value]
        for one in several:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 0):
                raise ValueError(f"{name} is {cut(repr(value))}, not a token's number")


def convention(
    config: PreTrainedConfig, processor: ProcessorMixin, given: BoxSpace | None = None
) -> BoxConvention:
    """The model's box coordinates, under the pixel limits in force.

    Those of the model family, unless `given` for a checkpoint that was trained to write others.

    Raises:
        HarnessError: the coordinates are those of a resized image, and the processor does not resize by
            pixels.
    """
    limits, images = limits_in_force(processor), processor.image_processor
    space = given or box_space(config.model_type)
    if limits is None or not resizes_like_qwen(processor):
        if given == "resized":
            raise HarnessError(
                f"box_space=resized: the processor of {config.model_type} does not resize as Qwen2.5-VL's",
                "Use pixel or norm1000",
            )
        return BoxConvention(space, None, *(limits or ()))
    return BoxConvention(space, int(images.patch_size * images.merge_size), *limits)


def check_intact(settings: EngineArguments) -> None:
    """Refuses a base or adapter whose files differ from its manifest, or an adapter of another base.

    The first rank hashes the files, once per process, and remembers a hash while a file keeps its size and
    times. A run's saved checkpoints are looked up in the run's manifest. Folders without a manifest pass.
    """
    if ranks.rank() > 0:
        return
    check_files(settings.pretrained)
    if settings.adapter is not None:
        check_files(settings.adapter)
        check_base(settings.adapter, settings.pretrained)


def check_files(name: str) -> None:
    """`check_intact` for one folder: names a missing, changed or added file; a hub name passes."""
    run, inside = _manifest_of(Path(name))
    if run is not None:
        files = [file for file in manifest.read(run).files if file.startswith(inside)]
        manifest.refuse_changed(run, *files)
        _refuse_added(Path(name), {file.removeprefix(inside).split("/")[0] for file in files})


def _manifest_of(folder: Path) -> tuple[Path | None, str]:
    """The folder whose manifest lists a checkpoint's files, and the prefix of their names there."""
    run = folder.resolve().parent
    if (folder / manifest.NAME).is_file():
        return (None, "") if _is_foreign(folder / manifest.NAME) else (folder, "")
    if folder.name.startswith("checkpoint-") and (run / manifest.NAME).is_file():
        inside = f"{folder.name}/"
        if any(name.startswith(inside) for name in manifest.read(run).files):
            return run, inside
    return None, ""


def _refuse_added(folder: Path, known: set[str]) -> None:
    """Refuses files that transformers or PEFT would read but the manifest does not list."""
    for path in sorted(folder.iterdir()):
        if path.name not in known and any(path.match(pattern) for pattern in _DECIDING):
            raise HarnessError(
                f"{path} was added later: {manifest.NAME} beside it does not list it",
                f"Remove it, or remove {manifest.NAME} to use the files as they are",
            )


def check_base(adapter: str, base: str) -> None:
    """Refuses an adapter if its manifest, or its run's manifest, records another base; names both."""
    run, _ = _manifest_of(Path(adapter))
    if run is None:
        return
    made = manifest.read(run)
    known, named = made.inputs.get("model"), made.config.get("model")
    folder = Path(base).is_dir()
    if known is not None and folder and manifest.fingerprint(Path(base)) != known["sha256"]:
        named = (run / known["path"]).resolve()
    elif named is None or folder or named == base:
        return
    raise HarnessError(
        f"adapter {adapter} was trained on {named}, and {base} is not it or has changed since",
        f"Pass the base that it was trained on, or remove the adapter's {manifest.NAME} to use it as it is",
    )


def _is_foreign(path: Path) -> bool:
    """Whether a manifest belongs to another package, some of which write files of that name."""
    try:
        found = reading.json_file(path)
    except (OSError, ValueError):
        return False  # ours, and damaged: an error
    return not isinstance(found, dict) or "artefact" not in found


def check_adapter(settings: EngineArguments, config: PreTrainedConfig) -> PreTrainedModel | None:
    """Tries the adapter, if there is one, on the base's modules without weights, and returns these.

    An adapter that does not fit is an error.
    """
    if settings.adapter is None:
        return None
    return attach(skeleton(config, settings.trust_remote_code), settings.adapter, settings.pretrained)


def skeleton(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's modules on the `meta` device, without any weights: a tenth of a second at 72 billion."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)


_OUTLINES: dict[tuple[type, str, bool], PreTrainedModel] = {}


def outline(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """A `skeleton` to read from, the same for equal configurations: nobody may change it."""
    key = (type(config), json.dumps(config.to_dict(), sort_keys=True, default=str), trust_remote_code)
    if key not in _OUTLINES:
        _OUTLINES.clear()  # one is enough: a run has one base
        _OUTLINES[key] = skeleton(config, trust_remote_code)
    return _OUTLINES[key]


def load_model(settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    """The model with its adapter, on `device`, in evaluation mode.

    Raises:
        HarnessError: where weights or the attention implementation are missing, or the
            adapter does not fit.
    """
    dtype = settings.dtype or ("auto" if device.type == "cuda" else "float32")
    extra = {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    model = open_weights(settings.pretrained, dtype, device, settings.trust_remote_code, **extra)
    if settings.adapter is not None:
        model = attach(model, settings.adapter, settings.pretrained)
    embed_by_product(model)
    attend_by_length(model)
    return model.eval()


def check_weights(settings: EngineArguments, config: PreTrainedConfig) -> None:
    """Refuses missing, damaged, unexpected or reshaped weights of a checkpoint, before any are read.

    transformers loads the checkpoint onto the `meta` device, so that tied weights, renamed modules and
    buffers count as in real use. Takes 0.1 s. Quantized checkpoints are compared when they are loaded, and
    those of other families run their own code.
    """
    name = settings.pretrained
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return
    weights.weight_files(name)  # whose headers were read with the configuration
    if getattr(config, "quantization_config", None) is None:
        weights.refuse_incomplete(name, *weights.loaded(name, config=config, device_map="meta"))


def open_weights(
    name: str,
    dtype: torch.dtype | str,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    **options: Any,  # noqa: ANN401 - of from_pretrained
) -> PreTrainedModel:
    """The only function in this suite that reads a checkpoint's weights: all of them, and finite.

    `dtype` "auto" is that of the configuration; `device` None leaves the weights where transformers puts
    them; `options` are further ones of `from_pretrained`.

    Raises:
        HarnessError: weights are damaged, missing, unexpected, of another shape or not finite, or the
            attention implementation is missing.
    """
    model, info = weights.loaded(name, dtype=dtype, trust_remote_code=trust_remote_code, **options)
    if device is not None:
        with weights.refusals(name):
            model = model.to(device)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    # Weights of FSDP's other ranks are placeholders, which it fills from the first rank later.
    if not sharded or os.environ.get("LOCAL_RANK", "0") == "0":
        if not is_deepspeed_zero3_enabled():  # whose loading reports nothing; names were compared before
            weights.refuse_incomplete(name, model, info)
        weights.refuse_unfinite(f"model {name}", weights.not_finite(model.state_dict().items()))
    return model
