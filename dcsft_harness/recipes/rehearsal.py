"""A rehearsal: the whole chain at a published size, with random weights, measured stage by stage.

Each stage is the real command in a process of its own, after its `--dry-run`. The table shows what the dry run
estimated beside what the stage took.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsft_harness.scoring.verdict import Verdict

RESULT = "rehearsal.json"
ROWS = "rows.jsonl"
BASE = "base"
SCORER = f"{__name__}:every_other"
ITEMS = 4


def every_other(response: str, *, answer: str, truncated: bool = False) -> Verdict:
    """Scores about half of all responses as right, by their text: random weights never answer rightly."""
    import zlib

    return Verdict(float(zlib.crc32(f"{answer}{response}".encode()) % 2), response or "nothing")


@dataclass
class Measured:
    """What a stage took, beside its dry run's estimate; None where unknown.

    Attributes:
        stage: its name.
        command: its command line.
        seconds: wall-clock time of the process.
        memory: peak memory in bytes: of the CUDA device if one was used, else of the process.
        disk: bytes of its artifact.
        tokens_per_second: prompt and response tokens over the stage's own seconds.
        estimated_memory: the dry run's estimate, in bytes.
        estimated_seconds: the dry run's estimate.
        estimated_disk: the dry run's estimate, in bytes.
    """

    stage: str
    command: str
    seconds: float
    memory: int
    disk: int
    tokens_per_second: float | None = None
    estimated_memory: float | None = None
    estimated_seconds: float | None = None
    estimated_disk: float | None = None


def stages(output: Path, limits: Mapping[str, int] | None = None) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, verb and options of each stage, in order; `limits` replaces numbers of samples and steps."""
    base, rows = str(output / BASE), str(output / ROWS)
    model = {"model": base, "model_args": "dtype=bfloat16,batch_size=4"}
    own = {"data": rows, "scorer": SCORER}
    steps = {"max_steps": 2, "save_steps": None, "dtype": "bfloat16"}
    return [
        ("sample", "sample", {**model, **own, "samples": 8, "max_new_tokens": 16}),
        ("label", "label", {"rollouts": str(output / "sample")}),
        ("curate", "curate", {"labels": str(output / "label"), "keep": ["easy", "medium"]}),
        ("sft", "train sft", {"model": base, "data": str(output / "curate"), **steps, "batch_size": 4}),
        (
            "grpo",
            "train grpo",
            {"model": base, "data": str(output / "curate"), **steps}
            | {"batch_size": 8, "num_generations": 4, "max_completion_length": 16},
        ),
        ("dpo", "train dpo", {"model": base, "data": str(output / "sample"), **steps, "batch_size": 4}),
        ("merge", "merge", {"adapter": str(output / "sft")}),
        (
            "evaluate",
            "evaluate",
            {**model, **own, "model": str(output / "merge"), "name": "tuned", "samples": 1},
        ),
        ("leaderboard", "leaderboard build", {"scores": [str(output / "evaluate")]}),
    ]


def write_rows(folder: Path, side: int) -> None:
    """Writes `ITEMS` digits as a user's own rows, with images of one size."""
    from PIL import Image

    from dcsft_harness.data.digits import suite

    lines = []
    for number, row in enumerate(suite.load("dcsft_digits_pool").select(range(ITEMS))):
        image = f"{number}.png"
        row["image"].convert("RGB").resize((side, side), Image.Resampling.NEAREST).save(folder / image)
        lines.append({"question": "<image>" + row["prompt"], "answer": row["target"], "image": image})
    (folder / ROWS).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
