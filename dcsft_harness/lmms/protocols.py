"""The part of lmms-eval's interface that the suite uses, as types: lmms-eval itself is not typed."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard

if TYPE_CHECKING:
    from dcsft_harness.coordinates import BoxConvention

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """One response to one item."""

    task: str  # the lmms-eval task's name
    doc_id: int  # the item's position in the task's split, as lmms-eval numbers it
    sample_index: int  # which of the item's G responses this is, from 0
    response: str  # the text, cut at the task's stop texts, without special tokens
    n_prompt_tokens: int  # tokens of prompt and images together
    n_tokens: int  # tokens generated, the end token (or those of the stop text) included
    finish_reason: FinishReason  # "stop" at an end token or stop text, "length" at the token limit
    seed: int  # the seed of the draw
    # its estimated floating-point operations, with its share of its item's prompt; None if the model does not
    # report what a token costs
    flops: float | None = field(default=None, compare=False)
    # tokens of prompts that the engine computed, not read from its cache; the first response of a batch may
    # have those of all. None if the engine does not say.
    n_prefilled: int | None = field(default=None, compare=False)
    # whether it repeats the item's first response, as of a greedy one, which is generated once
    copied: bool = field(default=False, compare=False)


def cut_at(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before its first stop text, and whether there was one."""
    found = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    return (text[: min(found)], True) if found else (text, False)


class Documents(Protocol):
    """A task's documents: a `datasets.Dataset`, or a list of dictionaries."""

    def __len__(self) -> int:
        """The number of documents."""

    def __getitem__(self, doc_id: int, /) -> Mapping[str, Any]:
        """One document by its position, from 0."""


class TaskConfig(Protocol):
    """The content of a task's YAML file."""

    task: str  # the task's name
    output_type: str  # what is asked of a model: "generate_until" or another of lmms-eval's
    metadata: Any  # whatever the file has there; the suite's tasks have a mapping
    generation_kwargs: Mapping[str, Any] | None  # how to generate, by name


class Task(Protocol):
    """A chat task: `lmms_eval.api.task.ConfigurableMessagesTask`."""

    VERSION: int | str | None  # the task's version
    _filters: list[Any]  # private upstream; `set_generation` replaces them

    @property
    def config(self) -> TaskConfig:
        """The content of its YAML file."""

    @property
    def eval_docs(self) -> Documents:
        """Its documents; images are decoded on reading."""

    @property
    def eval_docs_no_media(self) -> Documents:
        """Its documents without their images."""

    def doc_to_messages(self, doc: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """A document as messages for a model."""

    def doc_to_text(self, doc: Mapping[str, Any]) -> object:
        """A document's prompt."""

    def doc_to_target(self, doc: Mapping[str, Any]) -> object:
        """A document's right answer."""

    def process_results(self, doc: Mapping[str, Any], results: list[str]) -> Mapping[str, Any]:
        """Metric -> its result for the responses to a document."""

    def higher_is_better(self) -> Mapping[str, object]:
        """Metric -> whether higher values are better; None if its configuration does not say."""

    def aggregation(self) -> Mapping[str, Callable[..., object]]:
        """Metric -> the function that aggregates all documents."""

    def get_config(self, key: str) -> object:
        """An entry of its configuration; None if it is missing."""

    def dump_config(self) -> dict[str, Any]:
        """Its whole configuration, as lmms-eval writes it to its results."""

    def set_config(self, key: str, value: object, update: bool = False) -> None:
        """Changes an entry of its configuration."""


class Model(Protocol):
    """A chat model: `lmms_eval.api.model.lmms`."""

    def generate_until(self, requests: Sequence[Any]) -> Sequence[object]:
        """Answers requests, in their order."""

    def clean(self) -> None:
        """Frees its memory."""


class ObservedModel(Model, Protocol):
    """A model of this suite, which reports its responses: see `models.base.ObservedModel`."""

    item_ids: MutableMapping[tuple[str, int], str]
    kept: Mapping[tuple[str, int, int], "Generation"]
    refused: MutableMapping[tuple[str, int], str] | None
    settled: "Callable[[Any, Sequence[Generation]], bool] | None"
    on_batch: "Callable[[list[Generation]], None] | None"
    on_progress: Callable[[int, int], None] | None

    @property
    def box_convention(self) -> "BoxConvention":
        """The coordinates of its boxes."""

    def generation_in_force(self, given: Mapping[str, object] | None, task: str) -> dict[str, object]:
        """All generation settings that apply to a request, by name."""

    def generation_from_checkpoint(self, given: Mapping[str, object] | None, task: str) -> dict[str, object]:
        """The settings among them that the checkpoint sets."""


def is_observed(model: Model) -> TypeGuard[ObservedModel]:
    """Whether a model belongs to this suite, or to a plugin with the same interface."""
    return hasattr(model, "item_ids") and hasattr(model, "kept")
