"""External text is printed as plain text: a name cannot control the terminal or forge a line."""

import contextlib
import gzip
import json
import logging
import re
import sys
import time
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich.progress
from PIL import Image

from dcsft_harness import cli, environment, errors
from dcsft_harness.artifacts import manifest, usage
from dcsft_harness.cli import main
from dcsft_harness.curation import suspects
from dcsft_harness.evaluation import responses
from dcsft_harness.sampling import own_data, own_files
from dcsft_harness.stages import STAGES
from tests.fixtures.artifacts import rollouts
from tests.fixtures.study import adapter, curated
from tests.leaderboard.test_leaderboard import ID, scores_folder

HOSTILE = {
    "color": "\x1b[31mred\x1b[0m",
    "bell": "a\ab",
    "C1 control": "\x9b31mred",
    "link": "\x1b]8;;http://example.invalid\x1b\\link\x1b]8;;\x1b\\",
    "title": "\x1b]0;title\x07",
    "override": "a\u202ebc",
    "isolate": "a\u2066b\u2069",
    "line": "a\nFORGED: done",
    "return": "a\rFORGED: done",
    "separator": "a\u2028FORGED: done",
    "backspace": "a\b\b\bFORGED",
    "surrogate": "a\udc9b31m",
}
NAMES = [name for kind, name in HOSTILE.items() if kind != "surrogate"]


