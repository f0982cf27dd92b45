"""Makes a base checkpoint from scratch: a blank one, its tokenizer and its training."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcsft_harness.artifacts import manifest
from dcsft_harness.coordinates import box_space
from dcsft_harness.data.digits import curriculum, drawing
from dcsft_harness.data.digits.curriculum import Example, PretrainConfig

if TYPE_CHECKING:
    import torch
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        ProcessorMixin,
    )

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
ARCHITECTURES = ("qwen2_5_vl", "qwen3_vl")
"""The supported architectures, by transformers' model types; the embedded checkpoint has the first."""
SPECIAL = [END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD]
VOCABULARY = 768
PATCH, MERGE = 14, 2
INIT_STD = 0.05
ROPE_THETA = 10.0
"""Base of the language model's rotary angles. Images here are at most four tokens wide: with the usual
10,000, adjacent columns would differ by a few thousandths of a radian, too little to distinguish them."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's chat format, without its default system message."""


def blank_tokenizer(corpus: Iterable[str]) -> "PreTrainedTokenizerFast":
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


def blank_processor(
    tokens: "PreTrainedTokenizerFast", architecture: str = ARCHITECTURES[0]
) -> "ProcessorMixin":
    """The architecture's processor around a tokenizer, with pixel limits from one token up to 802,816.

    Both use Qwen2-VL's image processor. Published Qwen3-VL checkpoints have patches of 16 pixels and another
    normalization; both are settings, and are as in Qwen2.5-VL here: no image needs resizing.
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


def blank_model(tokens: "PreTrainedTokenizerFast", architecture: str = ARCHITECTURES[0]) -> "PreTrainedModel":
    """The tiny network, float32, about 1.8 million random parameters from torch's current seed."""
    import transformers

    ids = {name: tokens.convert_tokens_to_ids(name) for name in SPECIAL}
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": [4, 6, 6]}
    text: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": 128,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_parameters": rotary,
        "tie_word_embeddings": True,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[IM_END],
        "pad_token_id": ids[END_OF_TEXT],
    }
    vision: dict[str, Any] = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
    }
    if architecture == "qwen3_vl":
        # Frequencies go to time, rows and columns in turn, which would cut sections beyond a third.
        rotary |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        text |= {"intermediate_size": 320, "head_dim": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
        kind, made = transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration
    else:
        vision |= {"window_size": 112, "fullatt_block_indexes": [0, 1, 2, 3]}
        kind, made = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration
    config = kind(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )
    # 0.02, the default, suits wide layers; at width 96 to 128 it delays the first drop of the loss
    # several-fold.
    config.text_config.initializer_range = config.vision_config.initializer_range = INIT_STD
    config.initializer_range = INIT_STD
    network = made(config)
    network.generation_config.eos_token_id = [ids[IM_END], ids[END_OF_TEXT]]
    network.generation_config.pad_token_id = ids[END_OF_TEXT]
    return network


MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def patches(image: Image.Image) -> NDArray[np.float32]:
    """As `blank_processor`, in a tenth of the time, for an image that needs no resizing.

    Of RGB, both sides multiples of 28 pixels: float32 (patches, 1176), 2x2 adjacent patches together, each
    (channel, frame, row, column).
    """
    pixels = (np.asarray(image, dtype=np.float32) / 255.0 - MEAN) / STD
    rows, columns = image.height // PATCH, image.width // PATCH
    m, p = MERGE, PATCH
    blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    flat = blocks.reshape(rows * columns, 3, 1, p, p)
    return np.repeat(flat, 2, axis=2).reshape(rows * columns, -1)


def collate(examples: list[Example], tokens: "PreTrainedTokenizerBase") -> "dict[str, torch.Tensor]":
    """Model inputs of a batch: right-padded, with labels only on the answers and their end mark."""
    import torch

    pad, image_id = tokens.pad_token_id, tokens.convert_tokens_to_ids(IMAGE_PAD)
    rows: list[tuple[list[int], int]] = []
    for example in examples:
        count = (example.image.height // 28) * (example.image.width // 28)
        head = (
            f"{IM_START}user\n{VISION_START}{IMAGE_PAD * count}{VISION_END}"
            f"{example.prompt}{IM_END}\n{IM_START}assistant\n"
        )
        ids = tokens(head, add_special_tokens=False)["input_ids"]
        answer = tokens(example.answer + IM_END, add_special_tokens=False)["input_ids"]
        rows.append((ids + answer, len(ids)))
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, (ids, start) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
        mask[row, : len(ids)] = 1
    grids = [[1, e.image.height // PATCH, e.image.width // PATCH] for e in examples]
    return {
        "input_ids": inputs,
        "attention_mask": mask,
        "labels": labels,
        "mm_token_type_ids": (inputs == image_id).long(),
        "pixel_values": torch.from_numpy(np.concatenate([patches(e.image) for e in examples])),
        "image_grid_thw": torch.tensor(grids),
    }


def schedule(step: int, steps: int) -> float:
    """The factor on every learning rate: a warm-up over 100 steps, then a cosine decay to a fiftieth."""
    if step < 100:
        return (step + 1) / 100
    share = (step - 100) / max(1, steps - 100)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def optimizers(model: "torch.nn.Module", peak: float) -> "list[torch.optim.Optimizer]":
    """Muon for the layers' matrices, AdamW for embeddings, patches, norms and biases.

    With AdamW alone, 500 steps on scenes of one digit leave the loss on their questions at chance level (0.91
    nats per token, against 0.68). `peak` is the highest learning rate of Muon, whose updates are scaled to
    AdamW's size; AdamW's own is 0.4 times as high.
    """
    import torch

    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "embed" not in name else rest).append(weight)
    return [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.4 * peak, betas=(0.9, 0.98), weight_decay=0.02),
    ]


def train(
    config: PretrainConfig, report: Callable[[int, int], None] | None = None
) -> tuple[Any, Any, dict[str, float]]:
    """Trains from random weights; with the same number of threads a run repeats exactly.

    `report` is called with (steps done, total steps). Returns the model, its processor, and the mean loss per
    answer token of each family over the last hundred steps, in nats.
    """
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    torch.manual_seed(config.seed)
    rng = np.random.Generator(np.random.PCG64(config.seed))
    digits = drawing.split("pretrain")
    tokens = blank_tokenizer(curriculum.corpus(digits, rng))
    processor, model = blank_processor(tokens, config.architecture), blank_model(tokens, config.architecture)
    scaled = box_space(config.architecture) == "norm1000"
    both = optimizers(model, config.learning_rate)
    schedulers = [LambdaLR(one, lambda step: schedule(step, config.steps)) for one in both]
    kept = config.batch_size * 25
    losses: dict[str, deque[float]] = {name: deque(maxlen=kept) for name in config.families}
    model.train()
    for step in range(config.steps):
        progress = step / config.steps
        examples = curriculum.batch(digits, rng, progress, config.batch_size, config.families)
        if scaled:
            examples = [curriculum.thousandths(example) for example in examples]
        per_example = _losses(model, collate(examples, tokens))
        model.zero_grad()
        per_example.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(both, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        for example, value in zip(examples, per_example.tolist(), strict=True):
            losses[example.family].append(value)
        if report is not None:
            report(step + 1, config.steps)
    return model, processor, {name: float(np.mean(values)) for name, values in losses.items() if values}


def _losses(model: "PreTrainedModel", inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """The mean cross-entropy of each example's answer tokens, shape (batch,)."""
    import torch

    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    chosen = labels != -100
    return (loss * chosen).sum(1) / chosen.sum(1)


def pretrain(
    output: Path, config: PretrainConfig, report: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Makes a base checkpoint and writes it as an artifact.

    Returns the manifest's notes: parameters, seconds and the last losses by family.
    """
    started = time.monotonic()
    with manifest.writing("checkpoint", output, config.as_dict()) as draft:
        model, processor, losses = train(config, report)
        model.save_pretrained(draft.folder)
        processor.save_pretrained(draft.folder)
        draft.notes.update(
            parameters=sum(weight.numel() for weight in model.parameters()),
            losses=losses,
            training_seconds=round(time.monotonic() - started),
        )
    return draft.notes
