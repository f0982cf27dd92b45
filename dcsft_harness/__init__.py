"""Difficulty-curated SFT for vision-language models, as a plugin suite for lmms-eval.

The data flow; each arrow is one stage, one ``dcsft`` command and one Python function::

    pool -> rollouts -> labels -> curated set -> adapter -> scores -> leaderboard

    import dcsft_harness as dcsft

    rollouts = dcsft.sample("digits", task="dcsft_digits_pool", output="rollouts")
    labels = dcsft.label(rollouts, output="labels")
    curated = dcsft.curate(labels, keep=["easy", "medium"], output="curated")
    adapter = dcsft.train_sft("digits", data=curated, output="adapter", max_steps=100)
    scores = dcsft.evaluate(adapter, tasks=["dcsft_digits", "dcsft_digits_r"], output="scores")
    board = dcsft.leaderboard([scores], output="board")

Each function returns its artifact: ``.path``, ``.notes``, ``.table()``. ``dcsft.data_inspect(rows)`` shows
the first rows, and ``dcsft.compare_cost`` its table; they return None without an ``output``.

Method: Lu et al., "Why Does RL Generalize Better Than SFT?", CVPR 2026, arXiv 2602.10815.
"""

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# torch's threads spin while they wait for each other, on a busy machine for one that does not run. Asleep
# they lose little there, but wake slowly, which small layers feel on a quiet machine. OpenMP reads this once,
# when torch is imported, so it is set here, where every entry point begins.
_BUSY = 0.5
"""Other running or waiting processes per core from which on waiting threads sleep instead of spinning."""


def _busy() -> bool:
    """Whether other processes keep the machine busy now.

    The load average alone is not enough: for a minute it still counts a command that has just ended, and it
    takes a minute to show a load that has just started.
    """
    load, limit = os.getloadavg()[0], _BUSY * (os.cpu_count() or 1)
    if load < limit / 4:
        return False
    running = []
    try:
        for _ in range(5):
            running.append(
                int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")[0]) - 1
            )
            time.sleep(0.004)
    except OSError:  # not Linux
        return load > limit
    return sorted(running)[2] >= limit


if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() and _busy():
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


class CallableModule(ModuleType):
    """The module of the package `leaderboard`, which shares its name with its stage's Python function."""

    def __call__(self, *results: Any, **options: Any) -> Any:  # noqa: ANN401 - as the stage's options are
        """Builds a leaderboard."""
        return _function("leaderboard")(*results, **options)


def _function(name: str) -> Any:  # noqa: ANN401 - as the stage's options are
    """A stage's function, with the command line's progress bar."""

    def terminal() -> Any:  # noqa: ANN401 - a module, which is loaded when something is to be shown
        return import_module(f"{__name__}.cli.bar")

    return import_module(f"{__name__}.stages.functions").function_of(
        import_module(f"{__name__}.stages.{name}").STAGE,
        lambda title, shown: terminal().stage(title, shown),
        lambda remark: terminal().say(remark),
        lambda text, markdown: (terminal().show if markdown else terminal().write)(text),
    )


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function, or a package that is callable
    """A stage's function, loaded on first use and named after the stage's file."""
    if name == "leaderboard":  # also a package, whose module can be called
        return import_module(f"{__name__}.leaderboard")
    if name in _functions():
        return _function(name)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__]
    )


def __dir__() -> list[str]:
    """The stages' functions, and the module's own names that begin with an underscore."""
    return sorted({*(name for name in globals() if name.startswith("_")), *_functions()})


def _functions() -> set[str]:
    loaded = sys.modules.get(f"{__name__}.stages")
    folders = [Path(__file__).parent / "stages"] if loaded is None else map(Path, loaded.__path__)
    files = [path for folder in folders for path in folder.glob("*.py")]
    return {path.stem for path in files if path.read_text(encoding="utf-8").startswith('"""`dcsft ')}
