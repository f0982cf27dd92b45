"""Plain searches that stand for patterns find what the patterns would."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness.scoring.cues import cues, has_key
from dcsft_harness.scoring.occurrences import Occurrences
from dcsft_harness.scoring.plain_text import _collapsed, last_sentence, plain, sentences

WORDS = st.text(alphabet="ab1 .-_√π^/(°é", max_size=24)
TEXTS = st.lists(st.text(alphabet="ab1 .-√π(°é", min_size=1, max_size=4), min_size=1, max_size=4)
PIECES = st.lists(
    st.sampled_from([*'.!?;\n "])', " \n", "  ", "\t", "\u00a0", "ab", "c", "\x1c", "**", "the answer is "]),
    max_size=30,
).map("".join)


def as_pattern(texts):
    """The longest first, and no letter, digit or operator on either side."""
    parts = []
    for text in sorted(texts, key=len, reverse=True):
        before = r"(?<![a-z0-9_.√^/])" if text[0].isascii() and (text[0].isalnum() or text[0] in "-.") else ""
        after = r"(?![a-z0-9_√π^/]|\.\d)" if text[-1].isascii() and text[-1].isalnum() else ""
        parts.append(before + re.escape(text) + after)
    return re.compile("|".join(parts))


@settings(deadline=None)
@given(TEXTS, WORDS)
def test_texts_are_found_as_a_pattern_of_them_would(texts, sentence):
    pattern, found = as_pattern(texts), Occurrences(dict.fromkeys(texts))
    assert found.within(sentence) == [match.span() for match in pattern.finditer(sentence)]
    begun = pattern.match(sentence)
    assert found.first(sentence) == (begun.group() if begun else None)
    assert not pattern.search(sentence) or found.any_in(sentence)


@settings(deadline=None)
@given(PIECES)
def test_white_space_is_collapsed_as_patterns_would(text):
    spaced = re.sub(r"[^\S\n ]|[^\S\n]{2,}", " ", text)
    spaced = re.sub(r"  +", " ", spaced) if "  " in spaced else spaced
    assert _collapsed(text) == re.sub(r"\n[ \n]+", "\n", spaced.replace(" \n", "\n"))


@settings(deadline=None)
@given(PIECES)
def test_the_last_sentence_is_the_last_of_the_sentences(text):
    text = plain(text)
    parts = sentences(text)
    if parts:
        assert last_sentence(text) == (parts[-1], len(parts) > 1)


@settings(deadline=None)
@given(PIECES)
def test_a_text_with_a_cue_has_a_key(text):
    assert has_key(text) or not list(cues(plain(text)))
