"""The one exception type of a user's mistake, and how its sentence is put together."""

from collections.abc import Iterable

from rapidfuzz import process


class HarnessError(Exception):
    """Something the user can put right; the CLI prints it as one sentence and exits with 1.

    Args:
        problem: what is wrong, naming the file, row or argument and the value received.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        """Keeps both parts; `str()` puts them together."""
        self.problem = problem.rstrip(". ")
        self.remedy = remedy.rstrip(". ")
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type["HarnessError"], tuple[str, str]]:
        """Both parts, so that an error stays what it is on its way from another process."""
        return type(self), (self.problem, self.remedy)

    def __str__(self) -> str:
        """The sentence that the user sees."""
        if not self.remedy:
            return f"{self.problem}."
        return f"{self.problem}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}"


def unknown_name(kind: str, name: str, known: Iterable[str], listing: str = "") -> HarnessError:
    """The error for a name that nothing answers to, with near matches first.

    Args:
        kind: what the name should have named, in the singular ("task", "model", "scorer").
        name: the name received.
        known: every name that would have been right.
        listing: a command that prints them all, when they are too many to print here.
    """
    choices = sorted(known)
    near = [match for match, _, _ in process.extract(name, choices, limit=3, score_cutoff=60)]
    if near:
        remedy = f"Did you mean {' or '.join(near)}?"
    elif listing:
        remedy = ""
    else:
        remedy = f"Known: {', '.join(choices[:20])}{', ...' if len(choices) > 20 else ''}"
    if listing:
        remedy = f"{remedy} `{listing}` lists all of them".strip()
    return HarnessError(f"unknown {kind} {name!r}", remedy)
