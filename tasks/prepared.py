"""Functions of the prepared benchmarks' YAML files: the rows of a task, and their images."""

from typing import TYPE_CHECKING, Any

from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.tasks.verdicts import Doc

if TYPE_CHECKING:
    from datasets import Dataset


def load(placeholder: "Dataset") -> "Dataset":
    """The prepared rows of the task named by the placeholder row of `index.json`."""
    return prepared.load(placeholder[0]["set"])


def visual(doc: Doc) -> list[Any]:
    """The document's images as RGB, in the order of the prompt; transparency becomes white."""
    return [prepared.picture(doc["source"], index) for index in doc["images"]]
