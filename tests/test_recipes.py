"""A recipe skips what is done and valid, redoes what changed, and goes on after an interruption."""

import pytest

from dcsft_harness import manifest
from dcsft_harness.errors import HarnessError
from dcsft_harness.recipes import chain

TEXT = """
name: toy
stages:
  - {stage: one, verb: label, rollouts: nowhere, value: 1}
  - {stage: two, verb: label, rollouts: "@one"}
"""


class Bench:
    """Runs recipes with stages that only write a file, and remembers which ran."""

    def __init__(self, tmp_path):
        self.file, self.output, self.ran = tmp_path / "toy.yaml", tmp_path / "out", []

    def run(self, text=TEXT, fail_at=None):
        self.file.write_text(text)
        self.ran = []

        def perform(verb, folder, options):
            self.ran.append(folder.name)
            with manifest.writing("labels", folder, {"value": str(options.get("value"))}) as draft:
                (draft.folder / "file").write_text(str(options))
                if folder.name == fail_at:
                    raise KeyboardInterrupt

        chain.run(chain.load(str(self.file)), self.output, perform, lambda name: None)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_second_run_does_nothing(bench):
    bench.run()
    assert bench.ran == ["one", "two"]
    bench.run()
    assert bench.ran == []


def test_an_interrupted_recipe_goes_on_where_it_stopped(bench):
    with pytest.raises(KeyboardInterrupt):
        bench.run(fail_at="two")
    assert not (bench.output / "two").exists()
    bench.run()
    assert bench.ran == ["two"]


def test_a_changed_option_redoes_the_stage_and_what_follows_from_it(bench):
    bench.run()
    bench.run(TEXT.replace("value: 1", "value: 2"))
    assert bench.ran == ["one", "two"]


def test_a_damaged_artefact_is_made_again(bench):
    bench.run()
    (bench.output / "two" / "file").write_text("damaged")
    bench.run()
    assert bench.ran == ["two"]


def test_another_recipes_folder_is_refused(bench):
    bench.run()
    with pytest.raises(HarnessError, match="holds the recipe 'toy', not 'tea'"):
        bench.run(TEXT.replace("name: toy", "name: tea"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("@one", "@three"), "refers to @three"),
        (TEXT.replace("stage: two", "stage: one"), "two stages are called|no earlier"),
        (TEXT.replace("verb: label", "verb: lable"), "Did you mean label"),
        ("stages: [", "cannot be read"),
        ("name: x", "cannot be read"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_before_anything_runs(bench, text, said):
    with pytest.raises(HarnessError, match=said):
        bench.run(text)
    assert bench.ran == []


def test_every_shipped_recipe_loads():
    assert "digits" in chain.shipped()
    for name in chain.shipped():
        assert chain.load(name).stages
