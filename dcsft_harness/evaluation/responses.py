"""Responses from other tools -> scores: a file's rows, scored by a task or by a scorer.

A row is one response. Each of its fields is read from the first of these columns in the file:

    item       item, item_id, doc_id           the item of a task
    question   question, prompt, problem       the text of the prompt
    picture    picture, image, image_name      the image's name; several as a list
    gold       gold, answer, solution, target  the gold answer
    response   response, prediction, output    the model's response; null if there is none. Of samples that
               resps, filtered_resps           lmms-eval logged, `resps` is missing if nothing changed it
    model      model, checkpoint               the model's name
    step       step, global_step               training steps of that model; null for none
    task       task, set, dataset              the task, if one file holds several

and, if the scorer needs them, `choices` (else the lines "A. ...", "B. ..." of the question), `width` and
`height` (pixels), `cluster`, `finish_reason` or `truncated`. Rows with the same model and step are one row of
a leaderboard.
"""

import ast
import contextlib
import gzip
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dcsft_harness import coordinates, lmms, reading, records
from dcsft_harness.artifacts import SCORES_SET, manifest, usage
from dcsft_harness.data.benchmarks.questions import LETTERS
from dcsft_harness.errors import HarnessError, cut, refused_rows, unknown_name
from dcsft_harness.evaluation import summary_of
from dcsft_harness.leaderboard.board import ARGUMENT, PIXELS, SYSTEM, TEMPLATE, at_step, group_of, step_of
from dcsft_harness.records import CHECKPOINT, SETTING, Score
from dcsft_harness.sampling import own_files, own_rows
from dcsft_harness.scoring import Scorer, get_scorer
from dcsft_harness.scoring.verdict import Response

FIELDS: Mapping[str, tuple[str, ...]] = {
    "item": ("item", "item_id", "doc_id"),
    "question": ("question", "prompt", "problem"),
    "picture": ("picture", "image", "image_name", "images"),
    "gold": ("gold", "answer", "solution", "target"),
    "response": ("response", "prediction", "output", "resps", "filtered_resps"),
    "model": ("model", "checkpoint", "model_name"),
    "step": ("step", "global_step"),
    "task": ("task", "set", "dataset"),
}
"""Field -> its possible columns, in order of preference."""
GOLDS = ("ground_truth", "groundtruth", "gt", "gt_answer", "reference", "label", "correct_answer", "expected")
"""Columns that hold the gold in other programs, beside an `answer` that is the model's."""
_CUT_OFF = ("length", "model_length", "max_length", "max_tokens", "max_output_tokens")
"""What engines call the end of a response that ran out of tokens."""
_WORDS = dict.fromkeys(("true", "1", "1.0"), True) | dict.fromkeys(
    ("false", "0", "0.0", "", "none", "nan"), False
)
"""What the column `truncated` may hold."""
_LONGEST = 1 << 16
"""The longest gold that is read as Python's spelling of a list, in characters."""
_NO_LIMIT = (1e9, 1e9)
"""The assumed size of an image of unknown size: boxes in its pixels are not clipped."""
_UNKNOWN = (ARGUMENT, PIXELS, SYSTEM, TEMPLATE, CHECKPOINT, SETTING)
"""Conditions of scores that a file of responses does not record."""


@dataclass(frozen=True)
class Given:
    """One row of the file."""

    number: int  # its line, or its position in a table, from 1
    fields: Mapping[str, Any]  # its fields, by the names of `FIELDS`
    row: Mapping[str, Any]  # all of its columns


@dataclass(frozen=True, slots=True)
class Scored:
    """A response with its score, and the prompt of its item."""

    score: Score
    prompt: str
    scorers: Mapping[str, int]


T = TypeVar("T")
Judge = Callable[[Given], Scored]


@dataclass(frozen=True)
class Judging:
    """How to score a file."""

    score: Judge  # scores a row
    task: lmms.Task | None = None  # the opened task, None for a scorer alone
    # the task's items, all of which every model must have; None if any items will do
    items: Sequence[records.Item] | None = None


