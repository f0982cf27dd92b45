r"""What a plain text only asks, or weighs before it turns to something else: it states no choice.

    settled("Isn't the answer B?")                          -> ""
    settled("So is the answer B? Yes.")                     -> "the answer is B. Yes."
    settled("It could be A, but more likely it is C.")      -> "It is C."

Of questions those that put the verb first ("is it B?") or end in 吗; "What is the answer? B" and "the
answer is B, right?" stay as they are.
"""

import re

_LETTER = r"\(?[A-J]\)?(?![A-Za-z0-9'’])"
_NOUN = r"(?:answer|choice|option|letter)"
_INVERTED = re.compile(
    r"(?:^\s*|[,:;]\s)(?:(?:so|or|then|wait|hm+|but|and|well|now|ok(?:ay)?|therefore|thus|hence)\b,?\s)*"
    r"(?:is|are|was|could|can|might|may|must|should|would)(?:n't|'t|\snot)?\s"
    rf"(?:(?P<subject>(?:(?:the|this|that|my|your)\s)?(?:[a-z]+\s){{0,2}}?{_NOUN}(?:\s{_LETTER}(?=\s))?)\s"
    r"(?:be\s)?(?P<what>\S[^?]*)"
    r"|(?P<it>it|this|that)\s(?:be\s)?(?P<which>\S[^?]{0,60})"
    rf"|(?P<letter>{_LETTER})\s(?:be\s)?(?P<right>(?:the\s)?(?:correct|right)(?:\s{_NOUN})?))$",
    re.IGNORECASE,
)
_CHINESE = re.compile(r"(?:是不是|是否|难道)(?P<which>[^?]*)$|(?P<what>[^?,]*)吗\s?$")
_CONFIRMED = re.compile(
    r"[\s\"')]*(?:yes|yeah|yep|indeed|correct|right|exactly)\b|[\s\"')]*(?:是的|没错|对(?=[,.!\s]|$))",
    re.IGNORECASE,
)
_STARTS = re.compile(r"[.!?\n]\s*(?=\S)")
_LONGEST = 200
"""Characters of a question that are read."""

_ENDS = re.compile(r"[!?\n]|\.(?!\d)|[,;]\s(?=(?:but|however|yet|so)\b)")
_SUPPOSES = re.compile(
    r"\b[Ii]f\s(?!(?:(?:I|we|you)\s)?(?:had|have|were|was|am|are)?\s?(?:to|asked|forced|pressed)\b)"
    r"[^,.;]{0,80}?\b(?:were|was|had|weren't|wasn't|hadn't|did|didn't)\b"
    r"|\bHad\s[^,.;]{1,80}\b(?:been|had)\b"
)
_SUPPOSING = ("If ", " if ", "Had ")
_OF_ANSWERS = ("answer", "hoice", "ption", "correct", "right")
_ANSWERS = re.compile(r"\b(?:answer|choice|(?:[Oo]ption\s)?\(?[A-J]\)?)\s(?:[a-z]+\s)?would\b")
"""Only what it says of the answer is unreal: "if the clams died, the squid would be affected" answers."""
_CONCLUDES = re.compile(
    r"\s*(?:therefore|thus|hence|so|in conclusion|to conclude|overall|even if)\b", re.IGNORECASE
)
_REPEATS = re.compile(r",\s(?:so|hence|and so)\s|\(?[A-J][).:]\s[A-Za-z]")
"""What may be unreal because the question is: "so if it were red, ...", "it would be (B) the grass"."""

_PERHAPS = r"(?:(?:could|might|may|can)\s(?:also\s)?be|(?:is|'s)\s(?:perhaps|possibly|probably|maybe))\s"
_LIKELY = r"(?:more|most)\s(?:likely|probabl[ey]|plausibl[ey])"
_BUT = r"[^.!?\n]{1,80}?[,;]?\s(?:but|though|although|however),?\s"
_RATHER = re.compile(
    rf"\b{_PERHAPS}{_BUT}(?:(?:it|the answer)(?:'s|\sis)\s)?{_LIKELY},?\s(?:to\sbe\s)?"
    r"(?:(?:it|the answer)(?:'s|\sis)\s)?"
    rf"|\b{_PERHAPS}{_BUT}(?P<other>[^.!?\n,]{{1,80}}?)\s(?:is|seems|looks)\s(?:much\s|far\s|even\s)?{_LIKELY}"
    r"|(?:可能|也许|或许)是[^.!?\n]{1,40}?[,;]\s?(?:但|但是|不过|然而)?更(?:有)?可能(?:的)?是",
    re.IGNORECASE,
)


def settled(text: str) -> str:
    """A plain text without what it only asks, and without what it weighs and then finds less likely."""
    if (
        "would" in text
        and any(word in text for word in _SUPPOSING)
        and any(word in text for word in _OF_ANSWERS)
    ):
        text = _without_unreal(text)
    if "?" in text:
        text = _answered(text)
    if " but " in text or "ough" in text or "owever" in text or "可能" in text:
        text = _RATHER.sub(_turned, text).strip()
    return text


def _without_unreal(text: str) -> str:
    """The text without the sentences that say what the answer would be if something were not as it is."""
    parts, done, place = [], 0, text.find("would")
    while place >= 0:
        start, end = done, len(text)
        for match in _STARTS.finditer(text, max(done, place - _LONGEST), place):
            start = match.end()
        ends = _ENDS.search(text, place)
        end = ends.end() if ends else end
        sentence = text[start:end]
        unreal = _SUPPOSES.search(sentence) and _ANSWERS.search(sentence)
        if unreal and not (_CONCLUDES.match(sentence) or _REPEATS.search(sentence)):
            parts.append(text[done:start])
            done = end
        place = text.find("would", max(end, place + 1))
    return "".join([*parts, text[done:]]).strip() if parts else text


def _turned(match: "re.Match[str]") -> str:
    if match[0][0] > "z":
        return "是"
    return f"is {match['other'] or ''}"


def _answered(text: str) -> str:
    """The text with its questions as statements where a yes follows them, and else without them."""
    parts, done, end = [], 0, text.find("?")
    while end >= 0:
        start = max(done, end - _LONGEST)
        for match in _STARTS.finditer(text, start, end):
            start = match.end()
        asked = text[start:end]
        found = _INVERTED.search(asked) or _CHINESE.search(asked)
        if found:
            parts.append(text[done : start + found.start()])
            parts.append(f"{_statement(found)}." if _CONFIRMED.match(text, end + 1) else "")
            done = end + 1
        end = text.find("?", end + 1)
    return "".join([*parts, text[done:]]).strip() if parts else text


def _statement(asked: "re.Match[str]") -> str:
    if asked.re is _CHINESE:
        return asked["what"] or asked["which"]
    subject = asked["subject"] or asked["it"] or asked["letter"]
    return f" {subject} is {asked['what'] or asked['which'] or asked['right']}"
