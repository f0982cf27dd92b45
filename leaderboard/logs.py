"""Folders of plain `lmms-eval --log_samples` -> Results, checked against their own results file.

What upstream's logs do not have, and what follows here:

- `doc_hash` is the hash of "null" for every document, so it identifies nothing. An item is told by
  task, document number, prompt and gold. Against a `dcsft evaluate` row of the same task, documents
  are matched by number if golds and prompts agree one by one; then the item's content id holds.
- Pixel limits that are not among the model arguments are unknown, not equal.
- A failed run exits with 0 and leaves a log behind: documents are counted.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError

from .provenance import Provenance, public
from .result import Result, group_of
from .samples import AGAIN, Choices, Samples, arguments

RESULTS, SAMPLES = "_results.json", "_samples_"


def is_log(folder: Path) -> bool:
    """Whether a folder holds lmms-eval's results, itself or in folders of its models."""
    return not (folder / manifest.NAME).is_file() and any(_results_files(folder))


def _results_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted([*folder.glob(f"*{RESULTS}"), *folder.glob(f"*/*{RESULTS}")])


def input_files(folder: Path) -> list[Path]:
    """The files of a log that a board is made from."""
    found = _results_files(folder)
    return sorted([*found, *(sample for file in found for sample in _samples(file).values())])


def read_logs(folder: Path, name: str | None, choices: Choices) -> list[Result]:
    """Reads every run that a folder holds.

    Args:
        folder: an `--output_path`, or the folder of one model in it.
        name: the row's name; None takes the folder's where all runs are of one model, else the models'.
        choices: what the logs do not say.

    Raises:
        HarnessError: a file is missing, truncated or not what it says it is; see `read.read_result`.
    """
    runs = [(file, _load(file)) for file in _results_files(folder)]
    models = {json.dumps(_model(run), sort_keys=True) for _, run in runs}
    found = []
    for file, run in runs:
        own = run.get("model_name_sanitized") or file.parent.name
        found.append(
            _result(file, run, name or (folder.resolve().name if len(models) == 1 else str(own)), choices)
        )
    return found


def _load(file: Path) -> dict[str, Any]:
    try:
        run = reading.json_file(file)
    except (OSError, ValueError) as error:
        raise HarnessError(f"{file} is truncated or damaged: {error}", AGAIN) from error
    if not isinstance(run, dict) or not isinstance(run.get("results"), dict):
        raise HarnessError(f"{file} holds no results of lmms-eval", AGAIN)
    for name, table in _tables(run):
        if not isinstance(table, dict):
            raise HarnessError(f"{file}: {name} is {str(table)[:80]!r}, not a table", AGAIN)
    return run


def _tables(run: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What has to be a table in a results file, where it is there at all."""
    for task, entry in run["results"].items():
        yield f"the result of {task}", entry
    for name in ("configs", "config", "versions", "n-samples", "n-shot"):
        if run.get(name) is not None:
            yield name, run[name]
    configs = run.get("configs")
    for task, config in (configs if isinstance(configs, dict) else {}).items():
        yield f"the configuration of {task}", config
        if isinstance(config, dict) and config.get("generation_kwargs") is not None:
            yield f"generation_kwargs of {task}", config["generation_kwargs"]


def _samples(file: Path) -> dict[str, Path]:
    """Task -> the file of its samples that belongs to a results file."""
    prefix = file.name.removesuffix(RESULTS) + SAMPLES
    return {
        path.name.removeprefix(prefix).removesuffix(".jsonl"): path
        for path in sorted(file.parent.glob("*.jsonl"))
        if path.name.startswith(prefix)
    }


def _model(run: Mapping[str, Any]) -> dict[str, object]:
    config = run.get("config") or {}
    model: dict[str, object] = {"the engine": str(config.get("model"))}
    for role, argument in (("the model", "pretrained"), ("the adapter", "adapter")):
        if (value := arguments(run).get(argument)) is not None:
            model[role] = value
    return model


def _result(file: Path, run: dict[str, Any], name: str, choices: Choices) -> Result:
    samples, counts = _samples(file), run.get("n-samples") or {}
    configs = run.get("configs") or {}
    measured = [task for task in run["results"] if task in configs or task in counts or task in samples]
    for task in samples:
        if task not in run["results"]:
            raise HarnessError(f"{samples[task]}: {file.name} knows no task {task!r}", AGAIN)
    logs = []
    for task in measured:
        if task not in samples:
            wanted = f"{file.name.removesuffix(RESULTS)}{SAMPLES}{task}.jsonl"
            raise HarnessError(f"{file} has {task} without samples: {wanted} is not beside it", AGAIN)
        logs.append(Samples(file, run, task, samples[task], choices))
    tasks = {log.task: log.measured() for log in logs}
    if not tasks:
        raise HarnessError(f"{file} lists no task", AGAIN)
    model = _model(run)
    told = Provenance(
        file.parent,
        "lmms-eval log",
        name,
        {"file": file.name, **{k: public(v) for k, v in (run.get("config") or {}).items() if k in _SETTINGS}},
        {role: public(value) for role, value in model.items()},
        None,
        {"lmms-eval": str(run.get("lmms_eval_version") or run.get("git_hash") or "")},
        str(run.get("date") or ""),
    )
    return Result(
        name, file.parent, model, tasks, told, lambda: (log.table() for log in logs), group_of(name)
    )


_SETTINGS = ("model", "model_args", "batch_size", "limit", "offset", "gen_kwargs", "random_seed")
