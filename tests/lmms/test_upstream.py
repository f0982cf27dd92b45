"""lmms-eval with the plugin installed is still lmms-eval: the same tasks, and all its models plus ours."""

import json
import subprocess
import sys

import pytest

from dcsft_harness import lmms
from dcsft_harness.lmms.tasks import listing

pytestmark = pytest.mark.slow

FIRST = ("dcsft_harness.coordinates", "dcsft_harness.models.stub", "lmms_eval.models")
# Its first process hides our entry point before it imports lmms-eval, as if we were not installed. The others
# take from the first what lmms-eval itself imports, to save that time: one for each order of imports, and one
# that lists everything, and reads the index in C as our command does.
# All end at once: an interpreter takes 2 s to tear down what it has imported.
LOOK = """
import importlib.metadata, json, os, sys
import accelerate, datasets, peft, torchvision, transformers.image_processing_utils
for first in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(first)
        from lmms_eval import models
        print(json.dumps({"first": first, "stub": models.get_model("dcsft_stub").__name__}), flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, first
original = importlib.metadata.entry_points
ours = [point for point in original(group="lmms_eval.models") if point.value.startswith("dcsft_harness")]
class Rest:
    def select(self, **named):
        return [point for point in original(**named) if point not in ours]
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    importlib.metadata.entry_points = lambda **named: Rest().select(**named) if named else Rest()
assert not any(name.startswith(("lmms_eval", "dcsft_harness")) for name in sys.modules)
from lmms_eval import models
from lmms_eval.tasks import TaskManager
if not child:
    from dcsft_harness.lmms.tasks import read_in_c
    read_in_c().__enter__()
registry = models.MODEL_REGISTRY_V2
names = registry.list_model_names()
tasks = {name: [entry["type"], entry["yaml_path"]] for name, entry in TaskManager().task_index.items()}
print(json.dumps({
    "points": [f"{point.group}: {point.name}" for point in ours],
    "models": {name: str(registry.get_manifest(name)) for name in names},
    "classes": [models.get_model(name).__name__ for name in ("huggingface", "dummy")],
    "tasks": tasks,
}, default=str), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """The JSON lines of the processes, and what they said."""
    folder = tmp_path_factory.mktemp("elsewhere")
    words = [sys.executable, "-c", LOOK, *FIRST]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


@pytest.fixture(scope="module")
def registries(looked):
    """What lmms-eval finds with and without our entry point."""
    found = looked[0][len(FIRST) :]
    assert len(found) == 2
    return found


def test_the_entry_point_is_installed(registries):
    assert registries[0]["points"] == ["lmms_eval.models: dcsft_harness"]


def test_the_entry_point_works_in_any_import_order(looked):
    found, said = looked
    assert found[: len(FIRST)] == [{"first": first, "stub": "DcsftStub"} for first in FIRST]
    assert "Failed" not in said


def test_lmms_evals_own_tasks_are_unchanged(registries):
    with_us, without = (registry["tasks"] for registry in registries)
    assert len(without) > 1000
    assert with_us == without


def test_its_models_are_unchanged_and_ours_are_added(registries):
    with_us, without = (registry["models"] for registry in registries)
    ours = {"dcsft_hf", "dcsft_stub", "dcsft_vllm"}
    assert ours == set(with_us) - set(without)
    assert {name: with_us[name] for name in without} == without
    assert registries[0]["classes"] == registries[1]["classes"] == ["Huggingface", "Dummy"]


def test_our_task_folder_hides_none_of_theirs(registries):
    """Ours are parsed in C: the result equals that of lmms-eval's own reader."""
    own, both = registries[1]["tasks"], lmms.task_index(["mmmu_val"])
    assert {name: [both[name]["type"], both[name]["yaml_path"]] for name in own} == own
    assert {row["task"] for row in listing()} <= set(both) - set(own)
