"""Cold start and SFT: a base and a curated set in, a checkpoint or an adapter out."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import BatchSampler, Sampler
from torch.utils.data import Dataset as MapDataset

from dcsft_harness.errors import HarnessError
from dcsft_harness.training.config import ColdStartConfig, SftConfig
from dcsft_harness.training.data import rendered
from dcsft_harness.training.run import Job, Setup, perform
from dcsft_harness.training.trainer import ROWS, Accounted, WithRows, arguments, managed

if TYPE_CHECKING:
    from datasets import Dataset as Rows
    from torch.utils.data import DataLoader

# How the processes of a launch share a training set: each row once per epoch, as in a single process.
#
# accelerate fills up an epoch's last batch with rows from its beginning, so that all processes get the same
# number. Here no row is repeated: a process without rows left for a forward pass runs it over a row whose
# loss is masked, so that all processes meet in each backward pass.

FILLING = -1
"""Replaces the row's number in a sample that is excluded from the loss."""


class Shares(BatchSampler):
    """The rows of one process's forward passes.

    Attributes:
        sampler: yields the rows of all processes, in the same order in each.
        batch_size: rows in a forward pass; the last one of an epoch may have fewer.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        accumulated: int,
        rank: int,
        processes: int,
        drop_last: bool,
    ) -> None:
        """Computes the batch from `batch_size`, `accumulated` passes and the number of processes."""
        super().__init__(sampler, batch_size, drop_last)
        self._accumulated, self._rank, self._processes = accumulated, rank, processes
        self._batch = batch_size * accumulated * processes

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of rows; a negative number -1 - row fills a missing place."""
        for batch in BatchSampler(self.sampler, self._batch, self.drop_last):
            yield from self._passes(batch)

    def __len__(self) -> int:
        """Forward passes of an epoch, the same number in each process."""
        whole, rest = divmod(len(self.sampler), self._batch)  # type: ignore[arg-type]
        return whole * self._accumulated + (0 if self.drop_last else self._needed(rest))

    def _needed(self, rows: int) -> int:
        """Forward passes per batch in the process with the largest share."""
        return math.ceil(math.ceil(rows / self._processes) / self.batch_size)

    def _passes(self, batch: list[int]) -> Iterator[list[int]]:
        at = [len(batch) * rank // self._processes for rank in (self._rank, self._rank + 1)]
        share = batch[at[0] : at[1]]
        for start in range(0, self._needed(len(batch)) * self.batch_size, self.batch_size):
            yield share[start : start + self.batch_size] or [-1 - batch[0]]


class Filled(MapDataset[dict[str, Any]]):
    """A training set indexed by the numbers of `Shares`.

    Attributes:
        total_dataset_length: accelerate uses it to drop repeated rows of an epoch's last batch from metrics;
            there are none here.
    """

    total_dataset_length = 0

    def __init__(self, rows: "Rows") -> None:
        """Wraps the set."""
        self._rows = rows

    def __len__(self) -> int:
        """The number of its rows."""
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A row; a filling row has the number `FILLING`."""
        if number >= 0:
            return dict(self._rows[number])
        return {**self._rows[-1 - number], "row": FILLING}


class Sharing:
    """A trainer whose launches share each batch as `Shares` does."""

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """The trainer's data loader; in a launch, of this process's share of each batch."""
        loader: DataLoader[Any] = super().get_train_dataloader()  # type: ignore[misc]
        trainer: Any = self
        processes, args = trainer.accelerator.num_processes, trainer.args
        if processes == 1:
            return loader
        share = Shares(
            trainer._get_train_sampler(trainer.train_dataset),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            trainer.accelerator.process_index,
            processes,
            args.dataloader_drop_last,
        )
        own = torch.utils.data.DataLoader(
            Filled(trainer.train_dataset),
            batch_sampler=share,
            collate_fn=trainer.data_collator,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )
        # As in a single process: the seed and the epoch's number decide the order.
        shared: DataLoader[Any] = prepare_data_loader(
            own,
            trainer.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
        )
        return shared


class SftTrainer(Sharing, Accounted, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with cost accounting, a stop at a bad loss, and sample weights."""

    def __init__(self, weights: Sequence[float] | None, **given: object) -> None:
        """Accepts SFTTrainer's arguments, and a weight for each row of the training set."""
        super().__init__(**given)
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        # transformers sets False for most vision-language models (their own loss ignores the count), and an
        # accumulated batch would then weigh micro-batches equally, whatever their number of tokens. The loss
        # here is TRL's, which divides by the tokens of the whole batch if it gets their count.
        self.model_accepts_loss_kwargs = True
        self.data_collator: Any = WithRows(self.data_collator)

    def spent(self, inputs: dict[str, Any]) -> dict[str, float]:
        """What a micro-batch adds to the account; its answers have labels."""
        return self.passed(inputs, int((inputs["labels"] != -100).sum()))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """TRL's loss; with weights, each token has its sample's weight.

        The sum over tokens is divided by their number, not by the sum of their weights: weights have mean 1
        over the whole set, so a batch of light samples moves the model less.
        """
        rows = inputs.pop(ROWS, None)
        if self._weights is None or rows is None:
            plain: torch.Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return plain
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        weights = self._weights[rows.cpu()].to(outputs.log_probs.device)
        count = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = -(outputs.log_probs * weights[:, None]).sum() / torch.as_tensor(count).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def train_sft(
    model: Path | str,
    data: Path | Dataset,
    output: Path,
    config: SftConfig | None = None,
    **more: Any,  # noqa: ANN401 - of `Job`
) -> dict[str, Any]:
    """Trains a LoRA adapter and writes it as a PEFT folder with a manifest; a checkpoint with `config.full`.

    The base is a folder or a hub name, recorded in adapter_config.json as given; the data a curated set, a
    folder written by `save_to_disk`, or an open dataset. The settings are the paper's by default; `more` are
    `Job`'s adapter, inputs and progress. Returns the manifest's notes: steps, ledger, last loss, adapted
    layers, and more.

    Raises:
        HarnessError: the data, the base or a setting cannot be used, or training diverges.
    """
    return perform(Job("sft", model, data, output, config or SftConfig(), **more), _make)


def train_cold_start(
    model: Path | str,
    data: Path | Dataset,
    output: Path,
    config: ColdStartConfig | None = None,
    **more: Any,  # noqa: ANN401 - of `Job`
) -> dict[str, Any]:
    """Trains all parameters and writes a checkpoint with processor, tokenizer and chat template.

    Weights are kept in float32 during training and saved in the base's dtype. Arguments, notes and errors are
    those of `train_sft`.
    """
    return perform(Job("cold-start", model, data, output, config or ColdStartConfig(), **more), _make)


def _make(setup: Setup) -> Callable[[], Any]:
    job = setup.job
    # TRL truncates samples at 1,024 tokens, inside a large image's tokens or the answer.
    ours = {**managed(job.config, setup.dtype, setup.folder), "max_length": None}
    args = arguments(trl.SFTConfig, ours, job.config.extra, {"gradient_checkpointing": setup.recomputes})
    if setup.conversations.weights is not None and (args.loss_type != "nll" or args.label_smoothing_factor):
        raise HarnessError(
            f"loss_type={args.loss_type}, label_smoothing_factor={args.label_smoothing_factor:g}: "
            f"{setup.conversations.name} has a column weight, which weighs the plain loss alone",
            "Leave them out, or curate without --weight",
        )
    check_processor(setup, "SFT")
    convention = setup.box_convention(any(turns.box is not None for turns in setup.conversations.turns))
    conversations, texts = rendered(
        setup.conversations, setup.template, convention, job.config.box_rounding == "truncate"
    )
    whole = dict(zip(conversations.numbers, texts, strict=True))
    setup.screen(conversations, [text.prompt + text.completion for text in texts])
    kept = setup.conversations
    prompts, completions = zip(*(whole[number] for number in kept.numbers), strict=True)
    dataset = kept.dataset(prompt=prompts, completion=completions)
    return setup.trainer(SftTrainer, args, dataset, weights=kept.weights)


def check_processor(setup: Setup, method: str) -> None:
    """Refuses a family whose processor changes an answer's tokens when TRL passes the answer alone.

    It takes no text without an image, or adds tokens in front of an answer. Errors name the method.
    """
    processor, text = setup.processor, "B"
    problem = f"TRL's {method} does not take {setup.job.model}: its {type(processor).__name__}"
    try:
        made = processor(text=[text], add_special_tokens=False)["input_ids"][0]
    except (TypeError, ValueError) as error:
        raise HarnessError(
            f"{problem} does not accept text without an image, such as an answer", "Use another base"
        ) from error
    if list(made) != (wanted := processor.tokenizer(text, add_special_tokens=False)["input_ids"]):
        shown = processor.tokenizer.decode(made)
        raise HarnessError(
            f"{problem} makes {len(made)} tokens ({shown!r}) of an answer of {len(wanted)}, which the model "
            "would learn to write",
            "Take another base",
        )
