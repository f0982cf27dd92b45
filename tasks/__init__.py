"""lmms-eval task files and their functions. `path()` is the value for `--include_path`."""

from importlib.resources import files
from pathlib import Path


def path() -> Path:
    """The folder of the task YAML files, in the installed package."""
    return Path(str(files("dcsft_harness.tasks")))
