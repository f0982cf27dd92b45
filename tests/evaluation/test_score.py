"""`dcsft score`: adding a checkpoint to a board, what is kept, and what is refused before loading a model."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dcsft_harness import lmms
from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.resuming import OtherRunError
from dcsft_harness.cli import main
from dcsft_harness.data import digits
from dcsft_harness.data.digits import suite
from dcsft_harness.errors import HarnessError
from dcsft_harness.evaluation.autoeval import Scoring, build, open_board, score, shown
from dcsft_harness.evaluation.subject import open_subject
from dcsft_harness.records import Score, read_table
from dcsft_harness.scoring import VERSIONS
from tests.fixtures.runs import GENERATION, ID, OOD, Run, Show, adapter, base, bench, built  # noqa: F401 - a fixture
from tests.leaderboard.test_leaderboard import scores_folder

SETTINGS = Scoring(suite="digits")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: a folder with a base and two adapters on it."""
    monkeypatch.chdir(tmp_path)
    base(tmp_path / "cold")
    adapter(tmp_path / "one", tmp_path / "cold", 6)
    adapter(tmp_path / "two", tmp_path / "cold", 7)
    return tmp_path


def scored(board, name, ckpt=None, settings=SETTINGS, show=None):
    subject = open_subject(str(ckpt or name), None)
    return score(board, name, lambda _: subject, settings, show or Show())


def command(*words):
    return main(["score", *map(str, words), "--suite", "digits"])


def test_rows_are_added_one_by_one_and_compared_with_the_baseline(bench, place, capsys):  # noqa: F811
    assert command("base=cold", "--board", "board", "--baseline", "base") == 0
    assert command("one", "--board", "board", "--model-args", "batch_size=4") == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("ID")][-1][:5] == [
        *("ID:", ID, "10", "60.00", "40.00"),
    ]
    assert "+20.00 [" in out
    assert bench.opened == ["pretrained=cold", f"pretrained={place / 'cold'},adapter=one,batch_size=4"]
    assert sorted(path.name for path in (place / "board").iterdir()) == [
        *(".lock", "board.json", "leaderboard", "results"),
    ]
    assert sorted(path.name for path in (place / "board/results/one").iterdir()) == [ID, OOD]
    assert manifest.read(place / "board/leaderboard").notes["rows"] == ["base", "one"]
    assert manifest.is_intact(place / "board/leaderboard")


def test_finished_tasks_are_kept(bench, place):  # noqa: F811
    board = open_board(place / "board")

    def stop(row, task):
        if task == OOD:
            raise KeyboardInterrupt

    bench.before = stop
    with pytest.raises(KeyboardInterrupt):
        scored(board, "one")
    assert [path.name for path in (place / "board/results/one").iterdir()] == [ID]
    bench.before, show = lambda row, task: None, Show()
    row = scored(board, "one", show=show)
    assert (row.kept, row.made) == ([ID], [OOD])
    assert show.said == [f"one: 1 of 2 tasks to score, kept {ID}"]
    assert scored(board, "one").made == []
    assert bench.asked == [("one", ID), ("one", OOD)]


def test_a_damaged_result_is_reported_and_evaluated_again(bench, place):  # noqa: F811
    board, show = open_board(place / "board"), Show()
    scored(board, "one")
    (place / "board/results/one" / ID / "scores.parquet").write_bytes(b"PAR1")
    assert scored(board, "one", show=show).made == [ID]
    assert show.said[0].endswith(f"results/one/{ID} is damaged: evaluated again")


def test_a_row_continues_under_another_batch_size_but_not_under_another_limit(bench, place):  # noqa: F811
    board = open_board(place / "board")
    scored(board, "one")
    assert (
        scored(board, "one", settings=Scoring(suite="digits", model_args="batch_size=8,device=cpu")).made
        == []
    )
    with pytest.raises(HarnessError, match="'one' has digits under other settings: limit: none -> 4"):
        scored(board, "one", settings=Scoring(suite="digits", limit=4))
    with pytest.raises(HarnessError, match="max_pixels: none -> 3136"):
        scored(board, "one", settings=Scoring(suite="digits", model_args="max_pixels=3136"))
    with pytest.raises(HarnessError, match="max_new_tokens: none -> 9"):
        scored(board, "one", settings=Scoring(suite="digits", max_new_tokens=9))


