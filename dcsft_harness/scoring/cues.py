"""Where a plain text states a choice in words: "the answer is ...", "... is correct", "故选...".

Cues are looked for from the end of the text, by the nouns and adjectives that they turn on; the
last statement is the one that a reader believes, so most of a long text is never looked at.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_RIGHT = (
    r"(?:correct|right|best|true|final|proper|suitable|appropriate|closest|accurate|likely|chosen|selected"
    r"|matching|only|remaining)"
)
_LINK = r"(?:\b(?<!we )(?<!you )(?:is|are|was|be|would be|should be|must be|becomes|has to be)\b|[:→⇒])"

# What cues turn on. "ans" and "答" only where a mark follows.
_KEYS = (
    *("answer", "ans", "option", "choice", "letter", "statement", "conclusion", "response", "solution"),
    *("result", "correct", "right", "best", "true", "final", "proper", "suitable", "appropriate", "closest"),
    *("accurate", "likely", "chosen", "selected", "matching", "only", "actually", "meant"),
    *("verdict", "pick"),
)
_CHINESE_KEYS = (
    *("答案", "选", "结论", "正确", "答:", "答 :"),
    *("而是", "所以是", "因此是", "应该是", "认为是", "的是"),
)
_CHINESE_KEY = re.compile(f"[{''.join({key[0] for key in _CHINESE_KEYS})}]")
_MARKS = "*_`$}"
"""Markup that may stand in the middle of a word."""
# "the correct answer to this question is", "Answer:", "the option letter, ", "答案是", "故选"
_AFTER_NOUN = re.compile(
    r"(?:s?\b(?:\sletter)?"
    rf"(?:[^.\n:→?!]{{0,120}}?{_LINK}|\s*\n|\s*=|\s-\s|\s\|(?=\s)|,?\s?(?=\s*\(?[a-j]\)?\s*(?:[.,]|$)))\s*[:→]?)"
)
_AFTER_ANS = re.compile(r"\s?[.:=-]|\sis\b")
_AFTER_WEAK = re.compile(r"\s*(?::|=|\bis\b)")
_AFTER_CHINESE = re.compile(
    r"(?:答案|选项|选择|正确的?是|结论|选|答|而是)\]?(?:应该|应当|应|选项|答案|就)?\s*(?:是|为|选|:)*\s*:?"
)
_ARTICLE = re.compile(rf"\b(?:{_RIGHT}|the)\s(?:multiple[- ]choice\s)?$")
_BE = re.compile(
    r"\b(?:is|are|would be|must be|should be|has to be|seems|appears|looks)\s"
    r"(?:indeed\s|therefore\s|thus\s|also\s|to be\s)?(?:(?:the|my|our|your)\s)?(?:one\s|option\s|most\s)?$"
)
# What these two end in, before a space: a quick look that spares most searches.
_BEFORE_NOUN = ("the", "choice", *re.findall(r"[a-z]+", _RIGHT))
_BEFORE_ADJECTIVE = (
    *("is", "are", "be", "seems", "appears", "looks", "indeed", "therefore", "thus", "also", "the", "one"),
    *("my", "our", "your", "option", "most"),
)
_ADJECTIVES = frozenset({*re.findall(r"[a-z]+", _RIGHT), "answer", "choice"})

_GEOMETRY = re.compile(
    r"(?<=right)(?:-\w|\s(?:angle|triangle|side|hand|of\b))|(?<=true)\snorth\b"
    r"|(?<=likely)\san?\s(?!correct|right|good|wise)"
)
_NAMED = re.compile(
    r"(?:∠|\b(?:angle|triangle|point|student|person|team|line|vertex|corner)\s)\(?[a-j]\)?\s$"
)
_IF = re.compile(r"(?:^|[.!?\n;,]\s?)if\s(?:option\s|choice\s)?\(?[a-j]\)?\s$")
_IF_ANSWER = re.compile(r"(?:^|[.!?\n;]\s?)if\s(?:the\s)?(?:correct\s|right\s)?$")
_ONLY_LETTER = re.compile(
    r"\s(?:option\s|choice\s)?\(?[a-j]\)?\s(?:satisf|match|fit|meet|work|remain|hold|appl)"
)
_ONLY_A_LETTER = r"\s?(?:option\s)?\(?[a-j]\)?\s?(?:[.,!]|选?项|$|\n)"
_CORRECTS = {
    "actually": re.compile(rf",?\s(?:it|the answer)(?:'s|\sis|\sshould be|\smust be)(?={_ONLY_A_LETTER})"),
    "meant": re.compile(rf"(?:\sto say)?:?(?={_ONLY_A_LETTER})"),
}
"""What takes the place of an earlier answer: "actually, it is B", "I meant B"."""
_RELATIVE = re.compile(rf"\s(?:that|which)\s[^.\n?!]{{1,100}}?\s(?:is|are)(?={_ONLY_A_LETTER})")
_CHINESE_LETTER = re.compile(rf"(?={_ONLY_A_LETTER})")
_MARK = re.compile(r"\s?[:→-]\s?$")
_CANNOT_BE = re.compile(
    r"\b(?:can(?:not|'t|\snot)|won't|(?:could|should|must|would|will|may|might)(?:n't|\snot))\s(?:[a-z]+\s)?be$"
)
_KNOWN = re.compile(
    r"(?:determined|found|given|known|identified|seen|decided|answered|calculated|computed|inferred|derived"
    r"|chosen|selected|obtained|concluded|stated|established)\b"
)
_HELD_BY_OTHERS = re.compile(
    r"\b(?:(?:[a-z]+n't|not|never)\s(?:think|believe|say|feel|agree|mean)|unlikely|not\strue"
    r"|(?:one|you|some|people|someone|students?|many|they)\s(?:might|may)\s(?:[a-z]+\s)?"
    r"(?:think|say|argue|assume|believe|guess|expect|conclude)|(?:might|may)\s(?:[a-z]+\s)?seem"
    r"|tempt(?:ed|ing)\sto\s(?:say|think|conclude|answer))\s(?:like\s)?(?:that\s)?"
    r"(?:(?:(?:the|my)\s)?(?:(?:correct|right|best|final)\s)?|(?:option\s)?\(?[a-j]\)?\s?)$"
)
_HOLDING = ("n't", "not ", "never ", "unlikely ", "might ", "may ", "tempt")
_SUPPOSED = re.compile(r"(?:如果|要是|假如|假设)[^。.!?\n]*$")
_NOT_CHOSEN = re.compile(r"(?:不(?:能|应该?|可以?|该|会|要)?|别)$")

_NOUNS = ("option", "choice", "letter", "statement", "conclusion", "response", "solution")
_WEAK = ("solution", "conclusion", "result", "choice", "response", "verdict", "pick")
_CONTEXT = 40
"""Characters before a key in which what leads to it stands."""

MOST = 20
"""Cues that are read, from the end; a response with more is a loop."""


_RULED_OUT = ("incorrect ", "wrong ", "false ")
"""Before "answer" or "option": what follows is none."""


class Cue(NamedTuple):
    """A place where a choice is stated: what follows `end`, or where `forward` is false, what ends there.

    A weak cue ("the result is") may as well introduce a value on the way.
    """

    end: int
    forward: bool
    weak: bool


def cues(text: str) -> Iterator[Cue]:
    """The cues of a plain text, last first, at most `MOST`."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a letter that is two in lower case would shift every position
        lowered = text
    found = 0
    for start, key in sorted(_places(lowered), reverse=True):
        cue = _cue(lowered, start, key)
        if cue is not None:
            yield cue
            found += 1
            if found == MOST:
                return


