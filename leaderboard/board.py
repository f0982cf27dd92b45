"""The nouns of a board: rows with their provenance, tasks, cells, what is left out."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcsft_harness import reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.usage import NOTE, Ledger
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.leaderboard.sampled import Draws
from dcsft_harness.training import run_folder

# What a row is: the manifests behind its scores, as far as they are at hand. Paths are not repeated.

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
        usage: what the evaluation cost, by the names of `LEDGER`; empty where not known.
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
    usage: Mapping[str, float] = field(default_factory=dict)


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
        _usage(found.notes.get(NOTE)),
    )


def _usage(told: object) -> dict[str, float]:
    """The figures of a ledger that are numbers above 0."""
    table = told if isinstance(told, Mapping) else {}
    return {
        name: float(table[name])
        for name in LEDGER
        if isinstance(table.get(name), int | float) and table[name] > 0
    }


def usage_of(rows: Iterable[Traced]) -> dict[str, float]:
    """What the evaluations with K responses per item behind some rows cost together."""
    parts = [part for row in rows for part in row.provenance if part.settings.get("samples")]
    return {name: sum(part.usage.get(name, 0.0) for part in parts) for name in LEDGER if parts}


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


def _told(folder: Path, told: Mapping[str, Any]) -> Training | None:
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


# The nouns of a board: what was read of each folder, rows and tasks, what is left out.

DISTRIBUTIONS = ("id", "ood", None)


@dataclass(frozen=True)
class Documents:
    """Items as their task numbers them.

    Attributes:
        ids: the items.
        numbers: each item's position in the task's documents.
        answers: each item's gold, as text.
        prompts: each item's prompt; None where they are not at hand.
    """

    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    answers: tuple[str, ...]
    prompts: tuple[str, ...] | None = None

    def reordered(self, order: Sequence[int]) -> "Documents":
        """The same items in another order."""
        prompts = None if self.prompts is None else tuple(self.prompts[at] for at in order)
        ids, answers = (tuple(values[at] for at in order) for values in (self.ids, self.answers))
        return Documents(ids, tuple(self.numbers[at] for at in order), answers, prompts)


@dataclass(frozen=True, eq=False)
class Measured:
    """One task's part of a scores folder. Items are sorted by item_id.

    Attributes:
        task: the lmms-eval task.
        distribution: "id", "ood", or None where the task does not say.
        family: the task's family, or None.
        conditions: what must be equal for two rows to be compared, by the name a message calls it.
        item_ids: the items, each once.
        clusters: each item's cluster, None for an item on its own.
        scores: each item's score in [0, 1], NaN where the response could not be scored.
        unanswered: items that were scored, but in whose response no answer was found; None where
            the task does not report answers.
        documents: the items as the task numbers them, in the order of item_ids; read when asked for.
        unknown: beginnings of the names of conditions that are not on record, and so refuse nothing.
        remarks: sentences on figures that do not agree with the items.
        renamed: the items' ids in the folder's own tables -> item_ids, where they differ.
        draws: all responses to the items, where there are K of each.
        responses: what gives them as a table of `records.Response`, under the ids of the folder's own tables.
        metric: of K responses, what the scores are: "maj@8"; None for one response per item.
    """

    task: str
    distribution: str | None
    family: str | None
    conditions: Mapping[str, object]
    item_ids: tuple[str, ...]
    clusters: tuple[str | None, ...]
    scores: NDArray[np.float64]
    unanswered: int | None
    documents: Callable[[], Documents]
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    renamed: Mapping[str, str] | None = None
    draws: Draws | None = None
    responses: Callable[[], pa.Table] | None = None
    metric: str | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """One folder of results, or one run in it.

    Attributes:
        name: the row's name.
        folder: where the artefact lies.
        model: "the model", "the adapter" -> hash of its folder, or its name on a hub.
        tasks: task name -> what was measured.
        provenance: what its manifests say beside.
        tables: what gives its items as tables of `records.Score`, one or more.
        group: the configuration that it is one seed of, or None.
        number: its place among what was given.
        files: the files of a log that it is made from; empty of a scores folder, which is one input.
        given: the name that the user gave it, or None.
    """

    name: str
    folder: Path
    model: Mapping[str, object]
    tasks: Mapping[str, Measured]
    provenance: Provenance
    tables: Callable[[], Iterator[pa.Table]]
    group: str | None = None
    number: int = 0
    files: tuple[Path, ...] = ()
    given: str | None = None

    def renamed(self, name: str, *, by_user: bool = False) -> "Result":
        """The same under another name; its group follows the name unless the manifest has one of its own."""
        group = group_of(name) if self.group in (None, group_of(self.name)) else self.group
        origin = replace(self.provenance, name=name)
        return replace(self, name=name, group=group, provenance=origin, given=name if by_user else self.given)


_SEED = re.compile(r"(?P<group>.*[^\s,_(\[-])[\s,_(\[-]+seed[\s=_:-]*\d+[)\]]?", re.IGNORECASE)


def group_of(name: str, told: object = None) -> str | None:
    """The configuration that a row is one seed of: as told, or by a name like "SFT (seed 1)"."""
    if isinstance(told, str) and told.strip():
        return told
    found = _SEED.fullmatch(name.strip()) if len(name) < 500 else None
    return found["group"] if found else None


def said_once(remarks: Iterable[tuple[str, str, str]], rows: int) -> list[str]:
    """Remarks on rows as sentences, equal ones once for all rows that they concern.

    Args:
        remarks: a row's name, and the remark behind "Row NAME" and behind "Rows A and B".
        rows: how many rows there are.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for name, one, many in remarks:
        found.setdefault((one, many), {})[name] = None
    said = []
    for (one, many), names in found.items():
        shown = list(names)
        if len(shown) == 1:
            said.append(f"Row {shown[0]}{one}")
        elif len(shown) == rows:
            said.append(f"All {rows} rows{many}")
        elif len(shown) <= 3:
            said.append(f"Rows {', '.join(shown[:-1])} and {shown[-1]}{many}")
        else:
            said.append(f"{len(shown)} rows ({shown[0]}, {shown[1]}, ... {shown[-1]}){many}")
    return said


