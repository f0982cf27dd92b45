"""A model in many processes of a Ray cluster, as one lmms-eval model: `dcsft sample --engine ray`."""

import contextlib
import importlib.util
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dcsft_harness import lmms
from dcsft_harness.coordinates import PIXEL, BoxConvention, declare
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.protocols import Generation

from .base import ObservedModel
from .requests import Asked, Item, Messages, filled, read_prompt

# A Ray cluster: connect or start, count slots, and turn its failures into one-sentence errors.

RETRIES = 3
"""Retries of a chunk whose actor dies; a chunk that kills every actor is an error."""


def check(actors: int | None) -> None:
    """Refuses, without starting anything, to run without Ray, or with a number of actors out of range."""
    if importlib.util.find_spec("ray") is None:
        raise HarnessError("--engine ray needs Ray", "Install it with `pip install 'dcsft-harness[ray]'`")
    if actors is not None and actors < 1:
        raise HarnessError(f"--actors {actors} is out of range", "It must be at least 1")


def connect() -> bool:
    """Joins the cluster that RAY_ADDRESS names, or starts one here; returns whether this process did.

    Raises:
        HarnessError: the named cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports each start to its developers
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        _knock(address or "")
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        if address is None:
            raise HarnessError(f"no Ray cluster could be started: {said}", "See its logs") from error
        raise HarnessError(
            f"RAY_ADDRESS={address} cannot be reached: {said}",
            "Check it; a cluster with authentication needs RAY_AUTH_MODE=token and its token here too",
        ) from error
    return True


def _knock(address: str) -> None:
    """Raises `OSError` in seconds if HOST:PORT does not answer, where Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def slots(actors: int | None, on_cpu: bool) -> tuple[dict[str, int], int]:
    """The resources of one actor, and the number of actors; `actors` None takes every slot.

    More actors than slots are an error.
    """
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = "GPU" if there.get("GPU", 0) >= 1 and not on_cpu else "CPU"
    count = int(there.get(kind, 0))
    if count < (actors or 1):
        raise HarnessError(
            f"--actors {actors or 1} asks for more than the Ray cluster's {count} {kind} slots",
            "Ask for fewer, or add machines to the cluster",
        )
    return ({"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}), actors or count


@contextlib.contextmanager
def reporting_failures() -> Iterator[None]:
    """Raises an actor's own errors unchanged, and reports dead actors in one sentence."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, HarnessError) else error) from None
    except RayActorError as error:
        raise HarnessError(
            f"the actors of the Ray cluster die: {' '.join(str(error).split())[:300]}",
            f"A chunk was tried {1 + RETRIES} times; see the workers' logs, or lower batch_size",
        ) from error


# A model in many processes of a Ray cluster, as one lmms-eval model: `dcsft sample --engine ray`.
#
# Each actor holds the whole model. The driver reads the documents, sends chunks of items to free actors
# (Ray's `ActorPool`), and reports results as `ObservedModel` does, so they are saved immediately. Ray
# restarts an actor that died and retries its chunk. Draws are keyed by content, so it does not matter which
# actor draws what, or how often.


class _Anywhere(dict[str, Any]):
    """An actor's documents: none, because each item carries its messages."""

    def __missing__(self, _: object) -> "_Anywhere":
        return self


def _always(messages: Messages) -> Callable[[object], Messages]:
    """Replaces a task's function, which stays with the driver."""
    return lambda _: messages


class Answerer:
    """What an actor runs: one model, loaded on first use and again after a restart."""

    def __init__(self, name: str, arguments: str) -> None:
        """Stores what to load, as `lmms.open_model` takes it."""
        self._name, self._arguments = name, arguments
        self._model: ObservedModel | None = None

    def load(
        self,
    ) -> tuple[int, int, BoxConvention, Mapping[str, object], Sequence[str], Mapping[str, object]]:
        """Loads the model; returns what the driver has to know of it.

        That is the batch size, the seed, the box convention, the checkpoint's generation settings, the image
        tokens, and what the model adds to prompts.

        Raises:
            HarnessError: it cannot be loaded, or does not answer items.
        """
        model = self._opened()
        known = model.batch_size, model.seed, model.box_convention, model.checkpoint_generation
        return *known, model.media_marks, model.prompt_settings

    def _opened(self) -> ObservedModel:
        if self._model is None:
            model = lmms.open_model(self._name, self._arguments)
            if not isinstance(model, ObservedModel):
                raise HarnessError(
                    f"--engine ray: {self._name} answers all items at once and cannot be distributed",
                    "Use a model of this suite",
                )
            model.task_dict = _Anywhere()
            self._model = model
        return self._model

    def answer(
        self, number: int, items: list[Item], item_ids: Mapping[tuple[str, int], str], skip: bool
    ) -> tuple[int, list[list[Generation]], dict[tuple[str, int], str]]:
        """Answers one chunk of items of equal arguments; returns its number, responses and refusals.

        With `skip`, refused items are returned with the reason instead of raised.
        """
        model = self._opened()
        model.item_ids.update(item_ids)
        model.refused = {} if skip else None
        answered = model.answer(items)
        return number, answered, model.refused or {}


class SpreadModel(ObservedModel):
    """A model of this suite whose items are answered by actors.

    Attributes:
        processes: the number of actors.
    """

    def __init__(self, name: str, arguments: str, actors: int | None = None) -> None:
        """Connects to the cluster that RAY_ADDRESS names, or starts one here, and loads the models.

        `name` and `arguments` are those of `lmms.open_model`. `actors` None is one per GPU or, without GPUs,
        one per CPU slot.

        Raises:
            HarnessError: the cluster cannot be reached or is too small, or the model does not load.
        """
        super().__init__()
        self.device = torch.device("cpu")  # where lmms-eval's own tensors go
        self._mine = connect()
        options, self.processes = slots(actors, "device=cpu" in arguments.split(","))
        import ray

        remote = ray.remote(Answerer).options(max_restarts=-1, max_task_retries=RETRIES, **options)
        self._actors: list[Any] = [remote.remote(name, arguments) for _ in range(self.processes)]
        with reporting_failures():
            loaded = ray.get([actor.load.remote() for actor in self._actors])
        known = loaded[0]
        self.batch_size, self.seed, self._convention, self.checkpoint_generation = known[:4]
        self.media_marks, self.prompt_settings = known[4:]
        declare(self.box_convention)

    @property
    def box_convention(self) -> BoxConvention:
        """The coordinates that the actors' models write boxes in."""
        return getattr(self, "_convention", PIXEL)

    def _draw(self, waiting: list[Asked]) -> Iterator[int]:
        """Draws missing samples as actors become free; yields the number of finished items."""
        from ray.util import ActorPool

        pool, finished = ActorPool(self._actors), 0
        for queue in self._queues(waiting):
            size = min(self.batch_size, math.ceil(len(queue) / self.processes))
            underway: dict[int, list[Asked]] = {}
            sent = 0
            while queue or underway:
                # One chunk waits per actor, so that no actor waits for the driver to read images.
                while queue and len(underway) < 2 * self.processes:
                    underway[sent] = [queue.popleft() for _ in range(min(size, len(queue)))]
                    pool.submit(lambda actor, chunk: actor.answer.remote(*chunk), self._chunk(sent, underway))
                    sent += 1
                with reporting_failures():
                    number, answered, refused = pool.get_next_unordered()
                batch = underway.pop(number)
                placed = self._placed(batch, answered, refused)
                again = self._finish(list(zip(batch, placed, strict=True)))
                queue.extendleft(reversed(again))
                finished += len(batch) - len(again)
                yield finished

    def _chunk(self, number: int, underway: Mapping[int, list[Asked]]) -> tuple[Any, ...]:
        """What an actor needs to answer a chunk; items whose documents cannot be read are left out."""
        items, skip = [], self.refused is not None
        for _, item in underway[number]:
            try:
                # Images are read here: an actor may be on another machine.
                prompt = read_prompt(item, self.task_dict, None)
                messages = filled(prompt, lambda image: {"type": "image", "url": image})
                items.append(replace(item, to_messages=_always(messages)))
            except HarnessError as error:
                self._refuse(item, error)
        places = [(item.task, item.doc_id) for item in items]
        return (
            number,
            items,
            {place: self.item_ids[place] for place in places if place in self.item_ids},
            skip,
        )

    def _placed(
        self, batch: list[Asked], answered: list[list[Generation]], refused: Mapping[tuple[str, int], str]
    ) -> list[list[Generation]]:
        """The responses of each item of a batch; none for those refused by the driver or an actor."""
        if self.refused is not None:
            self.refused.update(refused)
        by_place = {(some[0].task, some[0].doc_id): some for some in answered if some}
        return [by_place.get((item.task, item.doc_id), []) for _, item in batch]

    def clean(self) -> None:
        """Ends the actors, and the cluster if it was started here."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._mine:
            ray.shutdown()
        super().clean()
