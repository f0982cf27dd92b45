"""Packages and hardware, which results and times depend on, and the cache folder."""

import contextlib
import gc
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import platformdirs

from dcsft_harness.errors import HarnessError, causes, cut

# What results and times depend on besides the settings: installed packages and the machine.

PACKAGES = ("dcsft-harness", "lmms-eval", "torch", "transformers", "peft", "trl", "datasets", "vllm")


@cache
def packages() -> Mapping[str, str]:
    """Versions of the installed packages that can change a result.

    Read once: it takes as long as writing a small artifact.
    """
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, object]:
    """What times depend on: processor, logical cores, Python, and the CUDA device if torch uses one."""
    torch = sys.modules.get("torch")
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


@cache
def processor() -> str:
    """The processor's model, if Linux reports it; else its kind."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


EXTRAS = {"trl": "train", "ray": "ray", "vllm": "vllm"}
"""Package -> the extra of this one that installs it."""
TESTED = "pip install -c constraints.txt '.[train]'"


def broken_import(error: BaseException) -> HarnessError | None:
    """The sentence about a package that is missing or conflicts with another installed one.

    None for all except an `ImportError` from outside this package; lazy packages wrap it in errors of their
    own. Also None for one that a `HarnessError` has explained.
    """
    failed = next((one for one in causes(error) if isinstance(one, ImportError | HarnessError)), None)
    if not isinstance(failed, ImportError) or (failed.name or "").split(".")[0] == __package__:
        return None
    importer, missing = called(error), (failed.name or "").split(".")[0]
    reason = " ".join(str(failed).split())
    if importer is None and missing in EXTRAS and _installed(missing) is None:
        return HarnessError(
            f"this command needs {missing}, which is not installed",
            f"Run `{TESTED.replace('train', EXTRAS[missing])}` in a clone of dcsft-harness",
        )
    package = importer or missing or "a package"
    there = _installed(missing) if missing not in ("", importer) else None  # some errors name no module
    return HarnessError(
        f"{_installed(package) or package} cannot be imported: {reason}"
        + (f" ({there} is installed)" if there else ""),
        f"Install the versions that were tested together: `{TESTED}` in a clone of dcsft-harness",
    )


def called(error: BaseException) -> str | None:
    """The package that our own code was importing or calling; None if the error is our code's own."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if package == __package__:
            found = None
        elif found is None and package not in sys.stdlib_module_names and package != "click":
            found = package
    return found


def _installed(package: str) -> str | None:
    """A package's distribution and version ("lmms-eval 0.7.3"); None if it is not installed."""
    names = packages_distributions().get(package, [package])
    with contextlib.suppress(PackageNotFoundError):
        return f"{names[0].replace('_', '-')} {version(names[0])}"
    return None


_THREADS = ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def refuse_threads() -> None:
    """Refuses an invalid number of threads: pandas imports numexpr, which fails to read it."""
    for name in _THREADS:
        value = os.environ.get(name, "")
        if value and not (value.strip().isdecimal() and int(value)):
            problem = f"{name}={cut(value)} is not a number of threads"
            raise HarnessError(problem, "Pass one, such as 4, or unset it")


# What is imported stays until the end: the garbage collector need not walk it.

_IMPORTING = [False]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Turns the garbage collector off until work begins, and hides from it what is there by then.

    Collections of torch, transformers and lmms-eval take a quarter of a short command's time. What the caller
    has frozen stays so, as of a server that forks; everything else is as before after the block.
    """
    if gc.get_freeze_count() or not gc.isenabled():
        yield
        return
    gc.collect()  # such as the trainer of an earlier call in a notebook, whose memory the work needs
    gc.disable()
    _IMPORTING[0] = True
    try:
        yield
    finally:
        _IMPORTING[0] = False
        gc.unfreeze()
        gc.enable()


def begin_work() -> None:
    """Says that everything is imported and opened: the collector works again, on what is made from now on."""
    if _IMPORTING[0]:
        _IMPORTING[0] = False
        gc.freeze()
        gc.enable()


# Where the suite keeps what it can make again.


def cache_root() -> Path:
    """`$DCSFT_CACHE`, else the user's cache folder for dcsft."""
    return Path(os.environ.get("DCSFT_CACHE") or platformdirs.user_cache_dir("dcsft"))
