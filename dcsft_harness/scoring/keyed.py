r"""The answer of a response that is written as JSON, or as Python's idea of it.

    keyed_answer('{"reasoning": "A is too small", "answer": "C"}') -> Keyed("C", "")
    keyed_answer('{"answer": ["B", "C"]}')                          -> Keyed("B, C", "")
    keyed_answer('{"answer": "A"} No, it is B.')                     -> Keyed("A", " No, it is B.")

The text need not be valid: models leave quotes and backslashes as they come. Keys beside the answer's
are passed over, whatever they say.
"""

import re
from typing import NamedTuple

_NAME = r"(?:answer|option|choice|letter|prediction|result|label)"
_KEY = re.compile(
    r"(?<=[\"'])(?:(?:final|correct|selected|chosen|best|my|your|the|right|predicted|model)[_ -]?)?"
    rf"(?:final|{_NAME}(?:[_ -]?(?:answer|option|choice|letter|key|label))?)[\"']\s{{0,20}}:\s{{0,20}}",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"\"(?P<double>(?:[^\"\\\n]|\\.){0,300})\"|'(?P<single>(?:[^'\\\n]|\\.){0,300})'"
    r"|(?P<bare>[-+\w.]{1,40})|\[(?P<list>[^\[\]]{0,200})\]"
)
_ITEM_MARKS = re.compile(r"[\"'\s]+")
_AROUND = " \t\n`]})>,;."
"""What closes an object and the block of code around it."""
_BEFORE = re.compile(r"\s*(?:```+\s?\w{0,10}\s*)?[\[({]*\s*\{")

_REFUTED = re.compile(r"[\"'](?:wrong|incorrect|false|no|rejected)[\"']|:\s?false\b", re.IGNORECASE)
"""What an object says of an option that it does not choose."""


class Keyed(NamedTuple):
    """The value of a key that names the answer, and what is said behind its object."""

    value: str
    behind: str


def keyed_answer(text: str) -> Keyed | None:
    """The value of the last key of an object that names the answer; None where there is none.

    "answer" comes before "option", "label" and the like, of which several values set options out; they
    count only where the object is all that there is, as boxes on a picture have labels, too.
    """
    if "{" not in text or '"' not in text and "'" not in text or ":" not in text:
        return None
    answers: list[str] = []
    others: set[str] = set()
    for key in _KEY.finditer(text, text.find("{")):
        value = _VALUE.match(text, key.end())
        if value and "answer" in key[0].lower():
            answers.append(_content(value))
        elif value:
            others.add(_content(value))
    end = text.rfind("}") + 1
    behind = text[end:] if end and text[end:].strip(_AROUND) else ""
    if answers:
        return Keyed(answers[-1], behind)
    if len(others) != 1 or behind or _BEFORE.match(text) is None or _REFUTED.search(text):
        return None
    return Keyed(others.pop(), "")


def _content(found: "re.Match[str]") -> str:
    if found["list"] is not None:
        return _ITEM_MARKS.sub(" ", found["list"]).strip()
    return (found["double"] or found["single"] or found["bare"] or "").replace('\\"', '"')


def is_several(value: str) -> bool:
    """Whether a value is a list of two or more."""
    return re.fullmatch(r"\s*[(\"']*[A-J]\b[)\"']*(?:\s?,\s?[(\"']*[A-J]\b[)\"']*)+\s*", value) is not None
