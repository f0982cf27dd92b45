"""What the YAML files of the prepared benchmarks name: the rows of a task, and their pictures."""

from typing import Any

from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.tasks.verdicts import Doc


def load(placeholder: Any) -> Any:  # noqa: ANN401 - datasets.Dataset
    """The prepared rows of the task that the placeholder row of `index.json` names."""
    return prepared.load(placeholder[0]["set"])


def visual(doc: Doc) -> list[Any]:
    """The document's pictures as RGB, in the order of the prompt; what is transparent is white."""
    return [prepared.picture(doc["source"], index) for index in doc["images"]]
