"""Training: steps per second and peak memory by method, GRPO's split, and `train_sft` against bare TRL.

    python -m benchmarks.training --rounds 5

Each method runs in a new process, whose peak memory is recorded. The bare script is what a careful user of
TRL would write for the same run: same base, data, LoRA layers, pixel limits and arguments, no gradient
checkpointing on a CPU, a log line per step, the adapter saved at the end. Both are timed in total, from the
base on disk to the adapter on disk, and per step.
"""

import contextlib
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import shapes
from benchmarks.measuring import synchronize
from dcsft_harness import lmms
from dcsft_harness.curation import conversations
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import rehearsal
from dcsft_harness.stages import STAGES

if TYPE_CHECKING:
    from datasets import Dataset

COLD, POOL = "dcsft_digits_cold", "dcsft_digits_pool"
SIDE = {"qwen2.5-vl-3b": 896}
"""Image sides in pixels; digits keep the size that their processor gives them."""
STEPS = {"digits": 30, "qwen2.5-vl-3b": 10}
GRPO_STEPS = {"digits": 5, "qwen2.5-vl-3b": 4}
MICRO = {"qwen2.5-vl-3b": 4}
"""Samples per forward pass, where a batch of 16 does not fit at once."""
COLOCATED = "GRPO, LoRA, TRL's vLLM colocated"
METHODS = ("SFT, LoRA", "SFT, all parameters", "GRPO, LoRA", COLOCATED, "DPO, LoRA")


def settings(shape: str, method: str, layers: int | None = None) -> dict[str, Any]:
    """The configuration of one method; what is left out is the paper's.

    Few layers are a trial: small images, two small steps.
    """
    side, grpo = 224 if layers else SIDE.get(shape), method.startswith("GRPO")
    steps = 2 if layers else (GRPO_STEPS if grpo else STEPS)[shape]
    given: dict[str, Any] = {
        "max_steps": steps,
        "save_steps": None,
        "learning_rate": 1e-4,
        "full": "all parameters" in method,
        "micro_batch_size": 2 if layers else MICRO.get(shape),
    }
    if method == COLOCATED:  # whose images have the sizes that vLLM produces: those of the base's own limits
        given["extra"] = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    elif side is not None:
        given |= {"min_pixels": side**2, "max_pixels": side**2}
    if layers:
        given |= {"batch_size": shapes.SAMPLES if grpo else shapes.FEW}
    return given | ({"max_completion_length": 16} if grpo else {"batch_size": given.get("batch_size", 16)})


class Steps:
    """Records when each step ended."""

    def __init__(self) -> None:
        """No step has ended."""
        self.ends: list[float] = []

    def __call__(self, *_: object, **__: object) -> None:
        """A step has ended."""
        synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The median step time, without the first step."""
        return statistics.median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


def rows(task: str) -> "Dataset":
    """A task's documents as training data."""
    (opened,) = lmms.open_tasks([task]).values()
    return conversations.from_task(opened)


def measure(method: str, shape: str, layers: int | None) -> dict[str, Any]:
    """Measures one method, in a fresh process."""
    if method == COLOCATED and not (torch.cuda.is_available() and find_spec("vllm")):
        return {"failed": "not measured: it needs a GPU, and vLLM beside TRL"}
    base, steps = shapes.folder(shape, layers), Steps()
    with tempfile.TemporaryDirectory(prefix="dcsft-bench-") as home:
        try:
            with _timed() as spent:
                notes = _train(method, base, Path(home) / "out", settings(shape, method, layers), steps)
        except HarnessError as error:
            return {"failed": str(error)}
    found = {
        "batch": notes["batch"],
        "steps per second": round(1 / steps.seconds, 3),
        "peak GB": round(notes["ledger"]["peak_memory_bytes"] / 1e9, 2),
    }
    if method.startswith("GRPO"):
        whole = steps.ends[-1] - spent["began"]
        parts = {name: spent[name] for name in ("drawing", "judging", "references")}
        parts["updating"] = whole - sum(parts.values())
        found["share"] = {name: round(value / whole, 3) for name, value in parts.items()}
    return found