def has_key(text: str) -> bool:
    """Whether there can be a cue in a text with its markup; only to save time."""
    lowered = text.lower()
    for mark in _MARKS:
        if mark in lowered:  # "**A**nswer"
            lowered = lowered.replace(mark, "")
    if not lowered.isascii() and _CHINESE_KEY.search(lowered):
        return True
    for key in _KEYS:  # a loop, as `any` costs more than most of the searches
        if key in lowered:
            return True
    return False


def _places(lowered: str) -> list[tuple[int, str]]:
    """Where the keys stand; to look for each in turn is the fastest way."""
    places = []
    if not lowered.isascii():
        for key in _CHINESE_KEYS:
            start = lowered.find(key)
            while start >= 0:
                places.append((start, key))
                start = lowered.find(key, start + len(key))
        # One byte a character, which makes the searches twice as fast; places stay.
        lowered = lowered.encode("ascii", "replace").decode("ascii")
    for key in _KEYS:
        start = lowered.find(key)
        while start >= 0:
            places.append((start, key))
            start = lowered.find(key, start + len(key))
    return places


def _cue(lowered: str, start: int, key: str) -> Cue | None:
    key = key.rstrip(" :")
    end = start + len(key)
    if key[0] > "z":
        return _chinese(lowered, start, key)
    if start and lowered[start - 1].isalpha() and lowered[start - 1].isascii():
        return None
    if key == "ans" and _AFTER_ANS.match(lowered, end) is None:
        return None
    context = max(0, start - _CONTEXT)
    led = start > 0 and lowered[start - 1].isspace()
    if led and lowered.endswith(_RULED_OUT, context, start):
        return None
    if key in ("answer", "ans") or key in _NOUNS and led and _has_article(lowered, context, start):
        after = _RELATIVE.match(lowered, end) or _AFTER_NOUN.match(lowered, end)
        if after:
            unsaid = _is_held_by_others(lowered, start) or _IF_ANSWER.search(lowered, context, start)
            return None if unsaid else _unless_denied(lowered, after)
    if key in _WEAK:
        after = _AFTER_WEAK.match(lowered, end)
        if after:
            return Cue(after.end(), True, True)
    if key in ("correct", "final") and lowered[end : end + 2].lstrip()[:1] == ":":
        return Cue(lowered.index(":", end) + 1, True, False)
    if key in _CORRECTS:
        after = _CORRECTS[key].match(lowered, end)
        return Cue(after.end(), True, False) if after else None
    if key == "only" and _ONLY_LETTER.match(lowered, end):
        return Cue(end, True, False)
    if key in _ADJECTIVES and not _goes_on(lowered, end):
        before = (
            led
            and lowered.endswith(_BEFORE_ADJECTIVE, context, start - 1)
            and _BE.search(lowered, context, start)
        ) or (key == "correct" and _MARK.search(lowered, context, start))
        if before and not _is_of_something_else(lowered, before.start(), end):
            return Cue(before.start(), False, False)
    return None


