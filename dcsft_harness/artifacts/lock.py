"""One run at a time in a folder: the lock and its owner."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError

OWNER, RUN = "owner.json", "run.json"
_SKEW = 60.0
"""Largest difference in seconds between the clocks of processes and of files."""


_GRANTED: ContextVar[frozenset[Path]] = ContextVar("locks granted", default=frozenset())
"""Locks held by a stage that the functions it calls may each take once."""


class _Lock(FileLock):
    """A separate class: lmms-eval makes plain file locks reentrant, which would let a second run in."""


@contextlib.contextmanager
def locked(path: Path, output: Path, option: str = "--output", patience: float = 0) -> Iterator[None]:
    """Holds a lock; the operating system releases it if the process dies.

    `OWNER` in the folder of the lock's file may name its owner. Errors call what is locked `output`, and the
    option that sets it `option`. `patience` is seconds to wait for another process.

    Raises:
        HarnessError: another process holds it; names that process.
    """
    place = path.resolve()
    if place in _GRANTED.get():
        with _granting(_GRANTED.get() - {place}):
            yield
        return
    try:
        with _Lock(path, timeout=patience):
            if not path.exists():  # the holder has finished and removed its folder
                raise Timeout(str(path))
            yield
    except Timeout as error:
        raise HarnessError(
            f"{option} {output} is being written by {owner(path.parent / OWNER)}",
            "Wait for it, stop it, or name another folder",
        ) from error


@contextlib.contextmanager
def granted(path: Path) -> Iterator[None]:
    """Allows functions called in the block to take a lock that this caller holds."""
    with _granting(_GRANTED.get() | {path.resolve()}):
        yield


@contextlib.contextmanager
def _granting(paths: frozenset[Path]) -> Iterator[None]:
    before = _GRANTED.set(paths)
    try:
        yield
    finally:
        _GRANTED.reset(before)


def sign(folder: Path) -> None:
    """Records this process as the owner of the folder's lock."""
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    (folder / OWNER).write_text(json.dumps(me) + "\n", encoding="utf-8")


def owner(path: Path) -> str:
    """The owner of a lock, in words."""
    try:
        found = reading.json_file(path)
        here = found["host"] == socket.gethostname()
        return f"process {found['pid']}" if here else f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which began this moment"


def at_work(path: Path) -> bool | None:
    """Whether the process that signed the file still runs; None if this machine cannot determine it."""
    try:
        found = reading.json_file(path)
        pid, host, signed = int(found["pid"]), found["host"], path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(pid)
        # Process ids are reused: a process that began after the signature is not the signer.
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= signed + _SKEW)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
