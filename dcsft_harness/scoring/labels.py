"""Letters that stand for options: "(B)", "B. text", "Option B", and lists that set options out.

Not labels: the article in "A triangle", the pronoun in "I think", the point in "C is the midpoint",
and one letter of several ("A or B"). "Option 3" and "the third option" count where no option is a
number.
"""

import re
from itertools import pairwise

from dcsft_harness.scoring.option_set import OptionSet

_SHORT_ANSWER = re.compile(r":\s?\(?([A-J])(?:\)?\.?|[).:]\s.*)")
_LETTER_END = r"(?![A-Za-z0-9_'’+*/^=°(√<>{]|-\w)"
_NOUN = (
    r"(?:the\s)?(?:correct\s)?"
    r"(?:option|choice|letter|answer|image|figure|picture|statement|graph|diagram|shape|pattern|panel|选项)s?"
    r"\s?(?:is\s|letter\s)?[:\s]{0,3}"
)
_LABEL = re.compile(
    rf"[\s\"'“(\[<{{:,=→✓✔✅☑👉➡\ufe0f-]{{0,20}}?(?:{_NOUN})?"
    rf"(?P<open>[(\[\"'<]{{0,4}})\s?(?P<letter>[A-Za-z])\s?(?P<close>[)\]\"'>]{{0,4}}){_LETTER_END}",
    re.IGNORECASE,
)
_SECOND = re.compile(
    r"\s*(?:,\s*(?:and|or)|,|and|or|&|/|和|或)\s*\(?(?:option\s)?"
    r"(?P<letter>[A-J](?![A-Za-z0-9'’])\)?(?!\s*(?!(?:and|or)\s\(?[A-J]\b)[a-z'])|[a-j](?=\s*(?:[,.)]|$)))"
)
_GIVES_REASON = re.compile(
    r"\s+(?:because|since|as|which|for|with|based|due|given|so|best\s(?:satisf|match|fit|meet)\w*"
    r"|satisfies|matches|fits|meets|works|remains|(?:it\sis|only)(?=[.!,]|$)|is\sthe\sone(?=[.,!]|$|\s(?:that|which)\s)"
    r"|rather\sthan|instead\sof|as\sopposed\sto)\b|\s\((?:confidence|because|since|as|i\.e|approximately|about)\b"
    r"|\s\(?(?:and\s(?:it\sis\s)?)?not\s(?:option\s)?\(?[A-J]\b"
)
_REJECTED = re.compile(
    r"\s*(?:(?:(?!\b(?:because|since|as)\b)[^.,;\n]){0,80}?\s)?(?:is|are|was|would be)\s(?:also\s)?"
    r"(?:not|in(?:correct|accurate|valid)|wrong|false)\b"
    r"|\s(?:(?:does|do|did|can|could|would|should|must)(?:\s?not|n't|'t)\b|fails?\b"
    r"|(?:is|are|can\sbe|must\sbe)\s(?:also\s)?(?:eliminated|excluded|rejected|impossible|ruled\sout)\b)"
    r"|\s*:\s*(?:incorrect|wrong|invalid)\b|,?\s(?:which|but\s(?:that|this|it))(?:\sis|'s)\s(?:incorrect|not\s(?:correct|right)|wrong|false)\b"
    r"|\s*(?:选项)?(?:是|都)?(?:错误|不正确|不对|错)"
)
_DISMISSED = re.compile(
    r"\b(?:eliminat(?:e|ed|ing)|exclud(?:e|ed|ing)|reject(?:ed|ing)?|discard(?:ed|ing)?|rul(?:e|ed|ing)\sout)"
    r"\s(?:(?:the|both)\s)?$|(?:\bnot|n't|\bcan(?:not|'t))\s(?:be\s)?$|(?:不(?:能|应该?|可)?|别|排除)$",
    re.IGNORECASE,
)
_ANYWHERE = re.compile(
    r"\(([A-J])\)|\[([A-J])\]"
    r"|\b[Oo]ption\s(?:\(([a-j])\)|([a-j])(?=\s?(?:[.,:;!]|$)))"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)\s+[\"'(]?([A-J])(?![A-Za-z0-9'’-])"
    r"|选项?\s*([A-J])(?![A-Za-z0-9])|(?<![A-Za-z0-9])([A-J])\s?选?项"
)
_BEFORE_LETTERS = re.compile(r"[(\[]|(?i:option|choice|letter|answer)|选|项")
_UP_TO_MARK = re.compile(r"[^).,;:\n]{0,60}(?:[.,]\d[^).,;:\n]{0,60})?")
_TOGETHER = re.compile(
    r"\bboth\b|[A-J]\s?(?:和|与|或)\s?[A-J]|[A-J][)\]]?,?\s(?:and|or|&)\s(?:option\s)?[(\[]?[A-J](?![a-z])"
)
PAIRED = re.compile(
    r"(?<![A-Za-z])[A-J][)\]]?(?:,?\s(?:and|or|&)\s|\s?(?:和|与|或|、|,)\s?)(?:[Oo]ption\s)?[(\[]?[A-J][)\]\"']?$"
)
"""A bare letter last, and another one joined to it."""
_ON_LINE = re.compile(r"[ \t]*-?[ \t]*(?:[Oo]ption\s)?\(?([A-J])(?:\)|\.|:)(?=\s|$)")
_ON_LATER_LINE = re.compile(r"\n" + _ON_LINE.pattern)
MARKED = re.compile(r"(?<![A-Za-z0-9])\(?([A-J])(?:\)|\.|:)(?=\s)")
"""A letter with the mark of a label after it, anywhere in a text."""
_FIRST = re.compile(
    r"(?:(?:[Oo]ptions|OPTIONS|[Cc]hoices|CHOICES)\s?:\s{0,2}|[Oo]ption\s)?\(?A(?:\)|\.|:)(?=\s)"
)

