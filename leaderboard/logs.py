"""Folders of plain `lmms-eval --log_samples` -> Results, checked against their own results file.

Limitations of upstream's logs, and their consequences:

- `doc_hash` is the hash of "null" for every document, so it identifies nothing. Task, document number, prompt
  and gold identify an item. Against a `dcsft evaluate` row of the same task, documents are matched by number
  if golds and prompts agree one by one; then the item's content id applies. Two logs are matched so where one
  of them records no prompts or hashes.
- Settings that a log does not record are unknown: they are named in a remark and refuse nothing.
- A failed run exits with 0 and leaves a log behind, so documents are counted.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcsft_harness import reading, records
from dcsft_harness.artifacts import usage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.errors import HarnessError, cut, json_text, placeless, unknown_name
from dcsft_harness.leaderboard.board import (
    ARGUMENT,
    CLUSTERS,
    DISTRIBUTIONS,
    ITEMS,
    LIMIT,
    METRIC,
    NO_VERSION,
    PIXELS,
    PROMPTS,
    SHOTS,
    SIDE,
    SYSTEM,
    SYSTEM_TEXT,
    TEMPLATE,
    VERSION,
    Cell,
    Documents,
    Provenance,
    Result,
    Unusable,
    group_of,
    of_prompts,
    of_reasoning,
)
from dcsft_harness.leaderboard.sampled import Draws, draws_of_lists
from dcsft_harness.records import CHECKPOINT, FROM_CHECKPOINT, PROMPTED, SCORER, SETTING

NULL_HASH = "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b"
STANDING = frozenset(
    ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input")
)
"""Keys of a sample's line that are not metrics."""
LIMITS = ("max_pixels", "min_pixels")
_COUNTS = ("original", "effective")
"""Keys of the number of a task's documents, and of those that were used."""
NO_SCORE = "without a score from 0 to 1"
"""The kind of reason of a task whose metrics are none."""
AGAIN = "Run the evaluation again with --log_samples, or leave this folder out"


@dataclass(frozen=True)
class Choices:
    """User settings for logs that do not record them."""

    metrics: Mapping[str, str]  # task -> the metric to use as its score
    distributions: Mapping[str, str]  # task -> "id" or "ood"
    at_k: int | None = None  # for K responses per item, the k of the board's columns; None uses K


def pairs(model_args: object) -> dict[str, str]:
    """Model arguments by name, from a mapping or from `name=value,...`."""
    if isinstance(model_args, dict):
        return {
            str(key): json_text(value) if isinstance(value, dict | list) else str(value)
            for key, value in model_args.items()
        }
    return {key: value for key, value in reading.named(str(model_args or "")).items() if key}


def arguments(run: Mapping[str, Any]) -> dict[str, str]:
    """The model arguments of a run, by name."""
    return pairs((run.get("config") or {}).get("model_args"))