def evaluate(
    file: Path,
    output: Path,
    *,
    name: str | None = None,
    task: str | None = None,
    scorer: str | None = None,
    columns: Mapping[str, str] | None = None,
    box_space: str | None = None,
    limit: int | None = None,
    group: str | None = None,
    progress: lmms.Progress | None = None,
) -> dict[str, Any]:
    """Scores the responses of a file and writes them as scores: one folder, or one per model and step.

    Args:
        file: JSONL, JSONL.gz or Parquet; see the module.
        output: the folder to write. For several models or steps it holds one scores folder each, which a
            leaderboard reads as rows.
        name: the row's name; for several rows, the run's, for plots over steps. By default the names of the
            model and the file.
        task: the lmms-eval task of the items; None uses `scorer`.
        scorer: a value for `scoring.get_scorer`; None uses `task`.
        columns: field -> its column, if the name is not in `FIELDS`.
        box_space: the coordinates of the boxes in the responses; needed by box scorers.
        limit: only the first documents of the task.
        group: the configuration that the rows are seeds of; rows of several steps are, step by step.
        progress: called with (responses scored, total responses).

    Returns:
        The manifest's notes: `tasks` for a single row; `rows` for several, with their tasks.

    Raises:
        HarnessError: the file cannot be read; rows lack a field, or their gold cannot be scored (lists the
            first ones); models answered different items; the output is occupied.
    """
    manifest.refuse_occupied(output)
    _refuse_missing(file)
    judging = judging_of(file, task, scorer, box_space, limit)
    runs = _runs(file, columns or {}, judging, name, progress)
    inputs = {"responses": file}
    settings = {"model": "responses", "model_args": "", "limit": limit, "file": file.name}
    settings |= {"scorer": scorer} if scorer else {}
    own = own_files.name_of(file)
    tasks = {one.score.task for run in runs for one in run.rows}
    after = {"named_after_file": own} if task is None and tasks == {own} else {}
    if len(runs) == 1:
        (run,) = runs
        with manifest.writing("scores", output, settings | run.settings(group), inputs) as draft:
            draft.notes |= run.write(draft.folder, limit) | after
        return draft.notes
    with manifest.writing(SCORES_SET, output, settings, inputs) as draft:
        draft.notes |= {"rows": [], **after}
        for number, run in enumerate(runs, start=1):
            folder = f"{number:03}-{re.sub(r'[^A-Za-z0-9.-]+', '-', run.name).strip('-.')[:60] or 'row'}"
            inner = manifest.Draft(draft.folder / folder)
            inner.folder.mkdir()
            inner.notes |= run.write(inner.folder, limit)
            sealed = settings | run.settings(group)
            manifest.seal("scores", inner, output.resolve() / folder, sealed, inputs, 0.0)
            draft.notes["rows"].append({"name": run.name, "folder": folder, "tasks": inner.notes["tasks"]})
    return draft.notes


