"""lmms-eval task files and their functions. `path()` is the value for `--include_path`."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def path() -> Path:
    """The folder of the task YAML files, in the installed package."""
    return Path(str(files("dcsft_harness.tasks")))


def load(placeholder: "Dataset") -> "Dataset":
    """The set that a task's `dataset_name` names: digits, drawn on first use, or prepared rows."""
    from dcsft_harness.data.benchmarks import prepared
    from dcsft_harness.data.digits import suite

    name = str(placeholder.info.config_name)
    return suite.load(name) if name in suite.SETS else prepared.load(name)


def visual(doc: dict[str, Any]) -> list[Any]:
    """The document's images as RGB, in the order of the prompt; transparency becomes white."""
    from dcsft_harness.data.benchmarks import prepared
    from dcsft_harness.pictures import to_rgb

    if "image" in doc:  # of the digits suite
        return [to_rgb(doc["image"])]
    return [prepared.picture(doc["source"], index) for index in doc["images"]]