def test_the_token_limit_is_applied_and_recorded(bench, place, monkeypatch):  # noqa: F811
    limited = []
    monkeypatch.setattr(
        lmms, "limit_tokens", lambda task, longest: limited.append((task.config.task, longest))
    )
    settings = Scoring(suite="digits", max_new_tokens=9)
    scored(open_board(place / "board"), "one", settings=settings)
    assert limited == [(ID, 9), (OOD, 9)]
    assert manifest.read(place / "board/results/one" / ID).config["max_new_tokens"] == 9
    assert scored(open_board(place / "board"), "one", settings=settings).made == []


def test_external_results_are_remembered_and_reserve_their_names(bench, place, capsys):  # noqa: F811
    alike = {"generation": GENERATION, "items_sha256": f"10 items of {ID}"}
    scores_folder(place / "away", "two", {ID: [1.0] * 10}, notes={ID: alike})
    assert command("one", "--board", "board", "--results", "theirs=away") == 0
    assert command("two", "--board", "board") == 0
    assert manifest.read(place / "board/leaderboard").notes["rows"] == ["theirs", "one", "two"]
    capsys.readouterr()
    assert command("two", "--name", "theirs", "--board", "board") == 1
    assert "already has" in (said := capsys.readouterr().err) or "already has a row 'theirs', from" in said
    assert not (place / "board/results/theirs").exists()


REFUSED = [
    ((), "there is nothing to score. Pass CKPT, or --watch DIR, or both"),
    (("nowhere",), "model nowhere does not exist. Check the path, or pass a hub's OWNER/NAME"),
    (("empty",), "model empty is neither an adapter nor a checkpoint"),
    (("cold", "--base", "one"), "--base one: model cold is a whole checkpoint"),
    (("one", "--limit", "0"), "--limit 0 is out of range"),
    (("one", "--model-args", "adapter=two"), "--model-args names adapter, which CKPT decides"),
    (("one", "--model-args", "batch"), "'batch' is not key=value"),
    (("one", "--model", "dcsft_hg"), "dcsft_hf"),
    (("one", "--name", "a/b"), "the row name 'a/b' cannot be a folder name"),
    (("a=one", "--name", "b"), "a=one and --name b both give a name"),
    (("one", "--baseline", "bsae"), "unknown row for --baseline 'bsae'. Did you mean base?"),
    (("one", "--results", "nowhere"), "--results nowhere does not exist"),
    (("two", "--name", "base"), "the board has a row 'base' of another checkpoint"),
    (("one", "--limit", "4"), "digits would have the limit 4, but theirs is None. Score it with"),
    (("one", "--watch", "run", "--name", "x"), "--name x could be for CKPT or for the run"),
    (("--watch", "one"), "is not an output folder of `dcsft train`"),
    (("run/unfinished/checkpoint-10",), "may remove it at any time. Score it with `dcsft score --watch"),
    (("run",), "or score its checkpoints with `dcsft score --watch run`"),
    (("lost",), "the base of adapter lost is missing"),
]  # fmt: skip


def test_invalid_requests_are_refused_in_one_sentence_before_a_model_is_loaded(bench, place, capsys):  # noqa: F811
    assert command("base=cold", "--board", "board", "--baseline", "base") == 0
    (place / "empty").mkdir()
    Run(place / "run", place / "cold").begin().save(10)
    (other := base(place / "other", "gone"))
    with manifest.writing("adapter", place / "lost", {"method": "sft"}, {"model": other}) as draft:
        adapter(draft.folder / "x", other)
        for path in (draft.folder / "x").iterdir():
            shutil.move(path, draft.folder)
        (draft.folder / "x").rmdir()
    shutil.rmtree(other)
    before = {path: path.read_bytes() for path in (place / "board").rglob("*") if path.is_file()}
    bench.opened.clear()
    capsys.readouterr()
    for words, said in REFUSED:
        assert command(*words, "--board", "board") == 1, words
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0], (words, lines)
        assert bench.opened == [], words
        now = {path: path.read_bytes() for path in (place / "board").rglob("*") if path.is_file()}
        assert before == now, words


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Twelve of a user's own rows, in held.jsonl in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number, row in enumerate(suite.load("dcsft_digits").select(range(12))):
        row["image"].save(tmp_path / f"{number}.png")
        rows.append({"question": row["prompt"], "answer": row["target"], "image": f"{number}.png"})
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OWN = ("--data", "held.jsonl", "--scorer", "exact_word", "--board", "board")


