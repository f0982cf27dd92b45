"""The lock that allows one run at a time in a folder, its owner, and scratch folders with their own locks."""

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
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

    `OWNER` in the folder of the lock's file may name its owner. Errors name the locked
    folder `output` and the option that sets it `option`. `patience` is seconds to wait for another process.

    Raises:
        HarnessError: another process holds it; names that process.
    """
    place = path.resolve()
    if place in _GRANTED.get():
        with granted(place, False):
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
def granted(path: Path, allowed: bool = True) -> Iterator[None]:
    """Allows functions called in the block to take a lock that this caller holds; or no longer does."""
    others = _GRANTED.get() - {path.resolve()}
    before = _GRANTED.set(others | {path.resolve()} if allowed else others)
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
        return "another process that has just started"


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


class Scratch:
    """A temporary folder of this process, removed at its exit at the latest.

    A killed process leaves its folder behind. The next process that makes one beside it on the same machine
    removes it; if the process was killed before it took the lock, only an hour later.
    """

    def __init__(self, name: str, above: Path | None = None) -> None:
        """Makes the folder, below the system's folder for temporary files by default.

        Raises:
            OSError: it cannot be made.
        """
        above = above or Path(tempfile.gettempdir())
        above.mkdir(parents=True, exist_ok=True)
        if (above, name) not in _SWEPT:
            _SWEPT.add((above, name))
            for held in above.glob(f"*/{_HELD}"):
                _sweep(held)
            for made in above.glob(f"{name}-*"):
                _sweep_unsigned(made)
        self._made, self._process = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=above)), os.getpid()
        # Signed before it has the file that others look for.
        sign(self._made)
        self._lock = (self._made / _HELD).open("wb")
        with contextlib.suppress(OSError):  # a file system without locks: the signature decides alone
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.folder = self._made / name
        self.folder.mkdir()
        atexit.register(self.remove)

    def remove(self) -> None:
        """Removes the folder, but only in the process that created it, not in a fork."""
        if os.getpid() == self._process:
            shutil.rmtree(self._made, ignore_errors=True)
            self._lock.close()
            atexit.unregister(self.remove)


_HELD = "dcsft.lock"
_SWEPT: set[tuple[Path, str]] = set()
"""Where this process has looked for leftovers: once, as it must look at every live process."""
_SIGNING = 3600.0
"""Seconds after which a scratch folder without a lock counts as left by a killed process."""


def _sweep_unsigned(made: Path) -> None:
    """Removes a scratch folder of this user that holds nothing, or a signature alone, for a long time."""
    with contextlib.suppress(OSError):  # no folder, or just removed
        status = made.lstat()
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > _SIGNING:
            if [path.name for path in made.iterdir()] == [OWNER]:
                (made / OWNER).unlink()
            made.rmdir()  # which fails if it holds anything


def _sweep(held: Path) -> None:
    """Removes a scratch folder of this user whose process is certain to be dead."""
    with contextlib.suppress(OSError):  # just removed, or locked
        if held.parent.lstat().st_uid != os.getuid() or at_work(held.with_name(OWNER)) is not False:
            return
        with held.open("r+b") as file:
            # Containers with one host name do not see each other's processes, but do see locks.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)
