"""Responses from other tools -> scores: a file's rows, scored by a task or by a scorer.

A row is one response. Each of its fields is read from the first of these columns in the file:

    item       item, item_id, doc_id           the item of a task
    question   question, prompt, problem       the text of the prompt
    picture    picture, image, image_name      the image's name; several as a list
    gold       gold, answer, solution, target  the gold answer
    response   response, prediction, output    the model's response; null if there is none
    model      model, checkpoint               the model's name
    step       step, global_step               training steps of that model; null for none
    task       task, set, dataset              the task, if one file holds several

and, if the scorer needs them, `choices` (else the lines "A. ...", "B. ..." of the question), `width` and
`height` (pixels), `cluster`, `finish_reason` or `truncated`. Rows with the same model and step are one row of
a leaderboard.
"""

import gzip
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dcsft_harness import coordinates, lmms, pictures, reading, records
from dcsft_harness.artifacts import SCORES_SET, manifest, usage
from dcsft_harness.data.benchmarks.questions import LETTERS
from dcsft_harness.errors import HarnessError, cut, refused_rows, unknown_name
from dcsft_harness.evaluation import summary_of
from dcsft_harness.evaluation.autoeval import at_step
from dcsft_harness.leaderboard.board import group_of, step_of
from dcsft_harness.leaderboard.collect import find
from dcsft_harness.leaderboard.logs import Choices, Samples, is_run, load_run, samples_of_run
from dcsft_harness.lmms.tasks import defined_in
from dcsft_harness.records import CHECKPOINT, SETTING, Score
from dcsft_harness.sampling import ITEMS, ROLLOUTS, own_files, own_rows, write_items
from dcsft_harness.scoring import Scorer, get_scorer
from dcsft_harness.scoring.verdict import Response

FIELDS: Mapping[str, tuple[str, ...]] = {
    "item": ("item", "item_id", "doc_id"),
    "question": ("question", "prompt", "problem"),
    "picture": ("picture", "image", "image_name", "images"),
    "gold": ("gold", "answer", "solution", "target"),
    "response": ("response", "prediction", "output"),
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
_NO_LIMIT = (1e9, 1e9)
"""The assumed size of an image of unknown size: boxes in its pixels are not clipped."""
_UNKNOWN = ("generation argument", "pixel limit", CHECKPOINT, SETTING)
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

    def judged(one: Given) -> tuple[tuple[str | None, int | None], Scored]:
        model = one.fields.get("model")
        return (None if model is None else str(model), _step(one)), judging.score(one)

    # One row after another: of a million in memory as Python's own objects, files are many times as large.
    kept: dict[tuple[str | None, int | None], list[Scored]] = {}
    for key, row in judged_rows(file, _read(file, columns or {}), judged, own_files.count(file), progress):
        kept.setdefault(key, []).append(row)
    runs = _runs(file, kept, name, judging)
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
    if file.suffix in (".csv", ".tsv"):
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
                f"Rename it to {near.strip().lower()}, or give --column {field}={cut(near)}",
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
                "Give the coordinate space of the responses' boxes: pixel, norm1000 or resized",
            )
        if limit is not None:
            raise HarnessError("--limit applies to tasks, and --scorer names none", "Leave it out")
        return Judging(_by_scorer(judge, file, box_space))
    assert task is not None
    return _by_task(task, box_space, limit)


def _text(value: object, field: str) -> str:
    if value is None or value == "":
        raise HarnessError(
            f"no {field}", f"Give every row one, or name its column with --column {field}=NAME"
        )
    return records.as_text(value)


def _response(one: Given) -> Response | None:
    text = one.fields.get("response")
    if text is None:
        return None
    if not isinstance(text, str):
        raise HarnessError(f"the response is {type(text).__name__}, not text", "Give one response per row")
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
    """Names of its images; of those without one a hash of their content."""
    named = one.fields.get("picture")
    return [_picture(name) for name in (named if isinstance(named, list) else [named]) if name]


def _picture(named: object) -> str:
    if isinstance(named, Mapping):
        named = next((value for key in ("path", "bytes") if (value := named.get(key))), str(named))
    if isinstance(named, str) and named.startswith("data:"):
        named = named.encode()
    return hashlib.sha256(named).hexdigest()[:32] if isinstance(named, bytes) else records.as_text(named)


