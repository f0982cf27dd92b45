"""The exact probability that sampling gives a right response, by teacher forcing.

One forward over a prompt and a spelling of its answer gives the distributions of all tokens of that spelling,
and of the end behind each. The product of its tokens' probabilities and of the end's is the probability of
that response. Other token strings can be right, too: a capital letter, a full stop, another split into
tokens. They branch off where a token with some probability can still become a right response; each branch
is completed and forwarded in turn. What is too improbable to follow is added up: it bounds the error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import cut_at

from .arguments import GenerationArguments
from .batching import Prepared
from .decoding import distribution
from .engine import Engine
from .scheduler import not_finite

FOLLOWED = 1e-4
"""The least probability of a branch that is followed."""
EXAMINED = 1e-7
"""The least probability of a token string that is decoded to see whether it can become right."""
BRANCHES = 256
"""The most branches followed per item."""
_CAUSAL = 0.3
"""Largest change of logits by later tokens, in standard deviations; see `engine._HALF_TOLERANCE`."""


@dataclass(frozen=True)
class Target:
    """Which responses to an item are right."""

    answer: str  # the spelling to begin with; any other is found from it
    right: Callable[[str], bool]  # whether a whole response is
    can_become: Callable[[str], bool]  # whether a response that begins so can be; also true of one that is


@dataclass
class Exact:
    """An item's pass rate."""

    rate: float = 0.0  # the probability of the right responses that were followed
    uncounted: float = 0.0  # an upper bound of the probability of the others
    forwards: int = 0  # the number of forwards that it took
    prompt_tokens: int = 0  # tokens of the prompt


@dataclass
class _Branch:
    """A token string of an item: `tokens[:known]` has the probability `mass`, and the rest is a guess."""

    item: int
    tokens: list[int]
    known: int = 0
    mass: float = 1.0


@dataclass
class PassRates:
    """Computes pass rates with one model and one set of arguments."""

    engine: Engine  # the loaded model
    arguments: GenerationArguments  # how responses are sampled
    at_once: int  # the most rows per forward
    _checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Reads the tokens that end a response."""
        self._tokenizer = self.engine.tokenizer
        self._endings = self.engine.endings(self.arguments)
        self._eos = self._endings.tokens.eos

    @torch.inference_mode()
    def of(self, items: Sequence[Prepared], targets: Sequence[Target]) -> list[Exact]:
        """The pass rates of items, from the right responses of each.

        Raises:
            HarnessError: the model has no finite logits, attends to later tokens, or an item does not fit in
                memory.
        """
        found = [Exact(prompt_tokens=one.tokens) for one in items]
        queue = [_Branch(at, self._spelled(target.answer)) for at, target in enumerate(targets)]
        while queue:
            queue.sort(key=lambda one: items[one.item].tokens + len(one.tokens))
            some, queue = queue[: self.at_once], queue[self.at_once :]
            rows = [items[one.item] for one in some]
            logits = self.engine.forced(rows, [one.tokens for one in some])
            self._refuse_unfit(rows[0], some[0], logits[0])
            for one, row, scores in zip(some, rows, logits, strict=True):
                result = found[one.item]
                result.forwards += 1
                queue += self._followed(one, row, scores, targets[one.item], result)
        return found

    def _followed(
        self, one: _Branch, item: Prepared, logits: Tensor, target: Target, result: Exact
    ) -> list[_Branch]:
        """Adds the right responses along a branch to an item's result; returns the branches off it."""
        device = logits.device
        shares = distribution(
            logits[one.known :],
            self.arguments,
            self._eos,
            item.features["input_ids"][0].to(device),
            torch.tensor(one.tokens, dtype=torch.int64, device=device),
        )
        if bool(shares.isnan().any()):
            raise not_finite(item.name)
        off: list[_Branch] = []
        mass = one.mass
        for place, row in zip(range(one.known, len(one.tokens) + 1), shares.cpu(), strict=True):
            before = one.tokens[:place]
            following = one.tokens[place] if place < len(one.tokens) else None
            ends = row[list(self._eos)]
            if target.right(self._endings.text(before)):
                result.rate += mass * float(ends.sum())
            row[list(self._eos)] = 0.0
            likely = torch.nonzero(row * mass >= EXAMINED)[:, 0].tolist()
            result.uncounted += mass * max(0.0, float(row.sum() - row[likely].sum()))
            stays = 0.0
            for token in likely:
                tokens, share = [*before, token], mass * float(row[token])
                text = self._endings.text(tokens)
                if self._endings.stopped(tokens):
                    result.rate += share * target.right(cut_at(text, self.arguments.stop)[0])
                elif len(tokens) >= self.arguments.max_new_tokens or not target.can_become(text):
                    continue  # no room for its end, or wrong
                elif token == following:
                    stays = share
                elif share >= FOLLOWED and result.forwards + len(off) < BRANCHES:
                    whole = tokens + self._completion(text, target)
                    off.append(_Branch(one.item, whole, len(tokens), share))
                else:
                    result.uncounted += share
            mass = stays
            if not mass:
                break
        return off

    def _spelled(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _completion(self, text: str, target: Target) -> list[int]:
        """Tokens that may lead from a text to a right response: a guess, which decides only the time."""
        rests = ("", *(target.answer[at:] for at in range(len(target.answer))))
        return self._spelled(next((rest for rest in rests if target.right(text + rest)), ""))

    def _refuse_unfit(self, item: Prepared, one: _Branch, logits: Tensor) -> None:
        """Refuses a model whose prompt sees the response, by the first forward."""
        if self._checked or not one.tokens:
            return
        self._checked = True
        alone = self.engine.forced([item], [[]])[0][0].float()
        change = float((logits[0].float() - alone).abs().max() / alone.std())
        if change > _CAUSAL:
            raise HarnessError(
                f"{item.name}: the model's logits after the prompt change with the response that follows, by "
                f"{change:.2g} standard deviations",
                "Its pass rates can only be sampled: leave out --exact",
            )
