"""GRPO: a base, prompts and the task that judges completions in; an adapter or a checkpoint out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
import trl
from datasets import Dataset

from dcsft_harness import coordinates, records
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.chat_template import render
from dcsft_harness.models.decoding import SpecialTokens
from dcsft_harness.training import grpo_checks as checks
from dcsft_harness.training.config import GrpoConfig
from dcsft_harness.training.data import Conversations
from dcsft_harness.training.job import Job, JobOptions, Setup
from dcsft_harness.training.judge import Judge
from dcsft_harness.training.run import perform
from dcsft_harness.training.trainer import Accounted, arguments, managed, quietly

if TYPE_CHECKING:
    from trl.trainer.utils import RepeatSampler


class GrpoTrainer(Accounted, trl.GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer that counts, stops at the first bad loss, and logs how groups come out.

    Its log has the mean reward, the divergence `kl` (nats a token), the completions' mean length (tokens),
    and the shares of prompts by their group's outcome.
    """

    logged = {
        "reward": "reward",
        "kl": "kl",
        "completions/mean_length": "completion_length",
        "completions/clipped_ratio": "truncated",
        "all_right": "all_right",
        "mixed": "mixed",
        "all_wrong": "all_wrong",
        "unscored": "unscored",
        "zero_advantage": "zero_advantage",
    }

    def training_step(
        self, model: torch.nn.Module, inputs: object, *rest: object, **named: object
    ) -> torch.Tensor:
        """One forward and backward pass over a micro-batch of completions.

        Raises:
            HarnessError: the loss is not finite; the weights are still those of the last step.
        """
        loss = super().training_step(model, inputs, *rest, **named)
        self.refuse_infinite(loss)
        return loss  # type: ignore[no-any-return]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> "_Order":
        given = super()._get_train_sampler(dataset)
        return _Order(given, self.args.seed, lambda: int(self.state.epoch or 0))

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Sequence[Sequence[object] | None] | None,
        *rest: object,
        **named: object,
    ) -> object:
        """TRL's; a vLLM in this process gets one token an image, as it writes out the others itself."""
        if self.use_vllm and self.vllm_mode == "colocate" and images is not None:
            token = self.processing_class.image_token_id
            prompt_ids = [
                one_an_image(ids, token, len(some or ()))
                for ids, some in zip(prompt_ids, images, strict=True)
            ]
        return super()._generate_single_turn(prompt_ids, images, *rest, **named)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's: draws and judges a batch of completions; counted here, as a batch is drawn once."""
        self._rows = [example["row"] for example in inputs]
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        prompt = int(made["prompt_mask"].sum())
        completion = int(made["completion_mask"].sum())
        flops = 0.0
        if (costs := self.account.costs) is not None:
            tokens, patches = prompt + completion, costs.patches(made)
            # Drawing is one forward pass, the reference's log-probabilities and the old ones are others.
            extra = (made.get("ref_per_token_logps") is not None) + (
                made.get("old_per_token_logps") is not None
            )
            flops = (1 + extra) * costs.forward(tokens, patches) + self.num_iterations * costs.training(
                tokens, patches
            )
        self.account.count(
            prompts=len(inputs) / self.num_generations,
            generated=len(inputs),
            prompt_tokens=prompt,
            completion_tokens=completion,
            flops=flops,
        )
        return made

    def _calculate_rewards(self, *given: object) -> torch.Tensor:
        """TRL's, for the groups of all processes; the shares of groups by outcome are logged."""
        rewards: torch.Tensor = super()._calculate_rewards(*given)
        for name, share in outcomes(rewards[:, 0].view(-1, self.num_generations)).items():
            self._metrics["train"][name].append(share)
        return rewards


class _Order(torch.utils.data.Sampler[int]):
    """TRL's sampler, with an order that an epoch's number decides.

    Its own generator goes on from epoch to epoch, so that a run that is gone on with in its second epoch
    would see the first one's order again.
    """

    def __init__(self, inner: "RepeatSampler", seed: int, epoch: Callable[[], int]) -> None:
        self._inner, self._seed, self._epoch = inner, seed, epoch

    def __iter__(self) -> Iterator[int]:
        if self._inner.shuffle:
            self._inner.generator.manual_seed(self._seed * 1_000_003 + self._epoch())
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)


def one_an_image(ids: Sequence[int], token: int, images: int) -> list[int]:
    """Token ids in which each run of `token` is a single one.

    Raises:
        HarnessError: there are other than `images` runs, as of a model that lays an image out in tiles: what
            vLLM would write out again could not be told.
    """
    made = [found for at, found in enumerate(ids) if found != token or at == 0 or ids[at - 1] != token]
    if made.count(token) != images:
        raise HarnessError(
            f"use_vllm=true: {images} images are written as {made.count(token)} runs of image tokens, "
            "which a vLLM in this process would write out once more",
            "Leave use_vllm out, or give vllm_mode=server",
        )
    return made


