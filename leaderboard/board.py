"""The records of a board: rows with their provenance, tasks, cells, and folders left out."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.usage import FIGURES, NOTE, figures, is_number
from dcsft_harness.errors import HarnessError, placeless, unknown_name
from dcsft_harness.leaderboard.sampled import Draws
from dcsft_harness.reading import from_json, is_unset
from dcsft_harness.records import CHECKPOINT, DIFFICULTIES, SCORER, SETTING
from dcsft_harness.training import run_folder

# The provenance of a row: the available manifests behind its scores. Paths are not repeated.


@dataclass(frozen=True, eq=False)
class Training:
    """The run that made an adapter or a checkpoint."""

    folder: Path  # the run's, even if the row is one of the checkpoints in it
    kind: str  # "adapter" or "checkpoint"
    settings: Mapping[str, Any]  # its manifest's settings
    ledger: Mapping[str, float]  # its known costs up to the row's step, by the names of `usage.FIGURES`
    # one row per step: step, loss, grad_norm, ...; empty if no log is available
    history: tuple[Mapping[str, float], ...] = ()
    # difficulty -> items of the curated set; empty if that is not available
    mix: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Provenance:
    """One folder of results."""

    folder: Path
    kind: str  # "scores" or "lmms-eval log"
    settings: Mapping[str, Any]  # model, model arguments, limit and so on; folders by their last name only
    model: Mapping[str, object]  # "the model", "the adapter" -> hash of its folder, or its name on a hub
    pixels: Mapping[str, int | None] | None  # pixel limits, None if unknown
    packages: Mapping[str, str]  # package -> version
    created: str  # an ISO date, "" if unknown
    training: Training | None = None  # the run that made the adapter, if its manifest is available
    # the evaluation's cost, by the names of `usage.FIGURES`; empty if unknown
    usage: Mapping[str, float] = field(default_factory=dict)


def of_scores(found: manifest.Manifest, model: Mapping[str, object]) -> Provenance:
    """The provenance in a scores folder's manifest."""
    settings = placeless({key: value for key, value in found.config.items() if key != "tasks"})
    return Provenance(
        found.folder,
        "scores",
        settings,
        placeless(model),
        found.notes.get("pixels"),
        found.packages,
        found.created,
        _training(found),
        figures(found.notes.get(NOTE) or {}),
    )


def usage_of(rows: Iterable["Row"]) -> dict[str, float]:
    """The total cost of the evaluations with K responses per item behind some rows."""
    parts = [part for row in rows for part in row.provenance if part.settings.get("samples")]
    return {name: sum(part.usage.get(name, 0.0) for part in parts) for name in FIGURES if parts}


def _training(found: manifest.Manifest) -> Training | None:
    """The run that made the scored weights, if its folder matches the manifest.

    With an adapter that is the adapter's run or, if its folder is lost, none: the base's cost is another one.
    """
    if (note := found.notes.get("checkpoint")) is not None:
        return _run_of_checkpoint(found.folder, note)
    return _run_behind(found, "adapter" if "adapter" in found.weights() else "model")


def _run_behind(found: manifest.Manifest, role: str) -> Training | None:
    """The run that made an input; None if there is none, or it has moved or changed since."""
    if role not in found.inputs:
        return None
    one = _origin(found, role)
    with _leaving_out_lost():
        if one.made is not None:
            return training(one.folder)
        step = run_folder.step_of(one.folder)
        if step and manifest.fingerprint(one.folder) == one.sha256:
            return training(one.folder.parent, step)
    return None


@contextlib.contextmanager
def _leaving_out_lost() -> Iterator[None]:
    """Ends the block at a folder that cannot be read; one of a newer version's format is an error."""
    try:
        yield
    except manifest.NewerFormatError:
        raise
    except (HarnessError, OSError):
        return


def _origin(found: manifest.Manifest, role: str) -> manifest.Origin:
    """An input; one of a newer version's format is an error."""
    one = manifest.origin(found, role)
    if isinstance(one.error, manifest.NewerFormatError):
        raise one.error
    return one


def _run_of_checkpoint(folder: Path, note: Mapping[str, Any]) -> Training | None:
    """The run of a scored checkpoint, from the notes on its scores; it may still be running.

    Its own manifest and log are read if it has finished and no other run has replaced it.
    """
    try:
        run, kind = (folder / note["run"]).resolve(), str(note["kind"])
        step, known = int(note["step"]), _floats(figures(dict(note["ledger"])))
        identity = note["identity"]
    except (TypeError, ValueError, KeyError):
        return None
    with _leaving_out_lost():
        if run_folder.identity(run) == identity and (whole := training(run, step)) is not None:
            return replace(whole, ledger={**whole.ledger, **known})
    return Training(run, kind, {}, known)


