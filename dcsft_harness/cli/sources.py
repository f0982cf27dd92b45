"""`dcsft data`: published benchmarks and pools into the folders that tasks read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path, file_okay=False)


def _use_root(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        from dcsft_harness.data.benchmarks import prepared

        prepared.use(value)


ROOT: dict[str, Any] = {
    "type": FOLDER,
    "expose_value": False,
    "callback": _use_root,
    "help": "Where prepared data is; default $DCSFT_DATA, else data/ in the cache folder.",
}
data_root = click.option("--data-root", **ROOT)
"""The option of every command that reads prepared data."""


@click.command()
@click.argument("task")
@click.option("--source", type=FOLDER, help="The published files; default: load from the hub.")
@click.option("--data-root", "--output", **ROOT)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What a row that cannot be used does: skip leaves it out and records why.",
)
@click.option("--any-count", is_flag=True, help="Take a part of the published rows; recorded.")
def prepare(task: str, source: Path | None, on_error: str, any_count: bool) -> None:
    """Make the folder that TASK reads, once, from what was published.

    \b
    dcsft data prepare dcsft_imagenet_r
    dcsft data prepare dcsft_ref_l4 --source Ref-L4
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.cli import bar
    from dcsft_harness.data.benchmarks import prepare as making
    from dcsft_harness.data.benchmarks import prepared

    clock = bar.Clock()
    with bar.stage("data prepare") as report:
        notes = making.prepare(
            task,
            source,
            on_error=on_error,
            any_count=any_count,
            progress=report,
            say=lambda text: bar.say(f"data prepare: {text}"),
        )
    bar.closing("data prepare", _said(notes), clock, prepared.folder_of(task))


def _said(notes: Mapping[str, Any]) -> str:
    parts = [f"{notes['rows']} rows, {notes['images']} images"]
    parts += [f"{len(values)} values of {name}" for name, values in notes.get("values", {}).items()]
    if "chosen" in notes:
        parts.append(f"chosen: {notes['chosen']}")
    if notes["skipped"]:
        parts.append(f"{notes['skipped']} skipped (skipped.jsonl says why)")
    return ", ".join(parts)