def lines_of(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL, JSONL.gz or Parquet file with their numbers, from 1.

    Raises:
        HarnessError: the file is missing or of another format; a line is not JSON.
    """
    _refuse_missing(file)
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        with records.readable(file):
            table, number = pq.ParquetFile(file), 0
            classes = own_files.classes(table.schema_arrow)
            for batch in table.iter_batches():
                for row in own_files.of_batch(batch, classes):  # like a user's own rows: NaN is no value
                    number += 1
                    if isinstance(row, HarnessError):
                        raise HarnessError(f"{file}, row {number}: {row.problem}", row.remedy)
                    yield number, row
        return
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield number, reading.json_object(line)
                    except ValueError as error:
                        raise HarnessError(f"{file}, line {number}: {error}", "Correct the line") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise HarnessError(f"{file} is truncated or damaged ({error})", "Copy it again") from error


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise HarnessError(f"--responses {file} {what}", "Name a JSONL or Parquet file")
    with file.open("rb") as opened:
        is_list = opened.read(1) == b"["
    if is_list or file.suffix in (".csv", ".tsv", ".xlsx"):
        raise HarnessError(
            f"--responses {file} is not a JSONL or Parquet file", "Save its rows as one of these"
        )


def _read(file: Path, columns: Mapping[str, str]) -> Iterator[Given]:
    """The rows with their fields; an error at the end if there are none, or none has a field that must be."""
    for field in columns:
        if field not in FIELDS:
            raise unknown_name("field of --column", field, FIELDS)
    first: Sequence[str] = ()
    missing = {"response", *columns}
    for number, row in lines_of(file):
        fields = {}
        for field, names in FIELDS.items():
            for column in (columns[field],) if field in columns else names:
                if column in row:
                    fields[field] = row[column]
                    break
        _refuse_confusion(file, number, fields, row, columns)
        first = first or [*row]
        missing -= fields.keys()
        yield Given(number, fields, row)
    if not first:
        raise HarnessError(f"{file} holds no rows", "Write one JSON object per response")
    for field in (one for one in ("response", *columns) if one in missing):
        wanted = columns.get(field) or ", ".join(FIELDS[field])
        raise HarnessError(
            f"{file}: no row has a {field} ({wanted}); the first has {cut(', '.join(first))}",
            f"Name its column with --column {field}=NAME",
        )


def _refuse_confusion(
    file: Path, number: int, fields: Mapping[str, Any], row: Mapping[str, Any], columns: Mapping[str, str]
) -> None:
    """Refuses a row whose gold may be another column, or that has a field under a name in another case."""
    lower = {name.strip().lower(): name for name in row}
    for field, names in FIELDS.items():
        if field not in fields and (near := next((lower[name] for name in names if name in lower), None)):
            raise HarnessError(
                f"{file}, row {number}: the column {near!r} is not read as the {field}",
                f"Rename it to {near.strip().lower()}, or pass --column {field}={cut(near)}",
            )
    if "gold" in columns or fields.get("gold") is None or "gold" in row:
        return
    read = next(one for one in FIELDS["gold"] if one in row)
    for other in (lower[name] for name in (*GOLDS, "gold") if name in lower):
        if row[other] not in (None, fields["gold"]):
            raise HarnessError(
                f"{file}, row {number}: {read!r} is read as the gold, and {other!r} beside it differs: "
                f"{cut(str(fields['gold']), 80)!r} and {cut(str(row[other]), 80)!r}",
                f"Choose the gold: --column gold={other} or --column gold={read}",
            )


def judged_rows(
    file: Path,
    given: Iterable[Given],
    judge: Callable[[Given], T],
    total: int | None,
    progress: Callable[..., None] | None,
) -> Iterator[T]:
    """Scores a file's rows, about `total`; an error at the end lists those that cannot be scored."""
    bad: dict[int, HarnessError] = {}
    done, rows, last = 0, 0, None
    for done, one in enumerate(given, start=1):
        rows, last = rows + (one.number != last), one.number  # of a log, each has several responses
        try:
            yield judge(one)
        except HarnessError as error:
            # A new one, without the traces of its causes, which would keep the row.
            bad.setdefault(one.number, HarnessError(error.problem, error.remedy))
        if progress is not None and done % 100 == 0:
            progress(done, total)
    if progress is not None:
        progress(done, done)
    if bad:
        raise refused_rows(str(file), [(f"row {at}", why) for at, why in bad.items()], rows, "scored")


def judging_of(
    file: Path, task: str | None, scorer: str | None, box_space: str | None, limit: int | None
) -> Judging:
    """How to score a file by its task or its scorer, of which exactly one must be given."""
    if (task is None) == (scorer is None):
        raise HarnessError(
            "--responses needs one of --task and --scorer",
            "Name the lmms-eval task that the items belong to, or a scorer",
        )
    if scorer is not None:
        judge = get_scorer(scorer)
        if "box_space" in judge.fields and box_space is None:
            raise HarnessError(
                f"--scorer {scorer} needs --box-space",
                "Pass the coordinate space of the responses' boxes: pixel, norm1000 or resized",
            )
        if limit is not None:
            raise HarnessError("--limit applies to tasks, and --scorer names none", "Leave it out")
        return Judging(_by_scorer(judge, file, box_space))
    assert task is not None
    documents = _documents(task, box_space, limit)
    return Judging(documents.score, documents.task, documents.items)


def _question(one: Given) -> str:
    if (found := one.fields.get("question")) in (None, ""):
        raise HarnessError(
            "no question", "Add one to every row, or name its column with --column question=NAME"
        )
    return records.as_text(found)


def _response(one: Given) -> Response | None:
    text = one.fields.get("response")
    while isinstance(text, list) and len(text) == 1:  # as older versions of lmms-eval log it
        text = text[0]
    if text is None:
        return None
    if not isinstance(text, str):
        raise HarnessError(f"the response is {type(text).__name__}, not text", "Write one response per row")
    return Response(text, _ended(one.row) == "length")


def _ended(row: Mapping[str, Any]) -> str | None:
    """Why a response ended: "length" if it ran out of tokens, in the words of any engine; None if unknown."""
    reason, word = row.get("finish_reason"), str(row.get("truncated")).strip().lower()
    if word not in _WORDS:
        raise HarnessError(f"truncated is {cut(repr(row['truncated']), 60)}", "Write true or false")
    if _WORDS[word] or str(reason).lower().rpartition(".")[2] in _CUT_OFF:
        return "length"
    return reason if isinstance(reason, str) else None


def _pictures(one: Given) -> list[str]:
    named = one.fields.get("picture")
    return [_picture(name) for name in (named if isinstance(named, list) else [named]) if name]


def _picture(named: object) -> str:
    """The name of an image; of one without a name a hash of its content."""
    if isinstance(named, Mapping):
        named = next((value for key in ("path", "bytes") if (value := named.get(key))), str(named))
    if isinstance(named, str) and named.startswith("data:"):
        named = named.encode()
    return hashlib.sha256(named).hexdigest()[:32] if isinstance(named, bytes) else records.as_text(named)


def _by_scorer(judge: Scorer, file: Path, box_space: str | None) -> Judge:
    name, scorers = own_files.name_of(file), {judge.name: judge.version}

    def score(one: Given) -> Scored:
        question, gold = _question(one), _listed(one.fields.get("gold"))
        if gold is None:
            raise HarnessError("no gold", "Add one to every row, or name its column with --column gold=NAME")
        if gold in own_rows.MISSING:
            raise HarnessError(f"the gold is {gold!r}, a missing value", "Correct or remove the row")
        answer = judge.gold(gold)
        task, named = str(one.fields.get("task") or name), _pictures(one)
        given: dict[str, Any] = {"answer": answer}
        if "choices" in judge.fields:
            given["choices"] = own_rows.choices(one.row, question)
        if "image_size" in judge.fields:
            given["image_size"] = _size(one, box_space)
            if judge.check is not None and given["image_size"] != _NO_LIMIT:
                judge.check(answer, image_size=given["image_size"])
        if "box_space" in judge.fields:
            given["box_space"] = box_space
            if "resized_size" in judge.fields:
                given["resized_size"] = one.row.get("resized_size")
        response = _response(one)
        cut_off = [response is not None and response.truncated]
        # Refuses a gold that cannot be scored.
        (verdict,) = judge.score_many(["" if response is None else response], truncated=cut_off, **given)
        # A question may be asked again of other options; a file's own ids say so where nothing else does.
        own = (given.get("choices"), one.fields.get("item"))
        identity = [each.encode() for each in (*named, *(records.as_text(o) for o in own if o is not None))]
        text = records.as_text(answer)
        item_id = records.item_id(task, question, text, identity)
        cluster = one.row.get("cluster")
        cluster = next(iter(named), None) if cluster in (None, "") else str(cluster)
        extracted = None if verdict.extracted is None else records.as_text(verdict.extracted)
        found: tuple[float | None, str | None] = (verdict.score, extracted)
        if response is None:
            found = None, None
        return _scored(one, records.Item(item_id, task, -1, question, text, text), *found, cluster, scorers)

    return score


def _listed(gold: object) -> object:
    """A gold, as a list where it is one of texts in Python's spelling, as lmms-eval logs it."""
    if isinstance(gold, str) and gold[:2] in ("['", '["', "('", '("') and len(gold) < _LONGEST:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(gold)
            if isinstance(found, list | tuple) and all(isinstance(text, str) for text in found):
                return list(found)
    return gold


def _scored(
    one: Given,
    item: records.Item,
    score: float | None,
    extracted: str | None,
    cluster: str | None,
    scorers: Mapping[str, int],
) -> Scored:
    tokens = one.row.get("n_tokens")
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 1 << 53
    made = Score(
        task=item.task,
        item_id=item.item_id,
        doc_id=item.doc_id,
        score=score,
        extracted=extracted,
        # Without its mark of truncation, which takes more memory than most texts.
        response=str(_response(one) or ""),
        answer=item.answer,
        n_tokens=tokens if counted else None,
        cluster=cluster,
        finish_reason=_ended(one.row),
    )
    return Scored(made, item.prompt, scorers)


def _size(one: Given, box_space: str | None) -> tuple[float, float]:
    sides = one.row.get("image_size") or (one.row.get("width"), one.row.get("height"))
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(s, int | float) for s in sides):
        return float(sides[0]), float(sides[1])
    if box_space != "pixel":
        raise HarnessError(
            f"no image size, which boxes in {box_space} coordinates need",
            "Add `width` and `height` in pixels",
        )
    return _NO_LIMIT