def training(folder: Path, step: int | None = None) -> Training | None:
    """The run that made a folder, or a checkpoint of this `step` in it; None if that was not a training run.

    A merged checkpoint was made by its adapter's run.

    Raises:
        HarnessError: the folder has no readable manifest.
    """
    found = manifest.read(folder)
    if found.kind not in run_folder.TRAINED:
        return None
    if found.kind == "checkpoint" and "adapter" in found.inputs:
        return _run_behind(found, "adapter")
    history, own = run_folder.history(folder), found.notes.get(NOTE)
    # Runs without a ledger have some of its figures as notes.
    ledger = _floats(figures(own if isinstance(own, dict) else {**found.notes, "seconds": found.seconds}))
    if step is not None:
        history = tuple(row for row in history if row["step"] <= step)
        # The log has time by step; the whole run's other costs are not this checkpoint's.
        ledger = {"steps": float(step)}
        ledger |= {name: history[-1][name] for name in ("seconds",) if history and name in history[-1]}
    return Training(folder.resolve(), found.kind, placeless(found.config), ledger, history, _mix(found))


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _mix(found: manifest.Manifest) -> dict[str, int]:
    """The numbers of easy, medium and hard items in the run's curated set."""
    curated = _origin(found, "data").made if "data" in found.inputs else None
    counts = {} if curated is None else {name: curated.notes.get(name) for name in DIFFICULTIES}
    return {name: int(count) for name, count in counts.items() if is_number(count)}


def cost_of(rows: Iterable["Row"]) -> dict[str, float] | None:
    """A row's ledger; for several seeds the mean of each entry that all have. None if unknown."""
    found = []
    for row in rows:
        # The folders of one row are of one model, so any of them may name its run.
        ledgers = [part.training.ledger for part in row.provenance if part.training is not None]
        found.append(next(filter(None, ledgers), None))
    known = [one for one in found if one is not None]
    if len(known) < len(found) or not known:
        return None
    shared = [name for name in known[0] if all(name in one for one in known)]
    return {name: sum(one[name] for one in known) / len(known) for name in shared} or None


# The records of a board: the results in each folder, rows and tasks, and folders left out.

VERSION, SIDE, LIMIT, ARGUMENT, PIXELS = (
    "task version",
    "distribution",
    "limit",
    "generation argument",
    "pixel limit",
)
METRIC, SHOTS, SYSTEM, PROMPTS, ITEMS, CLUSTERS = (
    "metric",
    "examples in the prompt",
    "system prompt",
    "prompt hash",
    "item set",
    "clusters of items",
)
SYSTEM_TEXT, SYSTEM_FILE = f"{SYSTEM}'s text by hash", f"{SYSTEM}'s file by hash"
TEMPLATE, ENGINE, REASONING = (
    "chat template argument",
    "prompt arguments of",
    "reasoning removed from responses",
)
NO_VERSION = (None, "", "Yaml", "N/A")
"""Versions that lmms-eval gives a task that states none."""
SEPARATE = "Evaluate one of them again under the conditions of the other, or build two leaderboards"


class Condition(NamedTuple):
    """A condition, or several with the same beginning: what must be equal to compare two rows."""

    name: str  # its name in messages, or the beginning of their names
    kind: str  # a short reason for rows that differ, as in `LeftOut`
    quiet: bool = False  # rows that do not record it are named only if another row has a value
    known: bool = False  # a row that has no value can be compared with any; otherwise it is "unset"
    remedy: str = SEPARATE