def file(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def recipe(tmp_path, name, **changes):
    stage = {"stage": "one", "verb": "sample", "task": name, "model_args": f"pretrained={name}", **changes}
    return file(tmp_path / "own.yaml", json.dumps({"name": name, "about": name, "stages": [stage]}))


def changed(folder, **changes):
    path = folder / manifest.NAME
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")
    return folder


def scores(tmp_path, name):
    return scores_folder(tmp_path / "a", name, {ID: [1.0, 0.0], name: [1.0, 1.0]})


def costs(tmp_path, name):
    data = curated(tmp_path / "data", 1, 1, 1)
    return [adapter(tmp_path / name, data), adapter(tmp_path / "other", data)]


def methods(tmp_path, name):
    folder = adapter(tmp_path / "a", curated(tmp_path / "data", 1, 1, 1))
    path = folder / "manifest.json"
    found = json.loads(path.read_text())
    found["config"]["method"] = name
    path.write_text(json.dumps(found))
    return folder


def rows(tmp_path, name, **changes):
    row = {"problem": "Which?", "solution": "goose", "image": f"{name}.png", **changes}
    return file(tmp_path / "mine.jsonl", json.dumps(row))


def trainable(tmp_path):
    """A file with one row and its image: the options are wrong here, not the data."""
    Image.new("RGB", (56, 56)).save(tmp_path / "x.png")
    return rows(tmp_path, "x")


SAMPLE = ["sample", "--model-args", "pretrained=digits"]
VERBS = {
    "usage": lambda tmp, name: [name],
    "option": lambda tmp, name: ["label", f"--{name}"],
    "dry run": lambda tmp, name: ["run", recipe(tmp, name), "--dry-run"],
    "recipe verb": lambda tmp, name: ["run", recipe(tmp, "x", verb=name), "--dry-run"],
    "recipe key": lambda tmp, name: ["run", recipe(tmp, "x", **{name: 1}), "--dry-run"],
    "recipe variable": lambda tmp, name: ["run", recipe(tmp, "x", limit="${" + name + "}"), "--dry-run"],
    "recipe name": lambda tmp, name: ["run", name, "--dry-run"],
    "kind": lambda tmp, name: ["label", changed(rollouts(tmp / "a", ["easy"]), artefact=name)],
    "inputs": lambda tmp, name: ["label", changed(rollouts(tmp / "a", ["easy"]), inputs={name: name})],
    "folder": lambda tmp, name: ["label", tmp / name],
    "keep": lambda tmp, name: ["curate", tmp, "--keep", name],
    "task": lambda tmp, name: [*SAMPLE, "--task", name],
    "evaluated": lambda tmp, name: ["evaluate", "--model-args", "pretrained=digits", "--tasks", name],
    "model": lambda tmp, name: ["sample", "--model", name, "--task", "dcsft_digits_pool"],
    "argument": lambda tmp, name: ["sample", "--task", "dcsft_digits_pool", "--model-args", name],
    "checked task": lambda tmp, name: ["tasks", "check", name],
    "prepared task": lambda tmp, name: ["data", "prepare", name],
    "image": lambda tmp, name: [*SAMPLE, "--data", rows(tmp, name), "--scorer", "exact_word"],
    "scorer": lambda tmp, name: [*SAMPLE, "--data", rows(tmp, "x"), "--scorer", name],
    "gold": lambda tmp, name: [*SAMPLE, "--data", rows(tmp, "x", solution=[name]), "--scorer", "math"],
    "config": lambda tmp, name: [
        "train", "sft", "--model", "digits", "--data", trainable(tmp),
        "--config", file(tmp / "own.yaml", json.dumps({name: name})),
    ],
    "set": lambda tmp, name: [
        "train", "sft", "--model", "digits", "--data", trainable(tmp), "--set", f"{name}=1",
    ],
    "board": lambda tmp, name: ["leaderboard", "build", scores(tmp, name)],
    "left out": lambda tmp, name: [
        "leaderboard", "build", scores(tmp, "x"),
        changed(scores_folder(tmp / "b", "y", {ID: [1]}), artefact=name),
    ],
    "baseline": lambda tmp, name: ["leaderboard", "build", scores(tmp, "x"), "--baseline", name],
    "costs": lambda tmp, name: ["compare-cost", *costs(tmp, name)],
    "card": lambda tmp, name: ["card", changed(rollouts(tmp / "a", ["easy"]), artefact=name)],
    "costs of a method": lambda tmp, name: ["compare-cost", methods(tmp, name)],
    "merge": lambda tmp, name: ["merge", tmp / name],
    "results": lambda tmp, name: ["results", tmp / name],
    "served": lambda tmp, name: ["leaderboard", "serve", tmp / name],
}  # fmt: skip
TEXTS = (".md", ".csv", ".tex", ".txt", ".json", ".jsonl")
"""Files that people read in a terminal."""
WITHOUT_OUTPUT = {"usage", "checked task", "prepared task", "card", "served", "costs"}


@pytest.mark.parametrize("verb", VERBS)
def test_external_text_never_reaches_the_terminal_raw(tmp_path, capsys, monkeypatch, verb):
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        arguments = [str(word) for word in VERBS[verb](folder, name)]
        if verb not in WITHOUT_OUTPUT:
            arguments += ["--output", str(folder / "output.md")]
        main(arguments)
        taken = capsys.readouterr()
        said = taken.out + taken.err
        raw = {letter for letter in said if not (letter.isprintable() or letter == "\n")}
        assert not raw, (name, said)
        assert not [line for line in said.split("\n") if line.lstrip().startswith("FORGED")], (name, said)
        assert said, name
        for path in [path for path in folder.rglob("output*") if path.suffix in TEXTS and path.is_file()] + [
            path for path in folder.glob("output.md/**/*") if path.suffix in TEXTS
        ]:
            raw = {letter for letter in path.read_text() if not (letter.isprintable() or letter in "\n\t")}
            assert not raw, (name, path)


@pytest.mark.parametrize("kind", HOSTILE)
def test_errors_logs_and_tracebacks_are_escaped(capsys, kind):
    name = HOSTILE[kind]
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (name,), None)
    cli._traceback(ValueError, ValueError(name), None)
    shown = [
        str(errors.HarnessError(name, name)),
        cli._Visible().format(record).replace("\n", ""),
        capsys.readouterr().err.replace("\n", ""),
        suspects._entry(1, {"share": 1.0, "samples": 2, "doc_id": 0, "item_id": "i", "images": [],
                          "prompt": name, "gold": name, "voice": name}).replace("\n", ""),
    ]  # fmt: skip
    for text in shown:
        assert text.isprintable(), text
    assert errors.visible("naïve 鹅 🐦") == "naïve 鹅 🐦"


def test_the_log_of_lmms_eval_is_escaped(capsys):
    from loguru import logger

    from dcsft_harness.lmms.tasks import quiet

    quiet()
    try:
        logger.error(f"task {HOSTILE['color']} failed")
        assert capsys.readouterr().err == "task \\x1b[31mred\\x1b[0m failed\n"
    finally:
        logger.remove()


