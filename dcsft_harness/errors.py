"""The exception for user errors and disk errors, and safe printing of text from outside."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, cast

from rapidfuzz import fuzz, process

_NAMES = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "ENOTDIR", "ENAMETOOLONG", "EIO")
_REFUSALS = tuple(getattr(errno, name) for name in _NAMES)

_LONGEST = 4000
"""The most characters of a problem or a remedy to show."""


def visible(text: str) -> str:
    """Text from outside on one line; control and direction marks are shown as their code points."""
    return "".join(
        char if char.isprintable() else " " if char.isspace() else char.encode("unicode_escape").decode()
        for char in text
    )


def visible_lines(text: str) -> str:
    """Text from outside, each line as `visible` makes it."""
    return "\n".join(map(visible, text.split("\n")))


_HIDDEN = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Characters that are not seen, or that change the order in which others are shown."""


def json_text(value: object, **options: Any) -> str:  # noqa: ANN401 - those of `json.dumps`
    """JSON for files that people read: letters as they are, control and direction marks as escapes."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


class HarnessError(Exception):
    """An error that the user can fix; the CLI prints it as one sentence and exits with 1.

    Args:
        problem: what is wrong, naming the file, row or argument and the value received.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        """Keeps both parts; `str()` joins them."""
        self.problem = cut(visible(problem), _LONGEST).rstrip(". ")
        self.remedy = cut(visible(remedy), _LONGEST).rstrip(". ")
        super().__init__(str(self))

    def reword(self, change: Callable[[str], str]) -> None:
        """Changes both parts."""
        self.problem, self.remedy = change(self.problem), change(self.remedy)
        self.args = (str(self),)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, by IPython's name for it: the sentence is enough."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[type["HarnessError"], tuple[str, str]]:
        """Both parts, so that the error survives pickling to another process."""
        return type(self), (self.problem, self.remedy)

    def __str__(self) -> str:
        """The sentence that the user sees."""
        if not self.remedy:
            return f"{self.problem}."
        return f"{self.problem}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}"


def cut(value: object, longest: int = 160) -> str:
    """An untrusted value as text for a message; the middle of a long one is cut out."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= longest:
        return text
    left_out = f"[... {len(text):,} characters ...]"
    half = (longest - len(left_out)) // 2
    return text[:half] + left_out + text[-half:]


_T = TypeVar("_T")
_SECRET = re.compile(r"token|hub_token|.*(api_key|password|secret)")
_PLACED = re.compile(r"[/~]|\.\.[/\\]|[A-Za-z]:[/\\]|file:")
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\.\.\\")
_FOLDERS = re.compile(r"(?<![\w.</])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()]+[/\\])+")


def placeless(value: _T, sentence: bool = False) -> _T:
    """Nested settings, or a sentence, with local paths cut to their last name and secrets removed.

    Absolute paths, and those of settings from a home or a parent folder, would reveal names of users and
    machines. In settings a path is a whole value, or a whole part between commas and equals signs, and may
    have spaces; in a `sentence` it ends at one.
    """
    made: object = value
    if isinstance(value, Mapping):
        made = {
            str(placeless(str(name))): "..." if _SECRET.fullmatch(str(name)) else placeless(entry)
            for name, entry in value.items()
        }
    elif isinstance(value, str) and sentence:
        made = _FOLDERS.sub("", value)
    elif isinstance(value, str):
        parts = re.split("([,=])", value)
        for at, part in enumerate(parts):
            secret = parts[at - 1 : at] == ["="] and _SECRET.fullmatch(parts[at - 2].strip())
            parts[at] = "..." if secret and part else last_name(part)
        made = "".join(parts)
    elif isinstance(value, Sequence):
        made = [placeless(entry, sentence) for entry in value]
    return cast(_T, made)


def last_name(text: str) -> str:
    """The last name of a local path; any other text unchanged."""
    if not _PLACED.match(text.strip()):
        return text
    path = PureWindowsPath(text) if _WINDOWS.match(text.strip()) else PurePosixPath(text)
    return path.name or "..."


LISTED = 20
"""Problems that one error lists."""


def listed(problems: Sequence[str]) -> str:
    """The first LISTED problems, and the number of the others."""
    more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "; ".join([*problems[:LISTED], *more])


def in_row(name: str, where: str, error: HarnessError) -> HarnessError:
    """The error of a row of a file, with its place."""
    return HarnessError(f"{name}, {where}: {cut(error.problem, 400)}", cut(error.remedy, 400))


def refused_rows(
    name: str, bad: Sequence[tuple[str, HarnessError]], count: int, use: str, skippable: bool = False
) -> HarnessError:
    """The error that lists bad rows of a file by place, among `count` in all.

    Rows with the same problem are listed together, and each remedy once. `use` is what they cannot be.
    `skippable` is whether --on-error skip would leave them out.
    """
    skips = f". --on-error skip leaves {'them' if len(bad) > 1 else 'the row'} out"
    skips *= skippable and len(bad) < count
    if len(bad) == 1:
        one = in_row(name, *bad[0])
        return HarnessError(one.problem, (one.remedy or "Correct it") + skips if skips else one.remedy)
    said = grouped((where, cut(error.problem)) for where, error in bad)
    remedies = dict.fromkeys(cut(error.remedy) for _, error in bad if error.remedy)
    return HarnessError(
        f"{name}: {len(bad)} of {count} rows cannot be {use}: {'; '.join(said)}",
        (". ".join([*remedies][:3]) or "Correct them") + skips,
    )


def grouped(bad: Iterable[tuple[str, str]]) -> list[str]:
    """Rows and their problems as text, the rows of equal problems together; the first LISTED problems."""
    equal: dict[str, list[str]] = {}
    for where, problem in bad:
        equal.setdefault(problem, []).append(where)
    said = [f"{_places(rows)}: {problem}" for problem, rows in equal.items()]
    more = sum(map(len, list(equal.values())[LISTED:]))
    return [*said[:LISTED], *([f"and {more} more"] if more else [])]


def _places(rows: Sequence[str]) -> str:
    """Rows with the same problem: "line 3", "lines 3, 4 and 7" or "lines 1 to 12"."""
    if len(rows) == 1:
        return rows[0]
    if not all(re.fullmatch(r"\w+ \d+", where) for where in rows):  # items, by their ids
        return f"{', '.join(rows[:LISTED])}{f' and {len(rows) - LISTED} more' * (len(rows) > LISTED)}"
    runs: list[list[int]] = []
    for number in (int(where.split()[-1]) for where in rows):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = [part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    said, more = said[:LISTED], len(said) - LISTED
    last = [f"{more} more"] if more > 0 else [said.pop()] if len(said) > 1 else []
    return f"{rows[0].split()[0]}s {' and '.join([', '.join(said), *last])}"


def _stated(value: object, absent: object) -> object:
    """A setting's value for a sentence; `absent` if it is None or empty."""
    return absent if value is None or (isinstance(value, str | list | dict | tuple) and not value) else value


