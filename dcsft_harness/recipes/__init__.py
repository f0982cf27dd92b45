"""Recipes: chains of stages as YAML files, and their runner.

A recipe file: read at a scale, expanded over seeds and variants into a chain of stages.

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
      - stage: cold-${seed}
        when: ${cold}                    # leave the stage out if this is null;
        otherwise: ${model}              # then `@cold-0` refers to this
    set: {steps: 20}                     # variables, as `dcsft run --set steps=20` sets them

An option that is null has its default, or is none where the default is another: `save_steps: null` saves no
checkpoints.

Stages under `first` come before those of included recipes. A list under `recipes`, beside name and about
alone, means these recipes one after another, each with its own variables.

A family (a mapping with the key `family`) has `start`, the name of its cold start; by default the family's.

`@name` refers to the folder of an earlier stage, and an entry `@name-*` of a list to those of all earlier
stages of such names.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.settings import at_home, flag, members

if TYPE_CHECKING:
    from dcsft_harness.training.config import TrainingConfig

REFERENCE = re.compile(r"@([\w-]+)")
_CHECKPOINT = re.compile(r"@([\w-]+)/checkpoint-(\d+)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LOOK = "Look at a shipped recipe"
SCALES = ("digits", "paper")
EMBEDDED = "digits"
"""The embedded checkpoint's name, as a model."""
MOST_STAGES = 10_000
MOST_VALUES = 4_000_000
"""The most values of all stages of a chain together, variables included."""
_LONGEST = 100_000
"""The most characters of a text with its variables filled in."""

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe."""

    name: str  # also the folder's name inside the recipe's output
    verb: str  # a key of `stages.STAGES`
    options: Mapping[str, Any]  # its options; `@name` inside a text refers to an earlier stage's folder
    # the values of the recipe's variables for it
    variables: Variables = field(default_factory=dict, compare=False, repr=False)

    def references(self) -> list[str]:
        """The earlier stages that it reads, in order of mention."""
        return list(dict.fromkeys(REFERENCE.findall(json.dumps(self.options))))


@dataclass(frozen=True)
class Recipe:
    """A chain of stages."""

    name: str  # the recipe's name, or several names joined by plus signs
    about: str  # what it compares
    stages: tuple[Stage, ...]  # in execution order
    scale: str | None = None  # its scale; None for a recipe without scales
    variables: Variables = field(default_factory=dict)  # the scale's values


class _Entry(BaseModel):
    """A stage as written; keys that are not listed here are its options."""

    model_config = ConfigDict(extra="allow", strict=True)
    stage: str
    verb: str
    each: dict[str, Any] | str = Field(default_factory=dict)
    when: str | None = ""
    otherwise: str | None = None


class _Written(BaseModel):
    """A recipe file's keys and their types."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = ""
    about: str = ""
    include: list[str] | None = None
    recipes: list[str] | None = None
    variables: dict[str, Any] | None = None
    scales: dict[str, dict[str, Any] | None] | None = None
    set: dict[str, Any] | None = None
    first: list[_Entry] | None = None
    stages: list[_Entry] | None = None


_WRITTEN = TypeAdapter(_Written)


@dataclass(frozen=True)
class _File:
    """A recipe file as written, with the included ones first."""

    path: Path
    name: str
    about: str
    variables: Variables
    scales: Mapping[str, Variables]
    given: Variables
    entries: tuple[_Entry, ...]
    recipes: tuple[str, ...] = ()


