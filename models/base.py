"""The shared base of the suite's models: request list, response cache, progress and stopping."""

import hashlib
import logging
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dcsft_harness import __version__, pictures
from dcsft_harness.artifacts.disk import file_sha256, folder_sha256, json_sha256
from dcsft_harness.coordinates import PIXEL, BoxConvention, declare, declared, taught
from dcsft_harness.errors import HarnessError
from dcsft_harness.lmms.documents import data_fingerprint, names_images
from dcsft_harness.lmms.protocols import Generation
from dcsft_harness.lmms.tasks import fix_examples, grounding, keep_ends, leaves
from dcsft_harness.reading import is_unset, refuse_malformed
from dcsft_harness.records import FROM_CHECKPOINT, PROMPTED
from dcsft_harness.scoring import Response

from . import MODELS
from .arguments import GenerationArguments, ModelSettings, VLLMSettings
from .batching import content_key
from .chat_template import media_marks, render
from .checkpoint import (
    check_intact,
    checkpoint_generation,
    convention,
    open_config,
    open_generation,
    open_processor,
    template_arguments,
)
from .decoding import Completion, SpecialTokens
from .requests import Asked, Drawing, Item, Prompt, Settled, plan, read_prompt

# lmms-eval's response cache (`--use_cache`) knows our models by content, and how their responses ended.
#
# lmms-eval's keys hold the model arguments and the task's configuration as text: a retrained adapter in the
# same folder would get its predecessor's answers, and other images under the same questions theirs. For our
# models the key also holds the content of every file that decides a response, that of each task's data, this
# package's version, how it shows images, and the images of a document whose row only names them. lmms-eval
# stores plain text: a response that ran out of tokens would come back as one that had ended.

_TEXTS = (".jinja", ".txt", ".model")
"""Suffixes of other checkpoint files (not configuration or weights) that decide its prompts."""
_TRUNCATED = "truncated"
"""Key of a stored response that ran out of tokens."""
_SHOWN = "shown"
"""Attribute of a request: the hash of the images that its document shows."""
_LOG = logging.getLogger(__name__)


def key_by_content() -> None:
    """Makes lmms-eval's cache key our models by content; a second call changes nothing.

    lmms-eval creates its cache after it has created the model, which is when this is called.
    """
    from lmms_eval.caching import response_cache
    from lmms_eval.caching.response_cache import ResponseCache

    make = ResponseCache.create
    if getattr(make, "keyed_by_content", False):
        return
    of_text = response_cache._extract_content_hash
    response_cache._extract_content_hash = lambda one: of_text(one) + vars(one).get(_SHOWN, "")

    class Marked(ResponseCache):  # type: ignore[misc]
        """Stores which responses ran out of tokens, and has the model expect no other rank."""

        naming: frozenset[str] = frozenset()  # the tasks whose rows only name their images

        @staticmethod
        def _extract_cacheable(response: object) -> object:
            text = ResponseCache._extract_cacheable(response)
            return {_TRUNCATED: text} if getattr(text, "truncated", False) else text

        def execute(self, lm: ObservedModel, reqtype: str, requests: list[Instance]) -> list[object]:
            lm.alone = True
            naming = [one for one in requests if one.task_name in self.naming]
            for item in plan(naming, lm.checkpoint_generation) if naming else ():
                with suppress(HarnessError):  # the model says which image cannot be read
                    images = read_prompt(item, lm.task_dict, None).images
                    for position in item.positions if images else ():
                        vars(naming[position])[_SHOWN] = content_key("", images)
            return list(super().execute(lm, reqtype, requests))

        def _lookup(self, cache_key: str) -> object:
            found = super()._lookup(cache_key)
            return Response(found[_TRUNCATED], truncated=True) if isinstance(found, dict) else found

    def create(
        cache_root: str,
        *,
        model: object = "",
        model_args: str | dict[str, Any] = "",
        task_dict: Mapping[str, Any] | None = None,
        **more: object,
    ) -> ResponseCache:
        given = {"model_args": model_args, "task_dict": task_dict, **more}
        if model not in MODELS:
            return make(cache_root, model=model, **given)
        found = make.__func__(Marked, cache_root, model=f"{model}|{fingerprint(model_args)}", **given)
        for name, task in leaves(task_dict or {}).items():
            found._task_fingerprints[name] += data_fingerprint(task)
            if names_images(task):
                found.naming |= {name}
        return found

    create.keyed_by_content = True  # type: ignore[attr-defined]
    ResponseCache.create = staticmethod(create)


