"""Running a recipe from the command line: its stages, skipped ones, the tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcsft_harness.cli import bar
from dcsft_harness.cli.running import run_stage


def run_recipe(names: str | Sequence[str], output: Path, dry_run: bool, scale: str = "digits") -> None:
    """Runs recipes and prints the tables of their leaderboards; a dry run prints the plan."""
    from dcsft_harness.recipes import chain, recipe

    chosen = recipe.load(names, scale)
    if dry_run:
        from dcsft_harness.recipes.plan import told

        bar.show(told(chosen, output))
        return
    clock = bar.Clock()
    chain.run(chosen, output, _perform, lambda stage: bar.say(f"{stage}: done already"))
    tables = [output / stage.name for stage in chosen.stages if stage.verb == "leaderboard build"]
    bar.closing(chosen.name, f"{len(chosen.stages)} stages", clock, output)
    for folder in tables:
        bar.show((folder / "leaderboard.md").read_text(encoding="utf-8"))


def _perform(verb: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    return run_stage(verb, folder, options)
