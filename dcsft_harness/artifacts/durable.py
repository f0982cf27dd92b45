"""Writing that a power cut does not undo: when these return, the disk has it."""

import os
import shutil
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until the disk has a file, or knows a folder's entries: without that, a new file may vanish."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole, or leaves the one that was there."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    os.replace(new, path)
    sync(path.parent)


def move_up(folder: Path, target: Path, last: str) -> None:
    """Moves a folder's entries into another folder, over those of the same name.

    Args:
        folder: where they are; empty afterwards.
        target: where they go, on the same file system.
        last: the entry that moves when all others have.
    """
    for path in [folder, *folder.rglob("*")]:
        sync(path)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        if path.name == last:
            sync(target)
        os.replace(path, target / path.name)
    sync(target)