def _by_scorer(judge: Scorer, file: Path, box_space: str | None) -> Judge:
    name, scorers = own_files.name_of(file), {judge.name: judge.version}

    def score(one: Given) -> Scored:
        question, gold = _text(one.fields.get("question"), "question"), one.fields.get("gold")
        if gold is None:
            raise HarnessError("no gold", "Give every row one, or name its column with --column gold=NAME")
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
        text = _response(one)
        cut_off = [text is not None and text.truncated]
        # Refuses a gold that cannot be scored.
        (verdict,) = judge.score_many(["" if text is None else text], truncated=cut_off, **given)
        # A question may be asked again of other options; a file's own ids say so where nothing else does.
        own = (given.get("choices"), one.fields.get("item"))
        identity = [each.encode() for each in (*named, *(records.as_text(o) for o in own if o is not None))]
        item = records.item_id(task, question, records.as_text(answer), identity)
        cluster = one.row.get("cluster")
        cluster = (named[0] if named else None) if cluster in (None, "") else cluster
        found = None if text is None else verdict
        extracted = None if found is None or found.extracted is None else records.as_text(found.extracted)
        value = None if found is None else found.score
        cluster = None if cluster is None else str(cluster)
        made = _score(one, task, item, -1, value, extracted, records.as_text(answer), cluster)
        return Scored(made, question, scorers)

    return score


def _score(
    one: Given,
    task: str,
    item_id: str,
    doc_id: int,
    score: float | None,
    extracted: str | None,
    answer: str,
    cluster: str | None,
) -> Score:
    text, tokens = _response(one), one.row.get("n_tokens")
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 1 << 53
    return Score(
        task=task,
        item_id=item_id,
        doc_id=doc_id,
        score=score,
        extracted=extracted,
        response=str(text or ""),  # without its mark of truncation, which takes more memory than most texts
        answer=answer,
        n_tokens=tokens if counted else None,
        cluster=cluster,
        finish_reason=_ended(one.row),
    )


def _size(one: Given, box_space: str | None) -> tuple[float, float]:
    sides = one.row.get("image_size") or (one.row.get("width"), one.row.get("height"))
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(s, int | float) for s in sides):
        return float(sides[0]), float(sides[1])
    if box_space != "pixel":
        raise HarnessError(
            f"no image size, which boxes in {box_space} coordinates need",
            "Give `width` and `height` in pixels",
        )
    return _NO_LIMIT


def _by_task(name: str, box_space: str | None, limit: int | None) -> Judging:
    opened = lmms.open_tasks([name])
    if len(opened) != 1:
        raise HarnessError(f"--task {name} is a group of {len(opened)} tasks", "Name one of its tasks")
    ((task_name, task),) = opened.items()
    lmms.refuse_unfit([task])
    if box_space not in (None, "pixel", "norm1000"):
        raise HarnessError(f"--box-space {box_space} is not for tasks", "Use pixel or norm1000")
    # Not that of an earlier model of this process.
    coordinates.declare(coordinates.BoxConvention(box_space) if box_space else None)  # type: ignore[arg-type]
    family = lmms.metadata(task).get("family")
    if family == "grounding":
        coordinates.declared()
    count = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
    items = [lmms.describe_item(task, number) for number in usage.counted(range(count), lambda: count)]
    by_id = {item.item_id: item for item in items}
    by_text: dict[tuple[str, str], list[records.Item]] = {}
    for item in items:
        by_text.setdefault((_plain(item.prompt), _plain(item.answer)), []).append(item)
        if item.target != item.answer:
            by_text.setdefault((_plain(item.prompt), _plain(item.target)), []).append(item)
    prompts = {_plain(item.prompt) for item in items}
    # Third-party tasks may ask a model to judge; boxes may be in other coordinates than the gold.
    judged = family in ("classification", "reasoning")

    def agreeing(item: records.Item, one: Given) -> records.Item:
        """The item that a row names, unless the row's question and gold are another one's."""
        said = map(one.fields.get, ("question", "gold"))
        question, gold = ("" if value is None else records.as_text(value) for value in said)
        near = by_text.get((_plain(question), _plain(gold)), [])
        if near or not gold or _plain(gold) in (_plain(item.answer), _plain(item.target)):
            strange = bool(near) and item not in near
        else:  # a gold in another spelling is right by the scorer; several golds are JSON, which none may be
            doc = task.eval_docs[item.doc_id]
            metrics = task.process_results(doc, [Response(gold)]) if judged else {}
            strange = judged and item.answer[:1] != "[" and lmms.score_of(task, metrics)[0] != 1.0
            # An option's text may be another option's letter.
            strange = strange and gold != dict(zip(LETTERS, doc.get("choices") or (), strict=False)).get(
                item.answer
            )
        if strange or (_plain(question) in prompts and _plain(question) != _plain(item.prompt)):
            raise HarnessError(
                f"{task_name} has a different question or gold at doc_id {item.doc_id} "
                f"({cut(item.answer, 40)}) than this row ({cut(gold, 40)})",
                "Give the doc_id or item_id of the task, which numbers its documents from 0",
            )
        return item

    def found(one: Given) -> records.Item:
        key = one.fields.get("item")
        if isinstance(key, str) and key in by_id:
            return agreeing(by_id[key], one)
        if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < count:
            return agreeing(items[key], one)
        if key is not None:
            raise HarnessError(f"{task_name} has no item {cut(repr(key), 60)}", "Give item_id or doc_id")
        question, gold = _text(one.fields.get("question"), "question"), one.fields.get("gold")
        near = by_text.get((_plain(question), _plain(records.as_text(gold))), [])
        if len(near) != 1:
            what = "no item" if not near else f"{len(near)} items"
            raise HarnessError(
                f"{task_name} has {what} of the question {cut(repr(question), 80)} and the gold "
                f"{cut(repr(gold), 40)}",
                "Give `item`: its item_id, or its doc_id as a number",
            )
        return near[0]

    def score(one: Given) -> Scored:
        item, text = found(one), _response(one)
        value, extracted, cluster, scorers = None, None, None, {}
        if text is not None:
            doc = task.eval_docs[item.doc_id]
            shown = Response(lmms.filtered(task, text, doc), text.truncated)
            metrics = task.process_results(doc, [shown])
            value, extracted, cluster = lmms.score_of(task, metrics)
            named = metrics.get("scorer")
            scorers = dict(named) if isinstance(named, Mapping) else {}
        made = _score(one, task_name, item.item_id, item.doc_id, value, extracted, item.answer, cluster)
        return Scored(made, item.prompt, scorers)

    return Judging(score, task, items)


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
            notes[name] = {
                **summary_of(self.task, [one.score for one in some], prompts, limit),
                "generation": {},
                "unknown": list(_UNKNOWN),
                "scorers": dict(sorted(scorers.items())),
            }
        return {"tasks": notes, "pixels": None}


