"""A pool's pass rates, exact or behind the labels' counts, and how noisy its labels are by them.

Exact ones apply the model and the settings of the rollouts, by teacher forcing.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import reading, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.manifest import Manifest
from dcsft_harness.curation.conversations import CONVERSATION, TURNS, conversation
from dcsft_harness.data.digits import DIGITS, resolve
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.sampling import ITEMS
from dcsft_harness.scoring import words

if TYPE_CHECKING:
    from dcsft_harness.models.exact import Exact
    from dcsft_harness.models.hf import DcsftHF

ENGINES = ("dcsft_hf", "dcsft_vllm")
"""Engines whose sampling `dcsft_hf` computes: the same tokens, templates and settings."""
AT_ONCE = 64
"""Items prepared together."""
Progress = Callable[[int, int], None]


def pass_rates(
    rollouts: Path, wanted: pa.ChunkedArray, progress: Progress | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """The probability that one response of the rollouts' sampling is scored right, for each item.

    The weights are those that the rollouts were sampled from, in dcsft_hf; temperature, top-k, top-p, penalty
    and limits are those in force then. Counted are all spellings that `exact_word` scores right (capitals,
    white space around, full stops at the ends) in any split into tokens, down to a probability of
    `models.exact.FOLLOWED` each; the probability of the others is bounded. `wanted` are ids of items;
    `progress` is called with (items done, total items).

    Returns:
        item_id -> rate in [0, 1]. And notes: "uncounted", the largest bound of an item's uncounted
        probability, and "forwards", of the model.

    Raises:
        HarnessError: the responses were not scored by `exact_word` alone, the model or its settings are not
            known or have changed, or it cannot be loaded.
    """
    source = manifest.read(rollouts, "rollouts")
    refuse_other_scorers(source)
    settings = _settings(source)
    model = _opened(source)
    from dcsft_harness.models.arguments import GenerationArguments
    from dcsft_harness.models.exact import Target
    from dcsft_harness.models.requests import Item

    stop = tuple(settings.pop("stop", ()))
    arguments = GenerationArguments(**settings, stop=stop)
    found: dict[str, Exact] = {}
    tokens = 0
    rows = _rows(rollouts / ITEMS, wanted)
    while some := list(islice(rows, AT_ONCE)):
        asked = [
            Item(row["task"], "items", row["doc_id"], arguments, row["prompt"], messages) for row in some
        ]
        model.task_dict = {one.task: {one.split: {}} for one in asked}
        for one, row in zip(asked, some, strict=True):
            model.task_dict[one.task][one.split][one.doc_id] = row
        targets = [
            Target(
                row["target"],
                partial(_right, row["answer"]),
                partial(words.can_become_right, answer=row["answer"]),
            )
            for row in some
        ]
        rates = model.pass_rates(asked, targets)
        tokens += sum(rate.prompt_tokens for rate in rates)
        found |= {row["item_id"]: rate for row, rate in zip(some, rates, strict=True)}
        if progress is not None:
            progress(len(found), len(wanted))
    _refuse_other_prompts(source, tokens, len(found))
    return {item: min(1.0, rate.rate) for item, rate in found.items()}, {
        "uncounted": max((rate.uncounted for rate in found.values()), default=0.0),
        "forwards": sum(rate.forwards for rate in found.values()),
    }


def refuse_other_scorers(source: Manifest) -> None:
    """Refuses rollouts that were not scored by `exact_word` alone: right responses cannot be enumerated."""
    names = list(source.notes.get("scorers") or {})
    if names != [words.SCORER.name]:
        raise HarnessError(
            f"--exact needs responses scored by exact_word, but {source.folder} was scored by"
            f" {cut(', '.join(names)) or 'a scorer of its task'}",
            "Other scorers accept too many spellings to add up: leave out --exact",
        )


def _settings(source: Manifest) -> dict[str, Any]:
    """The generation settings in force when rollouts were sampled; an error if they are not recorded."""
    settings = source.notes.get("generation_in_force")
    if source.config.get("model") not in ENGINES or not isinstance(settings, Mapping):
        raise HarnessError(
            f"--exact needs rollouts of {' or '.join(ENGINES)} with their generation settings, but"
            f" {source.folder} is by {source.config.get('model') or 'an unknown model'}",
            "Sample the pool again with one of them, or leave out --exact",
        )
    return dict(settings)


def _opened(source: Manifest) -> "DcsftHF":
    """The model that rollouts were sampled from, in dcsft_hf."""
    from dcsft_harness.models.arguments import ModelSettings
    from dcsft_harness.models.hf import DcsftHF

    given = reading.named(source.config["model_args"])
    known = ModelSettings.model_fields
    given = {name: value for name, value in given.items() if name in known}
    for name, role in (("pretrained", "model"), ("adapter", "adapter")):
        if given.get(name) == DIGITS:
            given[name] = resolve(DIGITS)
        elif role in source.inputs:
            given[name] = str(source.input_folder(role))
    return DcsftHF(**given)


def _rows(items: Path, wanted: pa.ChunkedArray) -> Iterator[dict[str, Any]]:
    """The items with these ids, with their images."""
    names = ["item_id", "doc_id", "task", "answer", *CONVERSATION]
    names += [TURNS] if TURNS in storage.names(items) else []
    for table in storage.read(items, names, storage.AT_ONCE):
        yield from table.filter(pc.is_in(table["item_id"], value_set=wanted.combine_chunks())).to_pylist()


def messages(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An item's turns before the answer as chat messages, images in the places of their marks."""
    images = ({"type": "image", "url": image["bytes"]} for image in item["images"])
    return [
        {"role": turn["role"], "content": records.parts(turn["content"], images)}
        for turn in conversation(item)["messages"][:-1]
    ]


