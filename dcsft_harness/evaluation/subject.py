"""What to score: an adapter on its base, a whole checkpoint, or the checkpoints of a run."""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import lock, manifest
from dcsft_harness.data.digits import DIGITS, resolve
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.training import merging, run_folder

# What to score: an adapter on its base, or a whole checkpoint.

ADAPTER, MODEL = "adapter_config.json", "config.json"


@dataclass(frozen=True)
class Origin:
    """The position of a checkpoint in its training run."""

    run: Path  # the run's output folder
    kind: str  # "adapter" or "checkpoint", the kind of the run's result
    step: int  # the step after which it was written
    identity: str  # see `run_folder.identity`
    # the run's cost at that step, as far as it is known
    ledger: Mapping[str, Any] = field(default_factory=dict)

    def as_note(self, output: Path) -> dict[str, Any]:
        """Its record in the notes of a result in `output`."""
        return {
            "run": manifest.relative(self.run, output),
            "kind": self.kind,
            "step": self.step,
            "identity": self.identity,
            "ledger": {"steps": self.step, **self.ledger},
        }


@dataclass(frozen=True)
class Subject:
    """Weights to score."""

    pretrained: str  # a whole checkpoint, or the adapter's base: a folder or a hub name
    adapter: Path | None = None  # a PEFT folder; None for a whole checkpoint
    origin: Origin | None = None  # their run, if they are a checkpoint inside one; None otherwise

    def arguments(self, further: str) -> str:
        """The model arguments to load it; a comma in its path is an error, as it separates arguments."""
        named = {"pretrained": self.pretrained, "adapter": self.adapter}
        for value in named.values():
            reading.refuse_comma(value)
        parts = [f"{key}={value}" for key, value in named.items() if value is not None]
        return ",".join([*parts, *([further] if further else [])])

    def arguments_of(self, engine: str, further: str) -> str:
        """The model arguments with which an engine loads it; see `arguments`.

        An engine that takes no checkpoint, or no adapter where this is one, is refused.
        """
        from dcsft_harness import lmms
        from dcsft_harness.models import MODELS

        if engine in MODELS:
            return self.arguments(further)
        name = lmms.checkpoint_argument(engine)
        if self.adapter is not None:
            raise HarnessError(
                f"--engine {engine} takes no adapter, and {self.adapter} is one",
                f"Merge it with `dcsft merge {shlex.quote(str(self.adapter))} --output DIR`, or use"
                " --engine dcsft_hf or dcsft_vllm",
            )
        return self.arguments(further).replace("pretrained=", f"{name}=", 1)

    def inputs(self) -> dict[str, Path]:
        """Role -> folder, for a manifest; a hub's checkpoint has none."""
        found = {"model": Path(self.pretrained)} if Path(self.pretrained).is_dir() else {}
        return found | ({} if self.adapter is None else {"adapter": self.adapter})

    def hashes(self) -> dict[str, str]:
        """Role -> the identity of its weights in a manifest: a hash, or a hub's name."""
        found = {role: manifest.fingerprint(path) for role, path in self.inputs().items()}
        return {"model": self.pretrained, **found}


def open_subject(given: str, base: str | None) -> Subject:
    """Opens the weights of a folder, "digits", or a hub name of a whole checkpoint.

    `base` is an adapter's, if not the one that it was trained on.

    Raises:
        HarnessError: it is neither adapter nor checkpoint, has changed since it was written, or the base is
            not found or not allowed.
    """
    folder = Path(resolve(given))
    if not folder.is_dir():
        if folder.is_file() or folder.is_absolute() or given.count("/") != 1 or given.startswith("."):
            problem = "is a file, not a folder" if folder.exists() else "does not exist"
            raise HarnessError(
                f"CKPT {given} {problem}", "Check the path, or give a hub's OWNER/NAME, or `digits`"
            )
        _refuse_base(given, base)
        return Subject(given)
    run = folder.resolve().parent
    if run.name == manifest.UNFINISHED and run_folder.step_of(folder):
        raise HarnessError(
            f"CKPT {given} is a checkpoint of an unfinished run, which may remove it at any time",
            f"Score it with `--watch {run.parent}`",
        )
    if not (folder / ADAPTER).is_file() and not (folder / MODEL).is_file():
        _refuse_other(given, folder)
    if given != DIGITS:
        manifest.refuse_changed(folder)
    origin = written_in(folder)
    if not (folder / ADAPTER).is_file():
        _refuse_base(given, base)
        return Subject(str(folder), origin=origin)
    within = folder.parent if origin is not None else folder
    made = manifest.read(within, "adapter") if (within / manifest.NAME).is_file() else None
    named = None if base is None else resolve(base)
    return Subject(merging.find_base(folder, made, named).name, folder, origin)