def _is_of_something_else(lowered: str, start: int, end: int) -> bool:
    """Whether what is right is no option: "angle A is right", "A is right of B", "if A is correct then"."""
    if _GEOMETRY.match(lowered, end) or _is_held_by_others(lowered, start):
        return True
    before = lowered[max(0, start - _CONTEXT) : start]
    return _NAMED.search(before) is not None or _IF.search(before) is not None


def _has_article(lowered: str, context: int, start: int) -> bool:
    """Whether "the", "the correct" or the like stands before a noun."""
    return (
        lowered.endswith(_BEFORE_NOUN, context, start - 1)
        and _ARTICLE.search(lowered, context, start) is not None
    )


def _is_held_by_others(lowered: str, start: int) -> bool:
    """Whether what is stated here is only what one might think, or what is not thought: "I don't think"."""
    if not start or lowered[start - 1] == "\n":
        return False
    before = lowered[max(0, start - 80) : start]
    for word in _HOLDING:
        if word in before:
            return _HELD_BY_OTHERS.search(before) is not None
    return False


def _goes_on(lowered: str, end: int) -> bool:
    """Whether a word goes on at this place."""
    return lowered[end : end + 1].isalnum() or lowered[end : end + 1] == "_"


def _unless_denied(lowered: str, after: "re.Match[str]") -> Cue | None:
    """None for "the answer cannot be A"; "the answer cannot be determined" is read from "cannot" on."""
    denied = _CANNOT_BE.search(after[0].rstrip())
    if denied is None:
        return Cue(after.end(), True, False)
    if _KNOWN.match(lowered, after.end()) is None:
        return None
    return Cue(after.start() + denied.start(), True, False)


def _chinese(lowered: str, start: int, key: str) -> Cue | None:
    if key == "正确":
        if lowered[max(0, start - 1) : start] == "是":
            return Cue(start - 1, False, False)
        if lowered[start : start + 4].startswith(("正确是", "正确的是")):
            return Cue(start + (3 if lowered[start + 2] == "是" else 4), True, False)
        if lowered[max(0, start - 3) : start].strip().endswith(("项", "a", "b", "c", "d")):
            return Cue(start, False, False)
        return None
    if key.endswith("是") and key != "而是":
        end = start + len(key)
        return Cue(end, True, False) if _CHINESE_LETTER.match(lowered, end) else None
    if key == "选" and _NOT_CHOSEN.search(lowered, max(0, start - 3), start):
        return None
    after = _AFTER_CHINESE.match(lowered, start)
    if after and "就" in after[0] and _SUPPOSED.search(lowered, max(0, start - 60), start):
        return None
    return Cue(after.end(), True, False) if after else None
