"""Runs a recipe, each stage in turn, or prints its plan: commands, inputs and estimates.

A stage's key is a hash of its verb, its options, the package's version, the manifests of the stages that it
refers to, and the contents of other files and folders that its options name, with the images of your own
rows, the files of your own tasks, and your own scorer. A stage is skipped if its folder was made with the
same key and all files in it are unchanged; so an interrupted recipe resumes, and an edited one redoes what
changed. An interrupted sampling stage resumes from its saved responses, and a training stage from its last
checkpoint, unless its key has changed since. Several processes may run recipes in one folder: each takes the
next stage that none has taken.
"""

import contextlib
import errno
import fcntl
import gc
import json
import os
import re
import shlex
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from dcsft_harness import __version__, pictures, reading
from dcsft_harness.artifacts import manifest, resuming, usage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.environment import importing
from dcsft_harness.errors import HarnessError, cut, reporting_refusals, visible
from dcsft_harness.lmms.tasks import include, listing, members, refuse_unknown, refuse_unprepared
from dcsft_harness.recipes import EMBEDDED, REFERENCE, Recipe, Stage, filled
from dcsft_harness.sampling import own_files
from dcsft_harness.scoring import get_scorer
from dcsft_harness.settings import extra, flag
from dcsft_harness.stages import STAGES
from dcsft_harness.stages.stage import place_of

# The estimated cost of a recipe's stages, from the assumptions of its scale.
#
# `assume` of a scale, for one machine:
#   device, devices: what, and how many; gigabytes: memory of one, 0 leaves memory out
#   language, vision: weights in products, of the language model (with its output layer) and of the tower
#   flops: operations that one device carries out in a second, as training and prefill reach them
#   drawn: tokens that all devices together draw in a second, with an engine that batches
#   trained: tokens that they draw in a second inside GRPO's loop, by transformers' `generate`
#   load: seconds in which a stage opens its model
#
# `tokens` of a family: prompt (tokens, images included) and patches an item, answer (tokens), and how many
# items the pool, the cold start and the evaluations have.
#
# Published sizes and round throughputs: good for telling an hour from a day, and no more.


class Estimate(NamedTuple):
    """Seconds of wall-clock time, and bytes on one device (0: not estimated)."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        """Both in readable units."""
        memory = f", {self.memory / 1e9:.0f} GB on each device" if self.memory else ""
        return f"about {usage.rounded(max(self.seconds, 1))}{memory}"


def estimates(recipe: Recipe) -> dict[str, Estimate]:
    """Stage name -> its estimate, for stages that take more than moments."""
    if "assume" not in recipe.variables:
        return {}
    found = {}
    for stage in recipe.stages:
        assumed, tokens = stage.variables.get("assume"), stage.variables.get("tokens")
        if not (assumed and tokens):
            continue
        given, sizes = _numbers(assumed), _numbers(tokens)
        if (estimate := STAGES[stage.verb].estimate) is not None:
            seconds, memory = estimate(stage.options, given, sizes)
            found[stage.name] = Estimate(given["load"] + seconds, memory if given["gigabytes"] else 0.0)
    return found


def estimated(recipe: Recipe) -> list[str]:
    """The closing lines: the sum, and its assumptions."""
    found = estimates(recipe)
    if not found:
        return []
    assumed = recipe.variables["assume"]
    total = Estimate(sum(one.seconds for one in found.values()), max(one.memory for one in found.values()))
    values = {name: f"{one:.3g}" if isinstance(one, float) else one for name, one in assumed.items()}
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    return [f"# in all {total}, on {assumed['devices']} x {assumed['device']}; assumed: {said}"]


def too_large(recipe: Recipe) -> list[str]:
    """A sentence if a stage is estimated to need more memory than its device is assumed to have."""
    there = _numbers(recipe.variables.get("assume") or {}).get("gigabytes", 0.0)
    found = {name: one.memory / 1e9 for name, one in estimates(recipe).items() if one.memory / 1e9 > there}
    if not there or not found:
        return []
    most = max(found, key=lambda name: found[name])
    return [
        f"{len(found)} stages would need more than {there:g} GB by the estimate; {most} {found[most]:.0f} GB."
        " Set a smaller model, or more or larger devices."
    ]


def assumed(model: str, device: str) -> dict[str, Any]:
    """The variable `assume` for a user's own model and device; nothing for the embedded model.

    The size of a local checkpoint is counted. A hub's model with "3B" in its name has that size, and 3B is
    assumed of others. The device is "cpu", or GPUs as NUMBERxGIGABYTES.

    Raises:
        HarnessError: `device` is neither; a local checkpoint's configuration cannot be read.
    """
    found = re.fullmatch(r"(\d+)x(\d+)(?: ?GB)?", device.strip(), re.IGNORECASE)
    if device.strip().lower() != "cpu" and (found is None or not int(found[1]) or not int(found[2])):
        raise HarnessError(
            f"--device {cut(device)} is neither cpu nor NUMBERxGIGABYTES", "Write for example 1x24 or 8x80"
        )
    if model == EMBEDDED:
        return {}
    language, vision = _weights(model)
    count, gigabytes = (1, 0) if found is None else (int(found[1]), int(found[2]))
    flops = 4.0e10 if found is None else 6.0e13 if gigabytes < 40 else 3.0e14
    # Tokens are drawn at the speed at which weights are read; tiny models are limited by other work.
    pace = min(flops / 6.0e13 * 3.09e9 / language, 50)
    return {
        "assume": {
            "device": "one core" if found is None else f"GPU {gigabytes} GB",
            "devices": count,
            "gigabytes": gigabytes,
            "language": language,
            "vision": vision,
            "flops": flops,
            "drawn": 400 * count * pace,
            "trained": 100 * count * pace,
            "load": 60 if language > 1e9 else 5,
        }
    }


def _weights(model: str) -> tuple[float, float]:
    """Weights in products of a model's language model, with its output layer, and of its vision tower."""
    if (Path(model) / "config.json").is_file():
        from dcsft_harness.models import checkpoint, estimates
        from dcsft_harness.models.arguments import ModelSettings

        config = checkpoint.open_config(ModelSettings.from_options({"pretrained": model}))
        counted = estimates.Anatomy(config).arithmetic
        return counted.language + counted.head, counted.vision
    size = re.search(r"(\d+(?:\.\d+)?)B(?![a-z])", Path(model).name, re.IGNORECASE)
    return float(size[1]) * 1e9 if size else 3.09e9, 6.7e8


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among some values, also as texts."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