def as_engine(model: str, arguments: str, engine: str | None = None) -> tuple[str, str]:
    """The lmms-eval model and its arguments for a checkpoint or adapter.

    `model` is a folder, "digits" or a hub's OWNER/NAME; or, as before `engine` existed, an lmms-eval model.
    `engine` is the lmms-eval model that loads it; None uses dcsft_hf.

    Raises:
        HarnessError: see `open_subject`; or the arguments also name a checkpoint, or the engine takes none.
    """
    folder = Path(model)
    if engine is not None and engine != model:
        return engine, _engine_arguments(model, arguments, engine)
    from dcsft_harness.models import MODELS

    is_folder = folder.is_dir() and model not in MODELS
    if model != DIGITS and "/" not in model and not is_folder:
        _refuse_unknown(model)
        return model, arguments
    return "dcsft_hf", _with_base(model, arguments)


def _refuse_unknown(model: str) -> None:
    """Refuses a name that is no lmms-eval model: it is a checkpoint's, misspelled.

    Names near folders here and near models.
    """
    from lmms_eval.models import MODEL_REGISTRY_V2

    from dcsft_harness import lmms

    lmms.quiet()
    known = MODEL_REGISTRY_V2.list_model_names()
    if model in known:
        return
    here = [one.name for one in Path().iterdir() if one.is_dir() and _holds_weights(one)]
    near = difflib.get_close_matches(model, [DIGITS, *here, *known], 3)
    raise HarnessError(
        f"--model {cut(model)} is not a folder, nor `{DIGITS}`, nor a hub's OWNER/NAME",
        f"Did you mean {' or '.join(near)}?" if near else "Check the path or the name",
    )


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER, MODEL))


def _with_base(model: str, arguments: str) -> str:
    """The arguments that load a checkpoint or adapter; an adapter's base may be among them."""
    pairs = [
        (name.strip(), value.strip())
        for name, _, value in (part.partition("=") for part in reading.separated(arguments))
    ]
    given = [name for name, _ in pairs if name in ("pretrained", "adapter")]
    if not given:
        return open_subject(model, None).arguments(arguments)
    if given != ["pretrained"] or not (Path(model) / ADAPTER).is_file():
        raise HarnessError(
            f"--model {model} and --model-args {arguments} both name weights", "Give one of them"
        )
    base = next(value for name, value in pairs if name == "pretrained")
    others = ",".join(f"{name}={value}" for name, value in pairs if name != "pretrained")
    return open_subject(model, base).arguments(others)


def _engine_arguments(model: str, arguments: str, engine: str) -> str:
    from dcsft_harness import lmms
    from dcsft_harness.models import MODELS

    lmms.check_model(engine, arguments)
    if model in MODELS and not Path(model).exists():  # the default, or the old spelling
        return arguments
    if engine in MODELS:
        return _with_base(model, arguments)
    given = reading.named(arguments).keys()
    name = lmms.checkpoint_argument(engine)
    if given & {name, "pretrained", "adapter"}:
        raise HarnessError(
            f"--model {model} and --model-args {arguments} both name weights", "Give one of them"
        )
    known = Path(model).exists() or model == DIGITS
    subject = open_subject(model, None) if known else Subject(model)
    return subject.arguments_of(engine, arguments)


def _refuse_base(given: str, base: str | None) -> None:
    if base is not None:
        raise HarnessError(f"--base {base}: CKPT {given} is a whole checkpoint", "--base goes with adapters")


def _refuse_other(given: str, folder: Path) -> None:
    if (folder / manifest.UNFINISHED).is_dir():
        raise HarnessError(
            f"CKPT {given} holds an unfinished run", f"Score its checkpoints with `--watch {given}`"
        )
    holds = manifest.read(folder).kind if (folder / manifest.NAME).is_file() else "neither"
    raise HarnessError(
        f"CKPT {given} is neither an adapter nor a checkpoint: it has no {ADAPTER} and no {MODEL}"
        + ("" if holds == "neither" else f", but holds {manifest.indefinite(holds)}"),
        "Give a folder that `dcsft train` or save_pretrained wrote",
    )


def written_in(folder: Path) -> Origin | None:
    """The finished run that a folder is a checkpoint in; None if there is none."""
    step, run = run_folder.step_of(folder), folder.resolve().parent
    if not step or not (run / manifest.NAME).is_file():
        return None
    made = manifest.read(run)
    if made.kind not in ("adapter", "checkpoint"):
        return None
    return Origin(run, made.kind, step, run_folder.identity(run))


# A training run seen from outside: its complete checkpoints, and whether it is running.

TRAINED = ("adapter", "checkpoint")
TRAINER = "trainer_state.json"


class Divided(HarnessError):
    """A checkpoint whose weights are split into parts."""


@dataclass(frozen=True)
class State:
    """The state of a run."""

    begun: bool  # whether its folder holds anything
    finished: manifest.Manifest | None = None  # the manifest of its result; None if it has not finished
    checkpoints: tuple[Path, ...] = ()  # the complete ones, by step
    running: bool | None = None  # whether its process is at work; None if unknown
    owner: str = ""  # that process, in words
    save_steps: int | None = None  # steps between checkpoints; None if unknown
    steps: int | None = None  # the steps of the whole run; None if unknown

    @property
    def last(self) -> int:
        """The newest complete checkpoint's step, or the finished run's; 0 if there is none."""
        if self.finished is not None and self.steps:
            return self.steps
        return run_folder.step_of(self.checkpoints[-1]) if self.checkpoints else 0


