"""A recipe file: read, put to a scale, spread over seeds and variants, as a chain of stages.

    name: toy
    about: What is compared, after which table of the paper.
    include: [base]                      # other recipes, whose scales and stages come before
    variables: {family: classification}  # for every scale
    scales:
      digits: {seeds: [0, 1, 2], steps: 100}
      paper:  {seeds: [0], steps: 600}
    stages:
      - stage: sft-${variant}-${seed}    # one stage for each combination of `each`
        each:
          seed: ${seeds}
          variant: [{variant: m, keep: [medium]}, {variant: em, keep: [easy, medium]}]
        verb: curate
        labels: "@labels-${seed}"        # the folder of an earlier stage
        keep: ${keep}                    # a value that is one variable keeps its type

Stages under `first` come before those of included recipes.

`@name` stands for the folder of an earlier stage, and an entry `@name-*` of a list for those of all earlier
stages of such names.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dcsft_harness.errors import HarnessError, unknown_name

REFERENCE = re.compile(r"@([\w-]+)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LOOK = "Look at a shipped recipe"
SCALES = ("digits", "paper")

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: also the folder's name inside the recipe's output.
        verb: a key of `stages.STAGES`.
        options: its options; `@name` inside a text stands for an earlier stage's folder.
        variables: what the recipe's variables were for it.
    """

    name: str
    verb: str
    options: Mapping[str, Any]
    variables: Variables = field(default_factory=dict, compare=False, repr=False)

    def references(self) -> list[str]:
        """The earlier stages that it reads, in order of mention."""
        return list(dict.fromkeys(REFERENCE.findall(json.dumps(self.options))))


@dataclass(frozen=True)
class Recipe:
    """A chain of stages.

    Attributes:
        name: the recipe's name, or those of several with a plus sign between.
        about: what it compares.
        stages: in the order in which they run.
        scale: what it is put to; None for one without scales.
        variables: the scale's values.
    """

    name: str
    about: str
    stages: tuple[Stage, ...]
    scale: str | None = None
    variables: Variables = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A recipe file as it stands, with those that it includes in front."""

    path: Path
    name: str
    about: str
    variables: Variables
    scales: Mapping[str, Variables]
    entries: tuple[Mapping[str, Any], ...]


def shipped() -> dict[str, Path]:
    """The recipes in the package, by name."""
    folder = Path(str(files("dcsft_harness.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def summary(name: str) -> str:
    """What a shipped recipe compares."""
    return _open(name, ()).about


def load(names: str | Sequence[str], scale: str = "digits") -> Recipe:
    """Reads shipped recipes by name, or YAML files by path; several become one chain.

    Args:
        names: one or several; stages that they share run once.
        scale: "digits" or "paper"; without effect on a recipe that has no scales.

    Raises:
        HarnessError: unknown name or scale, not YAML, an unknown verb or variable, a later stage referred
            to, two different stages of one name.
    """
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    given = [names] if isinstance(names, str) else list(names)
    opened = [_open(name, ()) for name in given]
    stages: dict[str, Stage] = {}
    variables: dict[str, Any] = {}
    for one in opened:
        values = _scaled(one, scale)
        variables |= values
        for entry in one.entries:
            for stage in _expand(one, entry, values, list(stages)):
                _add(one, stage, stages)
    if not stages:
        raise HarnessError(f"recipe {opened[0].path} has no stages", _LOOK)
    has_scales = any(one.scales for one in opened)
    return Recipe(
        "+".join(one.name for one in opened),
        "; ".join(one.about for one in opened),
        tuple(stages.values()),
        scale if has_scales else None,
        variables,
    )


def _open(name: str, opening: tuple[str, ...]) -> _File:
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped().get(name)
    if path is None:
        raise unknown_name("recipe", name, shipped(), "dcsft run --list")
    if not path.is_file():
        raise HarnessError(f"recipe {path} does not exist", "Check the path")
    if name in opening:
        raise HarnessError(
            f"recipe {path} includes itself, by way of {', '.join(opening)}", "Break the circle"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        included = [_open(str(other), (*opening, name)) for other in data.get("include", [])]
        own = data.get("scales") or {}
        variables = _joined([*(one.variables for one in included), data.get("variables") or {}])
        scales = {
            scale: _joined([*(one.scales.get(scale, {}) for one in included), own.get(scale) or {}])
            for scale in dict.fromkeys([*own, *(scale for one in included for scale in one.scales)])
        }
        entries = [
            *(data.get("first") or []),
            *(entry for one in included for entry in one.entries),
            *(data.get("stages") or []),
        ]
        return _File(
            path,
            str(data.get("name", path.stem)),
            str(data.get("about", "")),
            variables,
            scales,
            tuple(entries),
        )
    except yaml.YAMLError as error:
        # PyYAML says where, over several lines.
        raise HarnessError(f"recipe {path} cannot be read: {' '.join(str(error).split())}", _LOOK) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise HarnessError(f"recipe {path} cannot be read: {error!r}", _LOOK) from error


def _joined(values: Iterable[Variables]) -> dict[str, Any]:
    """Variables of several files; a later one's count."""
    return {name: value for one in values for name, value in one.items()}


