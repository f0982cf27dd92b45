"""`dcsft lmms-eval`: upstream swallows every exception and exits with 0; this does not."""

import argparse

import pytest

from dcsft_harness import harness


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
        assert args.include_path == [str(harness.task_path())]
        if args.tasks == "fails":
            raise ValueError
        return {}, {}

    outcomes = []
    monkeypatch.setattr(upstream, "cli_evaluate_single", single)
    monkeypatch.setattr(dispatch, "main", several)
    monkeypatch.setattr("sys.argv", ["pytest"])
    return outcomes


@pytest.mark.parametrize(
    ("happened", "code"),
    [
        (["works"], 0),
        (["fails"], 1),
        (["works", "works"], 0),
        (["works", "fails"], 1),
        # The later success of a --config with several runs does not make up for an earlier failure.
        (["fails", "works"], 1),
    ],
)
def test_one_failure_is_a_failure(upstream, happened, code):
    upstream.extend(happened)
    assert harness.command_line(["--config", "x"]) == code
