"""An append-only file of records, one JSON object a line, from which only what was written whole is read.

A line is `{"sum": CHECKSUM, "record": {...}}`. The checksum covers the record's bytes and is keyed with the
run that wrote it, so a record that was cut, overwritten, mixed with another or comes from another run is
known for what it is.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsft_harness.artifacts.durable import sync

_HEAD, _MIDDLE, _TAIL = b'{"sum":"', b'","record":', b"}\n"
_DIGITS = 16


@dataclass
class Found:
    """What a shard holds.

    Attributes:
        records: the whole ones, in order.
        damaged: numbers of the lines that are no record of this run, from 1.
        whole_bytes: length of the file up to the end of its last whole line.
        torn_bytes: what follows it: a record whose writing was cut short.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    whole_bytes: int = 0
    torn_bytes: int = 0


def encode(record: Mapping[str, Any], key: bytes) -> bytes:
    """A record as a line.

    Args:
        record: JSON-serialisable.
        key: what stands for the run, at most 64 bytes.
    """
    payload = json.dumps(record).encode()
    return _HEAD + _checksum(payload, key) + _MIDDLE + payload + _TAIL


def _checksum(payload: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGITS // 2, key=key).hexdigest().encode()


def _decode(line: bytes, key: bytes) -> dict[str, Any] | None:
    """The record in a line, None where the line is damaged."""
    start = len(_HEAD) + _DIGITS
    if not (line.startswith(_HEAD) and line[start:].startswith(_MIDDLE) and line.endswith(_TAIL)):
        return None
    payload = line[start + len(_MIDDLE) : -len(_TAIL)]
    if line[len(_HEAD) : start] != _checksum(payload, key):
        return None
    record: dict[str, Any] = json.loads(payload)
    return record


def read(path: Path, key: bytes, start: int = 0) -> Found:
    """Reads a shard; a missing one is empty.

    Args:
        path: the file.
        key: see `encode`.
        start: where the first line to read begins, in bytes.
    """
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
            record = _decode(line, key)
            if record is None:
                found.damaged.append(number)
            else:
                found.records.append(record)
    return found


class Shard:
    """A shard open for appending; each append is on the disk when it returns."""

    def __init__(self, path: Path, key: bytes, whole_bytes: int) -> None:
        """Opens or creates the file and cuts off what follows its last whole line.

        Args:
            path: the file.
            key: see `encode`.
            whole_bytes: as `read` found it.

        Raises:
            OSError: the file cannot be written.
        """
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
        """Writes records and waits until the disk has them.

        Raises:
            OSError: the disk takes no more; the file is as it was before.
        """
        left = memoryview(b"".join(encode(record, self._key) for record in records))
        size = self._size + len(left)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # the next reader cuts it off where this cannot be done
                os.ftruncate(self._file, self._size)
            raise
        self._size = size

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
