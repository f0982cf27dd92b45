"""Makes the embedded base checkpoint from nothing: tokenizer, curriculum, training, model card."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dcsft_harness.digits import blank, curriculum, splits
from dcsft_harness.digits.curriculum import Example

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def patches(image: Image.Image) -> NDArray[np.float32]:
    """What Qwen2.5-VL's image processor makes of a picture that needs no resizing, in a tenth of the time.

    Args:
        image: RGB, both sides multiples of 28 pixels.

    Returns:
        float32 array (patches, 1176): 2x2 neighbours together, each (channel, frame, row, column).
    """
    pixels = (np.asarray(image, dtype=np.float32) / 255.0 - MEAN) / STD
    rows, columns = image.height // blank.PATCH, image.width // blank.PATCH
    m, p = blank.MERGE, blank.PATCH
    blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    flat = blocks.reshape(rows * columns, 3, 1, p, p)
    return np.repeat(flat, 2, axis=2).reshape(rows * columns, -1)


def collate(examples: list[Example], tokens: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """Model inputs of a batch: right padded, labels on the answers and their end mark only."""
    pad, image_id = tokens.pad_token_id, tokens.convert_tokens_to_ids(blank.IMAGE_PAD)
    rows: list[tuple[list[int], int]] = []
    for example in examples:
        count = (example.image.height // 28) * (example.image.width // 28)
        head = (
            f"{blank.IM_START}user\n{blank.VISION_START}{blank.IMAGE_PAD * count}{blank.VISION_END}"
            f"{example.prompt}{blank.IM_END}\n{blank.IM_START}assistant\n"
        )
        ids = tokens(head, add_special_tokens=False)["input_ids"]
        answer = tokens(example.answer + blank.IM_END, add_special_tokens=False)["input_ids"]
        rows.append((ids + answer, len(ids)))
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, (ids, start) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
        mask[row, : len(ids)] = 1
    grids = [[1, e.image.height // blank.PATCH, e.image.width // blank.PATCH] for e in examples]
    return {
        "input_ids": inputs,
        "attention_mask": mask,
        "labels": labels,
        "mm_token_type_ids": (inputs == image_id).long(),
        "pixel_values": torch.from_numpy(np.concatenate([patches(e.image) for e in examples])),
        "image_grid_thw": torch.tensor(grids),
    }


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine to a fiftieth of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    share = (step - 100) / max(1, steps - 100)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def train(output: Path, steps: int, batch_size: int, peak: float, seed: int) -> float:
    """Trains from random weights and saves model and processor.

    Returns:
        Seconds taken.
    """
    torch.manual_seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    digits = splits.split("pretrain")
    tokens = blank.tokenizer(curriculum.corpus(digits, rng))
    processor, model = blank.processor(tokens), blank.model(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    started = time.monotonic()
    losses: dict[str, list[float]] = {family: [] for family in curriculum.FAMILIES}
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        examples = curriculum.batch(digits, rng, step / steps, batch_size)
        inputs = collate(examples, tokens)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        chosen = labels[:, 1:] != -100
        per_example = (loss * chosen).sum(1) / chosen.sum(1)
        optimizer.zero_grad()
        per_example.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for example, value in zip(examples, per_example.tolist(), strict=True):
            losses[example.family].append(value)
        if (step + 1) % 100 == 0:
            means = " ".join(f"{k} {np.mean(v):.3f}" for k, v in losses.items())
            print(f"step {step + 1}/{steps} {time.monotonic() - started:.0f} s {means}", flush=True)
            losses = {family: [] for family in curriculum.FAMILIES}
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            model.save_pretrained(output)
            processor.save_pretrained(output)
    return time.monotonic() - started


if __name__ == "__main__":
    import sys

    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), 0)