class _Documents:
    """The documents of a task that rows may answer."""

    def __init__(self, task: lmms.Task, limit: int | None) -> None:
        """Describes the task's documents, or only the first `limit`."""
        self.task = task
        numbers = range(len(task.eval_docs))[:limit]
        described = usage.counted(numbers, lambda: len(numbers))
        self.items = [lmms.describe_item(task, number) for number in described]
        self._by_id = {item.item_id: item for item in self.items}
        self._by_text: dict[tuple[str, str], list[records.Item]] = {}
        for item in self.items:
            for gold in dict.fromkeys((item.answer, item.target)):
                self._by_text.setdefault((_plain(item.prompt), _plain(gold)), []).append(item)
        self._prompts = {prompt for prompt, _ in self._by_text}
        # Third-party tasks may ask a model to judge; boxes may be in other coordinates than the gold.
        self._has_own_judge = lmms.metadata(task).get("family") in ("classification", "reasoning")

    def score(self, one: Given) -> Scored:
        """Scores a row's response as the task does."""
        item, text = self._answered_by(one), _response(one)
        if text is None:
            return _scored(one, item, None, None, None, {})
        doc = self.task.eval_docs[item.doc_id]
        metrics = self.task.process_results(doc, [lmms.filtered(self.task, text, doc)])
        named = metrics.get("scorer")
        scorers = dict(named) if isinstance(named, Mapping) else {}
        return _scored(one, item, *lmms.score_of(self.task, metrics), scorers)

    def _answered_by(self, one: Given) -> records.Item:
        """The item that a row names by its id, by its number, or by its question and gold."""
        name, key = self.task.config.task, one.fields.get("item")
        if key is None:
            question, gold = _question(one), _listed(one.fields.get("gold"))
            near = self._by_text.get((_plain(question), _plain(records.as_text(gold))), [])
            if len(near) != 1:
                what = "no item" if not near else f"{len(near)} items"
                raise HarnessError(
                    f"{name} has {what} of the question {cut(repr(question), 80)} and the gold "
                    f"{cut(repr(gold), 40)}",
                    "Add `item`: its item_id, or its doc_id as a number",
                )
            return near[0]
        if isinstance(key, str) and key in self._by_id:
            item = self._by_id[key]
        elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(self.items):
            item = self.items[key]
        else:
            raise HarnessError(f"{name} has no item {cut(repr(key), 60)}", "Add item_id or doc_id")
        said = (one.fields.get(field) for field in ("question", "gold"))
        question, gold = ("" if value is None else records.as_text(value) for value in said)
        if self._is_another(item, _plain(question), gold):
            raise HarnessError(
                f"{name} has a different question or gold at doc_id {item.doc_id} "
                f"({cut(item.answer, 40)}) than this row ({cut(gold, 40)})",
                "Use the doc_id or item_id of the task, which numbers its documents from 0",
            )
        return item

    def _is_another(self, item: records.Item, question: str, gold: str) -> bool:
        """Whether a row's question and gold, "" where it has none, are of another item than it names."""
        if question in self._prompts and question != _plain(item.prompt):
            return True
        if near := self._by_text.get((question, _plain(gold)), []):
            return item not in near
        if not self._has_own_judge or not gold or _plain(gold) in (_plain(item.answer), _plain(item.target)):
            return False
        # A gold in another spelling is right by the scorer; several golds are JSON, which none may be.
        doc = self.task.eval_docs[item.doc_id]
        metrics = self.task.process_results(doc, [Response(gold)])
        # An option's text may be another option's letter.
        options = dict(zip(LETTERS, doc.get("choices") or (), strict=False))
        other = item.answer[:1] != "[" and gold != options.get(item.answer)
        return other and lmms.score_of(self.task, metrics)[0] != 1.0


