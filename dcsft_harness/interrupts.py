"""Ctrl-C, SIGTERM and SIGHUP end a command the same way: it saves, prints one line and cleans up.

Job schedulers send SIGTERM before they reclaim a machine, terminals SIGHUP when they close. Inside
`deferring` a signal first waits for a point where the work can be saved.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

GRACE = 30.0
"""The most seconds that a signal waits for a point where the work can be saved."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_SAID: dict[bool | None, str] = {
    True: "interrupted; finished work is saved. Rerun the same command to resume.",
    False: "interrupted; no work was saved. Rerun the same command to start again.",
    None: "interrupted.",
}
_SAVING = b"\ndcsft: saving after this step; Ctrl-C again ends at once\n"


def said(error: BaseException) -> str:
    """What is said of an interruption, by whether it saved work (see `noting`)."""
    return _SAID[getattr(error, "saved", None)]


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        number: the signal; the exit code is 128 more.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        """Stores the signal."""
        super().__init__()
        self.number = number

    def __str__(self) -> str:
        """What a notebook shows."""
        return said(self)


@contextlib.contextmanager
def noting(saved: Callable[[], object]) -> Iterator[None]:
    """Records on an interruption of the block, as its attribute `saved`, whether work was saved.

    In nested blocks it is whether any of them saved work. `saved` is called after the block has cleaned up.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        error.saved = getattr(error, "saved", False) or bool(saved())  # type: ignore[attr-defined]
        raise


_pending: int | None = None


def pending() -> int | None:
    """The pending signal inside `deferring`, if any."""
    return _pending


def install() -> None:
    """Makes SIGTERM and SIGHUP raise `Interrupted`, unless they are already handled or ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _raise)
        if sys.unraisablehook is not _again:
            sys.unraisablehook = _again


def _again(lost: "sys.UnraisableHookArgs") -> None:
    """Sends a signal again if it was raised where Python drops errors, as in an object's `__del__`."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    number = getattr(lost.exc_value, "number", signal.SIGINT)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def deferring(seconds: float = GRACE, launched: bool = False) -> Iterator[None]:
    """Defers signals to `pending` in the block; a second signal, or `seconds` later, ends it immediately.

    Only signals that already raise an exception are deferred, and only in the main thread. With `launched`,
    in a rank of a launch, SIGTERM has a handler of its own, and a second signal changes nothing: the launcher
    passes on what the rank may have received itself. Ctrl-C is not deferred there.
    """
    global _pending
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    alarm = signal.getsignal(signal.SIGALRM)

    def wait(number: int, frame: FrameType | None) -> None:
        global _pending
        if _pending is not None:
            if launched:
                return
            raise Interrupted(number)
        _pending = number
        signal.setitimer(signal.ITIMER_REAL, seconds)
        # An error here would end the work unsaved, as where a terminal takes nothing or stderr is closed.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if number == signal.SIGINT and sys.stderr.isatty():
                os.write(2, _SAVING)  # a handler may not print: it may have interrupted a print

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Interrupted(_pending or signal.SIGINT)

    try:
        for number, handler in before.items():
            own = launched and number == signal.SIGTERM and callable(handler)
            if own or handler in (_raise, signal.default_int_handler):
                signal.signal(number, wait)
        signal.signal(signal.SIGALRM, give_up)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in (*before.items(), (signal.SIGALRM, alarm)):
            if handler is not None:
                signal.signal(number, handler)
        _pending = None
