"""`dcsft_hf`: any image-text-to-text checkpoint of transformers, as an lmms-eval chat model."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from dcsft_harness.coordinates import declare
from dcsft_harness.errors import HarnessError

from .arguments import ModelSettings
from .base import Answered, CheckpointModel
from .batching import Prepared, process_one, refusals
from .checkpoint import check_adapter, check_weights, load_model
from .decoding import Completion
from .engine import Engine
from .exact import Exact, PassRates, Target
from .requests import Asked, Item
from .resources import Arithmetic, place
from .scheduler import Scheduler

_LOG = logging.getLogger(__name__)


class DcsftHF(CheckpointModel):
    """A transformers checkpoint, with or without a PEFT adapter.

        lmms-eval --model dcsft_hf --model_args pretrained=CKPT,adapter=FOLDER,batch_size=8 ...

    The arguments are the fields of `arguments.ModelSettings`. All are checked before any weights are loaded;
    so is whether the adapter fits the base's modules.

    Only the request decides generation (`arguments.GenerationArguments`): unset arguments are neutral
    (greedy, no penalty, everything kept, at most `arguments.DEFAULT_MAX_NEW_TOKENS` tokens). Sampling
    settings, penalties and suppressed tokens in the checkpoint's `generation_config.json` are not used; its
    token ids are: a response ends at any end token that the tokenizer, that file or `config.json` names. With
    `generation_config=checkpoint` its penalties and sampling settings apply to what a request leaves unset,
    and a setting that cannot be applied is refused.

    Sampled responses are keyed by content: the draw for a token is a function of (seed, item, sample index,
    step, token). Batch size, order and number of processes do not change it, and torch's global generator is
    neither read nor advanced.
    """

    def __init__(self, **given: object) -> None:
        """Loads a model from `ModelSettings`' fields, also as text; errors name what cannot be used."""
        super().__init__()
        self.settings = ModelSettings.from_options(given)
        config = self._open_checkpoint(self.settings)
        self.device, accelerator = place(self.settings.device)
        if accelerator is not None:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        check_weights(self.settings, config)
        check_adapter(self.settings, config)
        self._load()
        declare(self.box_convention)

    def clean(self) -> None:
        """Frees the weights unless `keep_loaded`; lmms-eval calls it after a run."""
        if not self.keep_loaded:
            self.__dict__.pop("_engine", None)  # it holds a reference to the weights
            super().clean()

    def _load(self) -> None:
        self._model = load_model(self.settings, self.device)
        self._costs: Arithmetic | None = None
        try:
            self._costs = Arithmetic(self._model)
        except (AttributeError, NotImplementedError) as error:  # weights that cannot be classified
            _LOG.info("%s: its operations are not estimated (%s)", self.settings.pretrained, error)
        # `generate` fills unset arguments from here, so nothing but token ids may remain.
        self._model.generation_config = self._tokens.neutral_config()
        self._engine = Engine(self._model, self.processor, self._tokens, self.settings.memory_gb)

    def _stream(self, queue: deque[Asked]) -> Iterator[list[Answered]]:
        """Items are admitted as rows end; the samples of an item share one prefill."""
        if not hasattr(self, "_model"):
            self._load()
        arguments = queue[0][1].arguments
        samples = 1 if arguments.greedy else max(len(drawing.item.sample_indices) for drawing, _ in queue)
        prompt_tokens: dict[int, int] = {}
        unread: dict[int, tuple[int, int]] = {}  # tokens and patches of prompts not yet charged to an item

        def prepare(asked: Asked) -> Prepared:
            prepared = self._prepare(asked[1])
            prompt_tokens[id(asked[0])] = prepared.tokens
            if self._costs is not None:
                unread[id(asked[0])] = prepared.tokens, self._costs.patches(prepared.features)
            return prepared

        stream = Scheduler(
            self._engine,
            queue,
            prepare,
            lambda asked, error: self._refuse(asked[1], error),
            self._seed(queue[0][1]),
            self.batch_size * samples,
            hold=self.settled is not None,
        )
        for done in stream:
            answered = []
            for asked, completions in done:
                ticket = id(asked[0])
                rows = 1 if arguments.greedy else len(completions)
                read, patches = unread.pop(ticket, (0, 0))
                flops = partial(self._flops, read, patches, rows, arguments.use_cache)
                tokens = prompt_tokens.get(ticket, 0)
                answered.append((asked, self._generations(asked[1], completions, tokens, flops)))
            yield answered

    def _flops(
        self, tokens: int, patches: int, rows: int, cached: bool, completion: Completion
    ) -> float | None:
        """Operations of a response, with its share of its prompt's, of these tokens and image patches.

        `rows` responses were generated after the prompt. Without a cache of keys and values each token's step
        reads prompt and response again; transformers keeps what the vision tower found.
        """
        if self._costs is None:
            return None
        own = completion.n_tokens
        if not cached:
            return self._costs.forward(own * tokens + own * (own - 1) / 2, patches, own)
        share = rows if self._engine.shares_prompts or self._engine.forks else 1
        return self._costs.forward(tokens / share + own, patches / share, own)

    def _prepare(self, item: Item) -> Prepared:
        """Loads and processes an item, once for all of its responses."""
        prompt, text = self._render(item)
        with refusals(item.name):
            features = process_one(self.processor, text, prompt.images)
        size = features["input_ids"].shape[-1]
        if 0 < self._room < size:
            raise HarnessError(
                f"{item.name}: a prompt of {size} tokens, but the model takes {self._room}",
                "Shorten its text, or lower max_pixels",
            )
        return Prepared(item.name, self._key(item, prompt, text), features, text, tuple(prompt.images))

    def pass_rates(self, items: Sequence[Item], targets: Sequence[Target]) -> list[Exact]:
        """The exact probability of a right response to each item, see `exact`.

        Raises:
            HarnessError: a prompt cannot be read or processed, or see `PassRates.of`.
        """
        if not hasattr(self, "_model"):
            self._load()
        prepared = [self._prepare(item) for item in items]
        rates = PassRates(self._engine, items[0].arguments, self.batch_size)
        return rates.of(prepared, targets)