def fingerprint(model_args: str | Mapping[str, Any] | None) -> str:
    """A hash of everything besides the argument text that decides a model's responses.

    Raises:
        NewerFormatError: a newer version wrote it.
    """
    from lmms_eval.utils import simple_parse_args_string

    given = simple_parse_args_string(model_args) if isinstance(model_args, str) else dict(model_args or {})
    parts: dict[str, object] = {"version": __version__, "pictures": pictures.FORMAT}
    for name, value in given.items():
        read = _READERS.get(name)
        if read is not None and value is not None:
            parts[name] = read(str(value))
    if given.get("generation_config") == "checkpoint":
        # A request without a temperature may then sample, which lmms-eval takes for greedy.
        parts["seed"] = torch.initial_seed()
    if given.get("base_url") is not None:
        _LOG.warning("--use_cache: a server's weights are unknown, so its answers are not reused")
        parts["run"] = uuid.uuid4().hex
    return json_sha256(parts)


def _checkpoint(name: str) -> object:
    """The content of a checkpoint or adapter folder; for a hub name, the cached commit."""
    folder = Path(name)
    if folder.is_dir():
        texts = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _TEXTS)
        return [folder_sha256(folder), *((path.name, file_sha256(path)) for path in texts)]
    from huggingface_hub import try_to_load_from_cache

    files = (try_to_load_from_cache(name, file) for file in ("config.json", "adapter_config.json"))
    # A cached file lies in snapshots/COMMIT.
    return [Path(found).parent.name for found in files if isinstance(found, str)]


def _file(name: str) -> str | None:
    path = Path(name)
    return file_sha256(path) if len(name) < 4096 and path.is_file() else None


_READERS: Mapping[str, Callable[[str], object]] = {
    "pretrained": _checkpoint,
    "adapter": _checkpoint,
    "system_prompt": _file,
    "answers": _file,
}
"""Model arguments that name files -> what to hash of them."""

Answered = tuple[Asked, list[Generation]]
"""The item, and a response per sample index; none if the item was refused."""

_SEEDS = 1 << 62
"""Upper bound of draw seeds; torch's are 64 bits."""


class UnavailableError(HarnessError):
    """The engine has failed: no item is the cause, so none is skipped."""


@dataclass
class Counts(TokenCounts):  # type: ignore[misc]
    """Token counts in lmms-eval's log format, with what is added to prompts and taken from the checkpoint."""

    # setting -> value; None if the generation config is not used
    from_checkpoint: dict[str, object] | None = None
    prompted: Mapping[str, object] | None = None  # the model's `prompt_settings`

    def to_dict(self) -> dict[str, Any]:
        """The log's entry."""
        more: dict[str, Any] = {} if self.prompted is None else {PROMPTED: dict(self.prompted)}
        more |= {} if self.from_checkpoint is None else {FROM_CHECKPOINT: self.from_checkpoint}
        return {**super().to_dict(), **more}


