"""Tiny random checkpoints with real processors, built on disk in a second or two.

Every family goes through `AutoProcessor` and `AutoModelForImageTextToText` like a published
checkpoint: a byte-level BPE tokenizer trained on a few lines, a chat template, an image
processor, safetensors weights, and a generation config that carries traps on purpose
(a repetition penalty and sampling switched on, as Qwen's published files do).
"""

import functools
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import transformers as tf
from filelock import FileLock
from lmms_eval.api.instance import Instance
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from dcsft_harness import environment

CORPUS = [
    "What is in the picture? Answer with one word.",
    "How many boxes are there? Count them and write the number.",
    "Locate the red square and give its corners in JSON format.",
    "A goose, a cat, a dog and seven digits: 0 1 2 3 4 5 6 7 8 9.",
    "The answer is B. The answer is C. Think step by step, then stop.",
]
QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
IDEFICS_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
]
TEMPLATE = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s"
    "{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}{%% endif %%}%s\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
QWEN_TEMPLATE = TEMPLATE % ("<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>")
IDEFICS_TEMPLATE = TEMPLATE % ("<image>", "<end_of_utterance>")
MIN_PIXELS, MAX_PIXELS = 56 * 56, 84 * 112


def tokenizer(special: list[str], eos: str, vocab_size: int = 360) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `CORPUS`; `<|endoftext|>` pads."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in special if token not in (eos, "<|endoftext|>")],
    )


def enlarge(model: torch.nn.Module, seed: int) -> None:
    """Redraws the weights large enough that random greedy outputs depend on image and prompt."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            fan_in = weight[0].numel()
            scale = 1.0 if "embed_tokens" in name or "lm_head" in name else 2.5 / fan_in**0.5
            weight.data.normal_(0.0, scale, generator=generator)


def save(folder: Path, config: object, processor: object, eos: list[int], pad: int, seed: int) -> Path:
    """Writes model, processor and a generation config that would change outputs if it leaked in."""
    with torch.random.fork_rng():  # the same weights whatever tests ran before
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    enlarge(model, seed)
    model.generation_config = GenerationConfig(
        eos_token_id=eos, pad_token_id=pad, do_sample=True, temperature=0.1, top_k=1, repetition_penalty=1.3
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def qwen_tokens(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    """The token ids that a Qwen-VL config names."""
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tok.convert_tokens_to_ids(token) for key, token in names.items()}


def text_config(tok: PreTrainedTokenizerFast, width: int) -> dict[str, object]:
    """Two layers of a grouped-query decoder; the multimodal rotary sections fill half a head."""
    return {
        "vocab_size": len(tok),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 16,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "tie_word_embeddings": False,
    }


def qwen2_5_vl(folder: Path, width: int = 64, seed: int = 0) -> Path:
    """A Qwen2.5-VL of about 0.15 M parameters; `width` makes bases that adapters do not fit."""
    tok = tokenizer(QWEN_TOKENS, "<|im_end|>")
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": width,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=text_config(tok, width), vision_config=vision, **qwen_tokens(tok))
    images = Qwen2VLImageProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})
    processor = Qwen2_5_VLProcessor(images, tok, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return save(folder, config, processor, [tok.eos_token_id, tok.pad_token_id], tok.pad_token_id, seed)


def qwen3_vl(folder: Path, seed: int = 1) -> Path:
    """A Qwen3-VL with one deepstack layer, patch 16 (factor 32)."""
    tok = tokenizer(QWEN_TOKENS, "<|im_end|>")
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text_config(tok, 64), vision_config=vision, **qwen_tokens(tok))
    images = Qwen2VLImageProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 96 * 128}, patch_size=16)
    processor = Qwen3VLProcessor(images, tok, Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return save(folder, config, processor, [tok.eos_token_id, tok.pad_token_id], tok.pad_token_id, seed)


def idefics3(folder: Path, seed: int = 2) -> Path:
    """An Idefics3 that splits large images, so rows of a batch hold different numbers of tiles."""
    tok = tokenizer(IDEFICS_TOKENS, "<end_of_utterance>")
    text = text_config(tok, 64) | {"model_type": "llama", "pad_token_id": tok.pad_token_id}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=False,
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    processor = Idefics3Processor(images, tok, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    return save(folder, config, processor, [tok.eos_token_id], tok.pad_token_id, seed)


def chat_template(image: str, end: str, turn: str = "<|im_start|>", start: str = "") -> str:
    """A chat template: what a picture is, what ends a turn and what begins one, and what begins a chat."""
    return (
        start + "{% for message in messages %}" + turn + "{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}" + end + "\n{% endfor %}"
        "{% if add_generation_prompt %}" + turn + "assistant\n{% endif %}"
    )


def named_tokenizer(names: dict[str, str], eos: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens that processors find as its attributes, such as `image_token`."""
    plain = tokenizer(["<|endoftext|>", *([bos] if bos else []), eos, *names.values()], eos)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token=eos,
        bos_token=bos,
        pad_token="<|endoftext|>",
        extra_special_tokens=names,
    )


