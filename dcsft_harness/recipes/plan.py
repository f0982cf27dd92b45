"""What a recipe would do: every command as one could type it, and what it reads and costs."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness.recipes import estimate
from dcsft_harness.recipes.recipe import Recipe, Stage, filled

POSITIONAL = {
    "label": "rollouts",
    "curate": "labels",
    "leaderboard build": "results",
    "data overlap": "pool",
    "compare-cost": "artefacts",
    "merge": "adapter",
}
"""Verb -> the option of its stage that its command takes without a name."""
REPEATED = {"mix", "scores"}
"""Options that are given once for each value; other lists are one value with commas."""


def command(stage: Stage, output: Path) -> list[str]:
    """The stage's command, in words."""
    words = ["dcsft", *stage.verb.split()]
    options: Mapping[str, Any] = filled(dict(stage.options), output)
    first = options.get(POSITIONAL.get(stage.verb, ""), [])
    words += [str(value) for value in (first if isinstance(first, list) else [first])]
    for name, value in options.items():
        if name == POSITIONAL.get(stage.verb):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list) and name in REPEATED:
            words += [word for one in value for word in (flag, str(one))]
        elif isinstance(value, list):
            words += [flag, ",".join(map(str, value))]
        elif isinstance(value, Mapping):
            words += [word for key, one in value.items() for word in ("--set", f"{key}={one}")]
        else:
            words += [flag, str(value)]
    return [*words, "--output", str(output / stage.name)]


def told(recipe: Recipe, output: Path) -> str:
    """A recipe's commands in order, with an estimate of time and memory where the scale has assumptions."""
    lines, known = [], estimate.of(recipe)
    for stage in recipe.stages:
        reads = ", ".join(str(output / name) for name in stage.references()) or "nothing made before"
        lines += [
            f"# {stage.name}: reads {reads}; writes {output / stage.name}",
            *([f"# {known[stage.name]}"] if stage.name in known else []),
            shlex.join(command(stage, output)),
        ]
    return "\n".join([*lines, *estimate.summary(recipe)])