def _train(method: str, base: str, output: Path, given: dict[str, Any], steps: Steps) -> dict[str, Any]:
    from dcsft_harness.training import grpo, sft
    from dcsft_harness.training.config import GrpoConfig, SftConfig

    if method.startswith("DPO"):
        rehearsal.write_rows(output.parent, round(given.get("max_pixels", 224**2) ** 0.5))
        given |= {"model": base, "data": str(output.parent / rehearsal.PAIRS), "batch_size": rehearsal.ITEMS}
        return {**STAGES["train dpo"](output, steps, **given), "batch": rehearsal.ITEMS}
    if method.startswith("GRPO"):
        config = GrpoConfig.from_options(given)
        data, judge = grpo.open_data(POOL, None, None)
        notes = grpo.train_grpo(base, data, judge, output, config, progress=steps, source=POOL)
    else:
        config = SftConfig.from_options(given)  # type: ignore[assignment]
        notes = sft.train_sft(base, rows(COLD), output, config, progress=steps, source=COLD)  # type: ignore[arg-type]
    return {**notes, "batch": config.batch_size}


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Seconds that GRPO spends on sampling, on scoring, and on other work before the update."""
    from dcsft_harness.training.grpo import GrpoTrainer

    spent = {"drawing": 0.0, "judging": 0.0, "references": 0.0, "began": 0.0}
    whole = {"seconds": 0.0}

    def timing(name: str, account: dict[str, float], key: str) -> Callable[..., Any]:
        inner = getattr(GrpoTrainer, name)

        def timed(*given: object, **named: object) -> object:
            synchronize()
            start = time.perf_counter()
            spent["began"] = spent["began"] or start
            try:
                return inner(*given, **named)
            finally:
                synchronize()
                account[key] += time.perf_counter() - start

        return timed

    with contextlib.ExitStack() as stack:
        from unittest import mock

        for name, account, key in (
            ("_generate", spent, "drawing"),
            ("_calculate_rewards", spent, "judging"),
            ("_generate_and_score_completions", whole, "seconds"),
        ):
            stack.enter_context(mock.patch.object(GrpoTrainer, name, timing(name, account, key)))
        yield spent
        spent["references"] = whole["seconds"] - spent["drawing"] - spent["judging"]


def bare(base: str, data: "Dataset", output: Path, given: dict[str, Any], steps: Steps) -> None:
    """The same run as a script that uses only TRL and PEFT."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback

    from dcsft_harness.training.config import SftConfig

    config, cuda = SftConfig.from_options(given), torch.cuda.is_available()
    limits = {name: given[name] for name in ("min_pixels", "max_pixels") if name in given}
    processor = AutoProcessor.from_pretrained(base, **limits)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16 if cuda else torch.float32)

    def text(messages: list[dict[str, Any]], **options: bool) -> str:
        question, answer = messages
        content = [{"type": "image"}, {"type": "text", "text": question["content"].removeprefix("<image>")}]
        turns = [{"role": "user", "content": content}, answer]
        return str(processor.apply_chat_template(turns[: 2 - len(options)], tokenize=False, **options))

    prompts = [text(row, add_generation_prompt=True) for row in data["messages"]]
    whole = [text(row) for row in data["messages"]]
    completions = [all_.removeprefix(start).rstrip() for all_, start in zip(whole, prompts, strict=True)]
    columns = {"prompt": prompts, "completion": completions, "row": list(range(len(prompts)))}

    def filled(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [[image.convert("RGB") for image in data[row]["images"]] for row in batch["row"]]
        return {"prompt": batch["prompt"], "completion": batch["completion"], "images": images}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
            if "loss" in logs:
                steps()

    micro = config.micro_batch_size or config.batch_size
    args = trl.SFTConfig(
        output_dir=str(output),
        max_steps=config.max_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type=config.lr_scheduler_type,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        seed=config.seed,
        bf16=cuda,
        use_cpu=not cuda,
        gradient_checkpointing=cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        max_length=None,
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(columns).with_transform(filled),
        processing_class=processor,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules="all-linear",
        ),
        callbacks=[Watch()],
    )
    trainer.train()
    trainer.save_model(str(output))


def overhead(shape: str, layers: int | None, number: int) -> dict[str, Any]:
    """Paired rounds of `train_sft` and the bare script, for a fresh process.

    Args:
        shape: the model's.
        layers: decoder layers, for a trial.
        number: rounds; each way runs once beforehand, uncounted.
    """
    base, data, given = shapes.folder(shape, layers), rows(COLD), settings(shape, "SFT, LoRA", layers)
    found: dict[str, list[tuple[float, float]]] = {"train_sft": [], "bare": []}
    losses: dict[str, float] = {}

    def run(name: str) -> tuple[float, float]:
        steps, output = Steps(), Path(tempfile.mkdtemp(prefix="dcsft-bench-"))
        try:
            start = time.perf_counter()
            with contextlib.redirect_stdout(None):
                if name == "bare":
                    bare(base, data, output, given, steps)
                else:
                    from dcsft_harness.training import sft
                    from dcsft_harness.training.config import SftConfig

                    notes = sft.train_sft(base, data, output, SftConfig.from_options(given), progress=steps)
                    losses[name] = notes["final_loss"]
            return time.perf_counter() - start, steps.seconds
        finally:
            shutil.rmtree(output)

    for name in found:
        run(name)
    for at in range(number):
        for name in list(found) if at % 2 == 0 else list(found)[::-1]:
            found[name].append(run(name))
    return {
        "steps": given["max_steps"],
        "rounds": number,
        **{
            what: {
                "seconds": {name: round(statistics.median(v[i] for v in found[name]), 4) for name in found},
                "ratio": round(
                    statistics.median(
                        a[i] / b[i] for a, b in zip(found["train_sft"], found["bare"], strict=True)
                    ),
                    3,
                ),
            }
            for i, what in enumerate(("whole run", "a step"))
        },
    }


def _alone(work: Callable[..., dict[str, Any]], *given: object) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, given)


def main() -> None:
    """Measures each method in a new process and prints JSON."""
    given = shapes.parser().parse_args()
    methods = {method: _alone(measure, method, given.shape, given.layers) for method in METHODS}
    compared = _alone(overhead, given.shape, given.layers, given.rounds)
    side = settings(given.shape, "SFT, LoRA", given.layers).get("min_pixels")
    print(
        json.dumps(
            {
                "side": side and round(side**0.5),
                "layers": given.layers,
                "methods": methods,
                "overhead": compared,
            }
        )
    )


if __name__ == "__main__":
    main()
