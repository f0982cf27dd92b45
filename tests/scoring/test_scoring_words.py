"""One-word answers, the registry of scorers, and the verdict that all of them return."""

import dataclasses
import functools
import importlib
import linecache
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS, Verdict, get_scorer
from dcsft_harness.scoring.words import can_become_right, exact_word


@pytest.mark.parametrize(
    ("response", "answer", "score", "extracted"),
    [
        ("goose", "goose", 1.0, "goose"),
        (" Goose.\n", "goose", 1.0, "goose"),
        ("GOOSE...", "Goose", 1.0, "goose"),
        ("jack-o'-lantern", "Jack-o'-lantern.", 1.0, "jack-o'-lantern"),
        ("mongoose", "goose", 0.0, "mongoose"),  # substrings do not count
        ("a goose", "goose", 0.0, "a goose"),
        ("It is a goose.", "goose", 0.0, "it is a goose"),
        ("goose!", "goose", 0.0, "goose!"),  # the paper only strips periods
        ("geese", "goose", 0.0, "geese"),
        ("goose .", "goose", 0.0, "goose "),  # stripped in the paper's order: spaces, then periods
        ("<answer>goose</answer>", "goose", 0.0, "<answer>goose</answer>"),  # the whole response counts
        ("", "goose", 0.0, None),
        (" \n\t", "goose", 0.0, None),
        ("...", "goose", 0.0, None),
    ],
)
def test_the_whole_response_must_be_the_word(response, answer, score, extracted):
    assert exact_word(response, answer=answer) == Verdict(score, extracted)


@pytest.mark.parametrize("answer", ["", "  ", "."])
def test_refuses_a_blank_answer(answer):
    with pytest.raises(HarnessError, match="blank"):
        exact_word("goose", answer=answer)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_case_does_not_matter_and_normalizing_twice_changes_nothing(text):
    verdict = exact_word(text, answer="goose")
    assert exact_word(text.upper(), answer="GOOSE") == exact_word(text.lower(), answer="goose") == verdict


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_verdict_refuses_a_score_outside_the_unit_interval(score):
    with pytest.raises(ValueError, match="score"):
        Verdict(score, "goose")


def test_a_verdict_without_an_answer_scores_0():
    with pytest.raises(ValueError, match="no answer"):
        Verdict(1.0, None)


def test_scorers_are_found_by_name_and_share_one_interface():
    keywords = {
        "exact_word": {},
        "choice": {"choices": ["3", "5"]},
        "box_iou": {"image_size": (9, 9)},
        "math": {},
        "open_answer": {},
    }
    answers = {"exact_word": "goose", "choice": "B", "box_iou": [1, 2, 9, 8], "math": "1/2"}
    answers["open_answer"] = ["20", "twenty"]
    responses = {"exact_word": "Goose.", "choice": "(B)", "box_iou": "[1, 2, 9, 9]", "math": "so x = 0.5"}
    responses["open_answer"] = "20 m"
    assert set(SCORERS) == set(keywords)
    for name in SCORERS:
        scorer = get_scorer(name)
        assert scorer(responses[name], answer=answers[name], **keywords[name]).score == 1.0
        assert scorer("", answer=answers[name], **keywords[name]) == Verdict(0.0, None)


def test_an_unknown_scorer_is_named_with_near_matches():
    with pytest.raises(HarnessError, match="choise.*choice"):
        get_scorer("choise")


def test_importing_the_scorers_imports_nothing_heavy():
    script = "import sys, dcsft_harness.scoring; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"sympy", "math_verify", "torch", "numpy", "lmms_eval"} & set(loaded)


def graded(response, *, answer, choices=None):
    """A user's scorer: the share of the answer's letters that the response contains."""
    assert choices is None or choices == ["red", "blue"]
    return len(set(response) & set(answer)) / len(set(answer))


