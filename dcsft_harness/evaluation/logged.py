"""Logs of lmms-eval -> rollouts: all responses to each document, scored separately."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcsft_harness import lmms, pictures, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError, cut, unknown_name
from dcsft_harness.evaluation.responses import Given, Judging, Scored, judged_rows, judging_of
from dcsft_harness.leaderboard.collect import find
from dcsft_harness.leaderboard.logs import Choices, Samples, gold_of, is_run, load_run, samples_of_run
from dcsft_harness.lmms.tasks import defined_in
from dcsft_harness.sampling import ITEMS, ROLLOUTS, write_items
from dcsft_harness.scoring import get_scorer


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
    if manifest.is_current(output, manifest.key_of("rollouts", config, inputs)) and _scored_as_now(output):
        return
    rows = _read(file, samples, name)
    judging = judging_of(samples, name if scorer is None else None, scorer, box_space, None)
    if judging.task is not None:
        _refuse_other_documents(samples, rows, judging.task)
    size = len(rows[0]["responses"])
    given = (
        Given(number, _logged(row, text, name, judging.task is not None), {})
        for number, row in enumerate(rows, start=1)
        for text in row["responses"]
    )
    judged = judged_rows(samples, given, lambda one: (one, judging.score(one)), len(rows) * size, progress)
    scorers: dict[str, int] = {}

    def drawn() -> Iterator[records.Rollout]:
        for at, one in enumerate(_as_logged(rows, judged, judging)):
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
            asked = [judging.items[row["doc_id"]] for row in rows]
            write_items(draft.folder / ITEMS, asked, lmms.stored_images(judging.task, asked))
        draft.notes |= {"items": len(rows), "responses": count, "pictures": pictures.FORMAT}
        draft.notes["scorers"] = scorers


def _scored_as_now(rollouts: Path) -> bool:
    """Whether the scorers of rollouts still have the versions that scored them."""
    try:
        used = manifest.read(rollouts).notes.get("scorers") or {}
        return all(get_scorer(name).version == version for name, version in used.items())
    except HarnessError:  # one can no longer be imported
        return False


def holds_logs(place: Path) -> bool:
    """Whether a path is a run of lmms-eval, or a folder that contains runs."""
    return bool(_runs(place))


def _runs(place: Path) -> list[Path]:
    return [file for file in find(place) if is_run(file) and file.is_file()]


def _one_log(place: Path, task: str | None) -> tuple[Path, Path, str]:
    """The results file, the samples and the task of the only run at a path."""
    runs = _runs(place)
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


def _read(file: Path, samples: Path, task: str) -> list[dict[str, Any]]:
    """What is needed of each document's line, whose `responses` are all of them, of one number for all."""
    run = load_run(file)
    # Without the rest of each line, which holds the whole document.
    kept = ("doc_id", "input", "target", "gold", "scorer", "extracted")
    # lmms-eval drops "resps" where filters change nothing, as with ours.
    texts = ("resps", "filtered_resps")
    rows: list[dict[str, Any]] = [
        {key: line.get(key) for key in kept} | {"responses": _flat(line.get(texts[0], line.get(texts[1])))}
        for _, line in Samples(file, run, task, samples, Choices({}, {})).counted((*kept, *texts))
    ]
    counts = Counter(len(row["responses"]) for row in rows)
    if len(counts) != 1 or next(iter(counts)) < 2:
        said = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        # lmms-eval removes reasoning from the first response, and then logs only that one.
        repeats = ((run.get("configs") or {}).get(task) or {}).get("repeats")
        drawn_more = isinstance(repeats, int) and repeats > 1 and set(counts) == {1}
        raise HarnessError(
            f"{samples} has documents with these numbers of responses: {said}",
            "Run lmms-eval again with --reasoning_tags none: otherwise it logs only the first response"
            if drawn_more
            else "Labels need equal numbers, 2 or more: lmms-eval -n 8 --reasoning_tags none --log_samples",
        )
    return rows


def _flat(found: object) -> list[object]:
    """Responses in lmms-eval's list format."""
    return [text for one in found for text in _flat(one)] if isinstance(found, list) else [found]


def _refuse_other_documents(file: Path, rows: Sequence[Mapping[str, Any]], task: lmms.Task) -> None:
    """Refuses a log whose documents have other golds than the task's of the same numbers."""
    docs = task.eval_docs_no_media
    for row in rows:
        number, target = row["doc_id"], row["target"]
        own = str(task.doc_to_target(docs[number])) if number < len(docs) else None
        if None not in (own, target) and own != str(target):
            raise HarnessError(
                f"{file}: document {number} has the gold {cut(repr(target), 60)}, but that of the task "
                f"{task.config.task} is {cut(repr(own), 60)}",
                "Label it with the data that was evaluated, or by the log's golds with --scorer",
            )


def _as_logged(
    rows: Sequence[Mapping[str, Any]], judged: Iterable[tuple[Given, Scored]], judging: Judging
) -> Iterator[Scored]:
    """The verdicts, and new ones for responses that ran out of tokens.

    A log does not say which did; but there the scorer of the same version found no answer where the whole
    text has one.
    """
    size = len(rows[0]["responses"])
    for at, (one, made) in enumerate(judged):
        row = rows[at // size]
        logged = row["extracted"]
        same = row["scorer"] == dict(made.scorers) and made.score.extracted is not None
        if same and isinstance(logged, list) and len(logged) == size and logged[at % size] is None:
            yield judging.score(replace(one, row={"truncated": True}))
        else:
            yield made


def _logged(row: Mapping[str, Any], text: object, task: str, known: bool) -> dict[str, Any]:
    """The fields of one response of a log; the documents of a known task are found by number."""
    if known:
        return {"item": row["doc_id"], "response": text}
    # Logs name no pictures, in which documents of the same question and gold differ.
    named = {"picture": f"document {row['doc_id']}", "task": task}
    return {"question": row["input"], "gold": gold_of(row), "response": text, **named}
