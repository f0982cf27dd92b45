"""Items in flight: admitted behind their prompts, drawn together, handed back as they end."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .arguments import GenerationArguments
from .decoding import NOT_FINITE, Completion, NotFiniteError, SpecialTokens, StopTexts, completion
from .prefill import Prompts, joined
from .shared_decoding import Decoder
from .token_choice import Draw

# Rows that have ended are dropped once they are this share: a few idle ones cost less than moving others.
_IDLE_ROWS = 1 / 32

# A run of steps ends once this share of its rows has: then others may be admitted, and what has ended
# is handed back. Fewer at a time make more cohorts, each with an attention of its own.
_TURNOVER = 1 / 2

# In place of the ticket of an item whose prompt has gone on to another cohort.
_MOVED = -1


@dataclass
class Row:
    """One response on its way.

    Attributes:
        ticket: whose it is.
        key: what its draws are keyed with.
        limit: tokens that it may have.
        tokens: those that it has.
        stopped_at: how many there were when it reached a stop text.
        ended: whether it gets no more.
    """

    ticket: int
    key: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    stopped_at: int | None = None
    ended: bool = False


@dataclass(frozen=True)
class Arrival:
    """An item that is admitted.

    Attributes:
        ticket: what it is called; not in flight yet.
        row_keys: the keys of its rows' draws (`keyed_noise.row_key`).
    """

    ticket: int
    row_keys: list[int]


class Flight:
    """The rows that one model draws with one set of arguments.

    Attributes:
        held: tickets of items that have ended, whose prompts are kept for further rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tokens: SpecialTokens,
        arguments: GenerationArguments,
        hold: bool,
    ) -> None:
        """Nothing in flight.

        Args:
            model: a transformers model, in evaluation mode.
            tokenizer: its tokenizer.
            tokens: its special tokens, the stop texts' included.
            arguments: how to generate.
            hold: whether the prompts of items that end are kept until `release`.
        """
        self._tokenizer, self._arguments, self._hold = tokenizer, arguments, hold
        self._eos, self._ends = tokens.eos, frozenset(tokens.eos)
        self._decoder = Decoder(model)
        self._stops = StopTexts(tokenizer, arguments, tokens.eos)
        self._tickets: list[list[int]] = []  # of each cohort's prompts
        self._rows: list[Row] = []  # at each place of the batch
        self._of_ticket: dict[int, list[Row]] = {}
        self._draw: Draw | None = None
        self._chosen = torch.empty(0, dtype=torch.int64)
        self.held: set[int] = set()

    @property
    def rows(self) -> int:
        """Rows in flight."""
        return len(self._rows)

    def prompts_of(self, tickets: Collection[int]) -> list[tuple[list[int], Prompts]]:
        """Copies of the held prompts of some items, which are held no more, with their tickets."""
        wanted, found = set(tickets), []
        for cohort, mine in zip(self._decoder.cohorts, self._tickets, strict=True):
            items = [at for at, ticket in enumerate(mine) if ticket in wanted and ticket in self.held]
            if items:
                device = cohort.prompts.tokens.device
                found.append(
                    ([mine[at] for at in items], cohort.prompts.select(torch.tensor(items, device=device)))
                )
                self.held -= {mine[at] for at in items}
                for at in items:
                    mine[at] = _MOVED
        return found

    @torch.inference_mode()
    def admit(self, arrivals: Sequence[Arrival], parts: Sequence[Prompts]) -> None:
        """Adds items as one cohort and draws their rows' first token.

        Args:
            arrivals: the items.
            parts: their prompts, in the same order; taken over.

        Raises:
            NotFiniteError: names the items whose logits are not finite, by ticket; this flight is over.
        """
        prompts = joined(parts)
        samples = [len(one.row_keys) for one in arrivals]
        device = prompts.tokens.device
        keys = torch.tensor([key for one in arrivals for key in one.row_keys], device=device)
        of_row = torch.repeat_interleave(
            torch.arange(len(samples), device=device), torch.tensor(samples, device=device)
        )
        draw = Draw(self._arguments, self._eos, keys, prompts, of_row)
        chosen = draw(self._decoder.admit(prompts, samples))
        self._tickets.append([one.ticket for one in arrivals])
        for one in arrivals:
            limit = self._arguments.max_new_tokens
            self._of_ticket[one.ticket] = [Row(one.ticket, key, limit) for key in one.row_keys]
        rows = [row for one in arrivals for row in self._of_ticket[one.ticket]]
        _note(rows, chosen.tolist(), self._ends, self._stops)
        if self._draw is None:
            self._draw, self._chosen = draw, chosen
        else:
            self._draw.append(draw)
            self._chosen = torch.cat((self._chosen, chosen))
        self._rows += rows

    @torch.inference_mode()
    def run(self) -> list[tuple[int, list[Completion]]]:
        """Draws until a share of the rows has ended.

        Returns:
            The items that have ended, by ticket, with a completion for each of their rows.

        Raises:
            NotFiniteError: as `admit`.
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
                self._chosen = self._draw(self._decoder.step(self._chosen))
                going_on -= _note(self._rows, self._chosen.tolist(), self._ends, self._stops)
        ended = [ticket for ticket, rows in self._of_ticket.items() if all(row.ended for row in rows)]
        found = [(ticket, self._completions(self._of_ticket.pop(ticket))) for ticket in ended]
        self.held |= set(ended) if self._hold else set()
        self._tidy()
        return found

    def release(self, tickets: Iterable[int]) -> None:
        """Gives up the prompts of items that need no more rows."""
        self.held -= set(tickets)
        self._tidy()

    def _completions(self, rows: Sequence[Row]) -> list[Completion]:
        return [
            completion(self._tokenizer, row.tokens, self._eos, self._arguments, row.stopped_at)
            for row in rows
        ]

    def _keep(self, places: list[int]) -> None:
        """Drops all rows but those at `places`."""
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
        """Drops prompts that nothing continues any more."""
        cohorts, tickets = [], []
        for cohort, mine in zip(self._decoder.cohorts, self._tickets, strict=True):
            kept = [at for at, ticket in enumerate(mine) if ticket in self.held]
            if cohort.rows or kept:
                left = cohort.drop_idle(kept)
                cohorts.append(cohort)
                tickets.append(mine if left is None else [mine[at] for at in left])
        self._decoder.cohorts, self._tickets = cohorts, tickets


def _note(rows: Sequence[Row], tokens: Sequence[int], ends: Collection[int], stops: StopTexts) -> int:
    """Adds a token to each row that has not ended; returns how many end with it.

    Raises:
        NotFiniteError: the logits of some are not finite; names their tickets.
    """
    ended = 0
    bad = [
        row.ticket for row, token in zip(rows, tokens, strict=True) if token == NOT_FINITE and not row.ended
    ]
    if bad:
        raise NotFiniteError(bad)
    for row, token in zip(rows, tokens, strict=True):
        if not row.ended:
            row.tokens.append(token)
            if token in ends or len(row.tokens) == row.limit:
                row.ended = True
            if stops.any and token not in ends and stops.reached(row.tokens):
                row.stopped_at, row.ended = len(row.tokens), True
            ended += row.ended
    return ended