class TestUsersFunctions:
    def test_a_function_can_be_given_by_name_or_directly(self):
        for named in (graded, f"{__name__}:graded"):
            scorer = get_scorer(named)
            assert (scorer.name, scorer.fields) == (f"{__name__}:graded", ("choices",))
            assert scorer("ab", answer="abcd") == Verdict(0.5, "ab")
            assert scorer("", answer="abcd") == Verdict(0.0, None)
            assert scorer.score_many(["abcd", "x"], truncated=[True, False], answer="abcd")[0].score == 1.0
        assert get_scorer(lambda response, answer: response == answer)("a", answer="a").score == 1.0
        for one in (np.float32(0.5), np.array(0.5)):
            assert get_scorer(lambda response, answer, one=one: one)("a", answer="a").score == 0.5
        assert get_scorer(lambda response, answer: np.bool_(True))("a", answer="a").score == 1.0
        assert get_scorer(lambda response, answer, truncated: not truncated).score_many(
            ["a", "a"], truncated=[True, False], answer="a"
        ) == [Verdict(0.0, "a"), Verdict(1.0, "a")]

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ("no_such_module_of_mine:f", "cannot be imported.*no_such_module_of_mine"),
            ("json:no_such_function", "cannot be imported.*no_such_function"),
            ("json:__doc__", "is str, not a function"),
            ("textwrap:dedent", "cannot be called as scorer"),
            (lambda response, gold: 1, "cannot be called as scorer"),
            (lambda response, answer, image: 1, "cannot be called as scorer"),
        ],
    )
    def test_a_function_is_checked_when_it_is_opened(self, named, message):
        with pytest.raises(HarnessError, match=message):
            get_scorer(named)

    @pytest.mark.parametrize("result", [None, "right", 2, -0.1, float("nan")])
    def test_a_functions_result_is_checked(self, result):
        with pytest.raises(HarnessError, match=f"returned {type(result).__name__} "):
            get_scorer(lambda response, answer: result)("a", answer="a")


@pytest.mark.parametrize(
    ("response", "golds", "score"),
    [
        ("45 %", ["45.0"], 1),
        ("15 Ω", ["15"], 1),
        ("structure D", ["D"], 1),
        ("structure D", ["E"], 0),
        ("There are seven of them.", ["7"], 1),
        ("I cannot read the 60 Hz label", ["60"], 0),
        ("\\boxed{0.43}", ["0.429"], 1),
        ("\\boxed{0.43}", ["3/7"], 0),
        ("\\boxed{3/7}", ["0.429"], 1),
        ("$3 million", ["3000000"], 1),
        ("It is the larval stage.", ["pupal", "larval"], 1),
        ("It is not larval.", ["larval"], 0),
        ("\\boxed{450 mA}", ["0.45 A"], 1),
        ("The current is 0.45 mA.", ["0.45 A"], 0),
        ("pre-larval", ["larval"], 0),
        ("Unlike the larval stage, this one has wings.", ["larval"], 0),
        ("Rather than larval, the arrow marks the pupal stage.", ["larval"], 0),
        ("It is pupal because larval legs would be longer.", ["larval"], 0),
        ("It is pupal because larval legs would be longer.", ["pupal"], 1),
        ("It is pupal, as opposed to larval.", ["larval"], 0),
        ("The stage is not pupal but larval.", ["larval"], 1),
        ("The stage is not larval but pupal.", ["larval"], 0),
        ("The value is 12.5, compared to 9.8 last year.", ["12.5"], 1),
        ("The value is 12.5, compared to 9.8 last year.", ["9.8"], 0),
        ("45 million, up from 30 million in 2011", ["45000000"], 1),
        ("It is 5 cm, whereas the other one is 7 cm.", ["5"], 1),
        ("It is pupal; larval legs would be longer.", ["larval"], 0),
        ("Rather than a pupal stage it shows the larval one.", ["larval"], 1),
        ("The plant wilts because of the larval pest.", ["larval"], 1),
        ("It is D because the others are deeper.", ["D"], 1),
        ("The total is 2.5 million.", ["2500000"], 1),
        ("The efficiency is therefore about 33.3 %.", ["0.33"], 1),
        ("The efficiency is therefore about 33.9 %.", ["0.33"], 0),
        ("\\boxed{33.3}", ["0.33"], 0),
        ("图中箭头所指的是larval阶段。", ["larval"], 1),
        ("答案：larval", ["larval"], 1),
        ("答案：prelarval", ["larval"], 0),
    ],
)
def test_open_answers_are_read_with_the_numbers_and_units_of_math(response, golds, score):
    assert SCORERS["open_answer"](response, answer=golds).score == score