class Samples:
    """One task's samples."""

    def __init__(self, file: Path, run: dict[str, Any], task: str, samples: Path, choices: Choices) -> None:
        """Stores the results file, its content, the task and its samples' file."""
        self.file, self.run, self.task, self.path, self.choices = file, run, task, samples, choices
        self.config = (run.get("configs") or {}).get(task) or {}
        self.metadata = reading.merged(self.config.get("metadata"))
        self.settings, self.given = run.get("config") or {}, arguments(run)
        self.score_key = str(self.config.get("score_key") or "score")
        self.cluster_key = str(self.config.get("cluster_key") or "cluster")

    def measured(self) -> Cell:
        """Reads and checks the samples.

        Raises:
            HarnessError: a line is damaged, a document is missing or occurs twice, no metric can be
                identified as the score, or a score is not a fraction.
        """
        lines = self.counted()
        metrics = self._metrics(lines)
        values = [
            self._score(number, line, name) for (number, line), name in zip(lines, metrics, strict=True)
        ]
        # As `dcsft evaluate` records it: the first document's.
        metric = min(zip(lines, metrics, strict=True), key=lambda one: one[0][1]["doc_id"])[1]
        documents = _documents(self.task, [line for _, line in lines])
        order = sorted(range(len(lines)), key=documents.ids.__getitem__)
        scores = np.array([math.nan if value is None else value for value in values])[order]
        kept, metrics = [lines[at][1] for at in order], [metrics[at] for at in order]
        documents = documents.reordered(order)
        answered = [line.get("answered") for line in kept]
        knows = all(isinstance(value, int | float) for value in answered)
        draws = self._draws(kept)
        if draws is not None and not np.allclose(scores, draws.scores.mean(axis=1), rtol=0, atol=1e-6):
            if self.task not in self.choices.metrics:
                raise HarnessError(f"{self.path}: {metric} is not the mean of the scores beside it", AGAIN)
            draws = None  # the responses' own scores are another metric's
        return Cell(
            task=self.task,
            distribution=self._distribution(),
            family=self.metadata.get("family"),
            conditions={METRIC: metric, **self._conditions(documents, kept)},
            item_ids=documents.ids,
            clusters=tuple(map(self._cluster, kept, metrics)),
            scores=scores,
            unanswered=sum(
                value == 0 and not math.isnan(score) for value, score in zip(answered, scores, strict=True)
            )
            if knows
            else None,
            documents=lambda: documents,
            unknown=tuple(self._unknown(kept, metrics)),
            remarks=tuple(self._remarks(scores, metrics)),
            draws=draws,
            responses=None if draws is None else self.responses,
        )

    def _draws(self, lines: Sequence[Mapping[str, Any]]) -> Draws | None:
        """The K responses per document, as the suite's tasks log them; None if missing."""
        found = [(line.get("scores"), line.get("votes")) for line in lines]
        if not all(isinstance(one, list) for pair in found for one in pair):
            return None
        sizes = {len(one) for pair in found for one in pair if isinstance(one, list)}
        values = [[_real(score) for score in scores or []] for scores, _ in found]
        if len(sizes) != 1 or not all(one is not None and 0 <= one <= 1 for some in values for one in some):
            raise HarnessError(
                f"{self.path}: lines have different numbers of scores and votes, or scores outside 0 to 1",
                AGAIN,
            )
        return draws_of_lists(
            [[one for one in some if one is not None] for some in values],
            [[None if vote is None else str(vote) for vote in some or []] for _, some in found],
        )

    def responses(self) -> pa.Table:
        """The K responses to each document as a table of `records.Response`, read again."""
        lines = [line for _, line in self._lines()]
        rows = []
        for item, line in zip(_documents(self.task, lines).ids, lines, strict=True):
            texts, extracted = _all_responses(line), line.get("extracted")
            votes = [None if vote is None else str(vote) for vote in line["votes"]]
            for index, (score, vote) in enumerate(zip(line["scores"], votes, strict=True)):
                said = extracted[index] if isinstance(extracted, list) and index < len(extracted) else vote
                rows.append(
                    {
                        "task": self.task,
                        "item_id": item,
                        "sample_index": index,
                        "score": float(score),
                        "extracted": None if said is None else records.as_text(said),
                        "vote": vote,
                        "response": texts[index] if index < len(texts) else "",
                    }
                )
        return pa.Table.from_pylist(rows, schema=records.schema(records.Response))

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = reading.from_json(text.decode("utf-8"), halves=True)
                    if b"\\ud" in text.lower():
                        line = _encodable(line)
                    if not isinstance(line, dict) or not isinstance(line.get("doc_id"), int):
                        raise ValueError("no doc_id")
                    if _count(line["doc_id"]) is None:
                        raise ValueError(f"doc_id is {str(line['doc_id'])[:20]}")
                except ValueError as error:
                    raise HarnessError(
                        f"{self.path}, line {number} is truncated or damaged ({error})", AGAIN
                    ) from error
                yield number, line

    def counted(self, keep: Sequence[str] = ()) -> list[tuple[int, dict[str, Any]]]:
        """All lines with their numbers; an error if one is damaged, a document is missing or occurs twice.

        `keep` names what is kept of each line, everything if it is empty.
        """
        filters = self.config.get("filter_list")
        if isinstance(filters, list) and len(filters) > 1:
            raise Unusable(
                f"{self.path}: its task has {len(filters)} lists of filters, and lmms-eval logs each "
                "document once for each of them, without its name",
                "Evaluate it with one list of filters",
                "with several lists of filters",
            )
        lines = [
            (number, {key: line[key] for key in keep if key in line} if keep else line)
            for number, line in usage.counted(self._lines(), lambda: None)
        ]
        found = (self.run.get("n-samples") or {}).get(self.task)
        counted = found if isinstance(found, dict) else {}
        total, wanted = (counted.get(key) for key in _COUNTS)
        offset = self.settings.get("offset")
        if isinstance(wanted, int) and isinstance(total, int) and isinstance(offset, int):
            wanted = min(wanted, max(0, total - offset))  # upstream counts without --offset
        if not lines or (isinstance(wanted, int) and wanted != len(lines)):
            raise HarnessError(
                f"{self.path} is truncated: it has {len(lines)} of {wanted or 'the'} documents that "
                f"{self.file.name} counts",
                AGAIN,
            )
        seen: dict[int, int] = {}
        for number, line in lines:
            if (earlier := seen.setdefault(line["doc_id"], number)) != number:
                raise HarnessError(
                    f"{self.path}: lines {earlier} and {number} are both of document {line['doc_id']}", AGAIN
                )
        return lines

    def _metrics(self, lines: Sequence[tuple[int, dict[str, Any]]]) -> list[str]:
        """Each line's metric that is its score: documents of one task may have different ones, as MME's."""
        names = list(dict.fromkeys(key for _, line in lines for key in line if key not in STANDING))
        numeric = [
            key
            for key in names
            if any(_real(self._inner(key, line.get(key))) is not None for _, line in lines)
        ]
        chosen = self.choices.metrics.get(self.task)
        if chosen is not None:
            if chosen not in numeric:
                raise unknown_name(f"metric of {self.task} in {self.path}", chosen, numeric)
            return [self._upward(chosen)] * len(lines)
        inside = [key for key in numeric if any(isinstance(line.get(key), dict) for _, line in lines)]
        found: dict[tuple[str, ...], str] = {}
        of_lines = [tuple(key for key in numeric if key in line) for _, line in lines]
        for own in dict.fromkeys(of_lines):
            if own or not numeric:
                found[own] = self._chosen(own, inside, names)
        # A line without any has no score.
        return [found.get(own) or next(iter(found.values())) for own in of_lines]

    def _chosen(self, numeric: Sequence[str], inside: Sequence[str], names: Sequence[str]) -> str:
        """The score among metrics that are numbers, of which those `inside` are tables; `names` are all."""
        # lmms-eval fills in "score" where none is set.
        for name in ("acc", "score") if self.score_key == "score" else (self.score_key, "acc"):
            if name in numeric:
                return self._upward(name)
        tables = [name for name in numeric if name in inside]
        if 1 in (len(numeric), len(tables)):
            return self._upward([*tables, *numeric][0])
        remedy = f"Name it with --metric {self.task}=NAME" if numeric else ""
        if "bypass" in names:
            remedy = (
                "It was run with --predict_only: score its responses by `dcsft evaluate --responses "
                f"{self.path.name} --task {self.task}`"
            )
        raise Unusable(
            f"{self.path}: none of its metrics ({', '.join(names) or 'none'}) can be recognized as the score",
            remedy,
            NO_SCORE,
        )

    def _upward(self, metric: str) -> str:
        """The metric, unless it is an error rate: its highest value would rank first."""
        stated = (self.run.get("higher_is_better") or {}).get(self.task)
        if isinstance(stated, dict) and stated.get(metric) is False:
            raise Unusable(
                f"{self.path}: lower values of {metric} are better according to {self.file.name}, "
                "but a board ranks the highest first",
                f"Name another metric with --metric {self.task}=NAME",
                NO_SCORE,
            )
        return metric

    def _inner(self, metric: str, value: object) -> object:
        """The score in a metric's value, which may be a table; in that of a named metric also as "score"."""
        if not isinstance(value, dict):
            return value
        named = metric in (self.score_key, self.choices.metrics.get(self.task))
        return value.get(self.score_key, value.get("score") if named else None)

    def _score(self, number: int, line: Mapping[str, Any], metric: str) -> float | None:
        value = line.get(metric)
        if self._inner(metric, value) is None:
            return None
        found = _real(self._inner(metric, value))
        if found is None:
            raise HarnessError(f"{self.path}, line {number}: {metric} is {value!r}, not a number", AGAIN)
        if math.isnan(found) or not 0 <= found <= 1:
            raise Unusable(
                f"{self.path}, line {number}: {metric} is {found}",
                "Scores are fractions from 0 to 1 (not percent), and null where a response could not be "
                f"scored; another metric can be named with --metric {self.task}=NAME",
                NO_SCORE,
            )
        return found

    def _cluster(self, line: Mapping[str, Any], metric: str) -> str | None:
        value = line.get(metric)
        cluster = value.get(self.cluster_key) if isinstance(value, dict) else None
        return None if cluster is None else str(cluster)

    def _distribution(self) -> str | None:
        chosen = self.choices.distributions.get(self.task, self.metadata.get("distribution"))
        return chosen if chosen in DISTRIBUTIONS else None

    def _unknown(self, lines: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Iterator[str]:
        """Conditions that the log does not record, by name or prefix."""
        ours = str(self.settings.get("model")).startswith("dcsft_")
        unrecorded = {
            **{f"{PIXELS} {name}": not _whole(self.given.get(name)) for name in LIMITS},
            CHECKPOINT: not ours,
            SETTING: not ours or self._applied(lines) is None,
            ARGUMENT: not isinstance(self.config.get("generation_kwargs"), dict),
            VERSION: (self.run.get("versions") or {}).get(self.task) in NO_VERSION,
            LIMIT: "limit" not in self.settings,
            SIDE: self._distribution() is None,
            SHOTS: self.task not in (self.run.get("n-shot") or {}),
            SYSTEM: "system_instruction_sha" not in self.run and SYSTEM not in self._prompted(lines),
            TEMPLATE: ours
            and "chat_template_kwargs" not in self.given
            and self._recorded(lines, PROMPTED, "the settings of prompts") is None,
            PROMPTS: not any("input" in line for line in lines),
            CLUSTERS: not any(
                isinstance(line.get(metric), dict) and self.cluster_key in line[metric]
                for line, metric in zip(lines, metrics, strict=True)
            ),
        }
        return (name for name, is_unknown in unrecorded.items() if is_unknown)

    def _applied(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, object] | None:
        """The applied settings of the checkpoint's generation config; None if a line does not record them."""
        if self.given.get("generation_config") != "checkpoint":
            return {}
        return self._recorded(lines, FROM_CHECKPOINT, "the checkpoint's generation settings")

    def _recorded(self, lines: Sequence[Mapping[str, Any]], key: str, what: str) -> dict[str, object] | None:
        """A record of our models in each line; None if a line lacks it.

        Our models record settings with the token counts, which lmms-eval omits for responses from its cache.
        Lines that differ are an error.
        """
        first: dict[str, object] | None = None
        for line in lines:
            counts = line.get("token_counts")
            found = counts[0] if isinstance(counts, list) and counts else None
            found = found.get(key) if isinstance(found, dict) else None
            if not isinstance(found, dict):
                return None
            first = found if first is None else first
            if found != first:
                raise HarnessError(
                    f"{self.path}: {what} are {cut(first)} in one line and {cut(found)} in another", AGAIN
                )
        return first

    def _prompted(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, object]:
        """The conditions of what the model adds to each prompt."""
        noted = self._recorded(lines, PROMPTED, "the settings of prompts")
        found = of_prompts(str(self.settings.get("model")), self.given, noted)
        if (digest := self.run.get("system_instruction_sha")) and SYSTEM not in found:
            found |= {SYSTEM: placeless(self.run.get("system_instruction") or digest), SYSTEM_TEXT: digest}
        return found

    def _reasoning(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, object]:
        """The condition of the reasoning that lmms-eval removed: by the task, or else by its own command."""
        try:
            tags = records.reasoning_tags(
                self.config.get(TAGS),
                self.config.get("auto_strip_thinking"),
                _command(self.run).get(TAGS),
            )
        except ValueError as error:
            raise HarnessError(f"{self.file}: {self.task}: {error}", AGAIN) from error
        before = ("resps", "filtered_resps") if tags else ("filtered_resps", "resps")
        texts = (text for line in lines for text in _texts(next((line[k] for k in before if k in line), [])))
        return of_reasoning(records.reasoning(tags, texts))

    def _conditions(self, documents: Documents, lines: Sequence[Mapping[str, Any]]) -> dict[str, object]:
        scorers: dict[str, object] = {}
        for line in lines:
            scorers |= line["scorer"] if isinstance(line.get("scorer"), dict) else {}
        applied = self._applied(lines)
        generation = self.config.get("generation_kwargs")
        shots = (self.run.get("n-shot") or {}).get(self.task)
        return {
            VERSION: (self.run.get("versions") or {}).get(self.task),
            **{f"{SCORER} {name}": version for name, version in sorted(scorers.items())},
            SIDE: self._distribution(),
            LIMIT: self._limit(),
            **{f"{ARGUMENT} {k}": v for k, v in sorted((generation or {}).items())},
            **{f"{PIXELS} {name}": int(said) for name in LIMITS if _whole(said := self.given.get(name))},
            **{f"{SETTING} {name}": value for name, value in sorted((applied or {}).items())},
            **({} if applied == {} else {CHECKPOINT: "applied"}),
            **({SHOTS: shots} if shots else {}),
            **({"first document": offset} if (offset := self.settings.get("offset")) else {}),
            **self._prompted(lines),
            **self._reasoning(lines),
            PROMPTS: json_sha256(list(documents.prompts or ())),
            ITEMS: json_sha256(list(documents.ids)),
        }

    def _limit(self) -> object:
        """The limit of documents, None for all: a share of them as their number."""
        limit = self.settings.get("limit")
        if not isinstance(limit, int | float) or limit == -1:  # which is all documents, too
            return None if limit == -1 else limit
        if 0 < limit < 1:
            counted = (self.run.get("n-samples") or {}).get(self.task)
            total, used = (counted.get(key) if isinstance(counted, dict) else None for key in _COUNTS)
            return limit if None in (total, used) else used if used != total else None
        return int(limit) if isinstance(limit, float) and limit.is_integer() else limit

    def _remarks(self, scores: NDArray[np.float64], metrics: Sequence[str]) -> Iterator[str]:
        """Figures in the results file that do not follow from the samples."""
        for key, quoted in self.run["results"][self.task].items():
            figure = None if isinstance(quoted, bool) else _real(quoted)
            metric = key.split(",")[0]
            if metric not in metrics or figure is None:
                continue
            own = scores[[name == metric for name in metrics]]
            scored = own[~np.isnan(own)]
            found = float(scored.mean()) if len(scored) else math.nan
            if any(math.isclose(figure, scale * found, abs_tol=1e-6 * scale) for scale in (1, 100)):
                continue
            yield (
                f"{self.file.name} of {self.file.parent.name} quotes {metric} {figure:.4f} for {self.task}; "
                f"its samples, which this board uses, give {found:.4f}"
            )

    def table(self) -> pa.Table:
        """The samples as a table of `records.Score`, read again."""
        lines = [line for _, line in self._lines()]
        metrics = self._metrics(list(enumerate(lines, start=1)))
        documents = _documents(self.task, lines)
        rows = [
            {
                "task": self.task,
                "item_id": item,
                "doc_id": line["doc_id"],
                "score": self._score(number, line, metric),
                "extracted": None if found is None else records.as_text(found),
                "response": response,
                "answer": answer,
                "n_tokens": tokens,
                "cluster": self._cluster(line, metric),
            }
            for number, (item, line, answer, metric) in enumerate(
                zip(documents.ids, lines, documents.answers, metrics, strict=True), start=1
            )
            for response, found, tokens in [_shown(line)]
        ]
        return pa.Table.from_pylist(rows, schema=records.schema(records.Score))


def _real(value: object) -> float | None:
    """A number as a float, infinite if it is too large for one; None for anything else."""
    try:
        return float(value) if isinstance(value, bool | int | float) else None
    except OverflowError:
        return math.inf


def _encodable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Replaces lone surrogates with question marks: a model may have written half a character."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(one) for key, one in value.items()}
    return value


def _whole(text: str | None) -> TypeGuard[str]:
    return text is not None and text.strip().isdigit()


def gold_of(line: Mapping[str, Any]) -> object:
    """A line's gold: the suite's tasks log it, as their target is what training teaches; else the target."""
    ours = isinstance(line.get("scorer"), dict) and line.get("gold") is not None
    return line["gold"] if ours else line.get("target")


def _documents(task: str, lines: Sequence[Mapping[str, Any]]) -> Documents:
    prompts = [records.as_text(line.get("input", "")) for line in lines]
    targets = [records.as_text(line.get("target")) for line in lines]
    hashes = ["" if (found := line.get("doc_hash")) == NULL_HASH else str(found or "") for line in lines]
    numbers = [line["doc_id"] for line in lines]
    ids = [
        records.item_id(task, prompt, answer, [f"document {number} {digest}".encode()])
        for prompt, answer, number, digest in zip(prompts, targets, numbers, hashes, strict=True)
    ]
    known = tuple(prompts) if any("input" in line for line in lines) else None
    golds = tuple(records.as_text(gold_of(line)) for line in lines)
    return Documents(tuple(ids), tuple(numbers), golds, known, tuple(hashes))


def _shown(line: Mapping[str, Any]) -> tuple[str, object, int | None]:
    """A line's response, the answer found in it, and its tokens.

    Of K responses, the first with the most votes; a log has the tokens of the first one alone.
    """
    votes, found = line.get("votes"), line.get("extracted")
    if not isinstance(votes, list) or not isinstance(found, list) or not len(votes) == len(found) > 1:
        return _response(line), found, _tokens(line)
    cast = Counter(json_sha256(vote) for vote in votes if vote is not None)
    best = cast.most_common(1)[0][0] if cast else None
    at = next((at for at, vote in enumerate(votes) if vote is not None and json_sha256(vote) == best), 0)
    texts = _all_responses(line)
    return texts[at] if at < len(texts) else "", found[at], None


def _response(line: Mapping[str, Any]) -> str:
    found = line.get("filtered_resps", line.get("resps"))
    while isinstance(found, list) and found:
        found = found[0]
    return "" if found is None or found == [] else records.as_text(found)


def _all_responses(line: Mapping[str, Any]) -> list[str]:
    found = line.get("filtered_resps", line.get("resps"))
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return [records.as_text(one) for one in found] if isinstance(found, list) else []


def _texts(found: object) -> list[str]:
    """The texts of responses in lmms-eval's lists of lists."""
    if isinstance(found, list):
        return [text for one in found for text in _texts(one)]
    return [found] if isinstance(found, str) else []


def _tokens(line: Mapping[str, Any]) -> int | None:
    counts = line.get("token_counts")
    while isinstance(counts, list) and counts:
        counts = counts[0]
    return _count(counts.get("output_tokens")) if isinstance(counts, dict) else None


def _count(value: object) -> int | None:
    """A whole number that fits a table; None for anything else."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and 0 <= value < 1 << 53 else None  # type: ignore[operator, call-overload]


RESULTS, SAMPLES = "_results.json", "_samples_"


def is_run(file: Path) -> bool:
    """Whether a file has the name of an lmms-eval results file of one run."""
    return file.name.endswith(RESULTS)


def lost_samples(files: Sequence[Path]) -> list[Path]:
    """The first samples file of each run in one folder that has no results file."""
    runs = {file.name.removesuffix(RESULTS) for file in files if is_run(file)}
    samples = [file for file in files if SAMPLES in file.name and file.suffix == ".jsonl"]
    first = {file.name.partition(SAMPLES)[0]: file for file in sorted(samples, reverse=True)}
    return sorted(file for run, file in first.items() if run not in runs)


def is_other_layout(file: Path) -> bool:
    """Whether a file has results as lm-eval and lmms-eval up to 0.2 wrote them."""
    if not re.fullmatch(r"results(_.+)?\.json", file.name) or is_run(file):
        return False
    try:
        found = reading.json_file(file)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and isinstance(found.get("results"), dict) and "versions" in found


TAGS = "reasoning_tags"
"""The setting of a task and of lmms-eval's command that names the reasoning to remove."""


def _command(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of lmms-eval's own command; empty before 0.7, which removed no reasoning."""
    found = (run.get("config") or {}).get("resolved_cli_args")
    return found if isinstance(found, dict) else {}


_SETTINGS = ("model", "model_args", "batch_size", "limit", "offset", "gen_kwargs", "random_seed")


def read_run(file: Path, choices: Choices) -> Result:
    """Reads one run, by its results file in the folder of its samples; named by its model and adapter.

    Raises:
        HarnessError: a file is missing, truncated or inconsistent; see `collect.read_result`.
    """
    run = load_run(file)
    name = model_label(run) or file.parent.name
    samples = samples_of_run(file)
    for task in samples:
        if task not in run["results"]:
            raise HarnessError(f"{samples[task]}: {file.name} has no task {task!r}", AGAIN)
    logs = []
    for task in tasks_of_run(run, samples):
        if task not in samples:
            wanted = f"{file.name.removesuffix(RESULTS)}{SAMPLES}{task}.jsonl"
            raise Unusable(
                f"{file} has {task} without samples: {wanted} is not beside it", AGAIN, "without samples"
            )
        logs.append(Samples(file, run, task, samples[task], choices))
    if not logs:
        raise HarnessError(f"{file} lists no task", AGAIN)
    tasks, refused = {}, {}
    for log in logs:
        try:
            tasks[log.task] = log.measured()
        except Unusable as error:
            refused[log.task] = error
    if not tasks:
        raise next(iter(refused.values()))
    # Without the tasks themselves: the board would keep every log's prompts and golds in memory.
    kept = frozenset(tasks)
    # The other tasks can be compared.
    why = {task: str(one).removeprefix(str(samples[task])).rstrip(".") for task, one in refused.items()}
    model: dict[str, object] = {"the engine": str((run.get("config") or {}).get("model")), **_weights(run)}
    tags = _command(run).get(TAGS)
    provenance = Provenance(
        file.parent,
        "lmms-eval log",
        {
            "file": file.name,
            **placeless({k: v for k, v in (run.get("config") or {}).items() if k in _SETTINGS}),
            **({} if tags in (None, json_text(records.THOUGHTS)) else {TAGS: str(tags)}),
        },
        placeless(model),
        None,
        {"lmms-eval": str(run.get("lmms_eval_version") or run.get("git_hash") or "")},
        str(run.get("date") or ""),
    )
    return Result(
        name,
        file.parent,
        model,
        tasks,
        provenance,
        lambda: (log.table() for log in logs if log.task in kept),
        group_of(name),
        files=tuple(sorted([file, *samples.values()])),
        left_out=why,
    )


_GENERIC = re.compile(
    r"(?:(?:checkpoint|global_step|step|epoch|iter)[-_]?\d+|adapter|merged|final|model|hf|lora)", re.I
)
"""Names of folders that identify a model only together with their parent folder."""


def model_label(run: Mapping[str, Any]) -> str:
    """A row's name from model and adapter: "Qwen2.5-VL-3B-Instruct + sft/checkpoint-90"; "" if unknown."""
    parts = _weights(run).values()
    return " + ".join(map(_last, parts)) or str(run.get("model_name_sanitized") or "")


_NAMED_BY = {
    "the model": ("pretrained", "model_version", "model"),
    "the adapter": ("adapter", "peft", "lora_path"),
}
"""Role -> the arguments of lmms-eval's models that name its weights, in order of preference."""


def _weights(run: Mapping[str, Any]) -> dict[str, str]:
    """Role -> the name of its weights, as given to the model."""
    given = arguments(run)
    found = {role: next(filter(None, map(given.get, names)), None) for role, names in _NAMED_BY.items()}
    return {role: name for role, name in found.items() if name}


def _last(place: str) -> str:
    """The last name of a path or hub name; with its parent's name if it does not identify a model."""
    parts = [part for part in re.split(r"[/\\]+", place) if part not in ("", ".", "~")]
    if len(parts) > 1 and _GENERIC.fullmatch(parts[-1]):
        return "/".join(parts[-2:])
    return parts[-1] if parts else place


def load_run(file: Path) -> dict[str, Any]:
    """The content of a results file; an error if it is damaged or holds none."""
    try:
        run = reading.json_file(file)
    except (OSError, ValueError) as error:
        raise HarnessError(f"{file} is truncated or damaged: {error}", AGAIN) from error
    if not isinstance(run, dict) or not isinstance(run.get("results"), dict):
        raise HarnessError(f"{file} holds no results of lmms-eval", AGAIN)
    for name, table in _tables(run):
        if not isinstance(table, dict):
            raise HarnessError(f"{file}: {name} is {str(table)[:80]!r}, not a table", AGAIN)
    return run


def _tables(run: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The tables of a results file, if present."""
    for task, entry in run["results"].items():
        yield f"the result of {task}", entry
    for name in ("configs", "config", "versions", "n-samples", "n-shot", "higher_is_better"):
        if run.get(name) is not None:
            yield name, run[name]
    configs = run.get("configs")
    for task, config in (configs if isinstance(configs, dict) else {}).items():
        yield f"the configuration of {task}", config
        if isinstance(config, dict) and config.get("generation_kwargs") is not None:
            yield f"generation_kwargs of {task}", config["generation_kwargs"]


def samples_of_run(file: Path) -> dict[str, Path]:
    """Task -> its samples' file, for one results file."""
    prefix = file.name.removesuffix(RESULTS) + SAMPLES
    return {
        path.name.removeprefix(prefix).removesuffix(".jsonl"): path
        for path in sorted(file.parent.glob("*.jsonl"))
        if path.name.startswith(prefix)
    }


def tasks_of_run(run: Mapping[str, Any], samples: Collection[str]) -> list[str]:
    """The tasks of a run that should have samples: not the groups of tasks among its results."""
    configs, counts = run.get("configs") or {}, run.get("n-samples") or {}
    return [task for task in run["results"] if task in configs or task in counts or task in samples]