def shipped() -> dict[str, Path]:
    """The recipes in the package, by name."""
    folder = Path(str(files("dcsft_harness.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def summary(name: str) -> str:
    """What a shipped recipe compares."""
    return _open(name, (), {}).about


def load(names: str | Sequence[str], scale: str | None = None, given: Variables | None = None) -> Recipe:
    """Reads shipped recipes by name, or YAML files by path; several become one chain.

    Stages that several share run once. The scale is "digits" or "paper", and has no effect on a recipe
    without scales; None means "digits", or "paper" if a model other than the embedded one is set. `given` are
    variables to set, as text or as YAML values: those of the scale, or those of its families of data (model,
    pool, tasks, ...). With a pool, the user's own data is the only family.

    Raises:
        HarnessError: unknown name, scale or variable to set, not YAML, an unknown verb or variable, a
            reference to a later stage, two different stages of the same name.
    """
    if scale not in (None, *SCALES):
        raise unknown_name("scale", str(scale), SCALES)
    known: dict[str, _File] = {}
    chosen = [_open(name, (), known) for name in ([names] if isinstance(names, str) else names)]
    opened = [part for one in chosen for part in _parts(one, known)]
    given = given or {}
    if scale is None:
        model = _joined([*(one.given for one in opened), given]).get("model", EMBEDDED)
        scale = "digits" if model == EMBEDDED else "paper"
    stages: dict[str, Stage] = {}
    variables: dict[str, Any] = {}
    replaced: dict[str, str] = {}
    left = MOST_VALUES
    for one in opened:
        values = _scaled(one, scale, {**one.given, **given})  # what another file sets is its own
        variables |= values
        for entry in one.entries:
            for stage in _expand(one, entry, values, list(stages), replaced):
                left = _spent(one, stage, left if len(stages) <= MOST_STAGES else 0)
                _add(one, entry, stage, stages)
    if not stages:
        raise HarnessError(f"recipe {opened[0].path} has no stages", _LOOK)
    has_scales = any(one.scales for one in opened)
    return Recipe(
        "+".join(one.name for one in chosen),
        "; ".join(one.about for one in chosen),
        tuple(stages.values()),
        scale if has_scales else None,
        variables,
    )


def _open(name: str, opening: tuple[str, ...], known: dict[str, _File]) -> _File:
    """Reads a recipe and the ones it includes, each once; `known` holds those read before."""
    if name in known:
        return known[name]
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped().get(name)
    if path is None:
        raise unknown_name("recipe", name, shipped(), "dcsft run --list")
    if not path.is_file():
        raise HarnessError(f"recipe {path} does not exist", "Check the path")
    if name in opening:
        raise HarnessError(
            f"recipe {path} includes itself, through {', '.join(opening)}", "Remove one of the includes"
        )
    try:
        written = reading.shaped(_WRITTEN, reading.yaml_file(path))
    except (ValueError, OSError) as error:
        raise HarnessError(f"recipe {path} cannot be read: {error}", "Correct the file") from error
    if len(opening) == reading.DEEPEST:
        raise HarnessError(f"recipe {path} is nested in {len(opening)} other recipes", "Include fewer levels")
    included = [_open(other, (*opening, name), known) for other in written.include or []]
    own = written.scales or {}
    variables = _joined([*(one.variables for one in included), written.variables or {}])
    scales = {
        scale: _joined([*(one.scales.get(scale, {}) for one in included), own.get(scale) or {}])
        for scale in dict.fromkeys([*own, *(scale for one in included for scale in one.scales)])
    }
    entries = [
        *(written.first or []),
        *(entry for one in included for entry in one.entries),
        *(written.stages or []),
    ]
    # A recipe that is included several times adds its entries once: else their number doubles at each level.
    distinct = {id(entry): entry for entry in entries}
    known[name] = _File(
        path,
        written.name or path.stem,
        written.about,
        variables,
        scales,
        _joined([*(one.given for one in included), written.set or {}]),
        tuple(distinct.values()),
        tuple(written.recipes or ()),
    )
    return known[name]


def _parts(recipe: _File, known: dict[str, _File]) -> list[_File]:
    """The recipes that a file of recipes stands for, or the recipe itself."""
    if not recipe.recipes:
        return [recipe]
    if recipe.entries or recipe.variables or recipe.scales or recipe.given:
        raise HarnessError(f"recipe {recipe.path} has `recipes` and other keys", "Put these into one of them")
    parts = [_open(name, (str(recipe.path),), known) for name in recipe.recipes]
    if nested := [one.name for one in parts if one.recipes]:
        raise HarnessError(
            f"recipe {recipe.path} names {nested[0]}, which names recipes itself", "Name those"
        )
    return parts


def _joined(values: Iterable[Variables]) -> dict[str, Any]:
    """Variables of several files; later ones win."""
    return {name: value for one in values for name, value in one.items()}


def _scaled(recipe: _File, scale: str, given: Variables) -> Variables:
    """The variables at a scale, which may refer to each other, with the given ones."""
    if recipe.scales and scale not in recipe.scales:
        raise unknown_name(f"scale of recipe {recipe.name}:", scale, recipe.scales)
    values = _set(recipe, {**recipe.variables, **recipe.scales.get(scale, {})}, given)
    return {name: _filled(recipe, value, values) for name, value in values.items()}


OWN = "own"
"""The family of the user's own data."""


def _set(recipe: _File, values: Variables, given: Variables) -> dict[str, Any]:
    if "size" in given and (sizes := values.get("sizes")):
        if given["size"] not in sizes:
            raise unknown_name(f"size of recipe {recipe.path}:", str(given["size"]), sizes)
        given = {**sizes[str(given["size"])], **given}
    families = {
        name: dict(one) for name, one in values.items() if isinstance(one, Mapping) and "family" in one
    }
    inner = dict.fromkeys(key for one in families.values() for key in one if key != "family")
    changed = dict(values)
    for name, value in given.items():
        if name not in inner and name not in values:
            raise unknown_name(f"variable of recipe {recipe.name}:", name, [*inner, *values])
        for one in families.values():
            if name in one:
                one[name] = _typed(name, value, one[name])
        if name in values:
            changed[name] = _typed(name, value, values[name])
    changed |= families
    if given.get("pool") is not None and OWN in families:
        family = families[OWN] | _own(families[OWN], str(given["pool"]), changed)
        if family["assume"] is None:  # then the scale's hold
            del family["assume"]
        changed["families"] = [family]
        changed |= {name: families[OWN][name] for name in ("assume", "seeds") if families[OWN][name]}
    return changed


def _own(own: Variables, pool: str, values: Variables) -> dict[str, Any]:
    """The variables of the user's own family that follow from a pool, a file or a task.

    `values` are those of the scale.
    """
    as_file = Path(pool).exists() or Path(pool).suffix != ""
    share, test = own["held_out"], own["test"]
    if as_file and own["scorer"] is None:
        raise HarnessError(f"pool={pool} is a file, but no scorer is set", "Set scorer=NAME too")
    if share is not None and (test is not None or not as_file):
        other = f"test={test} is set too" if as_file else f"pool={pool} is a task"
        raise HarnessError(
            f"held_out={share} holds out rows of the pool's file, but {other}",
            "Leave one of them out" if as_file else "Set test=FILE or tasks=NAME,... instead",
        )
    if test is not None and Path(pool).resolve() == Path(str(test)).resolve():
        raise HarnessError(
            f"test={test} is the pool itself, whose rows are trained on",
            "Use other rows, or hold out some of the pool: held_out=0.1 (`dcsft init --test 0.1`)",
        )
    if not own["tasks"] and test is None and share is None:
        raise HarnessError(
            f"pool={pool} is set, but there is nothing to evaluate on",
            "Set held_out=0.1 (that share of the pool's own rows), test=FILE, or tasks=NAME,..., or some of"
            " them",
        )
    found: dict[str, Any] = {"file": pool, "task": None} if as_file else {"file": None, "task": pool}
    found["test"] = pool if share is not None else test
    if found["test"] is not None and own["scorer"] is None:
        raise HarnessError(f"test={found['test']} is a file, but no scorer is set", "Set scorer=NAME too")
    found["test_held_out"] = share
    found["test_scorer"] = None if found["test"] is None else own["scorer"]
    found["test_root"] = None if found["test"] is None else own["image_root"]
    found["scorer"] = own["scorer"] if as_file else None
    found["tasks"] = own["tasks"] or None
    found["tokens"] = _counted(own, pool, found)
    gpus = _gpus()
    if own.get("sampling_processes") == "all":
        found["sampling_processes"] = gpus
    if own.get("num_processes") == "all":
        found["num_processes"] = gpus and _sharing(gpus, {**values, **own})
    return found


def _sharing(gpus: int, values: Variables) -> int:
    """The most of these GPUs that can share the batches of every training; see `TrainingConfig.share`."""
    from dcsft_harness.training.config import TrainingConfig

    usual = TrainingConfig.model_fields["batch_size"].default
    batches = [(usual, 1), (usual, values.get("sft_micro")), (values.get("completions"), values.get("micro"))]
    sizes = [
        size // (micro if isinstance(micro, int) and micro > 0 else 1)
        for size, micro in batches
        if isinstance(size, int)  # else the stage refuses it
    ]
    return max(count for count in range(1, gpus + 1) if all(size % count == 0 for size in sizes))


def _counted(own: Variables, pool: str, found: Variables) -> Any:  # noqa: ANN401 - as a recipe has it
    """The family's `tokens` with the numbers of rows of its files, as far as they are known at once."""
    from dcsft_harness.sampling import own_files

    tokens = own.get("tokens")
    if not isinstance(tokens, Mapping) or not isinstance(tokens.get("evaluated"), int):
        return tokens
    rows, share = own_files.count(Path(pool)), found["test_held_out"]
    share = share if isinstance(share, float) and 0 < share < 1 else 0.0
    counted = dict(tokens)
    evaluated = tokens["evaluated"] * len(own["tasks"] or ())
    if rows is not None:
        counted["pool"] = round(rows * (1 - share))
    if found["test"] is not None:
        tested = own_files.count(Path(str(found["test"])))
        held = tested if not share else None if tested is None else round(tested * share)
        evaluated += tokens["evaluated"] if held is None else held
    return {**counted, "evaluated": evaluated}


def _typed(name: str, value: object, former: object) -> object:
    """A variable's new value: text is parsed as YAML, and with commas if the old value is a list."""
    if not isinstance(value, str):
        return value
    try:
        parts = [reading.from_yaml(part) for part in value.split(",")]
    except ValueError as error:
        raise HarnessError(
            f"{name}={cut(value)} cannot be read: {error}",
            "Write a list as 1,2,3 and other values as in YAML",
        ) from error
    return parts if isinstance(former, list) or len(parts) > 1 else parts[0]


def _gpus() -> int | None:
    """The number of this machine's CUDA devices if it has several; None for one device or a CPU."""
    import torch

    count = torch.cuda.device_count()
    return count if count > 1 else None


def _expand(
    recipe: _File, entry: _Entry, values: Variables, known: list[str], replaced: dict[str, str]
) -> Iterator[Stage]:
    """The stages of an entry; `replaced` maps omitted stages to their replacements."""
    from dcsft_harness.stages import STAGES

    fields = STAGES[entry.verb].options.model_fields if entry.verb in STAGES else {}
    # Null is an option's value where it has another default (no checkpoints); elsewhere it gives none.
    nullable = {
        key
        for key, one in fields.items()
        if type(None) in members(one.annotation) and not one.is_required() and one.default is not None
    }
    for combination in _combinations(recipe, entry.stage, _filled(recipe, entry.each, values)):
        here = {**values, **combination}
        made = at_home(_filled(recipe, entry.model_extra, here))
        stage_name = str(_filled(recipe, entry.stage, here))
        if _filled(recipe, entry.when, here) is None:
            if entry.otherwise is not None:
                replaced[stage_name] = str(_filled(recipe, entry.otherwise, here))
            continue
        made = _mapped(made, lambda text: REFERENCE.sub(lambda one: replaced.get(one[1], one[0]), text))
        listed = {key: _listed(recipe, stage_name, value, known) for key, value in made.items()}
        given = {key: value for key, value in listed.items() if value is not None or key in nullable}
        yield Stage(stage_name, entry.verb, given, here)


def _mapped(value: object, change: Callable[[str], object]) -> Any:  # noqa: ANN401 - of the same kind
    """A value with a function applied to every text inside; the keys of mappings stay."""
    if isinstance(value, Mapping):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _spent(recipe: _File, stage: Stage, left: int) -> int:
    """The number of values that later stages may still have; fewer than none is an error."""
    waiting: list[Any] = [stage.options, stage.variables]
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        left -= 1 + len(inner)
        if left < 0:
            raise HarnessError(
                f"recipe {recipe.path}: up to stage {stage.name!r} there are over {MOST_STAGES:,} stages or "
                f"{MOST_VALUES:,} values",
                "Shorten `each`, or split the recipe",
            )
        waiting += [one for one in inner if isinstance(one, Mapping | list)]
    return left


def _combinations(recipe: _File, stage: str, each: object) -> Iterator[Variables]:
    """Every combination of the values of `each`; a value that is a mapping sets several variables."""
    if not isinstance(each, Mapping):
        raise HarnessError(
            f"recipe {recipe.path} cannot be read: each of stage {stage!r} is {str(each)[:80]!r}, "
            "not a mapping",
            "Write `name: [value, value]`",
        )
    for name, values in each.items():
        if not isinstance(values, list):
            raise HarnessError(
                f"recipe {recipe.path} cannot be read: each.{name} of stage {stage!r} is "
                f"{str(values)[:80]!r}, not a list",
                "Write `name: [value, value]`",
            )
    if (count := math.prod(len(values) for values in each.values())) > MOST_STAGES:
        raise HarnessError(
            f"recipe {recipe.path}: each of stage {stage!r} has {count:,} combinations; a recipe "
            f"may have {MOST_STAGES:,} stages",
            "Shorten its lists",
        )
    for values in itertools.product(*each.values()):
        found: dict[str, Any] = {}
        for name, value in zip(each, values, strict=True):
            if isinstance(value, Mapping) and "family" in value:  # with a cold start of its own by default
                found["start"] = value["family"]
            found |= value if isinstance(value, Mapping) else {name: value}
        yield found


def _filled(recipe: _File, value: object, variables: Variables) -> Any:  # noqa: ANN401 - of the same kind
    return _mapped(value, lambda text: _filled_text(recipe, text, variables))


def _filled_text(recipe: _File, value: str, variables: Variables) -> object:
    for name in _VARIABLE.findall(value):
        if name not in variables:
            raise unknown_name(f"variable in {value!r} of recipe {recipe.path}:", name, variables)
    if whole := _VARIABLE.fullmatch(value):
        return variables[whole[1]]
    length = len(value)

    def text(match: re.Match[str]) -> str:
        nonlocal length
        length += len(made := str(variables[match[1]]))
        if length > _LONGEST:
            raise HarnessError(
                f"recipe {recipe.path}: {value[:50]!r} is longer than {_LONGEST:,} characters when filled in",
                "Shorten its variables",
            )
        return made

    return _VARIABLE.sub(text, value)


def _listed(recipe: _File, stage: str, value: object, known: Iterable[str]) -> object:
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


def _add(recipe: _File, entry: _Entry, stage: Stage, stages: dict[str, Stage]) -> None:
    """Adds a checked stage of an entry to the chain; an existing one of that name must be equal."""
    from dcsft_harness.stages import STAGES
    from dcsft_harness.training.config import TrainingConfig

    path = recipe.path
    if stage.verb not in STAGES:
        raise unknown_name(f"verb of stage {stage.name!r} in {path}:", stage.verb, STAGES)
    if not re.fullmatch(r"[\w-]+", stage.name):
        raise HarnessError(
            f"recipe {path}: stage name {stage.name!r} is not a valid folder name",
            "Use letters, digits and dashes",
        )
    try:
        read = STAGES[stage.verb].options.from_options(stage.options)
        if (processes := getattr(read, "num_processes", None)) and isinstance(read, TrainingConfig):
            read.share(processes)
    except HarnessError as error:
        written = entry.model_extra or {}
        named = [one for one in written if re.search(rf"(?<!\w){re.escape(flag(one))}\b", error.problem)]
        sets = _sets(entry, named)
        remedy = error.remedy.rstrip(".") + (f"; set them by {sets}" if sets else "")
        raise HarnessError(f"recipe {path}, stage {stage.name!r}: {error.problem}", remedy) from error
    for reference in stage.references():
        if reference not in stages:
            raise HarnessError(
                f"recipe {path}: stage {stage.name!r} refers to @{reference}, which is not an earlier stage",
                f"Earlier stages: {', '.join(stages) or 'none'}",
            )
    for name, step in _CHECKPOINT.findall(json.dumps(stage.options)):
        options = STAGES[stages[name].verb].options.from_options(stages[name].options)
        if isinstance(options, TrainingConfig):
            _refuse_unkept(f"recipe {path}: stage {stage.name!r}", name, int(step), options)
    other = stages.get(stage.name, stage)
    if other != stage:
        ours = {"verb": stage.verb, **stage.options}
        theirs = {"verb": other.verb, **other.options}
        names = [one for one in {**theirs, **ours} if theirs.get(one) != ours.get(one)]
        differing = (
            f"{one} {cut(str(theirs.get(one)), 80)} and {cut(str(ours.get(one)), 80)}" for one in names
        )
        sets = _sets(entry, names)
        raise HarnessError(
            f"recipe {path}: two different stages are called {stage.name!r}: {', '.join(differing)}",
            "Rename one" + (f", or give both the same by {sets}" if sets else ""),
        )
    stages[stage.name] = stage


def _sets(entry: _Entry, names: Iterable[str]) -> str:
    """What sets the variables that an entry's options of these names are, for a remedy; empty for none."""
    written = entry.model_extra or {}
    texts = [value for name in names if isinstance(value := written.get(name), str)]
    return " and ".join(f"--set {found[1]}=VALUE" for text in texts if (found := _VARIABLE.fullmatch(text)))


def _refuse_unkept(reader: str, name: str, step: int, training: "TrainingConfig") -> None:
    """Refuses a checkpoint that the finished stage `name` does not hold; `reader` is who reads it."""
    last, every, kept = training.max_steps, training.save_steps, training.keep
    if last is None:
        return  # the number of rows decides
    if every is not None and kept is not None and step <= last and (step == last or step % every == 0):
        later = last // every - step // every + (step < last and last % every > 0)
        if later < kept:
            return
    saved = "saves none" if every is None else f"saves every {every} steps"
    held = f"of {last} steps {saved} and keeps the newest {kept}" if kept else "keeps none"
    raise HarnessError(
        f"{reader} reads checkpoint-{step} of {name!r}, which {held}",
        "Name checkpoints that it keeps (in recipe curves by --set scored_steps=STEP,...), or change its"
        " max_steps, save_steps or keep",
    )


def filled(options: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Options with every `@name` replaced by that stage's folder."""
    found = _mapped(options, lambda text: REFERENCE.sub(lambda match: str(output / match[1]), text))
    return dict(found)
