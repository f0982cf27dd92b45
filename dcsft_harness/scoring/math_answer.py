"""Free-form mathematical answers, judged by math-verify (which uses sympy).

    math("... so x = 0.5", answer="1/2") -> Verdict(1.0, "0.5")

math-verify's own time limit is a signal handler: it fails outside the main thread, where rewards
and labels are computed. Without a limit one answer such as 9^{9^{9^9}} never returns, and a thread
that is stuck in sympy cannot be stopped. So parsing and comparison run in one child process
(`math_worker`), which is started at the first call, fed one answer at a time, and replaced when an
answer uses up its budget. The budget is CPU time, so that the verdict does not depend on how busy
the machine is; no clock decides one. A child that was ended from outside, or that gets no CPU time at
all, has decided nothing: its item goes to another, and after the third is refused. The child is a fresh
interpreter, not a fork: it is safe beside CUDA and threads.

What math-verify would misread is put in LaTeX first, and units are taken from boxes; see `math_text`.

Of what the <think> and <answer> tags mark as the answer, the last 4,000 characters are read: that is
where the answer is, and math-verify's search is slower than linear.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.math_text import prepared, prepared_gold
from dcsft_harness.scoring.tags import answer_part, is_cut, is_thinking
from dcsft_harness.scoring.verdict import NOT_FOUND, Verdict

TAIL = 4_000
"""Characters of a response that are read, from its end."""

PATIENCE = 30.0
"""Seconds between two looks at a child; one that used no CPU time between them waits for what never comes."""

ATTEMPTS = 3
"""Children that an item is given to before it is refused."""

_FROM_OUTSIDE = {getattr(signal, name, None) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")}
"""Signals that say nothing of the item; a child's own end is SIGXCPU, a crash or an exit."""


class _Worker:
    """One child process, fed under a lock: a request line in, two reply lines out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def ask(self, response: str, answer: str) -> list[Any]:
        """The replies to one item; fewer than two if the child ran out of its budget.

        Raises:
            HarnessError: one child after the other was ended from outside or came to a halt.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    replies, is_decided = self._try(response, answer)
                except BaseException:  # an interruption: what the child still says belongs to no later item
                    self.stop()
                    raise
                if is_decided:
                    return replies
        raise HarnessError(
            f"the math scorer's helper process came to no verdict on the answer {answer!r}: {ATTEMPTS} in "
            "turn were ended from outside or got no CPU time",
            "Free some memory, or see what else the machine does, and go on",
        )

    def _try(self, response: str, answer: str) -> tuple[list[Any], bool]:
        """The replies of one child, and whether they are a verdict."""
        child = self._child if self._child and self._child.poll() is None else self._start()
        stdin, stdout = _pipes(child)
        with _watched(child) as watch:
            try:
                stdin.write(json.dumps([response, answer]) + "\n")
                stdin.flush()
                lines = stdout.readline(), stdout.readline()
            except BrokenPipeError:  # the child was ended before it had read the item
                lines = "", ""
        replies = [json.loads(line) for line in lines if line.endswith("\n")]
        if len(replies) == 2:
            return replies, True
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE)  # it has closed its pipe, and says by which signal
        self.stop()
        return replies, watch.is_spent or not (watch.is_halted or -child.returncode in _FROM_OUTSIDE)

    def _start(self) -> "subprocess.Popen[str]":
        self.stop()
        child = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        if _pipes(child)[1].readline().strip() != "ready":
            child.kill()
            raise HarnessError(
                "the math scorer's helper process did not start; its error is printed above",
                "Check that `python -c 'import math_verify'` works; if not, pip install 'math-verify>=0.8'",
            )
        self._child = child
        return child

    def stop(self) -> None:
        """End the child, if there is one, and wait until it is gone."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in _pipes(child):
            try:
                pipe.close()
            except OSError:  # what was still to be written has nobody to read it
                pass


@dataclass
class _Watch:
    """Why a child was ended by its watch.

    Attributes:
        is_halted: it used no CPU time.
        is_spent: it used more than its budget, on a system without such limits.
    """

    is_halted: bool = False
    is_spent: bool = False


@contextlib.contextmanager
def _watched(child: "subprocess.Popen[str]") -> Iterator[_Watch]:
    """Looks at a child now and then, and ends one that would keep its caller waiting for ever."""
    watch, done = _Watch(), threading.Event()

    def look() -> None:
        from dcsft_harness.scoring.math_worker import CPU_SECONDS  # not above: `-m` wants to be the first

        before: float | None = None
        while not done.wait(PATIENCE):
            now = _cpu_seconds(child.pid)
            if before is not None and now is not None:
                watch.is_halted, watch.is_spent = now <= before, now - before > 2 * CPU_SECONDS
            if watch.is_halted or watch.is_spent:
                child.kill()
                return
            before = now

    threading.Thread(target=look, daemon=True).start()
    try:
        yield watch
    finally:
        done.set()


def _cpu_seconds(pid: int) -> float | None:
    """What a process has used; None for one that is gone."""
    import psutil  # type: ignore[import-untyped]

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return None
    return float(times.user + times.system)


def _command() -> list[str]:
    # -P: a sympy.py in the user's working directory must not be imported.
    return [sys.executable, "-P", "-m", "dcsft_harness.scoring.math_worker"]


def _pipes(child: "subprocess.Popen[str]") -> tuple[Any, Any]:
    return child.stdin, child.stdout


_worker = _Worker()
atexit.register(lambda: _worker.stop())


def _forget_parents_worker() -> None:
    """After a fork (a DataLoader worker, say), leave the parent's child and pipes to the parent."""
    global _worker
    _inherited.append(_worker)  # kept alive, as closing its pipes here would flush into the child
    _worker = _Worker()


_inherited: list[_Worker] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_worker)


def math(response: str, *, answer: str | int | float) -> Verdict:
    """Score 1.0 if the response's final expression equals the answer mathematically, else 0.0.

    Args:
        response: what the model wrote; math-verify picks the final expression (boxed first).
        answer: the gold, LaTeX with or without dollar signs, or a plain number.

    Returns:
        A score of 0.0 or 1.0; extracted is the expression as math-verify read it. None: nothing
        mathematical was found, the response is a thought that breaks off without a box, or reading it
        took more than the budget of CPU time.

    Raises:
        HarnessError: if the answer cannot be read as mathematics, math-verify cannot be imported, or
            what judges it is ended from outside time and again.
    """
    gold, part = str(answer), answer_part(response)
    if is_thinking(part) and is_cut(part) and "oxed" not in part:
        return NOT_FOUND
    replies = _worker.ask(prepared(part[-TAIL:], gold), prepared_gold(gold))
    if replies and replies[0] == {"error": "gold"}:
        raise HarnessError(
            f"the answer is not mathematics that math-verify can read: {gold!r}",
            "Write it as a number or as LaTeX, or use the exact_word scorer",
        )
    extracted = replies[0] if replies else None
    if not extracted:
        return NOT_FOUND
    return Verdict(float(len(replies) == 2 and replies[1] is True), extracted)
