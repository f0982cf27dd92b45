"""The embedded digits suite: real digits, three task families and a tiny but real checkpoint.

The digits are the UCI optical recognition set (1,797 handwritten digits, 8x8, 0..16) that ships with
scikit-learn, so nothing is downloaded. A seeded generator draws every image from real digits; the splits are
disjoint in the real digits, not only in the drawings.
"""

import logging
from importlib.resources import files
from pathlib import Path

from dcsft_harness.errors import HarnessError

_LOG = logging.getLogger(__name__)
_HOLDS = ("config.json", "adapter_config.json", "manifest.json")
DIGITS = "digits"
"""The embedded checkpoint's name, accepted wherever a checkpoint is."""


def resolve(name: str | Path) -> str:
    """Resolves a checkpoint's name: "digits" is the embedded one; anything else is returned unchanged.

    The folder of a run that contains only checkpoints resolves to the newest of them.
    """
    if str(name) == DIGITS:
        return str(path())
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _HOLDS):
        steps = [(one.name.rpartition("-")[2], one) for one in folder.glob("checkpoint-*")]
        found = [
            int(step)
            for step, one in steps
            if step.isdecimal() and any((one / file).is_file() for file in _HOLDS[:2])
        ]
        if found:
            newest = folder / f"checkpoint-{max(found)}"
            _LOG.warning("%s: using its newest checkpoint, %s", folder, newest.name)
            return str(newest)
    return str(name)


def path() -> Path:
    """The folder of the checkpoint, for `from_pretrained`; an error if the installation lacks it."""
    folder = Path(str(files("dcsft_harness.data.digits") / "base"))
    if not (folder / "model.safetensors").is_file():
        raise HarnessError(f"{folder} lacks the embedded checkpoint", "Reinstall dcsft-harness")
    return folder
