"""Where a plain response states its choice in words, and which option the words choose.

A statement is read strictly: a label, an option's text or an equal quantity. What it denies ("not
B"), supposes ("if it decreases, ...") or gives as a reason ("..., as mice eat it") chooses nothing.
"""

import re
from collections.abc import Iterator

from dcsft_harness.scoring.cues import Cue, cues
from dcsft_harness.scoring.labels import MARKED, PAIRED, bracketed, counted_off, is_listing, label, together
from dcsft_harness.scoring.option_set import NO_OPTION, OptionSet
from dcsft_harness.scoring.quantities import quantity

_CHOSEN = re.compile(
    r"\b(?:say|lean(?:ing)? towards?|vot(?:e|ing)(?: is)?(?: for)?|selection(?: is)?|left with(?: only)?"
    r"|leav(?:es|ing)(?: us)?(?: with)?(?: only)?|mak(?:es|ing)(?: it| the answer)?"
    r"|not (?:option )?\(?[A-J]\)?,? but(?: rather)?|by (?:process of |the process of )?elimination,?"
    r"|(?:only|remaining)(?: [a-z]+){1,2} (?:is|must be)"
    r"|one(?: (?:that|which) [a-z ]{1,40}?)? (?:is|must be)"
    r"|(?:^|(?<=, )|(?<=so ))(?:only|just|must be)|(?<!or )(?:maybe|perhaps)"
    r"|(?:looks|seems) like|seems to be"
    r"|(?:^|(?<=it )|(?<=this )|(?<=answer ))(?:could|may|might) be"
    r"|choos(?:e|ing)|chose|select(?:ing)?|pick(?:ing)?|go(?:ing)? with|match(?:es|ing)?"
    r"|(?:go|opt|opting|going) for|settl(?:e|ing) (?:on|for)|(?:bet|money is) on|conclude(?: that)?"
    r"|(?:decision|output|prediction|label|reply|outcome|option chosen|choice made):"
    r"|correspond(?:s|ing)? (?:to|with)"
    r"|(?:guess(?: is)?|(?:most )?likely|probably|definitely|certainly|clearly|obviously),?"
    r"|(?:it|this|that)(?: has to be|'s got to be| has got to be| (?:can|could) only be)"
    r"|(?:it|this|that|which|these)(?:'s| is| must be| would be| should be| gives| means| leads to)"
    r"|(?:hence|therefore|thus|so|ans|ans\.)\s*[,:]?(?:\sit(?:'s| is))?)\s*(?::\s*)?(?:is\s)?(?:the\s)?",
    re.IGNORECASE,
)
_SO_LETTER = re.compile(
    r"\b(?:so|thus|hence|therefore|leaves|leaving)(?:\sonly)?,?\s(?:option\s)?\(?([A-J])\)?[.!]?$"
)
_LETTER_THEN_REASON = re.compile(
    r"(?<![A-Za-z0-9'’])(?P<letter>[A-J])[)\"']?(?:,?\s(?:not\s(?:option\s)?\(?[A-J]\b|because|since|rather\sthan|instead\sof)"
    r"|,?\s(?:as|for|which|given)\s|\shere\b|\s(?:the|my|our)\s(?:only\s)?(?:correct|right|best)\b)"
)
_NOT_DONE = re.compile(r"(?:\b(?:not|never|tempt\w*\sto|wrong\sto)|n't)\s(?:[a-z]+\s)?$")
_LONE_LETTER = re.compile(r"\(?([A-J])\)?[.!]?")
_LONGEST_LETTER = 4
_LABELLED = re.compile(
    r"\b(?:is|be|are|labell?ed|marked|lettered|named|figure|shape|image|picture)\s(?:as\s)?"
)
_ALONE = re.compile(
    r"(?:\b(?i:(is|be|option|image|figure|picture|shape|graph|diagram|pattern|panel|piece))\s)?"
    r"(?<![A-Za-z0-9'’])([A-J])(?![A-Za-z0-9'’°]|\.\w)"
)
_LEADING_LINK = re.compile(
    r"^(?:(?:is|are|be|would be|should be|must be|that|definitely|clearly|therefore|thus|indeed|probably"
    r"|(?:most\s)?likely|simply|just|actually|then)\s|:\s*|[-=]>\s?|…\s?|\.{2,}\s?|#+\s)+"
)
_DENIAL = re.compile(r"\s*[:,]?\s*(?:(?:not|neither|n't)\b|不是)", re.IGNORECASE)
_BUT = re.compile(r"\b(?:but(?: rather)?|it'?s|it is|rather)\b|而是", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s|$)|$)")
_NO_ANSWER = re.compile(
    r"(?:none of|not (?:provided|given|listed|possible|available|among)|cannot|can't|impossible|unknown|n/a"
    r"|insufficient|determined|无法|不能)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s")
