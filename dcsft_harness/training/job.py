"""What is to be trained, what of it an artefact records, and what a trainer is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from dcsft_harness import coordinates, ranks
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.hashing import json_sha256
from dcsft_harness.coordinates import BoxConvention
from dcsft_harness.errors import HarnessError
from dcsft_harness.models.pixel_limits import PixelLimits
from dcsft_harness.training import checkpoint, lora, run_folder, screening
from dcsft_harness.training import data as training_data
from dcsft_harness.training.config import AdapterConfig, TrainingConfig
from dcsft_harness.training.data import Conversations
from dcsft_harness.training.launching import sharding
from dcsft_harness.training.trainer import Progress


class JobOptions(TypedDict, total=False):
    """What a method's function takes beside base, data, output and settings: see `Job`."""

    adapter: Path | None
    inputs: Mapping[str, Path]
    progress: Progress | None
    source: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    Attributes:
        method: the verb's last word: "sft".
        model: the base, a folder or a hub name.
        data: a curated set, a folder written by `save_to_disk`, or an open data set.
        output: the folder to write.
        config: the settings.
        adapter: an adapter to go on training; None begins with a new one.
        inputs: further artefacts to record, role -> folder.
        progress: called after each step.
        source: what an open data set was made from: a task's name or a file.
        settings: further settings that decide the result, by name.
    """

    method: str
    model: Path | str
    data: Path | Dataset
    output: Path
    config: TrainingConfig
    adapter: Path | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress | None = None
    source: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The artefact that it makes."""
        adapts = isinstance(self.config, AdapterConfig) and not self.config.full
        return "adapter" if adapts else "checkpoint"

    def recorded(self) -> tuple[dict[str, Any], dict[str, Path]]:
        """The settings and the inputs that the manifest records; names stand for what has no folder."""
        settings = {"method": self.method, **self.config.as_dict(), **self.settings}
        if self.adapter is not None:
            settings |= lora.shape(str(self.adapter), str(self.model))
        sources = dict(self.inputs)
        if Path(self.model).is_dir():
            sources["model"] = Path(self.model)
        else:
            settings["model"] = str(self.model)
        if isinstance(self.data, Dataset):
            settings |= {"data": training_data.digest(self.data), "source": self.source}
        else:
            sources["data"] = self.data
        if self.adapter is not None:
            sources["adapter"] = self.adapter
        return settings, sources

    def identity(self) -> dict[str, Any]:
        """What decides the result, by name: a run goes on only from one that is equal in all of it."""
        settings, sources = self.recorded()
        contents = {f"content of {role}": manifest.fingerprint(path)[:16] for role, path in sources.items()}
        kept = {name: value for name, value in settings.items() if name not in run_folder.INDIFFERENT}
        divided = {} if sharding() is None else {"sharding": sharding()}
        return {**kept, **contents, "processes": ranks.world_size(), **divided}


@dataclass
class Setup:
    """What a trainer is made from.

    Attributes:
        job: what is to be trained.
        folder: the trainer's output folder.
        conversations: the checked training set.
        processor: the base's, with the pixel limits of training.
        limits: those limits; None for a processor without.
        dtype: what forward passes compute in.
        room: bytes that the run may have on the disk at a time.
        network: the weights to train; set when everything that can be refused without them has been.
        peft_config: the new adapter to put on them; None for none, or one that is on them already.
        notes: what the manifest will say.
    """

    job: Job
    folder: Path
    conversations: Conversations
    processor: ProcessorMixin
    limits: PixelLimits | None
    dtype: torch.dtype
    room: int
    network: PreTrainedModel | PeftModel = None
    peft_config: LoraConfig | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def screen(self, conversations: Conversations, texts: Sequence[str], completion: int = 0) -> None:
        """Skips or refuses rows that cannot be trained on: the last check before weights are read.

        Args:
            conversations: the set that was rendered.
            texts: a text per conversation, see `screening.screened`.
            completion: tokens that a row may have beside its text.

        Raises:
            HarnessError: rows are refused, and are not to be skipped, or are all of them.
        """
        found = screening.screened(
            conversations, texts, self.processor, checkpoint.open_config(str(self.job.model)), completion
        )
        found.refuse(self.job.config.on_error == "skip")
        self.conversations = found
        self.notes["rows"] = len(found.turns)
        if found.refused:
            self.notes["skipped"] = {"count": len(found.refused), "rows": sorted(found.refused)}

    def left_out(self) -> dict[str, str]:
        """The rows that were skipped, as a part of what decides the result; empty without any."""
        refused = self.conversations.refused
        return {"skipped": json_sha256(sorted(refused))[:16]} if refused else {}

    def box_convention(self, has_boxes: bool) -> BoxConvention:
        """The coordinates that boxes are taught or judged in; noted where they decide anything.

        Raises:
            HarnessError: there are boxes, and nothing tells their coordinates.
        """
        job = self.job
        space = job.config.box_space or coordinates.taught(job.adapter, job.model)
        convention = checkpoint.box_convention(str(job.model), self.processor, space)
        if has_boxes and convention.space is None:
            raise HarnessError(
                f"nothing says in which coordinates {job.model} writes boxes",
                "Give --box-space pixel (of the original image) or norm1000 (thousandths)",
            )
        if has_boxes or space is not None:
            self.notes["box_space"] = convention.space
        return convention
