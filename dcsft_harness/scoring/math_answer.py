"""Free-form mathematical answers, judged by math-verify (which uses sympy).

    math("... so x = 0.5", answer="1/2") -> Verdict(1.0, "0.5")

math-verify's own time limit is a signal handler: it fails outside the main thread, where rewards
and labels are computed. Without a limit one answer such as 9^{9^{9^9}} never returns, and a thread
that is stuck in sympy cannot be stopped. So parsing and comparison run in one child process
(`math_worker`), which is started at the first call, fed one answer at a time, and replaced when an
answer uses up its budget. The budget is CPU time, so that the verdict does not depend on how busy
the machine is. The child is a fresh interpreter, not a fork: it is safe beside CUDA and threads.

What math-verify would misread is put in LaTeX first, and units are taken from boxes; see `math_text`.

Of what the <think> and <answer> tags mark as the answer, the last 4,000 characters are read: that is
where the answer is, and math-verify's search is slower than linear.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from typing import Any

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring.math_text import prepared, prepared_gold
from dcsft_harness.scoring.tags import answer_part, is_cut, is_thinking
from dcsft_harness.scoring.verdict import NOT_FOUND, Verdict

TAIL = 4_000
"""Characters of a response that are read, from its end."""

WALL_SECONDS = 60.0
"""A backstop for a child that waits instead of computing; the CPU budget comes first."""


class _Worker:
    """One child process, fed under a lock: a request line in, two reply lines out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def ask(self, response: str, answer: str) -> list[Any]:
        """The replies to one item; fewer than two if the child ran out of its budget."""
        with self._lock:
            child = self._child if self._child and self._child.poll() is None else self._start()
            stdin, stdout = _pipes(child)
            timer = threading.Timer(WALL_SECONDS, child.kill)
            timer.daemon = True
            timer.start()
            try:
                stdin.write(json.dumps([response, answer]) + "\n")
                stdin.flush()
                replies = [json.loads(line) for line in (stdout.readline(), stdout.readline()) if line]
            except BrokenPipeError:  # the child was ended from outside; the next item gets a new one
                replies = []
            finally:
                timer.cancel()
            if len(replies) < 2:
                self.stop()
            return replies

    def _start(self) -> "subprocess.Popen[str]":
        self.stop()
        # -P: a sympy.py in the user's working directory must not be imported.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "dcsft_harness.scoring.math_worker"],
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
        HarnessError: if the answer cannot be read as mathematics, or math-verify cannot be imported.
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
