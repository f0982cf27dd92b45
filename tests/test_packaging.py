"""The wheel, installed away from the checkout: its tasks, models, recipes and checkpoint are there."""

import ensurepip
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from dcsft_harness.lmms.tasks import groups, listing

ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tracked():
    """The files that a clean clone would hold."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).split("\n")
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, tracked):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    # `build` needs no pip in this environment: uv creates them without.
    run(sys.executable, "-m", "build", "--wheel", "--outdir", target, source, cwd=source)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    """A fresh environment with the wheel; dependencies are shared, but not the editable install.

    A plain path in a .pth file makes packages importable without running that folder's own .pth files, of
    which an editable install consists.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    # pip runs from its own wheel, which Python has: installing it first would take seconds.
    (pip,) = (Path(ensurepip.__path__[0]) / "_bundled").glob("pip-*.whl")
    run(python, pip / "pip", "install", "--quiet", "--no-deps", "--no-compile", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.mark.slow
def test_the_wheel_holds_every_data_file_and_no_tests(wheel, tracked):
    held = set(zipfile.ZipFile(wheel).namelist())
    for name in tracked:
        folder = name.split("/")[0]
        if folder in ("tasks", "models", "leaderboard"):
            assert f"dcsft_harness/{name}" in held
        if folder == "dcsft_harness":
            assert name in held
    assert not [name for name in held if name.startswith("tests/")]


@pytest.mark.slow
def test_tasks_and_models_work_from_any_directory(environment, tmp_path):
    dcsft, python = environment / "bin" / "dcsft", environment / "bin" / "python"
    path = Path(run(dcsft, "tasks", "path", cwd=tmp_path).strip())
    assert environment in path.parents
    assert "dcsft_digits_ground_lisa" in run(dcsft, "tasks", "list", cwd=tmp_path)
    assert environment in Path(run(dcsft, "digits", "path", cwd=tmp_path).strip()).parents
    code = (
        "from lmms_eval.models import get_model; from lmms_eval.tasks import TaskManager; "
        f"tasks = TaskManager(include_path={str(path)!r}, include_defaults=False).all_tasks; "
        "print(get_model('dcsft_hf').__name__, len(tasks), get_model('dummy').__name__)"
    )
    names = str(len(listing()) + len(groups()))
    # The plugin does not break lmms-eval's own models.
    assert run(python, "-c", code, cwd=tmp_path).split()[-3:] == ["DcsftHF", names, "Dummy"]


def test_the_dockerfile_names_existing_files_and_arguments():
    """There is no container engine in the tests: names, order and the pages' commands are checked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    names = [name for name, _ in steps]
    assert names.index("ARG") < names.index("FROM") < names.index("COPY") < names.index("RUN")
    given = dict(
        value.split("=", 1) if "=" in value else (value, "") for name, value in steps if name == "ARG"
    )
    assert steps[names.index("FROM")][1] == "$BASE" and given["BASE"].startswith("python:3.11")
    assert set(given["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert (ROOT / given["CONSTRAINTS"]).is_file()
    assert json.loads(steps[names.index("ENTRYPOINT")][1])[0] in project["scripts"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    packages = {path.split("/")[0] for path in ("dcsft_harness", "tasks", "models", "leaderboard")}
    assert not packages & set(ignored)
    pages = [(ROOT / "Dockerfile").read_text(), (ROOT / "docs/how-to/scale.md").read_text()]
    arguments = re.findall(r"--build-arg (\w+)=", "\n".join(pages))
    assert set(arguments) <= set(given) and len(arguments) >= 4


def test_the_release_workflow_uses_existing_files():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["build"]["steps"]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    for name in re.findall(r"-c (\S+)", commands):
        assert (ROOT / name).is_file()
    assert "*.whl" in commands and "*.tar.gz" in commands  # both are tested before they are published


def test_every_hook_is_also_a_check_of_make():
    """A hook that repeats mypy's call without its target fails on every commit."""
    made = (ROOT / "Makefile").read_text()
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in hooks["hooks"]:
        program, *words = hook["entry"].split()
        if program == "make":
            assert all(f"\n{word}:" in made for word in words)
        else:
            assert f"$(BIN)/{Path(program).name} {words[0] if words else '.'}" in made, hook["id"]
