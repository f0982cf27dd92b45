"""`dcsft_vllm`: a checkpoint in vLLM's own engine or behind `vllm serve`, as an lmms-eval chat model."""

import logging
import os
from collections.abc import Callable, Sequence

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from peft import PeftConfig
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from dcsft_harness import ranks
from dcsft_harness.artifacts.lock import Scratch
from dcsft_harness.coordinates import declare
from dcsft_harness.errors import HarnessError, reporting_refusals
from dcsft_harness.lmms.protocols import Generation

from .adapters import read_config
from .arguments import VLLMSettings
from .base import CheckpointModel, UnavailableError
from .batching import Features, count_tokens, process, refusals, tokenize
from .checkpoint import check_adapter, check_weights
from .decoding import Endings
from .merging import merge
from .pixel_limits import call_size
from .requests import Item, Prompt, plan
from .vllm_backends import (
    SERVED_RANKS,
    Draw,
    Drawn,
    Limits,
    OfflineEngine,
    Server,
    check,
    neighbors,
    require_vllm,
    sample_seed,
)
from .weights import check_stored

# How an adapter reaches vLLM: unmerged if vLLM serves its modules, else merged.

_LOG = logging.getLogger(__name__)

# LoRA initializations that leave the base's weights unchanged.
_PLAIN_STARTS = (True, False, None, "gaussian")

_OPTIONS = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "alora_invocation_tokens",
)
"""Options of PEFT's LoRA that some vLLM versions ignore or refuse."""


class Adapted:
    """A base with or without an adapter, as vLLM can load it.

    Attributes:
        rank: the adapter's, if it is sent as a LoRA request; else None.
    """

    def __init__(self, settings: VLLMSettings, model: PreTrainedModel | None) -> None:
        """Merges nothing yet; `model` is what `check_adapter` returns."""
        self._settings = settings
        self.rank = None if model is None or settings.merge_adapter else served_rank(settings, model)
        self._merged: Scratch | None = None
        self._folder: str | None = None

    def checkpoint(self, features: Callable[[], Features], alone: bool = False) -> str:
        """The base, or its merge with the adapter, created on first use, once per machine.

        Every rank of a launch must call it, unless each is `alone` and merges for itself. `features` returns
        the processor's output for a prompt, on which the merge is compared.

        Raises:
            HarnessError: the merge does not behave like the adapter.
        """
        settings = self._settings
        if settings.adapter is None or self.rank is not None:
            return settings.pretrained
        if self._folder is None and alone:
            self._folder = self._merge(settings.adapter, features())
        if self._folder is None:
            with ranks.agreed():
                if ranks.world_size() == 1 or os.environ.get("LOCAL_RANK", "0") == "0":
                    self._folder = self._merge(settings.adapter, features())
            machine = os.environ.get("GROUP_RANK", "0")
            folders = {where: one for where, one in ranks.gathered((machine, self._folder)) if one}
            self._folder = self._folder or folders[machine]
        return self._folder

    def _merge(self, adapter: str, features: Features) -> str:
        """Merges into a temporary folder, and returns it."""
        base, trust = self._settings.pretrained, self._settings.trust_remote_code
        self._merged = Scratch("dcsft_merged")
        folder = self._merged.folder
        _LOG.warning("adapter %s is merged into a temporary checkpoint first, not served unmerged", adapter)
        try:
            with reporting_refusals(f"merge of adapter {adapter}", folder, "nothing was kept", "TMPDIR"):
                parity = merge(base, adapter, folder, [features], trust)
        except BaseException:
            self.remove()
            raise
        _LOG.info("merged %s; logits differ by %.2g standard deviations", adapter, parity.in_deviations)
        return str(folder)

    def remove(self) -> None:
        """Removes the merged checkpoint, if there is one."""
        if self._merged is not None:
            self._merged.remove()
        self._merged = self._folder = None


def served_rank(settings: VLLMSettings, model: PreTrainedModel) -> int | None:
    """The rank with which vLLM can serve `settings.adapter` as a LoRA request; None where it must be merged.

    vLLM serves plain LoRA on linear layers of the language model. It ignores some of PEFT's options and skips
    modules elsewhere, such as the vision tower's. So every adapter that is not certain to be served is
    merged. `model` has the adapter on its modules.
    """
    assert settings.adapter is not None
    adapter = read_config(settings.adapter, settings.pretrained)
    decoder = model.get_decoder()
    if not _plain(adapter) or decoder is model:
        return None
    served = {
        id(module)
        for module in decoder.modules()
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), torch.nn.Linear)
    }
    adapted = {id(module) for module in model.modules() if isinstance(module, LoraLayer)}
    return int(adapter.r) if adapted <= served else None


