r"""Multiple choice: which option a response states.

    choice("... Therefore, the answer is (B) 5.", answer="B", choices=["3", "5"]) -> Verdict(1.0, "B")

The first of these that states one option decides:

1. the last \boxed{...}, or without one the value of "answer" in JSON;
2. the whole response: a letter, an option's text, an equal value;
3. the last sentence with an answer phrase (`phrases`) that states exactly one option;
4. the beginning: "(B) ...", "B. ...", "Yes, ...";
5. the last sentence, unless it only sets an option apart from the one that was chosen; the first sentence.

Where the last statement names none of the options ("the answer is 16" of 3 and 5), no earlier one is
taken in its place: there is no nearest option and no random one. A letter outweighs the text beside it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import phrases
from dcsft_harness.scoring.normalize import answer_part, before_run_on, bounded, json_answer, last_box, plain
from dcsft_harness.scoring.options import DRAWN, Mention, OptionSet, has_any, in_pair, key, option_set
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict

_LETTER_ONLY = re.compile(r"[\s(\[\"'*$`]*([A-Za-z])[\s)\]\"'*$`.:,!]*")
_LABEL = re.compile(
    r"[\s\"'“:=→>✓✔✅👉|,-]{0,12}"
    r"(?:(?:definitely|clearly|probably|most likely|likely|therefore|indeed|just|only) )?"
    r"(?:(?i:the )?(?i:correct |right |final |first |second |best )?"
    r"(?i:option|choice|letter|answer|image|figure|picture|statement|graph|diagram|point|box|label|选项)s?"
    r"(?: is| labell?ed| marked)?:?\s?)?"
    r"(?P<open>[(\[<]{0,2})(?P<letter>[A-Za-z])(?P<close>[)\]>]{0,2})(?![\w'’+*/^°√<{]|-\w)"
)
_SECOND = re.compile(
    r"\s?(?:,\s?(?:and|or)|,|and|or|&|/|、|和|或)\s?\(?[A-J](?:\)|(?![\w'’]))(?!\s(?:is|has|does)\b)"
)
_AFTER_BARE = re.compile(
    r"\s?(?:$|[.,:;!?)(\n=≈]|-\s|[^\x00-\x7f]|(?:because|since|as|which|for|with|based|due|given|so|not|and|or|fits?"
    r"|satisf\w+|match\w*|meets|works|remains|instead|rather|in|on|here|the|by|\d+)\b)"
)
_QUOTED = re.compile(r"[\"']([A-J])[\"']")
_BARE_END = re.compile(
    r"(?:^|\b(?:is|be|as|to|with|by|at|=|image|figure|picture|shape|graph|pattern|point|box|select|choose)\s?)"
    r"([A-J])[.!]?\s*$"
)
_BARE_SUBJECT = re.compile(
    r"(?:^|[\s(,])([A-J])\)?(?: (?:is|seems|appears|looks)(?: to be)?(?: the| much)?)?\s*$"
)
_CLAUSE = re.compile(r",? (?:so|but|and|thus|hence|meaning|suggesting|indicating|that)\b|; ")
_FINAL = re.compile(
    r"(?:\b(?:is|are|be)|[:=])\s?(?:option )?\(([A-J])\)(?: (?:the |an? )?[\w ]{1,30})?[.!]?$"
)
_LINK = re.compile(r"\b(?:is|are|be|was|equals|to)\b|it's\b|[=≈:是为]")
_BARE = re.compile(r"(?<![\w'’°∠△/])(?<!\bat )(?<!\bnot )([A-J])(?=[.,!]|$| only| it is| is the one)")
_NOT_BE = re.compile(r"(?:\bnot|n't|\bcannot) (?:\w+ )?be$")
_ALPHABET = re.compile(r"\W*a\W+b\W+c\W*(?:d\W*)?(?:e\W*)?", re.IGNORECASE)
_GLUED = re.compile(r"[\s:*]*([A-J])([\d.]+)[.)]?\s*$")
_SENTENCE_BREAK = re.compile(r"[.!?;\n。！？；](?:(?<=[\n。！？；])|(?=\s|[\"')*]{1,3}\s))")
_DIGIT = re.compile(r"\d")
_WAIT = re.compile(r"(?i)(?:^|[.!?\n]\s?)(?:but )?(?:wait|hold on|hmm)\b,?(?: actually)?")
_LISTED_LINES = re.compile(r"[\s*>(-]{0,20}A[).:].{0,150}\n[\s*>(-]{0,20}B[).:]")
_LISTED = re.compile(r"(?<![A-Za-z0-9])\(?A[).:]\s?.{1,300}?(?<![A-Za-z0-9])\(?B[).:]", re.DOTALL)
_LINE = re.compile(r"[-\s]*(\()?([A-J])[).:](?: (.{1,100}))?")
NO_OPTION = -1
"""In the place of an option's index: an answer is stated, and it is none of the options."""
MOST = 12
"""Sentences with a phrase that are read, from the end, and phrases of one; a response with more is a loop."""
HEAD, TAIL = 300, 700
"""Characters at the start and at the end that are searched for all phrases."""

