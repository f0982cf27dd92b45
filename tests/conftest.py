"""Set-up of every test: fast tests stay fast, and a user's cache is neither read nor written."""

import functools
import gc
import importlib.machinery
import importlib.metadata
import itertools
import logging
import os
import signal
import sys
import types
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import hypothesis
import pytest
from _pytest.logging import catching_logs
from PIL import Image

from dcsft_harness import coordinates
from dcsft_harness.curation import gallery
from tests.fixtures import forked

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
# Before torch is imported, and for every command that a test starts: with more threads than cores the threads
# of a tiny model wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
# Before huggingface_hub is imported, which retries an unreachable hub for half a minute. Tests marked
# `network` run with HF_HUB_OFFLINE=0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# TRL imports wandb where it is installed: a fifth of the import time of all tests. No test reports to it.
# Commands that tests start import the real one.
_wandb = types.ModuleType("wandb")
_wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
_wandb.run = None
sys.modules.setdefault("wandb", _wandb)
# TRL and transformers each read the metadata of every installed package.
importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)

# Minutes, roughly: if a long file started last, the other process would run out of work.
LONGEST = {
    "test_quickstart": 6,
    "test_training_launch": 2,
    "test_ranks": 2,
    "test_page_browser": 2,
    "test_benchmarks": 2,
    "test_interrupts": 2,
    "test_soak": 2,
    "test_spread": 1,
    "test_training_resume": 1,
    "test_watch": 1,
    "test_families": 1,
    "test_wrong_labels": 1,
}

BEYOND = Path(__file__).parent / "fixtures" / "beyond_unit.txt"
"""ROWS TEST: the fast tests run the first ROWS rows of a test, often none; `make test` runs all of them.

Written by `pytest -m 'not slow' --share-unit`, which measures each row.
"""
BUDGET = float(os.environ.get("DCSFT_UNIT_BUDGET", "52"))
"""CPU seconds for all rows of the fast tests and their modules' fixtures together.

Each of two processes needs half as much again for imports, so the fast tests take a minute on two cores.
"""
FREE = 0.02
"""Rows up to this many seconds do not count against their test's share, so long tables of quick rows stay."""


def _attach(self: catching_logs) -> logging.Handler:
    """Adds a pytest handler to the root logger only.

    pytest would also add each to the 60 loggers of torch that do not propagate, six times per test.
    """
    root = logging.getLogger()
    root.addHandler(self.handler)
    self.attached_loggers.append(root)
    if self.level is not None:
        self.handler.setLevel(self.level)
        self.orig_level = root.level
        root.setLevel(min(root.level, self.level))
    return self.handler


catching_logs.__enter__ = _attach
gc.disable()
frozen = [0]
"""Number of modules that were imported when the collector was last frozen."""
# Background jobs of a shell ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that measures the fast tests instead of choosing among them."""
    parser.addoption("--share-unit", action="store_true", help=f"write {BEYOND.name}")


def pytest_configure(config: pytest.Config) -> None:
    """Fast tests draw fewer examples of a property than the full run."""
    hypothesis.settings.register_profile("fast", max_examples=15, deadline=None)
    hypothesis.settings.register_profile("full", max_examples=150, deadline=None)
    hypothesis.settings.load_profile("fast" if config.option.markexpr == "not slow" else "full")
    if config.option.share_unit:
        config.pluginmanager.register(Shares(), "shares")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """The processes of pytest-xdist share a fork server, which imports the engines while they collect.

    The fast tests hardly fork.
    """
    option = session.config.option
    if getattr(option, "numprocesses", None) and option.markexpr != "not slow" and sys.platform == "linux":
        with pytest.MonkeyPatch.context() as patch:
            shared_cache(session.config._tmp_path_factory.getbasetemp() / "cache", patch)
            forked.announce()


