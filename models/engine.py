"""A loaded model: trial of shared prompts, items in progress, batches, prefills and memory."""

import functools
import gc
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .batching import Batcher, Prepared, continued, on_device
from .decoding import (
    NOT_FINITE,
    Completion,
    Draw,
    Endings,
    NotFiniteError,
    SpecialTokens,
)
from .resources import Footprint, Size, free_bytes, out_of_memory
from .shared_prefix import Decoder, ForkedRows, Prompts, UnsuitedModelError, forced, joined, prefill
from .weights import error_line

# Tries whether batched and shared-prompt decoding match a single prompt decoded by itself.

# Largest difference of two logits, in standard deviations of the logits. Rounding stays well
# below; a missing position offset, window or cap is of the order of one.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_HALF_TOLERANCE = 0.3

# Errors from models that prepare inputs or compute attention in their own way.
_FAILURES = (AttributeError, TypeError, LookupError, ValueError, RuntimeError)


class Alone(NamedTuple):
    """A model's output for one prompt alone."""

    token: Tensor  # int64 `(1,)`, the likeliest first token that does not end the response
    logits: Tensor  # float32 `(2, vocabulary)`, for the first and the second token


_T = TypeVar("_T")
_P = ParamSpec("_P")


def _answering(trial: Callable[_P, _T]) -> Callable[_P, _T | str]:
    """A trial without gradients that returns why it failed; being out of memory stays an error."""

    @torch.inference_mode()
    @functools.wraps(trial)
    def answer(*args: _P.args, **kwargs: _P.kwargs) -> _T | str:
        try:
            return trial(*args, **kwargs)
        except UnsuitedModelError as error:
            return str(error)
        except _FAILURES as error:
            if out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}"

    return answer


@_answering
def alone(model: PreTrainedModel, batch: dict[str, Tensor]) -> Alone:
    """Two tokens from `generate` for one prompt, or the reason why the model cannot process it."""
    tokens, logits = _by_generate(model, batch)
    return Alone(tokens, logits[:, 0])


@_answering
def apart(
    model: PreTrainedModel, together: Callable[[], dict[str, Tensor]], singly: Sequence[Alone]
) -> str | None:
    """Why prompts cannot be batched in `generate`; None if they can.

    `together` makes one batch of all prompts; `singly` is the model's output for each prompt alone.
    """
    tokens, logits = _by_generate(model, together())
    for row, one in enumerate(singly):
        # After a different first token, as where two are equally likely, logits differ.
        steps = 2 if int(tokens[row]) == int(one.token) else 1
        if (reason := _difference(model, logits[:steps, row], one.logits[:steps])) is not None:
            return f"{reason} in a batch"
    return None


@_answering
def objection(
    model: PreTrainedModel, batch: dict[str, Tensor], singly: Sequence[Alone] | None = None
) -> str | None:
    """Why the samples of an item cannot share its prompt in this model; None if they can.

    Two tokens are decoded both ways and their logits compared. `singly` is the model's output for each prompt
    alone; None computes it, for a single prompt.

    Raises:
        HarnessError: the model does not accept the prompt at all.
    """
    if not model._can_set_attn_implementation():
        return "its attention cannot be exchanged"
    if singly is None:
        made = alone(model, batch)
        if isinstance(made, str):
            raise HarnessError(
                f"the {type(model).__name__} cannot answer a prompt with an image ({made})",
                "Check that its config.json, its processor's files and its weights are of one checkpoint",
            )
        singly = [made]
    decoder = Decoder(model)
    first = decoder.admit(prefill(model, batch), [2] * len(singly))
    with decoder.attending():
        return _differing(model, first, decoder.step, singly)


@_answering
def fork_objection(model: PreTrainedModel, batch: dict[str, Tensor], singly: Sequence[Alone]) -> str | None:
    """Why the samples of an item cannot get copies of its prompt's states; None if they can."""
    rows = ForkedRows(model, batch, [2] * len(singly))
    return _differing(model, rows.logits, rows.step, singly)


def _differing(
    model: PreTrainedModel, first: Tensor, step: Callable[[Tensor], Tensor], singly: Sequence[Alone]
) -> str | None:
    """Why two rows of each prompt differ from it alone; `first` are the logits for their first token."""
    second = step(torch.cat([one.token.expand(2) for one in singly]))
    for row, one in enumerate(singly):
        for found, wanted in ((first, one.logits[:1]), (second, one.logits[1:])):
            if (reason := _difference(model, found[2 * row : 2 * row + 2], wanted)) is not None:
                return reason
    return None