class ObservedModel(lmms):  # type: ignore[misc]
    """A chat model that answers items in batches and reports each finished batch.

    Attributes:
        box_convention: the coordinates that it writes boxes in, with its pixel limits.
        item_ids: (task, doc_id) to the content id that names an item across runs and keys its draws. A model
            derives its own key for items that are missing here.
        kept: (task, doc_id, sample_index) to a response from an earlier run; it is returned and neither
            redrawn nor reported.
        on_batch: called with the responses of each batch before the next one begins.
        on_progress: called with (items done, total items); None shows a bar on a terminal.
        settled: called between rounds; returns whether an item needs no more samples. Responses that are not
            drawn come back empty. None draws all samples at once.
        refused: (task, doc_id) to the reason why an item gets no response; these items are not sent to the
            model, and those that `_answer` refuses are added. None raises instead.
        seed: the seed of draws where a task sets none.
        batch_size: maximum number of items answered at once.
        alone: whether this rank must not wait for others: lmms-eval's cache has their responses.
        media_marks: texts in a prompt that the model reads as its own image, video and sound tokens.
        checkpoint_generation: settings from the checkpoint's generation config for requests that leave them
            unset; empty unless `generation_config=checkpoint`.
        prompt_settings: what the model adds to each prompt: `system_prompt_sha256` and the chat template's
            arguments in force as `chat_template_kwargs`, each only if there is any.
    """

    is_simple = False
    box_convention: BoxConvention = PIXEL

    def __init__(self) -> None:
        """A model without observers, content ids or kept responses."""
        super().__init__()
        key_by_content()
        fix_examples()  # before lmms-eval's command opens its tasks
        keep_ends()
        self.item_ids: dict[tuple[str, int], str] = {}
        self.kept: Mapping[tuple[str, int, int], Generation] = {}
        self.on_batch: Callable[[list[Generation]], None] | None = None
        self.on_progress: Callable[[int, int], None] | None = None
        self.settled: Settled | None = None
        self.refused: dict[tuple[str, int], str] | None = None
        self.seed = 0
        self.batch_size = 1
        self.alone = False
        self.media_marks: Sequence[str] = ()
        self.checkpoint_generation: Mapping[str, object] = {}
        self.prompt_settings: Mapping[str, object] = {}

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, object] | None = None
    ) -> "ObservedModel":
        """Creates a model from its arguments as text, `key=value,key=value`.

        When lmms-eval evaluates, it passes further arguments (batch size, device) and has already seeded
        torch with its `--seed`. That seed becomes the seed of draws unless the arguments name one, and values
        in the arguments take precedence. `--max_batch_size` is for models that find their batch size.
        """
        refuse_malformed("--model_args", arg_string)
        given = dict(utils.simple_parse_args_string(arg_string))
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        more.pop("max_batch_size", None)
        if additional_config is not None and is_unset(given.get("seed")):
            given["seed"] = torch.initial_seed() % _SEEDS
        return cls(**{**more, **given})

    def generation_in_force(self, given: Mapping[str, object] | None, task: str) -> dict[str, object]:
        """All generation settings that apply to a request with these arguments, by name."""
        return GenerationArguments.parse(given or {}, task, self.checkpoint_generation).model_dump()

    def generation_from_checkpoint(self, given: Mapping[str, object] | None, task: str) -> dict[str, object]:
        """The settings of `generation_in_force` that come from the checkpoint."""
        without = GenerationArguments.parse(given or {}, task).model_dump()
        return {k: v for k, v in self.generation_in_force(given, task).items() if v != without[k]}

    def _seed(self, item: Item) -> int:
        return self.seed if item.arguments.seed is None else item.arguments.seed

    def _answer(self, items: list[Item]) -> list[list[Generation]]:
        """The responses to items with equal generation arguments, one `Generation` per sample index.

        For models that answer in batches.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `_answer` nor `_stream`")

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers lmms-eval's requests, in their order.

        Raises:
            HarnessError: for an unsupported generation argument or an unreadable document,
                naming the task and the document.
        """
        declare(self.box_convention)
        if self.box_convention.space is None and grounding() & {request.task_name for request in requests}:
            declared()  # refuses the tasks before generation, not after it
        drawings = [Drawing(item, self._kept_of(item)) for item in plan(requests, self.checkpoint_generation)]
        waiting = [(drawing, left) for drawing in drawings if (left := self._next(drawing)) is not None]
        done = len(drawings) - len(waiting)
        hidden = self.on_progress is not None or self.rank != 0 or not sys.stderr.isatty()
        bar: tqdm = tqdm(total=len(drawings), disable=hidden, unit="item")
        progress: Callable[[int, int], object] = self.on_progress or (lambda n, _: bar.update(n - bar.n))
        if done:
            progress(done, len(drawings))
        for queue in self._queues(waiting):
            for answered in self._stream(queue):
                again = self._finish(answered)
                queue.extendleft(reversed(again))
                done += len(answered) - len(again)
                progress(done, len(drawings))
        bar.close()
        results = [GenerationResult("", TokenCounts(0, 0)) for _ in requests]
        applied = self._applied_to(requests)
        for drawing in drawings:
            for position, index in zip(drawing.item.positions, drawing.item.sample_indices, strict=True):
                if (one := drawing.have.get(index)) is not None:
                    tokens, settings = (one.n_prompt_tokens, one.n_tokens), applied(position)
                    counts = Counts(*tokens, from_checkpoint=settings, prompted=self.prompt_settings)
                    text = Response(one.response, truncated=one.finish_reason == "length")
                    results[position] = GenerationResult(text, counts)
        return results

    def _applied_to(self, requests: Sequence[Instance]) -> Callable[[int], dict[str, object] | None]:
        """The settings that the checkpoint adds to a request, by its position; None if they are not used."""
        found: dict[tuple[str, str], dict[str, object]] = {}
        used = getattr(getattr(self, "settings", None), "generation_config", None) == "checkpoint"

        def applied(position: int) -> dict[str, object] | None:
            if not used:
                return None
            _, _, given, _, task, _ = requests[position].args
            written = (task, repr(given))
            if written not in found:
                found[written] = self.generation_from_checkpoint(given, task)
            return found[written]

        return applied

    def _kept_of(self, item: Item) -> dict[int, Generation]:
        places = {index: (item.task, item.doc_id, index) for index in item.sample_indices}
        return {index: self.kept[place] for index, place in places.items() if place in self.kept}

    def _next(self, drawing: Drawing) -> Item | None:
        """The samples of an item that remain to be drawn."""
        if self.refused is not None and (drawing.item.task, drawing.item.doc_id) in self.refused:
            return None
        return drawing.next(self.settled)

    def _stream(self, queue: deque[Asked]) -> Iterator[list[Answered]]:
        """Takes items from a queue and yields finished ones with their responses, in groups.

        By the time the iteration resumes, yielded responses are saved and unsettled items are back at the
        front of the queue. This implementation answers one batch at a time through `_answer`.
        """
        while queue:
            batch = [queue.popleft() for _ in range(min(self.batch_size, len(queue)))]
            answered = self._answer_or_refuse([left for _, left in batch])
            yield list(zip(batch, answered, strict=True))

    def _queues(self, waiting: list[Asked]) -> Iterable[deque[Asked]]:
        """Groups items by generation arguments: a batch has only one set."""
        groups: dict[GenerationArguments, deque[Asked]] = {}
        for asked in waiting:
            groups.setdefault(asked[1].arguments, deque()).append(asked)
        return groups.values()

    def _finish(self, answered: list[Answered]) -> list[Asked]:
        """Reports finished items; returns the unsettled ones with their next samples."""
        new: list[Generation] = []
        for (drawing, _), generations in answered:
            greedy = drawing.item.arguments.greedy
            made = [replace(one, copied=greedy and number > 0) for number, one in enumerate(generations)]
            drawing.have.update({one.sample_index: one for one in made})
            new += made
        if self.on_batch is not None and new:
            self.on_batch(new)
        if self.settled is None:
            return []
        return [(drawing, left) for (drawing, _), _ in answered if (left := self._next(drawing)) is not None]

    def answer(self, items: list[Item]) -> list[list[Generation]]:
        """The responses to items with equal generation arguments, without reporting them.

        A refused item is an error unless `refused` is set.
        """
        queue = deque((Drawing(item), item) for item in items)
        drawings = [drawing for drawing, _ in queue]
        found: dict[int, list[Generation]] = {}
        for answered in self._stream(queue) if queue else ():
            found.update((id(drawing), generations) for (drawing, _), generations in answered)
        return [found[id(drawing)] for drawing in drawings]

    def _answer_or_refuse(self, items: list[Item]) -> list[list[Generation]]:
        """`_answer`, with empty responses for refused items if `refused` collects them."""
        try:
            return self._answer(items)
        except HarnessError as error:
            if self.refused is None or isinstance(error, UnavailableError):
                raise
            if len(items) > 1:  # one of them is to blame, and the others are answered
                return [answered for item in items for answered in self._answer_or_refuse([item])]
            self._refuse(items[0], error)
            return [[]]

    def _refuse(self, item: Item, error: HarnessError) -> None:
        """Adds an item to `refused`, or raises if `refused` is None."""
        if self.refused is None:
            raise error
        _LOG.warning("skipped: %s", error)
        self.refused[item.task, item.doc_id] = str(error)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported: tasks of these models generate text."""
        raise NotImplementedError(f"{type(self).__name__} answers `output_type: generate_until` tasks only")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported: these models answer single-turn documents."""
        raise NotImplementedError(
            f"{type(self).__name__} answers `output_type: generate_until` tasks only, one round per document"
        )


