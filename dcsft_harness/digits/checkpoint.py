"""Where the embedded base checkpoint lies in the installed package."""

from importlib.resources import files
from pathlib import Path

from dcsft_harness.errors import HarnessError


def path() -> Path:
    """The folder of the checkpoint, for `from_pretrained`.

    Raises:
        HarnessError: the installation lacks it.
    """
    folder = Path(str(files("dcsft_harness.digits") / "base"))
    if not (folder / "model.safetensors").is_file():
        raise HarnessError(f"{folder} lacks the embedded checkpoint", "Reinstall dcsft-harness")
    return folder
