"""The answer phrases of `choice`, as data: what states a choice, where the option stands, what voids it.

Each row has an example of the responses that need it, which `tests/scoring/test_scoring_choice.py` reads.
"""

import re
from typing import Literal, NamedTuple

from dcsft_harness.scoring.normalize import REFUSAL

Side = Literal["after", "before", "around"]


class Phrase(NamedTuple):
    """One way of stating a choice.

    Args:
        strong: whether it states an answer; what a weak one states counts as much where it is a letter.
        side: where the option stands; "around" is before, or else after.
        keys: words that the phrase turns on; capitalized where it opens a sentence, else in any case.
        is_behind_be: whether a form of "to be" must precede the key.
        pattern: what has to stand from the key on; of a plain sentence in lower case.
        example: a response that needs the row, {} in place of the option.
    """

    strong: bool
    side: Side
    keys: tuple[str, ...]
    is_behind_be: bool
    pattern: "re.Pattern[str]"
    example: str


_OPENING = r"(?:^|(?<=[\n.:!?;*#]\s)|(?<=[\n*#]))"
BE = re.compile(r"\b(?:is|are|appears|seems|be)\s(?:\w+\s){0,3}$")
"""A form of "to be" in front of a phrase."""
_TO_LINK = (
    r"(?:[^.\n:?!]|\.(?=\d)){0,160}?"
    r"(?:\b(?:isn't [^.\n,]{1,40},? but\b|(?:is|are|(?<!not )(?<!n't )be|looks like)\b)|[:=\]]|[-–]>?\s|\n)"
)


def _row(strong: bool, side: Side, keys: str, is_behind_be: bool, pattern: str, example: str) -> Phrase:
    return Phrase(strong, side, tuple(keys.split()), is_behind_be, re.compile(pattern), example)


PHRASES = (
    _row(True, "after", "answer answers ans", False,
         rf"answers?\b(?:{_TO_LINK}|\s*$)|ans\b[.):]?\s", "The answer is {}."),
    _row(True, "after", "correct best final only most corresponding missing", False,
         r"\w+\s(?:\w+\s){0,2}?(?:option|choice|letter|label|point|statement|number|image|part|one)s?\b"
         rf"{_TO_LINK}",
         "The most likely number is {}."),
    _row(True, "after", "choose chose select pick go going say guess think believe lean leaning vote", False,
         r"(?:go(?:ing)? (?:with|for)|vote for|lean(?:ing)? towards?|think(?= \(?[a-j]\)?\W*$)|guess is"
         r"|(?!go|lean|vote|think)\w+)(?: that)?(?=[ \n:])",
         "I choose {}."),
    _row(False, "around", "correspond corresponds aligns match matches", False,
         r"(?:corresponds?(?: \w+)?(?: to| with)|aligns (?:\w+ )?with|match(?:es)?)\b",
         "The reference corresponds to {}."),
    _row(False, "after", "Therefore Thus Hence So Overall Based Given Considering", False,
         rf"{_OPENING}\w+\b(?=\W*\w)",
         "Therefore, the landform in the picture is {}."),
    _row(True, "before", "correct best closest answer choice only", True,
         r"(?!only\b|answered\b)\w+\b(?! to (?:option|choice|\(?[a-j]\b))"
         r"|only (?:\w+ )?(?:one|option|choice|image)\b",
         "{} is the correct one."),
    _row(True, "before", "right", True,
         r"(?<=\b(?:is|be) )right\b(?=\s*(?:[.!,;]|$|because\b|since\b))", "{} is right."),
    _row(False, "before", "right odd outlier", True,
         r"(?:right|odd) (?:one|choice|option|answer)\b(?!['’])|outlier\b", "{} is the odd one out."),
    _row(False, "around", "more most best better", False, r"(?<!^a )(?:(?:more|most)\s(?:\w+ly\s)?"
         r"(?:accurate|similar|consistent|close|precise|realistic|natural|convincing|appropriate|suitable|likely"
         r"|reasonable|plausible|candid|typical|tight)(?:ly)?(?! on\b)|best|better)\b",
         "{} is more accurate."),
    _row(False, "after", "leaves leaving left elimination", False,
         r"(?:leav(?:es|ing)(?: us with)?|left with)(?: only)?(?=\s)|elimination\b,?(?=\s)",
         "Two are too long and one is too short, which leaves {}."),
    _row(False, "after", "Only only", False,
         r"only (?=(?:option )?\(?[a-j]\)?"
         r" (?:has|shows?|contains|satisfies|meets|is|can|makes|works|gives)\b)",
         "Only {} has red legs."),
    _row(False, "before", "closer darker", True, r"\w+", "Point B appears closer."),
    _row(False, "before", "shares fits remains remain follow follows", False, r"\w+", "{} shares the style."),
)  # fmt: skip

