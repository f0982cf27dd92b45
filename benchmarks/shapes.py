"""The models that are measured: the embedded digits checkpoint, or a published size with random weights."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dcsft_harness.data import digits
from dcsft_harness.data.digits import suite
from dcsft_harness.models.arguments import GenerationArguments
from dcsft_harness.models.engine import Prepared
from dcsft_harness.models.hf import DcsftHF
from dcsft_harness.models.requests import Item

SAMPLES = 8
# The paper's sampling; every response has exactly NEW_TOKENS tokens, so that all ways do equal work.
NEW_TOKENS = 4
ARGUMENTS = GenerationArguments(
    max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, temperature=0.9, top_k=50
)

# Sizes as published in the checkpoints' configuration files. The vocabulary is the digits suite's
# tokenizer's in the prompt, and full size in the model.
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "vocab_size": 151936,
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "layer_types": ["full_attention"] * 36,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
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
    }
}


@cache
def folder(shape: str, layers: int | None = None) -> str:
    """The checkpoint folder of a shape; random weights are made once a process and go with it.

    Args:
        shape: "digits", or a key of `PUBLISHED`.
        layers: decoder layers, for a trial; None has all.
    """
    if shape == "digits":
        return str(digits.path())
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    home = tempfile.mkdtemp(prefix="dcsft-bench-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    target = Path(home) / shape
    shutil.copytree(digits.path(), target, ignore=shutil.ignore_patterns("*.safetensors"))
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part, values in PUBLISHED[shape].items():
        if isinstance(values, dict):
            config[part] |= values
        else:
            config[part] = values
    if layers is not None:
        config["text_config"] |= {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
        config["vision_config"] |= {"depth": layers}
    path.write_text(json.dumps(config), encoding="utf-8")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(target)).to(torch.bfloat16)
    model.save_pretrained(target)
    return str(target)


def device_of(shape: str) -> str:
    """Where a shape is measured: digits on the CPU, for comparison between machines; others on CUDA."""
    return "cuda" if shape != "digits" and torch.cuda.is_available() else "cpu"


def load(shape: str, side: int, **given: object) -> DcsftHF:
    """A model whose images all have one size."""
    pixels = side**2
    return DcsftHF(
        pretrained=folder(shape), device=device_of(shape), min_pixels=pixels, max_pixels=pixels, **given
    )


def items(model: DcsftHF, number: int, arguments: GenerationArguments = ARGUMENTS) -> list[Item]:
    """Digits of the pool."""
    model.task_dict["bench"] = {"test": suite.load("dcsft_digits_pool")}
    wanted = list(range(SAMPLES))
    return [
        Item("bench", "test", at, arguments, "", to_messages, wanted, list(wanted)) for at in range(number)
    ]


def to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the image, then the question."""
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["prompt"]}]
    return [{"role": "user", "content": content}]


def prepare(model: DcsftHF, asked: list[Item]) -> list[Prepared]:
    """Items through the model's processor."""
    return [model._prepare(one) for one in asked]
