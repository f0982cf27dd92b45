"""A blank checkpoint: a tiny Qwen2.5-VL or Qwen3-VL with random weights, its tokenizer and its processor."""

from collections.abc import Iterable
from typing import Any

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
ARCHITECTURES = ("qwen2_5_vl", "qwen3_vl")
"""What can be made, by transformers' model types; the first is what the embedded checkpoint is."""
SPECIAL = [END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD]
VOCABULARY = 768
PATCH, MERGE = 14, 2
INIT_STD = 0.05
ROPE_THETA = 10.0
"""Base of the language model's rotary angles. Pictures here are at most four tokens wide: with the usual
10,000, neighbouring columns would differ by a few thousandths of a radian, too little to tell them apart."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's dialogue layout, without its default system message."""


def tokenizer(corpus: Iterable[str]) -> Any:  # noqa: ANN401 - a transformers tokenizer
    """A byte-level BPE tokenizer of at most `VOCABULARY` entries, trained on the corpus."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=SPECIAL[1:2] + SPECIAL[3:],
        model_max_length=4096,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def processor(tokens: Any, architecture: str = ARCHITECTURES[0]) -> Any:  # noqa: ANN401 - transformers' types
    """The architecture's processor around a tokenizer, with pixel limits from one token up to 802,816.

    Both have Qwen2-VL's image processor. Published Qwen3-VL checkpoints have patches of 16 pixels and
    another normalisation; both are settings, and are here as in Qwen2.5-VL: no picture needs resizing.
    """
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    whole, videos = {
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }[architecture]
    size = {"shortest_edge": 28 * 28, "longest_edge": 802816}
    return whole(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=PATCH, merge_size=MERGE),
        tokenizer=tokens,
        video_processor=videos(size=size, patch_size=PATCH, merge_size=MERGE),
        chat_template=CHAT_TEMPLATE,
    )


def model(tokens: Any, architecture: str = ARCHITECTURES[0]) -> Any:  # noqa: ANN401 - a transformers model
    """The tiny network, float32, about 1.8 million random parameters from torch's current seed."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

    ids = {name: tokens.convert_tokens_to_ids(name) for name in SPECIAL}
    config = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}[architecture](len(tokens), ids)
    # 0.02, the default, suits wide layers; at width 96 to 128 it delays the first descent several-fold.
    config.text_config.initializer_range = config.vision_config.initializer_range = INIT_STD
    config.initializer_range = INIT_STD
    made = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
    network = made[architecture](config)
    network.generation_config.eos_token_id = [ids[IM_END], ids[END_OF_TEXT]]
    network.generation_config.pad_token_id = ids[END_OF_TEXT]
    return network


def _qwen2_5_vl(vocabulary: int, ids: dict[str, int]) -> Any:  # noqa: ANN401 - a transformers configuration
    from transformers import Qwen2_5_VLConfig

    rotary = {"mrope_section": [4, 6, 6]}
    return Qwen2_5_VLConfig(
        text_config=_language(vocabulary, ids, rotary) | {"intermediate_size": 448},
        vision_config=_vision() | {"window_size": 112, "fullatt_block_indexes": [0, 1, 2, 3]},
        **_marks(ids),
    )


def _qwen3_vl(vocabulary: int, ids: dict[str, int]) -> Any:  # noqa: ANN401 - a transformers configuration
    from transformers import Qwen3VLConfig

    # Frequencies go to time, rows and columns in turn, so that sections beyond a third would be cut.
    rotary = {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    positions = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    return Qwen3VLConfig(
        text_config=_language(vocabulary, ids, rotary) | {"intermediate_size": 320, "head_dim": 32},
        vision_config=_vision() | positions,
        **_marks(ids),
    )


def _language(vocabulary: int, ids: dict[str, int], rotary: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, **rotary},
        "tie_word_embeddings": True,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[IM_END],
        "pad_token_id": ids[END_OF_TEXT],
    }


def _vision() -> dict[str, Any]:
    return {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    }


def _marks(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids[IMAGE_PAD],
        "video_token_id": ids[VIDEO_PAD],
        "vision_start_token_id": ids[VISION_START],
        "vision_end_token_id": ids[VISION_END],
        "tie_word_embeddings": True,
    }
