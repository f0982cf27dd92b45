r"""Multiple choice: which option a response states.

    choice("... Therefore, the answer is (B) 5.", answer="B", choices=["3", "5"]) -> Verdict(1.0, "B")

A box or JSON decides; else the whole response; else its last sentence with an answer phrase (`phrases`); else
its beginning and its last sentence. Where the last statement names none of the options ("the answer is 16" of
3 and 5), no earlier one is taken in its place. A letter outweighs the text beside it.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import phrases
from dcsft_harness.scoring.normalize import (
    REFUSAL,
    answer_part,
    bounded,
    first_turn,
    json_answer,
    last,
    last_box,
    plain,
)
from dcsft_harness.scoring.options import DRAWN, Mention, OptionSet, key, level, option_set, with_figures
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict

_LETTER_AND_TEXT = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]\s*(\S.*)", re.DOTALL)
"""A gold that names an option twice: "B. goose"."""
_LETTER_ONLY = re.compile(r"[\s(\[\"'*$`#]*([A-Za-z])[\s)\]\"'*$`.:,!]*")
_LABEL = re.compile(
    r"[\s\"'“:=→>✓✔✅👉|,-]{0,12}"
    r"(?:(?i:actually|(?:most )?likely|clearly|definitely|for sure|probably|only|la|not [A-J],? but) )?"
    r"(?:(?i:the |a )?"
    r"(?i:option|choice|letter|letra|answer|image|picture|point|box|选项|옵션)s?:?\s?)?"
    r"(?P<open>[(\[<]{0,2})(?P<letter>[A-Za-z])(?P<close>[)\]>]{0,2})(?![^\W\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]|['’+*/^°√<{]|-\w)"
)
_SECOND = re.compile(
    r"\s?(?:and|or|[,&/和与及或])\s?\(?(?:(?!I [a-z])[A-J](?a:(?![\w']))|[b-j](?:[,.]|$))"
    r"|(?:(?! (?:because|since|as|than|not|while|whereas|but|which)\b)[^.;:\n]){0,60}?"
    r"(?: (?:or (?:\w+ )?\([A-J]\)|(?:and|or) [A-J] \()|, (?:and )?\([A-J]\)(?! (?:and|or)\b))"
    r"(?! (?:is|are|does|do|has|have|shows?)\b)"
)
_GLUED = re.compile(r"[\s:*]*([A-J])([\d.]*\d)[.)]*\s*$")
_SEVERAL = re.compile(r"\W*[A-J]{2,5}\W*")
_AFTER_BARE = re.compile(
    r"\s?(?:$|[.,:;!?)(\n=≈]|-\s|[^\x00-\x7f]|(?:because|since|as|which|for|with|based|due|given|so|not|and|or|fits?"
    r"|satisf\w+|match\w*|meets|works|remains|instead|rather|in|on|here|the|by|\d+)\b)"
)
_QUOTED = re.compile(r"[\"']([A-Ja-j][.,]?)(?:[\"']|$)")
_CLAUSE = re.compile(r",? (?:so|but|and|thus|while|whereas|meaning|suggesting|indicating|that)\b")
_BARE_SUBJECT = re.compile(
    r"(?:^\s?|[,:;] |\b(?:think|believe|that|[Ss]o) (?!I\b))(?:[Oo]nly )?([A-J])(?: must| should| has to)? $"
)
_FINAL = re.compile(
    r"(?:\b(?:is|are|be)|[:=])\s?(?:option )?\(([A-J])\)(?: [\w ]{1,30})?"
    r"(?:[.!]?$|, (?!(?:and|or)\b|.{0,20}\([A-J]\)))"
)
_LETTERED_TEXT = re.compile(r"\b(?:is|are|be):? \(([A-J])\) ")
_LINK = re.compile(
    r"\b(?:is|are|be|was|equals|(?<!next )to|so|hence|thus|therefore|es|est|ist|lautet|è|é)\b|[Ii]t's\b"
    r"|[=≈是为は은는]|:(?!\d)(?<!\b[A-J]:)(?<!\b[A-J]\):)|[,;](?= [A-J]$)(?<!\b[A-J],)"
)
_REMARK = re.compile(r",? (?:which (?:is|are)|when|whereas|while|i\.e\.|(?:up|down) from)\b")
_WAIT = re.compile(r"(?i)[.!?\n]\s?(?:wait|hold on)\b")
_LISTED = re.compile(r"(?<![A-Za-z0-9])\(?A[).:]\s?.{1,300}?(?<![A-Za-z0-9])\(?B[).:]", re.DOTALL)
_LISTING = re.compile(r"(?i:\w*(?:options|choices)( are)?:)")
_MAY_LIST = re.compile(r"A\*{0,2}[).:]")
_LINE = re.compile(r"[-\s]*([(\[])?([A-J])[)\].:](?: (.{1,100}))?")
_LINE_MARKS = frozenset(").:]")
_LETTERED = re.compile(r"(?m)^(?:\[[xX]\]|\W)*(?:Option )?\(?([A-J])\b(?! [a-z])(?:(?!\W[A-J]\b).)*")
_ITEM = re.compile(r"\W{0,3}[A-J][).:] ?[^:\n]{0,40}:")
"""At the start of an entry in a list, as of ratings: it compares, but states no answer."""
_ITEMS = re.compile(r"(?:([-*•])|1[.)]) [^\n]{1,300}\n+(?(1)\1|2[.)]) ")
"""A list at the start: none of its entries alone is the answer."""
_ONE_SENTENCE = re.compile(r"(?!.*\b(?:choose|select|pick|[Pp]lease)\b)[^\n=.!?:]{1,300}\.[\s*]*")
_BRACKETED = re.compile(r" \([^()]{3,80}\)[.!]?\s*")
_ALONE = re.compile(
    r":(?:(?<= is:| be:|hat:)\s?\n\s{0,4}\**\(?(?=[A-J][).])|\s{1,3}\**\(?(?=[A-J]\W{0,3}\n\n))"
    r"([A-J])[^\n]{0,80}\n(?!\s*\**(?:\(?[A-J][).]|Please|Which))"
)
"""An option alone on a line, with a reason behind it; neither a list nor a question follows."""
_MARKS = "✅✓✔☑❌✗✘"
_TICK = re.compile(r"[✅✓✔☑]|\[[xX]\]")
_CROSS = re.compile(r"[❌✗✘☐]|\[ \]")
_DIGIT = re.compile(r"\d")
_ALPHABET = re.compile(r"\W*a\W+b\W+c\W*(?:d\W*)?", re.IGNORECASE)
_OPEN_END = re.compile(r"(?:[:=]|\bis|\banswer)$", re.IGNORECASE)
_SENTENCE_BREAK = re.compile(r"[.!?;\n。！？；](?:(?<=[\n。！？；])|(?=\s|[\"')*]{1,3}\s))")
_NO_TEXT = re.compile(r"[ \n*#>`$\\\[-]*")
_LISTED_LINES = re.compile(
    r"(?::{0}A{1}.{{40,400}}|{0}A{1}.{{0,400}})\n{0}B{1}".format(
        r"[\s*>(-]{0,20}(?:Option )?", r"\*{0,2}[).:]"
    )
)
NO_OPTION = -1
"""In the place of an option's index: an answer is stated, and it is none of the options."""
HEAD, TAIL = 250, 500
"""Characters at the start and at the end that are searched for all phrases."""

