r"""What every scorer reads of a response: the answer's part, boxes, JSON, the text without markup.

    answer_part("<think>A? No.</think> It is <answer>B</answer>")       -> "B"
    last_box("so \boxed{3}, no: \boxed{\frac{1}{2}}")                   -> "\frac{1}{2}"
    json_answer('{"reason": "blue ice", "answer": "B"}')                -> "B"
    plain("So it is $\boxed{\text{(B)} \frac{1}{2}}$, **surely**.")     -> "So it is (B) 1/2, surely."

Thoughts end at </think>, </thinking>, </reasoning>, [/THINK], ◁/think▷ or <|end_of_thought|>. Answers stand
in <answer> or <conclusion>. GLM's <|begin_of_box|> is a box. All steps are linear in the length of the text.
"""

import re
import unicodedata
from collections.abc import Iterator

HEAD, TAIL = 3_000, 9_000
"""Characters read of a longer response: an answer stands at its start or at its end."""
LONGEST_BOX = 300
"""Characters of a box that are read; what follows belongs to an unclosed one."""

# A literal first, so that a text without tags costs next to nothing.
THOUGHT_END = re.compile(
    r"</(?:[a-z]{1,20}:)?(?i:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
)
THOUGHT_START = re.compile(r"\s*(?:<(?i:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷)")
_ANSWER = re.compile(r"<(?i:(answer|conclusion|final_?answer))>")
_GLM_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(<\|end_of_box\|>|\Z)", re.DOTALL)
_LAST_TOKENS = re.compile(
    r"(?:\s*<(?:[|｜](?!end_of_box|box_end)[\w▁]+[|｜]|/s|pad|eos|end_of_turn|eo[a-z])>)+\s*$"
)
_DECORATION = re.compile(r"[\s\u2600-\u2716\u2719-\u274b\u274d-\u27bf\ufe0f\U0001f000-\U0001faff]+$")
WIDE = re.compile(r"(?<=\S) {2,}(?=\S)")
_HTML = re.compile(r"</?(?:b|br|strong|i|em|u|p|center|span|div)(?: [^<>]{0,60})?\s?/?>")
_UNIFIED = (
    *zip("（）：【】［］“”’−", [*'():[][]""\'-'], strict=True),
    ("！", "! "),
    ("？", "? "),
)
_UNSEEN = re.compile("[\u00a0\u00ad\u061c\u2000-\u200f\u202a-\u202f\u205f-\u2069\u3000\ue000-\uf8ff\ufeff]")
_FENCED = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)
_BOX = "oxed"  # without its backslash too: "\b" in careless JSON is a backspace
_JSON_KEY = re.compile(
    r"""["'](?:final[_ ]?|correct[_ ]?)?(?:answer|option|choice)(?:[_ ]?letter)?["']\s{0,5}:\s{0,5}"""
    r"""(?:"([^"\n]{1,300})"|'([^'\n]{1,300})'|([-\w./]{1,60}))""",
    re.IGNORECASE,
)
_JSON_LINE_END = re.compile(r"(?<!\\)\\n(?![a-z])")  # not "\neq" in careless JSON

REFUSAL = re.compile(
    r"\b(?:can(?:not|'t| not)|(?<!that )could(?: not|n't)|unable|impossible|sorry|insufficient"
    r"|enough information|not (?:possible|able|enough|sufficient|visible|provided|given)|undetermined"
    r"|no way)\b|无法|不能",
    re.IGNORECASE,
)
"""In the last sentence: the response gives no answer."""


def bounded(text: str) -> str:
    """The text with single spaces between words; of a long one the first 3,000 and last 9,000 characters."""
    text = text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"
    # Who spaces widely does so at the end as well, which is faster to search.
    text = WIDE.sub(" ", text).strip() if "  " in text[-300:] else text.strip()
    return text.rstrip("-\n ") if text.endswith("\n---") else text


def answer_part(text: str, *, truncated: bool = False) -> str:
    """The part of a response that its tags mark as the answer; without tags, all of it.

    Args:
        text: the response.
        truncated: whether it ran out of tokens: then only the content of a closed tag, or the last closed
            box, is an answer; or "".

    Returns:
        What follows the last end of thoughts, even where that is nothing; of that, the last block in
        answer tags, unless it is blank. A thought that never ends is read like a truncated response.
    """
    text = unified(text)
    if "\\fbox{" in text:
        text = text.replace("\\fbox{", "\\boxed{")
    if "<" in text or "◁" in text or "]" in text and "THINK]" in text:  # one character is found faster
        text = text[_thought_end(text) :]
        truncated = truncated or THOUGHT_START.match(text) is not None
        if "</" in text or "<br" in text:
            text = _HTML.sub("", text.replace("<br>", "\n"))
        if "<|begin_of_box|>" in text:
            text = _GLM_BOX.sub(lambda match: f"\\boxed{{{match[1]}" + "}" * bool(match[2]), text)
        tag = last(_ANSWER, text)
        if tag:
            closing = re.search(rf"(?i)</{tag[1]}>", text[tag.end() :])
            block = text[tag.end() : tag.end() + closing.start()] if closing else text[tag.end() :]
            if block.strip() and (closing or not truncated):
                return block
        if tag is None and text.rstrip().endswith(("</answer>", "</conclusion>")):
            text = text.rstrip().rpartition("</")[0]  # the chat template opened it
    fenced = _FENCED.fullmatch(text) if text[-6:].rstrip().endswith("```") else None
    text = fenced[1] if fenced else text
    if not truncated:
        return text
    boxed = next((content for *_, content in boxes(text, closed=True)), None)
    return "" if boxed is None else f"\\boxed{{{boxed}}}"