@pytest.mark.parametrize("name", ["exact_word", "box_iou", "math", "open_answer"])
def test_a_truncated_response_states_its_closed_answer(name):
    answer = {"exact_word": "5", "box_iou": [10, 20, 110, 220], "math": "5", "open_answer": ["5"]}[name]
    more = {"image_size": (640, 480)} if name == "box_iou" else {}
    thought = "So it may be [10, 20, 110, 220] with 5, but" if name == "box_iou" else "So it may be 5"
    assert SCORERS[name](thought, answer=answer, truncated=True, **more) == Verdict(0.0, None)
    if name != "exact_word":  # which ignores truncation
        closed = "[10, 20, 110, 220]" if name == "box_iou" else "5"
        text = f"Hm. \\boxed{{{closed}}} and now"
        assert SCORERS[name](text, answer=answer, truncated=True, **more).score == 1.0
        text = f"Hm. <answer>{closed}</answer> and now"
        assert SCORERS[name](text, answer=answer, truncated=True, **more).score == 1.0


@given(
    st.sampled_from(["goose", "New York", "u.s.a", "é", "a ."]),
    st.text(" \n.", max_size=4),
    st.text(" \n.", max_size=4),
    st.booleans(),
)
def test_every_prefix_of_a_right_response_can_become_right(answer, before, after, capital):
    response = before + (answer.upper() if capital else answer) + after
    if exact_word(response, answer=answer).score == 1.0:
        assert all(can_become_right(response[:end], answer=answer) for end in range(len(response) + 1))


@pytest.mark.parametrize(
    ("text", "possible"),
    [
        ("", True), (" \n", True), (" ..g", True), ("GOOS", True), ("goose", True), ("goose. ", True),
        ("goose..", True), ("g\ufffd", True), ("geese", False), ("goose a", False), ("goose .", False),
        ("a goose", False), (". goose", False), ("goose\n.", False), ("goose. .", False),
    ],
)  # fmt: skip
def test_a_text_that_can_no_longer_become_right_is_recognized(text, possible):
    assert can_become_right(text, answer="Goose") is possible
    if not possible:
        endings = ["", "e", "ose", "oose", " ", ".", ". ", ".."]
        assert all(exact_word(text + end, answer="Goose").score == 0.0 for end in endings)


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError("by 0"), RuntimeError("y" * 5000)])
def test_an_exception_in_a_users_scorer_names_its_line_and_the_response(error):
    def mine(response, answer):
        raise error

    with pytest.raises(HarnessError) as caught:
        get_scorer(mine)("a goose", answer="goose")
    said = str(caught.value)
    assert "mine' raises " + type(error).__name__ in said and "test_scoring_words.py, line" in said
    assert "for the response 'a goose'. Correct the function" in said and len(said) < 800
    assert caught.value.__cause__ is error


WRAPPED = """
import functools

def exact(response, *, answer):
    return {exact}

partial = functools.partial(exact)
cached = functools.lru_cache(exact)

@functools.wraps(exact)
def wrapped(response, **given):
    return exact(response, **given)

class Judge:
    def __call__(self, response, *, answer):
        return exact(response, answer=answer)

instance = Judge()
"""


@pytest.mark.parametrize("name", ["exact", "partial", "cached", "wrapped", "instance"])
def test_the_version_of_any_users_scorer_depends_on_its_code(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number, exact in enumerate(("response == answer", "answer in response")):
        (tmp_path / f"judges{number}.py").write_text(WRAPPED.replace("{exact}", exact))
        found.append(get_scorer(f"judges{number}:{name}").version)
    assert len({*found, 1}) == 3
    assert found == [get_scorer(f"judges{number}:exact").version for number in (0, 1)]


def near(response, *, answer, within=0.0):
    return abs(float(response) - float(answer)) <= within


class Near:
    def __init__(self, within):
        self.within, self.seen = within, []

    def __call__(self, response, *, answer):
        self.seen.append(response)
        return near(response, answer=answer, within=self.within)

    def judge(self, response, *, answer):
        return self(response, answer=answer)


def _closed(within):
    return lambda response, *, answer: near(response, answer=answer, within=within)


@dataclasses.dataclass(slots=True)
class Slotted:
    within: float

    def __call__(self, response, *, answer):
        return near(response, answer=answer, within=self.within)


def _by_default(limit):
    return lambda response, *, answer, within=limit: near(response, answer=answer, within=within)


def _of_a_function(limit):
    inner = functools.partial(near, within=limit)
    return lambda response, *, answer: inner(response, answer=answer)


def _of_a_pattern(limit):
    known = re.compile(str(limit))
    return lambda response, *, answer: bool(known.search(response))


def _of_a_set(limit):
    known = frozenset(["0", str(limit)])
    return lambda response, *, answer: response in known


def _cached(limit):
    return functools.lru_cache(_closed(limit))


@pytest.mark.parametrize(
    "make",
    [
        lambda within: functools.partial(near, within=within),
        Near,
        lambda w: Near(w).judge,
        _closed,
        Slotted,
        lambda within: functools.partial(Slotted(within)),
        _by_default,
        _of_a_function,
        _of_a_pattern,
        _of_a_set,
        _cached,
        lambda within: _closed(Slotted(within)),
    ],
)
def test_the_version_of_a_users_scorer_depends_on_what_it_keeps(make):
    one, same, other = (get_scorer(make(within)) for within in (0.1, 0.1, 0.5))
    assert (one.name, one.version) == (same.name, same.version)
    assert one.name == other.name and one.version != other.version
    assert one.name.startswith(f"{__name__}:")
    if make is Near:
        one("1", answer="1.3")  # what it has seen does not count
    assert get_scorer(make(0.1)).version == one.version


NOTEBOOK = """
import re
{constant}
def clean(text):
    return {cleaned}

def judge(response, *, answer):
    return clean(response) == answer and len(response) < LONGEST and answer not in SEEN
"""


def test_the_version_of_a_notebooks_scorer_depends_on_what_it_names(monkeypatch):
    def version(constant="LONGEST = 9", cleaned="text.strip()", seen=""):
        text = NOTEBOOK.replace("{constant}", constant).replace("{cleaned}", cleaned)
        lines = text.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, "<cell>", (len(text), None, lines, "<cell>"))
        names = {"__name__": "__main__", "SEEN": [seen]}
        exec(compile(text, "<cell>", "exec"), names)
        return get_scorer(names["judge"]).version

    assert version() == version(seen="a cache, perhaps")
    assert len({version(), version("LONGEST = 10"), version(cleaned="text.lower()"), 1}) == 4


