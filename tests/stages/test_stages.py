"""A stage is one file: the command line, recipes, dry runs and the Python functions have it from there."""

import inspect
import subprocess
import sys

import pytest

import dcsft_harness as dcsft
from dcsft_harness import stages
from dcsft_harness.artifacts import Artifact, Labels
from dcsft_harness.cli import main
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import chain, recipe
from dcsft_harness.stages import STAGES
from tests.artefacts import rollouts

TOY = '''"""`dcsft toy`: Write a greeting."""

from dcsft_harness.artifacts import manifest
from dcsft_harness.settings import Settings, option
from dcsft_harness.stages import Stage


class ToyOptions(Settings):
    """Whom to greet."""

    whom: str = option(about="Whom to greet.", positional=True)
    times: int = option(1, "How often.", ge=1)


def run(options, output, progress):
    """Greets."""
    with manifest.writing("toy", output, options.as_dict()) as draft:
        (draft.folder / "text").write_text(f"hello {options.whom} " * options.times)
        draft.notes["times"] = options.times
    return draft.notes


STAGE = Stage("toy", ToyOptions, run, lambda notes: f"{notes['times']} greetings", "toy")
'''


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    stages.__path__.append(str(folder))
    STAGES.find(folder, "dcsft_harness.stages")
    yield tmp_path
    stages.__path__.remove(str(folder))
    del STAGES["toy"]
    sys.modules.pop("dcsft_harness.stages.toy", None)


def test_a_new_file_is_a_command(toy, capsys):
    assert main(["--help"]) == 0
    assert "Write a greeting." in capsys.readouterr().out
    assert main(["toy", "--help"]) == 0
    assert "--times INTEGER     How often.  [default: 1]" in capsys.readouterr().out
    assert main(["toy", "world", "--times", "2", "--output", str(toy / "out")]) == 0
    assert "toy: 2 greetings" in capsys.readouterr().err
    assert main(["toy", "world", "--times", "0", "--output", str(toy / "zero")]) == 1
    assert "--times 0 is out of range. It must be at least 1." in capsys.readouterr().err


def test_a_new_file_is_a_recipes_verb(toy, capsys):
    (toy / "mine.yaml").write_text("stages: [{stage: hi, verb: toy, whom: moon, times: 3}]")
    dry = chain.described(recipe.load(str(toy / "mine.yaml")), toy / "out")
    assert f"dcsft toy moon --times 3 --output {toy / 'out' / 'hi'}" in dry
    assert main(["run", str(toy / "mine.yaml"), "--output", str(toy / "out")]) == 0
    assert (toy / "out" / "hi" / "text").read_text() == "hello moon " * 3
    (toy / "mine.yaml").write_text("stages: [{stage: hi, verb: toy, whom: moon, tims: 3}]")
    with pytest.raises(HarnessError, match="'tims'. Did you mean times"):
        recipe.load(str(toy / "mine.yaml"))


def test_a_new_file_is_a_function(toy):
    made = dcsft.toy("sun", output=toy / "out", times=2)
    assert isinstance(made, Artifact) and made.notes == {"times": 2}
    assert str(inspect.signature(dcsft.toy)) == (
        "(whom: str, *, output: 'str | os.PathLike[str]', times: int = 1)"
    )


@pytest.mark.parametrize("verb", list(STAGES))
def test_a_stages_file_says_its_verb_and_its_options_say_what_they_mean(verb):
    stage = STAGES[verb]
    assert stage.verb == verb and STAGES.about(verb).endswith((".", ")."))
    assert all(field.description for field in stage.options.model_fields.values())
    assert callable(getattr(dcsft, stage.name))


def test_artifacts_go_where_paths_do(tmp_path):
    rollouts(tmp_path / "rollouts", ["easy", "medium", "hard"], with_items=True)
    labels = dcsft.label(tmp_path / "rollouts", output=tmp_path / "labels")
    assert isinstance(labels, Labels) and labels.table().num_rows == labels.notes["items"] == 3
    curated = dcsft.curate(labels, keep=["easy", "medium"], output=str(tmp_path / "curated"))
    assert len(curated.table()) == 2
    with pytest.raises(HarnessError, match="--keep value 'meduim'. Did you mean medium"):
        dcsft.curate(labels, keep="meduim", output=tmp_path / "other")
    with pytest.raises(HarnessError, match="--size large is not a whole number"):
        dcsft.curate(labels, keep="easy", size="large", output=tmp_path / "other")


def test_the_package_is_imported_quickly_and_without_torch():
    code = """
import time; start = time.process_time()
import dcsft_harness, sys
dir(dcsft_harness)
print(time.process_time() - start, {"torch", "pydantic", "numpy"} & set(sys.modules))
"""
    seconds, found = min(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            " ", 1
        )
        for _ in range(3)
    )
    assert float(seconds) < 0.3 and found.strip() == "set()"
