"""A rehearsal: the whole chain at a published size, with random weights, measured stage by stage.

Each stage is the real command in a process of its own, after its dry run. The table shows what the dry run
estimated beside what the stage took.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dcsft_harness import environment, interrupts, reading
from dcsft_harness.artifacts import disk, manifest
from dcsft_harness.artifacts.usage import NOTE, bytes_of, gigabytes, peak_memory_bytes
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.verdict import Verdict
from dcsft_harness.stages import STAGES

SHAPES = ("qwen2.5-vl-3b", "qwen3-vl-4b", "internvl3-2b")
"""The sizes of `models.published`, by name."""
RESULT = "rehearsal.json"
ROWS, PAIRS = "rows.jsonl", "pairs.jsonl"
BASE = "base"
SCORER = "dcsft_harness.recipes.rehearsal:every_other"
TEMPLATE = "chat_template_kwargs"
ITEMS = 4
REFUSED = 3
"""The exit code of a process that was refused; its answer is the error."""


class Refused(HarnessError):
    """What a process of a rehearsal refuses."""


def every_other(response: str, *, answer: str, truncated: bool = False) -> Verdict:
    """Scores about half of all responses as right, by their text: random weights never answer rightly."""
    return Verdict(float(zlib.crc32(f"{answer}{response}".encode()) % 2), response or "nothing")


@dataclass
class Measured:
    """What a stage took, beside its dry run's estimate; None where unknown."""

    stage: str  # its verb
    seconds: float  # wall-clock time of the process
    memory: int  # peak memory in bytes: of the CUDA device if one was used, else of the process
    disk: int  # bytes of its artifact
    tokens_per_second: float | None = None  # prompt and response tokens over the stage's own seconds
    # the dry run's estimates: bytes, seconds, bytes
    estimated_memory: float | None = None
    estimated_seconds: float | None = None
    estimated_disk: float | None = None


Options = dict[str, Any]


def chain(
    output: Path, template: Mapping[str, Any] | None = None, dtype: str = "bfloat16"
) -> dict[str, tuple[str, Options]]:
    """Folder -> verb and options of each stage, in order; `template` are arguments of the chat template."""
    base, rows, curated = (str(output / name) for name in (BASE, ROWS, "curated"))
    more = {TEMPLATE: dict(template)} if template else {}
    engine = {"model": base, "model_args": reading.joined({"dtype": dtype, "batch_size": 4, **more})}
    own = {"data": rows, "scorer": SCORER}
    steps = {"max_steps": 2, "save_steps": None, "dtype": dtype, **more}
    groups = {"batch_size": 4, "num_generations": 4, "max_completion_length": 8}
    return {
        "rollouts": ("sample", {**engine, **own, "samples": 8, "max_new_tokens": 32}),
        "labels": ("label", {"rollouts": str(output / "rollouts")}),
        "curated": ("curate", {"labels": str(output / "labels"), "keep": ["easy", "medium"]}),
        "sft": ("train sft", {"model": base, "data": curated, **steps, "batch_size": 2}),
        "grpo": ("train grpo", {"model": base, "data": curated, **steps, **groups}),
        "dpo": ("train dpo", {"model": base, "data": str(output / PAIRS), **steps, "batch_size": 2}),
        "merged": ("merge", {"adapter": str(output / "sft")}),
        "scores": (
            "evaluate",
            {**engine, "model": str(output / "merged"), **own, "max_new_tokens": 32, "name": "merged"},
        ),
        "board": ("leaderboard build", {"results": [str(output / "scores")]}),
    }


