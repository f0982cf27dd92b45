"""`dcsft train dpo`: Train by DPO on a model's own responses, right against wrong ones of the same item."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from dcsft_harness import curation, ranks, reading, records, sampling
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.artifacts.storage import AT_ONCE, scan
from dcsft_harness.curation import conversations
from dcsft_harness.errors import HarnessError, json_text, unknown_name
from dcsft_harness.sampling import own_data, own_files
from dcsft_harness.scoring.boxes import parse_box
from dcsft_harness.settings import option
from dcsft_harness.stages import opening
from dcsft_harness.stages.opening import Numbers
from dcsft_harness.stages.stage import Notes, Progress, Stage, counted
from dcsft_harness.stages.training import AdapterInputs, estimate, start
from dcsft_harness.stages.training import summary as trained
from dcsft_harness.training.config import NO_ROUNDING, AdapterConfig

REJECTED = conversations.REJECTED
LOSSES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down"
    " discopop sft sigmoid_norm"
).split()
"""TRL's values of `loss_type`; TRL checks them only at the first step."""
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
"""Those that read `label_smoothing`; TRL silently ignores it with others."""
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
MANAGED: Mapping[str, Any] = {
    "max_length": None,
    "pad_to_multiple_of": None,  # TRL's collator of pictures takes none
    "precompute_ref_log_probs": False,  # nor this
    "sync_ref_model": False,  # checkpoints do not hold the reference, which a resumed run starts with
}
_READ = ("item_id", "response", "score", "finish_reason")


class DpoConfig(AdapterConfig):
    """Direct preference optimization on pairs of responses."""

    SECTION = "Method"
    WITHOUT_TARGETS: ClassVar[str] = "DPO"
    SEQUENCES: ClassVar[int] = 2  # the right response and the wrong one

    box_rounding: Literal["truncate"] | None = NO_ROUNDING
    learning_rate: float = option(5e-6, "Peak learning rate.", gt=0)
    batch_size: int = option(16, "Pairs per optimizer step, over all processes.", ge=1)
    max_steps: int | None = option(
        600, "Optimizer steps, repeating the data as often as needed; instead of epochs.", ge=1
    )
    # The loss compares likelihoods under two models, which dropout would blur; TRL turns it off, too.
    lora_dropout: float = option(0.0, "Dropout rate of the LoRA layers, in [0, 1).", ge=0, lt=1)
    beta: float = option(0.1, "Strength of the pull toward the initial model, above 0.", gt=0)
    pairs_per_item: int = option(
        1, "Maximum pairs per item, of distinct texts; if there are more, `seed` decides which.", ge=1
    )

    @property
    def has_reference(self) -> bool:
        """The loss always compares with the initial model."""
        return True


class DpoOptions(DpoConfig, AdapterInputs):
    """What to train on, and how."""

    data: str = option(
        about="Rollouts; a curated set, for which the rollouts of its items are used; or your own file, whose"
        " rows have a chosen and a rejected answer.",
        metavar="DIR|FILE",
        reads="artifact",
    )