class Shares:
    """Measures the CPU seconds of each row, and separately those of its module's fixtures."""

    def __init__(self) -> None:
        self.seconds = defaultdict(list)
        self.once = defaultdict(float)
        self.users = {}
        self.wide = 0.0

    def pytest_collection_finish(self) -> None:
        """Imports everything and starts the fork server: otherwise the first test that needs it would pay."""
        forked.warm()
        forked.run(["-c", "0"])

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Generator:
        before, inner = forked.spent(), self.wide
        yield
        if fixturedef.scope != "function":
            self.wide = inner + forked.spent() - before

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator:
        before, self.wide = forked.spent(), 0.0
        yield
        name, file = item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]
        self.seconds[name].append(forked.spent() - before - self.wide)
        self.once[file] += self.wide
        known = [given[-1] for given in item._fixtureinfo.name2fixturedefs.values()]
        if any(one.scope != "function" and one.baseid.startswith(file) for one in known):
            self.users[name] = file

    def pytest_sessionfinish(self) -> None:
        share, kept = shared(self.seconds, BUDGET, self.once, self.users)
        beyond = {name: rows for name, rows in sorted(kept.items()) if rows < len(self.seconds[name])}
        BEYOND.write_text("".join(f"{rows} {name}\n" for name, rows in beyond.items()), encoding="utf-8")
        print(f"\n{share:.2f} s of a processor for each test; {len(beyond)} tests have rows beyond that")


def rows_within(seconds: Sequence[float], share: float) -> int:
    """How many of a test's first rows fit into its share; rows of at most `FREE` seconds are free."""
    counted = itertools.accumulate(one if one > FREE else 0.0 for one in seconds)
    return sum(total <= share for total in counted)


def shared(
    seconds: Mapping[str, Sequence[float]],
    budget: float,
    once: Mapping[str, float],
    users: Mapping[str, str],
) -> tuple[float, dict[str, int]]:
    """The largest share, equal for all tests, with which they stay within the budget together.

    Args:
        seconds: test -> what each of its rows took.
        budget: for all of them and their fixtures.
        once: file -> what its fixtures of a module or class took.
        users: test -> its file, if it uses such fixtures. The rows of a file that use them give a share each:
            where those are less than the fixtures take, none of these rows is kept.

    Returns:
        The share in seconds, in steps of 0.01, and test -> how many of its rows it keeps.
    """
    for hundredths in range(1000, -1, -1):
        share = hundredths / 100
        kept = {name: rows_within(rows, share) for name, rows in seconds.items()}
        given = defaultdict(float)
        for name, file in users.items():
            given[file] += share * kept[name]
        dear = {file for file in given if once[file] > given[file]}
        kept = {name: 0 if users.get(name) in dear else rows for name, rows in kept.items()}
        used = {file for name, file in users.items() if kept[name]}
        taken = sum(sum(seconds[name][:rows]) for name, rows in kept.items())
        if taken + sum(once[file] for file in used) <= budget:
            break
    return share, kept


def quick_rows(rows: list[set]) -> set[int]:
    """The fewest rows found greedily that hold every value of every parameter.

    Args:
        rows: of each row, its (parameter, value) pairs.

    Returns:
        The places of the chosen rows.
    """
    missing, chosen = set().union(*rows), set()
    while missing:
        at = max(range(len(rows)), key=lambda place: len(rows[place] & missing))
        chosen.add(at)
        missing -= rows[at]
    return chosen


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks rows that `grid`, `few` and `BEYOND` leave to the full run as slow; sorts long files first."""
    grids, rows = defaultdict(list), defaultdict(int)
    measured = config.option.share_unit or not BEYOND.is_file()
    lines = [] if measured else BEYOND.read_text(encoding="utf-8").splitlines()
    beyond = {name: int(count) for count, name in (line.split(" ", 1) for line in lines)}
    for item in items:
        if few := item.get_closest_marker("few"):
            rows[item.parent.nodeid, item.originalname] += 1
            if rows[item.parent.nodeid, item.originalname] > few.args[0]:
                item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("grid") and not item.get_closest_marker("slow"):
            grids[item.parent.nodeid, item.originalname].append(item)
    for grid in grids.values():
        # One name per decorator; `indices` count rows, not values.
        indices = [set(enumerate(item.callspec._idlist)) for item in grid]
        chosen = quick_rows(indices)
        for at, item in enumerate(grid):
            if at not in chosen:
                item.add_marker(pytest.mark.slow)
    taken = defaultdict(int)
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in beyond and not item.get_closest_marker("slow"):
            taken[name] += 1
            if taken[name] > beyond[name]:
                item.add_marker(pytest.mark.slow)
    if WORKERS > 1:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (-LONGEST.get(item.path.stem, 0), item.path not in slow))


def pytest_collection_finish() -> None:
    """Hides imported modules from the garbage collector.

    transformers collects after every training run, lmms-eval after every evaluation and statsmodels with
    every correction; each time a million permanent objects of torch and TRL would be scanned for nothing. The
    little garbage of collection itself is frozen with them.
    """
    if frozen[0]:
        gc.collect()
    gc.freeze()
    gc.enable()
    gc.get_freeze_count = lambda: 1_000_000  # counting takes 0.1 s, in every stage
    frozen[0] = len(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Freezes later imports in the same way."""
    if hasattr(sys.modules.get("lmms_eval.tasks"), "TaskManager"):
        forked.index_once()
    forked.collect_young_objects()
    if len(sys.modules) > frozen[0] + 50:
        pytest_collection_finish()


