"""Folders as a study of several runs leaves them: curated sets, adapters with logs, scores, labels."""

import json

import numpy as np

from dcsft_harness.artifacts import manifest
from dcsft_harness.records import Label, write_table
from tests.leaderboard.test_leaderboard import ID, OOD_A, OOD_R, scores_folder


def curated(folder, easy, medium, hard):
    with manifest.writing("curated set", folder, {"keep": ["easy"]}) as draft:
        draft.notes |= {"easy": easy, "medium": medium, "hard": hard}
    return folder


def adapter(folder, data, *, steps=40, seconds=60.0, flops=1e12, scale=1.0, checkpoints=()):
    """An adapter with its ledger and log, and further checkpoints inside it."""
    settings = {"method": "sft", "learning_rate": 1e-3, "seed": 0}
    with manifest.writing("adapter", folder, settings, {"data": data}) as draft:
        draft.notes["ledger"] = {
            "steps": steps, "prompts": 16 * steps, "generated": 0, "prompt_tokens": 900 * steps,
            "completion_tokens": 50 * steps, "flops": flops, "seconds": seconds, "peak_memory_bytes": 1 << 30,
        }  # fmt: skip
        rng = np.random.default_rng(steps)
        rows = [
            {
                "step": n,
                "loss": 1 / n,
                "grad_norm": scale * (1 + rng.random()) / n**0.3,
                "seconds": seconds * n / steps,
            }
            for n in range(1, steps + 1)
        ]
        (draft.folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for step in checkpoints:
            inner = draft.folder / f"checkpoint-{step}"
            inner.mkdir()
            (inner / "adapter_config.json").write_text(json.dumps({"r": 8, "step": step}))
    return folder


def answers(rng, n, share):
    return [float(value) for value in rng.random(n) < share]


def study(folder, n=120):
    """A cold start, SFT on several mixes with checkpoints of one of them, and three seeds of another."""
    rng = np.random.default_rng(0)
    made = []

    def evaluated(name, shares, **inputs):
        tasks = {task: answers(rng, n, share) for task, share in zip((ID, OOD_R, OOD_A), shares, strict=True)}
        made.append(scores_folder(folder / f"scores-{len(made)}", name, tasks, inputs=inputs))

    evaluated("cold start", (0.6, 0.5, 0.35))
    sets = {
        "SFT": curated(folder / "set-all", 40, 40, 20),
        "SFT-EM": curated(folder / "set-em", 50, 50, 0),
        "hard only": curated(folder / "set-hard", 0, 0, 100),
    }
    cost = {"SFT": 60.0, "SFT-EM": 55.0, "hard only": 80.0}
    shares = {"SFT": (0.85, 0.52, 0.4), "SFT-EM": (0.9, 0.65, 0.5), "hard only": (0.8, 0.35, 0.2)}
    for number, (name, data) in enumerate(sets.items(), start=1):
        run = adapter(
            folder / f"run {name}", data, steps=40 + number, seconds=cost[name], flops=1e12 * cost[name],
            scale=number, checkpoints=(10, 20) if name == "SFT-EM" else (),
        )  # fmt: skip
        evaluated(name, shares[name], adapter=run)
        if name == "SFT-EM":
            evaluated("SFT-EM @10", (0.7, 0.55, 0.4), adapter=run / "checkpoint-10")
            evaluated("SFT-EM @20", (0.8, 0.6, 0.45), adapter=run / "checkpoint-20")
    for seed in (1, 2, 3):
        run = adapter(folder / f"grpo-{seed}", sets["SFT-EM"], steps=100, seconds=900.0 + seed, flops=2e14)
        evaluated(f"GRPO (seed {seed})", (0.88, 0.6 + 0.03 * seed, 0.5), adapter=run)
    return made


def labels(folder, n=120):
    """Labels of the ID and the first OOD task's items: a third each."""
    kinds = (("easy", 8), ("medium", 4), ("hard", 0))
    rows = [
        Label(f"{task}-{i:03}", 8, kinds[i % 3][1], kinds[i % 3][1] / 8, 0.0, 1.0, kinds[i % 3][0], task)
        for task in (ID, OOD_R)
        for i in range(n)
    ]
    with manifest.writing("labels", folder, {}) as draft:
        write_table(draft.folder / "labels.parquet", Label, rows)
    return folder