def outcomes(rewards: torch.Tensor) -> dict[str, float]:
    """Shares of prompts by how their group came out.

    Args:
        rewards: shape (prompts, G), in [0, 1]; NaN for a completion that could not be scored.

    Returns:
        `all_right`, `mixed`, `all_wrong` and `unscored` (no completion could be scored), which add up to
        1; and `zero_advantage`, the share of prompts whose rewards are all equal, so that only the
        divergence term moves the model for them.
    """
    known = ~torch.isnan(rewards)
    right = torch.where(known, rewards >= records.RIGHT, False).sum(1)
    count = known.sum(1)
    unscored = count == 0
    all_right, all_wrong = (right == count) & ~unscored, (right == 0) & ~unscored
    high = torch.where(known, rewards, -torch.inf).amax(1)
    low = torch.where(known, rewards, torch.inf).amin(1)
    found = {
        "all_right": all_right,
        "mixed": ~(all_right | all_wrong | unscored),
        "all_wrong": all_wrong,
        "unscored": unscored,
        "zero_advantage": (high == low) | unscored,
    }
    return {name: float(groups.float().mean()) for name, groups in found.items()}


def train_grpo(
    model: Path | str,
    data: Path | Dataset,
    judge: Judge,
    output: Path,
    config: GrpoConfig | None = None,
    **more: Unpack[JobOptions],
) -> dict[str, Any]:
    """Trains by GRPO and writes an adapter, or with `config.full` a checkpoint.

    Completions are drawn anew for each step by transformers, or by vLLM with TRL's own arguments
    `use_vllm` and `vllm_mode` in `config.extra`. The trainer gets prompts and images, and no answer.

    Args:
        model: the base, a folder or a hub name.
        data: a curated set or an open data set, with item ids.
        judge: the task that the items come from.
        output: the folder to write; must not exist, or be empty.
        config: the settings; the paper's where left out.
        more: `Job`'s adapter, inputs and progress.

    Returns:
        The manifest's notes: steps, ledger, last loss, shares of groups and so on.

    Raises:
        HarnessError: the data, the base or a setting cannot be used, or training diverges.
    """
    job = Job("grpo", model, data, output, config or GrpoConfig(), **more)
    return perform(job, lambda setup: _make(setup, judge))


def prompts(conversations: Conversations) -> Dataset:
    """The training set as GRPOTrainer reads it: prompt (messages), images and row; no answer.

    Raises:
        HarnessError: the set has no item ids, by which completions are judged.
    """
    if conversations.item_ids is None:
        raise HarnessError(
            f"{conversations.name} has no column item_id, by which completions are judged",
            "Give a set written by `dcsft curate`, or a task",
        )
    rows = Dataset.from_dict({"row": list(range(len(conversations.turns)))})

    def filled(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        turns = [conversations.turns[row].prompt for row in batch["row"]]
        images = [conversations.images(row) for row in batch["row"]]
        return {"prompt": turns, "images": images, "row": list(batch["row"])}

    return rows.with_transform(filled)


def _screen(setup: Setup, longest: int) -> None:
    """Skips or refuses prompts that template, processor or base do not take; see `Setup.screen`."""
    conversations = setup.conversations
    texts: list[str] = []
    refused: dict[int, HarnessError] = {}
    for position, turns in enumerate(conversations.turns):
        where = conversations.where(position)
        try:
            texts.append(render(setup.processor, turns.prompt, where, add_generation_prompt=True))
        except HarnessError as error:
            refused[position] = error
    setup.screen(conversations.without(refused), texts, longest)


def _managed(config: GrpoConfig, longest: int) -> dict[str, Any]:
    """The arguments of `trl.GRPOConfig` that our settings decide."""
    return {
        "num_generations": config.num_generations,
        "beta": config.beta,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_completion_length": longest,
    }


def _make(setup: Setup, judge: Judge) -> Callable[[], GrpoTrainer]:
    config = setup.job.config
    assert isinstance(config, GrpoConfig)
    checks.check_processor(setup)
    # TRL pads prompts on the left, and what it takes from the processor anew is padded by this alone:
    # which tokens are images would otherwise be said of other ones.
    setup.processor.tokenizer.padding_side = "left"
    longest = config.max_completion_length or judge.longest
    _screen(setup, longest)
    ids = setup.conversations.item_ids or []
    dataset = prompts(setup.conversations)
    checks.check_prompts(setup.conversations, judge, config)
    ours = {**managed(config, setup.dtype, setup.folder), **_managed(config, longest)}
    # Each completion counts alike, as in the paper's trainer.
    args = arguments(trl.GRPOConfig, ours, config.extra, {"loss_type": "grpo"})
    checks.check_draws(args, config)
    if args.use_vllm:
        checks.check_vllm(args, setup)
    else:
        checks.check_generation(str(setup.job.model), args)
    coordinates.declare(setup.box_convention(judge.reads_boxes))

    def reward(
        completions: Sequence[Any],
        row: Sequence[int],
        completion_ids: Sequence[Sequence[int]],
        **rest: object,
    ) -> list[float | None]:
        texts = [completion[0]["content"] for completion in completions]
        ends = SpecialTokens.of(setup.processor.tokenizer, setup.network.generation_config).eos
        cut = [len(tokens) >= longest and tokens[-1] not in ends for tokens in completion_ids]
        return [judge.reward(ids[number], *one) for number, *one in zip(row, texts, cut, strict=True)]

    def make() -> GrpoTrainer:
        with quietly():
            return GrpoTrainer(
                model=setup.network,
                reward_funcs=reward,
                args=args,
                train_dataset=dataset,
                processing_class=setup.processor,
                peft_config=setup.peft_config,
            )

    return make
