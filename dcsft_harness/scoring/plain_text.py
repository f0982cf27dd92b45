r"""A response without its markup: LaTeX, Markdown, HTML, thinking and run-on are taken away.

    plain("So the answer is $\boxed{\text{(B)} \frac{1}{2}}$.") -> "So the answer is (B) 1/2."

Every step is linear in the length of the text; the callers bound that length with `bounded`.
"""

import html
import re
import unicodedata

HEAD, TAIL = 3_000, 9_000
"""Characters read of a longer response: an answer stands at its start or at its end."""

# Full-width and typographic characters that mean the same as an ASCII one.
_SAME = {
    "（": "(", "）": ")", "【": "[", "】": "]", "：": ":", "；": "; ", "，": ", ", "、": ", ",
    "。": ". ", "．": ". ", "！": "! ", "？": "? ", "“": '"', "”": '"', "「": '"', "」": '"',
    "‘": "'", "’": "'", "−": "-", "–": "-", "—": " - ", "•": "-", "⁄": "/", "＝": "=", "％": "%",
    "º": "°", "˚": "°", "²": "^2", "³": "^3", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "\u200b": "",
    **dict.fromkeys("‐‑‒﹣－", "-"), "＜": "<", "＞": ">", "／": "/", "＋": "+", "⩽": "≤", "⩾": "≥",
    "⅓": " 1/3", "⅔": " 2/3", "⅕": " 1/5", "⅛": " 1/8",
    **{chr(0x24B6 + i): f"({chr(65 + i)})" for i in range(26)},
    **{chr(0xFF21 + i): chr(65 + i) for i in range(26)},
    **{chr(0xFF10 + i): chr(48 + i) for i in range(10)},
}  # fmt: skip
_OTHER_FORM = re.compile(f"[{''.join(_SAME)}]")
_MATHEMATICAL = re.compile("[\U0001d400-\U0001d7ff]+")
"""Letters and digits in bold, italics and the like."""

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ROOT = re.compile(r"\\sqrt\s*(?:\{([^{}]*)\}|(\d))")
_ROOT_SIGN = re.compile(r"√\s*(?:\{([^{}]*)\}|(\d))")
_STYLED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|textsc|textup|textnormal|texttt|textcircled"
    r"|mathrm|mathbf|mathit|mathsf|mathtt|mathbb|mathcal|operatorname|boldsymbol|bold|bm|mbox|fbox)"
    r"\s*\{([^{}]*)\}"
)
_STYLES = ("\\text", "\\math", "\\operatorname", "\\bold", "\\bm", "\\mbox", "\\fbox")
"""What these begin with; to look for each first takes a third of the time."""
_DEGREES = re.compile(r"\\(?:circ|degree)(?![a-z])\s?\}?")
_RAISED = re.compile(r"\^\s?\{?\s?°")
_STARRED = re.compile(r"\*\s?\{?\s?°")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_MEANS = {
    "cdot": "·", "times": "×", "pi": "π", "approx": "≈", "thickapprox": "≈", "simeq": "≈",
    "rightarrow": " → ", "Rightarrow": " → ", "to": " → ", "implies": " → ", "boxed": " ", "div": "/",
    "\\": "\n", "newline": "\n",
    "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "lt": "<", "gt": ">",
    "ne": "≠", "neq": "≠", "pm": "±", "infty": "∞", "checkmark": "✓",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "theta": "θ", "lambda": "λ", "mu": "μ",
    "rho": "ρ", "phi": "φ", "omega": "ω", "Omega": "Ω",
    **dict.fromkeys(("underline", "emph", "framebox", "circled"), ""),
    **dict.fromkeys(("tiny", "small", "normalsize", "large", "Large", "LARGE", "huge", "Huge"), " "),
    **dict.fromkeys(("left", "right", "displaystyle", "quad", "qquad", "bf", "rm", *",;:! ()[]"), " "),
}  # fmt: skip
_COLOURED = re.compile(r"\\(?:color|textcolor|colorbox)\s?\{[^{}]{1,20}\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{[a-z]{1,20}\*?\}(?:\{[lcr|]{1,20}\})?")
_EMPHASIS = re.compile(r"\*(?<![\w*)]\*)(?=[^\s*])([^*\n]{1,200})(?<=\S)\*(?![\w*(])")
_UNDERSCORED = re.compile(r"(?<![\w\\$})])_(?=[^\s_{])([^_\n]{1,200})(?<=\S)_(?!\w)")
_STRUCK = re.compile(r"~~(?=[^\s~])[^~\n]{1,80}(?<=\S)~~")
_NEGATIVE = re.compile(r"\b[Nn]egative (?=\d)")
_MINUS = re.compile(
    r"(?:^|\n|(?<=\bis )|(?<=equals )|(?<=\bof )|(?<=\bto )"
    r"|(?<=\bfrom )|(?<=\bget )|(?<=gives )|(?<=[=:(] )|(?<=\())[Mm]inus (?=\d)"
)
_AND_A_HALF = re.compile(r"(?<![\w.,])(\d{1,9}) and a (half|quarter)\b(?! of)")
_RATIO = re.compile(r" : (?<=\d : )(?=\d)")
_TAG = re.compile(
    r"</?(?:(?P<block>p|(?i:br|div|h[1-6]|hr|li|ul|ol|tr|table|tbody|thead|pre|blockquote|section|html|body|details|summary"
    r"|choice|option|output|result|response|solution|ans))"
    r"|[biua]|(?i:em|strong|font|span|code|mark|big|small|center|td|th))(?:\s[a-zA-Z-]{1,20}\s?=\s?[\"'][^<>\n]{0,200})?\s?/?>"
)
"""Of HTML what models write; "<B>" is a letter in brackets. A block begins a line."""
_SUPERSCRIPT = re.compile(r"<sup>\s?([\w°]{1,9})\s?</sup>")
_ENTITY = re.compile(r"&(nbsp|deg|lt|gt|le|ge|ne|pi|times|quot|radic|#39|amp);")
_TABLE_RULE = re.compile(r"\n\|?[ :-]{0,100}-[|: -]{1,200}(?=\n|$)")
_HEADING = re.compile(r"\n[ \t]*(?:#{1,6}|>)[ \t]*")
_SPACES = re.compile(r"[^\S\n ]|[^\S\n]{2,}")
_ODD_SPACES = "\t\r\v\f\x1c\x1d\x1e\x1f"
"""White space of ASCII beside the blank and the line end."""
# It begins with all characters that it can begin with, which makes the search several times faster.
_SENTENCE_END = re.compile(r"[.!?\n;](?:(?<=\n)|(?<=;)(?=\s)|(?<=[.!?])[\"')\]]?(?=\s))")

