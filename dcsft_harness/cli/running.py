"""Runs one stage from the command line: its bar, and the line that it closes with."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from dcsft_harness import ranks
from dcsft_harness.cli import bar


def run_stage(verb: str, output: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a stage of `stages.STAGES` and reports it.

    Returns:
        The artefact's notes.
    """
    from dcsft_harness.stages import STAGES

    clock = bar.Clock()
    with bar.stage(verb) as report:
        notes = STAGES[verb](output, report, **options)
    if ranks.rank() == 0:
        bar.closing(verb, SAID[verb](notes), clock, output)
    return notes


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _tasks(notes: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {_percent(task['accuracy'])} (n {task['n']})" for name, task in notes["tasks"].items()
    )


def _mix(notes: Mapping[str, Any]) -> str:
    return f"{notes['items']} items: {notes['easy']} easy, {notes['medium']} medium, {notes['hard']} hard"


def _sampled(notes: Mapping[str, Any]) -> str:
    parts = [f"{notes['items']} items", f"{notes['responses']} responses"]
    if notes["accuracy"] is not None:
        parts.append(f"{_percent(notes['accuracy'])} right")
    said = {
        "saved": "saved, their items' labels being settled",
        "skipped": "items skipped",
        "resumed": "kept from before",
        "damaged": "damaged and drawn again",
    }
    parts += [f"{notes[name]} {words}" for name, words in said.items() if notes[name]]
    return ", ".join(parts)


def _labelled(notes: Mapping[str, Any]) -> str:
    parts = [f"{notes[name]} {words}" for name, words in COUNTED.items() if notes.get(name)]
    return ", ".join([_mix(notes), *parts])


def _curated(notes: Mapping[str, Any]) -> str:
    parts = [f"{notes[name]} {words}" for name, words in LEFT_OUT.items() if notes[name]]
    return _mix(notes) + (f" ({', '.join(parts)})" if parts else "")


def _overlap(notes: Mapping[str, Any]) -> str:
    shared = f"{notes['shared_items']} of {notes['items']} items of {notes['pool']} share an image"
    tasks = (f"{name} {found['exact']} exact, {found['near']} near" for name, found in notes["tasks"].items())
    return f"{shared}; pairs: {'; '.join(tasks)}"


LEFT_OUT = {"unlabelled": "of the pool unlabelled", "excluded": "excluded for an image that is evaluated"}
"""Note -> what a curated set's closing line says of it where there are any."""

COUNTED = {"unlabelled": "unlabelled", "censored": "settled early, without a pass rate"}
"""Note -> what the closing line calls it where there are any."""

SAID: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "sample": _sampled,
    "label": _labelled,
    "data overlap": _overlap,
    "curate": _curated,
    "train cold-start": lambda notes: f"{notes['steps']} steps, loss {notes['final_loss']:.3f}",
    "train sft": lambda notes: f"{notes['steps']} steps, loss {notes['final_loss']:.3f}",
    "train grpo": lambda notes: f"{notes['steps']} steps, {notes['ledger']['generated']} completions",
    "evaluate": _tasks,
    "leaderboard build": lambda notes: f"{notes['rows']} rows",
    "compare-cost": lambda notes: f"{notes['rows']} runs",
}
"""Verb -> what its closing line says of the notes."""


def show_table(notes: Mapping[str, Any]) -> None:
    """Prints a table on stdout."""
    click.echo(notes["table"])