_ROWS: dict[str, list[phrases.Phrase]] = {}
for _phrase in phrases.PHRASES:
    for _word in _phrase.keys:
        for _form in {_word, _word.title(), _word.upper()}:
            _ROWS.setdefault(_form, []).append(_phrase)
_LETTERS = bytes(code if chr(code).isalpha() and code < 128 else 32 for code in range(256))
_BE = frozenset("is are appears seems be".split())
_KEYS = frozenset(map(str.encode, _ROWS))


def choice(
    response: str, *, answer: str, choices: Sequence[str | int | float] | None = None, truncated: bool = False
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
        raise HarnessError(f"{len(options.texts)} choices are more than there are letters", "Use at most 26")
    gold = _gold(answer, options)
    found = find(response, options, truncated=truncated)
    if found is None:
        return NOT_FOUND
    return Verdict(float(found == gold or options.same(found, gold)), options.letters[found])


@lru_cache(maxsize=8192)
def _gold(answer: str, options: OptionSet) -> int:
    letter = _LETTER_ONLY.fullmatch(str(answer))
    index = options.letters.find(letter[1].upper()) if letter else -1
    if index < 0 and (named := options.of_text(plain(level(str(answer))))) is not None:
        index = named
    if index < 0 and (both := _LETTER_AND_TEXT.fullmatch(str(answer))):
        before = options.letters.find(both[1].upper())
        index = before if before >= 0 and options.keys[before] == key(plain(level(both[2]))) else -1
    if index < 0:
        raise HarnessError(
            f"the answer {answer!r} is not one of the options {list(options.texts)!r}",
            f"Use one of the letters A to {options.letters[-1]}",
        )
    return index


def find(response: str, options: OptionSet, *, truncated: bool) -> int | None:
    """The index of the option that a response states, or None."""
    part = answer_part(response, truncated=truncated)
    letter = _LETTER_ONLY.fullmatch(part) if len(part) < 40 else None
    if letter:
        return options.index(letter[1].upper())
    part = level(bounded(part))
    for text in options.dotted:
        part = part.replace(text, text.replace(". ", "."))
    before, found = first_turn(part), None
    if before is not None:
        found = _find(before, options)
    if found is None or found == NO_OPTION:
        found = _find(part, options)
    return None if found == NO_OPTION else found


def _find(part: str, options: OptionSet) -> int | None:
    boxed = last_box(part)
    marked = json_answer(part) if boxed is None else boxed
    stated = _read(plain(marked), options) if marked is not None else None
    if stated and stated[0] != NO_OPTION:
        return stated[0]
    if boxed is None and marked is not None:
        return None
    found = options.named(plain(part)) if len(part) < 200 else None
    found = _last_line(part, options) if found is None else found
    if found is not None:
        return found
    if len(part) < 60 and _ALPHABET.fullmatch(part):
        return _ticked(part, options)
    weak = None
    for end, sentence in _sentences(part):
        stated = _statement(plain(sentence), options)
        if stated and stated[1]:
            wait = _WAIT.search(part, max(0, end - 3))
            return _unphrased(part[wait.end() :], options, None) if wait else stated[0]
        weak = stated[0] if stated and weak is None else weak
    if boxed is not None:  # it holds no option, but another value
        return None
    ending = part[-HEAD - TAIL :]
    may_tick = "[x]" in ending or "[X]" in ending or any([mark in ending for mark in _MARKS])
    found = _ticked(ending, options) if may_tick else None
    return _unphrased(part, options, weak) if found is None else found


def _ticked(part: str, options: OptionSet) -> int | None:
    """The option of the one line that is ticked, or the one that is not crossed out."""
    lines = list(_LETTERED.finditer(part))
    marked = [line[1] for line in lines if _TICK.search(line[0])]
    if not marked and len(lines) > 1:
        marked = [line[1] for line in lines if not _CROSS.search(line[0])]
    return options.index(marked[0]) if len(marked) == 1 else None


def _last_line(part: str, options: OptionSet) -> int | None:
    """The option of a last line that is "B" or "B. its text", unless it ends a list of the options."""
    above, _, line = part[-250:].rstrip().rpartition("\n")
    above = above.rstrip()
    if not above:
        return None
    letter = _LETTER_ONLY.fullmatch(line) if len(line) < 20 else None
    if letter and letter[1].isupper():
        may_go_on = len(line) == 1 and len(part) >= HEAD and not part.endswith(f".\n\n{line}")
        is_cut_off = line.count("(") != line.count(")") or may_go_on
        is_listed = _LETTER_ONLY.fullmatch(above.rpartition("\n")[2])
        return None if is_cut_off or is_listed else options.index(letter[1])
    match = _LINE.fullmatch(plain(line)) if _LINE_MARKS.intersection(line[:12]) else None
    if match is None or not (match[1] or match[3]):
        return None
    before = _LINE.match(plain(above.rpartition("\n")[2]))
    # "- A: ten arms", "- B: light", "- D: a snout" gives reasons for another answer.
    return None if before and before[2] != match[2] else options.index(match[2])


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """What is searched for phrases: the end, the last sentence before it with "answer", the start."""
    tail = len(text) - TAIL
    if tail <= 0:
        yield 0, len(text)
        return
    tail = _start(text, tail)
    yield tail, len(text)
    middle = text.find("nswer", HEAD, tail)
    if middle > 0:
        middle = text.rfind("nswer", middle, tail)  # slower, and seldom needed
        yield _start(text, middle), _end(text, middle)
    yield 0, _end(text, min(HEAD, tail))


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences with phrases, with their markup, last first, and where each ends."""
    start = len(text) + 1
    for low, high in _windows(text):
        part = text[low:high]
        places = {low + place for place, *_ in _phrases(part, is_first=True)}
        if not part.isascii() and any([word in part for word in phrases.CHINESE_WORDS]):
            places.update(low + match.start() for match in phrases.CHINESE.finditer(part))
        for place in sorted(places, reverse=True) if places else ():
            if place < start:
                start, end = _start(text, place), _end(text, place)
                if _OPEN_END.search(text[max(place, end - 15) : end].rstrip(" *_`#$\n")):
                    listed = _LISTED_LINES.match(text, end)  # the options, or what is stated, follow
                    behind = _NO_TEXT.match(text, end)
                    end = listed.end() if listed else _end(text, behind.end() if behind else end)
                yield end, text[start:end]


def _start(text: str, place: int) -> int:
    """Where the sentence or line begins in which a place lies, at most 400 characters before it."""
    start = place - 400 if place > 400 else 0
    for mark in ("\n", ". ", "! ", "? ", "; ", "。"):
        found = text.rfind(mark, start, place) + 1
        start = found if found > start else start
    return start


def _end(text: str, place: int) -> int:
    """Where the sentence or line ends in which a place lies."""
    match = _SENTENCE_BREAK.search(text, place)
    return match.end() if match else len(text)


def _phrases(text: str, *, is_first: bool = False) -> Iterator[tuple[int, phrases.Phrase, "re.Match[str]"]]:
    """Where phrases occur in a text, with or without its markup; all of a place, or the first."""
    words = _KEYS.intersection(text.encode("ascii", "replace").translate(_LETTERS).split())
    if not words:
        return
    lowered = _lowered(text)
    for word in map(bytes.decode, words):
        rows, place = _ROWS[word], text.find(word)
        while place >= 0:
            if not text[place - 1 : place].isalnum():
                is_behind_be = None
                for row in rows:
                    match = row.pattern.match(lowered, place, place + 240)
                    if match and row.is_behind_be:
                        is_behind_be = _be(text, place) is not None if is_behind_be is None else is_behind_be
                        match = match if is_behind_be else None
                    if match:
                        yield place, row, match
                        if is_first:
                            break
            place = text.find(word, place + 1)


def _lowered(text: str) -> str:
    """A text in lower case, or as it is where that would shift positions, as a letter becomes two."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else text


def _be(text: str, place: int) -> "re.Match[str] | None":
    """The form of "to be" behind which a place stands."""
    before = text[max(0, place - 40) : place].lower()
    # The words first, which is faster.
    return None if _BE.isdisjoint(before.rsplit(None, 4)[-4:]) else phrases.BE.search(before.replace("*", ""))


def _statement(sentence: str, options: OptionSet) -> tuple[int, bool] | None:
    """The option that the last phrase of a plain sentence states, and whether as an answer."""
    if sentence.endswith("?") or " if " in sentence and phrases.UNSEEN.search(sentence):
        return None
    if sentence.startswith(phrases.OF_OTHERS) and not phrases.CONCLUDES.search(sentence):
        return None
    if '"' in sentence or "'" in sentence:
        sentence = _QUOTED.sub(r"\1", sentence)
    sentence = _without_asides(sentence, options)
    lowered = _lowered(sentence)
    if phrases.HYPOTHETICAL.search(lowered):
        sentence = sentence.rpartition(", but ")[2]
        lowered = _lowered(sentence)
        if phrases.HYPOTHETICAL.search(lowered):
            return None
    if "answer" in lowered and phrases.SUPPOSED.match(lowered):
        return None
    final = _FINAL.search(sentence) if "(" in sentence else None
    if final and (index := options.index(final[1])) is not None:
        return index, True
    found_phrases = list(_phrases(sentence))
    found_phrases.sort(key=lambda one: (one[0], one[1].strong), reverse=True)
    for place, row, match in found_phrases[:12]:
        found = _phrase_states(row, place, match, sentence, lowered, options)
        if found is not None:
            return found
    if not lowered.isascii():
        return _chinese(sentence, options)
    return (NO_OPTION, True) if phrases.NONE_OF.search(lowered) else None


def _phrase_states(
    row: phrases.Phrase, place: int, match: "re.Match[str]", sentence: str, lowered: str, options: OptionSet
) -> tuple[int, bool] | None:
    """What a phrase at a place states, and whether as an answer."""
    be = _be(lowered, place) if row.side != "after" else None
    start = place - len(be[0]) if be else place
    if phrases.DENIED.search(lowered, max(0, start - 80), place):
        return None
    found = _subject(sentence[:start], options) if row.side != "after" else None
    if row.side != "before" and (found is None or not found[1]):
        is_compared = found is not None and sentence.startswith((" to ", " with "), match.end())
        behind = None if is_compared else _read(sentence[match.end() :], options)
        found = behind if found is None or behind and behind[1] else found
    if found is None or not row.strong and (found[0] == NO_OPTION or _ITEM.match(sentence)):
        return None
    return found[0], row.strong or found[1]


def _without_asides(sentence: str, options: OptionSet) -> str:
    """A sentence without what it sets an option against; no option has such a word itself."""
    if not phrases.MAY_BE_ASIDE.search(sentence) or options.has_asides:
        return sentence
    if phrases.CLOSER.search(sentence) and any(["closer" in text for text in options.texts]):
        return sentence
    return phrases.ASIDE.sub("", sentence)


def _chinese(sentence: str, options: OptionSet) -> tuple[int, bool] | None:
    """The option behind the last Chinese phrase that has one; of many phrases the last twelve are read."""
    for match in list(phrases.CHINESE.finditer(sentence))[:-13:-1]:
        is_denied = sentence[: match.start()].endswith(("不", "能")) or sentence.startswith("不", match.end())
        if not is_denied and (found := _read(sentence[match.end() :], options)):
            return found[0], True
    return None


def _only(mentions: list[Mention], options: OptionSet) -> int | None:
    """The one option that is mentioned; letters outweigh texts."""
    lettered = [one.option for one in mentions if one.by_letter]
    return options.unique(lettered or [one.option for one in mentions])


def _subject(text: str, options: OptionSet) -> tuple[int, bool] | None:
    """The one option that is mentioned in front of a phrase, and whether by its letter."""
    whole, text = text, _CLAUSE.split(text)[-1]
    mentions = [one for one in options.mentions(whole) if one.start >= len(whole) - len(text)]
    found = _only(mentions, options)
    if found is not None:
        return found, any(one.by_letter for one in mentions)
    bare = _BARE_SUBJECT.search(text) if not mentions else None
    is_one = bare and not any(match.end() >= len(whole.rstrip()) for match in phrases.PAIR.finditer(whole))
    index = options.index(bare[1]) if bare and is_one else None
    return None if index is None else (index, True)


def _read(text: str, options: OptionSet) -> tuple[int, bool] | None:
    """What follows a phrase: an option, or `NO_OPTION` for another answer, and whether it is a letter."""
    text = text.strip()
    if not text:
        return None
    is_worded = options.dotted or "I" in text[:12] and options.roman  # its beginning may look like a label
    label = _label(text, options)
    found = options.named(text.lstrip(" :=\n\"'*>")) if is_worded or label is None else None
    if found is not None:
        return found, False
    if label is not None:
        return label, True
    reason = phrases.REASON.search(text)
    segment = text[: reason.start()] if reason and reason.start() > 1 else text
    mentions = [one for one in options.mentions(segment) if not phrases.REJECTED.match(text, one.end)]
    found, lettered = _only(mentions, options), any(one.by_letter for one in mentions)
    if found is None and options.numeric and not lettered and " (" in text:  # "30 (10 girls and 20 boys)"
        found = options.named(text.partition(" (")[0].lstrip(" :=\n\"'*>"))
    if found is None and _SEVERAL.fullmatch(text):
        return NO_OPTION, True
    return None if found is None else (found, lettered)


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
        is_alone = match["close"] or rest[:2] in (". ", ": ") or not rest.strip(" .\n'\"`")
        if not is_alone and not phrases.REASON_CLAUSE.match(rest):
            return None
    elif not match["close"] and letter in "AI":
        if not _AFTER_BARE.match(rest):
            return None
    if _SECOND.match(rest if "(" in rest[:80] else rest[:12]):
        return NO_OPTION
    index = options.index(letter.upper())
    if phrases.REJECTED.match(rest) and options.begun(rest.lstrip(" .:)-")) is None:
        return None
    begun = options.begun(rest.lstrip(" .:)-")) if index is None or options.judge else None
    if begun is not None:
        return begun
    return NO_OPTION if index is None else index


def _unphrased(part: str, options: OptionSet, weak: int | None) -> int | None:
    """The beginning of a response that states no answer, a weak phrase, its first and last sentence."""
    part = part.strip()
    is_items, part = _ITEMS.match(part) is not None, part.removeprefix("- ")
    ending = part[-200:]
    last_line = ending.rpartition("\n")[2]
    if any([word in last_line for word in phrases.COURTEOUS]):
        part = part.rpartition("\n")[0].rstrip() or part
    if not part:
        return None
    is_entries = len(part) < 600 and "\n" in part and all(map(_LINE.fullmatch, re.split(r"\n+", part)))
    found, opening, is_long = None, "", len(part) >= HEAD + TAIL
    start = part[:HEAD].replace("*", "").lstrip("#$_`> ")
    if not is_long or _LABEL.match(start) or options.begun(start) is not None:
        stop = _end(part, 0)
        opening = plain(part[: stop if stop > 6 else _end(part, stop)][:HEAD])
        is_list = is_entries or _LISTED_LINES.match(part) or _LISTING.match(opening)
        found = None if is_list or is_items else _beginning(opening, options)
    may_be_none = any([word in ending for word in phrases.NO_MATCH_WORDS])
    is_none = is_entries or may_be_none and phrases.NO_MATCH.search(ending) is not None
    found = weak if found is None and not is_none else found
    if found is None and (alone := _ALONE.search(part[-TAIL:])):
        found = options.index(alone[1])
    if found is not None:
        return found
    if options.undecided is not None and phrases.UNDECIDED.search(part[-HEAD:].lower()):
        return options.undecided
    if is_none or part[-1] == "?":
        return None
    is_listed = _MAY_LIST.search(part[-400:]) and _LISTED.search(plain(part[-600:])) is not None
    if is_listed:
        _, blank, behind = part.rpartition("\n\n")
        if not blank or _LABEL.match(plain(behind)) or not _ONE_SENTENCE.fullmatch(behind):
            return None
    opening = "" if is_listed or is_items else opening
    end = part.rstrip(" .!。\n*`$\\]})")
    last = plain(part[_start(part, len(end) - 2 * (end[-3:-1] == "; ")) :]).rstrip(" .!")
    opening = "" if is_long or opening.startswith("If ") and REFUSAL.search(last) else opening
    for sentence in filter(None, (last, opening) if options.numeric else (opening, last)):
        if "n't " in sentence or "not " in sentence or "NOT " in sentence:
            sentence = phrases.THAT_IS_NOT.sub("It", sentence)
        found = _concluded(sentence, options)
        if found is not None and not REFUSAL.search(sentence):
            return found
        if opening and options.numeric and (_DIGIT.search(last) or REFUSAL.search(last)):
            return None
    return None


def _beginning(first: str, options: OptionSet) -> int | None:
    match = _LABEL.match(first[:120])
    if match:
        rest = first[match.end() :]
        marked = match["close"] or not rest.strip() or rest[0] in ".:,;!\n" or rest[:3] == " - "
        marked = marked or _BRACKETED.fullmatch(rest)
        if _SECOND.match(rest[:12]) and phrases.PAIR.fullmatch(first.split(" are ")[0].strip(" .")):
            return NO_OPTION
        if marked or phrases.REASON_CLAUSE.match(rest):
            found = _label(first, options)
            return None if found == NO_OPTION else found
    return options.begun(first)


def _concluded(sentence: str, options: OptionSet) -> int | None:
    """The one option of a sentence: behind its last "is", or else anywhere, unless it is rejected."""
    found = options.named(sentence) if options.judge else None
    if found is not None:
        return found
    sentence = with_figures(sentence) if options.numeric else sentence
    if '"' in sentence or "'" in sentence:
        sentence = _QUOTED.sub(r"\1", sentence)
    sentence = _without_asides(sentence, options)
    for lettered in _LETTERED_TEXT.finditer(sentence) if "(" in sentence else ():
        if options.begun(sentence[lettered.end() :]) == (index := options.index(lettered[1])):
            return index
    may_reason = "because" in sentence or "since" in sentence or ", as" in sentence or ": " in sentence
    reason = phrases.REASON_CLAUSE.search(sentence) if may_reason else None
    if (found := options.equation(sentence)) is not None:
        return found
    head = _REMARK.split(sentence, maxsplit=1)[0] if options.numeric else sentence
    if head != sentence:  # a value, before more of it: "is 30, which is 10 more than 20"
        link = last(_LINK, head)
        found = options.named(head[link.end() :]) if link else _only(options.mentions(head), options)
        if found is not None:
            return found
    before, contrast, behind = sentence.rpartition(", but ")
    contrast = contrast and (before if " also " in behind else behind)
    for clause in (contrast, sentence[: reason.start()] if reason else ""):
        found = _concluded(clause, options) if clause else None
        if found is not None:
            return found
    mentions = [] if options.numeric else options.mentions(sentence)  # a value is read faster than searched
    link = last(_LINK, sentence)
    may_state = link and (mentions or options.numeric or _LABEL.match(sentence, link.end()))
    if link and may_state and not phrases.DENIED.search(sentence[: link.end()].lower()):
        stated = _read(sentence[link.end() :], options)
        if stated:
            return None if stated[0] == NO_OPTION else stated[0]
    mentions = options.mentions(sentence) if options.numeric else mentions
    mentions = [one for one in mentions if not phrases.REJECTED.match(sentence, one.end)]
    if mentions and phrases.CONTRAST.search(sentence):
        rest = sentence
        for one in reversed(mentions):  # "the sales did not change" as an option
            rest = rest[: one.start] + rest[one.end :]
        mentions = [] if _LINE.match(sentence) or phrases.CONTRAST.search(rest) else mentions
    return _only(mentions, options)


SCORER = Scorer("choice", choice, fields=("choices",), version=18)
