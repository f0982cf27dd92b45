"""The README's commands on the embedded suite, with the real engines: lmms-eval, TRL and PEFT."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dcsft_harness import recipes
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from tests.fixtures import forked

pytestmark = pytest.mark.slow
LMMS_EVAL = ("-c", "from lmms_eval.cli.dispatch import main; main()")
README = Path(__file__).resolve().parents[1] / "README.md"
SCORED = ("dcsft_digits", "dcsft_digits_r", "dcsft_digits_a")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a finished quickstart; a copy of CI's, if `DCSFT_QUICKSTART` names it.

    Otherwise half of the pool is sampled, its adapters are trained for 5 steps instead of 100, and its rows
    are scored on 64 items of each task instead of 300: no test depends on how good the adapters are. The cold
    start in the documentation is the quickstart's: `train cold-start` finds it done.
    """
    folder, ran = tmp_path_factory.mktemp("readme"), os.environ.get("DCSFT_QUICKSTART")
    own_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        if ran:
            shutil.copytree(ran, folder / "quickstart")
        else:
            known, short = recipes.shipped(), tmp_path_factory.mktemp("short") / "digits.yaml"
            text = known["digits"].read_text(encoding="utf-8")
            scored = f"tasks: [{', '.join(SCORED)}]\n"
            for line, count, fewer in (
                ("task: dcsft_digits_pool\n", 1, "task: dcsft_digits_pool\n    limit: 400\n"),
                ("max_steps: 100\n", 4, "max_steps: 5\n"),
                (scored, 5, f"{scored}    limit: 64\n"),
            ):
                assert text.count(line) == count
                text = text.replace(line, fewer)
            short.write_text(text, encoding="utf-8")
            patch.setattr(recipes, "shipped", lambda: known | {"digits": short})
            assert main(["quickstart", "--output", str(folder / "quickstart")]) == 0
        # A link: its manifest names the base by a path relative to its original folder.
        (folder / "cold").symlink_to(Path(ran or folder / "quickstart").resolve() / "cold")
        yield folder


def own_rows(folder):
    """A reader's files: images/, train.jsonl and test.jsonl, here with digits of the embedded suite."""
    from dcsft_harness.data.digits import suite

    (folder / "images").mkdir()
    rows = suite.load("dcsft_digits_pool")
    for name, numbers in {"train": range(48), "test": range(100, 124)}.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in numbers:
                row, image = rows[number], f"images/{number}.png"
                row["image"].save(folder / image)
                file.write(
                    json.dumps({"question": row["prompt"], "answer": row["target"], "image": image}) + "\n"
                )


def test_the_quickstart_compares_adapters_in_and_out_of_distribution(workplace):
    with (workplace / "quickstart" / "leaderboard" / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["row"] for row in rows} == {"cold start", "SFT", "SFT-M", "SFT-EM", "hard only"}
    assert {row["task"] for row in rows} >= set(SCORED)


def test_the_embedded_base_is_better_than_guessing_and_leaves_room(workplace, tmp_path):
    arguments = [
        "--model-args",
        f"pretrained={workplace / 'cold'},batch_size=32",
        "--tasks",
        ",".join(SCORED),
    ]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "scores")]) == 0
    notes = manifest.read(tmp_path / "scores").notes["tasks"]
    assert sum(notes[name]["n"] for name in SCORED) == 920
    plain, renditions, adversarial = (notes[name]["accuracy"] for name in SCORED)
    assert plain > renditions + 0.03
    assert renditions > adversarial + 0.03
    labels = manifest.read(workplace / "quickstart" / "labels").notes
    assert min(labels[name] for name in ("easy", "medium", "hard")) >= 0.1 * labels["items"]


@pytest.mark.parametrize(
    ("family", "guessing", "margin"),
    [
        ("ground", 0.42, 0.12),  # a blind choice of one of two or three digits, if its box is perfect
        ("reason", 0.45, 0.15),  # the likeliest option by its size among the four; by letter it would be 0.25
    ],
)
def test_the_other_families_can_be_learned_too(tmp_path, family, guessing, margin):
    cold, scores = str(tmp_path / "cold"), str(tmp_path / "scores")
    data = ["--model", "digits", "--data", f"dcsft_digits_{family}_cold", "--learning-rate", "3e-4"]
    assert main(["train", "cold-start", *data, "--output", cold]) == 0
    arguments = ["--model-args", f"pretrained={cold},batch_size=32", "--tasks", f"dcsft_digits_{family}"]
    assert main(["evaluate", *arguments, "--output", scores]) == 0
    accuracy = manifest.read(Path(scores)).notes["tasks"][f"dcsft_digits_{family}"]["accuracy"]
    assert accuracy > guessing + margin


