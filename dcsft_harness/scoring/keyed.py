r"""The answer of a response that is written as JSON, or as Python's idea of it.

    keyed_answer('{"reasoning": "A is too small", "answer": "C"}') -> "C"
    keyed_answer('{"answer": ["B", "C"]}')                          -> "B, C"

The text need not be valid: models leave quotes and backslashes as they come. Keys beside the answer's
are passed over, whatever they say.
"""

import re

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


def keyed_answer(text: str) -> str | None:
    """The value of the last key of an object that names the answer; None where there is none.

    "answer" comes before "option", "label" and the like, of which several values set options out.
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
    if answers:
        return answers[-1]
    return others.pop() if len(others) == 1 else None


def _content(found: "re.Match[str]") -> str:
    if found["list"] is not None:
        return _ITEM_MARKS.sub(" ", found["list"]).strip()
    return (found["double"] or found["single"] or found["bare"] or "").replace('\\"', '"')


def is_several(value: str) -> bool:
    """Whether a value is a list of two or more."""
    return re.fullmatch(r"\s*[(\"']*[A-J]\b[)\"']*(?:\s?,\s?[(\"']*[A-J]\b[)\"']*)+\s*", value) is not None
