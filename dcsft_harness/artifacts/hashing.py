"""The SHA-256 of what decides a result: of files, of values, of folders without a manifest."""

import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path

_SETTLED = 60.0
"""Seconds after which a file that has not changed since counts as written."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folder_sha256(folder: Path) -> str:
    """The SHA-256 of a folder's configuration and weights, wherever it lies, as hex."""
    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in {".json", ".safetensors"})
    return json_sha256({str(p.relative_to(folder)): settled_sha256(p) for p in names})


def settled_sha256(path: Path) -> str:
    """A file's hash, computed once while its size and times stay: a large base is read many times."""
    told = path.stat()
    # A file that was written just now may be written again within what the clock of its disk can tell.
    if time.time() - told.st_mtime < _SETTLED:
        return file_sha256(path)
    return _remembered_sha256(path.resolve(), told.st_size, told.st_mtime_ns, told.st_ino)


@lru_cache(maxsize=4096)
def _remembered_sha256(path: Path, *_: int) -> str:
    return file_sha256(path)