def test_your_own_rows_are_scored_as_by_evaluate(held, capsys):
    assert main(["score", f"first={digits.path()}", *OWN]) == 0
    assert main(["score", f"first={digits.path()}", *OWN]) == 0
    assert "first: already scored on its task" in capsys.readouterr().err
    assert main(["evaluate", "--model", "digits", *OWN[:4], "--output", "apart"]) == 0
    assert main(["score", f"first={digits.path()}", *OWN, "--results", "second=apart"]) == 0
    ours, theirs = Path("board/results/first/held"), Path("apart")
    assert read_table(ours / "scores.parquet", Score) == read_table(theirs / "scores.parquet", Score)
    read = [manifest.read(one) for one in (ours, theirs)]
    for name in ("scorer", "images_sha256", "held_out"):
        assert len({one.config.get(name) for one in read}) == 1, name
    assert len({one.inputs["data"]["sha256"] for one in read}) == 1
    # One table: nothing in it separates the two.
    assert sorted(manifest.read(Path("board/leaderboard")).notes["rows"]) == ["first", "second"]
    # Some of the rows, next to a suite's task, in the same row.
    more = ["--suite", "dcsft_digits", "--limit", "4", "--held-out", "0.5", "--board", "other"]
    assert main(["score", f"first={digits.path()}", *OWN[:4], *more]) == 0
    assert {path.name for path in Path("other/results/first").iterdir()} == {"dcsft_digits", "held_held_out"}
    capsys.readouterr()
    held.write_text(held.read_text().replace('"answer": "', '"answer": "x', 1))
    assert main(["score", f"first={digits.path()}", *OWN]) == 1
    assert "the row 'first' has held under other settings: data has changed" in capsys.readouterr().err


def test_other_data_or_another_scorer_is_refused_before_a_model_is_loaded(held, capsys, monkeypatch):
    """For another row of the board and for the same one; the page and later commands find what they need."""
    monkeypatch.syspath_prepend(str(held.parent))
    function = "def judge(response, *, answer):\n    return 1.0 if response == answer else 0.0\n"
    Path("own_judge.py").write_text(function)
    digit = f"={digits.path()}"
    more = ["--image-root", ".", "--board", "board"]
    assert main(["score", f"first{digit}", "--data", "held.jsonl", "--scorer", "own_judge:judge", *more]) == 0
    options = manifest.read(Path("board/results/first/held")).call["options"]
    assert (options["image_root"], options["scorer"]) == (".", "own_judge:judge")
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is loaded"))
    (held.parent / "other").mkdir()
    (held.parent / "other" / "held.jsonl").write_text(
        held.read_text().replace('"answer": "', '"answer": "x', 1)
    )
    for file, scorer, name, said in (
        (
            "held.jsonl",
            "exact_word",
            "second",
            "held would have the version of the scorer own_judge:judge 'unset'",
        ),
        ("other/held.jsonl", "own_judge:judge", "second", "held would have the item set"),
        ("held.jsonl", "exact_word", "first", "scorer: own_judge:judge -> exact_word"),
    ):
        assert main(["score", f"{name}{digit}", "--data", file, "--scorer", scorer, *more]) == 1
        assert said in capsys.readouterr().err, said
    # The function changes: the same error as for a suite's scorer of another version.
    Path("own_judge.py").write_text(function.replace("else 0.0", "else 0.5"))
    monkeypatch.delitem(sys.modules, "own_judge")
    for name, said in (
        ("first", "version of the scorer own_judge:judge: "),
        ("second", "held would have the version of the scorer own_judge:judge "),
    ):
        given = ["score", f"{name}{digit}", "--data", "held.jsonl", "--scorer", "own_judge:judge", *more]
        assert main(given) == 1
        assert said in capsys.readouterr().err, said


def test_a_task_that_includes_a_suites_task_is_recorded_with_its_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DCSFT_DATA", str(tmp_path))
    (tmp_path / "dcsft_wemath").mkdir()
    (tmp_path / "dcsft_wemath" / manifest.NAME).write_text("{}")
    for name, rows in (("dcsft_wemath", None), ("my_wemath", "dcsft_wemath")):
        task = SimpleNamespace(config=SimpleNamespace(task=name), get_config={"dataset_name": rows}.get)
        assert Scoring(suite=name).inputs(task) == {"data of dcsft_wemath": tmp_path / "dcsft_wemath"}


