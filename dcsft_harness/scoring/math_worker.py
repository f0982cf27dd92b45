r"""math-verify in a child process, for the mathematics that `formulas` does not read.

verify_many([(r"\sum_{k=1}^{3} k", "6"), (r"\int_0^1 x dx", "0")]) -> [True, False]
reads(r"\begin{pmatrix}1\\2\end{pmatrix}")                          -> True

math-verify's own limit is a signal handler, which fails outside the main thread, and a thread that is stuck
in sympy cannot be stopped. So it runs in a child, which is fed batches of lines and replaced when a pair uses
up its CPU_SECONDS of processor time: that pair is not equal, however busy the machine is. A child that was
ended from outside, or that gets no processor time at all, has decided nothing: its pairs go to another.
The child is a fresh interpreter, not a fork: it is safe beside CUDA and threads.
"""

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from dcsft_harness.errors import HarnessError

CPU_SECONDS = 5
"""Processor time for one pair; beyond it the kernel ends the process (RLIMIT_CPU)."""
MEMORY_BYTES = 4 * 2**30
PATIENCE = 30.0
"""Seconds after which a child that says nothing is looked at: has it used processor time since?"""
ATTEMPTS = 3
_FROM_OUTSIDE = {getattr(signal, name, None) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")}

Pair = tuple[str, str]


class _Child:
    """The child, fed under a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the members of each pair are equal.

        Raises:
            HarnessError: one child after the other was ended from outside or came to a halt.
        """
        replies: list[bool] = []
        failures = 0
        with self._lock:
            while len(replies) < len(pairs):
                before = len(replies)
                try:
                    is_decided = self._feed(pairs[before:], replies)
                except BaseException:  # an interruption: what the child still says belongs to no later pair
                    self.stop()
                    raise
                if is_decided:
                    continue
                failures = failures + 1 if len(replies) == before else 1
                if failures == ATTEMPTS:
                    raise HarnessError(
                        f"math-verify came to no verdict on {pairs[len(replies)][0]!r}: {ATTEMPTS} processes "
                        "in turn were ended from outside or got no processor time",
                        "Free some memory, or see what else the machine does, and run it again",
                    )
        return replies

    def _feed(self, pairs: Sequence[Pair], replies: list[bool]) -> bool:
        """Appends the replies of one child; whether every reply, or the end of the child, is a verdict."""
        process = self._process if self._process and self._process.poll() is None else self._start()
        stdin, stdout = _pipes(process)
        writer = threading.Thread(target=_write, args=(stdin, pairs), daemon=True)
        writer.start()
        for _ in pairs:
            line = _line(process, stdout)
            if line is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                code = process.returncode
                self.stop()
                writer.join()
                if code is None or -code in _FROM_OUTSIDE:
                    return False
                replies.append(False)  # the pair that used up its budget
                return True
            replies.append(json.loads(line))  # noqa: TID251
        writer.join()
        return True

    def _start(self) -> "subprocess.Popen[bytes]":
        self.stop()
        process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        if _line(process, _pipes(process)[1]) != b"ready":
            process.kill()
            raise HarnessError(
                "the process that runs math-verify did not start; its error is printed above",
                "Check that `python -c 'import math_verify'` works; if not, pip install 'math-verify>=0.8'",
            )
        self._process = process
        return process

    def stop(self) -> None:
        """End the child, if there is one, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in _pipes(process):
                with contextlib.suppress(OSError):
                    pipe.close()


def _command() -> list[str]:
    # -P: a sympy.py in the user's working directory must not be imported.
    return [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[Any, Any]:
    return process.stdin, process.stdout


def _write(stdin: IO[bytes], pairs: Sequence[Pair]) -> None:
    with contextlib.suppress(OSError, ValueError):  # the child was ended; `_feed` sees it
        data = memoryview("".join(json.dumps(pair) + "\n" for pair in pairs).encode())
        while data:
            data = data[stdin.write(data) :]


def _line(process: "subprocess.Popen[bytes]", stdout: IO[bytes]) -> bytes | None:
    """The child's next line; None if it ended, or was ended as it came to a halt."""
    import psutil  # type: ignore[import-untyped]

    line, before = b"", None
    while not line.endswith(b"\n"):
        if not select.select([stdout], [], [], PATIENCE)[0]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(process.pid).cpu_times()
                if before == (now := times.user + times.system):
                    process.kill()
                before = now
            continue
        character = stdout.read(1)
        if not character:
            return None
        line += character
    return line.strip()


_child = _Child()
_inherited: list[_Child] = []
atexit.register(lambda: _child.stop())


def _forget_parents_child() -> None:
    """After a fork (a DataLoader worker, say), leave the parent's child and pipes to the parent."""
    global _child
    _inherited.append(_child)  # kept alive, as closing its pipes here would flush into the child
    _child = _Child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_child)


def verify_many(pairs: Sequence[Pair]) -> list[bool]:
    """Whether each gold and what was found for it are equal, as math-verify judges; see `_Child.ask`."""
    return _child.ask(pairs) if pairs else []


def reads(text: str) -> bool:
    """Whether math-verify makes an expression of a text: one that equals itself."""
    return verify_many([(text, text)])[0]


def _grant_budget() -> None:
    """Allow this process CPU_SECONDS more than it has used; no-op where there are no such limits."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _bound_memory() -> None:
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _judge(gold: str, found: str) -> bool:
    from math_verify import parse, verify

    parsed = []
    for text in (gold, found):
        anchored = text if "$" in text or "\\boxed" in text else f"${text}$"
        # Texts alone: math-verify made no expression of them, and would compare them letter by letter.
        expressions = [one for one in parse(anchored, parsing_timeout=None) if not isinstance(one, str)]
        if not expressions:
            return False
        parsed.append(expressions)
    return bool(verify(parsed[0], parsed[1], timeout_seconds=None))


def main() -> None:
    """Serve pairs until the input ends."""
    # Else math-verify warns that its own time limit is off, which is the point of this process.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # noqa: F401  (a failed import must show before "ready")

    _bound_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        _grant_budget()
        try:
            right = _judge(*json.loads(line))  # noqa: TID251
        except Exception:  # what fails to parse or compare is not equal
            right = False
        print(json.dumps(right), flush=True)