def rehearse(
    shape: str,
    output: Path,
    device: str | None = None,
    layers: int | None = None,
    keep: bool = False,
    say: Callable[[str], None] = lambda line: None,
    side: int | None = None,
    template: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs the chain and writes `RESULT`; the same call again continues, or reads what is there.

    Args:
        shape: one of `SHAPES`.
        output: the folder to write.
        device: "cpu", "cuda" or "cuda:N"; None takes CUDA where there is any.
        layers: decoder and vision layers; None means all.
        keep: keep the checkpoints, which are deleted at the end otherwise.
        say: called with a line after each stage.
        side: pixels per side of the images; None means those that become 256 tokens.
        template: further arguments of the chat template.

    Returns:
        shape, layers, side, dtype, machine, packages, and the stages as `Measured` has them.

    Raises:
        HarnessError: the folder belongs to something else, a stage failed, there is no such device, or the
            template does not use an argument. What is refused before the base exists leaves no file.
    """
    reading.refuse_comma(output)  # before the base is written
    asked: dict[str, Any] = {"shape": shape, "layers": layers, "device": device, "side": side}
    asked[TEMPLATE] = dict(template) if template else None
    was_there = output.exists()
    found = _earlier(output, asked)
    if found is None:
        output.mkdir(parents=True, exist_ok=True)
        found = {**asked, "stages": []}
        _save(output, found)
    unfinished = len(found["stages"]) < len(chain(output))
    if unfinished and not (output / BASE / "generation_config.json").is_file():
        base = {"base": shape, "layers": layers, "side": side, TEMPLATE: asked[TEMPLATE]}
        try:
            found |= _work(output, device, base, "base")
        except Refused:
            _empty(output)
            if not was_there:
                output.rmdir()
            raise
        _save(output, found)
    stages = list(chain(output, template, found.get("dtype", "bfloat16")).items())[len(found["stages"]) :]
    with interrupts.noting(lambda: True):  # the base, and finished stages
        for name, (verb, options) in stages:
            started = time.monotonic()
            job = {"verb": verb, "options": options, "output": str(output / name)}
            made, size = _work(output, device, job, name), bytes_of(output / name)
            measured = Measured(verb, round(time.monotonic() - started, 1), disk=size, **made)
            found["stages"].append(asdict(measured))
            _save(output, found)
            say(f"{verb}: {measured.seconds:.0f} s, {gigabytes(measured.memory)}")
    if not keep:
        for name in (BASE, "merged"):
            shutil.rmtree(output / name, ignore_errors=True)
    return found


def _earlier(output: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result so far in a folder; None if the folder is empty, or is emptied: no base was finished in it.

    Raises:
        HarnessError: the folder holds something else.
    """
    if not output.exists() or not any(output.iterdir()):
        return None
    try:
        found = reading.json_file(output / RESULT)
        if found["stages"] == [] and "parameters" not in found:
            _empty(output)
            return None
        same = all({"side": None, TEMPLATE: None, **found}[name] == value for name, value in asked.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"--output {output} is not a rehearsal", "Name a new folder") from error
    if not same:
        was = ", ".join(f"{name} {found.get(name)}" for name in asked)
        raise HarnessError(f"--output {output} is a rehearsal of {was}", "Name a new folder")
    return dict(found)


def _empty(output: Path) -> None:
    """Removes what a rehearsal writes before its first stage."""
    for folder in (BASE, "logs"):
        shutil.rmtree(output / folder, ignore_errors=True)
    for name in (RESULT, ROWS, PAIRS, *(f"{number}.png" for number in range(ITEMS))):
        (output / name).unlink(missing_ok=True)


def _save(output: Path, found: Mapping[str, Any]) -> None:
    disk.write_text(output / RESULT, json.dumps(found, indent=2) + "\n")


def _work(output: Path, device: str | None, job: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Runs a job in a process of its own, and returns its result.

    Raises:
        HarnessError: it failed; `Refused` if it was refused.
    """
    log, answer = output / "logs" / f"{name}.log", output / "logs" / f"{name}.json"
    log.parent.mkdir(exist_ok=True)
    answer.unlink(missing_ok=True)
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if device is not None:
        environ["CUDA_VISIBLE_DEVICES"] = _visible(device, environ.get("CUDA_VISIBLE_DEVICES"))
    words = [
        sys.executable,
        "-m",
        "dcsft_harness.recipes.rehearsal",
        str(answer),
        json.dumps({**job, "device": device}),
    ]
    with log.open("wb") as file, subprocess.Popen(words, stdout=file, stderr=file, env=environ) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code == REFUSED and answer.is_file():
        raise Refused(**reading.json_file(answer))
    if code or not answer.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise HarnessError(
            f"{name} failed with exit code {code}: {' '.join(lines)[-600:]}", f"{log} has everything"
        )
    return dict(reading.json_file(answer))


def _visible(device: str, listed: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for "cpu", "cuda" or "cuda:N"; N counts the devices `listed` there now."""
    kind, _, number = device.partition(":")
    if kind == "cpu" or listed is None:
        return "" if kind == "cpu" else number or "0"
    names = dict(enumerate(one.strip() for one in listed.split(",")))
    return names.get(int(number or 0), "") if (number or "0").isdecimal() else ""


def _worker(answer: Path, job: dict[str, Any]) -> int:
    """The process of a job: makes the base, or runs a stage after its dry run."""
    if "base" in job:
        answer.write_text(json.dumps(_make_base(answer.parents[1], job)), encoding="utf-8")
        return 0
    stage, options, output = STAGES[job["verb"]], job["options"], Path(job["output"])
    # A dry run of a stage without a model imports more than the stage.
    planned = None if stage.light else stage.plan(output, **options)
    # The command line is above this module; the process that runs here is what `dcsft` starts.
    code = import_module("dcsft_harness.cli").main(stage.command(options, output)[1:])
    if code:
        return int(code)
    memory = peak_memory_bytes()
    planned = planned or stage.plan(output.with_name(f"{output.name}-planned"), **options)
    ledger = (manifest.read(output).notes.get(NOTE) or {}) if (output / manifest.NAME).is_file() else {}
    tokens = ledger.get("prompt_tokens", 0) + ledger.get("completion_tokens", 0)
    seconds = ledger.get("seconds", 0.0)
    found = {
        "memory": memory,
        "tokens_per_second": round(tokens / seconds, 1) if tokens and seconds else None,
        "estimated_memory": round(planned.memory) or None,
        "estimated_seconds": round(planned.seconds, 1) or None,
        "estimated_disk": round(planned.disk) or None,
    }
    answer.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _make_base(output: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the rows and the base, and returns the machine and its packages.

    Raises:
        HarnessError: there is no such device, too little space on the disk, or the template does not use
            an argument.
    """
    from dcsft_harness.models import chat_template, checkpoint, published, resources

    shape = job["base"]
    try:
        # `_work` has made the device of a number the only visible one.
        device = resources.check_device(job["device"] and job["device"].partition(":")[0])
    except HarnessError as error:
        raise HarnessError(f"--device {job['device']} is not there: {error.problem}", error.remedy) from error
    config = published.configuration(shape, job["layers"])
    weights = sum(one.numel() for one in checkpoint.skeleton(config).parameters())
    native = device.type == "cuda" or resources.computes_bfloat16()
    dtype = "bfloat16" if native else "float32"
    needed, free = (4.6 if native else 9.2) * weights, shutil.disk_usage(output).free
    if free < needed:
        raise HarnessError(
            f"--output {output}: {gigabytes(needed)} are needed, but only {gigabytes(free)} are free",
            "Free some space, or name a folder on another disk",
        )
    _, processor = published.settle(shape, output / BASE, job["layers"], dtype)
    chat_template.check_arguments(processor, job.get(TEMPLATE) or {}, shape)
    side = job["side"] or published.SIDE[shape]
    write_rows(output, side)
    published.write(shape, output / BASE, job["layers"], dtype)
    hardware = environment.hardware()
    return {
        "parameters": weights,
        "dtype": dtype,
        "pixels": side,
        "machine": str(hardware["cuda"] if device.type == "cuda" else hardware["processor"]),
        "cores": hardware["cores"],
        "cuda": device.type == "cuda",
        "packages": environment.packages(),
    }


def write_rows(folder: Path, side: int) -> None:
    """Writes `ITEMS` digits as a user's own rows, with images of one size."""
    from PIL import Image

    from dcsft_harness.data.digits import suite

    lines = []
    for number, row in enumerate(suite.load("dcsft_digits_pool").select(range(ITEMS))):
        image = f"{number}.png"
        row["image"].convert("RGB").resize((side, side), Image.Resampling.NEAREST).save(folder / image)
        lines.append({"question": "<image>" + row["prompt"], "answer": row["target"], "image": image})
    # Pairs of their own: which random responses end, and so could be preferred, is chance.
    pairs = [{**line, "chosen": line["answer"], "rejected": "another digit"} for line in lines]
    for one in pairs:
        del one["answer"]
    for name, some in ((ROWS, lines), (PAIRS, pairs)):
        (folder / name).write_text("".join(json.dumps(one) + "\n" for one in some), encoding="utf-8")


def refuse_wrong(found: Mapping[str, Any], within: float) -> None:
    """Refuses a rehearsal with a stage whose memory is not what its dry run estimated.

    Args:
        found: what `rehearse` returned.
        within: the largest difference, as a share of what was measured.

    Raises:
        HarnessError: names the stages.
    """
    wrong = [
        f"{one['stage']} took {gigabytes(one['memory'])}, estimated {gigabytes(one['estimated_memory'])}"
        for one in found["stages"]
        if one["estimated_memory"] and abs(one["estimated_memory"] / one["memory"] - 1) > within
    ]
    if wrong:
        raise HarnessError(
            f"estimates of memory are off by more than {within:.0%}: {'; '.join(wrong)}",
            "Report the table with your machine and packages (`dcsft env`)",
        )


def table(found: Mapping[str, Any]) -> str:
    """A rehearsal as Markdown."""
    depth = "all layers" if found["layers"] is None else f"{found['layers']} layers"
    images = f", images of {found['pixels']} pixels per side" if "pixels" in found else ""
    size = f"{found['parameters'] / 1e9:.2f} billion weights"
    lines = [
        f"{found['shape']}, {depth}, {size}, {found.get('dtype', 'bfloat16')}{images}, on {found['machine']} "
        f"({found['cores']} cores):",
        "",
        "| stage | time, s | memory, GB | estimated, GB | estimated / measured | tokens/s | disk, MB |",
        "|:---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found["stages"]:
        guess, memory = one["estimated_memory"], one["memory"]
        cells = [
            one["stage"],
            f"{one['seconds']:.0f}",
            f"{memory / 1e9:.2f}",
            "-" if guess is None else f"{guess / 1e9:.2f}",
            "-" if guess is None else f"{guess / memory:.2f}",
            "-" if one["tokens_per_second"] is None else f"{one['tokens_per_second']:.0f}",
            f"{one['disk'] / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(_worker(Path(sys.argv[1]), reading.from_json(sys.argv[2])))
    except HarnessError as failure:
        Path(sys.argv[1]).write_text(json.dumps({"problem": failure.problem, "remedy": failure.remedy}))
        sys.exit(REFUSED)