# The plan of a recipe: every command as it could be typed, with its inputs and costs.


def command(stage: Stage, output: Path) -> list[str]:
    """The stage's command, in words."""
    return STAGES[stage.verb].command(filled(stage.options, output), output / stage.name)


def described(recipe: Recipe, output: Path) -> str:
    """A recipe's commands in order, with an estimate of time and memory if the scale has assumptions."""
    try:
        known = estimates(recipe)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise HarnessError(
            f"recipe {recipe.name}: no estimate can be made from `assume` and `tokens` ({error!r})",
            "Write them as in a shipped recipe, or leave them out",
        ) from error
    lines = []
    made = state_of(output)["stages"] if (output / STATE).is_file() else {}
    kept: set[str] = set()
    for stage in recipe.stages:
        reads = ", ".join(str(output / name) for name in stage.references()) or "nothing made before"
        lines += [
            f"# {stage.name}: reads {reads}; writes {output / stage.name}",
            *([f"# {known[stage.name]}"] if stage.name in known else []),
            *_finished(stage, output, made, kept),
            shlex.join(command(stage, output)),
        ]
    return "\n".join(map(visible, [*lines, *estimated(recipe)]))


def _finished(stage: Stage, output: Path, made: Mapping[str, str], kept: set[str]) -> list[str]:
    """What a run would do with the stage's finished folder, if there is one; adds its name to `kept`."""
    if not (output / stage.name / manifest.NAME).is_file():
        return []
    why = OTHERWISE
    if kept.issuperset(stage.references()) and made.get(stage.name) == key(stage, output):
        if manifest.is_intact(output / stage.name):
            kept.add(stage.name)
            return ["# already done"]
        why = CHANGED
    return [f"# {why}; it would run again"]


# Runs a recipe: each stage in turn, skipping stages that are done and still valid.

_T = TypeVar("_T")

STATE = "recipe.json"
OTHERWISE = "it was made with other settings, inputs or versions"
CHANGED = "its files have changed"
"""Why a finished stage runs again."""