def _right(answer: str, text: str) -> bool:
    return words.exact_word(text, answer=answer).score == 1.0


def _refuse_other_prompts(source: Manifest, tokens: int, items: int) -> None:
    """Refuses rates of other prompts than those that were sampled: their tokens differ in number."""
    sampled = source.notes.get("prompt_tokens")
    if source.config["model"] == ENGINES[0] and items == source.notes.get("items") and tokens != sampled:
        raise HarnessError(
            f"the prompts in {source.folder / ITEMS} have {tokens} tokens, but {sampled} were sampled",
            "The task shows them in a form that items do not store: leave out --exact",
        )


# How noisy labels are: how often G responses place an item of a given pass rate in each class.
#
# A label is the class of one draw of G responses. With the pass rates of a pool's items known (by
# `dcsft label --exact`) or estimated from the labels' own counts, two figures follow:
#
#     changed: the expected share of items that another labeling with as many responses places elsewhere
#     misplaced: the expected share of items that are not in the class that they get most often
#
# The estimate is the distribution of pass rates under which the counts are likeliest, by the EM algorithm on
# a grid, stopped early, which smooths it (Laird, JASA 73, 1978; Lord and Cressie, Biometrika 62, 1975, for
# binomial counts). It starts from the Jeffreys prior. A beta distribution has too few parameters: on a pool
# of many nearly solved items and some unsolved ones it was wrong by 13 points, this one by 3.


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = 400
"""Pass rates of the grid: the quantiles of the Jeffreys prior, Beta(1/2, 1/2)."""
STEPS = 100
"""EM steps. Fewer leave the prior's shape, more fit the noise of the counts."""


class Noise(TypedDict):
    """The noise of a pool's labels."""

    samples: int  # G, the responses per item
    changed: float  # a share in [0, 1], see above
    misplaced: float  # likewise
    source: str  # "exact" for known pass rates, "counts" for those estimated from labels


def placement(rates: Floats, samples: int) -> Floats:
    """How often G responses place items in each class.

    `rates` are pass rates in [0, 1], shape (n,), and `samples` is G. Returns probabilities of easy, medium
    and hard, shape (n, 3). With G = 1 no item is medium.
    """
    easy, hard = rates**samples, (1 - rates) ** samples
    return np.stack([easy, np.maximum(0.0, 1 - easy - hard), hard], axis=1)


def of_rates(rates: Floats, samples: int, weights: Floats | None = None, source: str = "exact") -> Noise:
    """The noise of labels with G responses, for items of these pass rates.

    `rates` are in [0, 1], shape (n,), and `samples` is G. `weights` are the shares of the items with each
    rate, which sum to 1; None for equal ones.
    """
    found = placement(rates, samples)
    weights = np.full(len(rates), 1 / len(rates)) if weights is None else weights
    changed = float(weights @ (1 - (found**2).sum(axis=1)))
    misplaced = float(weights @ (1 - found.max(axis=1)))
    return {"samples": samples, "changed": changed, "misplaced": misplaced, "source": source}


def of_counts(n: Ints, k: Ints) -> Noise | None:
    """The noise of labels, from their own counts.

    `n` are the scored responses of each item, and `k` the right ones, both of shape (items,); items without
    any are left out. None without an item with two responses: one response shows nothing of the next.
    """
    if n.max(initial=0) < 2:
        return None
    scored = n > 0
    rates, weights = distribution(n[scored], k[scored])
    return of_rates(rates, int(n.max()), weights, "counts")


def distribution(n: Ints, k: Ints) -> tuple[Floats, Floats]:
    """The distribution of pass rates behind counts.

    `n` are the responses of each item, at least 1, and `k` the right ones, both of shape (items,). Returns
    pass rates, shape (GRID,), in (0, 1), and the share of items with each, which sum to 1.
    """
    rates = np.sin(np.pi * (np.arange(GRID) + 0.5) / (2 * GRID)) ** 2
    pairs, items = np.unique(np.stack([n, k]), axis=1, return_counts=True)
    logs = pairs[1][:, None] * np.log(rates) + (pairs[0] - pairs[1])[:, None] * np.log1p(-rates)
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights = np.full(GRID, 1 / GRID)
    for _ in range(STEPS):
        weights = weights * (likelihood.T @ (items / (likelihood @ weights))) / items.sum()
    return rates, weights


def chi_squared(rates: Floats, n: Ints, k: Ints) -> tuple[float, int, float]:
    """Whether counts agree with known pass rates: Pearson's statistic over items.

    Items that are nearly always or never solved are left out: with fewer than a half expected right or wrong
    response, one response would decide the statistic. `rates` are in [0, 1]; they, responses `n` and right
    ones `k` have the shape (items,). Returns the statistic, the number of items in it (its expectation), and
    its distance from there in standard deviations.
    """
    used = n * np.minimum(rates, 1 - rates) >= 0.5
    p, n, k = rates[used], n[used], k[used]
    spread = n * p * (1 - p)
    statistic = float(((k - n * p) ** 2 / spread).sum())
    # The variance of a squared standardized binomial: 2 plus its excess kurtosis.
    deviation = float(np.sqrt((2 + (1 - 6 * p * (1 - p)) / spread).sum()))
    return statistic, int(used.sum()), (statistic - len(p)) / deviation if len(p) else 0.0
