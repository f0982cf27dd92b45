r"""A response without its markup: LaTeX, Markdown, thinking and run-on are taken away.

    plain("So the answer is $\boxed{\text{(B)} \frac{1}{2}}$.") -> "So the answer is (B) 1/2."

Every step is linear in the length of the text; the callers bound that length with `bounded`.
"""

import re

HEAD, TAIL = 3_000, 9_000
"""Characters read of a longer response: an answer stands at its start or at its end."""

# Full-width and typographic characters that mean the same as an ASCII one.
_SAME = str.maketrans(
    {
        "（": "(", "）": ")", "【": "[", "】": "]", "：": ":", "；": "; ", "，": ", ", "、": ", ",
        "。": ". ", "．": ". ", "！": "! ", "？": "? ", "“": '"', "”": '"', "「": '"', "」": '"',
        "‘": "'", "’": "'", "−": "-", "–": "-", "—": " - ", "•": "-", "⁄": "/", "＝": "=", "％": "%",
        "º": "°", "˚": "°", "²": "^2", "³": "^3", "½": " 1/2", "\u200b": "",
        **{chr(0xFF21 + i): chr(65 + i) for i in range(26)},
        **{chr(0xFF10 + i): chr(48 + i) for i in range(10)},
    }
)  # fmt: skip

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ROOT = re.compile(r"(?:\\sqrt|√)\s*(?:\{([^{}]*)\}|(\d))")
_STYLED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mathbb|operatorname|boldsymbol|bm|mbox|fbox)"
    r"\s*\{([^{}]*)\}"
)
_SYMBOLS = (
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|\\circ"), "°"),
    (re.compile(r"\\cdot(?![a-z])"), "·"),
    (re.compile(r"\\times(?![a-z])"), "×"),
    (re.compile(r"\\pi(?![a-z])"), "π"),
    (re.compile(r"\\(?:approx|thickapprox|simeq)(?![a-z])"), "≈"),
    (re.compile(r"\\(?:rightarrow|Rightarrow|to|implies)(?![a-z])"), " → "),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad|bf|rm)(?![a-zA-Z])|\\[,;:! ]|~"), " "),
    (re.compile(r"\\\\|\\newline"), "\n"),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\([%$&#_{}])"), r"\1"),
    (re.compile(r"\\([A-Za-z]+)"), r"\1"),
)
_STRONG = re.compile(r"\*\*|__|`+")
_EMPHASIS = re.compile(r"(?<![\w*)])\*(?=[^\s*])([^*\n]{1,200})(?<=\S)\*(?![\w*(])")
_HEADING = re.compile(r"(?m)^[ \t]*(?:#{1,6}|>)[ \t]*")
_SPACES = re.compile(r"[^\S\n ]|[^\S\n]{2,}")
_BLANK_LINES = re.compile(r" ?\n[ \n]*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+|\n+|;\s+")

# A model that goes on writing the next turn or the next question of a made-up prompt.
_RUN_ON = re.compile(
    r"\n(?:Hint|Question|Problem|USER|User|Human|Instruction|Q)\s?\d{0,3}\s?:"
    r"|<\|(?:im_end|im_start|endoftext|eot_id|end)\|>|</s>"
)

_ROLE = re.compile(r"^\s*<\|[a-z_]{1,20}\|>\s*(?:assistant)?[ \t]*\n?")


def bounded(text: str) -> str:
    """The text, or the first 3,000 and last 9,000 characters of a longer one."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n{text[-TAIL:]}"


def answer_part(text: str) -> str:
    """The part of a response that its tags mark as the answer; without tags, all of it.

    What follows the last </think>: thoughts are not the answer, even where nothing follows them. Of
    that, the last <answer> block, which may be unclosed, unless it is blank.
    """
    if "</think>" in text:
        text = text[text.rfind("</think>") + len("</think>") :]
    start = text.rfind("<answer>")
    if start < 0:
        return text
    block = text[start + len("<answer>") :].split("</answer>", 1)[0]
    return block if block.strip() else text


def before_run_on(text: str) -> str:
    """A plain text up to where the model starts to write a further prompt of its own."""
    if "\n" not in text and "<" not in text:
        return text
    text = _ROLE.sub("", text)
    match = _RUN_ON.search(text)
    return text[: match.start()] if match and text[: match.start()].strip() else text


def boxed_contents(text: str) -> list[str]:
    r"""The contents of every \boxed{...}, in order; nested braces are respected."""
    found = []
    start = text.find("\\boxed")
    while start >= 0:
        brace = start + len("\\boxed")
        if text[brace : brace + 1] == "{":
            end = _closing_brace(text, brace)
            found.append(text[brace + 1 : end])
        start = text.find("\\boxed", brace)
    return found


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one at start; at most 300 characters on, or there."""
    depth = 0
    stop = min(len(text), start + 300)
    for index in range(start, stop):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return stop


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
    for _ in range(2):  # \boxed{\text{(B) } \frac{1}{2}} and \frac{\sqrt{3}}{2} nest twice
        text = _STYLED.sub(r"\1", text)
        text = _ROOT.sub(_root, text)
        text = _FRACTION.sub(_fraction, text)
    text = text.replace("\\boxed", " ")
    for pattern, replacement in _SYMBOLS:
        text = pattern.sub(replacement, text)
    return text.replace("{", "").replace("}", "")


def plain(text: str) -> str:
    """The text without LaTeX and Markdown, full-width characters in ASCII, white space collapsed."""
    text = _collapsed(text)
    if not text.isascii():
        text = text.translate(_SAME)
        if "√" in text:
            text = _ROOT.sub(_root, text)
    if "\\" in text or "{" in text or "~" in text:
        text = _without_latex(text)
    if "$" in text:
        text = text.replace("$", "")
    if "*" in text or "_" in text or "`" in text:
        text = _EMPHASIS.sub(r"\1", _STRONG.sub("", text))
    if "#" in text or ">" in text:
        text = _HEADING.sub("", text)
    return _collapsed(text).strip()


def _collapsed(text: str) -> str:
    """Single spaces and line ends, so that no pattern can run long over white space."""
    if text.isprintable() and "  " not in text:  # most responses: one line
        return text
    text = _SPACES.sub(" ", text)
    return _BLANK_LINES.sub("\n", text) if "\n" in text else text


def sentences(text: str) -> list[str]:
    """The sentences and lines of a plain text, none of them blank."""
    return [part for part in (piece.strip() for piece in _SENTENCE_END.split(text)) if part]