def differences(before: Mapping[str, Any], now: Mapping[str, Any], absent: object = "none") -> list[str]:
    """The entries in which two mappings differ, as "name: before -> now"."""
    return [
        f"{name}: {_stated(before.get(name), absent)} -> {_stated(now.get(name), absent)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def near(name: str, known: Iterable[str]) -> list[str]:
    """The three names at most that a misspelled or shortened one may mean, the likeliest first."""
    found = process.extract(name, list(known), scorer=fuzz.ratio, processor=str.lower, limit=None)
    given = name.lower()
    return [
        one
        for one, score, _ in found
        if score >= 60 or (len(given) > 2 and given in one.lower()) or (len(one) > 2 and one.lower() in given)
    ][:3]


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> HarnessError:
    """The error for an unknown name, with near matches first.

    `kind` is what it should name, in the singular ("task", "model", "scorer"), and `listing` a command that
    prints all names, if they are too many to print here.
    """
    choices = sorted(set(known))
    if found := near(name, choices):
        remedy = f"Did you mean {' or '.join(found)}?"
    elif listing:
        remedy = ""
    else:
        more = f" and {len(choices) - 20} more" if len(choices) > 20 else ""
        remedy = f"Known: {', '.join(choices[:20])}{more}" if choices else "There are none"
    if listing:
        remedy = f"{remedy} `{listing}` lists all of them".strip()
    return HarnessError(f"unknown {kind} {name!r}", remedy)


@contextlib.contextmanager
def reporting_refusals(kind: str, output: Path, kept: str, variable: str = "") -> Iterator[None]:
    """Turns disk errors into `HarnessError`; `kept` states in a few words what is nevertheless saved.

    `variable` is that of the environment which names the place, if no option does.
    """
    try:
        yield
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        remedy = f"Set {variable} to a writable folder with free space" if variable else room(reason)
        raise HarnessError(
            f"cannot write the {kind} to {output}: {os.strerror(reason)}", f"{remedy}; {kept}"
        ) from error


def room(reason: int, full: str = "Free some space or name a folder on another disk") -> str:
    """The remedy for an errno of `refusal`; `full` is that of a full disk."""
    if reason in (errno.ENOSPC, errno.EDQUOT):
        return full
    if reason == errno.EACCES:
        return "Check the permissions of that folder, or name another one"
    return "Name a writable folder, on another disk if needed"


def refusal(error: BaseException | None) -> int | None:
    """The errno of an error that means the disk is full or not writable; None for any other error.

    `datasets` wraps the operating system's error, and safetensors has its own with the same text.
    """
    for one in causes(error):
        if isinstance(one, OSError):
            return one.errno if one.errno in _REFUSALS else None
        if isinstance(one, HarnessError):
            return None
        stated = re.search(r"\(os error (\d+)\)$", str(one))
        if stated and int(stated[1]) in _REFUSALS:
            return int(stated[1])
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, and so on; each once, as others' code may raise the cause of an error from it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__
