r"""What every scorer reads of a response: the answer's part, the last box, the text without markup.

    answer_part("<think>A? No.</think> It is <answer>B</answer>")       -> "B"
    last_box("so \boxed{3}, no: \boxed{\frac{1}{2}}")                   -> "\frac{1}{2}"
    json_answer('{"reason": "blue ice", "answer": "B"}')                -> "B"
    plain("So it is $\boxed{\text{(B)} \frac{1}{2}}$, **surely**.")     -> "So it is (B) 1/2, surely."

Thoughts end at </think>, </thinking>, </reasoning>, [/THINK], ◁/think▷ (Kimi) or <|end_of_thought|>.
Answers stand in <answer> or <conclusion> (LLaVA-CoT). GLM's <|begin_of_box|> is a box. All steps are
linear in the length of the text.
"""

import html
import re
import unicodedata
from collections.abc import Iterator

HEAD, TAIL = 3_000, 9_000
"""Characters read of a longer response: an answer stands at its start or at its end."""
LONGEST_BOX = 300
"""Characters of a box that are read; what follows belongs to an unclosed one."""

# A literal first, so that a text without tags costs next to nothing.
_THOUGHT_END = re.compile(
    r"</(?:[a-z]{1,20}:)?(?i:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
)
_THOUGHT_START = re.compile(r"\s*(?:<(?i:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷)")
_ANSWER = re.compile(r"<(?i:(answer|conclusion|final_?answer))>")
_GLM_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)
_TOKEN = re.compile(r"<(?:\|[a-z_]{1,30}\|>|/?s>|unk>|pad>|[a-z]{3}_of_turn>|(?:start|end)_of_turn>)")
_BOX = "oxed"  # without its backslash too: "\b" in careless JSON is a backspace
_JSON_KEY = re.compile(
    r"""["'](?:final[_ ]?|correct[_ ]?)?(?:answer|option|choice)(?:[_ ]?letter)?["']\s{0,5}:\s{0,5}"""
    r"""(?:"([^"\n]{1,300})"|'([^'\n]{1,300})'|(\[[^\]\n]{0,100}\]|[-\w./]{1,60}))""",
    re.IGNORECASE,
)


def bounded(text: str) -> str:
    """The text, or the first 3,000 and last 9,000 characters of a longer one."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def answer_part(text: str, *, truncated: bool = False) -> str:
    """The part of a response that its tags mark as the answer; without tags, all of it.

    Args:
        text: the response.
        truncated: whether it ran out of tokens. Then only what stands in a closed tag or box is an
            answer: the part is the content of a closed tag, or the last closed box itself, or "".

    Returns:
        What follows the last end of thoughts, even where that is nothing; of that, the last block in
        answer tags, unless it is blank. A thought that never ends is read like a truncated response.
    """
    if "<" in text or "◁" in text or "[THINK]" in text or "[/THINK]" in text:
        end = _last(_THOUGHT_END, text) if "/" in text or "<|" in text else None
        text = text[end.end() :] if end else text
        truncated = truncated or _THOUGHT_START.match(text) is not None
        if "<|begin_of_box|>" in text:
            text = _GLM_BOX.sub(_as_box, text)
        tag = _last(_ANSWER, text)
        if tag:
            closing = re.search(rf"(?i)</{tag[1]}>", text[tag.end() :])
            block = text[tag.end() : tag.end() + closing.start()] if closing else text[tag.end() :]
            if block.strip() and (closing or not truncated):
                return block
    if not truncated:
        return text
    boxed = next(boxes(text, closed=True), None)
    return "" if boxed is None else f"\\boxed{{{boxed}}}"


def _as_box(match: "re.Match[str]") -> str:
    return f"\\boxed{{{match[1]}}}" if match[0].endswith("<|end_of_box|>") else f"\\boxed{{{match[1]}"


def _last(pattern: "re.Pattern[str]", text: str) -> "re.Match[str] | None":
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return match


def without_tokens(text: str) -> str:
    """The text without "<s>", "<|im_end|>" and other tokens of chat templates."""
    return _TOKEN.sub("", text) if "<" in text else text


def boxes(text: str, *, closed: bool = False) -> Iterator[str]:
    r"""The contents of every \boxed{...}, last first; nested braces are respected.

    Args:
        text: a text with its markup.
        closed: leave out a box whose last brace is missing.
    """
    start = text.rfind(_BOX)
    while start >= 0:
        brace = start + len(_BOX)
        while text[brace : brace + 1] == " ":
            brace += 1
        if text[brace : brace + 1] == "{":
            end = _closing_brace(text, brace)
            if end < len(text) and text[end] == "}" or not closed:
                yield text[brace + 1 : end]
        start = text.rfind(_BOX, 0, start)


def last_box(text: str) -> str | None:
    r"""The content of the last \boxed{...} that is not blank; None without one."""
    return next(filter(str.strip, boxes(text)), None) if _BOX in text else None


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one at start; of an unclosed box, where its content ends."""
    depth = 0
    stop = min(len(text), start + LONGEST_BOX)
    for index in range(start, stop):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return stop