_ROWS: dict[str, list[phrases.Phrase]] = {}
for _phrase in phrases.PHRASES:
    for _word in _phrase.keys:
        _ROWS.setdefault(_word, []).append(_phrase)
_KEYS = frozenset(map(str.encode, _ROWS))
_CHINESE_KEYS = ("答", "选", "正确", "選", "正確", "而是", "的是")
_LETTERS = bytes(code if chr(code).isalpha() and code < 128 else 32 for code in range(256))


def choice(
    response: str,
    *,
    answer: str,
    choices: Sequence[str | int | float] | None = None,
    truncated: bool = False,
) -> Verdict:
    """Score 1.0 if the option that the response states is the gold, else 0.0.

    Args:
        response: what the model wrote.
        answer: the gold: an option's letter ("B", "(b)"), or its text, which a letter precedes.
        choices: the options in order, A first; None or empty where they are only in the figure,
            which allows the letters A to J.
        truncated: whether the response ran out of tokens; then only a closed box or tag is an answer.

    Returns:
        A score of 0.0 or 1.0; extracted is the letter in upper case, None if none is stated. An
        option with the gold's very text is right as well.

    Raises:
        HarnessError: if the answer is neither a letter nor a text of the options, or if there are
            more than 26 options.
    """
    options = option_set(tuple(map(str, choices)) if choices else DRAWN)
    if len(options.texts) > len(options.letters):
        raise HarnessError(f"{len(options.texts)} choices are more than there are letters", "Give at most 26")
    gold = _gold(answer, options)
    found = find(response, options, truncated=truncated)
    if found is None:
        return NOT_FOUND
    return Verdict(float(found == gold or options.same(found, gold)), options.letters[found])


@lru_cache(maxsize=8192)
def _gold(answer: str, options: OptionSet) -> int:
    letter = _LETTER_ONLY.fullmatch(str(answer))
    index = options.letters.find(letter[1].upper()) if letter else -1
    if index < 0 and key(str(answer)) in options.keys:
        index = options.keys.index(key(str(answer)))
    if index < 0:
        raise HarnessError(
            f"the answer {answer!r} is no option of {list(options.texts)!r}",
            f"Give one of the letters A to {options.letters[-1]}",
        )
    return index


def find(response: str, options: OptionSet, *, truncated: bool = False) -> int | None:
    """The index of the option that a response states, or None."""
    part = answer_part(response, truncated=truncated)
    if len(part) < 40:
        bare = part.strip()
        if 0 < len(bare) <= 3 and bare in options.texts and not (len(bare) == 1 and bare.isupper()):
            return options.texts.index(bare)  # "(c)", where the options are "(c)", "(a)", "(b)"
        letter = _LETTER_ONLY.fullmatch(part)
        if letter:
            return options.index(letter[1].upper())
    found = _find(before_run_on(bounded(part)), options)
    return None if found == NO_OPTION else found


