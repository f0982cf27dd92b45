"""How `dcsft run` and `dcsft quickstart` show a recipe: its stages, what is skipped, the table."""

from pathlib import Path
from typing import Any

import click

from dcsft_harness.cli import bar
from dcsft_harness.cli.running import run_stage


def run_recipe(name: str, output: Path, dry_run: bool) -> None:
    """Runs a recipe, or prints what it would do, and prints the table of its last leaderboard."""
    from dcsft_harness.recipes import chain

    recipe = chain.load(name)
    if dry_run:
        for stage in recipe.stages:
            options = " ".join(
                f"{key}={value}" for key, value in chain.filled(dict(stage.options), output).items()
            )
            click.echo(f"{stage.name}: dcsft {stage.verb} {options} -> {output / stage.name}")
        return
    clock = bar.Clock()
    chain.run(recipe, output, _perform, lambda stage: click.echo(f"{stage}: done already", err=True))
    tables = [output / stage.name for stage in recipe.stages if stage.verb == "leaderboard build"]
    bar.closing(recipe.name, f"{len(recipe.stages)} stages", clock, output)
    for folder in tables:
        click.echo((folder / "leaderboard.md").read_text(encoding="utf-8"))


def _perform(verb: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    return run_stage(verb, folder, options)
