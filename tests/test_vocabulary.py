"""Avoided words: what readers see is plain American English, in the field's words."""

import re
from pathlib import Path

import click
import pytest
import yaml

from dcsft_harness import recipes
from dcsft_harness.cli import dcsft

ROOT = Path(__file__).resolve().parents[1]
AVOID = {
    r"told|tells?": "name the value or the message: 'the error names the row'",
    r"go(?:es|ing|ne)? on": "continue, resume",
    r"so many": "the number of",
    r"for ever": "forever, or say until when",
    r"mend(?:ed|s)?": "fix, correct",
    r"one an? (?:GPU|process|row|item|task|seed)": "one per GPU",
    r"once an? (?:item|image|sample|prompt|round)": "once per item",
    r"of one's own": "your own",
    r"whoever|whatever (?:comes|happens)": "say which",
    r"anew|made again|once more": "again, rebuilt, redrawn",
    r"artefacts?": "artifact",
    r"generalis\w+|normalis\w+|summaris\w+|recognis\w+|tokenis\w+|quantis\w+|initialis\w+": "-ize",
    r"colou?red in|colours?|neighbours?|favour\w*|behaviour": "color, neighbor, favor, behavior",
    r"labelled|labelling|relabelled|unlabelled": "labeled, labeling",
    r"licences?": "license",
    r"without a word|in silence|in spite of": "silently, although",
    r"cut short|any more": "truncated, no longer",
    r"stands? (?:there|beside|above|before)": "is, appears, comes before",
    r"has no use for|an? former|cannot be had": "does not use, earlier, not available",
    r"(?:tasks?|models?|class(?:es)?) of others|marks? of pictures": "third-party task, image token",
}
"""Pattern -> what to write instead."""
FOUND = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in AVOID), re.IGNORECASE)
CODE = re.compile(r"```.*?```|`[^`\n]*`|https?://\S+|--[\w-]+|\b\w*_\w+\b|\]\([^)]*\)", re.DOTALL)
"""Commands, options and file names: these keep their spelling."""
LITERAL = (
    "relabelled half-way",  # a row's name in recipes, and so in published boards
    "We-Math",
)
CEILING = 19
"""Avoided words in the packages' Python files today. It may only go down: lower it with each clean-up."""


def avoided(text: str) -> list[str]:
    """Each avoided word in a text, with its surroundings."""
    for literal in LITERAL:
        text = text.replace(literal, "")
    text = CODE.sub(" ", text)
    return [
        text[max(0, one.start() - 40) : one.end() + 30].replace("\n", " ") for one in FOUND.finditer(text)
    ]


def documents() -> list[Path]:
    """What people read first; the first edition's section of the changelog stays unchanged."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_use_plain_words(path):
    assert avoided(path.read_text(encoding="utf-8")) == []


def test_the_changelogs_newest_section_uses_plain_words():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert avoided(text.partition("### First edition")[0]) == []


def commands(command: click.Command, words: tuple[str, ...] = ("dcsft",)) -> dict[str, click.Command]:
    """Every command by its words, groups included."""
    found = {" ".join(words): command}
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            found |= commands(inner, (*words, name))
    return found


def test_help_uses_plain_words():
    found = {}
    for words, command in commands(dcsft).items():
        # Options by parameter: in the wrapped help, a pattern of two words may be split.
        params = command.get_params(click.Context(command))
        texts = [command.help or "", *(getattr(one, "help", None) or "" for one in params)]
        found[words] = [hit for text in texts for hit in avoided(" ".join(text.split()))]
    assert len(found) >= 25
    assert {words: hits for words, hits in found.items() if hits} == {}


def test_recipes_and_tasks_use_plain_words():
    texts = {name: yaml.safe_load(path.read_text())["about"] for name, path in recipes.shipped().items()}
    comments = {
        path.as_posix(): "\n".join(re.findall(r"^ *# ?(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        for folder in ("tasks", "dcsft_harness/recipes")
        for path in (ROOT / folder).rglob("*.yaml")
    }
    found = {name: avoided(text) for name, text in {**texts, **comments}.items()}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_the_pages_scripts_use_plain_words():
    found = {
        path.name: avoided(re.sub(r"\b(?:un)?labelled\b", "", path.read_text(encoding="utf-8")))
        for path in (ROOT / "leaderboard" / "site").glob("*.js")
    }
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_python_files_have_no_more_avoided_words_than_before():
    count = 0
    for package in ("dcsft_harness", "models", "tasks", "leaderboard"):
        for path in (ROOT / package).rglob("*.py"):
            count += len(avoided(path.read_text(encoding="utf-8")))
    assert count <= CEILING, f"{count} avoided words in Python files, {CEILING} before: see AVOID"