def key(stage: Stage, output: Path) -> str:
    """The stage's key; see the module's docstring."""
    from dcsft_harness.data.digits.suite import VERSION

    read = {name: manifest.fingerprint(output / name) for name in stage.references()}
    brought, tasks = {}, []
    for option, text, kind in STAGES[stage.verb].reading(stage.options):
        if REFERENCE.search(text):
            continue
        if kind in ("pool", "tasks"):
            tasks += members(text)
        if option == "results":  # NAME=FOLDER
            from dcsft_harness.leaderboard.collect import named

            text = str(named(Path(text))[1])
        if text and (Path(text).is_file() or (kind != "tasks" and Path(text).exists())):
            brought[text] = manifest.fingerprint(Path(text))
    content = STAGES[stage.verb].content(stage.options)
    brought |= {f"content of {name}": digest for name, digest in content.items()}
    brought |= {role: manifest.fingerprint(path) for role, path in prepared.inputs(tasks).items()}
    fields = STAGES[stage.verb].options.model_fields
    deciding = {
        name: value
        for name, value in stage.options.items()
        if name not in fields or extra(fields[name], "decides") is not False
    }
    return json_sha256([stage.verb, deciding, read, brought, __version__, VERSION, pictures.FORMAT])


def refuse_missing(recipe: Recipe, output: Path, unprepared: bool) -> None:
    """Refuses files, scorers and tasks that do not exist, whose stages may be hours away.

    So are an output and a checkpoint that model arguments cannot name; with `unprepared`, tasks whose data is
    not prepared.
    """
    tasks: dict[str, None] = {}
    for stage in recipe.stages:
        if isinstance(scorer := stage.options.get("scorer"), str):
            get_scorer(scorer)
        if (folder := stage.options.get("include_path")) is not None:
            include(Path(str(folder)))
        kinds = {extra(one, "reads") for one in STAGES[stage.verb].options.model_fields.values()}
        for name, text, kind in STAGES[stage.verb].reading(stage.options):
            if kind in ("checkpoint", "model_args") and "model_args" in kinds:
                for path in (output / found for found in REFERENCE.findall(text)):
                    reading.refuse_comma(path)
                if kind == "checkpoint":
                    reading.refuse_comma(text)
            if REFERENCE.search(text) or place_of(name, text).exists():
                continue
            if kind in ("file", "artifact"):
                raise HarnessError(f"{flag(name)} {text} does not exist", "Check the path")
            if kind in ("pool", "tasks"):
                own_files.refuse_lost(text)
                tasks[text] = None
    ours = {row["task"] for row in listing()}  # known without lmms-eval, which takes seconds to import
    if others := [one for name in tasks for one in members(name) if one not in ours]:
        refuse_unknown(others)
    if unprepared:
        refuse_unprepared(tasks)


def run(
    recipe: Recipe,
    output: Path,
    perform: Callable[[str, Path, dict[str, Any]], _T],
    say: Callable[[str], None],
) -> _T | None:
    """Runs the unfinished stages; returns the result of `perform` for the last one, None if skipped.

    `output` holds a folder for each stage. `perform` is called with (verb, folder, options) for each stage to
    run, `say` with a line for each that is already done, and for each whose finished folder is replaced.

    Raises:
        HarnessError: the folder holds another recipe, or a stage fails.
    """
    new = [path for path in (output, *output.parents) if not path.exists()]
    _open(recipe, output)
    notes: _T | None = None
    waiting = list(recipe.stages)
    with _present(output) as file, contextlib.ExitStack() as stack:
        stack.callback(_tidy, output, file, new)
        freezes = not gc.get_freeze_count()
        stack.enter_context(importing())
        while waiting:
            later: list[Stage] = []
            for stage in waiting:
                # Stages of another process are in `later`, and so is everything that reads them.
                if {one.name for one in later} & set(stage.references()):
                    later.append(stage)
                    continue
                with _claimed(file, zlib.crc32(stage.name.encode())) as ours:
                    if ours:
                        started = time.monotonic()
                        notes = _finish(stage, output, file, perform, say)
                        # The modules stay: else the collections of stages with models walk them, for 0.7 s
                        # of an evaluation's 8.
                        if freezes and time.monotonic() - started > FREEZE_AFTER:
                            gc.collect()
                            gc.freeze()
                    else:
                        later.append(stage)
            if len(later) == len(waiting):
                time.sleep(PAUSE)
            waiting = later
    return notes


def _tidy(output: Path, file: IO[bytes], new: Sequence[Path]) -> None:
    """Removes a folder in which nothing was made, because the first stage was refused."""
    if {path.name for path in output.iterdir()} <= {STATE, LOCK}:
        with contextlib.suppress(OSError):  # another process is at work
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in (STATE, LOCK):
                (output / name).unlink(missing_ok=True)
            for path in new:
                path.rmdir()