def _documents(name: str, box_space: str | None, limit: int | None) -> _Documents:
    opened = lmms.open_tasks([name])
    if len(opened) != 1:
        raise HarnessError(f"--task {name} is a group of {len(opened)} tasks", "Name one of its tasks")
    (task,) = opened.values()
    lmms.refuse_unfit([task])
    if box_space not in (None, "pixel", "norm1000"):
        raise HarnessError(f"--box-space {box_space} is not for tasks", "Use pixel or norm1000")
    # Not that of an earlier model of this process.
    coordinates.declare(coordinates.BoxConvention(box_space) if box_space else None)  # type: ignore[arg-type]
    if lmms.metadata(task).get("family") == "grounding":
        coordinates.declared()
    return _Documents(task, limit)


def _plain(text: str) -> str:
    """A text without image marks, and with single spaces."""
    return " ".join(text.replace(records.MARK, " ").split())


@dataclass(frozen=True)
class _Run:
    """The responses of one model at one step."""

    name: str
    run: str
    step: int | None
    rows: Sequence[Scored]
    task: lmms.Task | None

    def settings(self, group: str | None) -> dict[str, Any]:
        """Its notes for the manifest; seeds of a group are combined at equal steps."""
        tasks = sorted({one.score.task for one in self.rows})
        at = {} if self.step is None else {"run": self.run, "step": self.step}
        if group:
            at["group"] = group if self.step is None else at_step(group, self.step)
        return {"name": self.name, **at, "tasks": tasks}

    def write(self, folder: Path, limit: int | None) -> dict[str, Any]:
        """Writes the table, and returns the notes."""
        records.write_table(folder / "scores.parquet", Score, (one.score for one in self.rows))
        tasks: dict[str, list[Scored]] = {}
        for one in self.rows:
            tasks.setdefault(one.score.task, []).append(one)
        notes = {}
        for name, some in tasks.items():
            scorers = {scorer: version for one in some for scorer, version in one.scorers.items()}
            prompts = [(one.score.item_id, one.prompt) for one in some]
            tags = [] if self.task is None else lmms.reasoning_tags(self.task)
            notes[name] = {
                **summary_of(self.task, [one.score for one in some], prompts, limit),
                "generation": {},
                "reasoning": records.reasoning(tags, (one.score.response for one in some)),
                "unknown": list(_UNKNOWN),
                "scorers": dict(sorted(scorers.items())),
            }
        return {"tasks": notes, "pixels": None}