CONDITIONS = (
    Condition(METRIC, "another metric"),
    Condition(VERSION, "another task version"),
    Condition(SCORER, "another scorer version"),
    Condition(SIDE, "another distribution", quiet=True),
    Condition(LIMIT, "another limit"),
    Condition(ARGUMENT, "other generation arguments"),
    Condition(SETTING, "other generation arguments"),
    Condition(CHECKPOINT, "other generation arguments"),
    Condition(PIXELS, "other pixel limits"),
    Condition(SHOTS, "other examples in the prompt", quiet=True),
    Condition(SYSTEM, "another system prompt", quiet=True),
    Condition(TEMPLATE, "other chat template arguments", quiet=True),
    Condition(ENGINE, "other prompt arguments", known=True),
    Condition(
        REASONING,
        "other reasoning removed",
        quiet=True,
        known=True,
        remedy="Score the log's samples by `dcsft evaluate --responses FILE --task TASK`, which keeps it, or "
        "pass --reasoning_tags none to lmms-eval",
    ),
    Condition(PROMPTS, "other prompts"),
    Condition(ITEMS, "other items"),
    Condition(CLUSTERS, "other clusters", quiet=True),
)
"""Every condition beside the first document's number and the number of responses per item."""
PROMPTING = frozenset(
    (
        *("add_system_prompt", "chat_template", "conv_template", "disable_thinking", "enable_thinking"),
        *("image_first", "interleave_visuals", "max_think_token_n", "messages_format", "no_think_prompt"),
        *("reasoning_prompt", "simple_prompt", "think_mode", "thinking_budget"),
        *("fps", "max_frames_num", "max_image_size", "max_num", "max_num_frames", "modality", "nframes"),
        *("num_frames", "total_pixels", "video_fps"),
    )
)
"""Arguments of lmms-eval's own models that change what a model is shown, beside those with conditions."""


def condition(name: str) -> Condition:
    """The declared condition of this name."""
    found = next((one for one in CONDITIONS if name.startswith(one.name)), None)
    return found or Condition(name, f"another {name}")


def differences(
    ours: Mapping[str, object], theirs: Mapping[str, object], unknown: tuple[str, ...] = ()
) -> Iterator[tuple[str, object, object]]:
    """The conditions in which two rows differ, each with both values; causes come before effects.

    `unknown` are prefixes of conditions that one of them does not record. A system prompt is compared by its
    text if both record that, else by its file, else as it was given.
    """
    ways = (SYSTEM_TEXT, SYSTEM_FILE, SYSTEM)
    way = next((one for one in ways if one in ours and one in theirs), SYSTEM)
    for name in sorted({**ours, **theirs}, key=lambda name: name in (PROMPTS, ITEMS)):  # effects
        unset: object = 1 if name.startswith(SCORER) else "unset"  # the first version was not recorded
        one, other = ours.get(name, unset), theirs.get(name, unset)
        if one == other or name.startswith(unknown) or (name in ways and name != way):
            continue
        if not condition(name).known or (name in ours and name in theirs):
            if ours.get(SYSTEM) != theirs.get(SYSTEM) and name in ways:  # which says more than a hash
                name, one, other = SYSTEM, ours.get(SYSTEM, unset), theirs.get(SYSTEM, unset)
            yield name, one, other


def of_prompts(
    engine: str, given: Mapping[str, str], recorded: object = None, files: object = None
) -> dict[str, object]:
    """The conditions that an engine sets by what it adds to each prompt.

    `given` are its arguments, `recorded` is its own record (see `records.PROMPTED`), and `files` has hashes
    of the files that arguments name; both None if unknown.
    """
    known, hashes = (one if isinstance(one, Mapping) else {} for one in (recorded, files))
    found: dict[str, object] = {}
    prompt = given.get("system_prompt")
    text = known.get("system_prompt_sha256")
    if prompt is not None and not is_unset(prompt):
        found[SYSTEM] = placeless(prompt)
        if (file := str(Path(prompt))) in hashes:
            found[SYSTEM_FILE] = hashes[file]
        elif text is None and len(prompt.split()) > 1:  # no file's name
            text = hashlib.sha256(prompt.replace("\\n", "\n").encode()).hexdigest()
    if text is not None:
        found = {SYSTEM: text, **found, SYSTEM_TEXT: text}
    template = known.get("chat_template_kwargs", given.get("chat_template_kwargs"))
    if isinstance(template, str):
        with contextlib.suppress(ValueError):
            template = from_json(template)
    if isinstance(template, Mapping):
        found |= {f"{TEMPLATE} {name}": value for name, value in sorted(template.items())}
    elif not is_unset(template):
        found[TEMPLATE] = template
    if not engine.startswith("dcsft_") and engine != "responses":
        found[f"{ENGINE} {engine}"] = {
            name: _read_alike(given[name])
            for name in sorted(PROMPTING & given.keys())
            if not is_unset(given[name])
        }
    return found


