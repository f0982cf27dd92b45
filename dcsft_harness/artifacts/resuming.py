"""Runs that save their work as they go and resume after an interruption.

    output/unfinished/lock         held by the running process, see `lock`; released when it dies
    output/unfinished/lock-1       held by rank 1 of a launch
    output/unfinished/owner.json   identifies that process
    output/unfinished/run.json     the settings that decide the result
    output/unfinished/...          the saved work: responses, or checkpoints

A folder becomes an artifact when its manifest is in place; `unfinished/` is removed last.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsft_harness import environment, ranks, reading
from dcsft_harness.artifacts import disk, lock, manifest
from dcsft_harness.artifacts.lock import RUN
from dcsft_harness.artifacts.manifest import LOCK, UNFINISHED
from dcsft_harness.errors import HarnessError, differences, reporting_refusals

PRECISION = "precision of the weights"
"""A setting that runs of older versions do not record."""
_ITEMS = (
    "the items' prompts, answers or images differ, or an earlier version of dcsft showed the images"
    " differently (not upright, 16 bits not scaled, or not at their marks)"
)


class OtherRunError(HarnessError):
    """An output folder holds an unfinished run with other settings."""


@contextlib.contextmanager
def resumed(
    output: Path,
    kind: str,
    identity: Mapping[str, Any],
    saved: Callable[[Path], object],
    dropped: Collection[str] = (),
) -> Iterator[Path]:
    """Opens an output folder for a run that saves its work as it goes, or resumes an interrupted one.

    However the block ends, saved work remains; a run without any is removed. In a launch, rank 0 holds the
    folder's lock, and each other rank one of its own.

    Args:
        output: a new or empty folder, or one from an interrupted run.
        kind: the kind of the future artifact.
        identity: the settings that decide the result, by name; JSON values.
        saved: whether the folder for unfinished work, its argument, holds work to resume.
        dropped: settings that decided the result in older versions only; a run that has them resumes.

    Yields:
        The folder inside it for unfinished work.

    Raises:
        HarnessError: another process uses the folder, it holds something else or a run with other settings,
            it cannot be written, or a rank sees another folder than rank 0 or has other settings.
    """
    environment.begin_work()
    with contextlib.ExitStack() as stack:
        with ranks.agreed(), reporting_refusals(kind, output, "nothing was changed"):
            if ranks.rank() == 0:
                stack.enter_context(_leading(output, kind, identity, saved, dropped))
        own = stack.enter_context(contextlib.ExitStack())
        with ranks.agreed(), reporting_refusals(kind, output, "nothing was changed"):
            if ranks.rank() > 0:
                own.enter_context(_following(output, identity, dropped))
        yield output / UNFINISHED
        with ranks.agreed():  # no rank has a file open when rank 0 cleans up
            own.close()


@contextlib.contextmanager
def _leading(
    output: Path,
    kind: str,
    identity: Mapping[str, Any],
    saved: Callable[[Path], object],
    dropped: Collection[str],
) -> Iterator[None]:
    """Locks a run's folder for rank 0, and writes or compares its settings."""
    manifest.refuse_occupied(output, resumes=True)
    with manifest.taken(output, kind, grant=False) as folder:
        for other in sorted(folder.glob(f"{LOCK}-*")):
            with lock.locked(other, output):  # which a rank may still hold after its rank 0 has ended
                pass
        # A process that finished meanwhile has released the lock.
        manifest.refuse_occupied(output, resumes=True)
        try:
            if not saved(folder):
                (folder / RUN).unlink(missing_ok=True)
            _compare(output, identity, dropped)
            manifest.clear(output)
            yield
        finally:
            if not saved(folder):
                (folder / RUN).unlink(missing_ok=True)


def _following(
    output: Path, identity: Mapping[str, Any], dropped: Collection[str] = ()
) -> contextlib.AbstractContextManager[None]:
    """The lock of a rank other than 0, in a folder that rank 0 has opened.

    A rank that sees another folder, or has other settings, is refused.
    """
    folder = output / UNFINISHED
    if not (folder / RUN).is_file():
        raise HarnessError(
            f"rank {ranks.rank()} cannot see what rank 0 wrote to --output {output}",
            "Name a folder on a file system that all machines share",
        )
    _compare(output, identity, dropped)
    return lock.locked(folder / f"{LOCK}-{ranks.rank()}", output)


def discard(output: Path) -> None:
    """Removes an unfinished run that no process is working on.

    Raises:
        HarnessError: a process is working on it.
    """
    with manifest.taken(output):
        shutil.rmtree(output)


def _compare(output: Path, identity: Mapping[str, Any], dropped: Collection[str]) -> None:
    """Writes a new run's settings, or compares them with those of the existing run."""
    path = output / UNFINISHED / RUN
    if not path.is_file():
        # Records without settings are read if their key matches this run; otherwise they count as damaged.
        disk.write_text(path, json.dumps(identity, indent=2) + "\n")
        for above in (output, output.resolve().parent):
            disk.sync(above)
        return
    try:
        before = dict(reading.json_file(path))
    except (ValueError, TypeError) as error:
        raise HarnessError(f"{path} cannot be read ({error})", f"Remove {output} to start again") from error
    older = {name: value for name, value in before.items() if name in identity or name not in dropped}
    now = {name: value for name, value in identity.items() if name in before or name != PRECISION}
    differing = differences(older, now)
    if differing:
        if before.get("items") != identity.get("items"):
            differing.append(_ITEMS)
        raise OtherRunError(
            f"--output {output} holds an unfinished run with other settings: {'; '.join(differing)}",
            "Name another folder, restore those settings, or remove this folder",
        )
