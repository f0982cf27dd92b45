"""GRPO: a base, prompts and a scoring task in; an adapter or a checkpoint out."""

import contextlib
import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from dcsft_harness import coordinates, curation, lmms, ranks, records
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.curation import conversations
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.lmms.protocols import cut_at
from dcsft_harness.models.arguments import (
    DEFAULT_MAX_NEW_TOKENS,
    ModelSettings,
    checkpoint_settings,
    stop_texts,
    token_limit,
)
from dcsft_harness.models.batching import Batcher, Prepared
from dcsft_harness.models.chat_template import render
from dcsft_harness.models.checkpoint import open_generation, open_processor
from dcsft_harness.models.decoding import SpecialTokens
from dcsft_harness.models.pixel_limits import limits_in_force
from dcsft_harness.sampling import ITEMS, own_data, own_files
from dcsft_harness.scoring import Response
from dcsft_harness.training import shared_prompts
from dcsft_harness.training.config import GrpoConfig
from dcsft_harness.training.data import Conversations
from dcsft_harness.training.run import Job, Setup, perform
from dcsft_harness.training.trainer import ROWS, Accounted, arguments, managed, not_finite

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, ProcessorMixin
    from trl import GRPOConfig
    from trl.trainer.utils import RepeatSampler


# The reward of reinforcement learning: the task's own score of a completion.


@dataclass(frozen=True)
class Judge:
    """The task's own scorer, as in labeling and evaluation."""

    task: Any  # an lmms-eval task
    doc_ids: Mapping[str, int]  # content id of an item -> its position in the task's documents

    def reward(self, item_id: str, response: str, truncated: bool = False) -> float | None:
        """The score of a response in [0, 1], up to the task's stop texts; None where it cannot be scored.

        `truncated`: it reached the token limit. A task without the item is an error.
        """
        if item_id not in self.doc_ids:
            raise HarnessError(
                f"task {self.task.config.task} has no item {item_id}",
                "Pass the task that the set was made from",
            )
        doc = self.task.eval_docs_no_media[self.doc_ids[item_id]]
        response, stopped = cut_at(response, stop_texts(self.task.config.generation_kwargs))
        text = lmms.filtered(self.task, Response(response, truncated and not stopped), doc)
        metrics = self.task.process_results(doc, [text])
        return lmms.score_of(self.task, metrics)[0]

    @property
    def scorers(self) -> dict[str, int]:
        """Scorer -> version, for the rewards; empty if the task names none."""
        doc_id = next(iter(self.doc_ids.values()))
        metrics = self.task.process_results(self.task.eval_docs_no_media[doc_id], [Response("")])
        return lmms.scorers_of([lmms.Answered(doc_id, [""], metrics)])

    @property
    def reads_boxes(self) -> bool:
        """Whether the scorer reads boxes, in the model's declared coordinates."""
        return lmms.metadata(self.task).get("family") == "grounding"

    @property
    def longest(self) -> int:
        """The task's own limit on a response, in tokens."""
        return token_limit(self.task.config.generation_kwargs) or DEFAULT_MAX_NEW_TOKENS


# The prompts of GRPO, and the task that scores completions: a pool, a curated set, or your own rows.


def open_data(
    data: str,
    scorer: str | None,
    image_root: Path | None,
    outside: bool = False,
    part: own_data.Part | None = None,
) -> tuple[Any, Judge]:
    """Opens the training prompts that `--data` names.

    `data` is a curated set's folder, whose task is found through its rollouts; the name of a task; or a file
    or folder of a user's own rows, which the other arguments are for, see `own_data.open_file`. Returns the
    folder, or an open `datasets.Dataset`; and the scorer of its items.

    Raises:
        HarnessError: it cannot be opened, its task has changed since sampling, or a scorer or images are
            given for a task, which has its own.
    """
    path = Path(data)
    if part is not None and not own_files.is_data(data):
        raise HarnessError(
            f"--held-out {part.share:g} applies only to rows of your own",
            "Leave it out; a curated set has no held-out rows if its rollouts were sampled without them",
        )
    if path.is_dir() and not own_files.is_data(data):
        return path, _judge_of(path, scorer, image_root, outside)
    if own_files.is_data(data):
        # Training lists unreadable rows.
        task = own_data.open_file(path, scorer, image_root, skip=True, outside=outside, part=part)
    else:
        task = own_data.open_task(data, "--data")
        lmms.refuse_unfit([task], "dcsft_hf")
        _refuse_options(data, scorer, image_root, outside)
    rows = conversations.from_task(task)
    return rows, Judge(task, {item: doc_id for doc_id, item in enumerate(rows["item_id"])})


