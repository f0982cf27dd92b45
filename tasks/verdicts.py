"""From a scorer's verdict to lmms-eval's metrics: one shape for every task of the suite.

`acc` is the score together with its cluster, in the form of lmms-eval's clustered standard error;
`answered` is 1 if an answer was found in the response, so that "wrong" and "no answer" stay
separate. `extracted`, `gold` (lmms-eval's own `target` is what training teaches), `score` (for
`lmms-eval --baseline`) and `scorer` (names and versions) are logged with the sample and not
aggregated; so are `scores` and `votes` of several responses, whose `maj_at_k` and `pass_at_k` are
aggregated.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dcsft_harness import reading
from dcsft_harness.coordinates import declared
from dcsft_harness.records import as_text
from dcsft_harness.scoring import Scorer, Verdict, at_k, get_scorer

Doc = dict[str, Any]
Judge = Callable[[Doc, str], Verdict]


def judge(scorer: str | Scorer, doc: Doc, response: str) -> Verdict:
    """One response's verdict; see `judge_all`."""
    return judge_all(scorer, doc, [response])[0]


def judge_all(scorer: str | Scorer, doc: Doc, texts: Sequence[str]) -> list[Verdict]:
    """The verdicts on several responses to one document.

    The document has answer (the gold, as JSON), and the scorer's other inputs: width and height in pixels for
    "image_size", choices for "choices". A text with a true attribute `truncated` reached the token limit.
    """
    known = get_scorer(scorer)
    given: dict[str, Any] = {"answer": reading.from_json(doc["answer"])}
    if "choices" in known.fields:
        given["choices"] = doc["choices"]
    if "image_size" in known.fields:
        given["image_size"] = (doc["width"], doc["height"])
    if "box_space" in known.fields:
        convention = declared()
        given["box_space"] = convention.space
        if "resized_size" in known.fields:
            size = doc["width"], doc["height"]
            given["resized_size"] = convention.resized_size(size) if convention.space == "resized" else None
    return known.score_many(
        texts, truncated=[bool(getattr(text, "truncated", False)) for text in texts], **given
    )


def process(
    scorer: str | Scorer | Judge, doc: Doc, results: Sequence[Any], named: Sequence[str] = ()
) -> dict[str, Any]:
    """The metrics of one document.

    Args:
        scorer: a scorer or its name; or a function of document and response, if rows need different scorers.
        doc: see `judge_all`; its cluster column names documents that are not independent.
        results: lmms-eval's argument of `process_results`: responses, or one list of G of them.
        named: the scorers behind a function, by name.

    Returns:
        acc: {"score": mean score in [0, 1], "cluster": the document's}; score: the same mean; answered: share
        in [0, 1]; extracted: the answer found, or a list of them for several responses; gold: the document's
        answer as text; scorer: name -> version. For K > 1 responses also: maj_at_k and pass_at_k in the form
        of acc, at k = K; scores, in [0, 1], and votes, equal texts for answers that the scorer counts as
        equal and None for no answer.
    """
    texts = responses(results)
    if isinstance(scorer, str | Scorer):
        verdicts = judge_all(scorer, doc, texts)
        behind = [get_scorer(scorer)]
    else:
        verdicts = [scorer(doc, text) for text in texts]
        behind = [get_scorer(name) for name in named]
    found = [verdict.extracted for verdict in verdicts]
    mean = sum(v.score for v in verdicts) / len(verdicts)
    return {
        **(
            _several([verdict.score for verdict in verdicts], behind[0].votes(found), doc)
            if found[1:]
            else {}
        ),
        "acc": part(mean, doc),
        "score": mean,
        "answered": sum(extracted is not None for extracted in found) / len(found),
        "extracted": found[0] if len(found) == 1 else found,
        "gold": as_text(reading.from_json(doc["answer"])),
        "scorer": {one.name: one.version for one in behind},
    }


def process_word(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores class names with `exact_word` (the paper's classification rule)."""
    return process("exact_word", doc, results)


def process_word_by_class(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """The same; acc_seen counts classes in the training pool, acc_unseen the others."""
    metrics = process_word(doc, results)
    score = metrics["acc"]["score"]
    return {
        **metrics,
        "acc_seen": part(score, doc, doc["seen"]),
        "acc_unseen": part(score, doc, not doc["seen"]),
    }


def process_math(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores sums and fill-in answers with `math`."""
    return process("math", doc, results)


def process_box(doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
    """Scores boxes with `box_iou` at 0.5, in the running model's declared coordinates."""
    return process("box_iou", doc, results)


def _several(scores: list[float], votes: list[str | None], doc: Doc) -> dict[str, Any]:
    """The metrics of several responses together, and each one's score and vote."""
    codes = {vote: at for at, vote in enumerate(dict.fromkeys(vote for vote in votes if vote is not None))}
    found = at_k.metrics(np.array([scores]), np.array([[codes.get(vote or "", -1) for vote in votes]]))
    together = {f"{name}_at_k": part(float(found.values[name][0, -1]), doc) for name in ("maj", "pass")}
    return {**together, "scores": scores, "votes": votes}


class KeepAll:
    """A filter of lmms-eval that keeps all responses of a document; a single one stays a text."""

    def apply(self, resps: Iterable[list[str]], docs: Sequence[Doc]) -> list[str | list[str]]:
        """Each document's responses, as a list for K > 1."""
        return [one if len(one) > 1 else one[0] if one else "" for one in resps]


def responses(results: Sequence[Any]) -> list[str]:
    """The texts in lmms-eval's argument of `process_results`: responses, or one list of G of them."""
    texts: list[str] = []
    for result in results:
        texts.extend(result if isinstance(result, list) else [result])
    return texts


def part(score: float, doc: Doc, inside: bool = True) -> dict[str, Any]:
    """A document's entry in a metric that `mean_score` aggregates; it does not count unless `inside`.

    lmms-eval counts documents by the entries of one metric, so every document has one in each.
    """
    return {"score": score, "cluster": doc["cluster"]} if inside else {"cluster": doc["cluster"]}


def mean_score(items: Sequence[dict[str, Any]]) -> float:
    """The mean of the `score` entries, in [0, 1]; NaN if no document counts, which --limit may cause."""
    scores = [item["score"] for item in items if "score" in item]
    return float(sum(scores) / len(scores)) if scores else float("nan")
