"""Runs a queue of items through a model: admits as memory and rows become free, returns finished items."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Any

from dcsft_harness.errors import HarnessError

from .arguments import GenerationArguments
from .batching import Prepared
from .decoding import Completion, NotFiniteError, row_key
from .engine import Engine
from .requests import Asked
from .resources import Size, out_of_memory
from .shared_prefix import UnsuitedModelError

Done = tuple[Asked, list[Completion]]
"""The item, and a completion for each sample index; none if the item was refused."""

# Prompts of one prefix group are padded to one length. Prompts longer than the shortest by more than this
# factor form a group of their own.
_SPREAD = 1.5


def not_finite(name: str) -> HarnessError:
    """The error for an item for which the model has no finite logits."""
    return HarnessError(
        f"{name}: the model's logits are not finite (NaN or infinity)",
        "Its weights or their type are at fault: try dtype=float32, or a checkpoint that did not diverge",
    )


def _features(one: Sequence[Any]) -> tuple[str, ...]:
    """Names of a prompt's features, which differ without images; others cannot share its batch."""
    return tuple(sorted(one[1].features))


class Scheduler:
    """One pass over a queue, with the same generation arguments throughout."""

    def __init__(
        self,
        engine: Engine,
        queue: deque[Asked],
        prepare: Callable[[Asked], Prepared],
        refuse: Callable[[Asked, HarnessError], None],
        seed: int,
        rows: int,
        hold: bool,
    ) -> None:
        """Starts with nothing admitted.

        The queue is not empty; items that need further rows are put back at its front between two steps of
        the iteration. `prepare` decodes and processes an item, and may raise `HarnessError`; `refuse` takes
        an item that cannot be answered, or raises. At most `rows` are in progress, unless an item has more by
        itself. `hold` keeps prompts for further rows until the item needs none.
        """
        self._engine, self._queue, self._prepare, self._refuse = engine, queue, prepare, refuse
        self._arguments: GenerationArguments = queue[0][1].arguments
        self._seed, self._most, self._hold = seed, rows, hold
        self._active: dict[int, tuple[Asked, Size]] = {}
        # Prepared and not admitted; or admitted, without features, while the prompt is held.
        self._known: dict[int, tuple[Prepared, Size]] = {}
        self._running = engine.running(self._arguments, hold)
        self._allowed = engine.allowed()

    def __iter__(self) -> Iterator[list[Done]]:
        """Yields finished items in groups; all finished items come before others are admitted.

        Raises:
            HarnessError: for an item that is refused, unless `refuse` takes it.
        """
        while self._queue or self._active:
            refused: list[Done] = []
            coming = self._next(refused)
            if refused:
                yield refused
            if coming or self._active:
                done = self._advance(coming)
                if done:
                    yield done
                self._running.release(self._running.held - self._waiting())

    def _waiting(self) -> set[int]:
        """Held items with further samples to draw; they are at the front of the queue."""
        held = self._running.held
        return {id(asked[0]) for asked in islice(self._queue, len(held)) if id(asked[0]) in held}

    def _next(self, refused: list[Done]) -> list[tuple[Asked, Prepared, Size]]:
        """Takes the items to admit now from the queue; adds refused ones to `refused`."""
        if not self._active:
            self._allowed = self._engine.allowed()
        coming: list[tuple[Asked, Prepared, Size]] = []
        sizes = [size for _, size in self._active.values()]
        while self._queue:
            asked = self._queue[0]
            try:
                prepared, size = self._described(asked)
            except HarnessError as error:
                self._refuse(asked, error)
                refused.append((self._queue.popleft(), []))
                continue
            rows = sum(one.rows for one in sizes) + size.rows
            fits = (
                rows <= self._most and self._engine.needed([*sizes, size], self._arguments) <= self._allowed
            )
            if sizes and not fits:
                break
            coming.append((self._queue.popleft(), prepared, size))
            del self._known[id(asked[0])]
            if self._hold:
                self._known[id(asked[0])] = Prepared(prepared.name, prepared.key, {}), size
            sizes.append(size)
        return coming

    def _described(self, asked: Asked) -> tuple[Prepared, Size]:
        """An item with its memory needs; without features if its prompt is held."""
        ticket, rows = id(asked[0]), 1 if self._arguments.greedy else len(asked[1].sample_indices)
        if ticket not in self._known or not (self._known[ticket][0].features or ticket in self._running.held):
            prepared = self._prepare(asked)
            self._engine.try_out(prepared, rows, self._arguments)  # before sizes depend on it
            self._known[ticket] = prepared, self._engine.size(prepared, rows)
        prepared, size = self._known[ticket]
        return prepared, replace(size, rows=rows)

    def _advance(self, coming: list[tuple[Asked, Prepared, Size]]) -> list[Done]:
        """Admits items and continues decoding; if memory runs out, active items return to the queue."""
        for asked, _, size in coming:
            self._active[id(asked[0])] = (asked, size)
        failure: BaseException
        done: list[Done] = []  # an error must not lose them: they are no longer active
        try:
            if not self._engine.shares_prompts or not self._arguments.use_cache:
                done.extend(self._row_by_row(coming))
                return done
            self._admit(coming)
            ended = dict(self._running.run())
            return [self._answered(ticket, ended[ticket]) for ticket in list(self._active) if ticket in ended]
        except UnsuitedModelError as error:
            self._engine.give_up(str(error))
            self._back()
            return done
        except NotFiniteError as error:
            return done + self._without(error.tickets)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            # Without its traceback, which keeps the batch's tensors alive.
            failure = error.with_traceback(None)
        return done + self._out_of_memory(coming, failure)

    def _out_of_memory(
        self, coming: list[tuple[Asked, Prepared, Size]], failure: BaseException
    ) -> list[Done]:
        sizes = self._back()
        if len(sizes) == 1:
            asked = self._queue.popleft()
            self._refuse(asked, self._engine.too_large(asked[1].name, sizes[0], self._arguments, failure))
            return [(asked, [])]
        self._known |= {id(one[0]): (prepared, size) for one, prepared, size in coming if prepared.features}
        self._engine.shrink(sizes, self._arguments)
        self._allowed = self._engine.allowed()
        return []

    def _without(self, tickets: Collection[int]) -> list[Done]:
        """Refuses items whose logits are not finite; redraws the other active items, with the same result."""
        bad = [asked for ticket, (asked, _) in self._active.items() if ticket in tickets]
        for asked in bad:
            del self._active[id(asked[0])]
            self._refuse(asked, not_finite(asked[1].name))
        self._back()
        return [(asked, []) for asked in bad]

    def _back(self) -> list[Size]:
        """Moves all active items to the front of the queue; keyed draws give the same responses again."""
        sizes = [size for _, size in self._active.values()]
        self._queue.extendleft(reversed([asked for asked, _ in self._active.values()]))
        self._active.clear()
        self._running = self._engine.running(self._arguments, self._hold)
        return sizes

    def _admit(self, coming: list[tuple[Asked, Prepared, Size]]) -> None:
        """New items and items that get further rows, grouped by similar prompt length."""
        keys = {id(one[0][0]): self._keys(*one) for one in coming}
        new = [one for one in coming if one[1].features]
        new.sort(key=lambda one: (_features(one), -one[1].tokens))
        tickets = iter(id(asked[0]) for asked, _, _ in new)
        parts = self._running.prompts_of(keys)
        for prompts in self._engine.prefill([prepared for _, prepared, _ in new]):
            prompts.tickets = list(islice(tickets, len(prompts)))
            parts.append(prompts)
        parts.sort(key=lambda part: -part.longest)
        while parts:
            together = [part for part in parts if part.longest * _SPREAD >= parts[0].longest]
            parts = parts[len(together) :]
            self._running.admit({one: keys[one] for part in together for one in part.tickets}, together)

    def _row_by_row(self, coming: list[tuple[Asked, Prepared, Size]]) -> Iterator[Done]:
        """Answers new items group by group; yields each at once, so that a later group's error loses none."""
        for _, group in groupby(sorted(coming, key=_features), key=_features):
            members = list(group)
            keys = [self._keys(*one) for one in members]
            try:
                completions = self._engine.row_by_row([one[1] for one in members], keys, self._arguments)
            except NotFiniteError as error:
                raise NotFiniteError(id(members[place][0][0]) for place in error.tickets) from error
            for (asked, _, _), found in zip(members, completions, strict=True):
                yield self._answered(id(asked[0]), found)

    def _keys(self, asked: Asked, prepared: Prepared, size: Size) -> list[int]:
        return [row_key(self._seed, prepared.key, index) for index in asked[1].sample_indices[: size.rows]]

    def _answered(self, ticket: int, completions: list[Completion]) -> Done:
        """Uses one greedy completion for every sample."""
        asked, _ = self._active.pop(ticket)
        copies = len(asked[1].sample_indices) if self._arguments.greedy else 1
        return asked, completions * copies
