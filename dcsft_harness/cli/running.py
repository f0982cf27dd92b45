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
    # The first process of a launch shows the bar, and this one, which waits for it, says how it ended.
    launches = options.get("num_processes") not in (None, 1, "1")
    with bar.stage(verb, shown=not launches) as report:
        notes = STAGES[verb](output, report, **options)
    if ranks.rank() == 0 and not ranks.watched():
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
    parts = [f"{notes[name]} {words}" for name, words in LEFT_OUT.items() if notes.get(name)]
    return _mix(notes) + (f" ({', '.join(parts)})" if parts else "")


def _trained(notes: Mapping[str, Any]) -> str:
    drawn = notes["ledger"]["generated"]
    parts = [
        f"{notes['steps']} steps",
        f"{drawn} completions" if drawn else f"loss {notes['final_loss']:.3f}",
    ]
    weights = f"{notes['trainable_parameters']:,} parameters trained"
    if "adapted" in notes:
        layers = ", ".join(f"{count} {part}" for part, count in notes["adapted"].items())
        weights += f" on {layers} layers"
    return ", ".join([*parts, weights, *_other_pixels(notes)])


def _other_pixels(notes: Mapping[str, Any]) -> list[str]:
    """What training showed otherwise than evaluation will, if anything."""
    trained, shown = notes.get("pixel_limits"), notes.get("evaluation_pixel_limits")
    if not trained or not shown or trained == shown:
        return []
    ranges = [f"{limits['low']} to {limits['high']}" for limits in (trained, shown)]
    return [f"images of {ranges[0]} pixels (in evaluation {ranges[1]})"]


def _overlap(notes: Mapping[str, Any]) -> str:
    shared = f"{notes['shared_items']} of {notes['items']} items of {notes['pool']} share an image"
    tasks = (f"{name} {found['exact']} exact, {found['near']} near" for name, found in notes["tasks"].items())
    return f"{shared}; pairs: {'; '.join(tasks)}"


def _merged(notes: Mapping[str, Any]) -> str:
    """What was merged by part, and how near the merged model comes to what it replaces."""
    parts = ", ".join(
        f"{part} {notes['changed'][part]}/{count}" for part, count in notes["adapted"].items() if count
    )
    found = notes["parity"]
    said = [
        f"{notes['dtype']}, changed modules: {parts}",
        f"on {found['prompts']} prompts of {found['source']} logits differ by at most "
        f"{found['in_deviations']:.1g} standard deviations (the adapter's effect: {found['effect']:.2g})",
        f"same arg-max {_percent(found['same_argmax'])}",
        f"same answers {found['same_answers']}/{found['prompts']}",
    ]
    if found["rounded_away"]:
        said.append(f"{len(found['rounded_away'])} modules' updates are too small for {notes['dtype']}")
    if notes["trained_on"] is False:
        said.append("another base than the adapter was trained on")
    return "; ".join(said)


def _pretrained(notes: Mapping[str, Any]) -> str:
    losses = (f"{name} loss {value:.3f}" for name, value in notes["losses"].items())
    return ", ".join([f"{notes['parameters']} parameters", *losses])


LEFT_OUT = {
    "unlabelled": "of the pool unlabelled",
    "excluded": "excluded for an image that is evaluated",
    "dropped": "dropped in review",
    "suspects": "suspected of a wrong label: see suspects.jsonl",
    "unshown": "of these not in suspects.md",
    "unjudged": "never solved with too few answers to suspect",
    "outside": "outside the band",
    "weightless": "left out for their weight of 0",
}
"""Note -> what a curated set's closing line says of it where there are any."""

COUNTED = {"unlabelled": "unlabelled", "censored": "settled early, without a pass rate"}
"""Note -> what the closing line calls it where there are any."""

SAID: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "digits pretrain": _pretrained,
    "sample": _sampled,
    "label": _labelled,
    "data overlap": _overlap,
    "curate": _curated,
    "train cold-start": _trained,
    "train sft": _trained,
    "train grpo": _trained,
    "merge": _merged,
    "evaluate": _tasks,
    "leaderboard build": lambda notes: ", ".join(
        [f"{notes['rows']} rows", *([f"{len(notes['left_out'])} left out"] if notes["left_out"] else [])]
    ),
    "compare-cost": lambda notes: f"{notes['rows']} runs",
}
"""Verb -> what its closing line says of the notes."""


def show_table(notes: Mapping[str, Any]) -> None:
    """Prints a table on stdout."""
    click.echo(notes["table"])