@pytest.fixture(scope="session", autouse=True)
def disk():
    """Skips fsync: tests kill processes, and the system keeps the writes of a killed process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, request):
    """One cache of the embedded suite for all tests of a run, drawn by the current code."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist gives each process a folder inside the run's
        folder = folder.parent
    folder = folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        shared_cache(folder, patch)
        yield folder


def shared_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Sets the environment of all processes of a run."""
    folder.mkdir(exist_ok=True)
    patch.setenv("DCSFT_CACHE", str(folder))
    patch.delenv("DCSFT_DATA", raising=False)


@pytest.fixture(scope="session", autouse=True)
def blank():
    """Replaces figures by blank images of about their shape, because drawing is slow.

    Commands in other processes still draw, and so do tests that request `drawn`.
    """

    def save(figure, png, svg):
        Image.new("L", [int(10 * side) for side in figure.get_size_inches()]).save(png)
        svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')

    from dcsft_harness.leaderboard.report import plots

    kept = ((gallery, "_draw", gallery._draw), (plots, "_save", plots._save))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "_draw", lambda path, parts: Image.new("L", (46 * len(parts), 36)).save(path))
        patch.setattr(plots, "_save", save)
        yield kept


@pytest.fixture
def drawn(blank, monkeypatch):
    """Draws figures in this test."""
    for kept in blank:
        monkeypatch.setattr(*kept)


@pytest.fixture(scope="session", autouse=True)
def shortcuts():
    """Skips work that other packages repeat for every small table and every log.

    `datasets` draws random cache keys instead of hashing, and loguru looks for libraries once. lmms-eval does
    not wait 2 s before each of the four times that it repeats what fails in a task's code. PEFT compiles the
    template of its card once, not for every checkpoint.
    """
    import jinja2
    import tenacity
    from datasets import arrow_dataset
    from loguru._better_exceptions import ExceptionFormatter

    with pytest.MonkeyPatch.context() as patch:
        folders = ExceptionFormatter._get_lib_dirs()
        patch.setattr(ExceptionFormatter, "_get_lib_dirs", staticmethod(lambda: folders))
        patch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        patch.setattr(jinja2.Environment, "compile", functools.lru_cache(jinja2.Environment.compile))
        drawn = arrow_dataset.generate_random_fingerprint
        patch.setattr(arrow_dataset, "generate_fingerprint", lambda dataset: drawn())
        yield


@pytest.fixture(autouse=True)
def no_convention(monkeypatch):
    """Clears the box convention that a model declared in an earlier test."""
    monkeypatch.setattr(coordinates, "_current", None)
    monkeypatch.delenv(coordinates.VARIABLE, raising=False)


@pytest.fixture
def pixels(no_convention):
    """Declares that boxes are in pixels of the original image."""
    coordinates.declare(coordinates.PIXEL)


@pytest.fixture(autouse=True)
def one_thread(request):
    """Uses one thread in unit tests: the threads of tiny models would only wait for each other.

    End-to-end runs keep the machine's default, as a user's would.
    """
    torch = sys.modules.get("torch")
    if torch is None or request.node.get_closest_marker("slow"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