def _plain(adapter: PeftConfig) -> bool:
    """Whether an adapter is plain LoRA, without options."""
    if str(getattr(adapter.peft_type, "value", adapter.peft_type)) != "LORA" or adapter.r > SERVED_RANKS[-1]:
        return False
    return (
        not any(getattr(adapter, name, None) for name in _OPTIONS)
        and adapter.bias == "none"
        and adapter.init_lora_weights in _PLAIN_STARTS
    )


class DcsftVLLM(CheckpointModel):
    """A checkpoint that vLLM generates from.

        lmms-eval --model dcsft_vllm --model_args pretrained=CKPT,adapter=FOLDER --batch_size auto ...

    The arguments are the fields of `arguments.VLLMSettings`. They and the adapter's fit are checked at once;
    the engine is opened with the first requests, because their prompts determine its limits.

    As with `dcsft_hf`, only the request decides generation, and the same code turns token ids into responses:
    texts, counts and finish reasons mean the same. What vLLM cannot apply is refused (`vllm_backends.check`).

    A sample's seed is a function of (seed, item, sample index), and vLLM gives each sample its own generator:
    order, batch size, rounds and restarts do not change its random numbers. vLLM does not promise
    bit-identical logits in different batches. Where two tokens are within rounding of each other, another
    batch may choose the other one; this is rare in float32, but not in half precision. The draws differ from
    those of `dcsft_hf`; their distribution does not.
    """

    def __init__(self, **given: object) -> None:
        """Checks everything that can be checked without vLLM, from `VLLMSettings`' fields, also as text.

        Raises:
            HarnessError: for an unknown or unusable argument, checkpoint or adapter, a missing
                vLLM, or a server that cannot be reached.
        """
        super().__init__()
        self.settings = VLLMSettings.from_options(given)
        local = self.settings.base_url is None
        if local:
            require_vllm()
        base = self.settings.pretrained
        config = self._open_checkpoint(self.settings)
        self._size = call_size(self.processor, base, self.settings.trust_remote_code)
        self.device = torch.device("cpu")  # lmms-eval's own tensors; vLLM has the accelerator
        if local:  # a server has weights of its own
            check_weights(self.settings, config)
            check_stored(base)
        self._adapted = Adapted(self.settings, check_adapter(self.settings, config))
        self._backend: OfflineEngine | Server | None = None
        self._limits: Limits | None = None
        if not local:
            self._backend = Server(self.settings, self._size, self._template_arguments)
        declare(self.box_convention)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers lmms-eval's requests, in their order, in an engine that is large enough for all of them.

        Raises:
            HarnessError: for an unsupported generation argument, an unreadable document, or a
                checkpoint that vLLM refuses.
        """
        items = plan(requests, self.checkpoint_generation)
        for arguments, task in dict.fromkeys((item.arguments, item.task) for item in items):
            check(arguments, task)
        left = [item for item in items if len(self._kept_of(item)) < len(item.sample_indices)]
        local = self.settings.base_url is None
        if local and any([bool(left)] if self.alone else ranks.gathered(bool(left))):
            limits = self._needed(left) if left else None
            checkpoint = self._adapted.checkpoint(lambda: self._first_features(items), self.alone)
            if limits is not None:
                self._open(checkpoint, limits)
        return super().generate_until(requests)

    def clean(self) -> None:
        """Closes the engine unless `keep_loaded`; lmms-eval calls it after a run."""
        if not self.keep_loaded:
            self._close()
            self._adapted.remove()
            super().clean()

    def _close(self) -> None:
        if self._backend is not None and self.settings.base_url is None:
            self._backend.close()
            self._backend = None

    def _open(self, checkpoint: str, limits: Limits) -> None:
        """Opens the engine, or a larger one if the current one is too small."""
        if self._backend is not None and self._limits is not None:
            if limits.tokens <= self._limits.tokens and limits.images <= self._limits.images:
                return
            self._close()
        self._backend = OfflineEngine(checkpoint, self.settings, limits, self._size, self._adapted.rank)
        self._limits = limits

    def _first_features(self, items: list[Item]) -> Features:
        """The processor's output for the first readable prompt."""
        for item in items:
            try:
                prompt, text = self._render(item)
                with refusals(item.name):
                    return process(self.processor, [text], [prompt.images])
            except HarnessError:
                if self.refused is None:
                    raise
        raise HarnessError(
            "no prompt of the task can be read, to compare the merged adapter on", "Check the data"
        )

    def _needed(self, items: list[Item]) -> Limits:
        """The user's limits; the prompts' maximum where none is given."""
        tokens, images = self.settings.max_model_len, self.settings.max_images
        if tokens is not None and images is not None:
            return Limits(tokens, images)
        sizes: list[tuple[int, int]] = []
        for item in items:
            try:
                prompt, _, _, size = self._sized(item)
                sizes.append((size + item.arguments.max_new_tokens, len(prompt.images)))
            except HarnessError:  # it will be refused
                if self.refused is None:
                    raise
        longest = max((tokens for tokens, _ in sizes), default=self._room or 1)
        longest = min(longest, self._room or longest)
        most = max((images for _, images in sizes), default=0)
        return Limits(longest if tokens is None else tokens, most if images is None else images)

    def _sized(self, item: Item) -> tuple[Prompt, str, list[int], int]:
        """An item's prompt, its text, the text's token ids, and its number of tokens with those of images."""
        prompt, text = self._render(item)
        with refusals(item.name):
            tokens = tokenize(self.processor, text)
            return prompt, text, tokens, count_tokens(self.processor, text, tokens, prompt.images)

    def _answer(self, items: list[Item]) -> list[list[Generation]]:
        assert self._backend is not None
        arguments = items[0].arguments
        endings = Endings(self.tokenizer, arguments, self._tokens)
        asked = [self._draws(item) for item in items]
        every = [draw for draws in asked for draw in draws]
        drawn = iter(self._backend.draw(every, arguments, endings.tokens.eos))
        found = [[next(drawn) for _ in draws] for draws in asked]
        for draws, parts in zip(asked, found, strict=True):
            self._check_limits(draws[0], parts[0])
        return [self._answered(item, parts, endings) for item, parts in zip(items, found, strict=True)]

    def _draws(self, item: Item) -> list[Draw]:
        """What an item needs: one draw for a greedy response, else one per run of sample indices."""
        prompt, text, tokens, size = self._sized(item)
        self._check_room(size, prompt, item)
        if item.arguments.greedy:
            return [Draw(item.name, prompt, tokens, size, 1, None)]
        seed, key = self._seed(item), self._key(item, prompt, text)
        return [
            Draw(item.name, prompt, tokens, size, len(run), sample_seed(seed, key, run[0]))
            for run in neighbors(item.sample_indices)
        ]

    def _check_limits(self, asked: Draw, drawn: Drawn) -> None:
        """Compares vLLM's token count of a prompt with the count under the given pixel limits.

        Raises:
            UnavailableError: vLLM resizes images by other limits, which affects every item.
        """
        if self._size is None or drawn.n_prompt_tokens == asked.size:
            return
        raise UnavailableError(
            f"{asked.name}: min_pixels={self.box_convention.min_pixels}, "
            f"max_pixels={self.box_convention.max_pixels} make a prompt of {asked.size} tokens, but vLLM "
            f"made {drawn.n_prompt_tokens}, so that the limits have no effect there",
            "Set them in the checkpoint's preprocessor_config.json and leave them out here, or use dcsft_hf",
        )

    def _check_room(self, size: int, prompt: Prompt, item: Item) -> None:
        """Refuses a prompt that is too long for its response, or has too many images; names the limit."""
        if self._limits is None:
            return  # the server knows its own
        needed = size + item.arguments.max_new_tokens
        if needed > self._limits.tokens:
            raise HarnessError(
                f"{item.name}: a prompt of {size} tokens and a response of up to "
                f"{item.arguments.max_new_tokens} do not fit into {self._limits.tokens}",
                f"Raise max_model_len to {needed}, or lower max_pixels or max_new_tokens",
            )
        if len(prompt.images) > self._limits.images:
            raise HarnessError(
                f"{item.name}: {len(prompt.images)} images, but max_images={self._limits.images}",
                f"Set max_images={len(prompt.images)}",
            )

    def _answered(self, item: Item, drawn: list[Drawn], endings: Endings) -> list[Generation]:
        completions = [endings.cut(row) for one in drawn for row in one.rows]
        copies = len(item.sample_indices) if item.arguments.greedy else 1
        known = [one.n_prefilled for one in drawn if one.n_prefilled is not None]
        prefilled = sum(known) if len(known) == len(drawn) else None
        return self._generations(item, completions * copies, drawn[0].n_prompt_tokens, prefilled=prefilled)