def flat_text(tok: PreTrainedTokenizerFast, **more: object) -> dict[str, object]:
    """`text_config` for decoders whose positions are one number."""
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return text_config(tok, 64) | plain | {"pad_token_id": tok.pad_token_id} | more


def linear_text(tok: PreTrainedTokenizerFast, **more: object) -> dict[str, object]:
    """`text_config` for decoders with a layer of linear attention, whose state is no keys and values."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return text_config(tok, 64) | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": rope | {"partial_rotary_factor": 0.5, "mrope_interleaved": True},
        **more,
    }


def small_vision(**more: object) -> dict[str, object]:
    """Two layers of a vision tower."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | more


def siglip(**more: object) -> dict[str, object]:
    """A SigLIP tower for pictures of 64 x 64 pixels."""
    return small_vision(
        model_type="siglip_vision_model", image_size=64, patch_size=16, vision_use_head=False, **more
    )


Parts = tuple[PreTrainedTokenizerFast, object, object]
"""A family's tokenizer, configuration and processor."""


def _qwen2_vl() -> Parts:
    tok = tokenizer(QWEN_TOKENS, "<|im_end|>")
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    config = tf.Qwen2VLConfig(text_config=text_config(tok, 64), vision_config=vision, **qwen_tokens(tok))
    images = Qwen2VLImageProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})
    videos = Qwen2VLVideoProcessor()
    return tok, config, tf.Qwen2VLProcessor(images, tok, videos, chat_template=QWEN_TEMPLATE)