def _runs(
    file: Path,
    columns: Mapping[str, str],
    judging: Judging,
    name: str | None,
    progress: lmms.Progress | None,
) -> list[_Run]:
    """The judged rows by model and step, in order of the file."""

    def judged(one: Given) -> tuple[tuple[str | None, int | None], Scored]:
        model = one.fields.get("model")
        return (None if model is None else str(model), _step(one)), judging.score(one)

    # One row after another: of a million in memory as Python's own objects, files are many times as large.
    kept: dict[tuple[str | None, int | None], list[Scored]] = {}
    for key, row in judged_rows(file, _read(file, columns), judged, own_files.count(file), progress):
        kept.setdefault(key, []).append(row)
    run = name or own_files.name_of(file)
    # One model per step: the checkpoints of one run. Else each model is a run.
    several = max(Counter(step for _, step in kept if step is not None).values(), default=0) > 1
    made = []
    for (model, step), some in kept.items():
        own = _named(model, step, name if len(kept) == 1 or model is None else None, run)
        if judging.items is not None:
            _refuse_gaps(file, own, some, judging.items)
        of_run = f"{run} {model}" if several and model is not None else run
        made.append(_Run(own, of_run, step, _counted(some), judging.task))
    twice = [one for one, count in Counter(run.name for run in made).items() if count > 1]
    if twice:
        raise HarnessError(
            f"{file}: two models are both named {twice[0]!r}", "Name models by `model` and `step`"
        )
    return made


