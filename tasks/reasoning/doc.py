"""Functions of the reasoning tasks' YAML files: the conversation, and the score with its breakdown.

The instruction after the question belongs to the task (`lmms_eval_specific_kwargs`), not the data: the paper
does not print its instructions.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcsft_harness import reading
from dcsft_harness.data.benchmarks import reasoning
from dcsft_harness.data.benchmarks.reasoning import WEMATH_WHOLE
from dcsft_harness.scoring import Verdict
from dcsft_harness.tasks import visual
from dcsft_harness.tasks.verdicts import Doc, judge, part, process

PARTS: dict[str, Sequence[str]] = {
    "dcsft_mathverse": reasoning.MATHVERSE_PARTS,
    "dcsft_mathvision": reasoning.MATHVISION_PARTS,
    "dcsft_mathvista": reasoning.MATHVISTA_PARTS,
    "dcsft_mmk12": reasoning.MMK12_PARTS,
    "dcsft_mmmu": reasoning.MMMU_PARTS,
    "dcsft_wemath": reasoning.WEMATH_PARTS,
}
"""Source -> its breakdown parts, each with a metric `acc_PART`."""

KINDS = ("ik", "ig", "cm_strict", "cm_loose", "rm_strict", "rm_loose")
FOUR_DIMENSIONAL = tuple(f"wemath_{name}" for name in ("strict", "loose", *KINDS))
"""We-Math's own metrics, see below."""


def text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question between the task's `pre_prompt` and `post_prompt`; open rows have `open_post_prompt`."""
    given = lmms_eval_specific_kwargs or {}
    after = "open_post_prompt" if doc.get("question_type") == reasoning.MMMU_OPEN else "post_prompt"
    return f"{given.get('pre_prompt', '')}{doc['prompt']}{given.get(after, '')}"


def messages(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The user turn, each image where "<image 2>" first names it; later mentions stay text."""
    waiting = dict(zip(doc["numbers"], visual(doc), strict=True))
    asked = text(doc, lmms_eval_specific_kwargs)
    content: list[dict[str, Any]] = []
    written = ""
    for piece in re.split(r"(<image \d+>)", asked):
        mark = reasoning.MMMU_MARK.fullmatch(piece)
        picture = waiting.pop(int(mark[1]), None) if mark else None
        if picture is None:  # text, or an image that was shown before
            written += piece
            continue
        content += [*_written(written), {"type": "image", "url": picture}]
        written = ""
    return [{"role": "user", "content": content + _written(written)}]


def _written(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text.strip()}] if text.strip() else []


def process_choice(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores letters with `choice`; beside acc, `acc_PART` for each part of the benchmark."""
    return _with_parts(process(judge_choice, doc, results, ["choice"]), doc)


def process_inline(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same, and `ceiling`: whether the row can be right at all, which a row with two golds cannot."""
    return {
        **process_choice(doc, results),
        "ceiling": float(isinstance(reading.from_json(doc["answer"]), str)),
    }


def process_mmmu(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores letters with `choice`, and open rows with `open_answer`."""
    if doc["question_type"] == reasoning.MMMU_OPEN:
        return _with_parts(process("open_answer", doc, results), doc)
    return process_choice(doc, results)


def process_mmmu_mc(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same for the multiple-choice rows only, without the two parts that separate them from open rows."""
    metrics = process_mmmu(doc, results)
    return {name: value for name, value in metrics.items() if name not in ("acc_multiple_choice", "acc_open")}


def process_wemath(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same as `process_choice`, and the row's role in its problem for the four-dimensional scores."""
    metrics = process_choice(doc, results)
    place = {
        "problem": doc["problem"],
        "steps": doc["steps"],
        "step": doc["step"],
        "right": metrics["acc"]["score"] >= 0.5,
    }
    return {**metrics, **dict.fromkeys(FOUR_DIMENSIONAL, place)}


def judge_choice(doc: Doc, response: str) -> Verdict:
    """One response's verdict; if the gold is several letters, an answer is extracted but is not right."""
    gold = reading.from_json(doc["answer"])
    if isinstance(gold, str):
        return judge("choice", doc, response)
    return Verdict(0.0, judge("choice", {**doc, "answer": json.dumps(gold[0])}, response).extracted)


def _with_parts(metrics: dict[str, Any], doc: Doc) -> dict[str, Any]:
    score = metrics["acc"]["score"]
    inside = set(doc["parts"])
    more = {f"acc_{name}": part(score, doc, name in inside) for name in PARTS[doc["source"]]}
    return {**metrics, **more}


# We-Math's four-dimensional scores (Qiao et al., ACL 2025, section 3.2; `evaluation/` of its repository).
#
# A problem is asked as a whole and step by step, and is one of four kinds:
#
#     IK  insufficient knowledge     a step is wrong, the whole is wrong
#     IG  inadequate generalization  every step is right, the whole is wrong
#     CM  complete mastery           every step is right, the whole is right    (loose: any step is right)
#     RM  rote memorization          a step is wrong, the whole is right        (loose: every step is wrong)
#
#     score = (N - IG / 2 - RM - IK) / N        rate of RM = RM / (CM + RM), of the others: share of N
#
# N counts the problems whose rows were all asked (525 in a full run; fewer under --limit). Values that would
# be computed from no problem are NaN.


Item = Mapping[str, Any]
"""One row's place and outcome: problem, steps, step ("1" or "multi"), right."""


def count(items: Sequence[Item]) -> dict[str, int]:
    """The problems whose rows are all present: their number ("problems"), and that of each of `KINDS`."""
    problems: dict[str, dict[str, bool]] = {}
    steps: dict[str, int] = {}
    for item in items:
        problems.setdefault(item["problem"], {})[item["step"]] = item["right"]
        steps[item["problem"]] = item["steps"]
    counts = dict.fromkeys(("problems", *KINDS), 0)
    for name, found in problems.items():
        if len(found) == steps[name] + 1:
            whole = found.pop(WEMATH_WHOLE)
            every, some = all(found.values()), any(found.values())
            wrong = (not whole and not every, not whole and every)
            right = (whole and every, whole and some, whole and not every, whole and not some)
            for kind, is_one in zip(counts, (True, *wrong, *right), strict=True):
                counts[kind] += is_one
    return counts


def strict(items: Sequence[Item]) -> float:
    """The strict score, We-Math's headline: at most 1, and negative where RM and IK outweigh."""
    return _score(count(items), "rm_strict")


def loose(items: Sequence[Item]) -> float:
    """The loose score: a right whole is rote only if every step is wrong."""
    return _score(count(items), "rm_loose")


def _score(counts: Mapping[str, int], rote: str) -> float:
    return _share(counts["problems"] - counts["ig"] / 2 - counts[rote] - counts["ik"], counts["problems"])


def _share(some: float, all_of_them: int) -> float:
    return some / all_of_them if all_of_them else float("nan")


def _rate(kind: str, *among: str) -> Callable[[Sequence[Item]], float]:
    """A metric in [0, 1]: the share of a kind of problem among some; NaN among none."""

    def rate(items: Sequence[Item]) -> float:
        counts = count(items)
        return _share(counts[kind], sum(counts[name] for name in among))

    return rate


insufficient_knowledge = _rate("ik", "problems")
inadequate_generalisation = _rate("ig", "problems")
complete_mastery_strict = _rate("cm_strict", "problems")
complete_mastery_loose = _rate("cm_loose", "problems")
# Of the right wholes.
rote_memorisation_strict = _rate("rm_strict", "cm_strict", "rm_strict")
rote_memorisation_loose = _rate("rm_loose", "cm_loose", "rm_loose")
