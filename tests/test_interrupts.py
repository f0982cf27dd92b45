"""Signals: the command ends with its own exit code, and training saves its step first."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from dcsft_harness import interrupts, ranks
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import main
from tests.fixtures import forked


@pytest.fixture
def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_raises_the_exception_of_ctrl_c(handlers, number):
    with pytest.raises(KeyboardInterrupt) as raised:
        os.kill(os.getpid(), number)
    assert raised.value.number == number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_deferred_signal_waits_until_it_is_checked(handlers, number):
    with interrupts.deferring():
        os.kill(os.getpid(), number)
        assert interrupts.pending() == number
        with pytest.raises(interrupts.Interrupted) as raised, interrupts.noting(lambda: True):
            raise interrupts.Interrupted(interrupts.pending())
    assert "finished work is saved" in str(raised.value)  # all that a notebook shows
    assert interrupts.pending() is None
    with pytest.raises(KeyboardInterrupt):  # as before
        os.kill(os.getpid(), number)


def test_a_second_signal_or_a_timeout_ends_the_wait(handlers):
    with pytest.raises(interrupts.Interrupted) as raised, interrupts.deferring():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM
    with pytest.raises(interrupts.Interrupted) as raised, interrupts.deferring(seconds=0.05):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(30)
    assert raised.value.number == signal.SIGHUP


def test_a_rank_defers_the_launchers_signal_even_if_it_comes_twice(handlers):
    """Ctrl-C, which ranks receive twice, ends a launch at once."""
    signal.signal(signal.SIGTERM, ranks._end)
    signal.signal(signal.SIGINT, ranks._interrupted)
    with interrupts.deferring(launched=True):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.pending() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(interrupts.Interrupted), interrupts.deferring(0.05, launched=True):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    with pytest.raises(SystemExit):  # as before
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "terminal", "said"),
    [(signal.SIGINT, True, True), (signal.SIGINT, False, False), (signal.SIGTERM, True, False)],
)
def test_a_terminal_shows_that_ctrl_c_waits_for_the_step(
    handlers, monkeypatch, capfd, number, terminal, said
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with interrupts.deferring():
        os.kill(os.getpid(), number)
    assert ("saving after this step" in capfd.readouterr().err) == said


@pytest.mark.parametrize("broken", ["full", "closed", "none"])
def test_a_broken_terminal_does_not_lose_unsaved_work(handlers, monkeypatch, broken):
    def refuses(*given):
        raise BlockingIOError

    stderr = io.StringIO()
    stderr.isatty = lambda: True
    if broken == "closed":
        del stderr.isatty
        stderr.close()
    monkeypatch.setattr(sys, "stderr", None if broken == "none" else stderr)
    monkeypatch.setattr(os, "write", refuses)
    with interrupts.deferring():
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.pending() == signal.SIGINT


def test_an_ignored_signal_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    interrupts.install()
    os.kill(os.getpid(), signal.SIGHUP)
    with interrupts.deferring():
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.pending() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_a_destructor_is_not_lost(handlers, monkeypatch, number):
    """Python drops exceptions raised in `__del__`."""
    monkeypatch.setattr(sys, "unraisablehook", interrupts._again)

    class Object:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        Object()
        time.sleep(10)


TRAINING = [
    *("train", "sft", "--model", "digits", "--data", "dcsft_digits_cold", "--max-steps", "30"),
    *("--batch-size", "4", "--micro-batch-size", "2", "--save-steps", "6"),
]


@pytest.mark.slow
def test_interrupted_trainings_save_their_steps_and_resume_to_the_result_of_an_undisturbed_one(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*TRAINING, "--output", str(whole)]) == 0
    command = [*forked.DCSFT, *TRAINING, "--output", str(cut)]
    saved = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        running = forked.Popen(command, stderr=subprocess.PIPE)
        due = cut / "unfinished" / f"checkpoint-{saved // 6 * 6 + 6}" / "complete.json"
        while not due.is_file():
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.01)
        running.send_signal(number)
        assert "interrupted; finished work is saved" in running.communicate(timeout=120)[1]
        assert running.returncode == code
        (last,) = (cut / "unfinished").glob("checkpoint-*/complete.json")
        assert saved < int(last.parent.name.removeprefix("checkpoint-")) < 30
        saved = int(last.parent.name.removeprefix("checkpoint-"))
    assert forked.run(command).returncode == 0
    assert forked.run(command).returncode == 0  # already done
    files = [manifest.read(folder).files["adapter_model.safetensors"] for folder in (whole, cut)]
    assert files[0] == files[1]
    assert not (cut / "unfinished").exists()
