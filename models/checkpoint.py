"""Opens a vision-language checkpoint: configuration and processor first, weights last."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from dcsft_harness.artifacts import manifest
from dcsft_harness.coordinates import BoxConvention, BoxSpace, box_space
from dcsft_harness.errors import HarnessError

from .adapters import attach, read_config
from .packed_images import attend_by_length
from .patches import embed_by_product
from .pixel_limits import limits_in_force, resizes_like_qwen, set_limits
from .settings import ModelSettings


def open_config(settings: ModelSettings) -> PreTrainedConfig:
    """The checkpoint's configuration.

    Raises:
        HarnessError: where there is none, or the model does not turn images and text into text; or a newer
            version of this package wrote it or the adapter.
    """
    name = settings.pretrained
    for folder in filter(None, (name, settings.adapter)):
        manifest.refuse_newer(Path(folder))
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise HarnessError(f"pretrained={name}: there is no such folder", "Give a checkpoint folder")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise HarnessError(
            f"pretrained={name} cannot be opened ({_line(error)})", "Give a checkpoint folder or hub name"
        ) from error
    remote = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not remote:
        raise HarnessError(
            f"pretrained={name} is a {config.model_type!r} model, not an image-text-to-text one",
            "Give a vision-language checkpoint such as Qwen2.5-VL",
        )
    return config


def open_processor(settings: ModelSettings) -> ProcessorMixin:
    """The checkpoint's processor, with the pixel limits asked for.

    Raises:
        HarnessError: where there is none, it has no chat template, or it has no such limits.
    """
    name, trust = settings.pretrained, settings.trust_remote_code
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise HarnessError(
            f"pretrained={name} has no usable processor ({_line(error)})", "Save one beside it"
        ) from error
    except ImportError as error:
        raise HarnessError(
            f"pretrained={name}: its processor needs a package that is not installed ({_line(error)})",
            "Install it",
        ) from error
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise HarnessError(
            f"pretrained={name}: its {type(processor).__name__} has no image processor or no chat template",
            "Give a checkpoint that was tuned for chats with images",
        )
    set_limits(processor, name, settings.min_pixels, settings.max_pixels, trust)
    return processor


def convention(
    config: PreTrainedConfig, processor: ProcessorMixin, given: BoxSpace | None = None
) -> BoxConvention:
    """The coordinates that the model writes boxes in, with the limits in force.

    Args:
        config: tells the family, whose coordinates these are unless others are given.
        processor: tells the limits.
        given: the coordinates of a checkpoint that was trained to write others than its family.

    Raises:
        HarnessError: they are those of a resized image, and the processor does not resize by pixels.
    """
    limits, images = limits_in_force(processor), processor.image_processor
    space = given or box_space(config.model_type)
    if limits is None or not resizes_like_qwen(processor):
        if given == "resized":
            raise HarnessError(
                f"box_space=resized: the processor of {config.model_type} does not resize as Qwen2.5-VL's",
                "Give pixel or norm1000",
            )
        return BoxConvention(space, None, *(limits or ()))
    return BoxConvention(space, int(images.patch_size * images.merge_size), *limits)


def check_adapter(settings: ModelSettings, config: PreTrainedConfig) -> None:
    """Tries the adapter on the base's modules, without the base's weights.

    Raises:
        HarnessError: where it does not fit.
    """
    if settings.adapter is None:
        return
    read_config(settings.adapter, settings.pretrained)
    attach(skeleton(config, settings.trust_remote_code), settings.adapter, settings.pretrained)


def skeleton(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model's modules on the `meta` device, without any weights: a tenth of a second at 72 billion."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)


def load_model(settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    """The model with its adapter, on `device`, in evaluation mode.

    Raises:
        HarnessError: where weights or the attention implementation are missing, or the
            adapter does not fit.
    """
    dtype = settings.dtype or ("auto" if device.type == "cuda" else "float32")
    extra = {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            settings.pretrained, dtype=dtype, trust_remote_code=settings.trust_remote_code, **extra
        )
    except (OSError, ValueError, ImportError) as error:
        raise HarnessError(
            f"pretrained={settings.pretrained} cannot be loaded ({_line(error)})",
            "Check the checkpoint's files",
        ) from error
    model = model.to(device)
    if settings.adapter is not None:
        model = attach(model, settings.adapter, settings.pretrained)
    embed_by_product(model)
    attend_by_length(model)
    return model.eval()


def _line(error: Exception) -> str:
    """The first line of a message that may run over many."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