_SETTLES = re.compile(
    r"\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence"
    r"|fits?|match(?:es)?|remains?|works?|satisf[a-z]+|just right)\b"
)
_LABEL_LAST = re.compile(r"(?<![A-Za-z])[A-J]\.\s*$")
_GAP = r"[\s\d().,:*-]{1,6}"
_ALPHABET = re.compile(rf"(?:{_GAP})?A{_GAP}B{_GAP}C(?:{_GAP}D(?:{_GAP}E)?)?(?:{_GAP})?")

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_CARDINALS = ("one", "two", "three", "four", "five", "six")
_CHINESE_ORDINALS = "一二三四五六"
_NUMBERED = re.compile(
    rf"\b(?i:option|choice)\s(?:number\s|no\.\s?|#)?([1-9]|(?:{'|'.join(_CARDINALS)})\b)(?![\w.:/%°]\w|\w)"
    rf"|\b({'|'.join(_ORDINALS)}|last|[1-9](?=st|nd|rd|th))(?:st|nd|rd|th)?\s(?:option|choice)\b"
    rf"|第([{_CHINESE_ORDINALS}1-9])个?(?:选项|项)"
)
_COUNTED_OFF = re.compile(
    rf"(?:the\s)?(?:(?:number\s|no\.\s?|#\s?)(?P<number>[1-9])"
    rf"|(?P<ordinal>{'|'.join(_ORDINALS)}|last)(?:\s(?:one|answer|item))?)(?=\s*(?:[.,:;!(-]|$))",
    re.IGNORECASE,
)


def label(text: str, options: OptionSet) -> int | None:
    """The option whose letter a plain text begins with, in the form of a label.

    Only the first line counts, and a letter that is rejected ("A is not correct") does not. The text
    beside the letter counts only behind a letter that no option has ("(E) 5"), and where the options
    are judgements: of "yes" and "no", "A) No" and "(C) No" are the second.
    """
    line = text.split("\n", 1)[0][:200]
    match = _LABEL.match(line)
    if match is None:
        return None
    letter, after = match["letter"], line[match.end() :]
    if _SECOND.match(after) or _REJECTED.match(after):
        return None
    if letter == "A" and not match["open"] and after[:1] == ":":  # short for "Answer: ..."
        short = _SHORT_ANSWER.fullmatch(after)
        if short:
            return options.index(short[1])
    index = options.index(letter.upper())
    marked = match["close"] or after[:1] in (".", ":") or after.lstrip()[:2] == "- "
    if marked and (
        index is None
        or options.are_judgements
        or (letter == "A" and not match["open"] and after[:1] == ":")  # short for "Answer: ..."
    ):
        other = options.begun(after.lstrip(" .:)-"))
        index = index if other is None else other
    if index is None:
        return None
    if match["close"]:
        return index
    rest = after.lstrip()
    if letter.islower():
        return index if not rest.strip(" .:") else None
    ended = not rest or rest[0] in ".,:;!?-)" or not rest[0].isascii()
    return index if ended or _GIVES_REASON.match(after) or _repeats_text(after, index, options) else None