def _read_alike(text: str) -> object:
    """An argument as lmms-eval reads it: True is true, and 1.0 is 1."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with contextlib.suppress(ValueError):
        return float(text)
    return placeless(text)


def of_reasoning(note: object) -> dict[str, object]:
    """The condition of a note from `records.reasoning`: none if no response has reasoning to remove."""
    if not isinstance(note, Mapping) or not note.get("responses"):
        return {}
    return {REASONING: note.get("removed")}


DISTRIBUTIONS = ("id", "ood", None)


@dataclass(frozen=True)
class Documents:
    """Items in their task's numbering."""

    ids: tuple[str, ...]
    numbers: tuple[int, ...]  # each item's position in the task's documents
    answers: tuple[str, ...]  # each item's gold, as text
    prompts: tuple[str, ...] | None = None  # each item's prompt; None if they are not available
    # of a log: each document's hash, "" if unknown; None for a scores folder, whose ids hold all content
    digests: tuple[str, ...] | None = None

    def reordered(self, order: Sequence[int]) -> "Documents":
        """The same items in another order."""
        prompts, digests = (
            None if values is None else tuple(values[at] for at in order)
            for values in (self.prompts, self.digests)
        )
        ids, answers = (tuple(values[at] for at in order) for values in (self.ids, self.answers))
        return Documents(ids, tuple(self.numbers[at] for at in order), answers, prompts, digests)


@dataclass(frozen=True, eq=False)
class Cell:
    """One row's result on one task. Items are sorted by item_id."""

    task: str  # the lmms-eval task
    distribution: str | None  # "id", "ood", or None if the task does not state it
    family: str | None  # the task's family, or None
    conditions: Mapping[str, object]  # what must be equal to compare two rows, by its name in messages
    item_ids: tuple[str, ...]  # the items, each once
    clusters: tuple[str | None, ...]  # each item's cluster, None for an independent item
    scores: NDArray[np.float64]  # each item's score in [0, 1], NaN if the response could not be scored
    # scored items without an answer in the response; None if the task does not report answers
    unanswered: int | None
    # the items in the task's numbering, in the order of item_ids; read on demand
    documents: Callable[[], Documents]
    # prefixes of the names of conditions that are not recorded, and so refuse nothing
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  # sentences on figures that do not match the items
    # the items' ids in the folder's own tables -> item_ids, if they differ
    renamed: Mapping[str, str] | None = None
    draws: Draws | None = None  # all responses to the items, if there are K of each
    # yields them as a table of `records.Response`, under the ids of the folder's own tables
    responses: Callable[[], pa.Table] | None = None
    # for K responses, the metric of the scores: "maj@8"; None for one response per item
    metric: str | None = None
    logged: str | None = None  # the hash of the prompts as lmms-eval logs them, if it is another

    @property
    def unscored(self) -> int:
        """Items whose response could not be scored."""
        return int(np.isnan(self.scores).sum())


@dataclass(frozen=True, eq=False)
class Result:
    """One folder of results, or one run in it."""

    name: str  # the row's name
    folder: Path  # the artifact's folder
    model: Mapping[str, object]  # "the model", "the adapter" -> hash of its folder, or its name on a hub
    tasks: Mapping[str, Cell]  # task name -> its results
    provenance: Provenance  # further information from its manifests
    tables: Callable[[], Iterator[pa.Table]]  # yields its items as tables of `records.Score`, one or more
    group: str | None = None  # the configuration that it is one seed of, or None
    number: int = 0  # its position among the given results
    files: tuple[Path, ...] = ()  # its files, for a log; empty for a scores folder, which is a single input
    left_out: Mapping[str, str] = field(default_factory=dict)  # task of the run that cannot be used -> why

    @property
    def is_log(self) -> bool:
        """Whether it is a run of lmms-eval, and no scores folder."""
        return bool(self.files)

    def renamed(self, name: str) -> "Result":
        """The same under another name; its group follows the name unless the manifest sets one."""
        group = group_of(name) if self.group in (None, group_of(self.name)) else self.group
        return replace(self, name=name, group=group)


_SEED = re.compile(r"(?P<group>.*[^\s,_(\[-])[\s,_(\[-]+seed[\s=_:-]*\d+[)\]]?", re.IGNORECASE)


def group_of(name: str, given: object = None) -> str | None:
    """The configuration that a row is one seed of: as given, or from a name like "SFT (seed 1)"."""
    if isinstance(given, str) and given.strip():
        return given
    found = _SEED.fullmatch(name.strip()) if len(name) < 500 else None
    return found["group"] if found else None


