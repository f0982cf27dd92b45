"""Checkpoints, runs and evaluations of them as files alone: no weights, no model, no trainer."""

import contextlib
import json
import os
import socket
import subprocess
import types

import pytest

from dcsft_harness import evaluation, leaderboard, lmms
from dcsft_harness.artifacts import manifest
from dcsft_harness.evaluation import autoeval as scoring
from dcsft_harness.evaluation.autoeval import Scoring
from dcsft_harness.records import Score, write_table
from dcsft_harness.training import run_folder

ID, OOD = "digits", "digits_r"
TASKS = {ID: "id", OOD: "ood"}
N = 10
GENERATION = {"temperature": 0.0, "max_new_tokens": 8}


def base(folder, text="base"):
    """A whole checkpoint, as far as it is looked at."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"text": text, "right": 4}))
    (folder / "model.safetensors").write_text(text)
    return folder


def adapter(folder, on, right=5):
    """A PEFT folder that gets so many of `N` items right."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(on), "right": right})
    )
    (folder / "adapter_model.safetensors").write_text(f"{right} right")
    return folder


class Run:
    """The output folder of a training, step by step."""

    def __init__(self, folder, on, every=10, steps=40, pid=None, learning_rate=1e-3, full=False):
        self.folder, self.on, self.every, self.steps, self.rate = folder, on, every, steps, learning_rate
        self.kind = "checkpoint" if full else "adapter"
        self.unfinished = folder / manifest.UNFINISHED
        self.pid = os.getpid() if pid is None else pid

    @property
    def settings(self):
        return {"method": "sft", "learning_rate": self.rate, "save_steps": self.every, "keep": None}

    def begin(self):
        self.unfinished.mkdir(parents=True)
        kept = {key: value for key, value in self.settings.items() if key not in run_folder.INDIFFERENT}
        content = {"content of model": manifest.fingerprint(self.on)[:16]}
        (self.unfinished / "run.json").write_text(json.dumps({**kept, **content, "processes": 1}))
        (self.unfinished / "owner.json").write_text(
            json.dumps({"pid": self.pid, "host": socket.gethostname()})
        )
        return self

    def save(self, step, complete=True, keep=100):
        """Writes a checkpoint, and removes older ones as a run does."""
        folder = self.weights(self.unfinished / f"checkpoint-{step}", step)
        (folder / "optimizer.pt").write_text("large")
        (folder / "trainer_state.json").write_text(
            json.dumps({"save_steps": self.every, "max_steps": self.steps})
        )
        if complete:
            told = {"ledger": {"steps": step, "prompts": 16 * step, "seconds": 2.0 * step}, "history": []}
            (folder / "complete.json").write_text(json.dumps(told))
        for old in run_folder.checkpoints(self.unfinished)[:-keep]:
            self.remove(run_folder.step_of(old))
        return self

    def weights(self, folder, step):
        if self.kind == "adapter":
            return adapter(folder, self.on, step // 10 + 4)
        return base(folder, f"step {step}")

    def remove(self, step):
        folder = self.unfinished / f"checkpoint-{step}"
        (folder / "complete.json").unlink()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def finish(self, keep=0):
        """The finished adapter, with the newest checkpoints in it."""
        aside = self.folder.with_name(f"{self.folder.name}-aside")
        os.replace(self.folder, aside)
        with manifest.writing(self.kind, self.folder, self.settings, {"model": self.on}) as draft:
            for path in self.weights(draft.folder / "made", self.steps).iterdir():
                os.replace(path, draft.folder / path.name)
            (draft.folder / "made").rmdir()
            draft.notes |= {"steps": self.steps, "ledger": {"steps": self.steps, "seconds": 2.0 * self.steps}}
            log = [{"step": n, "loss": 1.0, "seconds": 2.0 * n} for n in range(1, self.steps + 1)]
            (draft.folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
            for path in run_folder.checkpoints(aside / manifest.UNFINISHED)[::-1][:keep]:
                run_folder.link(path, draft.folder / path.name)


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


class Show:
    """Remembers what was told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    @contextlib.contextmanager
    def stage(self, title):
        yield lambda done, total: None


class Bench:
    """What stands for lmms-eval: its tasks, models, and evaluations that count instead of asking.

    Attributes:
        opened: model arguments of every model that was loaded.
        asked: (row, task) of every evaluation.
        before: called with (row, task) before an evaluation.
        pixels: the limits that models have.
        plots: whether leaderboards get plots.
    """

    def __init__(self):
        self.opened, self.asked, self.before = [], [], lambda row, task: None
        self.pixels, self.plots = None, False
        self.notes, self.from_checkpoint = {}, {}

    def open_model(self, name, arguments):
        self.opened.append(arguments)
        return types.SimpleNamespace(arguments=arguments, keep_loaded=False, clean=lambda: None)

    def open_tasks(self, names):
        given = {"output_type": "generate_until", "generation_kwargs": GENERATION}
        configs = {name: types.SimpleNamespace(task=name, **given) for name in names}
        return {name: types.SimpleNamespace(VERSION=1, config=config) for name, config in configs.items()}

    def evaluate(
        self, model, tasks, output, name, settings, limit=None, progress=None, inputs=None, noted=None
    ):
        manifest.refuse_occupied(output)
        (task,) = tasks
        self.before(name, task)
        given = dict(part.partition("=")[::2] for part in model.arguments.split(","))
        place = given.get("adapter", given["pretrained"])
        files = [f"{place}/{file}" for file in ("adapter_config.json", "config.json")]
        right = json.loads(open(next(filter(os.path.isfile, files))).read())["right"]
        self.asked.append((name, task))
        count = N if limit is None else limit
        rows = [
            Score(task, f"{task}-{n:03}", n, float(n < right), "3", "a 3", "3", 4, None) for n in range(count)
        ]
        said = {
            "version": 1, "distribution": TASKS[task], "family": None, "limit": limit, "n": count,
            "unanswered": 0, "unscored": 0, "accuracy": sum(row.score for row in rows) / count,
            "prompt_sha256": "p", "generation": GENERATION, "items_sha256": f"{count} items of {task}",
            "generation_from_checkpoint": self.from_checkpoint, **self.notes,
        }  # fmt: skip
        config = {"name": name, **settings, "limit": limit}
        with manifest.writing("scores", output, config, inputs) as draft:
            write_table(draft.folder / "scores.parquet", Score, rows)
            draft.notes |= {"tasks": {task: said}, "pixels": self.pixels, **(noted or {})}


@pytest.fixture
def bench(monkeypatch):
    made = Bench()
    monkeypatch.setattr(Scoring, "tasks", property(lambda self: list(TASKS)))
    for name in ("open_model", "open_tasks"):
        monkeypatch.setattr(lmms, name, getattr(made, name))
    monkeypatch.setattr(evaluation, "evaluate", made.evaluate)
    monkeypatch.setattr(evaluation, "pixels", lambda model: made.pixels)
    settings = {"generation_from_checkpoint": made.from_checkpoint}
    monkeypatch.setattr(lmms, "generation_settings", lambda model, task: settings)
    options = leaderboard.Options
    monkeypatch.setattr(
        leaderboard, "Options", lambda **given: options(**given, page=False, items=False, plots=made.plots)
    )
    return made


def built(board, show):
    """A board's leaderboard made anew, without what takes time: rows by name, and its summary."""
    made = scoring.build(board, show)
    return {line.name: line for line in made.summary.lines}, made.summary