def look(run: Path) -> State:
    """The state of a run of `dcsft train`; an error if the folder is not one from `dcsft train`."""
    folder = run / manifest.UNFINISHED
    if (run / manifest.NAME).is_file():
        return _finished(run)
    if not folder.is_dir():
        if run.is_file() or (run.is_dir() and any(run.iterdir())):
            if (run / manifest.NAME).is_file():  # it finished at this moment
                return _finished(run)
            raise HarnessError(
                f"--watch {run} is no output folder of `dcsft train`: it has no {manifest.NAME} and no "
                f"{manifest.UNFINISHED}/",
                "Name the --output of the training",
            )
        return State(begun=False)
    settings = _read(folder / lock.RUN)
    if settings and "method" not in settings:
        raise HarnessError(f"--watch {run} holds an unfinished run of another kind", "Name a training's")
    running, found = lock.at_work(folder / lock.OWNER), run_folder.checkpoints(folder)
    if (run / manifest.NAME).is_file():
        return _finished(run)
    state = _read(found[-1] / TRAINER) if found else {}
    return State(
        True, None, tuple(found), running, lock.owner(folder / lock.OWNER),
        _whole(state.get("save_steps")), _whole(state.get("max_steps")),
    )  # fmt: skip


def _finished(run: Path) -> State:
    made = manifest.read(run)
    if made.kind not in TRAINED or "method" not in made.config:
        raise HarnessError(
            f"--watch {run} holds {manifest.indefinite(made.kind)}, not a training run",
            "Name the --output of a training run",
        )
    steps, every = _whole(made.notes.get("steps")), _whole(made.config.get("save_steps"))
    return State(True, made, tuple(run_folder.checkpoints(run)), False, "", every, steps)


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty if the file is gone or being written."""
    try:
        return dict(reading.json_file(path))
    except (OSError, ValueError, TypeError):
        return {}


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 1 else None


def pinned(run: Path, checkpoint: Path, place: Path, base: str | None) -> Subject | None:
    """A checkpoint of an unfinished run, linked into `place` so that the run cannot remove it.

    `checkpoint` is a complete one in the unfinished folder of `run`; `base` is an adapter's, if not the one
    that its configuration names. None if the run has removed it before it was linked completely, or has
    finished meanwhile.

    Raises:
        Divided: it holds no weights that can be loaded.
        HarnessError: the base is not the run's, or the disk is full.
    """
    settings = _read(run / manifest.UNFINISHED / lock.RUN)
    ledger = _read(checkpoint / run_folder.COMPLETE).get("ledger")
    target = place / checkpoint.name
    identity = _taken(run, checkpoint, target)
    if identity is None:
        return None
    if not [*target.glob("model*.safetensors"), *target.glob("adapter_model.safetensors")]:
        raise Divided(
            f"{checkpoint} has sharded weights: the run divides them among its processes",
            "Only its final weights can be scored",
        )
    kind = "adapter" if (target / ADAPTER).is_file() else "checkpoint"
    costs = ledger if isinstance(ledger, Mapping) else {}
    origin = Origin(run.resolve(), kind, run_folder.step_of(checkpoint), identity, costs)
    if kind == "checkpoint":
        if base is not None:
            raise HarnessError(f"--base {base}: {run} trains all parameters", "Leave it out")
        return Subject(str(target), origin=origin)
    return Subject(_base(run, target, settings, base), target, origin)


def _taken(run: Path, checkpoint: Path, target: Path) -> str | None:
    """Links a checkpoint under a second name; returns its run's identity, or None if it was incomplete."""
    complete = checkpoint / run_folder.COMPLETE
    try:
        identity = run_folder.identity(run)
        run_folder.link(checkpoint, target)
    except (OSError, HarnessError) as error:  # shutil.Error, for several files, is an OSError too
        if complete.is_file() and not (run / manifest.NAME).is_file():
            raise HarnessError(
                f"{checkpoint} cannot be linked to {target}: {error}",
                "Name a --board on the run's own disk, or free some space",
            ) from error
        return None
    # A run removes a checkpoint's mark first, and writes its manifest before it removes all of them.
    return identity if complete.is_file() and not (run / manifest.NAME).is_file() else None


def _base(run: Path, adapter: Path, settings: Mapping[str, Any], base: str | None) -> str:
    """The base whose adapter a run trains; it must be where the adapter's configuration says, unchanged."""
    found = merging.find_base(adapter, None, None if base is None else resolve(base)).name
    wanted = settings.get("content of model")
    if wanted is None:
        return found
    if not Path(found).is_dir():
        raise HarnessError(
            f"the base that {run} trains on is not at {found}", "Give its location with --base"
        )
    if not manifest.fingerprint(Path(found)).startswith(str(wanted)):
        raise HarnessError(f"{found} is not the base that {run} trains on", "Give that one with --base")
    return found