def _runs(
    file: Path,
    kept: Mapping[tuple[str | None, int | None], list[Scored]],
    name: str | None,
    judging: Judging,
) -> list[_Run]:
    """The rows by model and step, in order of the file."""
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
            "Give one response per item; --limit N scores the first N documents alone",
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
        raise HarnessError(f"step is {cut(repr(step), 60)}", "Give a whole number")
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


# Logs of lmms-eval -> rollouts: all responses to each document, scored separately.


def rollouts_of_logs(
    place: Path,
    output: Path,
    task: str | None = None,
    scorer: str | None = None,
    box_space: str | None = None,
    include_path: Path | None = None,
    progress: Callable[..., None] | None = None,
) -> None:
    """Writes rollouts from a run of `lmms-eval -n G --log_samples`; scores each response separately.

    lmms-eval logs all G responses of a document with `--reasoning_tags none`, or if the task keeps them, but
    only the score of the first one. `place` is the folder of one run, or FOLDER/RUN. With a task, the output
    also holds the items and their images. `scorer` scores the responses against the logged gold; None uses
    the task itself, which `include_path` may define.

    Raises:
        HarnessError: there is not exactly one run or task; a document has a single response, or another
            number than other documents; the log does not match this task's documents; a response cannot be
            scored.
    """
    file, samples, name = _one_log(place, task)
    inputs = {"results": file, "samples": samples}
    lmms.include(include_path)
    if include_path is not None and scorer is None:
        inputs |= {f"task {path}": path for path in defined_in(include_path, [name])}
    config = {"task": name, "scorer": scorer, "box_space": box_space}
    if manifest.is_current(output, manifest.key_of("rollouts", config, inputs)):
        return
    run = load_run(file)
    # Without the rest of each line, which holds the whole document.
    kept = ("doc_id", "input", "target", "scorer", "extracted", "resps", "filtered_resps")
    rows: list[tuple[dict[str, Any], list[object]]] = [
        ({key: line.get(key) for key in kept[:5]}, _said(line))
        for _, line in Samples(file, run, name, samples, Choices({}, {})).counted(kept)
    ]
    counts = Counter(len(texts) for _, texts in rows)
    if len(counts) != 1 or next(iter(counts)) < 2:
        said = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        # lmms-eval removes reasoning from the first response, and then logs only that one.
        drawn_more = _repeats(run, name) > 1 and set(counts) == {1}
        raise HarnessError(
            f"{samples} has documents with these numbers of responses: {said}",
            "Run lmms-eval again with --reasoning_tags none: otherwise it logs only the first response"
            if drawn_more
            else "Labels need equal numbers, 2 or more: lmms-eval -n 8 --reasoning_tags none --log_samples",
        )
    judging = judging_of(samples, name if scorer is None else None, scorer, box_space, None)
    if judging.task is not None:
        _refuse_other_documents(samples, [row for row, _ in rows], judging.task)
    size = next(iter(counts))
    given = (
        Given(number, _logged(row, text, name, judging.task is not None), {})
        for number, (row, some) in enumerate(rows, start=1)
        for text in some
    )
    judged = judged_rows(samples, given, lambda one: (one, judging.score(one)), len(rows) * size, progress)
    scorers: dict[str, int] = {}

    def drawn() -> Iterator[records.Rollout]:
        for at, one in enumerate(_as_logged([row for row, _ in rows], size, judged, judging)):
            scorers.update(one.scorers)
            yield records.Rollout(
                item_id=one.score.item_id,
                sample_index=at % size,
                response=one.score.response,
                score=one.score.score,
                extracted=one.score.extracted,
                n_tokens=0,
                finish_reason=one.score.finish_reason or "stop",
                seed=0,
                task=name,
                prompt=one.prompt,
                answer=one.score.answer,
            )

    with manifest.writing("rollouts", output, config, inputs) as draft:
        count = records.write_table(draft.folder / ROLLOUTS, records.Rollout, drawn())
        if judging.task is not None and judging.items is not None:
            asked = [judging.items[row["doc_id"]] for row, _ in rows]
            write_items(draft.folder / ITEMS, asked, lmms.stored_images(judging.task, asked))
        draft.notes |= {"items": len(rows), "responses": count, "pictures": pictures.FORMAT}
        draft.notes["scorers"] = scorers