def _qwen3_5() -> Parts:
    tok = tokenizer(QWEN_TOKENS, "<|im_end|>")
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 16, "num_position_embeddings": 64}
    config = tf.Qwen3_5Config(text_config=linear_text(tok), vision_config=vision, **qwen_tokens(tok))
    images = Qwen2VLImageProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 96 * 128}, patch_size=16)
    processor = Qwen3VLProcessor(images, tok, Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return tok, config, processor


def _internvl() -> Parts:
    names = {"start_image_token": "<img>", "end_image_token": "</img>"}
    names |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tok = named_tokenizer(names, "<|im_end|>")
    config = tf.InternVLConfig(
        text_config=flat_text(tok, model_type="qwen2"),
        vision_config=small_vision(image_size=[64, 64], patch_size=[16, 16]),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = tf.GotOcr2ImageProcessor(
        size={"height": 64, "width": 64}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    template = chat_template("<IMG_CONTEXT>\n", "<|im_end|>")
    videos = tf.InternVLVideoProcessor()
    return tok, config, tf.InternVLProcessor(images, tok, videos, image_seq_length=4, chat_template=template)


def _llava_onevision() -> Parts:
    tok = named_tokenizer({"image_token": "<image>", "video_token": "<video>"}, "<|im_end|>")
    grids = [[64 * rows, 64 * columns] for rows in (1, 2) for columns in (1, 2)]
    config = tf.LlavaOnevisionConfig(
        text_config=flat_text(tok, model_type="qwen2"),
        vision_config=siglip(),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
        tie_word_embeddings=False,
    )
    images = tf.LlavaOnevisionImageProcessor(size={"height": 64, "width": 64}, image_grid_pinpoints=grids)
    processor = tf.LlavaOnevisionProcessor(
        images,
        tok,
        tf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>\n", "<|im_end|>"),
    )
    return tok, config, processor


def without_num2words() -> object:
    """While it lasts, SmolVLM's processor opens without a package that it needs for videos alone."""
    module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    return mock.patch.object(module, "num2words", module.num2words or str)


def _smolvlm() -> Parts:
    tok = tokenizer([*IDEFICS_TOKENS, "<video>"], "<end_of_utterance>")
    config = tf.SmolVLMConfig(
        text_config=flat_text(tok, model_type="llama"),
        vision_config=small_vision(image_size=64, patch_size=16),
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=False,
    )
    images = tf.SmolVLMImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    with without_num2words():
        processor = tf.SmolVLMProcessor(
            images, tok, tf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=IDEFICS_TEMPLATE
        )
    return tok, config, processor


def _glm4v() -> Parts:
    names = {
        f"{kind}_{end}": f"<|{end}_of_{kind}|>" for kind in ("image", "video") for end in ("begin", "end")
    }
    names |= {"image_token": "<|image|>", "video_token": "<|video|>", "turn": "<|assistant|>"}
    tok = named_tokenizer(names, "<|user|>")
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = flat_text(tok, model_type="glm4v_text", rope_parameters=rope | {"partial_rotary_factor": 0.5})
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = tf.Glm4vConfig(
        text_config=text,
        vision_config=vision | {"image_size": 112},
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        image_start_token_id=ids["image_begin"],
        image_end_token_id=ids["image_end"],
        video_start_token_id=ids["video_begin"],
        video_end_token_id=ids["video_end"],
        tie_word_embeddings=False,
    )
    # Areas are those of the two frames that a picture counts as.
    images = tf.Glm4vImageProcessor(size={"shortest_edge": 2 * MIN_PIXELS, "longest_edge": 2 * MAX_PIXELS})
    template = chat_template("<|begin_of_image|><|image|><|end_of_image|>", "<|user|>", "<|assistant|>")
    return tok, config, tf.Glm4vProcessor(images, tok, tf.Glm4vVideoProcessor(), chat_template=template)


GEMMA_ROPE = {
    kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
}


def _gemma3() -> Parts:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    names |= {"image_token": "<image_soft_token>", "turn": "<start_of_turn>"}
    tok = named_tokenizer(names, "<end_of_turn>", bos="<bos>")
    text = flat_text(
        tok,
        sliding_window=16,
        layer_types=list(GEMMA_ROPE),
        query_pre_attn_scalar=16,
        bos_token_id=tok.bos_token_id,
        rope_parameters=GEMMA_ROPE,
    )
    config = tf.Gemma3Config(
        text_config=text,
        vision_config=siglip(),
        mm_tokens_per_image=4,
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tok.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    images = tf.Gemma3ImageProcessor(size={"height": 64, "width": 64})
    template = chat_template("<start_of_image>", "<end_of_turn>", "<start_of_turn>", "{{ bos_token }}")
    return tok, config, tf.Gemma3Processor(images, tok, chat_template=template, image_seq_length=4)


def _gemma4() -> Parts:
    names = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
    names |= {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"}
    names |= {"video_token": "<|video|>", "turn": "<|turn>"}
    tok = named_tokenizer(names, "<turn|>", bos="<bos>")
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}
    text = flat_text(
        tok,
        sliding_window=16,
        layer_types=list(GEMMA_ROPE),
        bos_token_id=tok.bos_token_id,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tok),
        global_head_dim=16,
        use_bidirectional_attention="vision",
        rope_parameters=GEMMA_ROPE,
    )
    vision = small_vision(
        num_key_value_heads=2, head_dim=16, pooling_kernel_size=2, position_embedding_size=64
    )
    config = tf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        audio_token_id=ids["audio_token"],
        tie_word_embeddings=False,
    )
    processor = tf.Gemma4Processor(
        tf.Gemma4AudioFeatureExtractor(),
        tf.Gemma4ImageProcessor(pooling_kernel_size=2, max_soft_tokens=70),
        tok,
        tf.Gemma4VideoProcessor(),
        chat_template=chat_template("<|image|>", "<turn|>", "<|turn>", "{{ bos_token }}"),
        image_seq_length=70,
    )
    return tok, config, processor


def _minicpmv4_6() -> Parts:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    for name, tag in (("image", "image"), ("slice", "slice"), ("image_id", "image_id")):
        names |= {f"{name}_start_token": f"<{tag}>", f"{name}_end_token": f"</{tag}>"}
    tok = named_tokenizer(names, "<|im_end|>")
    config = tf.MiniCPMV4_6Config(
        text_config=linear_text(tok, model_type="qwen3_5_text"),
        vision_config=small_vision(image_size=112, patch_size=14, insert_layer_id=0),
        insert_layer_id=0,
        image_size=112,
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    images = tf.MiniCPMV4_6ImageProcessor(scale_resolution=112, max_slice_nums=4)
    template = chat_template("<|image_pad|>", "<|im_end|>")
    videos = tf.MiniCPMV4_6VideoProcessor()
    return tok, config, tf.MiniCPMV4_6Processor(images, videos, tok, chat_template=template)


def _molmo2() -> Parts:
    names = {"image": "<|image|>", "video": "<|video|>", "low": "<im_low>", "col": "<im_col>"}
    marks = {"image_patch": "<im_patch>", "image_start": "<im_start>", "image_end": "<im_end>"}
    marks |= {"low_res_image_start": "<low_res_im_start>"}
    marks |= {"frame_start": "<frame_start>", "frame_end": "<frame_end>"}
    tok = tokenizer(["<|endoftext|>", "<|im_end|>", *names.values(), *marks.values()], "<|im_end|>")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    text = flat_text(tok, additional_vocab_size=8)
    for unknown in ("bos_token_id", "eos_token_id", "tie_word_embeddings"):
        text.pop(unknown)
    vision = small_vision(image_size=[56, 56], patch_size=14, num_position_embeddings=16, **heads)
    adapter = {"hidden_size": 32, "intermediate_size": 64, "text_hidden_size": 64, **heads}
    patch = marks.pop("image_patch")
    config = tf.Molmo2Config(
        text_config=text,
        vision_config=vision,
        adapter_config={"vision_feature_layer": [-1, -2], **adapter},
        image_patch_id=tok.convert_tokens_to_ids(patch),
        **{f"{name}_token_id": tok.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    images = tf.Molmo2ImageProcessor(size={"height": 56, "width": 56}, max_crops=4, overlap_margins=[1, 1])
    template = chat_template("<|image|>", "<|im_end|>")
    return tok, config, tf.Molmo2Processor(images, tf.Molmo2VideoProcessor(), tok, chat_template=template)


def _kimi_k25() -> Parts:
    names = {"image": "<|media_pad|>", "video": "<|kimi_k25_video_placeholder|>"}
    names |= {"start": "<|media_begin|>", "content": "<|media_content|>", "end": "<|media_end|>"}
    tok = tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *names.values()], "<|im_end|>")
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}
    text = flat_text(
        tok,
        model_type="deepseek_v3",
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    )
    text.pop("head_dim")
    config = tf.Kimi_K25Config(
        text_config=text,
        vision_config=small_vision(patch_size=14, pos_emb_height=8, pos_emb_width=8),
        projection_hidden_size=32,
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        vision_start_token_id=ids["start"],
        vision_end_token_id=ids["end"],
        tie_word_embeddings=False,
    )
    picture = f"{names['start']}image{names['content']}{names['image']}{names['end']}"
    template, videos = chat_template(picture, "<|im_end|>"), tf.Kimi_K25VideoProcessor()
    images = tf.Kimi_K25ImageProcessor(max_patches=64)
    return tok, config, tf.Kimi_K25Processor(images, tok, videos, chat_template=template)


def _paligemma() -> Parts:
    tok = named_tokenizer({"image_token": "<image>"}, "<eos>", bos="<bos>")
    config = tf.PaliGemmaConfig(
        text_config=flat_text(tok, model_type="gemma", bos_token_id=tok.bos_token_id, num_image_tokens=16),
        vision_config=siglip(projection_dim=64, num_image_tokens=16),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        tie_word_embeddings=False,
    )
    images = tf.SiglipImageProcessor(size={"height": 64, "width": 64})
    images.image_seq_length = 16
    return tok, config, tf.PaliGemmaProcessor(images, tok, chat_template=chat_template("<image>", "", ""))


def written(parts: Callable[[], Parts], folder: Path) -> Path:
    """A family's checkpoint, with random weights by which its pictures make a difference."""
    tok, config, processor = parts()
    seed = 4 if parts is _minicpmv4_6 else 3
    return save(folder, config, processor, [tok.eos_token_id, tok.pad_token_id], tok.pad_token_id, seed)


OTHERS = {
    parts.__name__.removeprefix("_"): functools.partial(written, parts)
    for parts in (
        _qwen2_vl,
        _qwen3_5,
        _internvl,
        _llava_onevision,
        _smolvlm,
        _glm4v,
        _gemma3,
        _gemma4,
        _minicpmv4_6,
        _molmo2,
        _kimi_k25,
        _paligemma,
    )
}
"""Families that not every test goes through."""


OWN_LIMITS = (56 * 56, 12845056)
_EDGES = {"shortest_edge": OWN_LIMITS[0], "longest_edge": OWN_LIMITS[1]}
_PIXELS = {"min_pixels": OWN_LIMITS[0], "max_pixels": OWN_LIMITS[1]}
PIXEL_FORMS = {
    "edges": {"size": _EDGES},
    "top level": _PIXELS,
    "top level and edges": {**_PIXELS, "size": _EDGES},
    "top level that contradicts edges": {**_PIXELS, "size": {"shortest_edge": 784, "longest_edge": 3136}},
    "top level and pixels in size": {**_PIXELS, "size": _PIXELS},
    "pixels in size": {"size": _PIXELS},
    "one at the top level": {"max_pixels": OWN_LIMITS[1]},
}
"""The forms in which published configurations state pixel limits: here always `OWN_LIMITS`."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def restated(base: str, folder: Path, form: str, file: str = PROCESSOR_FILES[1]) -> str:
    """A copy of a checkpoint with its pixel limits in one of `PIXEL_FORMS`, in one of `PROCESSOR_FILES`."""
    shutil.copytree(base, folder)
    whole = json.loads((folder / PROCESSOR_FILES[0]).read_text())
    images = {name: value for name, value in whole.pop("image_processor").items() if name != "size"}
    images |= PIXEL_FORMS[form]
    if file == PROCESSOR_FILES[0]:
        whole["image_processor"] = images
    else:
        (folder / file).write_text(json.dumps(images))
    (folder / PROCESSOR_FILES[0]).write_text(json.dumps(whole))
    return str(folder)


FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "idefics3": idefics3}
ONE_FAST = [pytest.param(name, marks=() if name == "qwen2_5_vl" else pytest.mark.slow) for name in FAMILIES]
"""Every family in the full run, one in the fast tests: for what goes the same way through all of them."""


@functools.cache
def checkpoint(family: str) -> str:
    """The folder of a family's checkpoint, built once in a test session for all of its processes."""
    folder = environment.cache_root() / "tiny-checkpoints" / family
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            draft = folder.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)
            (FAMILIES | OTHERS)[family](draft)
            draft.rename(folder)
    return str(folder)


SIZES = [
    (60, 90),
    (150, 70),
    (64, 64),
    (30, 200),
    (120, 120),
    (41, 57),
    (200, 33),
    (97, 64),
    (64, 128),
    (77, 77),
]


def documents() -> list[dict]:
    """Ten documents: noise images of ragged sizes, prompts from two words to a paragraph."""
    rng = np.random.default_rng(0)
    docs = []
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        text = f"Picture {number}: " + " ".join(CORPUS[: number % 4 + 1]) * (number % 3 + 1)
        docs.append({"image": Image.fromarray(pixels), "text": text})
    return docs


def to_messages(doc: dict) -> list[dict]:
    """One user turn: the image, then the text."""
    content = [{"type": "image", "url": doc["image"]}] if doc["image"] is not None else []
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["text"]}]}]


def requests_for(
    model: object, docs: list[dict], given: dict, repeats: int = 1, task: str = "tiny"
) -> list[Instance]:
    """The requests that lmms-eval would make, clones included, with the model told of the documents."""
    model.task_dict[task] = {"test": docs}
    requests = []
    for doc_id, doc in enumerate(docs):
        instance = Instance(
            request_type="generate_until",
            arguments=(doc["text"], to_messages, dict(given), doc_id, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": doc_id, "repeats": repeats, "split": "test"},
        )
        requests.extend([instance] * repeats)
    return requests


def labels_seen(monkeypatch) -> list[torch.Tensor]:
    """What SFT's steps learn from then on: each micro-batch's labels, shape (batch, tokens)."""
    from dcsft_harness.training.sft import SftTrainer

    seen: list[torch.Tensor] = []
    original = SftTrainer.training_step

    def step(self, model, inputs, *rest):
        seen.append(inputs["labels"].clone())
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(SftTrainer, "training_step", step)
    return seen