def _repeats_text(after: str, index: int, options: OptionSet) -> bool:
    inner = after.strip(" (")
    for found in (options.begun(inner), options.named(_UP_TO_MARK.match(inner)[0])):  # type: ignore[index]
        if found is not None:
            return options.same(found, index)
    return False


def bracketed(sentence: str, options: OptionSet) -> list[int]:
    """The distinct options that a sentence gives as "(B)", "option B" or "the third option", not rejected."""
    if not _BEFORE_LETTERS.search(sentence):
        return []
    found: dict[int, None] = {}
    for match in _ANYWHERE.finditer(sentence):
        index = options.index(next(filter(None, match.groups())).upper())
        if index is None or _REJECTED.match(sentence, match.end(), match.end() + 100):
            continue
        if _DISMISSED.search(sentence, max(0, match.start() - 20), match.start()):
            continue
        found[index] = None
        second = _SECOND.match(sentence, match.end())
        other = options.index(second["letter"].strip(")").upper()) if second else None
        if other is not None:
            found[other] = None
    return list(found) or numbered(sentence, options)


def numbered(sentence: str, options: OptionSet) -> list[int]:
    """The distinct options that a sentence counts off: "option 3", "the third option"."""
    if options.has_quantities:
        return []
    found: dict[int, None] = {}
    for match in _NUMBERED.finditer(sentence):
        index = _counted(match[1] or match[2] or match[3], options)
        if index < len(options.texts) and not _REJECTED.match(sentence, match.end(), match.end() + 100):
            found[index] = None
    return list(found)


def counted_off(text: str, options: OptionSet) -> int | None:
    """The option that stands at the beginning of an answer as "number 2" or "the second one"."""
    match = None if options.has_quantities else _COUNTED_OFF.match(text)
    index = _counted((match["number"] or match["ordinal"]).lower(), options) if match else len(options.texts)
    return index if index < len(options.texts) else None


def _counted(word: str, options: OptionSet) -> int:
    """The index that a word counts to: "2", "two", "second", "last"; maybe beyond the last option."""
    if word.isdigit():
        return int(word) - 1
    if word == "last":
        return len(options.texts) - 1
    for words in (_ORDINALS, _CARDINALS, tuple(_CHINESE_ORDINALS)):
        if word in words:
            return words.index(word)
    raise ValueError(word)


def together(clause: str) -> bool:
    """Whether a clause gives several letters at once: "both (A) and (B)"."""
    return _TOGETHER.search(clause) is not None


def is_listing(text: str) -> bool:
    """Whether the text begins by setting out the options: "(A) 3 (B) 5" or one on each line."""
    first = _FIRST.match(text)
    if first is None:
        return False
    second = MARKED.search(text, first.end())
    return second is not None and second[1] == "B"


def goes_through(text: str, last: str) -> bool:
    """Whether a text sets out the options one behind the other, and its last sentence is the last of them."""
    if not is_listing(text) or _SETTLES.search(last):
        return False
    letters = MARKED.findall(text)
    rises = all(one < other for one, other in pairwise(letters))
    return rises and (MARKED.search(last) is not None or _LABEL_LAST.search(text[: -len(last)]) is not None)


def is_alphabet(text: str) -> bool:
    """Whether a text is the letters A, B, C and so on, and nothing else."""
    return 5 <= len(text) < 60 and "B" in text and "A" in text[:4] and _ALPHABET.fullmatch(text) is not None


def without_listing(text: str) -> str:
    """The text without the lines that set out two or more options in order: they choose nothing."""
    if "\n" not in text:
        return text
    if _ON_LATER_LINE.search(text) is None:  # a list of options has a second line
        return text.strip()
    kept: list[str] = []
    run: list[str] = []
    previous = ""
    for line in text.split("\n"):
        if run and not line.strip():
            continue  # a blank line between two options does not end the list
        match = _ON_LINE.match(line)
        letter = match[1] if match else ""
        if run and letter > previous:
            run.append(line)
        else:
            kept += run if len(run) == 1 else []
            run = [line] if letter else []
            kept += [] if letter else [line]
        previous = letter
    kept += run if len(run) == 1 else []
    return "\n".join(kept).strip()
