"""Where the texts of a question's options stand in a sentence: whole, the longest of those at a place.

    Occurrences(["red", "dark red"]).within("it is dark red, not redder") -> [(6, 14)]

By plain searches: a pattern would take a millisecond to compile, which is 50 responses' time, and most
questions are asked once.
"""

from collections.abc import Iterable

_BEFORE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.√^/")
_AFTER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_√π^/")
"""What continues a text that begins or ends in a letter or a digit: it is a part of something else."""


class Occurrences:
    """Finds some texts, all in lower case and none of them empty."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Takes the texts."""
        self._texts = sorted(texts, key=len, reverse=True)

    def first(self, lowered: str) -> str | None:
        """The longest text that a text in lower case begins with."""
        for text in self._texts:
            if lowered.startswith(text) and _is_whole(lowered, 0, text):
                return text
        return None

    def any_in(self, lowered: str) -> bool:
        """Whether one of the texts may be in a text in lower case."""
        return any(text in lowered for text in self._texts)

    def within(self, lowered: str) -> list[tuple[int, int]]:
        """Start and end of each text in one in lower case, in order; none that overlaps an earlier one."""
        found = []
        for text in self._texts:
            start = lowered.find(text)
            while start >= 0:
                if _is_whole(lowered, start, text):
                    found.append((start, -len(text)))
                start = lowered.find(text, start + 1)
        if len(found) > 1:
            found.sort()
        spans: list[tuple[int, int]] = []
        for start, length in found:
            if not spans or start >= spans[-1][1]:
                spans.append((start, start - length))
        return spans


def _is_whole(lowered: str, start: int, text: str) -> bool:
    """Whether no letter, digit or operator continues the text that stands there."""
    first, last, end = text[0], text[-1], start + len(text)
    if start and first.isascii() and (first.isalnum() or first in "-.") and lowered[start - 1] in _BEFORE:
        return False
    if end < len(lowered) and last.isascii() and last.isalnum():
        following = lowered[end]
        return following not in _AFTER and not (following == "." and lowered[end + 1 : end + 2].isdecimal())
    return True
