"""What a recipe would do: every command as one could type it, and what it reads and costs."""

import shlex
from pathlib import Path

from dcsft_harness.errors import HarnessError, visible
from dcsft_harness.recipes import estimate
from dcsft_harness.recipes.recipe import Recipe, Stage, filled
from dcsft_harness.stages import STAGES


def command(stage: Stage, output: Path) -> list[str]:
    """The stage's command, in words."""
    return STAGES[stage.verb].command(filled(dict(stage.options), output), output / stage.name)


def _estimates(recipe: Recipe) -> dict[str, estimate.Estimate]:
    """The stages' estimates.

    Raises:
        HarnessError: the recipe's assumptions are not what `estimate` goes by.
    """
    try:
        return estimate.of(recipe)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise HarnessError(
            f"recipe {recipe.name}: no estimate can be made of `assume` and `tokens` ({error!r})",
            "Write them as in a shipped recipe, or leave them out",
        ) from error


def told(recipe: Recipe, output: Path) -> str:
    """A recipe's commands in order, with an estimate of time and memory where the scale has assumptions."""
    lines, known = [], _estimates(recipe)
    for stage in recipe.stages:
        reads = ", ".join(str(output / name) for name in stage.references()) or "nothing made before"
        lines += [
            f"# {stage.name}: reads {reads}; writes {output / stage.name}",
            *([f"# {known[stage.name]}"] if stage.name in known else []),
            shlex.join(command(stage, output)),
        ]
    return "\n".join(map(visible, [*lines, *estimate.summary(recipe)]))
