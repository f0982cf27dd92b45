"""Missing or incompatible packages: one sentence before anything is loaded, for every verb."""

import builtins
import contextlib
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from dcsft_harness import environment
from dcsft_harness.artifacts import manifest, resuming
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError, refusal
from dcsft_harness.lmms import tasks
from tests.conftest import shared

SETTINGS = ["--data", "dcsft_digits_cold", "--max-steps", "1", "--learning-rate", "1e-3"]
VERBS = {
    "sample": ["sample", "--model-args", "pretrained=digits", "--task", "dcsft_digits_pool"],
    "evaluate": ["evaluate", "--model-args", "pretrained=digits", "--tasks", "dcsft_digits"],
    "cold-start": ["train", "cold-start", "--model", "digits", *SETTINGS],
    "sft": ["train", "sft", "--model", "digits", *SETTINGS],
    "grpo": ["train", "grpo", "--model", "digits", "--data", "dcsft_digits_pool", "--max-steps", "1"],
    "overlap": ["data", "overlap", "dcsft_digits_pool", "dcsft_digits"],
    "recipe": ["run", "digits"],
    "quickstart": ["quickstart"],
}


@pytest.fixture
def moved(monkeypatch):
    """filelock like its release 4.3: without the module that lmms-eval's evaluator imports."""
    from lmms_eval import evaluator

    original = builtins.__import__

    def without(name, *arguments, **named):
        if name == "filelock._api":
            raise ModuleNotFoundError("No module named 'filelock._api'", name=name)
        return original(name, *arguments, **named)

    monkeypatch.setattr(evaluator._enable_reentrant_filelocks, "_patched", False, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    tasks._indexed.cache_clear()
    yield
    tasks._indexed.cache_clear()


@pytest.mark.parametrize("verb", VERBS)
def test_a_package_that_lmms_eval_cannot_use_is_named_by_every_verb(tmp_path, moved, capsys, verb):
    output = tmp_path / "output"
    assert main([*VERBS[verb], "--output", str(output)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1, said
    assert said[0].startswith(
        f"dcsft: lmms-eval {version('lmms-eval')} cannot be imported: No module named 'filelock._api' "
        f"(filelock {version('filelock')} is installed). Install the versions that were tested together: "
        "`pip install -c constraints.txt '.[train]'`"
    )


def test_the_passthrough_names_it_too(moved, capsys):
    assert main(["lmms-eval", "--model", "dcsft_stub", "--tasks", "dcsft_digits"]) == 1
    assert re.match(r"dcsft: lmms-eval .* cannot be imported: .*\n$", capsys.readouterr().err)


@pytest.mark.parametrize("package", ["trl", "vllm"])
def test_a_missing_extra_is_named(monkeypatch, package):
    error = ModuleNotFoundError(f"No module named {package!r}", name=package)
    monkeypatch.setattr(environment, "_installed", lambda name: None)
    said = str(environment.broken_import(error))
    assert said.startswith(f"this command needs {package}, which is not installed. Run `pip install -c")
    assert environment.EXTRAS[package] in said


def test_an_import_error_hidden_by_a_lazy_package_is_found(tmp_path):
    (tmp_path / "lazy_engine.py").write_text(
        "try:\n    import module_that_moved\nexcept ImportError as error:\n"
        "    raise RuntimeError('Failed to import lazy_engine.trainer') from error\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(RuntimeError) as caught:
            import lazy_engine  # noqa: F401
    finally:
        sys.path.remove(str(tmp_path))
    said = str(environment.broken_import(caught.value))
    assert "cannot be imported: No module named 'module_that_moved'" in said


def _circle():
    """The cause of an error, raised from it, as retries of other packages are unwrapped."""
    first, second = ValueError("x"), RuntimeError("y")
    first.__cause__, second.__cause__ = second, first
    return first


def _explained():
    """A sentence about a package that an option needs."""
    error = HarnessError("optim=adamw_8bit needs a package")
    error.__cause__ = ImportError("bitsandbytes")
    return error


def test_an_import_error_without_a_module_is_reported():
    said = str(environment.broken_import(ImportError("liger-kernel is not available")))
    assert said.startswith("a package cannot be imported: liger-kernel is not available. Install")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        ImportError("ours", name="dcsft_harness.models.gone"),
        KeyError("y"),
        _circle(),
        _explained(),
    ],
)
def test_other_errors_are_not_import_errors(error):
    assert environment.broken_import(error) is None and refusal(error) is None


@pytest.mark.parametrize(
    ("load", "running", "given", "policy"),
    [
        (0.2, 3, {}, None),
        (3.0, 3, {}, "PASSIVE"),
        (0.5, 3, {}, "PASSIVE"),  # a load that has just begun
        (3.0, 1, {}, None),  # the command that has just ended
        (3.0, 2, {}, "PASSIVE"),  # one other process on two cores
        (3.0, None, {}, "PASSIVE"),  # not Linux
        (0.9, None, {}, None),
        (3.0, 3, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (3.0, 3, {"GOMP_SPINCOUNT": "100"}, None),
    ],
)
def test_waiting_threads_sleep_on_a_machine_that_is_busy_at_the_start(load, running, given, policy):
    line = "open('/gone').read()" if running is None else f"'{load} 0 0 {running}/99 1'"
    code = (
        f"import pathlib; pathlib.Path.read_text = lambda *_, **__: {line}\n"
        f"import os; os.getloadavg = lambda: ({load}, 0, 0); os.cpu_count = lambda: 2; "
        "import dcsft_harness; print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(policy)


def test_fast_tests_get_the_largest_share_that_fits_their_budget():
    """Rows of 20 ms do not count against the share, but against the budget."""
    seconds = {"long": [3.0], "rows": [0.5, 0.5, 0.5], "quick": [0.02] * 50}
    assert shared(seconds, 10, {}, {}) == (10, {"long": 1, "rows": 3, "quick": 50})
    assert shared(seconds, 5, {}, {}) == (2.99, {"long": 0, "rows": 3, "quick": 50})
    assert shared(seconds, 2.4, {}, {}) == (1.49, {"long": 0, "rows": 2, "quick": 50})
    assert shared(seconds, 1.2, {}, {}) == (0.49, {"long": 0, "rows": 0, "quick": 50})


def test_fixtures_that_cost_more_than_their_rows_shares_are_left_to_the_full_run():
    seconds = {"a::dear": [0.1], "a::alone": [0.1], "b::one": [0.5], "b::rows": [0.1] * 4}
    users = {"a::dear": "a", "b::one": "b", "b::rows": "b"}
    whole = {"a::dear": 1, "a::alone": 1, "b::one": 1, "b::rows": 4}
    assert shared(seconds, 9, {"a": 4.0, "b": 1.0}, users) == (10, whole)
    # All take 6.1 s together: a share of less than 4 s is too little for the fixture of `dear`.
    assert shared(seconds, 6, {"a": 4.0, "b": 1.0}, users) == (3.99, whole | {"a::dear": 0})
    assert shared(seconds, 1.9, {"a": 4.0, "b": 1.0}, users) == (0.49, whole | {"a::dear": 0, "b::one": 0})
    assert shared(seconds, 1, {"a": 4.0, "b": 1.0}, users)[1] == {
        "a::dear": 0,
        "a::alone": 1,
        "b::one": 0,
        "b::rows": 0,
    }


class Collector:
    """Stands for the garbage collector of a process of its own; the tests' has a million objects to walk."""

    def __init__(self, frozen: int = 0) -> None:
        self.on, self.frozen, self.said = True, frozen, []

    def __getattr__(self, name):
        def do():
            self.said.append(name)
            self.on = {"enable": True, "disable": False}.get(name, self.on)
            self.frozen = {"freeze": self.frozen + 1000, "unfreeze": 0}.get(name, self.frozen)

        return do

    def isenabled(self):
        return self.on

    def get_freeze_count(self):
        return self.frozen


@pytest.fixture
def collector(monkeypatch):
    made = Collector()
    monkeypatch.setattr(environment, "gc", made)
    return made


def writing(folder):
    return manifest.writing("inspection", folder, {})


def resumed(folder):
    return resuming.resumed(folder, "rollouts", {}, lambda _: False)


class TestImporting:
    """What a command imports is hidden from the garbage collector, which works while items do."""

    @pytest.mark.parametrize("failure", [None, HarnessError("refused")])
    @pytest.mark.parametrize("opened", [writing, resumed, None], ids=["at once", "as it goes", "nothing"])
    def test_the_collector_works_when_an_artifact_opens_and_walks_all_afterward(
        self, collector, opened, failure, tmp_path
    ):
        with pytest.raises(HarnessError) if failure else contextlib.nullcontext():
            with environment.importing():
                assert not collector.on
                if opened is not None:
                    with opened(tmp_path / "new"):
                        assert collector.on
                        assert collector.frozen
                        with environment.importing():  # a stage of a recipe
                            assert collector.on
                    assert collector.frozen
                if failure:
                    raise failure
        assert collector.on
        assert not collector.frozen
        assert collector.said[:2] == ["collect", "disable"]  # an earlier trainer's memory is freed first

    def test_what_the_caller_has_frozen_stays(self, monkeypatch):
        given = Collector(frozen=5)
        monkeypatch.setattr(environment, "gc", given)
        with environment.importing():
            environment.begin_work()
        assert (given.said, given.frozen, given.on) == ([], 5, True)

    def test_a_collector_that_is_off_stays_off(self, collector):
        collector.on = False
        with environment.importing():
            environment.begin_work()
        assert (collector.said, collector.on) == ([], False)
