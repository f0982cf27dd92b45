"""Opens the base that is trained: configuration, processor with its pixel limits, weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging

from dcsft_harness.coordinates import BoxConvention, BoxSpace
from dcsft_harness.errors import HarnessError


def open_config(model: str) -> PreTrainedConfig:
    """The base's configuration.

    Raises:
        HarnessError: there is none, or the model does not turn images and text into text.
    """
    if (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "config.json").is_file():
        raise HarnessError(f"model {model} is an adapter", "Merge it into its base, and train that")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise HarnessError(
            f"model {model} cannot be opened ({_line(error)})", "Give a checkpoint folder"
        ) from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise HarnessError(
            f"model {model} is a {config.model_type!r} model, not an image-text-to-text one",
            "Give a vision-language checkpoint such as Qwen2.5-VL",
        )
    return config


def open_processor(model: str) -> ProcessorMixin:
    """The base's processor as it was saved.

    Raises:
        HarnessError: there is none, or it cannot render chats with images.
    """
    try:
        processor = AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise HarnessError(
            f"model {model} has no usable processor ({_line(error)})", "Save one beside it"
        ) from error
    except ImportError as error:
        raise HarnessError(
            f"model {model}: its processor needs a package that is not installed ({_line(error)})",
            "Install it",
        ) from error
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise HarnessError(
            f"model {model}: its {type(processor).__name__} has no image processor or no chat template",
            "Give a checkpoint that was tuned for chats with images",
        )
    return processor


def open_generation(model: str) -> GenerationConfig:
    """How the base ends its answers, known without its weights."""
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:  # a checkpoint need not have one
        return GenerationConfig.from_model_config(open_config(model))


def compute_dtype(asked: str) -> torch.dtype:
    """The type that forward passes compute in.

    Raises:
        HarnessError: bfloat16 on a CUDA device that lacks it.
    """
    cuda = torch.cuda.is_available()
    # Older devices compute bfloat16 by way of float32, slower than that.
    able = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return torch.bfloat16 if cuda and able else torch.float32
    if asked == "bfloat16" and not able:
        raise HarnessError(f"dtype=bfloat16: {torch.cuda.get_device_name()} lacks it", "Give dtype=float32")
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def load_model(model: str, dtype: torch.dtype) -> PreTrainedModel:
    """The base's weights in `dtype`; transformers 5 would otherwise take the type they were saved in.

    Raises:
        HarnessError: weights are missing or damaged.
    """
    try:
        with no_bars():
            return AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HarnessError(f"model {model} cannot be loaded ({_line(error)})", "Check its files") from error


def recast(folder: Path, dtype: torch.dtype) -> None:
    """Gives a saved checkpoint's weights another type, file by file; others stay as they are."""
    for path in sorted(folder.glob("model*.safetensors")):
        weights = {
            name: weight.to(dtype) if weight.is_floating_point() else weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})


def box_convention(model: str, processor: ProcessorMixin, given: BoxSpace | None = None) -> BoxConvention:
    """In which coordinates the model writes boxes, under the limits of training.

    Raises:
        HarnessError: `given` are those of a resized image, and the processor does not resize by pixels.
    """
    from dcsft_harness.models.checkpoint import convention

    found: BoxConvention = convention(open_config(model), processor, given)
    return found


def check_adapter(adapter: str, base: str) -> None:
    """Refuses an adapter that is none, that does not fit, or whose manifest tells of another base.

    No weights of the base are read.

    Raises:
        HarnessError: says which.
    """
    from dcsft_harness.artifacts import manifest
    from dcsft_harness.models import checkpoint as models
    from dcsft_harness.models.adapters import read_config
    from dcsft_harness.models.settings import ModelSettings

    read_config(adapter, base)
    if (Path(adapter) / manifest.NAME).is_file():
        made = manifest.read(Path(adapter))
        known, named = made.inputs.get("model"), made.config.get("model")
        if known is not None and Path(base).is_dir() and manifest.fingerprint(Path(base)) != known["sha256"]:
            raise HarnessError(
                f"adapter {adapter} was trained on {known['path']} and not on {base}",
                "Give the base that it has",
            )
        if named is not None and not Path(base).is_dir() and named != base:
            raise HarnessError(
                f"adapter {adapter} was trained on {named} and not on {base}", "Give the base that it has"
            )
    models.check_adapter(ModelSettings(base, adapter), open_config(base))


def go_on_from(network: PreTrainedModel, adapter: str, base: str) -> PeftModel:
    """Puts an adapter on its base so that it can be trained further.

    Raises:
        HarnessError: the folder is none, or does not fit the base.
    """
    from dcsft_harness.models.adapters import wrap

    model = wrap(network, adapter, base)
    model.peft_config["default"].inference_mode = False
    model.set_adapter("default")
    return model


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keeps transformers' own progress bars off the terminal, which has the command's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    """The first line of a message that may run over many."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