FREEZE_AFTER = 4.0
"""Seconds that a stage with a model takes at least; of others a collection would be most of the time."""
PAUSE = 1.0
"""Seconds between looks at the stages of other processes."""
LOCK = ".recipe.lock"
_STATE_AT = 2**32
"""The byte of `LOCK` for `STATE`; those before it are for stages."""
_PRESENT_AT = _STATE_AT + 1
"""The byte that each process at work in the folder shares."""


@contextlib.contextmanager
def _present(output: Path) -> Iterator[IO[bytes]]:
    """Opens the file of claims; the last process to leave removes it."""
    while True:
        file = (output / LOCK).open("a+b")
        fcntl.lockf(file, fcntl.LOCK_SH, 1, _PRESENT_AT)
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # removed between its opening and its lock
    with file:
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):  # others are at work, or the folder is gone
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _PRESENT_AT)
                (output / LOCK).unlink()


def _finish(
    stage: Stage,
    output: Path,
    file: IO[bytes],
    perform: Callable[[str, Path, dict[str, Any]], _T],
    say: Callable[[str], None],
) -> _T | None:
    """Runs a stage unless it is finished; returns its notes, None if it was skipped."""
    folder, wanted = output / stage.name, key(stage, output)
    same = state_of(output)["stages"].get(stage.name) == wanted
    if same and manifest.is_intact(folder):
        manifest.sweep(folder)
        say(f"{stage.name}: already done")
        return None
    if (folder / manifest.NAME).is_file():
        why = CHANGED if same else OTHERWISE
        say(f"{stage.name}: {why}; it runs again")
        shutil.rmtree(folder)
    elif (folder / manifest.UNFINISHED).is_dir() and not same:
        resuming.discard(folder)
    # Saved first, so that output of a killed process, complete or not, is identified by the key too.
    with _claimed(file, _STATE_AT, wait=True):
        state = state_of(output)
        state["stages"][stage.name] = wanted
        _save(state, output)
    return perform(stage.verb, folder, filled(stage.options, output))


@contextlib.contextmanager
def _claimed(file: IO[bytes], at: int, wait: bool = False) -> Iterator[bool]:
    """Locks one byte of a file, open for writing: the claim of this process to a stage, or to the state.

    Processes that run recipes in one folder share the stages in this way. The operating system frees a claim
    if its process dies. Yields whether the claim is ours.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, at)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, at)


def state_of(output: Path) -> dict[str, Any]:
    """What a recipe's folder records: its name, its scale, and the key of each stage that was begun."""
    path = output / STATE
    try:
        state = reading.json_file(path)
        return {"recipe": state["recipe"], "scale": state.get("scale"), "stages": dict(state["stages"])}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise HarnessError(f"{path} cannot be read: {error!r}", "Remove it to start again") from error


def _open(recipe: Recipe, output: Path) -> None:
    """Begins a folder, or checks that it holds the same recipe."""
    if output.is_file():
        raise HarnessError(f"--output {output} is a file", "Name a folder")
    if (output / STATE).is_file():
        state = state_of(output)
        name, scale = state["recipe"], state["scale"]
        # Recipes of one scale share stages, under names that mean the same in each.
        if (recipe.scale, scale) != (None, None) and recipe.scale == scale:
            return
        if name != recipe.name or scale != recipe.scale:
            ours, theirs = (
                f"{one!r}{f' at scale {at}' if at else ''}"
                for one, at in ((recipe.name, recipe.scale), (name, scale))
            )
            raise HarnessError(
                f"--output {output} holds the recipe {theirs}, not {ours}", "Name another folder"
            )
        return
    if output.is_dir() and any(output.iterdir()):
        raise HarnessError(
            f"--output {output} is not empty and contains no recipe", "Name a new or an empty folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    _save({"recipe": recipe.name, "scale": recipe.scale, "stages": {}}, output)


def _save(state: Mapping[str, Any], output: Path) -> None:
    unfinished = output / f".{STATE}.{os.getpid()}"
    try:
        with reporting_refusals("state of the recipe", output / STATE, "finished stages are kept"):
            unfinished.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            os.replace(unfinished, output / STATE)
    finally:
        unfinished.unlink(missing_ok=True)