def unified(text: str) -> str:
    """The text in plain signs and line ends, without tokens around it and emojis at its end."""
    text = text.removeprefix("<s>")
    if text[-20:].rstrip().endswith(">"):
        text = _LAST_TOKENS.sub("", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        if _may_hide(text) and _UNSEEN.search(text):
            text = _UNSEEN.sub(lambda match: " " if match[0].isspace() else "", text)
        text = text if text[-1:].isascii() else _DECORATION.sub("", text)
        for sign, character in _UNIFIED:
            if sign in text:
                text = text.replace(sign, character)
    return text


def _may_hide(text: str) -> bool:
    """Whether a text may have unseen characters: those of Latin letters and degrees are found faster."""
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return True
    return "\u00a0" in text or "\u00ad" in text


def _thought_end(text: str) -> int:
    """Where the last thought of a text ends; 0 if none does."""
    end = 0
    for opening in ("</", "[/", "◁/", "<|"):
        at = text.rfind(opening)
        while at >= end:
            found = THOUGHT_END.match(text, at)
            if found:
                end = found.end()
                break
            at = text.rfind(opening, 0, at)
    return end


def last(pattern: "re.Pattern[str]", text: str) -> "re.Match[str] | None":
    """The last match of a pattern in a text."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return match


def boxes(text: str, *, closed: bool = False) -> Iterator[tuple[int, int, str]]:
    r"""Every \boxed{...}, last first: where its content begins and ends, and the content.

    Args:
        text: a text with its markup; nested braces are respected.
        closed: leave out a box whose last brace is missing.
    """
    start = text.rfind(_BOX)
    while start >= 0:
        brace = start + len(_BOX)
        while text[brace : brace + 1] == " ":
            brace += 1
        if text[brace : brace + 1] == "{":
            depth, end = 1, brace + 1
            stop = min(len(text), brace + LONGEST_BOX)
            while end < stop and depth:
                depth += (text[end] == "{") - (text[end] == "}")
                end += 1
            end -= not depth
            if not depth or not closed:
                yield brace + 1, end, text[brace + 1 : end]
        start = text.rfind(_BOX, 0, start)


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed{...} that is not blank; None without one."""
    if "{" not in text or _BOX not in text:  # one character is found faster
        return None
    return next((content for *_, content in boxes(text) if content.strip()), None)


_NEXT_QUESTION = re.compile(r"\n(?:Question|Hint|Human|User|Q):")
"""A question that a model makes up behind its answer."""


def first_turn(text: str) -> str | None:
    """The text before a made-up next question; None without one, or if only what follows has a box."""
    question = _NEXT_QUESTION.search(text)
    before = text[: question.start()] if question else ""
    return before if before.strip() and (last_box(before) is None) == (last_box(text) is None) else None


def json_answer(text: str) -> str | None:
    """The value of the last "answer" key of an object in JSON, as text."""
    if ":" not in text or '"' not in text and "'" not in text:
        return None
    match = last(_JSON_KEY, text)
    if match is None:
        return None
    return _JSON_LINE_END.sub("\n", next(filter(None, match.groups()))).replace("\\\\", "\\")


SIGNS = str.maketrans({
    "【": "[", "】": "]", "、": ", ", "。": ". ", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "″": "''",
    "—": " - ", "∶": ":", "º": "°", "˚": "°", "∘": "°", "÷": "/", "⋅": "·",
    "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥", **dict.fromkeys("−–‐‑‒﹣－", "-"),
    **{sign: f"^{character}" for sign, character in zip("²³⁴ⁿ", "234n", strict=True)},
    **{sign: f" {sign}" for sign in "½¼¾⅓⅔⅕⅛"},
    **{chr(0x24B6 + i): f"({chr(65 + i)})" for i in range(26)},
    **{chr(0x2460 + i): f"({i + 1})" for i in range(20)},
})  # fmt: skip
"""Typographic and full-width characters in the form that the scorers read; NFKC does the rest."""
COMMANDS = {
    "cdot": "·", "times": "×", "div": "/", "pi": "π", "infty": "∞", "pm": "±", "mp": "∓", "cup": "∪",
    "in": "∈",
    **dict.fromkeys(("approx", "thickapprox", "simeq"), "≈"), **dict.fromkeys(("ne", "neq"), "≠"),
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "≤"),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), "≥"),
    "boxed": " ", "lt": "<", "gt": ">", "Omega": "Ω", "mu": "μ", "angle": "∠", "\\": "\n", "newline": "\n",
    **dict.fromkeys(("rightarrow", "longrightarrow", "to", "implies", "Rightarrow"), " → "),
    "left": "", "right": "",
    **dict.fromkeys(
        "big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits quad qquad hfill bf"
        " rm it small normalsize large Large LARGE huge Huge , ; : ! ( ) [ ]".split(), " "
    ), " ": " ",
}  # fmt: skip
"""What LaTeX commands mean."""
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]{0,200})\}|(\d))\s*(?:\{([^{}]{0,200})\}|(\d))")
_ROOT = re.compile(r"(?:\\sqrt|√)\s*(?:\{([^{}]{0,200})\}|(\d))")
_STYLED = re.compile(
    r"\\(?:text(?!color)[a-z]{0,10}|math[a-z]{2,4}|operatorname|boldsymbol|bold|bm|mbox|fbox|underline|ce)\s*\{([^{}]{0,300})\}"
)
_ADJACENT = re.compile(r"(\\[a-z]+)(?=\\(?:text|math))")  # \quad\text{Rice}
_DEGREES = re.compile(r"[\^*]?\s?\{?\s?(?:\\circ|\\degree)(?![a-z])\s?\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_ITALIC = re.compile(r"(?<![\w*)\]])\*(?=[^\s*])([^*\n]{0,300}[^\s*])\*(?![\w*(\[])")
_HEADING = re.compile(r"\n[ \t]*[#>][#> \t]*")
_SPACES = re.compile(r"[^\S\n ]|[^\S\n]{2,}")
_LINES = re.compile(r" ?\n[ \n]*")
_TRANSLATED = re.compile(r"[^\x00-\x7f°·×π√≈≤≥∠]")
"""What `in_signs` may change."""


def in_signs(text: str) -> str:
    """The text with its signs in ASCII where there are such, no styled or full-width letters."""
    if text.isascii() or not _TRANSLATED.search(text):
        return text
    return unicodedata.normalize("NFKC", text.translate(SIGNS)).replace("\u2044", "/")  # of "½"


_MARKED = re.compile(r"[^ -~]|[>\\{}~$*_`#]|  ")


def plain(text: str) -> str:
    """The text without LaTeX and Markdown, in ASCII forms, white space collapsed."""
    if not _MARKED.search(text):
        return text.strip()
    text = _collapsed(in_signs(text))
    if "\\" in text or "{" in text or "~" in text or "√" in text:
        text = _without_latex(text)
    text = text.replace("$", "")
    if "*" in text or "_" in text or "`" in text:
        text = text.replace("**", "").replace("__", "").replace("`", "")
        text = _ITALIC.sub(r"\1", text) if "*" in text else text
    if "#" in text or ">" in text:
        text = _HEADING.sub("\n", "\n" + text)
    return _collapsed(text).strip()


def _collapsed(text: str) -> str:
    """Single spaces and line ends, so that no pattern can run long over white space."""
    if "  " in text or not text.replace("\n", "").isprintable():
        text = _SPACES.sub(" ", text)
    return _LINES.sub("\n", text) if "\n\n" in text or " \n" in text or "\n " in text else text


def _fraction(match: "re.Match[str]") -> str:
    above, below = match[1] or match[2] or "", match[3] or match[4] or ""
    mixed = " " if match.start() and match.string[match.start() - 1].isdigit() else ""
    if not (above.replace("√", "").isalnum() and below.replace("√", "").isalnum()):
        above, below = (one if one.isdigit() else f"({one})" for one in (above, below))
    return f"{mixed}{above}/{below}"


def _root(match: "re.Match[str]") -> str:
    inner = match[1] or match[2] or ""
    return f"√{inner}" if inner.isalnum() else f"√({inner})"


def _without_latex(text: str) -> str:
    if "\\circ" in text or "\\degree" in text:
        text = _DEGREES.sub("°", text)
    text = _ADJACENT.sub(r"\1 ", text)
    for _ in range(2):  # \boxed{\text{(B) } \frac{1}{2}} and \frac{\sqrt{3}}{2} nest twice
        text = _STYLED.sub(r"\1", text) if "{" in text else text
        text = _ROOT.sub(_root, text) if "sqrt" in text or "√" in text else text
        text = _FRACTION.sub(_fraction, text) if "frac" in text else text
    text = _COMMAND.sub(lambda match: COMMANDS.get(match[1], match[1]), text)
    return text.replace("{", "").replace("}", "").replace("~", " ")
