"""`dcsft lmms-eval`: upstream swallows every exception and exits with 0; this command does not."""

import argparse
import contextlib

import pytest

from dcsft_harness import lmms
from dcsft_harness.errors import HarnessError


@pytest.fixture
def upstream(monkeypatch):
    import lmms_eval.__main__ as upstream
    from lmms_eval.cli import dispatch

    def several():
        for outcome in outcomes:
            try:
                upstream.cli_evaluate_single(argparse.Namespace(include_path=None, tasks=outcome))
            except ValueError:
                pass

    def single(args):
        assert args.include_path == [str(lmms.task_path())]
        if args.tasks == "fails":
            raise ValueError
        return {}, {}

    outcomes = []
    monkeypatch.setattr(upstream, "cli_evaluate_single", single)
    monkeypatch.setattr(dispatch, "main", several)
    monkeypatch.setattr("sys.argv", ["pytest"])
    return outcomes


@pytest.mark.parametrize(
    ("given", "raised", "said"),
    [
        ({"model": "dcsft_hg"}, ValueError("no"), "unknown model 'dcsft_hg'. Did you mean dcsft_hf"),
        (
            {"tasks": "dcsft_digits"},
            OSError("disk\n on fire"),
            "lmms-eval failed: OSError: disk on fire. See",
        ),
        ({"tasks": "dcsft_digits"}, HarnessError("image 3 is broken"), "image 3 is broken."),
        ({"tasks": "dcsft_digitz"}, ValueError("Tasks not found: x"), "Did you mean dcsft_digits"),
        ({"system_instruction": "Be brief."}, None, "--system_instruction has no effect"),
        ({"num_fewshot": 2}, None, "--num_fewshot has no effect"),
        ({"apply_chat_template": True}, None, "--apply_chat_template has no effect"),
    ],
)
def test_a_failure_is_reported_in_one_sentence(monkeypatch, capsys, given, raised, said):
    import lmms_eval.__main__ as upstream
    from lmms_eval.cli import dispatch

    def single(args):
        raise raised

    def run():
        args = {"include_path": None, "model": "dcsft_stub", "tasks": None} | given
        try:
            upstream.cli_evaluate_single(argparse.Namespace(**args))
        except OSError:
            seen.append("a traceback")

    seen = []
    monkeypatch.setattr(upstream, "cli_evaluate_single", single)
    monkeypatch.setattr(dispatch, "main", run)
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert lmms.command_line([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dcsft: ") and said in line
    assert bool(seen) == ("lmms-eval failed" in said)


@pytest.mark.parametrize(
    ("happened", "code"),
    [
        (["works"], 0),
        (["fails"], 1),
        (["works", "works"], 0),
        (["works", "fails"], 1),
        # In a --config with several runs, a later success does not hide an earlier failure.
        (["fails", "works"], 1),
    ],
)
def test_one_failed_run_is_a_failure(upstream, happened, code):
    upstream.extend(happened)
    assert lmms.command_line(["--config", "x"]) == code


@pytest.mark.parametrize(
    ("model", "tasks", "refused"),
    [
        ("dummy", ["dcsft_digits_all"], True),  # a group that includes grounding
        ("dummy", ["dcsft_digits"], False),
        ("dcsft_stub", ["dcsft_digits_ground"], False),
        ("no_such_model", ["dcsft_digits_ground"], False),  # declared by lmms-eval
    ],
)
def test_boxes_of_a_model_with_unknown_coordinates_are_refused_at_once(monkeypatch, model, tasks, refused):
    with pytest.raises(HarnessError, match="box coordinate space") if refused else contextlib.nullcontext():
        lmms._refuse_unknown_boxes(model, tasks)
    monkeypatch.setenv("DCSFT_BOX_SPACE", "pixel")
    lmms._refuse_unknown_boxes(model, tasks)