def _scaled(recipe: _File, scale: str) -> Variables:
    """The variables at a scale, which may name each other."""
    if recipe.scales and scale not in recipe.scales:
        raise unknown_name(f"scale of recipe {recipe.name}:", scale, recipe.scales)
    values = {**recipe.variables, **recipe.scales.get(scale, {})}
    return {name: _filled(recipe, value, values) for name, value in values.items()}


def _expand(recipe: _File, entry: Mapping[str, Any], values: Variables, known: list[str]) -> Iterator[Stage]:
    """The stages that an entry stands for."""
    try:
        options = dict(entry)
        each = _filled(recipe, options.pop("each", {}), values)
        name, verb = str(options.pop("stage")), str(options.pop("verb"))
        for combination in _combinations(each):
            here = {**values, **combination}
            made = _filled(recipe, options, here)
            stage_name = str(_filled(recipe, name, here))
            listed = {key: _listed(recipe, stage_name, value, known) for key, value in made.items()}
            given = {key: value for key, value in listed.items() if value is not None}
            yield Stage(stage_name, verb, given, here)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise HarnessError(f"recipe {recipe.path} cannot be read: {error!r}", _LOOK) from error


def _combinations(each: Mapping[str, Sequence[Any]]) -> Iterator[Variables]:
    """Every combination of the values of `each`; a value that is a mapping gives several variables."""
    for values in itertools.product(*each.values()):
        found: dict[str, Any] = {}
        for name, value in zip(each, values, strict=True):
            found |= value if isinstance(value, Mapping) else {name: value}
        yield found


def _filled(recipe: _File, value: Any, variables: Variables) -> Any:  # noqa: ANN401 - YAML's own types
    """A value with its variables filled in."""
    if isinstance(value, Mapping):
        return {key: _filled(recipe, inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(recipe, inner, variables) for inner in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in variables:
            raise unknown_name(f"variable in {value!r} of recipe {recipe.path}:", name, variables)
    if whole := _VARIABLE.fullmatch(value):
        return variables[whole[1]]
    return _VARIABLE.sub(lambda match: str(variables[match[1]]), value)


def _listed(recipe: _File, stage: str, value: Any, known: Iterable[str]) -> Any:  # noqa: ANN401
    """A list with its entries `@name-*` replaced by the earlier stages of such names."""
    if not isinstance(value, list):
        return value
    found: list[Any] = []
    for entry in value:
        if not (isinstance(entry, str) and entry.startswith("@") and "*" in entry):
            found.append(entry)
            continue
        matching = [f"@{name}" for name in known if fnmatchcase(name, entry[1:])]
        if not matching:
            raise HarnessError(
                f"recipe {recipe.path}, stage {stage!r}: no earlier stage is called {entry[1:]}",
                f"Earlier stages: {', '.join(known) or 'none'}",
            )
        found += matching
    return found


def _add(recipe: _File, stage: Stage, stages: dict[str, Stage]) -> None:
    """Adds a stage to the chain, checked; one that is there already must be the same."""
    from dcsft_harness.stages import STAGES

    path = recipe.path
    if stage.verb not in STAGES:
        raise unknown_name(f"verb of stage {stage.name!r} in {path}:", stage.verb, STAGES)
    if not re.fullmatch(r"[\w-]+", stage.name):
        raise HarnessError(
            f"recipe {path}: stage name {stage.name!r} is no folder name", "Use letters, digits and dashes"
        )
    try:
        STAGES[stage.verb].options.from_options(stage.options)
    except HarnessError as error:
        raise HarnessError(f"recipe {path}, stage {stage.name!r}: {error.problem}", error.remedy) from error
    for reference in stage.references():
        if reference not in stages:
            raise HarnessError(
                f"recipe {path}: stage {stage.name!r} refers to @{reference}, which is no earlier stage",
                f"Earlier stages: {', '.join(stages) or 'none'}",
            )
    if stage.name in stages and stages[stage.name] != stage:
        raise HarnessError(f"recipe {path}: two different stages are called {stage.name!r}", "Rename one")
    stages[stage.name] = stage


def filled(options: Any, output: Path) -> Any:  # noqa: ANN401 - YAML's own types
    """Options with every `@name` replaced by that stage's folder."""
    if isinstance(options, str):
        return REFERENCE.sub(lambda match: str(output / match[1]), options)
    if isinstance(options, Mapping):
        return {key: filled(value, output) for key, value in options.items()}
    if isinstance(options, list):
        return [filled(value, output) for value in options]
    return options