def _difference(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> str | None:
    """How far logits differ, if by more than rounding."""
    difference = float((found.float() - wanted).abs().max() / wanted.std())
    if difference <= _TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
        return None
    return f"its logits would change by {difference:.2g} standard deviations"


def _by_generate(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The likeliest non-end first tokens, `(rows,)`, and both steps' logits, `(2, rows, vocabulary)`."""
    config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=2, min_new_tokens=2)
    config.update(output_logits=True, return_dict_in_generate=True)
    output = model.generate(**batch, generation_config=config)
    return output.sequences[:, -2], torch.stack([step.float() for step in output.logits[:2]])


# Continuous batching: prefill new items, decode active rows together, return finished items.

# Finished rows are dropped once they reach this share: a few idle ones cost less than moving others.
_IDLE_ROWS = 1 / 32

# Likewise where dropping rows copies the prompts' states of the others.
_IDLE_FORKS = 1 / 4

# Decoding pauses once this share of rows has finished: then others may be admitted, and finished items are
# returned. A smaller share makes more prefix groups, each with its own attention call.
_TURNOVER = 1 / 2

# Replaces the ticket of an item whose prompt has moved to another prefix group.
_MOVED = -1


@dataclass
class Row:
    """One response in progress."""

    ticket: int  # its item's ticket
    key: int  # the key of its draws
    tokens: list[int] = field(default_factory=list)  # its tokens so far
    stopped_at: int | None = None  # its length when it reached a stop text
    ended: bool = False  # whether it is finished


class RunningItems:
    """The rows that one model decodes with one set of arguments.

    Attributes:
        held: tickets of finished items whose prompts are kept for further rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: GenerationArguments,
        endings: Endings,
        hold: bool,
    ) -> None:
        """Starts with nothing admitted; `hold` keeps the prompts of finished items until `release`."""
        self._arguments, self._endings, self._hold = arguments, endings, hold
        self._decoder = Decoder(model)
        self._rows: list[Row] = []  # at each place of the batch
        self._of_ticket: dict[int, list[Row]] = {}
        self._draw: Draw | None = None
        self._chosen = torch.empty(0, dtype=torch.int64)
        self.held: set[int] = set()

    @property
    def rows(self) -> int:
        """Rows in progress."""
        return len(self._rows)

    def prompts_of(self, tickets: Collection[int]) -> list[Prompts]:
        """Releases the prompts of some held items; returns copies."""
        found = []
        for prompts in (group.prompts for group in self._decoder.groups):
            wanted = self.held.intersection(tickets)
            if items := [place for place, ticket in enumerate(prompts.tickets) if ticket in wanted]:
                found.append(prompts.select(items))
                self.held -= {*found[-1].tickets}
                for place in items:
                    prompts.tickets[place] = _MOVED
        return found

    @torch.inference_mode()
    def admit(self, row_keys: Mapping[int, Sequence[int]], parts: Sequence[Prompts]) -> None:
        """Adds items as one prefix group and draws their rows' first token.

        `row_keys` are the keys of their rows' draws (`decoding.row_key`), by ticket; `parts`, their prompts,
        are taken over.

        Raises:
            NotFiniteError: names the items whose logits are not finite, by ticket; no further call may
                follow.
        """
        prompts = joined(parts)
        new = {ticket: [Row(ticket, key) for key in row_keys[ticket]] for ticket in prompts.tickets}
        rows = [row for some in new.values() for row in some]
        keys = torch.tensor([row.key for row in rows], device=prompts.tokens.device)
        logits = self._decoder.admit(prompts, [len(some) for some in new.values()])
        of_row = self._decoder.groups[-1].item_of_row
        eos = self._endings.tokens.eos
        draw = Draw(self._arguments, eos, keys, prompts.tokens, prompts.attention_mask, of_row)
        chosen = draw(logits)
        self._of_ticket |= new
        _note(rows, chosen.tolist(), self._endings)
        if self._draw is None:
            self._draw, self._chosen = draw, chosen
        else:
            self._draw.append(draw)
            self._chosen = torch.cat((self._chosen, chosen))
        self._rows += rows

    @torch.inference_mode()
    def run(self) -> list[tuple[int, list[Completion]]]:
        """Decodes until a share of the rows has finished; errors are those of `admit`.

        Returns the finished items, by ticket, with a completion for each of their rows.
        """
        most = (1 - _TURNOVER) * len(self._rows)
        going_on = sum(not row.ended for row in self._rows)
        with self._decoder.attending():
            while True:
                enough = going_on <= most
                if enough or going_on <= (1 - _IDLE_ROWS) * len(self._rows):
                    self._keep([place for place, row in enumerate(self._rows) if not row.ended])
                if enough or self._draw is None:
                    break
                self._chosen = self._draw(self._decoder.step(_fed(self._chosen)))
                going_on -= _note(self._rows, self._chosen.tolist(), self._endings)
        ended = [ticket for ticket, rows in self._of_ticket.items() if all(row.ended for row in rows)]
        found = [(ticket, completions(self._of_ticket.pop(ticket), self._endings)) for ticket in ended]
        self.held |= set(ended) if self._hold else set()
        self._tidy()
        return found

    def release(self, tickets: Iterable[int]) -> None:
        """Drops the prompts of items that need no more rows."""
        self.held -= set(tickets)
        self._tidy()

    def _keep(self, places: list[int]) -> None:
        if len(places) == len(self._rows):
            return
        order = self._decoder.keep(places)
        self._rows = [self._rows[place] for place in order]
        if self._rows and self._draw is not None:
            kept = torch.tensor(order, device=self._chosen.device)
            self._draw.keep_rows(kept)
            self._chosen = self._chosen[kept]
        else:
            self._draw = None
        if not self._hold:
            self._tidy()

    def _tidy(self) -> None:
        """Drops prompts without remaining rows."""
        groups = self._decoder.groups
        self._decoder.groups = [group for group in groups if group.drop_idle(self.held)]


def completions(rows: Iterable[Row], endings: Endings) -> list[Completion]:
    """The responses of finished rows."""
    return [endings.completion(row.tokens, row.stopped_at) for row in rows]


def _note(rows: Sequence[Row], tokens: Sequence[int], endings: Endings) -> int:
    """Adds a token to each unfinished row; returns the number of rows that finish with it.

    Raises `NotFiniteError` with the tickets of rows whose logits are not finite.
    """
    ended, eos = 0, endings.tokens.eos
    bad = [
        row.ticket for row, token in zip(rows, tokens, strict=True) if token == NOT_FINITE and not row.ended
    ]
    if bad:
        raise NotFiniteError(bad)
    for row, token in zip(rows, tokens, strict=True):
        if not row.ended:
            row.tokens.append(token)
            if token in eos or len(row.tokens) == endings.most:
                row.ended = True
            if endings.stopped(row.tokens):
                row.stopped_at, row.ended = len(row.tokens), True
            ended += row.ended
    return ended


def _fed(chosen: Tensor) -> Tensor:
    """Tokens as a model takes them: a finished row goes idle with logits that are not finite, too."""
    return chosen.clamp_min(0)


@torch.inference_mode()
def decode(
    forked: ForkedRows,
    rows: list[Row],
    arguments: GenerationArguments,
    endings: Endings,
) -> None:
    """Draws tokens for all rows of the prefilled prompts until each has finished.

    Raises:
        NotFiniteError: the logits of some are not finite; names their tickets.
    """
    prompts, device = forked.prompts, forked.prompts.tokens.device
    keys = torch.tensor([row.key for row in rows], device=device)
    eos, mask = endings.tokens.eos, prompts.attention_mask
    draw = Draw(arguments, eos, keys, prompts.tokens, mask, forked.item_of_row)
    chosen = draw(forked.logits)
    left = len(rows) - _note(rows, chosen.tolist(), endings)
    while left:
        if left <= (1 - _IDLE_FORKS) * len(rows):
            places = [place for place, row in enumerate(rows) if not row.ended]
            kept = torch.tensor(places, device=device)
            forked.keep(kept)
            draw.keep_rows(kept)
            chosen, rows = chosen[kept], [rows[place] for place in places]
        chosen = draw(forked.step(_fed(chosen)))
        left -= _note(rows, chosen.tolist(), endings)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    rows: Sequence[Row],
    arguments: GenerationArguments,
    endings: Endings,
) -> None:
    """`decode` by the model's own `generate`, for prompts of one row each; its config is neutral."""
    prompts = batch["input_ids"]
    keys = torch.tensor([row.key for row in rows], device=prompts.device)
    places = torch.arange(len(rows), device=prompts.device)
    draw = Draw(arguments, endings.tokens.eos, keys, prompts, batch["attention_mask"], places)

    def chosen(_: Tensor, scores: Tensor) -> Tensor:
        """Scores by which greedy search takes the tokens that are drawn."""
        found = draw(scores)
        _note(rows, found.tolist(), endings)
        return torch.full_like(scores, -torch.inf).scatter(1, _fed(found)[:, None], 0.0)

    def ended(*_: object, **__: object) -> Tensor:
        return torch.tensor([row.ended for row in rows], device=prompts.device)

    config = endings.tokens.neutral_config()
    config.update(
        do_sample=False,
        num_beams=1,
        max_new_tokens=arguments.max_new_tokens,
        use_cache=arguments.use_cache,
    )
    model.generate(**batch, generation_config=config, logits_processor=[chosen], stopping_criteria=[ended])


# A loaded model: batches, prefills, memory, and decoding without shared prompts.

_LOG = logging.getLogger(__name__)


class Engine:
    """A loaded model.

    Attributes:
        shares_prompts: whether the samples of an item share one prefill and its keys and values; None until
            tried.
        forks: whether they get copies of the states after one prefill, where these cannot be shared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        tokens: SpecialTokens,
        memory_gb: float | None = None,
    ) -> None:
        """An unused engine for a model in evaluation mode whose own generation config is neutral.

        `memory_gb` is memory for a batch besides the weights, in 10^9 bytes; None uses what is free.
        """
        self._model, self.tokens = model, tokens
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._batcher = Batcher(processor, tokens.pad)
        self._footprint = Footprint.of(model.config, model.dtype.itemsize, model.device.type)
        self._budget = float("inf") if memory_gb is None else memory_gb * 1e9
        self._look = memory_gb is None
        self.shares_prompts: bool | None = None
        self.forks = False

    def running(self, arguments: GenerationArguments, hold: bool) -> RunningItems:
        """Nothing admitted yet; see `RunningItems`."""
        return RunningItems(self._model, arguments, self.endings(arguments), hold)

    def endings(self, arguments: GenerationArguments) -> Endings:
        """Where responses end, under these arguments."""
        return Endings(self.tokenizer, arguments, self.tokens)

    def try_out(self, one: Prepared, rows: int, arguments: GenerationArguments) -> None:
        """Tries sharing and batching on trials and an item, unless an earlier call has.

        An item that does not fit in memory by itself is an error.
        """
        if self.shares_prompts is not None:
            return
        try:
            reason = self._try(one)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise self.too_large(one.name, self.size(one, rows), arguments, error) from error
        if reason is None:
            self.shares_prompts = True
        else:
            self.give_up(reason)

    def _try(self, one: Prepared) -> str | None:
        """Decides how to make batches; returns why prompts cannot be shared, None if they can."""
        trials: list[tuple[Prepared, Alone]] = []
        for row in self._batcher.trials:
            made = alone(self._model, self._batch([row]))
            if isinstance(made, str):
                _LOG.info("%s: %s", row.name, made)
            else:
                trials.append((row, made))
        rows, known = [row for row, _ in trials], [made for _, made in trials]
        if len(rows) < 2:
            self._batcher.separate("it accepts no chats with an image to test it on")
        elif (reason := apart(self._model, lambda: self._batch(rows), known)) is not None:
            self._batcher.separate(reason)
        if self._batcher.way == "single":
            rows, known = rows[:1], known[:1]
        reason = objection(self._model, self._batch(rows), known) if rows else None
        reason = reason or objection(self._model, self._batch([one]))
        if reason is not None and rows:
            against = fork_objection(self._model, self._batch(rows), known)
            self.forks = against is None
            _LOG.info("states of a prompt %s", against or "are copied for its rows")
        return reason

    def give_up(self, reason: str) -> None:
        """Turns prompt sharing off, with a warning where each sample goes through the prompt."""
        self.shares_prompts = False
        if self.forks:
            _LOG.info("%s: prompts are copied, not shared (%s)", type(self._model).__name__, reason)
            return
        _LOG.warning(
            "%s: each sample runs the vision tower and prompt by itself, which is slower but gives the "
            "same draws (%s).",
            type(self._model).__name__,
            reason,
        )

    def allowed(self) -> float:
        """Bytes that admitted items may take; call it only while there are none."""
        return min(self._budget, free_bytes(self._model.device)) if self._look else self._budget

    def needed(self, sizes: Sequence[Size], arguments: GenerationArguments) -> float:
        """Bytes that items take, besides the weights."""
        shares = bool(self.shares_prompts) and arguments.use_cache
        return self._footprint.bytes(sizes, arguments.max_new_tokens, shares)

    def size(self, one: Prepared, rows: int) -> Size:
        """The quantities that determine an item's memory."""
        images = sum(
            tensor.numel()
            for name, tensor in one.features.items()
            if name in self._batcher.image_names and tensor.is_floating_point()
        )
        return Size(one.tokens, images, rows)

    def shrink(self, sizes: Sequence[Size], arguments: GenerationArguments) -> None:
        """Lowers the memory limit to half of what just did not fit, and frees what it left."""
        self._budget = min(self._budget, self.needed(sizes, arguments) / 2)
        _LOG.warning("Out of memory with %d items at once; continuing with half as many.", len(sizes))
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def too_large(
        self, name: str, size: Size, arguments: GenerationArguments, error: BaseException
    ) -> HarnessError:
        """The error of an item that does not fit by itself."""
        return HarnessError(
            f"{name}: a prompt of {size.tokens} tokens with {size.rows} responses of up to "
            f"{arguments.max_new_tokens} does not fit in the memory of {self._model.device} "
            f"({error_line(error)})",
            "Lower max_pixels, max_new_tokens or the number of samples, or use a device with more memory",
        )

    def prefill(self, items: Sequence[Prepared]) -> list[Prompts]:
        """Prefills prompts in slices of consecutive ones with features of the same names."""
        return [prefill(self._model, self._batch(part)) for part in self._slices(items)]

    def forced(self, items: Sequence[Prepared], responses: Sequence[list[int]]) -> list[Tensor]:
        """The logits that a model has while it is made to give certain responses, by one forward per row.

        `responses` are token ids of each row's, possibly none. Returns per row `(tokens + 1, vocabulary)`:
        after the prompt and after each token.

        Raises:
            HarnessError: a row does not fit in memory by itself.
        """
        rows = [
            replace(one, features=continued(one.features, tokens, self._batcher.image_names))
            for one, tokens in zip(items, responses, strict=True)
        ]
        at_once = len(rows) if self._batcher.way == "joined" else 1
        found: list[Tensor] = []
        while len(found) < len(rows):
            some = slice(len(found), len(found) + at_once)
            lengths = [len(tokens) + 1 for tokens in responses[some]]
            try:
                logits = forced(self._model, self._batch(rows[some]), max(lengths))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if at_once == 1:
                    raise HarnessError(
                        f"{items[len(found)].name}: a prompt and answer of {rows[len(found)].tokens} tokens "
                        f"do not fit in the memory of {self._model.device}",
                        "Lower max_pixels, or use a device with more memory",
                    ) from error
                at_once = max(1, at_once // 2)
                continue
            found += [row[-length:] for row, length in zip(logits, lengths, strict=True)]
        return found

    def row_by_row(
        self, items: Sequence[Prepared], row_keys: Sequence[list[int]], arguments: GenerationArguments
    ) -> list[list[Completion]]:
        """One completion per item and key; each with its own prefill, unless prompts' states are copied.

        Raises `NotFiniteError` with the positions of items whose logits are not finite, as tickets.
        """
        forks = self.forks and arguments.use_cache
        endings = self.endings(arguments)
        rows = [[Row(at, key) for key in keys] for at, keys in enumerate(row_keys)]
        # Rows that one prefill serves.
        groups = rows if forks else [[row] for some in rows for row in some]
        at_once = 1 if self._batcher.way == "single" else len(groups)
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            batch = self._batch([items[group[0].ticket] for group in some])
            together = [row for group in some for row in group]
            if forks:
                forked = ForkedRows(self._model, batch, [len(group) for group in some])
                decode(forked, together, arguments, endings)
            else:
                generate(self._model, batch, together, arguments, endings)
        return [completions(some, endings) for some in rows]

    def _slices(self, items: Sequence[Prepared]) -> list[list[Prepared]]:
        """Consecutive prompts that share a prefill."""
        slices: list[list[Prepared]] = []
        longest = 0
        for one in items:
            longest = max(longest, one.tokens)
            part = [*slices[-1], one] if slices else [one]
            fits = len(part) * longest <= self._footprint.slice_tokens
            alike = one.features.keys() == part[0].features.keys()
            if slices and fits and alike and self._batcher.way != "single":
                slices[-1] = part
            else:
                slices.append([one])
                longest = one.tokens
        return slices

    def _batch(self, rows: Sequence[Prepared]) -> dict[str, Tensor]:
        return on_device(self._batcher.batch(rows), self._model)