LETTER = re.compile(
    r"[(\[<]([A-J])[)\]>]|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)s?\s\(?([A-J])\b\)?"
    r"|选项?\s?([A-J])(?![A-Za-z])|(?<![A-Za-z和与及])([A-J])(?:选?项)?(?:是?正确|符合|最(?!不))"
)
"""An option by its letter."""
DRAWN_LETTER = re.compile(
    r"\b(?i:image|picture|figure|graph|curve|diagram|circuit|container|piece|shape|box|point|position|label(?:l?ed)?|marked|circled)\s(?:with\s|as\s)?\(?([A-J])\b\)?"
)
"""A thing in the figure by its letter."""
_ORDINAL = r"(?:first|second|third|fourth|fifth)(?: images?)?"
PAIR = re.compile(
    r"(?<![A-Za-z])[(\[]?[A-J][)\]]?"
    r"(?:(?:,? (?:and|or|nor) |, |/|[和与及或])[(\[]?[A-J](?![A-Za-z'’])[)\]]?)+"
    rf"|\b{_ORDINAL}(?:, (?:the )?{_ORDINAL}\b)*,? (?:and|or|nor) (?:the )?{_ORDINAL}\b"
)
"""Several options at once: "A and B", "neither the second nor the third image"."""

_NOT = r"(?:\b(?=[nlc])(?<!with )(?<!with the )(?:not|no|neither|nor|less|least|cannot|none)|n't)"
DENIED = re.compile(rf"{_NOT}\b(?:(?! but )[^,;.:]){{0,30}}$|(?:不|并非)[是选为]?\s?$")
"""Before a phrase: what it states is denied."""
THAT_IS_NOT = re.compile(
    r"(?i)^(?:\w+,? )?the (?:\w+ ){1,2}(?:that|which|who)"
    r" (?:(?:is|are|does|do|can|has|could|would)(?: not|n't)|cannot)\b"
    r"[^,;.:]{1,60}?(?= (?:is|would be|must be|should be):? )"
)
"""What a negative question asks for: "The option that is not a wader is B"."""
DENIED_OPTION = re.compile(rf"(?:{_NOT}|不是?)(?:\s(?:an?|the|(?:evidence|signs?|indications?) of))*\s*$")
"""Before an option: it is denied."""
REJECTED = re.compile(
    r"(?:,?\s(?!(?:because|since|as|for|so|which|but|and|it|this|that|there|[A-J])\b)[\w(),.°-]+){0,6}?\s"
    r"(?:(?:does|is|are|can|would|has)(?:\s?not|n't)\b"
    r"|(?:is|are)\s(?:also\s)?(?:incorrect|wrong|false|ruled out)\b)"
    r"|\s?[:|]\s(?i:incorrect|wrong|false|no)\b|:?项?(?:错误|不正确|不符合)"
)
"""Behind an option: it is rejected."""
SUPPOSED = re.compile(
    r"(?:(?:\w+,?\s){0,3}?if (?!(?:i|we|you|one|forced|pressed|asked)\b)|assuming\b|otherwise, the answer)"
    r"(?!.{0,60}\bchoose\b)"
)
"""At the start of a sentence that only supposes."""
HYPOTHETICAL = re.compile(
    r"\bwould (?:only )?(?:be|have been)\b.*\bif (?!i\b|forced|pressed|asked)"
    r"|\btempt(?:ed|ing)\b|\bcommon (?:mistake|error)\b"
    r"|\b(?:might|may|could|some|many|most|one|people|students|others)\s(?:(?:would|might|may|mistakenly)\s)?"
    r"(?:think|say|choose|select|pick|assume)\b"
)
"""In a lower-case sentence: what others may choose, or what would be right elsewhere; it states nothing."""
OF_OTHERS = ("The other", "Similarly,")
CONCLUDES = re.compile(r"\b(?:so(?! on)|thus|therefore|answer|best|choose|correct|leav(?:es|ing)|select)\b")
"""At the start of a sentence on other options; and what one has that states an answer nevertheless."""
UNSEEN = re.compile(rf"{REFUSAL.pattern}.*\bif (?!(?:I|we|you|one|forced|pressed|asked)\b)", re.IGNORECASE)
"""Of a sentence that refuses, and supposes what the image may show: it states nothing."""
ASIDE = re.compile(
    r"(?i),?\s?\b(?:while|whereas|compared (?:to|with)|(?:(?:rather|more|less) )?than|instead of|unlike)\b"
    r"(?:(?! is \()[^,;.\n]){0,200}|\bbetween (?-i:\(?[A-J]\)? and \(?[A-J]\)?)(?=,)"
)
CLOSER = re.compile(r"\b(?:while|whereas)\b.{0,40} closer(?: to the (?:camera|viewer))?\W*$")
"""The end of a sentence that answers which is closer."""
MAY_BE_ASIDE = re.compile("hile |hereas|ompared | than|nstead of|nlike|etween ")
"""What a clause sets its option against; and what is found faster."""
CONTRAST = re.compile(rf"(?i){_NOT}\b|\b(?:however|incorrect|wrong|while|lacks?|differ\w*|diverge\w*)\b")
"""In a last sentence: it rejects rather than chooses."""
REASON = re.compile(r",?\s(?:because|since|as|which(?! is (?:label|mark|circl)l?ed)|given|not|for|that is)\b")
"""Ends what a phrase states; a reason follows."""
REASON_CLAUSE = re.compile(r",?\s(?:because|since)\b|,\sas\b|(?<=\b(?:is|be) [A-J]):\s(?=[a-z])")
"""Begins a clause with the reason for what a sentence states without a phrase."""
UNDECIDED = re.compile(
    r"(?:can(?:not|['’]t)|could not) be (?:determined|answered|concluded|inferred)|not enough information"
    r"|insufficient (?:information|data)|(?:无法|不能)(?:确定|判断|比较)"
)
"""What an option may say, and a response that states it: nothing can be said."""
NONE_OF = re.compile(r"\bnone of (?:the|these|them)\b(?! other)|\bneither\b.{1,80}\bnor\b")
"""Of a sentence that states nothing else: no option is right."""
NO_MATCH = re.compile(
    r"(?i)\b(?:not|no|none)\b (?:\w+ ){0,4}(?:in|among|of) (?:\w+ ){0,2}(?:options|choices)\b|不在选项"
    r"|(?:options|choices) (?:\w+ )?do(?: not|n't) (?:contain|include|meet)|\bnot (?:provided|listed)\b"
    r"|\bnot an option\b|(?:mistake|error) in the (?:question|problem)"
)
"""At the end of a response: what it finds is no option. It has one of the words."""
NO_MATCH_WORDS = "ptions", "hoices", "an option", "t listed", "t provided", "选项"
COURTEOUS = "ope th", "me know", "eel free", "hank you"
"""In a last line: nothing of the answer."""
CHINESE_WORDS = "答案", "选", "正确", "只有", "정답", "答え", "正解"
CHINESE = re.compile(
    r"(?:答案\]?|选[项择]?|正确的?|只有|정답|答え|正解)(?:应该?)?有?\s?(?:是|为|选(?![项择])|은|は|:)*\s?"
)
"""What states a choice in Chinese, Korean or Japanese, in front of the option. Each has one of the words."""