def test_a_second_quickstart_finds_everything_done(workplace, capsys):
    assert main(["quickstart", "--output", str(workplace / "quickstart")]) == 0
    assert capsys.readouterr().err.count("already done") == 17


DOCUMENTS = (
    "README.md",
    "docs/tutorial.md",
    "docs/how-to/data.md",
    *(
        f"docs/how-to/{name}.md"
        for name in ("tasks", "training", "curation", "leaderboards", "test-time", "paper", "exchange")
    ),
)
"""In the order in which they run, all in one folder: later ones use what earlier ones made."""


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks that readers run: shell commands, and Python."""
    text = (README.parent / document).read_text(encoding="utf-8")
    return re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)


def lines(document: str) -> list[str]:
    """The programs that a document runs: a shell line or a Python block each."""
    found = []
    for language, text in blocks(document):
        if language == "python":
            found.append(f"python -c {shlex.quote(text)}")
        else:
            joined = text.replace("\\\n", " ").splitlines()
            found += [line for line in joined if line.startswith(("dcsft ", "lmms-eval "))]
    return found


@pytest.fixture
def ran(workplace):
    """Runs a line in the workplace, as forks; returns its exit code and the end of its output."""

    def forks(*words: str) -> subprocess.CompletedProcess:
        return forked.run(words, cwd=workplace, capture_output=True)

    def run(line: str) -> tuple[int, str]:
        line = re.sub(
            r"\$\(dcsft (.*?)\)", lambda inner: forks(*forked.DCSFT, *inner[1].split()).stdout.strip(), line
        )
        program, *words = shlex.split(line)
        done = forks(*{"dcsft": forked.DCSFT, "lmms-eval": LMMS_EVAL, "python": ()}[program], *words)
        return done.returncode, done.stderr[-2000:]

    return run


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_the_documentation_runs(ran, document):
    """As a reader would; indented lines need a GPU, a hub or files that a test does not have."""
    programs = lines(document)
    assert programs
    for line in programs:
        code, said = ran(line)
        assert code == 0, f"{document}: {line}\n{said}"


def test_no_page_with_commands_is_left_out():
    pages = [README, *(README.parent / "docs").rglob("*.md")]
    with_commands = {str(page.relative_to(README.parent)) for page in pages if lines(str(page))}
    assert with_commands == set(DOCUMENTS)


def test_the_lmms_eval_passthrough_reports_failure_in_its_exit_code(tmp_path):
    command = [*forked.DCSFT, "lmms-eval", "--model", "dcsft_stub"]
    command += ["--model_args", "default=seven", "--limit", "4", "--tasks"]
    assert forked.run([*command, "dcsft_digits"], cwd=tmp_path, capture_output=True).returncode == 0
    assert forked.run([*command, "dcsft_nosuch"], cwd=tmp_path, capture_output=True).returncode == 1


def test_pretraining_makes_a_checkpoint_that_loads_and_repeats(tmp_path):
    """Three steps; the shipped checkpoint is the same command at its default 8,000."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    for name in ("one", "two"):
        options = ["--steps", "3", "--batch-size", "4", "--output", str(tmp_path / name)]
        assert main(["digits", "pretrain", *options]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(one[key].equal(two[key]) for key in one)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
    assert sum(weight.numel() for weight in model.parameters()) < 2_000_000
    assert AutoProcessor.from_pretrained(tmp_path / "one").tokenizer.eos_token == "<|im_end|>"


def tree(name: str) -> list[tuple[int, str]]:
    """(indent, name) of the lines of a document's directory tree."""
    text = (README.parent / name).read_text(encoding="utf-8")
    text = text.partition("## The tree")[2].partition("\n## ")[0]
    found = re.findall(r"^    ( *)([\w./]+)", text, re.MULTILINE)
    return [(len(indent), entry.rstrip("/")) for indent, entry in found]


def test_the_documented_tree_matches_the_disk():
    """Contributors find the directory tree in their guide."""
    folder, document = README.parent, "CONTRIBUTING.md"
    top = [entry for indent, entry in tree(document) if indent == 0]
    assert top and all((folder / entry).exists() for entry in top)
    listed = {entry for indent, entry in tree(document) if indent}
    core = {
        path.name for path in (folder / "dcsft_harness").iterdir() if not path.name.startswith(("_", "."))
    }
    assert listed == core - {"py.typed"}
