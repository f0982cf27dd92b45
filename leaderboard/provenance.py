"""What a row is: the manifests behind its scores, as far as they are at hand. Paths are not repeated."""

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.usage import NOTE, Ledger
from dcsft_harness.errors import HarnessError
from dcsft_harness.training import run_folder

LOG = "training_log.jsonl"
LEDGER = tuple(entry.name for entry in fields(Ledger))
"""What a ledger counts."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, eq=False)
class Training:
    """The run that made an adapter or a checkpoint.

    Attributes:
        folder: the run's, also where a row is one of the checkpoints in it.
        kind: "adapter" or "checkpoint".
        settings: its manifest's settings.
        ledger: what it cost up to the row's step, by the names of `LEDGER`, those that are known.
        history: one row per step: step, loss, grad_norm, ...; empty where no log is at hand.
        mix: difficulty -> items of the curated set; empty where that is not at hand.
    """

    folder: Path
    kind: str
    settings: Mapping[str, Any]
    ledger: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    mix: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Provenance:
    """One folder of results.

    Attributes:
        folder: where it lies.
        kind: "scores" or "lmms-eval log".
        name: the row's name that it gives.
        settings: model, model arguments, limit and so on; folders by their last name only.
        model: "the model", "the adapter" -> hash of its folder, or its name on a hub.
        pixels: pixel limits, None where they are not known.
        packages: package -> version.
        created: an ISO date, "" where not known.
        training: the run that made the adapter, where its manifest is at hand.
    """

    folder: Path
    kind: str
    name: str
    settings: Mapping[str, Any]
    model: Mapping[str, object]
    pixels: Mapping[str, int | None] | None
    packages: Mapping[str, str]
    created: str
    training: Training | None = None


class Traced(Protocol):
    """Whatever has provenance: a row of a board."""

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        """One per folder."""
        ...


def of_scores(found: manifest.Manifest, name: str, model: Mapping[str, object]) -> Provenance:
    """What a scores folder's manifest says."""
    raw = reading.json_file(found.folder / manifest.NAME)
    pixels = found.notes.get("pixels")
    settings = {key: public(value) for key, value in found.config.items() if key != "tasks"}
    return Provenance(
        found.folder,
        "scores",
        name,
        settings,
        {role: public(value) for role, value in model.items()},
        pixels if isinstance(pixels, dict) else None,
        raw.get("packages") or {},
        str(raw.get("created", "")),
        _training(found),
    )


def public(value: object) -> object:
    """A setting without the folders of the machine it comes from: of an absolute path the last name stays."""
    if isinstance(value, dict):
        return {str(key): public(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    if not isinstance(value, str):
        return value
    # A path begins the text, or follows `key=` or a separator; drive letters are Windows'.
    return re.sub(r"(^|[=,;:\s\"'(\[])(?:~|[A-Za-z]:)?[/\\](?:[^/\\,;\s\"')\]]+[/\\])*", r"\1", value)


def _training(found: manifest.Manifest) -> Training | None:
    """The run behind the adapter, else behind the model, if its folder is as the manifest says."""
    if (told := found.notes.get("checkpoint")) is not None:
        return _told(found.folder, told)
    for role in ("adapter", "model"):
        if role not in found.inputs:
            continue
        folder = (found.folder / found.inputs[role]["path"]).resolve()
        try:
            if (folder / manifest.NAME).is_file():
                return training(found.input_folder(role))
            step = _CHECKPOINT.fullmatch(folder.name)
            if step and manifest.fingerprint(folder) == found.inputs[role]["sha256"]:
                return training(folder.parent, int(step[1]))
        except manifest.NewerFormatError:
            raise
        except (HarnessError, OSError):  # moved or changed since: the scores stand without it
            continue
    return None


def _told(folder: Path, told: Any) -> Training | None:  # noqa: ANN401 - whatever stands there
    """The run that a checkpoint was scored out of, by the notes on its scores: it may still be running.

    Its own manifest and log are read where it has finished and no other run has taken its place.
    """
    try:
        run, kind = (folder / told["run"]).resolve(), str(told["kind"])
        step, known = int(told["step"]), _figures(dict(told["ledger"]))
        identity = told["identity"]
    except (TypeError, ValueError, KeyError):
        return None
    with contextlib.suppress(HarnessError, OSError):
        if run_folder.identity(run) == identity and (whole := training(run, step)) is not None:
            return replace(whole, ledger={**whole.ledger, **known})
    return Training(run, kind, {}, known)


def training(folder: Path, step: int | None = None) -> Training | None:
    """The run that made a folder; None where that was no training run.

    Args:
        folder: an adapter or a checkpoint with its manifest.
        step: that of a checkpoint inside it; None for the run's result.

    Raises:
        HarnessError: the folder has no readable manifest.
    """
    found = manifest.read(folder)
    if found.kind not in ("adapter", "checkpoint"):
        return None
    history = _history(folder / LOG)
    ledger = _ledger(found)
    if step is not None:
        history = tuple(row for row in history if row["step"] <= step)
        # The log knows time by step; what else the whole run cost is not this checkpoint's.
        ledger = {"steps": float(step)}
        ledger |= {name: history[-1][name] for name in ("seconds",) if history and name in history[-1]}
    settings = {name: public(value) for name, value in found.config.items()}
    return Training(folder.resolve(), found.kind, settings, ledger, history, _mix(found))


def _ledger(found: manifest.Manifest) -> dict[str, float]:
    """The ledger, or from runs that have none what stands for its entries."""
    notes = found.notes if isinstance(found.notes, dict) else {}
    own = notes.get(NOTE)
    said: Mapping[str, Any] = own if isinstance(own, dict) else {**notes, "seconds": found.seconds}
    return _figures(said)


def _figures(said: Mapping[str, Any]) -> dict[str, float]:
    figures = {name: said.get(name) for name in LEDGER}
    # No arithmetic was estimated where there are 0 operations.
    return {n: float(v) for n, v in figures.items() if _number(v) and (n, v) != ("flops", 0)}  # type: ignore[arg-type]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _history(path: Path) -> tuple[Mapping[str, float], ...]:
    """The numbers of a training log's lines; what is no number or no line is left out."""
    if not path.is_file():
        return ()
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = reading.from_json(line)
        except ValueError:  # the line being written when the copy was made
            continue
        if isinstance(row, dict) and _number(row.get("step")):
            rows.append({key: float(value) for key, value in row.items() if _number(value)})
    return tuple(rows)


def _mix(found: manifest.Manifest) -> dict[str, int]:
    """How many easy, medium and hard items the run's curated set has."""
    try:
        curated = manifest.read(found.input_folder("data"))
    except manifest.NewerFormatError:
        raise
    except HarnessError:
        return {}
    counts = {name: curated.notes.get(name) for name in ("easy", "medium", "hard")}
    return {name: int(count) for name, count in counts.items() if _number(count)}  # type: ignore[arg-type]


def cost_of(rows: Iterable[Traced]) -> dict[str, float] | None:
    """A row's ledger; of several seeds the mean of each entry that all have. None where not known."""
    found = []
    for row in rows:
        # The folders of one row are of one model, so its run is whichever of them names one.
        ledgers = [part.training.ledger for part in row.provenance if part.training is not None]
        found.append(next(filter(None, ledgers), None))
    known = [one for one in found if one is not None]
    if len(known) < len(found) or not known:
        return None
    shared = [name for name in known[0] if all(name in one for one in known)]
    return {name: sum(one[name] for one in known) / len(known) for name in shared} or None