def _refuse_other_documents(file: Path, rows: Sequence[Mapping[str, Any]], task: lmms.Task) -> None:
    """Refuses a log whose documents have other golds than the task's of the same numbers."""
    docs = task.eval_docs_no_media
    for row in rows:
        number, target = row["doc_id"], row.get("target")
        own = str(task.doc_to_target(docs[number])) if number < len(docs) else None
        if None not in (own, target) and own != str(target):
            raise HarnessError(
                f"{file}: document {number} has the gold {cut(repr(target), 60)}, but that of the task "
                f"{task.config.task} is {cut(repr(own), 60)}",
                "Label it with the data that was evaluated, or by the log's golds with --scorer",
            )


def _as_logged(
    rows: Sequence[Mapping[str, Any]],
    size: int,
    judged: Iterable[tuple[Given, Scored]],
    judging: Judging,
) -> Iterator[Scored]:
    """The verdicts, and new ones for responses that ran out of tokens.

    A log does not say which did; but there the scorer of the same version found no answer where the whole
    text has one.
    """
    for at, (one, made) in enumerate(judged):
        row = rows[at // size]
        logged = row.get("extracted")
        same = row.get("scorer") == dict(made.scorers) and made.score.extracted is not None
        if same and isinstance(logged, list) and len(logged) == size and logged[at % size] is None:
            yield judging.score(replace(one, row={"truncated": True}))
        else:
            yield made


def _repeats(run: Mapping[str, Any], task: str) -> int:
    """A run's number of responses per document, from its results file."""
    found = ((run.get("configs") or {}).get(task) or {}).get("repeats")
    return found if isinstance(found, int) else 1


def holds_logs(place: Path) -> bool:
    """Whether a path is a run of lmms-eval, or a folder that contains runs."""
    return any(is_run(file) and file.is_file() for file in find(place))


def _one_log(place: Path, task: str | None) -> tuple[Path, Path, str]:
    """The results file, the samples and the task of the only run at a path."""
    runs = [file for file in find(place) if is_run(file) and file.is_file()]
    if len(runs) != 1:
        named = ", ".join(str(file) for file in runs[:5]) or "none"
        raise HarnessError(
            f"{place} holds {len(runs)} runs of lmms-eval ({named})",
            "Name rollouts, or one run as FOLDER/RUN",
        )
    samples = samples_of_run(runs[0])
    if task is not None and task not in samples:
        raise unknown_name("task of the log", task, samples)
    if not samples or (task is None and len(samples) > 1):
        raise HarnessError(
            f"{runs[0]} has samples of {len(samples)} tasks: {', '.join(samples) or 'none'}",
            "Name one with --task" if samples else "Run the evaluation again with --log_samples",
        )
    name = task or next(iter(samples))
    return runs[0], samples[name], name


def _logged(row: Mapping[str, Any], text: object, task: str, known: bool) -> dict[str, Any]:
    """The fields of one response of a log; the documents of a known task are found by number."""
    if known:
        return {"item": row.get("doc_id"), "response": text}
    # Logs name no pictures, in which documents of the same question and gold differ.
    named = {"picture": f"document {row.get('doc_id')}", "task": task}
    return {"question": row.get("input"), "gold": row.get("target"), "response": text, **named}


def _said(row: Mapping[str, Any]) -> list[object]:
    """A document's responses; lmms-eval drops "resps" where filters change nothing, as with ours."""
    return _flat(row.get("resps", row.get("filtered_resps")))


def _flat(found: object) -> list[object]:
    """Responses in lmms-eval's list format."""
    return [text for one in found for text in _flat(one)] if isinstance(found, list) else [found]