def said_once(remarks: Iterable[tuple[str, str, str]], rows: int) -> list[str]:
    """Turns remarks on rows into sentences; equal ones become one for all of their rows.

    A remark is a row's name, and the text after "Row NAME" and after "Rows A and B"; `rows` is how many rows
    there are.
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
    """One column."""

    name: str  # the lmms-eval task
    distribution: str | None  # "id", "ood" or None
    family: str | None  # the task's family, or None
    item_ids: Sequence[str]  # the items that every row was evaluated on, sorted
    # shape (n,), each item's cluster as a code that is the same across the board's tasks
    clusters: NDArray[np.int64]
    # what was equal for all rows, by its name in messages
    conditions: Mapping[str, object] = field(default_factory=dict)
    # for K responses per item, the metric of the scores: "maj@8"; None for one response
    metric: str | None = None
    unknown: tuple[str, ...] = ()  # as of `Cell`


@dataclass(frozen=True, eq=False)
class Row:
    """One evaluated model."""

    name: str  # its name from the evaluation; unique on the board
    cells: Mapping[str, Cell]  # task name -> result; a task that was not evaluated is absent
    group: str | None = None  # the configuration that it is one seed of, or None
    provenance: tuple[Provenance, ...] = ()  # one per folder

    @property
    def folders(self) -> tuple[Path, ...]:
        """Its folders of results; several if its tasks were evaluated in several runs."""
        return tuple(part.folder for part in self.provenance)


_STEP = re.compile(
    r"(?P<run>.*?)(?:^|[\s_/@(-]+)(?:(?:at\s+)?(?:global_)?step|checkpoint|@)[\s_=-]*(?P<step>\d{1,12})(?P<seed>(?:[\s,_(-]+seed.*)?)",
    re.IGNORECASE,
)

UNNAMED = "run"
"""The name of a run whose rows are named only by their steps."""


def step_of(name: str) -> tuple[str, int] | None:
    """The run and the step in a row's name: "SFT at step 20 (seed 1)" is (SFT (seed 1), 20)."""
    found = _STEP.fullmatch(name.strip()) if len(name) < 500 else None
    return (f"{found['run']}{found['seed']}".strip() or UNNAMED, int(found["step"])) if found else None


def at_step(name: str, step: int) -> str:
    """The name of a checkpoint's row: "SFT at step 20", and of a seed "SFT at step 20 (seed 1)"."""
    group = group_of(name)
    return f"{name} at step {step}" if group is None else f"{group} at step {step}{name[len(group) :]}"


@dataclass(frozen=True)
class LeftOut:
    """A run that could not be used."""

    folder: Path
    reason: str  # why, in one sentence, with the remedy
    kind: str = "damaged or incomplete"  # a short reason shared by many runs, such as "other prompts"
    files: tuple[Path, ...] = ()  # those of its files that exist; a board is built again if one changes


class Unusable(HarnessError):
    """A run that cannot be used, with the kind of reason: see `LeftOut`."""

    def __init__(self, problem: str, remedy: str = "", kind: str = "damaged or incomplete") -> None:
        """Stores the kind besides both parts of the message."""
        super().__init__(problem, remedy)
        self.kind = kind

    def __reduce__(self) -> tuple[type["Unusable"], tuple[str, str, str]]:  # type: ignore[override]
        """All parts, so that the error survives pickling to another process."""
        return type(self), (self.problem, self.remedy, self.kind)


@dataclass(frozen=True, eq=False)
class Apart:
    """Rows that cannot be compared with the board's rows."""

    reason: str  # why the first of them cannot be compared
    board: "Board"  # a board of these rows


@dataclass(frozen=True, eq=False)
class Board:
    """Rows that can be compared."""

    rows: tuple[Row, ...]  # the baseline first, the others as given
    # in-distribution tasks, then out-of-distribution ones, then those that do not state it
    tasks: tuple[Task, ...]
    baseline: str | None  # the name of the row, or of the group of seeds, that differences refer to, or None
    apart: tuple[Apart, ...] = ()  # further rows that these cannot be compared with
    left_out: tuple[LeftOut, ...] = ()  # folders that could not be used
    remarks: tuple[str, ...] = ()  # sentences on the results
    results: tuple[Result, ...] = ()  # the results behind the rows

    @property
    def boards(self) -> "tuple[Board, ...]":
        """This board, and those of the rows that cannot be compared with its rows."""
        return (self, *(one.board for one in self.apart))

    def row(self, name: str) -> Row:
        """The row of this name; the error for an unknown one names near matches."""
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown_name("row", name, [row.name for row in self.rows])