def json_answer(text: str) -> tuple[str, str] | None:
    """The value of the last "answer" key of an object or list in JSON, and the text behind the object.

    The value is text, or a list as it is written ('["A", "C"]').
    """
    if '"' not in text and "'" not in text or ":" not in text:
        return None
    match = _last(_JSON_KEY, text)
    if match is None:
        return None
    end = text.find("}", match.end())
    return next(filter(None, match.groups())), text[end + 1 :].strip("`]} \n") if end >= 0 else ""


# Full-width and typographic characters that mean the same as an ASCII one.
_SAME = {
    "（": "(", "）": ")", "【": "[", "】": "]", "：": ":", "；": "; ", "，": ", ", "、": ", ",
    "。": ". ", "．": ". ", "！": "! ", "？": "? ", "“": '"', "”": '"', "「": '"', "」": '"',
    "‘": "'", "’": "'", "−": "-", "–": "-", "—": " - ", "•": "-", "⁄": "/", "＝": "=", "％": "%",
    "º": "°", "˚": "°", "℃": "°C", "²": "^2", "³": "^3", "\u200b": "", "確": "确", "應": "应",
    "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⅕": " 1/5", "⅛": " 1/8",
    **dict.fromkeys("‐‑‒﹣－", "-"), "＜": "<", "＞": ">", "／": "/", "＋": "+", "⩽": "≤", "⩾": "≥",
    "該": "该", "選": "选", "項": "项", "為": "为",
    **{chr(0x24B6 + i): f"({chr(65 + i)})" for i in range(26)},
    **{chr(0xFF21 + i): chr(65 + i) for i in range(26)},
    **{chr(0xFF10 + i): chr(48 + i) for i in range(10)},
}  # fmt: skip
_OTHER_FORM = re.compile(f"[{''.join(_SAME)}]")
_MATHEMATICAL = re.compile("[\U0001d400-\U0001d7ff]+")
"""Letters and digits in bold, italics and the like."""

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]{0,200})\}|(\d))\s*(?:\{([^{}]{0,200})\}|(\d))")
_ROOT = re.compile(r"(?:\\sqrt|√)\s*(?:\{([^{}]{0,200})\}|(\d))")
_STYLED = re.compile(
    r"\\(?:text(?!color)[a-z]{0,10}|math[a-z]{2,4}|operatorname|boldsymbol|bold|bm|mbox|fbox)\s*"
    r"\{([^{}]{0,300})\}"
)
_DEGREES = re.compile(r"[\^*]?\s?\{?\s?(?:\\circ|\\degree)(?![a-z])\s?\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_MEANS = {
    "cdot": "·", "times": "×", "pi": "π", "approx": "≈", "thickapprox": "≈", "simeq": "≈", "div": "/",
    "rightarrow": " → ", "Rightarrow": " → ", "to": " → ", "implies": " → ", "boxed": " ",
    "\\": "\n", "newline": "\n", "infty": "∞", "checkmark": "✓", "pm": "±", "ne": "≠", "neq": "≠",
    "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "lt": "<", "gt": ">",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "theta": "θ", "lambda": "λ", "mu": "μ",
    "rho": "ρ", "phi": "φ", "omega": "ω", "Omega": "Ω",
    **dict.fromkeys(("underline", "emph", "framebox", "circled", "textcircled"), ""),
    **dict.fromkeys(("small", "normalsize", "large", "Large", "LARGE", "huge", "Huge"), " "),
    **dict.fromkeys(("left", "right", "displaystyle", "quad", "qquad", "bf", "rm", *",;:! ()[]"), " "),
}  # fmt: skip
_COLOR = re.compile(r"\\(?:color|textcolor|colorbox)\s?\{[^{}]{1,20}\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s?\{[a-z]{1,20}\*?\}(?:\{[lcr|]{1,20}\})?")
_EMPHASIS = re.compile(r"\*(?<![\w*)]\*)(?=[^\s*])([^*\n]{1,200})(?<=\S)\*(?![\w*(])")
_UNDERSCORED = re.compile(r"(?<![\w\\$})])_(?=[^\s_{])([^_\n]{1,200})(?<=\S)_(?!\w)")
_STRUCK = re.compile(r"~~(?=[^\s~])[^~\n]{1,80}(?<=\S)~~")
_RATIO = re.compile(r" : (?<=\d : )(?=\d)")
_HTML = re.compile(
    r"</?(?:(?P<block>p|(?i:br|div|h[1-6]|hr|li|ul|ol|tr|table|tbody|thead|pre|blockquote|section|html|body"
    r"|details|summary|choice|option|output|result|response|solution|ans))"
    r"|[biua]|(?i:em|strong|font|span|code|mark|big|small|center|td|th))"
    r"(?:\s[a-zA-Z-]{1,20}\s?=\s?[\"'][^<>\n]{0,200})?\s?/?>"
)
"""Of HTML what models write; "<B>" is a letter in brackets. A block begins a line."""
_SUPERSCRIPT = re.compile(r"<sup>\s?([\w°]{1,9})\s?</sup>")
_ENTITY = re.compile(r"&(nbsp|deg|lt|gt|le|ge|ne|pi|times|quot|radic|#39|amp);")
_TABLE_RULE = re.compile(r"\n\|?[ :-]{0,100}-[|: -]{1,200}(?=\n|$)")
_HEADING = re.compile(r"\n[ \t]*(?:#{1,6}|>)[ \t]*")
_SPACES = re.compile(r"[^\S\n ]|[^\S\n]{2,}")
_LINES = re.compile(r" ?\n[ \n]*")
# It begins with all characters that it can begin with, which makes the search several times faster.
_SENTENCE_END = re.compile(r"[.!?\n;](?:(?<=\n)|(?<=;)(?=\s)|(?<=[.!?])[\"')\]]?(?=\s))")

