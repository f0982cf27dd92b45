"""The answer phrases of `choice`, as data: what states a choice, where the option stands, what voids it.

Each row has an example of the responses that need it, which `tests/scoring/test_scoring_choice.py` reads.
"""

import re
from typing import Literal, NamedTuple

Side = Literal["after", "before", "around"]


class Phrase(NamedTuple):
    """One way of stating a choice.

    Args:
        strong: whether it states an answer, as "the answer is" does; what a weak one states counts
            as much only where it is a letter.
        side: where the option stands; "around" is before, or else after.
        keys: lower-case words that the phrase turns on.
        lead: what has to stand before the key, a pattern that ends in "$"; None for anything.
        pattern: what has to stand from the key on; of a plain sentence in lower case.
        example: a response that needs the row, {} in place of the option.
    """

    strong: bool
    side: Side
    keys: tuple[str, ...]
    lead: "re.Pattern[str] | None"
    pattern: "re.Pattern[str]"
    example: str


_LINK = (
    r"(?:\b(?:is|are|was|be|becomes|seems|looks like|to be)\b(?:\s(?:to be|likely|therefore|thus|indeed))?"
    r"|[:=→|]|-\s|\n)"
)
_TO_LINK = rf"(?:[^.\n:?!]|\.(?=\d)){{0,160}}?{_LINK}"
_NOUN = (
    r"(?:option|choice|letter|label|statement|image|picture|point|number|value|pattern|shape|graph|figure|one|box"
    r"|match|fit|candidate|part|response|solution|conclusion|verdict|prediction)"
)
_DEGREE = (
    r"(?:accurate|accurately|appropriate|suitable|similar|likely|consistent|consistently|close|closely"
    r"|precise|precisely|effective|effectively|logical|plausible|probable|fitting|relevant|real|realistic"
    r"|natural|authentic|genuine|reasonable|compelling|convincing|seamless|seamlessly|cohesive|coherent"
    r"|aligned|comparable|convincingly|tightly)"
)
BE = frozenset("is are as seems appears be being looks".split())
_IS = (
    r"\b(?:(?:ha[sd] to|must|would|should|could|will) )?(?:is|are|as|seems|appears|be|being|looks)\s"
    r"(?:\w+\s){0,3}$"
)


OPENING = re.compile(r"^(?:in )?$")
"""The lead of a phrase that opens a sentence."""


def _row(strong: bool, side: Side, keys: str, lead: str | None, pattern: str, example: str) -> Phrase:
    before = OPENING if lead == "^" else re.compile(lead) if lead else None
    return Phrase(strong, side, tuple(keys.split()), before, re.compile(pattern), example)


PHRASES: tuple[Phrase, ...] = (
    _row(
        True, "after", "answer answers", None,
        rf"answers?\b(?:\s?\([^)\n]{{0,40}}\))?(?:{_TO_LINK}|\s*$)", "The answer is {}.",
    ),
    _row(
        True, "after",
        "correct right best final only most likely false incorrect corresponding missing", None,
        rf"\w+(?:(?<=most)\s\w+)?\s(?:\w+\s){{0,2}}?{_NOUN}s?\b{_TO_LINK}", "The most likely number is {}.",
    ),
    _row(
        True, "after",
        "choose chose choosing select selecting pick opt go going vote say guess conclude believe lean", None,
        r"(?:choose|chose|choosing|select|selecting|pick|opt for|going with|go with|go for|vote for|say"
        r"|guess(?: is)?|conclude|believe|lean towards?)(?:\sthat)?(?=[\s:])", "I would choose {}.",
    ),
    _row(
        False, "around", "correspond corresponds corresponding align aligns match matches", None,
        r"(?:correspond(?:s|ing)?(?: \w+)?(?: to| with)|aligns? (?:\w+ )?with|match(?:es)?)\b",
        "The reference corresponds to {}.",
    ),
    _row(
        False, "after", "therefore thus hence so overall based given considering conclusion summary",
        "^", r"(?:therefore|thus|hence|so|conclusion|overall|summary|based on|given|considering)\b",
        "Therefore, the landform in the picture is {}.",
    ),
    _row(
        True, "before", "correct right best true closest answer choice", _IS,
        r"\w+\b(?! to (?:option|choice|\(?[a-j]\b))", "{} is the correct one.",
    ),
    _row(
        False, "around", "more most best better", None,
        rf"(?:(?:more|most)\s(?:\w+ly\s)?{_DEGREE}|best|better)\b", "{} is more accurate.",
    ),
    _row(False, "before", "closer darker", _IS, r"\w+", "Point B appears closer."),
    _row(
        False, "before", "shares share fits satisfy satisfies remains remain", None, r"\w+",
        "{} shares the style.",
    ),
    _row(
        False, "before", "follow follows continue continues", None, r"\w+ the\b", "{} follows the pattern.",
    ),
)  # fmt: skip

