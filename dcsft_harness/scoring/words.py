"""The paper's rule for naming an object in one word (ImageNet, -R, -A).

    exact_word(" Goose.", answer="goose")     -> Verdict(1.0, "goose")
    exact_word("It is a goose", answer="goose") -> Verdict(0.0, "it is a goose")

Source: the published DC-SFT evaluation (`infer/test_dp.py`): strip, strip ".", lower, and
equality on the whole response. A sentence that contains the word is wrong: the prompt asks for
"one word", and a substring rule would credit "goose" inside "mongoose".
"""

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.verdict import NOT_FOUND, Scorer, Verdict


def normalize_word(text: str) -> str:
    """The form in which responses and answers are compared: " Goose. " -> "goose"."""
    return text.strip().strip(".").lower()


def exact_word(response: str, *, answer: str, truncated: bool = False) -> Verdict:
    """Score 1.0 if the whole response is the answer, else 0.0.

    Args:
        response: what the model wrote.
        answer: the right word or words; normalized like the response.
        truncated: whether the response ran out of tokens; it is not whole then, and states nothing.

    Returns:
        A score of 0.0 or 1.0; extracted is the normalized response, None if nothing is left of it.

    Raises:
        HarnessError: if the answer is blank, as no response could be right.
    """
    gold = normalize_word(answer)
    if not gold:
        raise HarnessError(f"the answer of an exact_word item is blank: {answer!r}", "Put the word there")
    found = normalize_word(response)
    if not found or truncated:
        return NOT_FOUND
    return Verdict(float(found == gold), found)


def can_become_right(text: str, *, answer: str) -> bool:
    """Whether a response that begins with a text can be right; the text may also be right as it is.

    Args:
        text: the beginning of a response, perhaps with half a character ("\ufffd") at its end.
        answer: as of `exact_word`.
    """
    gold = normalize_word(answer)
    left = text.rstrip("\ufffd").lstrip().lstrip(".").lower()
    if gold.startswith(left):
        return True
    return left.startswith(gold) and not left[len(gold) :].rstrip().strip(".")


SCORER = Scorer("exact_word", exact_word, version=3)