def test_a_progress_bar_ignores_markup(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with cli.bar.stage("[link=http://example.invalid]score[/link] \x1b[31mx") as report:
        report(1, 2)
    said = capsys.readouterr().err
    assert "\x1b]8" not in said and "\x1b[31mx" not in said


def test_a_long_message_is_cut():
    said = str(errors.HarnessError("image " + "A" * 200_000 + " is broken", "Correct it"))
    assert len(said) < 5000 and said.startswith("image AAA") and said.endswith("AAA is broken. Correct it.")
    assert "characters ...]" in said


def test_without_a_terminal_progress_is_printed_with_phase_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(cli.bar, "SILENCE", 0.05)
    with cli.bar.stage("evaluate") as report:
        time.sleep(0.12)
        report(0, 40)
        started = time.monotonic
        monkeypatch.setattr(cli.bar.time, "monotonic", lambda: started() + 10)
        report(20, 40)
        time.sleep(0.12)
        first, *_, last = capsys.readouterr().err.splitlines()
        report(40, 40)
        time.sleep(0.12)
    assert first == "evaluate: loading (0 s)"
    assert re.fullmatch(r"evaluate: evaluating, 20 of 40, [\d.]+/s, 10 s left \(10 s\)", last)
    *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"evaluate: saving, 40 of 40, [\d.]+/s \(10 s\)", last)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([(20, 60, "reading")], "sample: reading, 20 of 60"),
        ([(20, None, "reading")], "sample: reading, 20"),
        ([(20, 60, "reading"), (60, 60, "reading")], "sample: loading"),  # of the model
        ([(60, 60, "reading"), (20, 60, "reading")], "sample: reading, 20 of 60"),  # the next pass
        ([(60, 60, "reading"), (1, 8, None)], "sample: sampling, 1 of 8"),
        ([(60, 60, "reading"), (8, 8, None)], "sample: saving, 8 of 8"),
        ([(8, 8, None), (20, 60, "scoring")], "sample: scoring, 20 of 60"),
        ([(60, 60, "scoring")], "sample: saving, 60 of 60"),
    ],
)
def test_reading_rows_is_a_phase_of_its_own(monkeypatch, capsys, told, said):
    monkeypatch.setattr(cli.bar, "SILENCE", 0.02)
    with cli.bar.stage("sample"):
        for done, total, phase in told:
            usage.READING.get()(done, total, phase=phase)
        time.sleep(0.05)
    assert capsys.readouterr().err.splitlines()[-1] == f"{said} (0 s)"
    assert usage.READING.get() is None


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([(0, 20, 60, "reading"), (9, 60, 60, "reading"), (10, 20, 60, "reading"), (20, 40, 60, "reading")],
         "40 of 60, 2/s, 10 s left"),  # the second pass
        ([(0, 1, 4, None), (5, 20, None, "reading"), (10, 2, 4, None)], "2 of 4, 0.1/s, 20 s left"),
    ],
)  # fmt: skip
def test_the_rate_covers_one_pass_of_the_current_phase(monkeypatch, told, said):
    state = cli.bar._State("leaderboard build")
    for seconds, done, total, phase in told:
        monkeypatch.setattr(cli.bar.time, "monotonic", lambda seconds=seconds: float(seconds))
        state.update(done, total, phase)
    monkeypatch.undo()
    assert str(state) == said


