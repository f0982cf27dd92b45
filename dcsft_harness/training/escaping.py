"""Names and settings that others chose, as a card may show them: as text, and without where they lie."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import overload

_MARKS = re.compile(r"([\\`*_\[\]|~#$!])")
_SECRET = re.compile(r"token|hub_token|.*(api_key|password|secret)")
_PLACED = re.compile(r"[/~]|\.\.[/\\]|[A-Za-z]:[/\\]|file:")
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\.\.\\")


def escaped(value: object) -> str:
    """A value as Markdown that shows it as text, on one line: no markup, no table cell, no HTML.

    Numbers have six digits, as many as anything that was measured.
    """
    if isinstance(value, float):
        value = f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return _MARKS.sub(r"\\\1", html.escape(line, quote=False))


@overload
def placeless(value: Mapping[str, object]) -> dict[str, object]: ...
@overload
def placeless(value: str) -> str: ...
@overload
def placeless(value: object) -> object: ...
def placeless(value: object) -> object:
    """A value whose paths are cut to their last name, however deep they stand, and whose secrets are out.

    Paths that begin at a root, a home or above the folder would tell the names of users and machines.
    """
    if isinstance(value, Mapping):
        return {
            str(placeless(str(name))): "..." if _SECRET.fullmatch(str(name)) else placeless(entry)
            for name, entry in value.items()
        }
    if isinstance(value, str):
        return "".join(part if part in ",=" else last_name(part) for part in re.split("([,=])", value))
    return [placeless(entry) for entry in value] if isinstance(value, Sequence) else value


def last_name(text: str) -> str:
    """The last name of a path that says where something lies; any other text as it is."""
    if not _PLACED.match(text.strip()):
        return text
    path = PureWindowsPath(text) if _WINDOWS.match(text.strip()) else PurePosixPath(text)
    return path.name or "..."


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; cells are `escaped`, an empty one is a dash."""
    lines = [[*head], ["---"] * len(head)]
    lines += [["-" if cell is None else escaped(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]