@pytest.mark.parametrize("before", ["dcsft_harness", "the user"])
def test_a_scorers_module_is_read_again_when_its_file_has_changed(tmp_path, monkeypatch, before):
    """Else old code would score under a new version, in a notebook or between the stages of a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"changing_{before.replace(' ', '_')}"
    file = tmp_path / f"{name}.py"
    file.write_text("def judge(response, *, answer):\n    return 1\n")
    if before == "the user":
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.import_module(name)
    old = get_scorer(f"{name}:judge")
    function = sys.modules[name].judge
    assert get_scorer(function).version == get_scorer(f"{name}:judge").version == old.version
    file.write_text("def judge(response, *, answer):\n    return 0.25\n")
    with pytest.raises(HarnessError, match=f"{name}.py has changed since judge was imported.*reload"):
        get_scorer(function)
    new = get_scorer(f"{name}:judge")
    assert old.version != new.version and new("x", answer="x").score == 0.25
    assert get_scorer(sys.modules[name].judge).version == new.version
    file.write_text("def judge(")
    with pytest.raises(HarnessError, match=f"{name}:judge' cannot be imported .SyntaxError"):
        get_scorer(f"{name}:judge")


HELPERS = {
    "beside": ("import cleaning\n", "cleaning.clean", "cleaning.py"),
    "below": ("from parts.cleaning import clean\n", "clean", "parts/cleaning.py"),
    "through another": ("import between\n", "between.clean", "cleaning.py"),
    "in a function": ("", "_clean()", "cleaning.py"),
}


@pytest.mark.parametrize(
    ("place", "way"),
    [
        (place, way)
        for place in HELPERS
        for way in ("by name", "a function", "a notebook's")
        if (place, way) != ("in a function", "a notebook's")  # of a notebook only what its function names
    ],
)
def test_files_that_a_scorer_imports_are_part_of_its_version(tmp_path, monkeypatch, place, way):
    """An edited helper scored under the version of the unedited one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    imports, call, file = HELPERS[place]
    (tmp_path / "parts").mkdir()
    (tmp_path / "between.py").write_text("from cleaning import clean\n")
    text = f"{imports}def judge(response, *, answer):\n    return {call}(response) == answer\n"
    if place == "in a function":
        text += "\ndef _clean():\n    from cleaning import clean\n    return clean\n"
    (tmp_path / "judging.py").write_text(text)

    def scorer(cleaned):
        (tmp_path / file).write_text(f"def clean(text):\n    return {cleaned}\n")
        if way == "by name":
            return get_scorer("judging:judge")
        if way == "a function":
            return get_scorer(importlib.import_module("judging").judge)
        lines = text.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, "<cell>", (len(text), None, lines, "<cell>"))
        exec(compile(text, "<cell>", "exec"), names := {"__name__": "__main__"})
        return get_scorer(names["judge"])

    try:
        old = scorer("text.strip()")
        assert (old.version, old(" A", answer="A").score) == (scorer("text.strip()").version, 1.0)
        if way == "by name":
            new = scorer("text.lower()")
            assert new.version != old.version and new("A", answer="a").score == 1.0
            assert scorer("text.strip()").version == old.version
        else:
            with pytest.raises(HarnessError, match="cleaning.py has changed since .* was imported. Restart"):
                scorer("text.lower()")
    finally:
        for name in ("judging", "between", "cleaning", "parts.cleaning", "parts"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("file", ["judge_here.py", "judge_here/__init__.py"])
def test_a_scorers_module_is_the_one_in_the_working_directory(tmp_path, monkeypatch, file):
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = []
    for folder in ("a", "b", "a"):
        (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        (tmp_path / folder / file).write_text(
            f"def judge(response, *, answer):\n    return {folder == 'a'}\n"
        )
        found.append(get_scorer("judge_here:judge")("x", answer="x").score)
    del sys.modules["judge_here"]
    assert found == [1.0, 0.0, 1.0]


class Classed:
    """Its methods are made at each access."""

    @classmethod
    def judge(cls, response, *, answer):
        return response == answer

    @functools.singledispatchmethod
    def other(self, one):
        return one


def test_a_class_method_is_a_scorer():
    found = get_scorer(Classed.judge)
    assert found("x", answer="x").score == 1.0
    assert found.version == get_scorer(f"{__name__}:Classed.judge").version != 1


def test_a_reloaded_helper_does_not_pass_for_that_of_a_module_that_holds_the_old_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "norming.py").write_text("def norm(text):\n    return text.lower()\n")
    (tmp_path / "holding.py").write_text(
        "from norming import norm\ndef score(response, *, answer):\n    return norm(response) == answer\n"
    )
    holding = importlib.import_module("holding")
    old = get_scorer(holding.score).version
    (tmp_path / "norming.py").write_text("def norm(text):\n    return text.strip()\n")
    importlib.invalidate_caches()
    importlib.reload(sys.modules["norming"])
    with pytest.raises(
        HarnessError, match="norming.py has changed .* Restart Python, or reload its module, then"
    ):
        get_scorer(holding.score)
    importlib.reload(holding)
    assert get_scorer(holding.score).version != old
    assert get_scorer(holding.score)("ABC", answer="abc").score == 0.0
    for name in ("norming", "holding"):
        del sys.modules[name]


def test_the_harness_is_no_file_of_a_scorer_in_its_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_OURS", tmp_path / "harness")
    (tmp_path / "harness").mkdir()
    (tmp_path / "mine.py").write_text("from harness.scoring import Verdict\nimport beside\n")
    for file in ("beside.py", "harness/__init__.py", "harness/scoring.py"):
        (tmp_path / file).touch()
    found = reading.imported_files(tmp_path / "mine.py", tmp_path)
    assert [file.name for file in found] == ["mine.py", "beside.py"]


@pytest.mark.parametrize(
    "forms",
    [
        ["CO2", "CO₂", "CO_2", "CO$_2$", r"$\text{CO}_2$", r"\boxed{\mathrm{CO}_2}"],
        ["Ca2+", "Ca²⁺", "Ca^{2+}", r"$\mathrm{Ca}^{2+}$"],
        ["SO4^2-", "SO₄²⁻", r"$\text{SO}_4^{2-}$"],
        ["Ca(OH)2", "Ca(OH)₂", r"\mathrm{Ca(OH)}_2"],
    ],
)
def test_chemical_formulas_are_words_in_any_notation(forms):
    for gold in forms:
        responses = [*forms, *(f"It is {form}." for form in forms), "CO3", "2", "Ca"]
        found = [SCORERS["open_answer"](response, answer=[gold]).score for response in responses]
        assert found == [*[1.0] * 2 * len(forms), 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("a goose", "goose", True), ("答案是goose。", "goose", True), ("_goose_", "goose", True),
        ("鹅是鸟", "鹅", True), ("mongoose", "goose", False), ("non-goose", "goose", False),
        ("a café", "caf", False), ("гусыня", "гус", False),
    ],
)  # fmt: skip
def test_a_gold_in_words_must_match_whole_words_in_scripts_with_spaces(response, gold, right):
    assert SCORERS["open_answer"](response, answer=gold).score == right
