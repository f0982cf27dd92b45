"""Files that survive a power cut: durable writes, append-only record files, and hashes."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

# Durable writes: when these functions return, the data is on disk.


def sync(path: Path) -> None:
    """Flushes a file or a folder's entries to disk; otherwise a new file may be lost in a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: on failure the old one remains."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    os.replace(new, path)
    sync(path.parent)


def move_up(folder: Path, target: Path, last: str) -> None:
    """Moves a folder's entries into another on the same file system, replacing those of the same name.

    The entry `last` is moved after all others; the folder is empty afterward.
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


# The SHA-256 of files, of values, and of folders without a manifest.

_CONTENT = frozenset({".json", ".safetensors", ".arrow", ".parquet"})
_READERS = 4
"""Files hashed in parallel: a large checkpoint's shards, which take 0.6 s per gigabyte each."""
_SETTLED = 60.0
"""Seconds without a change after which a file counts as written."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folder_sha256(folder: Path) -> str:
    """The SHA-256 of a folder's configuration, weights and rows, independent of its path, as hex."""
    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in _CONTENT)
    return json_sha256({str(p.relative_to(folder)): digest for p, digest in hashed(names).items()})


def code_sha256(folder: Path) -> str:
    """The SHA-256 of a checkpoint's chat templates and code, as hex; empty if it has none.

    `folder_sha256` does not include them and must not change: artifacts identify their inputs by it.
    """
    patterns = ("*.jinja", "additional_chat_templates/*.jinja", "*.py")
    names = sorted(path for pattern in patterns for path in folder.glob(pattern))
    found = {str(p.relative_to(folder)): digest for p, digest in hashed(names).items()}
    return json_sha256(found) if found else ""


def settled_sha256(path: Path, digest: Callable[[Path], str] = file_sha256) -> str:
    """A file's hash, cached while its size and time stay the same: a base or image is hashed many times.

    `digest` computes it; OSError if the file cannot be read.
    """
    status = path.stat()
    # A file that was just written may change again without a new timestamp, within the clock's resolution.
    if time.time() - status.st_mtime < _SETTLED:
        return digest(path)
    known = (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
    return _remembered_sha256(digest, path, *known)


def hashed(paths: Sequence[Path], digest: Callable[[Path], str] = settled_sha256) -> dict[Path, str]:
    """Files -> their hashes, `_READERS` at a time."""
    with ThreadPoolExecutor(min(_READERS, len(paths) or 1)) as pool:
        return dict(zip(paths, pool.map(digest, paths), strict=True))


@lru_cache(maxsize=1 << 16)
def _remembered_sha256(digest: Callable[[Path], str], path: Path, *_: int) -> str:
    return digest(path)


# An append-only file of records, one JSON object per line; only complete records are read.
#
# A line is `{"sum": CHECKSUM, "record": {...}}`. The checksum covers the record's bytes and is keyed with the
# run that wrote it. This detects records that are truncated, overwritten, mixed with another, or from another
# run.

_HEAD, _MIDDLE, _TAIL = b'{"sum":"', b'","record":', b"}\n"
_DIGITS = 16


@dataclass
class Found:
    """The content of a record file."""

    records: list[dict[str, Any]] = field(default_factory=list)  # the complete ones, in order
    # numbers of the lines that are not a record of this run, from 1
    damaged: list[int] = field(default_factory=list)
    whole_bytes: int = 0  # length of the file up to the end of its last complete line
    torn_bytes: int = 0  # length of the truncated record after it


def encode_record(record: Mapping[str, Any], key: bytes) -> bytes:
    """A JSON-serializable record as a line; `key` identifies the run, at most 64 bytes."""
    payload = json.dumps(record).encode()
    return _HEAD + _checksum_of(payload, key) + _MIDDLE + payload + _TAIL


def _checksum_of(payload: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGITS // 2, key=key).hexdigest().encode()


def _decode_record(line: bytes, key: bytes) -> dict[str, Any] | None:
    """The record in a line; None if the line is damaged."""
    start = len(_HEAD) + _DIGITS
    if not (line.startswith(_HEAD) and line[start:].startswith(_MIDDLE) and line.endswith(_TAIL)):
        return None
    payload = line[start + len(_MIDDLE) : -len(_TAIL)]
    if line[len(_HEAD) : start] != _checksum_of(payload, key):
        return None
    record: dict[str, Any] = json.loads(payload)  # noqa: TID251 - its checksum holds
    return record


def read_records(path: Path, key: bytes, start: int = 0) -> Found:
    """Reads a record file from the line that begins at byte `start`; a missing one is empty."""
    found = Found(whole_bytes=start)
    if not path.is_file():
        return found
    with path.open("rb") as file:
        file.seek(start)
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                found.torn_bytes = len(line)
                break
            found.whole_bytes += len(line)
            record = _decode_record(line, key)
            if record is None:
                found.damaged.append(number)
            else:
                found.records.append(record)
    return found


class Journal:
    """A record file open for appending; a killed process loses no append."""

    def __init__(self, path: Path, key: bytes, whole_bytes: int, sync_every: float = 0.0) -> None:
        """Opens or creates the file and truncates it after its last complete line.

        `key` and `whole_bytes` are those of `encode_record` and `read_records`. An append is on disk when it
        returns, unless another was written there less than `sync_every` seconds before: a machine that stops
        loses at most that much work. OSError if the file cannot be written.
        """
        self._every, self._synced = sync_every, time.monotonic()
        self._key, self._size = key, whole_bytes
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.ftruncate(self._file, whole_bytes)
            os.fsync(self._file)
            sync(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records; on an OSError the file is as it was before."""
        left = memoryview(b"".join(encode_record(record, self._key) for record in records))
        size = self._size + len(left)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced >= self._every:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError:
            with contextlib.suppress(OSError):  # if this fails, the next reader truncates it
                os.ftruncate(self._file, self._size)
            raise
        self._size = size

    def close(self) -> None:
        """Closes the file, with all that was appended on the disk."""
        with contextlib.suppress(OSError):  # the next reader finds what is missing
            os.fsync(self._file)
        os.close(self._file)
