"""Published sizes of vision-language models, as checkpoints with random weights."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, split_torch_state_dict_into_shards, try_to_load_from_cache
from safetensors.torch import save_file
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin

from dcsft_harness.data import digits
from dcsft_harness.errors import unknown_name

_TOKENS_OF_QWEN = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_ROPE = {"rope_type": "default"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "hub": "Qwen/Qwen2.5-VL-3B-Instruct",
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "tie_word_embeddings": True,
            "rope_parameters": {**_ROPE, "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
        },
    },
    "qwen3-vl-4b": {
        "hub": "Qwen/Qwen3-VL-4B-Instruct",
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **_ROPE,
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    "internvl3-2b": {
        "hub": "OpenGVLab/InternVL3-2B-hf",
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "tie_word_embeddings": False,
        "image_seq_length": 256,
        "downsample_ratio": 0.5,
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 151674,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "rope_parameters": {**_ROPE, "rope_theta": 1e6},
        },
        "vision_config": {
            "num_hidden_layers": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "attention_bias": True,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        },
    },
}
"""Sizes by name, as in the published checkpoints' configurations, with the checkpoints' names on the hub."""

SIDE = {"qwen2.5-vl-3b": 448, "qwen3-vl-4b": 512, "internvl3-2b": 448}
"""Pixels per side of an image that becomes 256 tokens. Larger images are scaled down to it; InternVL's
processor also scales smaller ones up."""
SHARD = 2_000_000_000
"""The most bytes of one weights file; no more exist in memory at a time."""
_BLOCK = 16_777_259
"""Random numbers that are drawn; longer tensors repeat them. A prime, so that rows differ."""


def write(shape: str, folder: Path, layers: int | None = None, dtype: str = "bfloat16") -> Path:
    """Writes a checkpoint of a published size, a key of `PUBLISHED`, with random weights of a data type.

    The tokenizer and processor are the published ones if the hub's cache has them; else the digits suite's
    tokenizer, whose ids are the first of the full vocabulary. `layers` is the number of decoder layers and of
    vision layers, for a trial; None means all. Returns the folder.

    Raises:
        HarnessError: the size is unknown.
    """
    config, processor = settle(shape, folder, layers, dtype)
    tokenizer = processor.tokenizer
    _write_weights(config, folder, len(tokenizer), tokenizer.eos_token_id)
    # The last file, by which a complete checkpoint is known.
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def settle(
    shape: str, folder: Path, layers: int | None = None, dtype: str = "bfloat16"
) -> tuple[PreTrainedConfig, ProcessorMixin]:
    """Writes everything of a checkpoint but its weights and generation settings; see `write`.

    Raises:
        HarnessError: the size is unknown.
    """
    if shape not in PUBLISHED:
        raise unknown_name("shape", shape, PUBLISHED)
    folder.mkdir(parents=True, exist_ok=True)
    processor = _cached(PUBLISHED[shape]["hub"]) or _own_processor(shape)
    processor.save_pretrained(folder)
    config = _configured(shape, processor, layers, dtype)
    config.save_pretrained(folder)
    return config, processor


def weights_of(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Name -> stored weight, on the `meta` device."""
    from .checkpoint import skeleton

    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: one for name, one in skeleton(config).state_dict().items() if name not in tied}


def configuration(shape: str, layers: int | None = None) -> PreTrainedConfig:
    """The configuration of a size, without files: its tokens are the suite's."""
    return _configured(shape, _own_processor(shape), layers)


def _configured(
    shape: str, processor: ProcessorMixin, layers: int | None, dtype: str = "bfloat16"
) -> PreTrainedConfig:
    given = copy.deepcopy(PUBLISHED[shape])
    del given["hub"]
    text, vision = given["text_config"], given["vision_config"]
    if layers is not None:
        text["num_hidden_layers"] = layers
        vision["depth" if "depth" in vision else "num_hidden_layers"] = layers
        for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if name in vision:  # the last of the layers that stay, as in the published model
                vision[name] = [layers - 1]
    tokenizer = processor.tokenizer
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text["bos_token_id"] = None
    given["image_token_id"] = processor.image_token_id
    if given["model_type"] != "internvl":
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        ids = (tokenizer.convert_tokens_to_ids(name) for name in names)
        given |= dict(zip(_TOKENS_OF_QWEN, ids, strict=True))
    given["dtype"] = dtype
    return AutoConfig.for_model(given.pop("model_type"), **given)


def _cached(name: str) -> ProcessorMixin | None:
    """The published processor, if the hub's cache on this machine has it; nothing is downloaded."""
    found = try_to_load_from_cache(name, "tokenizer.json", cache_dir=constants.HF_HUB_CACHE)
    if not isinstance(found, str):
        return None
    with contextlib.suppress(OSError, ValueError):
        return AutoProcessor.from_pretrained(name, local_files_only=True)
    return None


def _own_processor(shape: str) -> ProcessorMixin:
    """The size's processor with the digits suite's tokenizer; images become at most 256 tokens."""
    import transformers as tf

    base, pixels = digits.path(), SIDE[shape] ** 2
    tokenizer = AutoTokenizer.from_pretrained(base)
    limits = {"shortest_edge": 56 * 56, "longest_edge": pixels}
    template = (Path(base) / "chat_template.jinja").read_text(encoding="utf-8")
    if shape == "internvl3-2b":
        names = {"start_image_token": "<img>", "end_image_token": "</img>"}
        names |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
        tokenizer = tf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            extra_special_tokens=names,
        )
        size = {"height": SIDE[shape], "width": SIDE[shape]}
        images = tf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=12)
        marked = template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
        return tf.InternVLProcessor(
            images, tokenizer, tf.InternVLVideoProcessor(), image_seq_length=256, chat_template=marked
        )
    patch = 16 if shape == "qwen3-vl-4b" else 14
    images = tf.Qwen2VLImageProcessor(size=limits, patch_size=patch)
    if shape == "qwen3-vl-4b":
        return tf.Qwen3VLProcessor(images, tokenizer, tf.Qwen3VLVideoProcessor(), chat_template=template)
    return tf.Qwen2_5_VLProcessor(images, tokenizer, tf.Qwen2VLVideoProcessor(), chat_template=template)


def _write_weights(config: PreTrainedConfig, folder: Path, tokens: int, end: int) -> None:
    """Writes random weights in files of at most `SHARD` bytes, and their index.

    The output rows of the first `tokens` tokens are longer, so that responses are text; that of the token
    `end` is longer still, so that it is drawn more often. At some shapes responses still reach their limit.
    """
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    wanted = weights_of(config)
    torch.manual_seed(0)
    block = torch.empty(_BLOCK, dtype=config.dtype).normal_(0.0, 0.02)
    split = split_torch_state_dict_into_shards(wanted, max_shard_size=SHARD)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _random(name, wanted[name].shape, block) for name in names}
        for name in (name for name in names if name.endswith(head)):
            tensors[name][:tokens] *= 3
            tensors[name][end] *= 2
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _random(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    """Normal numbers of deviation 0.02 for matrices; norms of 1 and biases of 0."""
    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=block.dtype)
    made = torch.empty(shape, dtype=block.dtype)
    flat = made.view(-1)
    for start in range(0, len(flat), len(block)):
        part = flat[start : start + len(block)]
        part.copy_(block[: len(part)])
    return made