def test_checkpoints_of_a_watched_run_share_the_data(held):
    settings = Scoring(data=held, scorer="exact_word")
    first = settings.opened(["held"])["held"]
    assert settings.changed(group="x").opened(["held"])["held"] is first
    held.write_text(held.read_text().replace('"answer": "', '"answer": "x', 1))
    assert settings.opened(["held"])["held"] is not first


OWN_REFUSED = [
    (("--board", "board"), "--suite and --data are missing. Pass one of them, or both"),
    (("--suite", "digits", "--scorer", "choice", "--board", "board"), "--scorer requires --data"),
    (("--suite", "digits", "--held-out", "0.1", "--board", "board"), "--held-out requires --data"),
    (("--data", "held.jsonl", "--board", "board"), "--data needs --scorer"),
    (("--data", "gone.jsonl", *OWN[2:]), "--data gone.jsonl does not exist"),
    (("--data", "bad.jsonl", *OWN[2:]), "bad.jsonl, line 1"),
    (("--suite", "held.jsonl", "--board", "board"), "holds rows of your own. Pass it as --data held.jsonl"),
    (
        ("--suite", "dcsft_digits", "--data", "dcsft_digits.jsonl", *OWN[2:]),
        "dcsft_digits.jsonl becomes the task dcsft_digits, which is also in --suite. Rename the file",
    ),
]


@pytest.mark.parametrize("before", ["score", "watch"])
@pytest.mark.parametrize(("words", "said"), OWN_REFUSED, ids=[said for _, said in OWN_REFUSED])
def test_invalid_data_is_refused_before_the_watch_starts(held, capsys, monkeypatch, before, words, said):
    monkeypatch.setattr(lmms, "open_model", lambda *given: pytest.fail("a model is loaded"))
    shutil.copy(held, "dcsft_digits.jsonl")
    Path("bad.jsonl").write_text('{"question": "a?"}\n')
    ckpt = [str(digits.path())] if before == "score" else ["--watch", "to-come"]
    assert main(["score", *ckpt, *words]) == 1
    assert said in capsys.readouterr().err
    assert not Path("board").exists()


def test_a_refused_command_leaves_no_folder(bench, place, capsys):  # noqa: F811
    assert command("nowhere", "--board", "board") == 1
    assert command("one", "--board", "board", "--baseline", "x") == 1
    assert not (place / "board").exists()
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("dear")
    assert command("one", "--board", "mine") == 1
    assert "holds no board of `dcsft score`" in capsys.readouterr().err


def test_unprepared_data_is_reported_before_a_model_is_loaded(place, monkeypatch, capsys):
    monkeypatch.setenv("DCSFT_DATA", str(place / "data"))
    code = main(["score", "one", "--suite", "classification", "--board", "board", "--model", "dcsft_stub"])
    said = capsys.readouterr().err
    assert (code, "the data of 3 tasks is not prepared" in said) == (1, True), said
    assert not (place / "board").exists()


