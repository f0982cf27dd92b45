"""What to score: an adapter on its base, or a whole checkpoint."""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.data.digits import DIGITS, resolve
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.training import merging, run_folder

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
        run, ledger = manifest.relative(self.run, output), {"steps": self.step, **self.ledger}
        return vars(self) | {"run": run, "ledger": ledger}


@dataclass(frozen=True)
class Subject:
    """Weights to score."""

    pretrained: str  # a whole checkpoint, or the adapter's base: a folder or a hub name
    adapter: Path | None = None  # a PEFT folder; None for a whole checkpoint
    origin: Origin | None = None  # their run, if they are a checkpoint inside one; None otherwise

    def arguments(self, engine: str, further: str) -> str:
        """The model arguments with which an engine loads it.

        An engine that takes no checkpoint, or no adapter where this is one, is refused; so is a comma in its
        path, as it separates arguments.
        """
        from dcsft_harness import lmms
        from dcsft_harness.models import MODELS

        own = engine in MODELS
        name = "pretrained" if own else lmms.checkpoint_argument(engine)
        if self.adapter is not None and not own:
            raise HarnessError(
                f"--engine {engine} takes no adapter, and {self.adapter} is one",
                f"Merge it with `dcsft merge {shlex.quote(str(self.adapter))} --output DIR`, or use"
                " --engine dcsft_hf or dcsft_vllm",
            )
        named = {name: self.pretrained, "adapter": self.adapter}
        for value in named.values():
            reading.refuse_comma(value)
        parts = [f"{key}={value}" for key, value in named.items() if value is not None]
        return ",".join([*parts, *([further] if further else [])])

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
                f"model {given} {problem}", "Check the path, or pass a hub's OWNER/NAME, or `digits`"
            )
        _refuse_base(given, base)
        return Subject(given)
    run = folder.resolve().parent
    if run.name == manifest.UNFINISHED and run_folder.step_of(folder):
        raise HarnessError(
            f"model {given} is a checkpoint of an unfinished run, which may remove it at any time",
            f"Score it with `dcsft score --watch {run.parent}`",
        )
    if not _holds_weights(folder):
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
    from dcsft_harness import lmms
    from dcsft_harness.models import MODELS

    if engine is not None and engine != model:
        lmms.check_model(engine, arguments)
        if model in MODELS and not Path(model).exists():  # the default, or the old spelling
            return engine, arguments
        return engine, _loading(model, arguments, engine)
    is_folder = Path(model).is_dir() and model not in MODELS
    if model != DIGITS and "/" not in model and not is_folder:
        _refuse_unknown(model)
        return model, arguments
    return "dcsft_hf", _loading(model, arguments, "dcsft_hf")


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


def _loading(model: str, arguments: str, engine: str) -> str:
    """The arguments with which an engine loads a checkpoint or adapter; an adapter's base may be one."""
    from dcsft_harness import lmms
    from dcsft_harness.models import MODELS

    pairs = [
        (name.strip(), value.strip())
        for name, _, value in (part.partition("=") for part in reading.separated(arguments))
    ]
    own = engine in MODELS
    naming = {"pretrained", "adapter", "pretrained" if own else lmms.checkpoint_argument(engine)}
    given = [name for name, _ in pairs if name in naming]
    if not given:
        known = own or Path(model).exists() or model == DIGITS
        return (open_subject(model, None) if known else Subject(model)).arguments(engine, arguments)
    if not own or given != ["pretrained"] or not (Path(model) / ADAPTER).is_file():
        raise HarnessError(
            f"--model {model} and --model-args {arguments} both name a checkpoint", "Use only one of them"
        )
    base = next(value for name, value in pairs if name == "pretrained")
    others = ",".join(f"{name}={value}" for name, value in pairs if name != "pretrained")
    return open_subject(model, base).arguments(engine, others)


def _refuse_base(given: str, base: str | None) -> None:
    if base is not None:
        raise HarnessError(
            f"--base {base}: model {given} is a whole checkpoint", "--base applies only to adapters"
        )


def _refuse_other(given: str, folder: Path) -> None:
    if (folder / manifest.UNFINISHED).is_dir():
        raise HarnessError(
            f"model {given} holds an unfinished run",
            f"Rerun its command to finish it, or score its checkpoints with `dcsft score --watch {given}`",
        )
    holds = manifest.read(folder).kind if (folder / manifest.NAME).is_file() else "neither"
    raise HarnessError(
        f"model {given} is neither an adapter nor a checkpoint: it has no {ADAPTER} and no {MODEL}"
        + ("" if holds == "neither" else f", but holds {manifest.indefinite(holds)}"),
        "Pass a folder that `dcsft train` or save_pretrained wrote",
    )


def written_in(folder: Path) -> Origin | None:
    """The finished run that a folder is a checkpoint in; None if there is none."""
    step, run = run_folder.step_of(folder), folder.resolve().parent
    if not step or not (run / manifest.NAME).is_file():
        return None
    made = manifest.read(run)
    if made.kind not in run_folder.TRAINED:
        return None
    return Origin(run, made.kind, step, run_folder.identity(run))