LETTER = re.compile(
    r"[(\[<]([A-J])[)\]>]"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer|OPTION)s?\s\(?([A-J])\b(?!['’-]\w)\)?"
    r"|选项?\s?([A-J])(?![A-Za-z0-9])|(?<![A-Za-z0-9])([A-J])\s?选?项"
)
"""An option by its letter."""
DRAWN_LETTER = re.compile(
    r"\b(?i:image|picture|figure|shape|graph|diagram|pattern|panel|box|point|label(?:l?ed)?|marked)"
    r"\s(?:with\s|as\s)?\(?([A-J])\b\)?"
)
"""A thing in the figure by its letter."""
_ORDINAL = r"(?:first|second|third|fourth|fifth)"
PAIR = re.compile(
    r"(?<![A-Za-z])[(\[]?[A-J][)\]]?(?:(?:,? (?:and|or|nor|&) |, |/| ?(?:和|与|或|、) ?)"
    r"(?:(?i:option|point|box|picture|image|choice) )?[(\[]?[A-J](?![A-Za-z'’])[)\]]?)+"
    rf"|\b{_ORDINAL}(?: images?)?(?: \([A-J]\))?"
    rf"(?:(?:, (?:and |or )?| and | or | nor | to | & )(?:the )?{_ORDINAL}\b(?: images?)?(?: \([A-J]\))?)+"
)
"""Several options at once: "A and B", "neither the second nor the third image"."""
DENIED_OPTION = re.compile(
    r"(?:\b(?:not|never|neither|nor|without|unlike|than|except|instead of|eliminat\w+|exclud\w+)|n't|不是"
    r"|不选|不(?:能|应该?|可)?)"
    r"(?:\s(?:an?|the|in|at|be|that|of|equal to|option|just|only))*[\s\"'(]*$"
)

CHINESE = re.compile(
    r"(?:答案|选项|选择|正确的?(?:是|选项|答案)|结论|选|答|而是|的是)\]?"
    r"(?:应该|应当|应|选项|答案|就|有)?\s?(?:是|为|选|:)*\s?:?\s?"
)
"""What states a choice in Chinese; the option follows."""

DENIED = re.compile(
    r"(?:\b(?:not|never|no|neither|nor|less|least|cannot|unlikely|hardly|without|nothing|none)|n't)\b"
    r"[^,;.:]{0,30}$"
)
"""Before a phrase: what it states is denied."""
SUPPOSED = re.compile(
    r"^(?:\w+,?\s){0,3}?(?:if|suppose|assuming|when)\b"
    r"(?!.{0,60}\b(?:must|ha[vd]e? to|forced|choose|look|consider|examine|compare|observe))"
)
"""At the start of a sentence that only supposes."""
ASIDE = re.compile(
    r",?\s?\b(?:while|whereas|compared (?:to|with)|(?:rather|other|more|less)? ?than|instead of|unlike"
    r"|as opposed to|in contrast to|although|though|even though)\b[^,;.\n]{0,200}",
    re.IGNORECASE,
)
ASIDE_KEYS = (
    "hile ",
    "hereas",
    "ompared ",
    " than",
    "nstead of",
    "nlike",
    " opposed",
    "ontrast to",
    "though ",
)
"""What a clause sets its option against."""
CONTRAST = re.compile(
    r"(?i)\b(?:on the other hand|in contrast|by contrast|however|conversely|while|whereas|different|differs?"
    r"|not|less|too|cannot|neither|nor|fails?|lacks?|unrelated|other)\b|n't\b"
)
"""In a last sentence: it rejects rather than chooses."""
GIVEN_UP = re.compile(
    r"(?i)\b(?:sorry|unable|impossible|unclear|insufficient|not enough|not possible|difficult to"
    r"|(?:can(?:not|'t| not)|could(?: not|n't)) (?:\w+ )?"
    r"(?:see|view|tell|say|determine|answer|identify|provide|select|choose|conclusively|definitively|confidently"
    r"|be (?:determined|answered))|without (?:\w+ )?(?:more|additional|further)|neither)\b|无法|不能确定"
)
REASON = re.compile(
    r",?\s(?:because|since|as|which|due to|based on|given|so|but not|and not|not|where|for|that is|meaning)\b"
)
"""Ends what a phrase states; a reason follows."""

REJECTED = re.compile(
    r"\)?(?:\s(?!because\b|since\b|as\b|for\b|so\b|which\b|but\b|and\b)[\w(),.°-]+){0,6}?\s(?:also\s)?"
    r"(?:(?:does|do|did|is|are|was|can|could|would|should|has|have|will|may)(?:\s?not|n't)\b|cannot\b|can't\b"
    r"|(?:is|are|can be|must be)\s(?:also\s)?(?:in(?:correct|accurate|valid)|wrong|false|eliminated|excluded"
    r"|ruled out|impossible)\b|fails\b)"
)
"""Behind an option: it is rejected."""
NONE_OF = re.compile(r"\bnone of (?:the|these|them|those)\b(?! other)|\bneither\b.{1,80}\bnor\b")
"""Of a sentence that states nothing else: no option is right."""