_CLAUSE = re.compile(r"(?<=[.!?:])\s|\n|;\s|,\s(?:so|thus|hence|but|and(?!\s\(?[A-J]\)?,))\s")
_BARE_LETTER_LAST = re.compile(r"(?<![A-Za-z0-9_.])([A-J])[\"']?$")
_TAIL = re.compile(
    r".*(?:=|→|\b(?:is|are|was|be|equals?|equal to|becomes?|of|as)\b|:(?!\d)|为|是)\s*(?=\S)", re.DOTALL
)
_REASON = re.compile(
    r",?\s\b(?:because|since|due to)\b|,\s(?:as|which|meaning|so that|specifically|such as)\b"
)
_SUPPOSED = re.compile(r"\b(?:[Ii]f|[Ww]hen|[Gg]iven|[Ss]ince|[Aa]ssuming|[Ss]uppose)\b[^,.]{0,200},")
_TURN = re.compile(r"\bbut\b|但")
_AND = re.compile(r",?\s(?:and|while)\s")
_EITHER = re.compile(r"\bor\b|或")
_DENYING = re.compile(r"\b(?:unlike|not|neither|nor|except|between|among)\b|n't\b|不", re.IGNORECASE)
_DIGIT = re.compile(r"\d")


def stated(text: str, options: OptionSet, weak: list[Cue] | None = None) -> Iterator[int]:
    """The options that the cues of a plain text state, last statement first; NO_OPTION for another answer.

    Weak cues are passed over, and added to `weak`, for `stated_at`.
    """
    for cue in cues(text):
        if not cue.weak:
            yield from stated_at(cue, text, options)
        elif weak is not None:
            weak.append(cue)


def stated_at(cue: Cue, text: str, options: OptionSet) -> Iterator[int]:
    """The option that one cue states, if any."""
    if cue.forward:
        below = text[cue.end - 1] == "\n"
        found = read(text[cue.end : cue.end + 700], options, below=below)
        if found is None and not cue.weak and _is_elsewhere(text[cue.end : cue.end + 200], options):
            found = NO_OPTION
    else:
        found = _read_back(text[max(0, cue.end - 160) : cue.end], options)
    if found is not None:
        yield found


def _is_elsewhere(segment: str, options: OptionSet) -> bool:
    """Whether a segment in which no option can be read states something all the same: "(E)", "none", "16"."""
    line = _LEADING_LINK.sub("", segment.strip().split("\n", 1)[0])
    letter = _LETTER.match(line)
    if letter and options.index(letter[1]) is None or _NO_ANSWER.match(line):
        return True
    return options.numeric and quantity(_SENTENCE.split(line)[0]) is not None


def read(segment: str, options: OptionSet, *, below: bool = False) -> int | None:
    """The option that a piece of text, beginning where an answer is expected, states.

    Args:
        segment: plain text; only its first line, and of that the first 600 characters, count.
        options: the question's options.
        below: whether a line ends before it, so that of a row of a table the last cell counts.
    """
    segment = segment.strip(" \n|")
    if len(segment) <= _LONGEST_LETTER:  # only to save time: what follows reads it as well
        lone = _LONE_LETTER.fullmatch(segment)
        index = options.index(lone[1]) if lone else None
        if index is not None:
            return index
    if is_listing(segment):  # "The correct option is:\n(A) 3\n(B) 5" repeats the question
        return None
    line = _LEADING_LINK.sub("", segment.split("\n", 1)[0][:600])
    if " | " in line:  # of a table: the cell beside "Answer", or below it, where it heads the last column
        line = line.strip(" |").split(" | ")[-1 if below else 0]
    denial = _DENIAL.match(line)
    if denial:
        turn = _BUT.search(line, denial.end())
        if turn is None:
            return None
        line = line[turn.end() :]
    named = options.named(line)
    if named is not None:
        return named
    letter = label(line, options)
    return letter if letter is not None else _read_text(line, options)