# What `dcsft_hf` and `dcsft_vllm` share: a checkpoint, opened and checked up to its weights.


class CheckpointModel(ObservedModel):
    """A model that reads prompts by a checkpoint's own processor.

    Attributes:
        processor: the checkpoint's own, and `tokenizer` that of it.
        keep_loaded: whether weights stay in memory when lmms-eval calls `clean` after a run; otherwise the
            next run loads them again.
    """

    def _open_checkpoint(self, settings: ModelSettings | VLLMSettings) -> PreTrainedConfig:
        """Opens all but the weights; returns the configuration."""
        self.seed, self.batch_size, self.keep_loaded = settings.seed, settings.batch_size, False
        prompt = settings.system_prompt
        self._system_prompt = self._system_prompt_of(prompt.replace("\\n", "\n")) if prompt else None
        check_intact(settings)
        config = open_config(settings)
        self.processor = open_processor(settings)
        self.tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        self._template_arguments = template_arguments(settings, warn=True)
        system = self._system_prompt
        hashed = {} if not system else {"system_prompt_sha256": hashlib.sha256(system.encode()).hexdigest()}
        given = {"chat_template_kwargs": self._template_arguments} if self._template_arguments else {}
        self.prompt_settings = {**hashed, **given}
        self.media_marks = media_marks(self.processor, config)
        space = settings.box_space or taught(settings.adapter, settings.pretrained)
        self.box_convention = convention(config, self.processor, space)
        self._tokens = SpecialTokens.of(self.tokenizer, open_generation(settings), config)
        self.checkpoint_generation = checkpoint_generation(settings)
        # The most tokens of a sequence, or 0.
        self._room = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 0)
        return config

    def _system_prompt_of(self, value: str) -> str:
        """The system prompt, or the content of its file.

        Raises:
            HarnessError: the value looks like a file's name, and the file does not exist.
        """
        # "/no_think" is a prompt.
        named = "/" in value[1:] or value.endswith((".txt", ".md"))
        if named and len(value.split()) == 1 and not Path(value).is_file():
            raise HarnessError(
                f"system_prompt={value}: the file does not exist",
                "Check the path; a text with a space in it is taken as the prompt itself",
            )
        return str(self._resolve_system_prompt(value))

    def _render(self, item: Item) -> tuple[Prompt, str]:
        prompt = read_prompt(item, self.task_dict, self._system_prompt)
        return prompt, render(self.processor, prompt.messages, item.name, True, self._template_arguments)

    def _key(self, item: Item, prompt: Prompt, text: str) -> str:
        return self.item_ids.get((item.task, item.doc_id)) or content_key(text, prompt.images)

    def _generations(
        self,
        item: Item,
        completions: Sequence[Completion],
        prompt_tokens: int,
        flops: Callable[[Completion], float | None] = lambda _: None,
        prefilled: int | None = None,
    ) -> list[Generation]:
        """What the observers see of an item: one `Generation` per sample index; empty if it was refused.

        The first one has all tokens that were `prefilled` for the item.
        """
        return [
            Generation(
                task=item.task,
                doc_id=item.doc_id,
                sample_index=index,
                response=completion.text,
                n_prompt_tokens=prompt_tokens,
                n_tokens=completion.n_tokens,
                finish_reason=completion.finish_reason,
                seed=self._seed(item),
                flops=flops(completion),
                n_prefilled=prefilled if prefilled is None or index == item.sample_indices[0] else 0,
            )
            for index, completion in zip(item.sample_indices, completions, strict=bool(completions))
        ]
