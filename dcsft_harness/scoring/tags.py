r"""Which part of a response is its answer, going by the tags that models write.

    answer_part("<think>A? No.</think> It is <answer>B</answer>") -> "B"
    last_box("so \boxed{3}, no: \boxed{\frac{1}{2}}")             -> "\frac{1}{2}"

Thoughts end at </think>, </thinking>, </reasoning>, [/THINK], ◁/think▷ (Kimi) or
<|end_of_thought|>; answers stand in <answer> or <conclusion> (LLaVA-CoT), in any case. GLM's
<|begin_of_box|>...<|end_of_box|> is \boxed{...}.
"""

import re
from collections.abc import Iterator

# A literal first, so that a text without tags costs next to nothing.
_THOUGHT_END = re.compile(
    r"</(?:[a-z]{1,20}:)?(?i:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
)
_THOUGHT_START = re.compile(r"\s*(?:<(?i:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷)")
_ANSWER = re.compile(r"<(?i:(answer|conclusion|final_?answer))>")
_GLM_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)
# Without its backslash too: "\b" in careless JSON is a backspace.
_BOX = "oxed"
LONGEST_BOX = 300
"""Characters of a box that are read; what follows belongs to an unclosed one."""


def answer_part(text: str) -> str:
    """The part of a response that its tags mark as the answer; without tags, all of it.

    What follows the last end of thoughts: thoughts are not the answer, even where nothing follows
    them. Of that, the last block in answer tags, which may be unclosed, unless it is blank. Thoughts
    that never end cannot be told from an answer; see `is_thinking`.
    """
    if "<" not in text and "◁" not in text and "[/" not in text:
        return text
    for match in _last(_THOUGHT_END, text):
        text = text[match.end() :]
    for match in _last(_ANSWER, text):
        block = re.split(rf"(?i)</{match[1]}>", text[match.end() :], maxsplit=1)[0]
        text = block if block.strip() else text
    return _GLM_BOX.sub(r"\\boxed{\1}", text) if "<|begin_of_box|>" in text else text


def _last(pattern: "re.Pattern[str]", text: str) -> "list[re.Match[str]]":
    match = None
    for match in pattern.finditer(text):  # noqa: B007 (the last one is wanted)
        pass
    return [match] if match else []


def is_thinking(part: str) -> bool:
    """Whether an `answer_part` is a thought that began and never ended, as at a limit of tokens."""
    return _THOUGHT_START.match(part) is not None


def is_cut(text: str) -> bool:
    """Whether a long text breaks off, as at a limit of tokens: its last words conclude nothing."""
    return len(text) > 400 and text[-1].isalnum()


def boxes(text: str) -> Iterator[str]:
    r"""The contents of every \boxed{...}, last first; nested braces are respected."""
    start = text.rfind(_BOX)
    while start >= 0:
        brace = start + len(_BOX)
        while text[brace : brace + 1] == " ":
            brace += 1
        if text[brace : brace + 1] == "{":
            yield text[brace + 1 : _closing_brace(text, brace)]
        start = text.rfind(_BOX, 0, start)


def _closing_brace(text: str, start: int) -> int:
    """Index of the brace that closes the one at start; where a box is not closed, its last character."""
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