def _find(part: str, options: OptionSet) -> int | None:
    boxed = last_box(part)
    if boxed is not None:
        found = _whole(plain(boxed), options)
        if found is not None:
            return found
    keyed = json_answer(part) if boxed is None else None
    if keyed is not None:
        value, behind = keyed
        found = _find(behind, options) if behind else None
        if found is None and not value.startswith("["):
            found = _whole(plain(value), options)
            found = _find(value, options) if found is None else found
        return found
    if len(part) < 200:
        text = plain(part)
        found = options.named(text)
        if found is not None or _ALPHABET.fullmatch(text):
            return found
    found = _last_line(part, options)
    if found is not None:
        return found
    found, weak = _stated(part, options)
    if found is not None:
        return found
    # A box that holds no option states another value.
    return None if boxed is not None else _unphrased(part, options, weak)


def _whole(text: str, options: OptionSet) -> int | None:
    """The option that a box or a JSON value holds: all of it, or behind a label."""
    found = options.named(text)
    if found is None:
        found = _label(text, options)
    if found is None:
        found = options.begun(text)
    return None if found == NO_OPTION else found


def _last_line(text: str, options: OptionSet) -> int | None:
    """The option of a last line that is "(B)" or "B. its text", unless it ends a list of the options."""
    start = text.rfind("\n", max(0, len(text) - 150))
    if start < 0 or not has_any(text[start : start + 12], (")", ".", ":")):
        return None
    match = _LINE.fullmatch(plain(text[start:]))
    index = options.index(match[2]) if match else None
    if match is None or index is None or not (match[1] or match[3]):
        return None
    if match[3] and options.begun(match[3], loose=True) != index:
        return None
    above = _LINE.match(plain(text[max(0, start - 150) : start].rstrip().rpartition("\n")[2]))
    return index if above is None or options.index(above[2]) != index - 1 else None


