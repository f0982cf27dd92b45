"""Programs in processes forked from one that has imported the engines, which takes 10 s of a processor.

A program's arguments, environment, output, signals and exit code are those of `python PROGRAM WORDS...`.
Tests of a fresh interpreter (the order of imports, how it exits, the entry points) start one.
"""

import atexit
import contextlib
import gc
import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import IO
from unittest import mock

import psutil

from dcsft_harness import cli

HERE = Path(__file__).parent
DCSFT = ("-m", "dcsft_harness.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SERVER = "FORKSERVER_OF_TESTS"
"""The environment's variable with the place of a server that the processes of one run of the tests share."""
ENGINES = (
    "lmms_eval.evaluator",
    "lmms_eval.__main__",
    "lmms_eval.cli.dispatch",
    "torch.distributed.run",
    "accelerate.commands.launch",
    *(f"dcsft_harness.{name}" for name in ("models.hf", "models.stub", "training.sft", "training.grpo")),
    *(f"dcsft_harness.{name}" for name in ("recipes", "evaluation", "leaderboard", "curation", "sampling")),
)
SERVED = "import forked; forked.serve(*given)"


def context() -> multiprocessing.context.ForkServerContext:
    """Forks of this process's server, which starts with the first of them."""
    made = multiprocessing.get_context("forkserver")
    if SERVER in os.environ:
        join()
        return made
    made.set_forkserver_preload(["forked"])
    with mock.patch.dict(os.environ):
        cli._calm()  # as the command does before it imports anything
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        forkserver.ensure_running()
    return made


def announce() -> None:
    """Starts the server, and lets the processes of pytest-xdist that this one starts share it."""
    context()
    server = forkserver._forkserver
    place = (server._forkserver_address, server._forkserver_pid, os.getpid(), server._forkserver_alive_fd)
    os.environ[SERVER] = json.dumps(place)


def join() -> None:
    """Forks come from the server that the run's first process has started."""
    server = forkserver._forkserver
    if server._forkserver_pid is None:
        address, number, starter, alive = json.loads(os.environ[SERVER])
        server._forkserver_address, server._forkserver_pid = address, number
        # The server ends with the last process that has its pipe open.
        server._forkserver_alive_fd = os.open(f"/proc/{starter}/fd/{alive}", os.O_WRONLY)
        server.ensure_running = lambda: None  # it is no child of this process


def index_once() -> None:
    """lmms-eval's own 1,700 task files are read once by a process and its forks: it takes 3 s itself."""
    from lmms_eval import tasks

    from dcsft_harness.lmms.tasks import read_in_c

    if hasattr(tasks.TaskManager, "indexed_once"):
        return
    own, read = os.path.dirname(os.path.abspath(tasks.__file__)) + "/", tasks.TaskManager._get_task_and_group
    kept: dict = {}

    def indexed(self: object, folder: str) -> dict:
        if folder != own:
            return read(self, folder)
        if not kept:
            with read_in_c():
                kept.update(read(self, folder))
        # A tag's entry has a list, which others of its name are added to.
        return {
            name: {key: list(value) if isinstance(value, list) else value for key, value in entry.items()}
            for name, entry in kept.items()
        }

    tasks.TaskManager._get_task_and_group = indexed
    tasks.TaskManager.indexed_once = True


def warm() -> None:
    """What the server does before it forks."""
    for name in ENGINES:
        importlib.import_module(name)
    index_once()
    tasks = importlib.import_module("dcsft_harness.lmms.tasks")
    tasks.manager()
    tasks.manager(["mmmu_val"])  # one of lmms-eval's own
    tasks.groups()
    gc.collect()
    gc.freeze()


def python(*words: str) -> None:
    """What the interpreter does with these words: `-m MODULE`, `-c CODE` or a script, then arguments."""
    words = list(words[words[0] == "-u" :])
    named = words[0] in ("-m", "-c")
    sys.argv = words[named:]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _ranks_are_forks() -> None:
    """`torchrun` and `accelerate launch` fork their processes from this one."""
    # Who forks its ranks logs which of them it ends; who starts interpreters does not.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api as elastic
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher import api

    original = api.elastic_launch

    def rank(*words: str) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # not the launcher's handlers
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        python(*words)

    def elastic_launch(config: object, entrypoint: str) -> object:
        assert entrypoint == sys.executable
        config.start_method = "fork"
        return original(config, rank)

    poll = elastic.MultiprocessContext._poll

    def polled(self: elastic.MultiprocessContext) -> elastic.RunProcsResult | None:
        """All ranks that failed, as of interpreters: of forks torch reports the first by number alone."""
        result = poll(self)
        if result is not None and result.failures:
            for number, process in enumerate(self._pc.processes):
                if process.exitcode and number not in result.failures:
                    failure = ProcessFailure(number, process.pid, process.exitcode, error_file="")
                    result.failures[number] = failure
        return result

    elastic.MultiprocessContext._poll = polled
    # `python -m torch.distributed.run` executes that file anew.
    api.elastic_launch = run.elastic_launch = elastic_launch


def serve(words: list[str], folder: str, environment: dict[str, str], session: bool, ends: list) -> None:
    if session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.fsync = lambda file: None  # see conftest.py
    tempfile.tempdir = None
    for number, end in zip((1, 2), ends, strict=True):
        os.dup2(os.open(os.devnull, os.O_WRONLY) if end is None else end.fileno(), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the process's own
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    _ranks_are_forks()
    try:
        python(*words)
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()


class Popen:
    """As `subprocess.Popen` of this interpreter, whose name is left out; its pipes are text."""

    def __init__(
        self,
        words: Sequence[object],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | IO | None = None,
        stderr: int | IO | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = [str(word) for word in words]
        forks, ends = context(), []
        for name, wanted in (("stdout", stdout), ("stderr", stderr)):
            end, read = None, None
            if wanted == subprocess.PIPE:
                receiver, end = forks.Pipe(duplex=False)
                read = open(os.dup(receiver.fileno()))  # noqa: SIM115 - closed with this object
                receiver.close()
            elif wanted != subprocess.DEVNULL:
                number = wanted.fileno() if wanted else {"stdout": 1, "stderr": 2}[name]
                end = multiprocessing.connection.Connection(os.dup(number), readable=False)
            ends.append(end)
            setattr(self, name, read)
        environment = dict(os.environ if env is None else env)
        given = (self.args, str(cwd or Path.cwd()), environment, start_new_session, ends)
        self._process = forks.Process(target=exec, args=(SERVED, {"given": given}))
        self._process.start()
        atexit.register(self._process.kill)  # else the tests' own process would wait for it at its end
        self.pid = self._process.pid
        for end in ends:
            if end is not None:
                end.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """What it printed, after it ended. Both pipes are read at once: either may fill."""
        found: dict[str, str] = {}
        pipes = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [
            threading.Thread(target=lambda at=name: found.update({at: pipes[at].read()}), daemon=True)
            for name, pipe in pipes.items()
            if pipe is not None and not pipe.closed
        ]
        until = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if until is None else max(0, until - time.monotonic()))
        self.wait(None if until is None else max(0.1, until - time.monotonic()))
        for name in found:
            getattr(self, name).close()
        return found.get("stdout"), found.get("stderr")

    def __enter__(self) -> "Popen":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()


def run(words: Sequence[object], check: bool = False, capture_output: bool = False, **given) -> object:
    """As `subprocess.run`."""
    timeout = given.pop("timeout", None)
    if capture_output:
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = Popen(words, **given)
    said = started.communicate(timeout)
    if check and started.returncode:
        raise subprocess.CalledProcessError(started.returncode, started.args, *said)
    return subprocess.CompletedProcess(started.args, started.returncode, *said)


def spent() -> float:
    """Seconds of a processor of this process, the processes that it waited for, and all forks that ended."""
    own, server = sum(os.times()[:4]), forkserver._forkserver._forkserver_pid
    if server is None:
        return own
    after_name = Path(f"/proc/{server}/stat").read_text().rpartition(") ")[2].split()
    return own + sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")


def ranks(running: Popen) -> list[psutil.Process]:
    """The processes of a launch, by rank: their launcher forks one after the other."""
    found = psutil.Process(running.pid).children()
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


if __name__ == "forked":  # in the server, which finds this file by its folder
    warm()
