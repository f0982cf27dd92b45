"""What is scored: an adapter on its base, or a whole checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.data.digits.checkpoint import DIGITS, resolve
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import merging, run_folder

ADAPTER, MODEL = "adapter_config.json", "config.json"


@dataclass(frozen=True)
class Origin:
    """Where in a training run a checkpoint was written.

    Attributes:
        run: the run's output folder.
        kind: "adapter" or "checkpoint", which the run makes.
        step: after which step.
        identity: see `run_folder.identity`.
        ledger: what the run had cost by then, as far as that is known.
    """

    run: Path
    kind: str
    step: int
    identity: str
    ledger: Mapping[str, Any] = field(default_factory=dict)

    def told(self, output: Path) -> dict[str, Any]:
        """What a result in `output` notes of it."""
        return {
            "run": manifest.relative(self.run, output),
            "kind": self.kind,
            "step": self.step,
            "identity": self.identity,
            "ledger": {"steps": self.step, **self.ledger},
        }


@dataclass(frozen=True)
class Subject:
    """Weights to score.

    Attributes:
        pretrained: a whole checkpoint, or the adapter's base: a folder or a hub name.
        adapter: a PEFT folder; None for a whole checkpoint.
        origin: the run that they are a checkpoint of; None for what a run ended with, or no run's.
    """

    pretrained: str
    adapter: Path | None = None
    origin: Origin | None = None

    def arguments(self, further: str) -> str:
        """The model arguments that load it.

        Raises:
            HarnessError: a path has a comma, which separates arguments.
        """
        named = {"pretrained": self.pretrained, "adapter": self.adapter}
        for value in named.values():
            if value is not None and "," in str(value):
                raise HarnessError(
                    f"the path {value} has a comma, which separates model arguments", "Rename the folder"
                )
        parts = [f"{key}={value}" for key, value in named.items() if value is not None]
        return ",".join([*parts, *([further] if further else [])])

    def inputs(self) -> dict[str, Path]:
        """Role -> folder, as a manifest records them; a hub's checkpoint has none."""
        found = {"model": Path(self.pretrained)} if Path(self.pretrained).is_dir() else {}
        return found | ({} if self.adapter is None else {"adapter": self.adapter})

    def hashes(self) -> dict[str, str]:
        """Role -> what a manifest would tell its weights by: a hash, or a hub's name."""
        found = {role: manifest.fingerprint(path) for role, path in self.inputs().items()}
        return {"model": self.pretrained, **found}


def open_subject(given: str, base: str | None) -> Subject:
    """What a path or name stands for.

    Args:
        given: a folder, "digits", or a hub name of a whole checkpoint.
        base: an adapter's base, if not the one that it was trained on.

    Raises:
        HarnessError: it is neither adapter nor checkpoint, has changed since it was written, or the base
            is not found or not wanted.
    """
    folder = Path(resolve(given))
    if not folder.is_dir():
        if folder.is_file() or folder.is_absolute() or given.count("/") != 1 or given.startswith("."):
            raise HarnessError(
                f"CKPT {given} is neither a folder nor a hub's OWNER/NAME", "Check the path, or give `digits`"
            )
        _refuse_base(given, base)
        return Subject(given)
    run = folder.resolve().parent
    if run.name == manifest.UNFINISHED and run_folder.step_of(folder):
        raise HarnessError(
            f"CKPT {given} is a checkpoint of a run that has not finished, and may be removed any moment",
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


def as_engine(model: str, arguments: str) -> tuple[str, str]:
    """The lmms-eval model and its arguments where `--model` may name a checkpoint or adapter instead.

    Args:
        model: an lmms-eval model; or a folder, "digits" or a hub's OWNER/NAME, which dcsft_hf loads.
        arguments: further model arguments.

    Raises:
        HarnessError: see `open_subject`; or the arguments name a checkpoint too.
    """
    folder = Path(model)
    if (
        model != DIGITS
        and "/" not in model
        and not (folder / ADAPTER).is_file()
        and not (folder / MODEL).is_file()
    ):
        return model, arguments
    if any(part.partition("=")[0] in ("pretrained", "adapter") for part in arguments.split(",")):
        raise HarnessError(
            f"--model {model} and --model-args {arguments} both name weights", "Give one of them"
        )
    return "dcsft_hf", open_subject(model, None).arguments(arguments)


def _refuse_base(given: str, base: str | None) -> None:
    if base is not None:
        raise HarnessError(f"--base {base}: CKPT {given} is a whole checkpoint", "--base goes with adapters")


def _refuse_other(given: str, folder: Path) -> None:
    """Says what a folder is that holds no weights."""
    if (folder / manifest.UNFINISHED).is_dir():
        raise HarnessError(
            f"CKPT {given} holds an unfinished run", f"Score its checkpoints with `--watch {given}`"
        )
    holds = manifest.read(folder).kind if (folder / manifest.NAME).is_file() else "neither"
    raise HarnessError(
        f"CKPT {given} is no adapter and no checkpoint: it has no {ADAPTER} and no {MODEL}"
        + ("" if holds == "neither" else f", but holds {holds}"),
        "Give what `dcsft train` or save_pretrained wrote",
    )


def written_in(folder: Path) -> Origin | None:
    """The finished run that a folder is a checkpoint in; None where there is none."""
    step, run = run_folder.step_of(folder), folder.resolve().parent
    if not step or not (run / manifest.NAME).is_file():
        return None
    made = manifest.read(run)
    if made.kind not in ("adapter", "checkpoint"):
        return None
    return Origin(run, made.kind, step, run_folder.identity(run))