def _stated(text: str, options: OptionSet) -> tuple[int | None, int | None]:
    """What the last sentence states that states an answer, and failing that, what a weak phrase does."""
    weak: int | None = None
    for start, sentence in _sentences(text):
        found = _statement(plain(sentence), options)
        if found and found[1]:
            wait = _WAIT.search(text, start)
            index = _unphrased(text[wait.end() :], options, None) if wait else found[0]
            return (NO_OPTION if index is None else index), None
        if found and weak is None:
            weak = found[0]
    return None, weak


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences with phrases, last first, at most `MOST`, and where each starts.

    Only they are ever read of a long response, which is what makes it fast. The end is searched before
    the rest, and between the last 700 and the first 300 characters nothing counts but "answer".
    """
    lowered = text.lower()
    if len(lowered) != len(text):  # a letter that is two in lower case would shift every position
        lowered = text
    tail = len(text) - TAIL if len(text) > HEAD + TAIL else 0
    border = max(tail, lowered.rfind(" ", 0, len(text) - 300)) if len(text) > 600 else 0
    chinese = [] if _is_latin(text) else [word for word in _CHINESE_KEYS if word in text]
    parts = [(border, len(text)), (tail, border)] + ([(HEAD, tail), (0, HEAD)] if tail else [])
    before, count = len(text) + 1, 0
    for low, high in parts:
        part = lowered[low:high]
        for place in _places(part, ["answer"] if low == HEAD and tail else _words(part), chinese):
            place += low
            if place >= before:
                continue
            start = _start(text, place + 1)
            yield start, text[start : _stop(text, place + 1)]
            before, count = start, count + 1
            if count == MOST:
                return


def _is_latin(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _places(part: str, words: Iterable[str], chinese: Iterable[str]) -> list[int]:
    """Where phrases with some keys may stand in a part of a text with its markup, last first."""
    places = []
    for word in words:
        place = part.find(word)
        while place >= 0:
            if not place or not part[place - 1].isalnum():
                window = part[place : place + 240]
                window = window.replace("*", "") if "*" in window else window
                for row in _ROWS[word]:
                    if (row.lead is None or _led(row.lead, part, place)) and row.pattern.match(window):
                        places.append(place)
                        break
            place = part.find(word, place + len(word))
    for word in chinese:
        place = part.find(word)
        while place >= 0:
            places.append(place)
            place = part.find(word, place + 1)
    if len(places) > 1:
        places.sort(reverse=True)
    return places


def _words(lowered: str) -> Iterable[str]:
    """The keys of phrases among the words of a text in lower case; as bytes, which is much faster."""
    words = lowered.encode("ascii", "replace").translate(_LETTERS).split()
    return map(bytes.decode, _KEYS.intersection(words))


def _led(lead: "re.Pattern[str]", text: str, place: int) -> bool:
    """Whether what has to stand before a phrase does, in a text with its markup."""
    if lead is phrases.OPENING:
        before = text[max(0, place - 8) : place].rstrip(" *_#").removesuffix("in").rstrip(" *_#")
        return not before or before[-1] in ".\n:!?;"
    before = text[max(0, place - 40) : place]
    if phrases.BE.isdisjoint(before.split()[-4:]):  # only to save time
        return False
    return lead.search(before.replace("*", "") if "*" in before else before) is not None


def _stop(text: str, place: int) -> int:
    """Where the sentence ends in which a place lies, or the next line, if what it states follows there."""
    end = _SENTENCE_BREAK.search(text, place)
    stop = end.end() if end else len(text)
    tail = text[max(place, stop - 15) : stop].rstrip(" *_`#$\n")
    if tail.endswith((":", "=")) or tail.lower().endswith((" is", "answer", "ans")):
        listed = _LISTED_LINES.match(text, stop)
        if listed:
            return listed.end()
        while stop < len(text) and text[stop] in " \n*#>`$\\[":
            stop += 1
        end = _SENTENCE_BREAK.search(text, stop)
        stop = end.end() if end else len(text)
    return min(stop, place + 800)


def _start(text: str, place: int) -> int:
    """Where the sentence begins in which a place lies; the dot of a label ends none."""
    first = max(0, place - 400)
    line = text.rfind("\n", first, place)
    start = place
    while True:
        start = max([text.rfind(mark, first, start) for mark in (". ", "! ", "? ", "。", "; ")])
        if start > 1 and text[start] == "." and text[start - 1].isupper() and not text[start - 2].isalnum():
            if not text[start + 2 : start + 3].isupper() or not text[line + 1 : start - 1].strip(" *(-"):
                continue
        return max(start, line, first - 1 if first else -1) + 1


def _statement(sentence: str, options: OptionSet) -> tuple[int, bool] | None:
    """The option that the last phrase of a plain sentence states, and whether as an answer."""
    if sentence.endswith("?"):
        return None
    if '"' in sentence or "'" in sentence:
        sentence = _QUOTED.sub(r"\1", sentence)
    sentence = _without_asides(sentence, options)
    lowered = sentence.lower()
    supposed = "answer" in lowered and phrases.SUPPOSED.match(lowered) is not None
    if supposed and lowered.count("if ") > 1:
        return None
    final = _FINAL.search(sentence) if "(" in sentence else None
    if final and not phrases.DENIED.search(lowered[: final.start()]):
        index = options.index(final[1])
        if index is not None:
            return index, not supposed
    places = [
        (match.start(), row)
        for word in _words(lowered)
        for match in re.finditer(rf"\b{word}", lowered)
        for row in _ROWS[word]
    ]
    places.sort(key=lambda one: (one[0], one[1].strong), reverse=True)
    for place, row in places[:MOST]:
        found = _phrase_states(row, place, sentence, lowered, options)
        if found is not None:
            return found[0], found[1] and not supposed
    if not lowered.isascii():
        return _chinese(sentence, options)
    return (NO_OPTION, True) if phrases.NONE_OF.search(lowered) else None


def _phrase_states(
    row: phrases.Phrase, place: int, sentence: str, lowered: str, options: OptionSet
) -> tuple[int, bool] | None:
    """What a phrase at a place states, and whether as an answer."""
    match = row.pattern.match(lowered, place)
    lead = row.lead.search(lowered[max(0, place - 40) : place]) if row.lead and match else None
    if match is None or row.lead and (lead is None or row.lead is phrases.OPENING and place > 3):
        return None
    start = place - len(lead[0]) if lead else place
    before = lowered[max(0, start - 80) : place]
    if before and (phrases.DENIED.search(before) or phrases.HELD.search(before)):
        return None
    denied = _NOT_BE.search(match[0])
    if denied:  # "cannot be determined" may be an option
        index = options.begun(sentence[match.start() + denied.start() :].lstrip())
        return None if index is None else (index, row.strong)
    found = _subject(sentence[:start], options) if row.side != "after" else None
    if row.side != "before" and (found is None or not found[1]):
        behind = _read(sentence[match.end() :], options)
        found = behind if found is None or behind and behind[1] else found
    if found is None or not row.strong and found[0] == NO_OPTION:
        return None
    return found[0], row.strong or found[1]


def _without_asides(sentence: str, options: OptionSet) -> str:
    """A sentence without what it sets an option against; no option has such a word itself."""
    if not has_any(sentence, phrases.ASIDE_KEYS) or options.has_asides:
        return sentence
    return phrases.ASIDE.sub("", sentence)


def _chinese(sentence: str, options: OptionSet) -> tuple[int, bool] | None:
    last = None
    for match in phrases.CHINESE.finditer(sentence):
        if sentence[max(0, match.start() - 1) : match.start()] not in ("不", "能"):
            if sentence[match.end() : match.end() + 1] != "不":
                last = _read(sentence[match.end() :], options) or last
    if last is None and "正确" in sentence and "不正确" not in sentence:
        index = _only(options.mentions(sentence), options)
        return None if index is None else (index, True)
    return last and (last[0], True)


def _only(mentions: list[Mention], options: OptionSet) -> int | None:
    """The one option that is mentioned; letters outweigh texts."""
    lettered = [one.option for one in mentions if one.by_letter]
    return options.unique(lettered or [one.option for one in mentions])


def _subject(text: str, options: OptionSet) -> tuple[int, bool] | None:
    """The one option that is mentioned in front of a phrase, and whether by its letter."""
    whole, text = text, _CLAUSE.split(text)[-1]
    mentions = options.mentions(text)
    found = _only(mentions, options)
    if found is not None:
        return found, any(one.by_letter for one in mentions)
    bare = _BARE_SUBJECT.search(text)
    if bare is None or mentions or in_pair(whole, len(whole) - len(text) + bare.start(1)):
        return None
    found = options.index(bare[1])
    return None if found is None else (found, False)


def _read(text: str, options: OptionSet) -> tuple[int, bool] | None:
    """What follows a phrase: an option, or `NO_OPTION` for another answer, and whether it is a letter."""
    label = _label(text, options)
    if label is not None:
        return label, True
    stripped = text.lstrip(" :=\n\"'*>").removeprefix("- ")
    for found in (options.begun(stripped), options.named(stripped)):
        if found is not None:
            return found, False
    reason = phrases.REASON.search(text)
    segment = text[: reason.start()] if reason and reason.start() > 1 else text
    mentions = [one for one in options.mentions(segment) if not phrases.REJECTED.match(text, one.end)]
    found = _only(mentions, options)
    if found is not None:
        return found, any(one.by_letter for one in mentions)
    bare = None if mentions else _BARE_END.search(segment)
    if bare and in_pair(segment, bare.start(1)):
        return NO_OPTION, False
    if bare and options.index(bare[1]) is not None:
        return options.letters.index(bare[1]) if bare[1] in options.letters else NO_OPTION, True
    if phrases.NO_ANSWER.match(text) or options.numeric and _DIGIT.search(segment[:60]):
        return NO_OPTION, False
    return None


def _label(text: str, options: OptionSet) -> int | None:
    """The option whose letter a text begins with; `NO_OPTION` for several or one that no option has."""
    if "\n" in text and _LISTED_LINES.match(text):
        return NO_OPTION
    match = _LABEL.match(text[:120])
    if match is None:
        glued = _GLUED.match(text)
        index = options.index(glued[1]) if glued else None
        return index if glued and index is not None and options.texts[index] == glued[2] else None
    letter, rest = match["letter"], text[match.end() :]
    if letter.islower():
        if not (match["open"] and match["close"]) and rest.strip(" .\n"):
            return None
    elif not match["close"] and letter in "AI":
        if not _AFTER_BARE.match(rest):
            return None
        begun = options.begun(text.lstrip())
        if begun is not None:
            return begun
    if letter == "A" and rest[:1] == ":" and not match["open"]:  # short for "Answer: ..."
        other = _LETTER_ONLY.fullmatch(rest[1:])
        if other:
            return options.index(other[1].upper())
    if _SECOND.match(rest) or in_pair(text[:120], match.start("letter")):
        return NO_OPTION
    index = options.index(letter.upper())
    if phrases.REJECTED.match(rest) and options.begun(rest.lstrip(" .:)-"), loose=True) is None:
        return None
    begun = options.begun(rest.lstrip(" .:)-")) if index is None or options.judge else None
    if begun is not None:
        return begun
    if index is None and letter.islower():
        return None
    return NO_OPTION if index is None else index


def _unphrased(part: str, options: OptionSet, weak: int | None) -> int | None:
    """The beginning of a response that states no answer, a weak phrase, its last sentence, its first one."""
    part = part.strip()
    stop = _stop(part, 0)
    opening = plain(part[: stop if stop > 6 else _stop(part, stop)][:300])
    listing = _LISTED.match(plain(part[:500])) if _may_list(part[:100]) else None
    if not listing:
        found = _beginning(opening, options)
        if found is not None:
            return found
    if weak is not None:
        return weak
    if part.endswith("?") or _may_list(part[-400:]) and _LISTED.search(plain(part[-600:])):
        return None
    end = part.rstrip(" .!\n*`$\\]})")
    start = _start(part, len(end))
    last = plain(part[max(start, len(end) - 400) :]).rstrip(" .!")
    for sentence in (last, opening) if options.numeric else (opening, last):
        if phrases.GIVEN_UP.search(sentence) or sentence is opening and listing:
            continue
        found = _concluded(sentence, options)
        if found is not None:
            return found
        if options.numeric and _DIGIT.search(last):
            return None
    return None


def _may_list(text: str) -> bool:
    return "B" in text and has_any(text, ("A)", "A.", "A:"))


def _beginning(first: str, options: OptionSet) -> int | None:
    match = _LABEL.match(first[:120])
    if match and match["letter"].isupper():
        rest = first[match.end() :]
        marked = match["close"] or not rest.strip() or rest[0] in ".:,;\n" or rest[:3] == " - "
        marked = marked or rest.startswith((" because", " since"))
        if marked:
            found = _label(first, options)
            return None if found == NO_OPTION else found
    return options.begun(first)


def _concluded(sentence: str, options: OptionSet) -> int | None:
    """The one option of a sentence: behind its last "is", or else anywhere, unless it is rejected."""
    if '"' in sentence or "'" in sentence:
        sentence = _QUOTED.sub(r"\1", sentence)
    sentence = _without_asides(sentence, options)
    mentions = [one for one in options.mentions(sentence) if not phrases.REJECTED.match(sentence, one.end)]
    start = 0
    for link in _LINK.finditer(sentence):
        start = link.end()
    if len({one.option for one in mentions}) > 1 and not any(one.by_letter for one in mentions):
        if " and " in sentence[mentions[-2].end : mentions[-1].start]:
            return None
    if start:
        tail, before = sentence[start:], sentence[:start].lower()
        if phrases.DENIED.search(before) or phrases.HELD.search(before):
            return None
        found = _label(tail, options)
        if found is None and (options.numeric or mentions):
            found = options.begun(tail.strip())
            found = options.named(tail) if found is None else found
        if found is not None:
            return None if found == NO_OPTION else found
        found = _only([one for one in mentions if one.start >= start], options)
        if found is not None:
            return found
    if not mentions:
        bare = [
            match[1]
            for match in (_BARE.finditer(sentence) if len(sentence) < 60 else ())
            if not in_pair(sentence, match.start())
            and not phrases.DENIED.search(sentence[: match.start()].lower())
        ]
        return options.index(bare[0]) if len(bare) == 1 else None
    return None if phrases.CONTRAST.search(sentence) else _only(mentions, options)


SCORER = Scorer("choice", choice, fields=("choices",), version=2)
