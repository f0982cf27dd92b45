"""Logs of lmms-eval -> rollouts: all responses to each document, scored separately."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import lmms, pictures, reading, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.evaluation.responses import Given, judged_rows, judging_of, lines_of
from dcsft_harness.leaderboard.collect import find
from dcsft_harness.leaderboard.logs import is_run, samples_of_run
from dcsft_harness.sampling import ITEMS, ROLLOUTS, write_items


def rollouts_of_logs(
    place: Path,
    output: Path,
    task: str | None = None,
    scorer: str | None = None,
    box_space: str | None = None,
) -> None:
    """Writes rollouts from a run of `lmms-eval -n G --log_samples`; scores each response separately.

    lmms-eval logs all G responses of a document with `--reasoning_tags none`, or if the task keeps them, but
    only the score of the first one. `place` is the folder of one run, or FOLDER/RUN. With a task, the output
    also holds the items and their images. `scorer` scores the responses against the logged gold; None uses
    the task itself.

    Raises:
        HarnessError: there is not exactly one run or task; a document has a single response, or another
            number than other documents; the log does not match this task's documents; a response cannot be
            scored.
    """
    file, samples, name = _one_log(place, task)
    inputs = {"results": file, "samples": samples}
    config = {"task": name, "scorer": scorer, "box_space": box_space}
    if manifest.is_current(output, manifest.key_of("rollouts", config, inputs)):
        return
    rows = [row for _, row in lines_of(samples)]
    texts = [_flat(row.get("resps")) for row in rows]
    counts = Counter(map(len, texts))
    if len(counts) != 1 or next(iter(counts)) < 2:
        said = ", ".join(f"{number} documents with {count}" for count, number in sorted(counts.items()))
        # lmms-eval removes reasoning from the first response, and then logs only that one.
        drawn_more = _repeats(file, name) > 1 and set(counts) == {1}
        raise HarnessError(
            f"{samples} has {said} responses each",
            "Run lmms-eval again with --reasoning_tags none: otherwise it logs the first response alone"
            if drawn_more
            else "Labels need the same number, 2 or more: lmms-eval -n 8 --reasoning_tags none --log_samples",
        )
    judging = judging_of(samples, name if scorer is None else None, scorer, box_space, None)
    given = [
        Given(number, _logged(row, text, name, judging.task is not None), {})
        for number, (row, some) in enumerate(zip(rows, texts, strict=True), start=1)
        for text in some
    ]
    judged = judged_rows(samples, given, judging.score, None)
    size = next(iter(counts))
    drawn = [
        records.Rollout(
            item_id=one.score.item_id,
            sample_index=at % size,
            response=one.score.response,
            score=one.score.score,
            extracted=one.score.extracted,
            n_tokens=0,
            finish_reason="stop",
            seed=0,
            task=name,
            prompt=one.prompt,
            answer=one.score.answer,
        )
        for at, one in enumerate(judged)
    ]
    with manifest.writing("rollouts", output, config, inputs) as draft:
        records.write_table(draft.folder / ROLLOUTS, records.Rollout, drawn)
        if judging.task is not None:
            found = [lmms.describe(judging.task, row["doc_id"]) for row in rows]
            write_items(draft.folder / ITEMS, [item for item, _ in found], (images for _, images in found))
        draft.notes |= {"items": len(rows), "responses": len(drawn), "pictures": pictures.FORMAT}


def _repeats(file: Path, task: str) -> int:
    """A run's number of responses per document, from its results file."""
    try:
        found = reading.json_file(file)["configs"][task]["repeats"]
    except (OSError, ValueError, KeyError, TypeError):
        return 1
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
    return {"question": row.get("input"), "gold": row.get("target"), "response": text, "task": task}


def _flat(found: object) -> list[object]:
    """Responses in lmms-eval's list format."""
    return [text for one in found for text in _flat(one)] if isinstance(found, list) else [found]