def _judge_of(folder: Path, scorer: str | None, image_root: Path | None, outside: bool) -> Judge:
    """The scorer of a curated set: its pool's task, with the documents of its items."""
    rollouts = manifest.read(manifest.read(folder, "curated set").input_folder("rollouts"), "rollouts")
    manifest.refuse_changed(rollouts.folder, *(n for n in rollouts.files if n.startswith(f"{ITEMS}/")))
    task = _task_of(rollouts, scorer, image_root, outside)
    items = storage.load(rollouts.folder / ITEMS).select_columns(["item_id", "doc_id"])
    doc_ids = dict(zip(items["item_id"], items["doc_id"], strict=True))
    chosen = storage.load(folder / curation.DATA).select_columns(["item_id"])["item_id"]
    for item in chosen:
        found = lmms.describe(task, doc_ids[item])[0].item_id
        if found != item:
            raise HarnessError(
                f"document {doc_ids[item]} of task {task.config.task} has changed since {folder} was made",
                "Sample, label and curate again",
            )
    return Judge(task, {item: doc_ids[item] for item in chosen})


def _task_of(
    rollouts: manifest.Manifest, scorer: str | None, image_root: Path | None, outside: bool
) -> lmms.Task:
    if "data" in rollouts.inputs:
        entry = rollouts.inputs["data"]
        path = (rollouts.folder / entry["path"]).resolve()
        if not path.exists() or manifest.fingerprint(path) != entry["sha256"]:
            raise HarnessError(f"{path}, the pool of {rollouts.folder}, is gone or has changed", "Restore it")
        given = scorer or rollouts.config["scorer"]
        share = rollouts.config.get("held_out")
        part = None if share is None else own_data.Part(share)
        return own_data.open_file(path, given, image_root, skip=True, outside=outside, part=part)
    _refuse_options(rollouts.config["task"], scorer, image_root, outside)
    return next(iter(lmms.open_tasks([rollouts.config["task"]]).values()))


def _refuse_options(task: str, scorer: str | None, image_root: Path | None, outside: bool) -> None:
    given = {"--scorer": scorer, "--image-root": image_root, "--allow-outside-root": outside}
    for option, value in given.items():
        if value:
            shown = "" if value is True else f" {value}"
            raise HarnessError(
                f"{option}{shown} applies only to rows of your own", f"The task {task} has its own"
            )


# Checks before any weights are read: prompts, arguments, and whether vLLM can generate for the trainer.

VLLM_MODES = ("colocate", "server")
_SHARED = ("num_generations", "beta", "temperature", "top_p", "top_k")
"""Our settings that are arguments of `trl.GRPOConfig`."""


def check_prompts(conversations: Conversations, judge: Judge, config: GrpoConfig) -> None:
    """Refuses a set that the task cannot score, that has weights, or that is smaller than a batch."""
    if conversations.item_ids is None:
        raise HarnessError(
            f"{conversations.name} has no column item_id, by which completions are judged",
            "Pass a set written by `dcsft curate`, or a task",
        )
    strange = [item for item in conversations.item_ids if item not in judge.doc_ids]
    if strange:
        raise HarnessError(
            f"{conversations.name} has the item {strange[0]}, which is not in task {judge.task.config.task}",
            "Pass the task that the set was made from",
        )
    if conversations.weights is not None:
        raise HarnessError(
            f"{conversations.name} has a column weight, which GRPO does not use",
            "Curate without --weight: GRPO's advantages weigh prompts by p(1-p) themselves",
        )
    needed, there = config.batch_size // config.num_generations, len(conversations.turns)
    if there < needed:
        most = there * config.num_generations
        raise HarnessError(
            f"{conversations.name} has {there} prompts, fewer than the {needed} of a step "
            f"(batch_size={config.batch_size} completions, num_generations={config.num_generations})",
            f"Lower batch_size to {most} or less, or use more prompts",
        )
    bare = sum(not turns.images for turns in conversations.turns)
    if 0 < bare < there:
        raise HarnessError(
            f"{conversations.name}: {bare} of {there} rows have no image, and TRL's GRPO takes no batch in"
            " which only some have one",
            "Use rows that all have images or all have none, and train on the others in a run of their own",
        )