def test_a_new_phase_restarts_a_finished_bar(monkeypatch):
    bars = []
    enter = rich.progress.Progress.__enter__
    monkeypatch.setattr(rich.progress.Progress, "__enter__", lambda bar: bars.append(bar) or enter(bar))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    told = [(60, 60, "reading", None), (10, 60, None, 60), (80, None, "reading", None), (9, 9, None, 9)]
    with cli.bar.stage("evaluate") as report:
        for done, total, phase, shown in told:
            report(done, total, phase=phase)
            (one,) = bars[0].tasks
            assert (one.completed, one.total, one.finished) == (done, shown, False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_notebook_updates_a_single_line(monkeypatch, capsys, fails):
    """The parts of IPython that a kernel has; display handles pass on what they are given."""
    shown = []
    handle = types.SimpleNamespace(
        display=lambda data, raw: shown.append(("display", data["text/plain"])),
        update=lambda data, raw: shown.append(("update", data["text/plain"])),
    )
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(DisplayHandle=lambda: handle))
    with contextlib.suppress(ZeroDivisionError), cli.bar.stage("sample") as report:
        report(1, 900)
        for done in range(2, 900):  # within half a second
            report(done, 900)
        report(900 - fails, 900)
        1 / (not fails)
    assert shown[:2] == [("display", "sample: loading"), ("update", "sample: sampling, 1 of 900")]
    end = "not finished, 899 of 900 (0 s)" if fails else "done, 900 of 900 (0 s)"
    assert shown[-1] == ("update", f"sample: {end}") and len(shown) < 6
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.jsonl.gz", "rows.parquet"])
def test_rows_of_every_file_format_are_counted(tmp_path, name):
    rows = [{"question": f"Which is {n}?", "answer": str(n), "response": str(n)} for n in range(45)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / name
    if name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "rows.csv":
        path.write_text("question,answer\n" + "".join(f"Which is {n}?,{n}\n" for n in range(45)))
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    told = []
    before = usage.READING.set(lambda *given, phase: told.append(given))
    try:
        assert len(list(own_files.rows(path))) == 45
    finally:
        usage.READING.reset(before)
    total = 45 if name in ("rows.jsonl", "rows.parquet") else None
    assert told == [(20, total), (40, total), (45, 45)]


def test_saving_and_curating_items_reports_progress(tmp_path):
    told = []
    before = usage.READING.set(lambda *given, phase: told.append((*given, phase)))
    try:
        place = rollouts(tmp_path / "rollouts", ["easy"] * 30, with_items=True)
        assert told == [(20, 30, "saving"), (30, 30, "saving")]
        STAGES["label"](tmp_path / "labels", rollouts=place)
        told.clear()
        STAGES["curate"](tmp_path / "curated", labels=tmp_path / "labels", keep=["easy"])
    finally:
        usage.READING.reset(before)
    assert told == [(30, 30, "reading")] * 2 + [(30, 30, "saving")] * 2


def test_reading_responses_reports_progress(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text('{"question": "Which?", "gold": "goose", "response": "goose"}\n' * 250)
    told = []
    responses.evaluate(
        path, tmp_path / "out", scorer="exact_word", progress=lambda *given: told.append(given)
    )
    assert told == [(100, 250), (200, 250), (250, 250)]


def test_a_stage_without_output_reports_progress(tmp_path, monkeypatch, capsys):
    """`dcsft data inspect` without --output checks every row of a large file."""
    rows = "".join(f'{{"question": "Which is {n}?", "answer": "{n}"}}\n' for n in range(300))
    (tmp_path / "rows.jsonl").write_text(rows)
    monkeypatch.setattr(cli.bar, "SILENCE", 0.01)
    examined = own_data.examined

    def slow(*given):
        for number, one in enumerate(examined(*given)):
            time.sleep(0.1 * (number == 250))
            yield one

    monkeypatch.setattr(own_data, "examined", slow)
    assert cli.main(["data", "inspect", str(tmp_path / "rows.jsonl")]) == 0
    assert re.search(r"^data inspect: reading, 240 of 300", capsys.readouterr().err, re.MULTILINE)


LITERAL = {
    "data inspect": ["data", "inspect", "ROWS", "--scorer", "exact_word"],
    "run": ["run", "RECIPE", "--output", "out", "--dry-run"],
    "tasks list": ["tasks", "list"],
    "env": ["env"],
}


@pytest.mark.parametrize("kind", LITERAL)
def test_a_terminal_shows_the_same_text_as_a_file(tmp_path, monkeypatch, capsys, kind):
    """Text that is not Markdown keeps its backslashes, entities and asterisks."""
    monkeypatch.chdir(tmp_path)
    said = r"What is \[x\], 3 *x* 4, &lt;b&gt; or \|?"
    rows = file(tmp_path / "rows.jsonl", json.dumps({"question": said, "answer": r"\[x\]"}))
    stage = {"stage": "one", "verb": "train sft", "model": "digits", "data": str(rows)}
    stage |= {"lora_target": r".*\[qv\]_*x*\$"}
    made = file(tmp_path / "own.yaml", json.dumps({"name": "own", "about": "x", "stages": [stage]}))
    monkeypatch.setattr(environment, "packages", lambda: {"torch": r"\[2\]"})
    words = [{"ROWS": str(rows), "RECIPE": str(made)}.get(word, word) for word in LITERAL[kind]]
    told = []
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert main(words) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert r"\[" in told[0] or kind == "tasks list"


@pytest.mark.parametrize(("columns", "drawn"), [(80, True), (20, False)])
def test_a_table_whose_words_do_not_fit_is_listed(monkeypatch, capsys, columns, drawn):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli.bar.show(
        "| | operations | time |\n|:--|--:|--:|\n| **SFT** | 2.1 GFLOP | 1.0 s |\n| GRPO | 9.9 GFLOP | |"
    )
    said = capsys.readouterr().out
    assert ("─" in said) == drawn and "operations" in said
    assert ("SFT\n  operations: 2.1 GFLOP\n  time: 1.0 s\n\nGRPO\n  operations: 9.9 GFLOP\n" in said) != drawn
