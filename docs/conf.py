"""The documentation's configuration: Sphinx with MyST Markdown. `make docs` builds it without a network."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
from sphinx.application import Sphinx

import dcsft_harness
from dcsft_harness.cli import dcsft
from dcsft_harness.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
project = "dcsft_harness"
version = release = dcsft_harness.__version__
author = copyright = "the dcsft_harness authors"  # noqa: A001 - Sphinx's own name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "dcsft_harness"
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # they would turn an option's two hyphens into a dash
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
napoleon_custom_sections = [("Options", "params_style")]
autodoc_typehints = "none"
exclude_patterns = ["_build"]


def commands(group: click.Group, words: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, with its words, in the order of the data flow."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{words} {name}")
        elif command is not None:
            yield f"{words} {name}", command


def section(words: str, command: click.Command) -> str:
    """A command's help as Markdown: what it does, examples, and a table of its options."""
    paragraphs = (command.help or "").split("\n\n")
    text = [f"## {words}"]
    for one in paragraphs:
        example = one.removeprefix("\b\n")
        text.append(f"```bash\n{example}\n```" if example.startswith("dcsft ") else example)
    context = click.Context(command)
    found = [one for one in command.get_params(context) if "--help" not in one.opts]
    rows = [(_names(one), one.make_metavar(context), *_meaning(one)) for one in found]
    if rows:
        lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(re.sub(r"([|<])", r"\\\1", cell) for cell in row) + " |" for row in rows]
        text.append("\n".join(lines))
    return "\n\n".join(text)


def _names(one: click.Parameter) -> str:
    """An option's names as they are typed; an argument has none."""
    return ", ".join(f"`{name}`" for name in one.opts if name.startswith("-"))


def _meaning(one: click.Parameter) -> tuple[str, str]:
    """An option's default and what it means; help has the default in brackets behind the meaning."""
    text, _, default = (getattr(one, "help", "") or "").partition("  [default: ")
    return (f"`{default[:-1]}`" if default else "required" if one.required else ""), text


def versions() -> str:
    """The rows of the table of versions: what the package requires, and what was tested."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines += (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8").splitlines()
    tested: dict[str, str] = {}
    for line in lines:
        name, _, number = line.partition("==")
        tested.setdefault(name.strip().replace("_", "-").lower(), number.strip("= "))
    extras = [one for name in ("train", "ray", "vllm") for one in project["optional-dependencies"][name]]
    rows = [(re.split(r"[<>=]", one)[0], one) for one in [*project["dependencies"], *extras]]
    return "\n".join(
        f"| {name} | {one.removeprefix(name)} | {tested.get(name, tested.get(f'{name}-cpu', ''))} |"
        for name, one in rows
    )


def generated(app: Sphinx, name: str, source: list[str]) -> None:
    """Fills in what comes from the stage records and the command line."""
    if "%COMMANDS%" in source[0]:
        source[0] = source[0].replace(
            "%COMMANDS%", "\n\n".join(section(*one) for one in commands(dcsft, "dcsft"))
        )
    if "%VERSIONS%" in source[0]:
        source[0] = source[0].replace("%VERSIONS%", versions())
    if "%FUNCTIONS%" in source[0]:
        blocks = (
            f"```{{eval-rst}}\n.. autofunction:: dcsft_harness.{STAGES[verb].name}\n```" for verb in STAGES
        )
        source[0] = source[0].replace("%FUNCTIONS%", "\n\n".join(blocks))


def setup(app: Sphinx) -> None:
    """Connects the above."""
    app.connect("source-read", generated)