@dataclass
class Responses:
    """The responses of an item, for making pairs."""

    right: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    # truncated, unscored: the numbers of responses left out
    truncated: int = 0
    unscored: int = 0

    def add(self, text: str, score: float | None, finish_reason: str) -> None:
        """Adds a response; one that is truncated or unscored is neither right nor wrong."""
        if score is None:
            self.unscored += 1
        elif finish_reason == "length":
            self.truncated += 1
        else:
            (self.right if score >= records.RIGHT else self.wrong).add(text)

    def pairs(self, item_id: str, most: int, seed: int) -> list[tuple[str, str]]:
        """At most `most` pairs of a right and a wrong text of an item, no two equal; the seed decides which.

        Pairs are ordered by hash, independent of the responses' order and of other items. The first pairs
        share no text as long as possible.
        """
        right, wrong = (_shuffled(texts, item_id, seed) for texts in (self.right, self.wrong))
        # Along the diagonals of the table of all pairs: after this number of steps a pair would repeat.
        turn = math.lcm(len(right), len(wrong))
        return [
            (right[number % len(right)], wrong[(number + number // turn) % len(wrong)])
            for number in range(min(most, len(right) * len(wrong)))
        ]


def _shuffled(texts: Iterable[str], item_id: str, seed: int) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed} {item_id} {text}".encode()).digest())


def run(options: DpoOptions, output: Path, progress: Progress | None) -> Notes:
    """Trains."""

    def train(base: str, config: DpoConfig, more: dict[str, Any]) -> Notes:
        from dcsft_harness.training.run import Job, perform

        with ranks.agreed():
            if opening.is_own(options.data):
                rows, inputs, counts = _own_pairs(options)
            else:
                opening.refuse_own(options, "rows of your own")
                rows, inputs, counts = open_pairs(Path(options.data), config.pairs_per_item, config.seed)
                _refuse_other_prompts(inputs["rollouts"], base, config.chat_template_kwargs, options.adapter)
        more["source"] = Path(own_files.called(Path(options.data).resolve())).name
        job = Job("dpo", base, rows, output, config, inputs=inputs, **more)
        return perform(job, lambda setup: _make(setup, rows, counts))

    return start(STAGE, options, DpoConfig, output, progress, train)


def _refuse_other_prompts(
    folder: Path, base: str, given: Mapping[str, Any] | None, adapter: Path | None
) -> None:
    """Refuses responses to prompts that the chat template wrote with other arguments than training will."""
    from dcsft_harness.models import chat_template

    made = manifest.read(folder)
    config = made.config
    if config.get("model") not in ("dcsft_hf", "dcsft_vllm"):
        return  # other engines write prompts of their own
    named = reading.named(str(config.get("model_args", "")))
    if chat_template.NAME in named:
        sampled = reading.json_option(chat_template.NAME, named[chat_template.NAME])
    else:
        sampled = chat_template.recorded(*_opened(made, named)) or {}
    ours = chat_template.recorded(adapter, base) or {} if given is None else dict(given)
    if sampled != ours:
        raise HarnessError(
            f"--data {folder} was sampled with {chat_template.NAME} {json_text(sampled)}, but training would"
            f" write prompts with {json_text(ours)}",
            f"Pass --chat-template-kwargs '{json_text(sampled)}', or sample again",
        )


def _opened(rollouts: manifest.Manifest, named: Mapping[str, str]) -> list[str | Path | None]:
    """The adapter and the base that responses are of: folders of the manifest's inputs, or names as given.

    A folder's name as given may start at another folder than this process.
    """
    found: list[str | Path | None] = []
    for role, argument in (("adapter", "adapter"), ("model", "pretrained")):
        entry = rollouts.inputs.get(role)
        folder = None if entry is None else rollouts.folder / entry["path"]
        found.append(folder if folder is not None and folder.exists() else named.get(argument))
    return found


def _own_pairs(options: DpoOptions) -> tuple[Any, dict[str, Path], dict[str, int]]:
    """The pairs of a user's own rows; see `open_pairs`."""
    rows = opening.own_training_rows(options.data, options, pairs=True)
    count = sum(reason is None for reason in rows[conversations.REFUSED])
    counts = dict.fromkeys(("items", "items_with_pairs", "pairs"), count)
    return rows, {}, {**counts, "truncated": 0, "unscored": 0}


def open_pairs(folder: Path, most: int, seed: int) -> tuple[Any, dict[str, Path], dict[str, int]]:
    """The pairs of a rollouts folder, or of a curated set's items.

    `most` is the largest number of pairs per item; `seed` decides which ones, if there are more. Returns a
    `datasets.Dataset` with the columns of a curated set, whose answers are the chosen texts, and with
    REJECTED; its source folders, by role; and counts of items, pairs and responses left out.

    Raises:
        HarnessError: neither rollouts nor a curated set, changed since they were made, weighted, or without
            any pair.
    """
    made = manifest.read(folder)
    if made.kind not in ("rollouts", "curated set"):
        raise HarnessError(
            f"--data {folder} holds {manifest.indefinite(made.kind)}, but pairs are made from responses",
            "Pass a folder of `dcsft sample` or `dcsft curate`",
        )
    inputs, items, rollouts = {"rollouts": folder}, None, folder
    if made.kind == "curated set":
        rollouts = made.input_folder("rollouts")
        inputs = {"data": folder, "rollouts": rollouts}
        manifest.read(rollouts, "rollouts")
        items = _items_of(folder)
    for one in inputs.values():
        manifest.refuse_changed(one)
    own_data.refuse_former(manifest.read(rollouts))
    found = _responses(rollouts / sampling.ROLLOUTS, items)
    chosen = {item_id: one.pairs(item_id, most, seed) for item_id, one in found.items()}
    chosen = {item_id: pairs for item_id, pairs in chosen.items() if pairs}
    counts = {
        "items": len(found),
        "items_with_pairs": len(chosen),
        "pairs": sum(map(len, chosen.values())),
        "truncated": sum(one.truncated for one in found.values()),
        "unscored": sum(one.unscored for one in found.values()),
    }
    if not chosen:
        right = sum(bool(one.right) for one in found.values())
        wrong = sum(bool(one.wrong) for one in found.values())
        raise HarnessError(
            f"{folder}: none of {counts['items']} items has both a right and a wrong response ({right} have"
            f" right ones, {wrong} wrong ones; left out: {counts['truncated']} truncated, "
            f"{counts['unscored']} unscored responses)",
            "Sample again with a higher --max-new-tokens"
            if counts["truncated"] > sum(len(one.right) + len(one.wrong) for one in found.values())
            else "Sample more responses per item, at a higher temperature, or use items that are neither easy"
            " nor hard",
        )
    return _stored(rollouts / sampling.ITEMS, chosen), inputs, counts


def _items_of(folder: Path) -> set[str]:
    """The items of a curated set; weighted ones are refused, which DPO does not support."""
    rows = folder / curation.DATA
    if "weight" in storage.names(rows):
        raise HarnessError(f"{folder} has a column weight, which DPO does not use", "Curate without --weight")
    tables = storage.read(rows, ["item_id"], AT_ONCE)
    return {item_id for table in tables for item_id in table["item_id"].to_pylist()}


def _responses(path: Path, items: set[str] | None) -> dict[str, Responses]:
    """The responses of each item, or of each of these, from a rollouts table."""
    found: dict[str, Responses] = {}
    with records.readable(path):
        for batch in scan(path, records.Rollout, _READ).to_reader(use_threads=False):
            for item_id, *response in zip(*(batch[name].to_pylist() for name in _READ), strict=True):
                if items is None or item_id in items:
                    found.setdefault(item_id, Responses()).add(*response)
    return found


def _stored(items: Path, chosen: Mapping[str, Sequence[tuple[str, str]]]) -> Any:  # noqa: ANN401 - a Dataset
    """The pairs as training data, in the order of the items on disk."""
    from datasets import Value

    columns = conversations.features(labeled=False)
    columns |= {REJECTED: Value("string"), conversations.ROW: Value("string")}

    def rows() -> Iterator[dict[str, Any]]:
        names = ["item_id", "prompt", "images"]
        names += [conversations.TURNS] if conversations.TURNS in storage.names(items) else []
        for table in storage.read(items, names, AT_ONCE):
            for item in table.to_pylist():
                for right, wrong in chosen.get(item["item_id"], ()):
                    row = conversations.conversation({**item, "target": right})
                    name = {conversations.ROW: f"item {item['item_id']}"}
                    yield {**row, "item_id": item["item_id"], REJECTED: wrong, **name}

    return conversations.stored("pairs", columns, rows())


def _make(setup: Any, rows: Any, counts: Mapping[str, int]) -> Callable[[], Any]:  # noqa: ANN401 - Setup, Dataset
    import trl

    from dcsft_harness.training.data import rendered
    from dcsft_harness.training.sft import check_processor
    from dcsft_harness.training.trainer import arguments, managed

    config = setup.job.config
    ours = {
        **managed(config, setup.dtype, setup.folder),
        **MANAGED,
        "beta": config.beta,
        "disable_dropout": not config.lora_dropout,
    }
    args = arguments(trl.DPOConfig, ours, config.extra, {"gradient_checkpointing": setup.recomputes})
    _check_loss(args)
    check_processor(setup, "DPO")
    convention = setup.box_convention(any(turns.box is not None for turns in setup.conversations.turns))
    template = setup.template
    texts: dict[int, list[str]] = {}
    rejected = rows[REJECTED][:]
    for wrong in (False, True):
        known = setup.conversations
        if wrong:
            numbered = zip(known.turns, (rejected[number] for number in known.numbers), strict=True)
            # Its own box takes the place of the right one's.
            answers = [
                replace(turns, answer=text, box=None if turns.box is None else parse_box(text))
                for turns, text in numbered
            ]
            known = replace(known, turns=answers)
        known, written = rendered(known, template, convention, sampled="rollouts" in setup.job.inputs)
        for number, text in zip(known.numbers, written, strict=True):
            texts.setdefault(number, [text.prompt]).append(text.completion)
        setup.screen(known, [text.prompt + text.completion for text in written])
    kept = setup.conversations
    setup.notes["pairs"] = {**counts, "pairs": len(kept.turns)}
    prompts, right, wrongs = zip(*(texts[number] for number in kept.numbers), strict=True)
    dataset = kept.dataset(prompt=prompts, chosen=right, rejected=wrongs)
    _check_collator(setup, dataset[0])
    return setup.trainer(_trainer(), args, dataset)  # type: ignore[no-any-return]


def _check_loss(args: Any) -> None:  # noqa: ANN401 - trl.DPOConfig
    """Refuses a loss that TRL would refuse only after loading the weights, naming the argument."""
    for name in args.loss_type:
        if name not in LOSSES:
            raise unknown_name("loss_type", str(name), LOSSES)
    if not args.loss_type:
        raise HarnessError("loss_type is empty", f"Use one of {', '.join(LOSSES)}")
    smoothing = args.label_smoothing
    if smoothing and not SMOOTHED & set(args.loss_type):
        raise HarnessError(
            f"label_smoothing={smoothing} has no effect with loss_type={','.join(args.loss_type)}",
            f"Leave it out, or use one of {', '.join(sorted(SMOOTHED))}",
        )
    if "robust" in args.loss_type and not 0 <= smoothing < 0.5:
        raise HarnessError(
            f"label_smoothing={smoothing}: loss_type=robust needs a share of wrong pairs below 0.5",
            "Lower it",
        )
    if args.f_divergence_type not in DIVERGENCES:
        raise unknown_name("f_divergence_type", str(args.f_divergence_type), DIVERGENCES)
    if "exo_pair" in args.loss_type and not args.label_smoothing:
        raise HarnessError(
            "loss_type=exo_pair needs a label_smoothing above 0", "Pass --set label_smoothing=1e-3"
        )
    paired = {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}
    for name in args.loss_type:
        if name in paired and args.f_divergence_type != "reverse_kl":
            raise HarnessError(
                f"f_divergence_type={args.f_divergence_type} cannot be combined with loss_type={name}",
                "Leave one of them out",
            )
        if args.use_weighting and name.startswith("aot"):
            raise HarnessError(
                f"use_weighting cannot be combined with loss_type={name}", "Leave one of them out"
            )


def _check_collator(setup: Any, pair: Mapping[str, Any]) -> None:  # noqa: ANN401 - Setup
    """Refuses model families that TRL's collator does not support.

    TRL concatenates prompt and response, and extends those of the processor's per-token masks whose names it
    knows: the others then differ in length from the tokens.
    """
    from torch import Tensor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    from dcsft_harness.models.weights import error_line

    processor, images = setup.processor, pair["images"]
    problem = f"TRL's DPO does not take {setup.job.model}: "
    try:
        prompt = processor(text=[pair["prompt"]], images=[images] if images else None, return_tensors="pt")
        made = DataCollatorForVisionPreference(processor=processor)([dict(pair)])
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise HarnessError(
            f"{problem}its {type(processor).__name__} cannot batch pairs ({error_line(error)})",
            "Take another base",
        ) from error
    tokens, whole = prompt["input_ids"].shape, made["input_ids"].shape
    for name, value in prompt.items():
        if isinstance(value, Tensor) and value.shape == tokens and made[name].shape != whole:
            raise HarnessError(
                f"{problem}it leaves the {name} of its {type(processor).__name__} as long as the prompt",
                "Take another base",
            )


def _trainer() -> Any:  # noqa: ANN401 - a class, which needs torch
    import torch
    import trl
    from torch import Tensor

    from dcsft_harness.training.sft import Sharing
    from dcsft_harness.training.trainer import ROWS, Accounted, WithRows

    class DpoTrainer(Sharing, Accounted, trl.DPOTrainer):  # type: ignore[misc]
        """TRL's DPOTrainer with cost accounting, a stop at a bad loss, and a log of both rewards.

        Each pair of a step counts alike. TRL averages the means of forward passes, which an epoch's last
        batch does not fill equally.
        """

        logged = {
            "rewards/chosen": "reward_chosen",
            "rewards/rejected": "reward_rejected",
            "rewards/margins": "reward_margin",
            "rewards/accuracies": "reward_accuracy",
        }

        def __init__(self, **given: Any) -> None:  # noqa: ANN401 - DPOTrainer's own
            super().__init__(**given)
            self.data_collator: Any = WithRows(self.data_collator)

        def spent(self, inputs: dict[str, Any]) -> dict[str, float]:
            """What a micro-batch adds to the account: its pass, and one of the reference."""
            made = self.passed(inputs, int(inputs["completion_mask"].sum()), forwards=1)
            self._here = _count(inputs.pop(ROWS))  # which TRL does not use
            return made

        def get_batch_samples(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - Trainer's
            """The forward passes of a step; counts its pairs."""
            found = super().get_batch_samples(*given, **named)
            self._pairs = sum(ranks.gathered(sum(_count(inputs[ROWS]) for inputs in found[0])))
            return found

        def compute_loss(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - a tensor
            """The mean over a pass's pairs, weighted by their number; so are the rewards in the log."""
            with self._gathering():
                loss = super().compute_loss(*given, **named)
            passes = self.current_gradient_accumulation_steps
            together = sum(ranks.gathered(self._here))
            for name in self.logged:
                self._metrics["train"][name][-1] *= together * passes / self._pairs
            # The trainer averages over passes and processes.
            return loss * (self._here * passes * ranks.world_size() / self._pairs)

        @contextlib.contextmanager
        def _gathering(self) -> Iterator[None]:
            """Lets processes gather a value per pair, of which they may have different numbers, or none."""
            whole = self.accelerator.gather

            def gather(value: Tensor) -> Any:  # noqa: ANN401 - a tensor
                if value.ndim == 0:
                    return whole(value)
                return torch.cat(ranks.gathered(value[: self._here].cpu())).to(value.device)

            self.accelerator.gather = gather if ranks.world_size() > 1 else whole
            try:
                yield
            finally:
                self.accelerator.gather = whole

    return DpoTrainer


def _count(rows: Any) -> int:  # noqa: ANN401 - a tensor
    """The number of pairs of a forward pass, without one that is excluded from the loss."""
    return int((rows >= 0).sum())


def summary(notes: Mapping[str, Any]) -> str:
    """The usual closing line of a training, with the numbers of pairs and of responses left out."""
    pairs = notes["pairs"]
    left = counted(pairs, {"truncated": "truncated", "unscored": "unscored"})
    parts = [
        trained(notes),
        f"{pairs['pairs']} pairs of {pairs['items_with_pairs']} of {pairs['items']} items",
        *([f"{' and '.join(left)} responses left out"] if left else []),
    ]
    return ", ".join(parts)


def rough(options: Mapping[str, Any], machine: Numbers, tokens: Numbers) -> tuple[float, float]:
    """Seconds, and bytes on one device: both responses forward and backward, and the reference forward."""
    default = DpoConfig.model_fields["pairs_per_item"].default
    pairs = tokens["pool"] * float(options.get("pairs_per_item") or default)
    return estimate(DpoConfig, options, machine, tokens, pairs, compared=2)


STAGE = Stage(
    verb="train dpo",
    options=DpoOptions,
    run=run,
    summary=summary,
    writes="adapter",
    about="Pairs come from items that have both right and wrong responses in the rollouts, such as those of"
    " medium difficulty. TRL's losses are `--set loss_type=NAME` (sigmoid, ipo, hinge, ...).",
    example="dcsft train dpo --model cold --data rollouts --max-steps 100 --output preferences",
    estimate=rough,
    pushes=True,
    passes="trl.DPOConfig",
    then="dcsft evaluate --model {output} --tasks TASK,... --output scores",
    light=None,
)