def _refuse_gaps(file: Path, name: str, rows: Sequence[Scored], items: Sequence[records.Item]) -> None:
    """Refuses a model's responses unless there is one to each of a task's items, repeated items included."""
    given = Counter(one.score.item_id for one in rows)
    wanted = Counter(item.item_id for item in items)
    if given != wanted:
        raise HarnessError(
            f"{file}: {name} has {len(rows)} responses to {(given & wanted).total()} of its task's "
            f"{len(items)} items",
            "Provide one response per item; --limit N scores the first N documents alone",
        )


def _named(model: str | None, step: int | None, name: str | None, run: str) -> str:
    if name is not None and step is None:
        return name
    own = name or model or run
    if step is None:
        return own
    if group_of(own) is not None:  # "SFT (seed 1)": its steps are no seeds
        return at_step(own, step)
    stated = step_of(own)
    return own if stated is not None and stated[1] == step else f"{own} @{step}"


def _step(one: Given) -> int | None:
    step = one.fields.get("step")
    if step is None or (isinstance(step, float) and math.isnan(step)):
        return None
    if isinstance(step, bool) or not isinstance(step, int | float) or step != int(step) or step < 0:
        raise HarnessError(f"step is {cut(repr(step), 60)}", "Use a whole number")
    return int(step)


def _counted(rows: list[Scored]) -> list[Scored]:
    """The rows, changed in place, with unique ids: an item that is repeated counts twice, in one cluster."""
    seen = Counter[str]()
    times = Counter(one.score.item_id for one in rows)
    for number, one in enumerate(rows):
        score, item = one.score, one.score.item_id
        if score.doc_id < 0:
            score = replace(score, doc_id=number)
        if times[item] > 1 and score.cluster is None:
            score = replace(score, cluster=item)
        if again := seen[item]:
            score = replace(score, item_id=records.occurrence_id(item, again))
        seen[item] += 1
        rows[number] = replace(one, score=score)
    return rows
