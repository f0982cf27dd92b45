"""What `dcsft_vllm` asks an engine or a server for, and what it gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .keyed_noise import row_key
from .prompts import Prompt

# vLLM raises a temperature between 0 and this one to it.
_LEAST_TEMPERATURE = 0.01
_SEEDS = 1 << 62


@dataclass(frozen=True)
class Draw:
    """A prompt and neighbouring samples of it.

    Attributes:
        name: the task and document, for errors.
        prompt: the chat, and its images.
        tokens: the rendered prompt's token ids, one placeholder an image.
        n: how many samples.
        seed: of the first sample, counting up from there; None where nothing is random.
    """

    name: str
    prompt: Prompt
    tokens: list[int]
    n: int
    seed: int | None


@dataclass(frozen=True)
class Drawn:
    """What came of a `Draw`.

    Attributes:
        n_prompt_tokens: tokens of prompt and images together.
        rows: per sample, the generated token ids, the end token included.
    """

    n_prompt_tokens: int
    rows: list[list[int]]


class Backend(Protocol):
    """vLLM, in this process's care or behind an address."""

    def draw(
        self, draws: Sequence[Draw], arguments: GenerationArguments, end: tuple[int, ...]
    ) -> list[Drawn]:
        """Generates for all draws at once.

        Args:
            draws: what to draw.
            arguments: how tokens are chosen.
            end: token ids that end a response.
        """

    def close(self) -> None:
        """Gives back what it holds; it draws no more."""


def sample_seed(seed: int, item_key: str, sample_index: int) -> int:
    """The seed of a sample, below 2**63.

    vLLM gives the i-th of a request's n samples the request's seed plus i. Seeds of an item
    count up with the sample index, so a sample has the same one whichever request it is part of:
    the whole draw's, a round's or the rest of an interrupted run's.

    Args:
        seed: the run's seed.
        item_key: what the item is, as text (its content hash).
        sample_index: which of the item's responses, from 0.
    """
    return row_key(seed, item_key, 0) % _SEEDS + sample_index


def neighbours(indices: Sequence[int]) -> list[list[int]]:
    """Ascending sample indices as runs that count up by one."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def sampling(draw: Draw, arguments: GenerationArguments, end: tuple[int, ...]) -> dict[str, Any]:
    """Generation arguments under the names that vLLM has for them, every one with a default included.

    Nothing is left to defaults, which vLLM takes from the checkpoint's generation config.

    Args:
        draw: what is drawn.
        arguments: as `check` accepts them.
        end: token ids that end a response.
    """
    # A nucleus of no mass is the likeliest token.
    only_likeliest = arguments.top_p == 0.0
    return {
        "n": draw.n,
        "seed": draw.seed,
        "temperature": arguments.temperature,
        "top_p": 1.0 if only_likeliest else arguments.top_p,
        "top_k": 1 if only_likeliest else arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": arguments.max_new_tokens,
        # vLLM looks for stop texts behind the least length only; `completion` cuts at earlier ones too.
        "min_tokens": arguments.min_new_tokens,
        "stop": list(arguments.stop),
        "stop_token_ids": list(end),
        "skip_special_tokens": arguments.skip_special_tokens,
    }


def check(arguments: GenerationArguments, task: str) -> None:
    """Refuses what vLLM would not honour as it is defined.

    Raises:
        HarnessError: naming the argument and the task.
    """
    where = f"generation argument of task {task!r}"
    if not arguments.use_cache:
        raise HarnessError(f"{where}: use_cache=False, but vLLM always keeps a cache", "Leave it out")
    if 0.0 < arguments.temperature < _LEAST_TEMPERATURE:
        raise HarnessError(
            f"{where}: temperature={arguments.temperature}, which vLLM would raise to {_LEAST_TEMPERATURE}",
            "Give 0 for greedy decoding",
        )
    if arguments.min_new_tokens > arguments.max_new_tokens:
        raise HarnessError(
            f"{where}: min_new_tokens={arguments.min_new_tokens} exceeds"
            f" max_new_tokens={arguments.max_new_tokens}",
            "Lower it",
        )
    if arguments.min_p > 0.0 and arguments.top_p < 1.0:
        raise HarnessError(
            f"{where}: min_p={arguments.min_p} and top_p={arguments.top_p} together: vLLM applies them in"
            " another order than transformers, which keeps other tokens",
            "Give one of them",
        )