def test_an_incomparable_row_is_shown_apart_on_request(bench, place, capsys):  # noqa: F811
    assert command("base=cold", "--board", "board", "--baseline", "base") == 0
    assert command("one", "--limit", "4", "--board", "board", "--apart") == 0
    out = capsys.readouterr().out
    assert "apart: digits in" in out and "limit None and 4" in out
    document = json.loads((place / "board/leaderboard/leaderboard.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["base"]
    assert [row["name"] for row in document["apart"][0]["board"]["rows"]] == ["one"]


def test_other_pixel_limits_are_detected_before_sampling(bench, place):  # noqa: F811
    board = open_board(place / "board")
    bench.pixels = {"min_pixels": 3136, "max_pixels": 802816}
    scored(board, "base", "cold")
    bench.pixels = {"min_pixels": 3136, "max_pixels": 1003520}
    with pytest.raises(
        HarnessError, match="would have the pixel limit max_pixels 1003520, but theirs is 802816"
    ):
        scored(board, "one")
    assert bench.asked == [("base", ID), ("base", OOD)]
    assert board.names() == ["base"]


def test_other_checkpoint_settings_are_detected_before_sampling(bench, place):  # noqa: F811
    board = open_board(place / "board")
    scored(board, "base", "cold")
    bench.from_checkpoint["repetition_penalty"] = 1.05
    said = "checkpoint's generation setting repetition_penalty 1.05, but theirs is 'unset'"
    with pytest.raises(HarnessError, match=said):
        scored(board, "one")
    assert bench.asked == [("base", ID), ("base", OOD)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"system_prompt_sha256": "5a"}, "system prompt '5a', but theirs is 'unset'"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            "chat template argument enable_thinking False, but theirs is 'unset'",
        ),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_other_prompts_are_detected_before_sampling(bench, place, settings, said, first):  # noqa: F811
    board = open_board(place / "board")
    bench.prompted |= settings if first else {}
    scored(board, "base", "cold")
    bench.prompted.clear()
    bench.prompted |= {} if first else settings
    with pytest.raises(HarnessError, match="would have the" if first else said):
        scored(board, "one")
    assert bench.asked == [("base", ID), ("base", OOD)]
    bench.prompted.clear()
    bench.prompted |= settings if first else {}
    scored(board, "one")


def test_other_scorer_versions_are_detected_before_a_model_is_loaded(bench, place, monkeypatch):  # noqa: F811
    board = open_board(place / "board")
    bench.notes["scorers"] = {"choice": 1}
    scored(board, "base", "cold")
    opened = list(bench.opened)
    monkeypatch.setitem(VERSIONS, "choice", 2)
    with pytest.raises(HarnessError, match="version of the scorer choice 2, but theirs is 1"):
        scored(board, "one")
    with pytest.raises(HarnessError, match="under other settings: version of the scorer choice: 1 -> 2"):
        scored(board, "base", "cold")
    assert bench.opened == opened


def test_a_row_that_turns_out_to_differ_is_kept_off_the_board(bench, place):  # noqa: F811
    board = open_board(place / "board")
    scored(board, "base", "cold")
    scored(board, "one")
    path = place / "board/results/one" / ID / "manifest.json"
    path.write_text(path.read_text().replace('"prompt_sha256": "p"', '"prompt_sha256": "q"'))
    with pytest.raises(HarnessError, match="one/digits is kept, but is not on the board: .*'p' and 'q'"):
        shown(board, "one", build(board, Show()))


def test_two_processes_cannot_score_the_same_row(bench, place):  # noqa: F811
    board = open_board(place / "board")
    with board.claimed("one"):
        with pytest.raises(HarnessError, match="the row .*results/one is being written by process"):
            scored(board, "one")
    assert not (place / "board").exists()


def test_leftovers_of_a_killed_process_do_not_get_in_the_way(bench, place):  # noqa: F811
    board = open_board(place / "board")
    home = board.of("one")
    (home / "unfinished" / "checkpoint-10").mkdir(parents=True)
    scored(board, "one")
    assert sorted(path.name for path in home.iterdir()) == [ID, OOD]


def test_interrupted_work_on_another_checkpoint_is_dropped(bench, place):  # noqa: F811
    board = open_board(place / "board")
    left = board.of("one") / ID / "unfinished" / "run.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")

    def refuse(row, task):
        if left.exists():
            raise OtherRunError("an unfinished run with other settings")

    bench.before = refuse
    assert scored(board, "one").made == [ID, OOD]
    assert not left.exists()


def test_a_failed_leaderboard_leaves_the_existing_one(bench, place, monkeypatch):  # noqa: F811
    from dcsft_harness import leaderboard

    board = open_board(place / "board")
    scored(board, "one")
    built(board, Show())
    before = (board.leaderboard / "manifest.json").read_bytes()

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(leaderboard, "build", fails)
    scored(board, "two")
    with pytest.raises(KeyboardInterrupt):
        build(board, Show())
    assert (board.leaderboard / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in board.folder.iterdir()) == [
        ".lock",
        "board.json",
        "leaderboard",
        "results",
    ]


def test_a_checkpoint_of_a_finished_run_has_its_step(bench, place):  # noqa: F811
    run = Run(place / "run", place / "cold", steps=30).begin().save(10).save(20)
    run.finish(keep=2)
    assert command("run/checkpoint-20", "--board", "board") == 0
    board = open_board(place / "board")
    scored(board, "run")
    rows, _ = built(board, Show())
    found = [rows[name].rows[0].provenance[0].training for name in ("run at step 20", "run")]
    assert [one.ledger["steps"] for one in found] == [20, 30]
    assert found[0].folder == found[1].folder