# A model that goes on writing the next turn or the next question of a made-up prompt.
_NEXT_TURN = re.compile(
    r"\n[ \t#>*_]{0,8}(?:Hint|(?:The )?[Qq]uestion(?: is)?|Problem|USER|User|Human|Instruction|Q)"
    r"[ *_]{0,3}\d{0,3}[ *_]{0,4}:"
)
_TURN_END = re.compile(r"<(?:\|(?:im_end|im_start|endoftext|eot_id|eom_id|end)\|>|/s>|end_of_turn>)")
_ROLE = re.compile(
    r"\s{0,20}(?:<s>\s?)?(?:<\|[a-z_]{1,20}\|>\s?(?:assistant)?|(?i:assistant)(?=\s?[:\n]))\s?:?\s?"
)


def before_run_on(text: str) -> str:
    """A response up to where the model starts to write a further prompt of its own."""
    role = _ROLE.match(text)
    text = (text[role.end() :] if role else text).rstrip("# \n")
    end = len(text)
    for mark, pattern in (("<", _TURN_END), (":", _NEXT_TURN)):
        match = pattern.search(text, 0, end) if mark in text else None
        end = match.start() if match else end
    return text[:end] if text[:end].strip() else text


def plain(text: str) -> str:
    """The text without LaTeX, Markdown, HTML and tokens, in ASCII forms, white space collapsed."""
    if "<" in text and ">" in text:
        text = without_tokens(text)
        if "sup>" in text:
            text = _SUPERSCRIPT.sub(lambda match: match[1] if match[1] == "°" else f"^{match[1]}", text)
        text = _HTML.sub(lambda match: "\n" if match["block"] else "", text)
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text).replace(" & ", " and ")
    text = _collapsed(text)
    if not text.isascii():
        if len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text):  # characters beyond 65,536
            text = _MATHEMATICAL.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = _OTHER_FORM.sub(lambda match: _SAME[match[0]], text)
        text = _ROOT.sub(_root, text) if "√{" in text or "√ " in text else text
    if "~" in text:
        text = _STRUCK.sub("", text)
    if "\\" in text or "{" in text or "~" in text:
        text = _without_latex(text)
    text = text.replace("$", "")
    if "|" in text:
        text = _TABLE_RULE.sub("", text)
    if "*" in text or "_" in text or "`" in text:
        text = text.replace("**", "").replace("__", "").replace("`", "")
        text = _EMPHASIS.sub(r"\1", text) if "*" in text else text
        text = _UNDERSCORED.sub(r"\1", text) if "_" in text else text
    if " : " in text:
        text = _RATIO.sub(":", text)
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
        above = above if above.isdigit() else f"({above})"
        below = below if below.isdigit() else f"({below})"
    return f"{mixed}{above}/{below}"


def _root(match: "re.Match[str]") -> str:
    inner = match[1] or match[2] or ""
    return f"√{inner}" if inner.isalnum() else f"√({inner})"


def _without_latex(text: str) -> str:
    if "\\circ" in text or "\\degree" in text:
        text = _DEGREES.sub("°", text)
    if "\\begin" in text:
        text = _ENVIRONMENT.sub(" ", text)
    if "color" in text:
        text = _COLOR.sub("", text)
    for _ in range(2):  # \boxed{\text{(B) } \frac{1}{2}} and \frac{\sqrt{3}}{2} nest twice
        text = _STYLED.sub(r"\1", text)
        text = _ROOT.sub(_root, text) if "sqrt" in text or "√" in text else text
        text = _FRACTION.sub(_fraction, text) if "frac" in text else text
    words = _COMMAND.split(text)  # what stands between commands and, at the odd places, their names
    words[1::2] = [_MEANS.get(name, name) for name in words[1::2]]
    return "".join(words).replace("{", "").replace("}", "").replace("~", " ")


def sentences(text: str) -> list[str]:
    """The sentences and lines of a plain text, none of them blank."""
    parts, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        parts.append(text[start : match.end()].strip(" \n;"))
        start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part]