def check_generation(base: ModelSettings, args: "GRPOConfig") -> None:
    """Refuses settings of the base's generation config that would silently apply to completions.

    TRL sets temperature, top-p, top-k and the repetition penalty itself; transformers takes the others from
    the base.
    """
    where = f"GRPO: the generation_config.json of {base.pretrained}"
    remedy = "Take it out of that file: the policy is trained on the distribution that it samples from"
    for name in args.generation_kwargs or ():
        if name not in (known := vars(GenerationConfig())):  # which would have no effect
            raise unknown_name("argument in generation_kwargs:", name, known)
    found = open_generation(base).to_diff_dict()
    settings = checkpoint_settings(found, vars(GenerationConfig()), where, remedy)
    for name in ("min_p", "min_new_tokens"):
        given = {**(args.generation_kwargs or {}), "min_p": args.min_p}
        if settings.get(name) and given.get(name) is None:
            raise HarnessError(f"{where} sets {name}={settings[name]}, which would apply silently", remedy)


def check_processor(setup: Setup) -> None:
    """Refuses model families whose images TRL's GRPO does not support.

    TRL passes on only the features whose names it knows. If there are more rows of pixels than images, it
    takes each row for a tile of an image.
    """
    if trouble := _trouble(setup.processor):
        raise HarnessError(
            f"TRL's GRPO does not take {setup.job.model}: its {trouble}",
            "Train it with `dcsft train sft`, or use another base",
        )


