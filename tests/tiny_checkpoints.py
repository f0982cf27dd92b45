"""Tiny random checkpoints with real processors, built on disk in a second or two.

Every family goes through `AutoProcessor` and `AutoModelForImageTextToText` like a published
checkpoint: a byte-level BPE tokenizer trained on a few lines, a chat template, an image
processor, safetensors weights, and a generation config that carries traps on purpose
(a repetition penalty and sampling switched on, as Qwen's published files do).
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
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

_FOLDER = tempfile.TemporaryDirectory(prefix="tiny_checkpoints_")


@functools.cache
def checkpoint(family: str) -> str:
    """The folder of a family's checkpoint, built once in a test session."""
    return str(FAMILIES[family](Path(_FOLDER.name) / family))


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
