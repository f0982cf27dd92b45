"""lmms-eval task files and the functions that they name. `path()` is what `--include_path` takes."""

from importlib.resources import files
from pathlib import Path


def path() -> Path:
    """The folder of the task YAML files, in the installed package."""
    return Path(str(files("dcsft_harness.tasks")))