def _trouble(processor: "ProcessorMixin") -> str | None:
    """What TRL does not support of a processor; None if it supports all of it."""
    trials = Batcher(processor, processor.tokenizer.pad_token_id).trials
    if not trials:
        return "processor does not accept a chat with an image"
    known = set(inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    for trial in trials:
        pixels, images = trial.features.get("pixel_values"), processor.image_processor
        if unknown := sorted(trial.features.keys() - known):
            return f"processor makes {', '.join(unknown)}"
        rows = 1 if pixels is None or pixels.ndim != 4 else len(pixels)
        if rows > 1 and not _counts_tiles(images, trial):
            return f"{type(images).__name__} makes {rows} rows for an image that are not tiles"
    texts, pictures = [trial.text for trial in trials], [list(trial.images) for trial in trials]
    try:
        processor(text=texts, images=pictures, padding=False)
    except (TypeError, ValueError):
        return f"{type(processor).__name__} takes no prompts of unequal lengths without padding"
    return None


def _counts_tiles(images: "BaseImageProcessor", trial: Prepared) -> bool:
    """Whether an image processor reports its number of tiles through the method that TRL calls."""
    try:
        made = images(images=list(trial.images), crop_to_patches=True, return_tensors="pt")
    except (TypeError, ValueError):
        return False
    return "num_patches" in made


def steps_per_draw(args: "GRPOConfig") -> int:
    """The number of steps that share completions; at their multiples, a step begins with a new draw."""
    passes: int = args.steps_per_generation * args.num_iterations
    return passes // math.gcd(passes, args.gradient_accumulation_steps)


def check_draws(args: "GRPOConfig", config: GrpoConfig) -> None:
    """Refuses checkpoints between steps that share completions: a resumed run would redraw them."""
    steps = steps_per_draw(args)
    if config.save_steps is not None and config.save_steps % steps:
        raise HarnessError(
            f"save_steps={config.save_steps}: each batch of completions is used for {steps} steps "
            f"(num_iterations={args.num_iterations}, steps_per_generation={args.steps_per_generation}), and a"
            " run that resumes between them would draw new ones",
            f"Use a multiple of {steps}",
        )


def check_vllm(args: "GRPOConfig", setup: Setup) -> None:
    """Refuses what TRL would notice only after loading the weights, or not at all.

    vLLM is missing, its mode is unknown, the processes do not divide, or vLLM would get images in another
    size than the trainer.
    """
    if args.vllm_mode not in VLLM_MODES:
        raise unknown_name("vllm_mode", str(args.vllm_mode), VLLM_MODES)
    if find_spec("vllm") is None:
        raise HarnessError(
            "use_vllm=true needs vLLM, which is not installed",
            "Install a version that TRL takes beside it, or leave use_vllm out",
        )
    groups, processes = args.vllm_tensor_parallel_size, ranks.world_size()
    if args.vllm_mode == "colocate" and processes % groups:
        raise HarnessError(
            f"vllm_tensor_parallel_size={groups} does not divide the {processes} processes of this launch",
            "Choose a divisor",
        )
    own = limits_in_force(open_processor(setup.job.base))
    if own is not None and setup.limits is not None and setup.limits != own:
        raise HarnessError(
            f"vLLM resizes images by the base's own limits, min_pixels={own.low} and max_pixels={own.high}, "
            f"and training would by {setup.limits.low} and {setup.limits.high}",
            "Leave min_pixels and max_pixels out, or save a base with the limits that you want",
        )


_ROUNDING, _HALF_ROUNDING = 1e-4, 0.05
"""Nats per token by which rounding may change log-probabilities, in 32 and in 16 bits."""


class GrpoTrainer(Accounted, trl.GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with cost accounting, a stop at the first bad loss, and a log of group outcomes.

    Its log has the mean reward, the divergence `kl` (nats per token), the completions' mean length (tokens),
    and the shares of prompts by their group's outcome.
    """

    logged = {
        "reward": "reward",
        "kl": "kl",
        "completions/mean_length": "completion_length",
        "completions/clipped_ratio": "truncated",
        **{name: name for name in ("all_right", "mixed", "all_wrong", "unscored", "zero_advantage")},
    }

    _compared = False  # whether both ways of computing prompts were compared
    _prefilled: tuple[int, int] | None  # tokens and patches of a draw's prompts, if computed once each
    _buffered_inputs: list[dict[str, Any]] | None  # TRL's: the inputs of the passes over a draw

    def __init__(self, *given: Any, by_pass: bool = False, **named: Any) -> None:  # noqa: ANN401 - of TRL's trainer
        """TRL's trainer; `by_pass`: the result depends on which completions a pass has."""
        super().__init__(*given, **named)
        # Why each prompt is computed for each of its completions; None if it is computed once.
        self.repeats = shared_prompts.objection(self.model.config, self.router_aux_loss_coef)
        # A comparison does not change how completions are drawn and ordered: a resumed run compares again.
        self._shares, self._by_pass = self.repeats is None, by_pass
        self._places: list[int] = []  # the training set's row of each completion of a batch

    @property
    def steps_per_draw(self) -> int:  # type: ignore[override]
        """The number of steps that share completions."""
        return steps_per_draw(self.args)

    def remarks(self) -> dict[str, str]:
        """Why prompts were computed for each of their completions, if they were."""
        return {} if self.repeats is None else {"repeated_prompts": self.repeats}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> "RepeatSampler":
        self._order: RepeatSampler = super()._get_train_sampler(dataset)
        return self._order

    def _run_epoch(self, *given: object, **named: object) -> None:
        """An epoch whose order depends on its number.

        TRL's generator keeps its state from epoch to epoch, so a run that resumes in its second epoch would
        repeat the first one's order.
        """
        if self._order.shuffle:
            self._order.generator.manual_seed(self.args.seed * 1_000_003 + int(self.state.epoch or 0))
        super()._run_epoch(*given, **named)

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Sequence[Sequence[object] | None] | None,
        *rest: object,
        **named: object,
    ) -> object:
        """Draws completions of prompts that are computed once each; else by TRL's method.

        A vLLM in this process gets one token per image, because it expands the tokens itself.
        """
        if self.use_vllm and self.vllm_mode == "colocate" and images is not None:
            token = self.processing_class.image_token_id
            prompt_ids = [
                one_an_image(ids, token, len(some or ()))
                for ids, some in zip(prompt_ids, images, strict=True)
            ]
        with self._refusing_infinite():
            fields = rest[0] if rest else named.get("multimodal_fields")
            if isinstance(fields, Mapping) and (made := self._drawn(prompt_ids, images, fields)) is not None:
                return made, None
            return super()._generate_single_turn(prompt_ids, images, *rest, **named)

    def _drawn(
        self,
        prompt_ids: Sequence[Sequence[int]],
        images: Sequence[Sequence[object] | None] | None,
        fields: Mapping[str, Any],
    ) -> list[list[int]] | None:
        """Completions of prompts that are computed once each; None where TRL has to draw them.

        `fields` are the processor's features: tensors, or for features by token a list for each prompt.
        """
        if self.use_vllm or not self._shares or self.use_transformers_continuous_batching:
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or len(self._rows) != len(prompt_ids):
            return None
        if not shared_prompts.draws(self.generation_kwargs):
            return None
        counts = [len(list(same)) for _, same in itertools.groupby(self._rows)]
        longest = max(map(len, prompt_ids))

        def padded(lists: Iterable[Sequence[int]], filler: int) -> torch.Tensor:
            return torch.tensor([[filler] * (longest - len(one)) + list(one) for one in lists])

        features: dict[str, Any] = {}
        for name, one in fields.items():
            if isinstance(one, torch.Tensor):
                features[name] = one
            elif name in shared_prompts.BY_TOKEN:
                features[name] = padded(one, 0)
            else:
                features[name] = torch.tensor(np.array(one))
        features["input_ids"] = padded(prompt_ids, self.processing_class.tokenizer.pad_token_id)
        features["attention_mask"] = padded(([1] * len(ids) for ids in prompt_ids), 0)
        first = list(itertools.accumulate(counts, initial=0))[:-1]
        if images is not None:
            features["num_images"] = [len(some or ()) for some in images]
            features["num_tiles"] = self._tiles([images[place] or () for place in first], counts, features)
        try:
            prompts = shared_prompts.selected(features, first, len(prompt_ids))
        except shared_prompts.UnknownFeaturesError:
            return None
        prompts = self._prepare_input(prompts)
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            made = shared_prompts.drawn(_inner(model), prompts, counts, self.generation_kwargs)
        if self.account.costs is not None:
            self._prefilled = int(prompts["attention_mask"].sum()), self.account.costs.patches(prompts)
        return made

    def _tiles(
        self, images: Sequence[Any], counts: Sequence[int], features: Mapping[str, Any]
    ) -> list[int] | None:
        """The tiles of each of a batch's rows, where its images are divided into several; else None.

        `images` are those of each prompt, which `counts` rows have.
        """
        pixels = features.get("pixel_values")
        if pixels is None or pixels.ndim != 4 or len(pixels) == sum(features["num_images"]):
            return None
        made = self.processing_class.image_processor(images=images, crop_to_patches=True, return_tensors="pt")
        each = torch.split(torch.as_tensor(made["num_patches"]), [len(some) for some in images])
        return [int(tiles.sum()) for tiles, count in zip(each, counts, strict=True) for _ in range(count)]

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **features: Any,  # noqa: ANN401 - of TRL's method
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's method, with each prompt computed once where that is possible and saves work."""
        prompt, size, rows = input_ids.shape[1] - logits_to_keep, batch_size or len(input_ids), self._places

        def theirs() -> Any:  # noqa: ANN401 - TRL's
            return super(GrpoTrainer, self)._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **features,
            )

        def ours() -> Any:  # noqa: ANN401 - as TRL's
            found = []
            network = _inner(self.accelerator.unwrap_model(model))
            for start in range(0, len(input_ids), size):
                part = range(len(input_ids))[start : start + size]
                with self.accelerator.autocast():
                    batch = shared_prompts.packed(
                        network, input_ids, attention_mask, logits_to_keep, rows, features, part
                    )
                    outputs = model(**batch.inputs, fused_lm_head=True)
                scores = [outputs.log_probs] + [outputs.entropy] * compute_entropy
                found.append([batch.rows(one, logits_to_keep) for one in scores])
                self._passed(batch.tokens, batch.inputs, int(batch.kept.sum()))
            logps, *entropies = [torch.cat(parts) for parts in zip(*found, strict=True)]
            return logps, entropies[0] if entropies else None, None

        saves = False
        if self.repeats is None and not compute_aux_loss and len(rows) == len(input_ids):
            sizes = list(Counter((place // size, row) for place, row in enumerate(rows)).values())
            saves = shared_prompts.cheaper(self.model.config, sizes, prompt, logits_to_keep)
        # Sharded processes go through the model together.
        if self._shares and not self._compared and all(ranks.gathered(saves)):
            self._compare(model, input_ids, attention_mask, logits_to_keep, features)
        if saves and self._compared and self.repeats is None:
            made = ours()
        else:
            made = theirs()
            self._passed(int(attention_mask.sum()), features, int(attention_mask[:, prompt:].sum()))
        return made  # type: ignore[no-any-return]

    def _compare(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        features: Mapping[str, Any],
    ) -> None:
        """Compares both ways on two rows each of one or two prompts, before the first pass that could share.

        A model whose results differ repeats its prompts. All tokens of the rows count, padding as well: where
        a model is certain of its completions, a wrong mask would not show.
        """
        self._compared, training, reason = True, model.training, None
        places: dict[int, list[int]] = {}
        for place, row in enumerate(self._places):
            places.setdefault(row, []).append(place)
        pairs = [some[:2] for some in places.values() if len(some) > 1][:2]
        chosen = [place for two in pairs for place in two]
        same = [at for at, two in enumerate(pairs) for _ in two]
        ids, mask = input_ids[chosen], attention_mask[chosen]
        mask[:, -logits_to_keep:] = 1
        half = self.model.dtype != torch.float32 or self.args.bf16 or self.args.fp16 or self.args.tf32
        model.eval()
        try:
            some = shared_prompts.selected(features, chosen, len(input_ids))
            counts = {
                name: [features[name][place] for place in chosen]
                for name in ("num_images", "num_tiles")
                if features.get(name) is not None
            }
            with torch.no_grad(), self.accelerator.autocast():
                wanted, _, _ = super()._get_per_token_logps_and_entropies(
                    model, ids, mask, logits_to_keep, **some, **counts
                )
                batch = shared_prompts.packed(
                    _inner(self.accelerator.unwrap_model(model)),
                    ids,
                    mask,
                    logits_to_keep,
                    same,
                    {**some, **counts},
                    range(len(chosen)),
                )
                found = batch.rows(model(**batch.inputs, fused_lm_head=True).log_probs, logits_to_keep)
            apart = float((found - wanted).abs().mean())
            limit = _HALF_ROUNDING + 0.01 * float(wanted.abs().mean()) if half else _ROUNDING
            if not apart <= limit:
                reason = f"log-probabilities would change by {apart:.2g} nats"
        except shared_prompts.UnknownFeaturesError as error:
            reason = str(error)
        finally:
            model.train(training)
        self.repeats = next((one for one in ranks.gathered(reason) if one is not None), None)

    def _passed(self, tokens: int, inputs: Mapping[str, Any], completion: int) -> None:
        """Counts the operations of a pass: forward alone, or with its backward pass."""
        if (costs := self.account.costs) is not None:
            pass_of = costs.training if torch.is_grad_enabled() else costs.forward
            self.account.count(flops=pass_of(tokens, costs.patches(inputs), self.scored(tokens, completion)))

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._places = inputs[ROWS].tolist()
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:  # noqa: ANN401 - of TRL's method
        """TRL's method; a prompt's completions stay together in the passes of one optimizer step.

        TRL shuffles the completions of a draw, which matters where several optimizer steps share them, and
        where the loss has terms of a pass as a whole.
        """
        passes = self.args.steps_per_generation
        shuffles = self._by_pass or passes != self.args.gradient_accumulation_steps
        if shuffles or not self._shares or not self.model.training:
            prepared: dict[str, Any] = super()._prepare_inputs(generation_batch)
            return prepared
        if self._step % (passes * self.num_iterations) == 0 or self._buffered_inputs is None:
            made = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            parts = split_tensor_dict(made, passes)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        inputs: dict[str, Any] = self._buffered_inputs[self._step % passes]
        return inputs

    @contextlib.contextmanager
    def _refusing_infinite(self) -> Iterator[None]:
        """Stops at logits that are not finite: torch's sampling refuses them or draws arbitrary tokens."""

        def check(module: object, given: object, logits: torch.Tensor) -> None:
            if not torch.isfinite(logits).all():
                value = float(logits[~torch.isfinite(logits)][0])
                raise not_finite("logit of a completion", value, self.state.global_step + 1, self.items())

        head = self.accelerator.unwrap_model(self.model_wrapped).get_output_embeddings()
        hook = None if head is None else head.register_forward_hook(check)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's method: draws and scores a batch of completions; counts it once per batch."""
        self._rows = self._places = [example["row"] for example in inputs]
        self._prefilled = None
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        made[ROWS] = torch.tensor(self._rows)
        prompt = int(made["prompt_mask"].sum())
        completion = int(made["completion_mask"].sum())
        flops = 0.0
        if (costs := self.account.costs) is not None:
            # Drawing is one forward pass.
            tokens, patches = self._prefilled or (prompt, costs.patches(made))
            flops = costs.forward(tokens + completion, patches, completion)
        self.account.count(
            prompts=len(inputs) / self.num_generations,
            generated=len(inputs),
            prompt_tokens=prompt,
            completion_tokens=completion,
            flops=flops,
        )
        return made

    def _calculate_rewards(self, *given: object) -> torch.Tensor:
        """TRL's advantages, over the groups of all processes; logs the shares of groups by outcome."""
        rewards: torch.Tensor = super()._calculate_rewards(*given)
        for name, share in outcomes(rewards[:, 0].view(-1, self.num_generations)).items():
            self._metrics["train"][name].append(share)
        return rewards


def _inner(model: torch.nn.Module) -> Any:  # noqa: ANN401 - a PreTrainedModel
    """The model itself, with the adapter's layers in it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def one_an_image(ids: Sequence[int], token: int, images: int) -> list[int]:
    """Token ids in which each run of `token`, one per image, is a single one.

    Another number of runs is refused, as of a model that splits an image into tiles: vLLM's expansion of the
    tokens would be ambiguous.
    """
    made = [found for at, found in enumerate(ids) if found != token or at == 0 or ids[at - 1] != token]
    if made.count(token) != images:
        raise HarnessError(
            f"use_vllm=true: {images} images are written as {made.count(token)} runs of image tokens, "
            "which a vLLM in this process would expand again",
            "Leave use_vllm out, or use vllm_mode=server",
        )
    return made


def outcomes(rewards: torch.Tensor) -> dict[str, float]:
    """Shares of prompts by their group's outcome.

    `rewards` has the shape (prompts, G), in [0, 1]; NaN for a completion that could not be scored. The shares
    are `all_right`, `mixed`, `all_wrong` and `unscored` (no completion could be scored), which add up to 1;
    and `zero_advantage`, of the prompts whose rewards are all equal, so that only the divergence term moves
    the model for them.
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
    **more: Any,  # noqa: ANN401 - of `Job`
) -> dict[str, Any]:
    """Trains by GRPO and writes an adapter, or with `config.full` a checkpoint.

    For each step, transformers draws new completions; so does vLLM, with TRL's arguments `use_vllm` and
    `vllm_mode` in `config.extra`. The trainer gets prompts and images, but no answers: `judge`, the task that
    the items come from, scores completions. The data needs item ids. Other arguments, notes and errors are
    those of `sft.train_sft`.
    """
    job = Job("grpo", model, data, output, config or GrpoConfig(), **more)
    return perform(job, lambda setup: _make(setup, judge))


def _make(setup: Setup, judge: Judge) -> Callable[[], Any]:
    config = setup.job.config
    assert isinstance(config, GrpoConfig)
    check_processor(setup)
    # TRL pads prompts on the left. It pads what it processes again by this setting alone, and would otherwise
    # misplace the image tokens.
    setup.processor.tokenizer.padding_side = "left"
    longest = config.max_completion_length or judge.longest
    written = setup.conversations.mapped(
        lambda turns, where: render(setup.processor, turns.prompt, where, True, setup.template_arguments)
    )
    setup.screen(*written, longest)
    ids = setup.conversations.item_ids or []
    check_prompts(setup.conversations, judge, config)
    ours = {
        **managed(config, setup.dtype, setup.folder),
        **{name: getattr(config, name) for name in _SHARED},
        "max_completion_length": longest,
        # Gemma 4's processor pads by itself, and TRL would take the padding for text.
        "chat_template_kwargs": {**setup.template_arguments, "processor_kwargs": {"padding": False}},
    }
    # Each completion counts alike, as in the paper's trainer.
    defaults = {"loss_type": "grpo", "gradient_checkpointing": setup.recomputes}
    args = arguments(trl.GRPOConfig, ours, config.extra, defaults)
    check_draws(args, config)
    if args.use_vllm:
        check_vllm(args, setup)
    else:
        check_generation(setup.job.base, args)
    coordinates.declare(setup.box_convention(judge.reads_boxes))
    setup.notes["scorers"] = judge.scorers

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

    dataset = setup.conversations.dataset(prompt=[one.prompt for one in setup.conversations.turns])
    return setup.trainer(GrpoTrainer, args, dataset, reward_funcs=reward, by_pass=setup.job.by_pass)
