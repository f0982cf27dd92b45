r"""Options that a response judges one by one, each on its own line or in its own clause.

    judged("A: No\nB: Yes\nC: No")           -> the verdicts A: False, B: True, C: False; no text is left
    judged("A: incorrect, B: correct")        -> A: False, B: True
    judged("❌ A. 3\n✅ B. 5, as x = 5\nDone")  -> A: False, B: True; "Done" is left

A verdict is one word or mark that stands alone: behind the letter, or behind a colon, a dash or the
like. "A is incorrect" in a sentence is none, and neither is "A: No arms".
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_GOOD = "yes|correct|right|true|✓|✔|✅|☑|√|正确|对"
_BAD = r"no|not\scorrect|incorrect|wrong|false|✗|✘|❌|✖|❎|×|错误|不正确|不对|错"
_VERDICT = rf"(?:(?P<good>{_GOOD})|(?P<bad>{_BAD}))\ufe0f?(?![A-Za-z0-9])"
_MARK = "[✓✔✅☑✗✘❌✖❎]"
_LINE = re.compile(
    rf"\n\s?(?:[-*|]\s?){{0,2}}(?:\d{{1,2}}[.)]\s)?(?:(?P<mark>{_MARK})\ufe0f?\s?)?"
    r"(?:(?i:option|choice|statement)\s|选项)?[(\"']?(?P<letter>[A-J])(?![A-Za-z0-9’])[\"']?(?:选?项)?"
    rf"(?:(?:[).:?]|,(?=\s?(?:不?正确|错误|不?对|错))|\s[-|→]|\s(?:=|is|was)(?=\s(?i:{_GOOD}|{_BAD})\b)|\s?\([^()\n]{{1,60}}\)\s?[:-])|(?=\s?\(?{_MARK})|(?={_GOOD}|{_BAD}))"
)
_BEHIND = re.compile(
    r"(?:^|[:|→=(]|\s-|[.,](?=\s)|,\s(?:so|thus|hence)|(?=(?:不?正确|错误)[.;\s]*$))(?:\s?[:|-])?\s?(?:(?:this|it|that)(?:\s(?:option|choice|statement))?(?:\sis|'s)\s)?"
    + _VERDICT
    + r"(?=\s*(?:[.,;:!|)\n-]|because|since|as\b|$))",
    re.IGNORECASE,
)
_ENDING = re.compile(rf"(?P<mark>{_MARK})")
_BRIEF = re.compile(
    r"(?<![A-Za-z0-9])[(\"']?(?P<letter>[A-J])[)\"']?(?:选?项)?(?:\s?[):|=?→-]|\sis)?\s?[(\"']?(?i:"
    + _VERDICT
    + r")[)\"']?(?=\s*(?:[,;.|(→⇒-]|=>|\s[A-J]\b|and\b|$))"
)
Verdict = tuple[str, bool, str]
"""A letter, whether its option is good, and the word or mark that says so."""
_TRUE_OR_FALSE = frozenset({"true", "false", "correct", "incorrect", "right", "wrong", "not correct"})
"""Two options judged so may be answers to "which is false?"; of three, one that stands out is meant."""
_LISTED = {"A": True, "B": False}
"""With "yes" and "no", these are options of their own that a response sets out."""
_BEGINNINGS = frozenset("ABCDEFGHIJ([\"'-*|123456789oOcCsS选✓✔✅☑✗✘❌✖❎")
"""What a line can begin with in which an option is judged."""
_SECOND_LETTER = re.compile(r"[ ,(;\"'][A-J][) ,.:=→?\"'错对不正选项✓✔✅☑√✗✘❌✖❎×-]")
_LONGEST = 300
"""Characters of a line that are read."""
_GOOD_MARKS = frozenset("✓✔✅☑")


class Judged(NamedTuple):
    """The options that are judged, by letter, and what is said beside the verdicts and behind the last."""

    verdicts: dict[str, bool]
    rest: str
    behind: str

    def only(self) -> str | None:
        """The letter of the one option that is found good where all others are found bad."""
        good = [letter for letter, verdict in self.verdicts.items() if verdict]
        return good[0] if len(good) == 1 else None


def judged(text: str) -> Judged | None:
    """The verdicts of a plain text on two or more options, or None.

    None also where an option is judged both ways, or where "true" and "false" are said of two only.
    """
    if "\n" not in text and (text[:1] not in _BEGINNINGS or _SECOND_LETTER.search(text, 2) is None):
        return None
    text = f"\n{text}"
    verdicts: dict[str, bool] = {}
    kept: list[str] = []
    end, words = 0, set[str]()
    for found, start, after in _verdicts(text):
        for letter, good, word in found:
            if verdicts.setdefault(letter, good) != good:
                return None
            words.add(word)
        kept.append(text[end:start])
        end = after
    if len(verdicts) < (3 if words & _TRUE_OR_FALSE else 2) or verdicts == _LISTED and words == {"yes", "no"}:
        return None
    return Judged(verdicts, "".join([*kept, text[end:]]).strip(), text[end:].strip())


def may_be_judged(text: str) -> bool:
    """Whether a plain text judges an option in a line of its own."""
    return (text[:1] in _BEGINNINGS or "\n" in text) and next(_verdicts(f"\n{text}"), None) is not None


def _verdicts(text: str) -> Iterator[tuple[list[Verdict], int, int]]:
    """The verdicts of each line that has some, and where what they take of the text begins and ends.

    The text begins with a line end, as every line does here: a pattern that begins with a character is fast.
    """
    text = text.replace("; ", ";\n") if ";" in text else text
    for match in _LINE.finditer(text):
        stop = text.find("\n", match.end())
        stop = len(text) if stop < 0 else stop
        found, after = _in_line(text, match, stop)
        if found:
            yield found, match.start(), after


def _in_line(text: str, start: "re.Match[str]", stop: int) -> tuple[list[Verdict], int]:
    """The verdicts of a line that begins with an option, and where the last of them ends.

    Behind verdicts in brief, as in "A: no, B:
    yes, so it is B", the line goes on; behind one alone all of it is about that option.
    """
    brief = list(_BRIEF.finditer(text, start.start("letter"), min(stop, start.end() + _LONGEST)))
    if len(brief) > 1:
        found = [(one["letter"], one["good"] is not None, _word(one)) for one in brief]
        return found, brief[-1].end()
    letter = start["letter"]
    if start["mark"]:
        return [(letter, start["mark"] in _GOOD_MARKS, start["mark"])], stop
    line = text[start.end() : min(stop, start.end() + _LONGEST)]
    behind = _BEHIND.search(line)
    if behind:
        return [(letter, behind["good"] is not None, _word(behind))], stop
    ending = _ENDING.search(line)
    return [(letter, ending["mark"] in _GOOD_MARKS, ending["mark"])] if ending else [], stop


def _word(verdict: "re.Match[str]") -> str:
    return (verdict["good"] or verdict["bad"]).lower()