# A model that goes on writing the next turn or the next question of a made-up prompt. Each pattern begins
# with a character that is searched for, not with a choice of two, which takes ten times as long.
_NEXT_TURN = re.compile(
    r"\n[ \t#>*_]{0,8}(?:Hint|(?:The )?[Qq]uestion(?: is)?|Problem|USER|User|Human|Instruction|Q)"
    r"[ *_]{0,3}\d{0,3}[ *_]{0,4}:"
)
_TURN_END = re.compile(r"<(?:\|(?:im_end|im_start|endoftext|eot_id|eom_id|end)\|>|/s>|end_of_turn>)")
_ROLE = re.compile(r"\s*(?:<\|[a-z_]{1,20}\|>\s*(?:assistant)?|(?i:assistant)(?=\s*[:\n]))\s*:?\s*")


def bounded(text: str) -> str:
    """The text, or the first 3,000 and last 9,000 characters of a longer one."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n{text[-TAIL:]}"


def last_words(text: str, length: int) -> str:
    """The last lines, or else sentences, of a longer text, about `length` characters; maybe none."""
    start = text.find("\n", len(text) - length)
    if start < 0 or len(text) - start < length // 4:
        start = text.find(". ", len(text) - length)
    return text[start + 1 :] if start >= 0 else ""


def before_run_on(text: str) -> str:
    """A response up to where the model starts to write a further prompt of its own."""
    role = _ROLE.match(text)
    text = (text[role.end() :] if role else text).rstrip("# \n")
    end = len(text)
    for mark, pattern in (("<", _TURN_END), ("\n", _NEXT_TURN)):
        match = pattern.search(text, 0, end) if mark in text else None
        end = match.start() if match else end
    return text[:end] if end < len(text) and text[:end].strip() else text


def _fraction(match: "re.Match[str]") -> str:
    above, below = match[1] or match[2] or "", match[3] or match[4] or ""
    mixed = " " if match.start() and match.string[match.start() - 1].isdigit() else ""
    if not (above.replace("√", "").isalnum() and below.replace("√", "").isalnum()):
        above = above if above.isdigit() else f"({above})"
        below = below if below.isdigit() else f"({below})"
    return f"{mixed}{above}/{below}"


def _root(match: "re.Match[str]") -> str:
    inner = match[1] or match[2] or ""
    return f"√{inner}" if inner.isalnum() else f"√({inner})"


def _without_latex(text: str) -> str:
    if "\\circ" in text or "\\degree" in text:
        text = _RAISED.sub("°", _DEGREES.sub("°", text))
        if "*" in text:
            text = _STARRED.sub("°", text)
    if "\\begin" in text:
        text = _ENVIRONMENT.sub(" ", text)
    if "color" in text:
        text = _COLOURED.sub("", text)
    styled = any(style in text for style in _STYLES)
    for _ in range(2):  # \boxed{\text{(B) } \frac{1}{2}} and \frac{\sqrt{3}}{2} nest twice
        if styled:
            text = _STYLED.sub(r"\1", text)
        if "sqrt" in text:
            text = _ROOT.sub(_root, text)
        if "√{" in text or "√ " in text:
            text = _ROOT_SIGN.sub(_root, text)
        if "frac" in text:
            text = _FRACTION.sub(_fraction, text)
    words = _COMMAND.split(text)  # what stands between commands and, at the odd places, their names
    words[1::2] = [_MEANS.get(name, name) for name in words[1::2]]
    text = "".join(words)
    return text.replace("{", "").replace("}", "").replace("~", " ")


def _same(match: "re.Match[str]") -> str:
    return _SAME[match[0]]


def _has_wide(text: str) -> bool:
    """Whether a text has characters beyond the first 65,536; a search for them takes thirty times as long."""
    return len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text)


def without_html(text: str) -> str:
    """A text without the tags of HTML that models write."""
    if "sup>" in text:
        text = _SUPERSCRIPT.sub(lambda match: match[1] if match[1] == "°" else f"^{match[1]}", text)
    return _TAG.sub(lambda match: "\n" if match["block"] else "", text)


def in_figures(text: str) -> str:
    """A text with "minus 3" and "5 and a half" as -3 and 5.5."""
    if "egative " in text:
        text = _NEGATIVE.sub("-", text)
    if "inus " in text:
        text = _MINUS.sub(_minus, text)
    if " and a " in text:
        text = _AND_A_HALF.sub(_mixed, text)
    return text


def _minus(match: "re.Match[str]") -> str:
    return "\n-" if match[0][0] == "\n" else "-"


def _mixed(match: "re.Match[str]") -> str:
    return f"{match[1]}.{'5' if match[2] == 'half' else '25'}"


def plain(text: str) -> str:
    """The text without LaTeX and Markdown, full-width characters in ASCII, white space collapsed."""
    if "<" in text and ">" in text:
        text = without_html(text)
    if "&" in text and ";" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = collapsed = _collapsed(text)
    if not text.isascii():
        if _has_wide(text):
            text = _MATHEMATICAL.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = _OTHER_FORM.sub(_same, text)
        if "√{" in text or "√ " in text:
            text = _ROOT_SIGN.sub(_root, text)
    if "~" in text:
        text = _STRUCK.sub("", text)
    if "\\" in text or "{" in text or "~" in text:
        text = _without_latex(text)
    if "$" in text:
        text = text.replace("$", "")
    if " & " in text:
        text = text.replace(" & ", " and ")
    if "|" in text:
        text = _TABLE_RULE.sub("", text)
    text = in_figures(text)
    if "*" in text or "_" in text or "`" in text:
        text = text.replace("**", "").replace("__", "").replace("`", "")
        text = _EMPHASIS.sub(r"\1", text) if "*" in text else text
        text = _UNDERSCORED.sub(r"\1", text) if "_" in text else text
    if " : " in text:
        text = _RATIO.sub(":", text)
    if "#" in text or ">" in text:
        text = _HEADING.sub("\n", "\n" + text)
    return (text if text is collapsed else _single_spaced(text)).strip()


def _collapsed(text: str) -> str:
    """Single spaces and line ends, so that no pattern can run long over white space."""
    if _may_have_odd_spaces(text):
        text = _SPACES.sub(" ", text)
    return _single_spaced(text)


def _single_spaced(text: str) -> str:
    """`_collapsed` of a text without other white space; replacing is several times faster than a pattern."""
    while "  " in text:
        text = text.replace("  ", " ")
    if "\n" in text:
        text = text.replace(" \n", "\n")
        while "\n " in text:
            text = text.replace("\n ", "\n")
        while "\n\n" in text:
            text = text.replace("\n\n", "\n")
    return text


def _may_have_odd_spaces(text: str) -> bool:
    if text.isascii():
        for space in _ODD_SPACES:
            if space in text:
                return True
        return False
    return not (text.replace("\n", "") if "\n" in text else text).isprintable()


def last_sentence(text: str) -> tuple[str, bool]:
    """The last of the `sentences` of a stripped text, and whether others stand before it."""
    start = 0
    for window in (max(0, len(text) - 300), 0):
        for match in _SENTENCE_END.finditer(text, window):
            start = match.end()
        if start:
            break
    return text[start:].strip(), text[:start].strip(" \n;") != ""


def sentences(text: str) -> list[str]:
    """The sentences and lines of a plain text, none of them blank."""
    parts, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        parts.append(text[start : match.end()].strip(" \n;"))
        start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part]
