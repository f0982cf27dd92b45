r"""MMMU's 53 open rows, judged by rule.

The convention of VLMEvalKit, by which 900 rows have an accuracy, makes each a choice between A, the gold, and
B, "Other Answers", at evaluation alone: the model is asked the open question and sees neither. So a response
is right if it states the gold, or one of them, and wrong if it states anything else:

- a letter ("C", of a part that the figure labels): `choice` with the letters A to J;
- a number, fraction or formula: `math`, or equal to two decimals, as MMMU's own evaluation rounds;
- words: the gold stands as whole words in what is stated, as MMMU's own evaluation looks for it.

What a response states is its last \boxed{...}; else what follows its last "answer is" or "answer:"; else all
of it, if that is short; else its last sentence.
"""

import json
import re

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS, Verdict
from dcsft_harness.scoring.plain_text import bounded, plain, sentences
from dcsft_harness.scoring.tags import answer_part, boxes
from dcsft_harness.scoring.verdict import NOT_FOUND
from dcsft_harness.tasks.verdicts import Doc

_SHORT = 80
"""Characters up to which a response is nothing but its answer."""
_CUE = re.compile(r"(?i)\banswer(?:\s+is\b|\s*:)\s*:?\s*(?=\S)")
_NUMBER = re.compile(r"([-+]?\d*\.?\d+)(?:\s+[A-Za-z°%][\w/^·]*)?")
"""A number, and perhaps a unit."""
_DENIED = re.compile(r"(?:\bnot|\bnever|n't|\bno)\s+(?:\w+\s+){0,2}$")


def judge_open(doc: Doc, response: str) -> Verdict:
    """One response's verdict; the document's answer is a JSON list of golds."""
    verdicts = [_judge(response, gold) for gold in json.loads(doc["answer"])]
    right = next((verdict for verdict in verdicts if verdict.score == 1.0), None)
    return right or next((verdict for verdict in verdicts if verdict.extracted is not None), NOT_FOUND)


def _judge(response: str, gold: str) -> Verdict:
    if len(gold) == 1 and gold in "ABCDEFGHIJ":
        return SCORERS["choice"](response, answer=gold, choices=None)
    if any(character.isdigit() for character in gold) and " " not in gold.strip():
        try:
            return _rounded(SCORERS["math"](response, answer=gold), gold)
        except HarnessError:  # "trans-1-Chloro-4-methylcyclohexane" has digits and is no mathematics
            pass
    return _worded(response, gold)


def _rounded(verdict: Verdict, gold: str) -> Verdict:
    found, wanted = _number(verdict.extracted), _number(gold)
    if found is not None and wanted is not None and round(found, 2) == round(wanted, 2):
        return Verdict(1.0, verdict.extracted)
    return verdict


def _number(text: object) -> float | None:
    match = _NUMBER.fullmatch(str(text).replace(",", "").strip("$ ."))
    return float(match[1]) if match else None


def _worded(response: str, gold: str) -> Verdict:
    said = _stated(response)
    if said is None:
        return NOT_FOUND
    folded, wanted = said.lower(), plain(gold).strip(" .").lower()
    match = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", folded)
    right = match is not None and not _DENIED.search(folded[: match.start()])
    return Verdict(float(right), said)


def _stated(response: str) -> str | None:
    marked = bounded(answer_part(response))
    boxed = next(iter(boxes(marked)), None)
    whole = plain(marked if boxed is None else boxed).strip()
    if boxed is None:
        cues = [match.end() for match in _CUE.finditer(whole)]
        short = whole if len(whole) <= _SHORT else sentences(whole)[-1]
        whole = whole[cues[-1] :].split("\n")[0] if cues else short
    return whole.strip(" .") or None
