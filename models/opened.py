"""What `dcsft_hf` and `dcsft_vllm` share: a checkpoint, opened and checked up to its weights."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dcsft_harness.coordinates import BoxConvention, taught
from dcsft_harness.lmms.protocols import Generation

from .arguments import ModelSettings, VLLMSettings
from .base import ObservedModel
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
from .decoding import Completion
from .requests import Item, Prompt, content_key, read_prompt


class CheckpointModel(ObservedModel):
    """A model that reads prompts by a checkpoint's own processor.

    Attributes:
        keep_loaded: whether weights stay in memory when lmms-eval calls `clean` after a run; otherwise the
            next run loads them again.
    """

    def _open_checkpoint(
        self, settings: ModelSettings | VLLMSettings, checkpoint: ModelSettings
    ) -> tuple[PreTrainedConfig, int]:
        """Opens all but the weights; returns the configuration, and the most tokens of a sequence, or 0."""
        self.seed, self.batch_size, self.keep_loaded = settings.seed, settings.batch_size, False
        prompt = settings.system_prompt
        self._system_prompt = self._resolve_system_prompt(prompt.replace("\\n", "\n")) if prompt else None
        check_intact(checkpoint)
        config = open_config(checkpoint)
        self.processor = open_processor(checkpoint)
        self._template_arguments = template_arguments(checkpoint, warn=True)
        self.media_marks = media_marks(self.processor, config)
        space = checkpoint.box_space or taught(checkpoint.adapter, checkpoint.pretrained)
        self._convention = convention(config, self.processor, space)
        self._generation_config = open_generation(checkpoint)
        self.checkpoint_generation = checkpoint_generation(checkpoint)
        return config, int(getattr(config.get_text_config(), "max_position_embeddings", None) or 0)

    @property
    def box_convention(self) -> BoxConvention:
        """The coordinates that this model writes boxes in, with its pixel limits."""
        return self._convention

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def _render(self, item: Item) -> tuple[Prompt, str]:
        """An item's prompt, and its text."""
        prompt = read_prompt(item, self.task_dict, self._system_prompt)
        return prompt, render(self.processor, prompt.messages, item.name, True, self._template_arguments)

    def _key(self, item: Item, prompt: Prompt, text: str) -> str:
        """What keys an item's draws."""
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