@dataclass(frozen=True, eq=False)
class Task:
    """One column.

    Attributes:
        name: the lmms-eval task.
        distribution: "id", "ood" or None.
        family: the task's family, or None.
        item_ids: the items that every row was measured on, sorted.
        clusters: shape (n,), each item's cluster as a code that is the same across the board's tasks.
        conditions: what was equal for all rows, by the name a message calls it.
        metric: of K responses per item, what the scores are: "maj@8"; None for one response.
    """

    name: str
    distribution: str | None
    family: str | None
    item_ids: Sequence[str]
    clusters: NDArray[np.int64]
    conditions: Mapping[str, object] = field(default_factory=dict)
    metric: str | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """One row's result on one task.

    Attributes:
        folder: the scores folder that it comes from.
        scores: shape (n,), in the order of the task's item_ids, in [0, 1]; NaN: could not be scored.
        unanswered: scored items in whose response no answer was found; None: the task does not say.
        draws: all responses to the items, where there are K of each and the metric is avg@k.
    """

    folder: Path
    scores: NDArray[np.float64]
    unanswered: int | None
    draws: Draws | None = None

    @property
    def unscored(self) -> int:
        """Items whose response could not be scored."""
        return int(np.isnan(self.scores).sum())


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluated model.

    Attributes:
        name: as given when it was evaluated; unique on the board.
        folders: its scores folders; several where its tasks were evaluated in several runs.
        cells: task name -> result; a task that was not evaluated is absent.
        group: the configuration that it is one seed of, or None.
        provenance: one per folder.
    """

    name: str
    folders: tuple[Path, ...]
    cells: Mapping[str, Cell]
    group: str | None = None
    provenance: tuple[Provenance, ...] = ()


_STEP = re.compile(
    r"(?P<run>.*?)(?:^|[\s_/@(-]+)(?:(?:at\s+)?(?:global_)?step|checkpoint|@)[\s_=-]*(?P<step>\d{1,12})(?P<seed>(?:[\s,_(-]+seed.*)?)",
    re.IGNORECASE,
)


UNNAMED = "run"
"""What a run is called whose rows are named by their steps alone."""


def step_of(name: str) -> tuple[str, int] | None:
    """The run and the step that a row's name states: "SFT at step 20 (seed 1)" is (SFT (seed 1), 20)."""
    found = _STEP.fullmatch(name.strip()) if len(name) < 500 else None
    return (f"{found['run']}{found['seed']}".strip() or UNNAMED, int(found["step"])) if found else None


@dataclass(frozen=True)
class LeftOut:
    """A run that could not be used.

    Attributes:
        folder: its folder.
        reason: the sentence that says why, with the remedy.
        kind: why in a few words that many runs share, such as "other prompts".
    """

    folder: Path
    reason: str
    kind: str = "damaged or incomplete"


class Unusable(HarnessError):
    """A run that cannot be used, with the kind of the reason: see `LeftOut`."""

    def __init__(self, problem: str, remedy: str = "", kind: str = "damaged or incomplete") -> None:
        """Keeps the kind beside both parts of the message."""
        super().__init__(problem, remedy)
        self.kind = kind

    def __reduce__(self) -> tuple[type["Unusable"], tuple[str, str, str]]:  # type: ignore[override]
        """All parts, so that an error stays what it is on its way from another process."""
        return type(self), (self.problem, self.remedy, self.kind)


@dataclass(frozen=True, eq=False)
class Apart:
    """Rows that cannot be compared with the board's.

    Attributes:
        reason: what keeps the first of them apart.
        board: their own.
    """

    reason: str
    board: "Board"


@dataclass(frozen=True, eq=False)
class Board:
    """Rows that can be compared.

    Attributes:
        rows: the baseline first, the others as given.
        tasks: in-distribution tasks, then out-of-distribution ones, then those that do not say.
        baseline: the name of the row, or of the group of seeds, that differences are taken to, or None.
        apart: further rows that these cannot be compared with.
        left_out: folders that could not be used.
        remarks: sentences on what the results say of themselves.
        results: what the rows are made from.
    """

    rows: tuple[Row, ...]
    tasks: tuple[Task, ...]
    baseline: str | None
    apart: tuple[Apart, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()

    def row(self, name: str) -> Row:
        """The row of this name.

        Raises:
            HarnessError: there is none; near matches are named.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown_name("row", name, [row.name for row in self.rows])