def _read_text(line: str, options: OptionSet) -> int | None:
    """The option that a line names: at its beginning, or as the only one in its first sentence."""
    begun = options.begun(line.lstrip(" \"'(:"))
    if begun is None:
        begun = counted_off(line, options)
    if begun is not None:
        return begun
    sentence = _SENTENCE.split(line, maxsplit=1)[0]
    lettered = bracketed(sentence, options)
    if lettered:
        return lettered[0] if len(lettered) == 1 else None
    return conclusion(sentence, options)


def _read_back(before: str, options: OptionSet) -> int | None:
    """The option named in the clause that ends here: "... so option (B) 45°"."""
    clause = _CLAUSE.split(before.rstrip(" \n,"))[-1].strip()
    named = options.named(clause)
    if named is not None:
        return named
    if len(clause) == 1 and clause.isalpha():
        return options.index(clause.upper())
    lettered = bracketed(clause, options)
    if lettered:
        return None if len(lettered) > 1 and together(clause) else lettered[-1]
    alone = _BARE_LETTER_LAST.search(clause)
    if alone:
        return None if _is_pair(clause) else options.index(alone[1])
    marked = MARKED.findall(clause)
    return options.index(marked[-1]) if marked else conclusion(clause, options)


def _is_pair(clause: str) -> bool:
    """Whether a clause ends on two letters of which both are meant: "B and C", not "unlike B, C"."""
    pair = PAIRED.search(clause)
    return pair is not None and _DENYING.search(clause, 0, pair.start()) is None


def conclusion(sentence: str, options: OptionSet) -> int | None:
    """The one option that a plain sentence affirms; of several quantities, that of its last clause."""
    main = _SUPPOSED.sub(" ", sentence)
    reason = _REASON.search(main)
    if reason and reason.start():
        found = _affirmed(main[: reason.start()], options)
        if found is not None:
            return found
    return _affirmed(main, options)


def _affirmed(clause: str, options: OptionSet) -> int | None:
    mentioned = options.mentioned(clause)
    if len(mentioned) > 1:
        if _EITHER.search(clause):
            return None
        *before, after = _TURN.split(clause)
        if before:
            return _affirmed(after, options)
    if not options.numeric:
        return mentioned[0] if len(mentioned) == 1 else None
    if not mentioned or len(mentioned) > 1 and _says_two(clause, options):
        return None
    rest = _tail(clause) or clause
    in_tail = options.mentioned(rest)
    if len(in_tail) == 1:
        return in_tail[0]
    # A last clause with a number that is no option states that number, not one that stands before.
    return mentioned[0] if len(mentioned) == 1 and not in_tail and not has_digit(rest) else None


def _tail(clause: str) -> str:
    """What follows the last link of a clause ("=", "is"), if there is one."""
    tail = _TAIL.match(clause)
    return clause[tail.end() :] if tail else ""


def _says_two(clause: str, options: OptionSet) -> bool:
    """Whether a clause states two options side by side: "x = 7 and y = 3"."""
    last = [options.mentioned(_tail(part)) for part in _AND.split(clause)]
    return len({found[0] for found in last if len(found) == 1}) > 1


def remaining(sentence: str, options: OptionSet) -> int | None:
    """The letter that a sentence over several comes down to at its end: "not (A) or (C), so (B)"."""
    match = _SO_LETTER.search(sentence)
    return options.index(match[1]) if match else None


def has_digit(text: str) -> bool:
    """Whether a text holds a number."""
    return _DIGIT.search(text) is not None


def chosen(sentence: str, options: OptionSet) -> int | None:
    """The bare letter that a sentence ends on after "choose", "so it is" and the like.

    Where the options are themselves only letters, "the next shape is C" will do.
    """
    if options.are_own_letters:
        letters = {match[2]: match[1] for match in _ALONE.finditer(sentence)}
        if len(letters) == 1:
            ((letter, noun),) = letters.items()
            if noun or letter not in "AI":
                return options.index(letter)
    reason = _LETTER_THEN_REASON.search(sentence)
    sentence = sentence[: reason.end("letter")] if reason else sentence
    ending = sentence.rstrip(" .!\"'()")
    if len(ending) > 1 and ending[-2].isalnum():
        return None
    for verb in (_CHOSEN, _LABELLED) if options.are_letters else (_CHOSEN,):
        for match in verb.finditer(sentence, max(0, len(sentence) - 80)):
            if _NOT_DONE.search(sentence, max(0, match.start() - 30), match.start()):
                continue
            rest = sentence[match.end() :].strip(" .!\"'()")
            if len(rest) == 1 and (rest.isupper() or verb is _LABELLED):
                return options.index(rest.upper())
    return None
