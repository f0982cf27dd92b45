"""Runs a command in several processes, through `accelerate launch`.

    dcsft train sft ... --num-processes 8 --launch zero3
    dcsft sample ... --num-processes 8

The processes run the same command without these two options. The original process waits for them and passes
on their exit status. Whatever can be checked before they start is checked here.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness import interrupts, ranks
from dcsft_harness.artifacts import manifest
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.training.config import TrainingConfig

if TYPE_CHECKING:
    from accelerate.commands.config.config_args import ClusterConfig

DEFAULT = "ddp"


def shipped() -> dict[str, Path]:
    """Accelerate's configuration files that come with the package, by name."""
    folder = Path(str(files("dcsft_harness.training"))) / "launch"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@dataclass(frozen=True)
class Launch:
    """How to distribute a command over processes."""

    processes: int  # the number over all machines; above 1
    plan: str = DEFAULT  # a name of `shipped()`, or one of accelerate's configuration files
    devices: int = 1  # GPUs of each process

    @classmethod
    def read(cls, processes: int | None, plan: str | None, devices: int = 1) -> "Launch | None":
        """The launch for the options `num_processes` and `launch`; None for a single process.

        Options that are out of range or contradict each other, and a launch within a launch, are refused.
        """
        if processes is None and plan is None:
            return None
        if processes is None:
            raise HarnessError(f"--launch {plan} has no effect without --num-processes", "Pass both")
        if ranks.world_size() > 1:
            raise HarnessError(
                f"--num-processes {processes} inside a launch of {ranks.world_size()} processes",
                "Leave it out, or start `dcsft` without `torchrun` or `accelerate launch`",
            )
        if processes == 1:
            if plan not in (None, DEFAULT):
                raise HarnessError(
                    f"--launch {plan} divides the work of several processes, but --num-processes is 1",
                    "Leave both out",
                )
            return None
        return cls(processes, DEFAULT if plan is None else plan, devices)

    @property
    def file(self) -> Path:
        """The configuration file; an error if there is none."""
        if self.plan.endswith((".yaml", ".yml", ".json")):
            if not Path(self.plan).is_file():
                raise HarnessError(f"--launch {self.plan} does not exist", "Check the path")
            return Path(self.plan)
        if self.plan not in shipped():
            raise unknown_name("launch", self.plan, shipped())
        return shipped()[self.plan]

    def check(self, config: TrainingConfig | None = None) -> "ClusterConfig":
        """Checks the launch before any process starts, and returns the file's content.

        `config` is that of a training; None if nothing is trained.

        Raises:
            HarnessError: the file cannot be read, a package or GPUs are missing, or the processes do not
                divide a batch.
        """
        if config is not None:
            config.share(self.processes)
        found = self._read()
        kind = str(getattr(found.distributed_type, "value", found.distributed_type))
        if kind in ("NO", "MULTI_CPU"):
            raise HarnessError(
                f"--launch {self.plan} has distributed_type {kind}, with which accelerate starts one process",
                "Use MULTI_GPU, which starts several on a CPU too",
            )
        if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
            raise HarnessError(
                f"--launch {self.plan} needs DeepSpeed, which is not installed",
                "pip install deepspeed, or pass --launch fsdp2",
            )
        import torch

        devices = torch.cuda.device_count()
        if devices == 0 and kind in ("DEEPSPEED", "FSDP"):
            raise HarnessError(
                f"--launch {self.plan} divides a model among GPUs, but this machine has none",
                "Use --launch ddp",
            )
        wanted = self.processes * self.devices
        if 0 < devices < wanted and found.num_machines == 1:
            each = "as many" if self.devices == 1 else f"{self.devices} each, {wanted}"
            raise HarnessError(
                f"--num-processes {self.processes} needs {each} GPUs, but this machine has {devices}",
                f"Use at most {max(devices // self.devices, 1)}",
            )
        return found

    def _read(self) -> "ClusterConfig":
        from accelerate.commands.config.config_args import load_config_from_file

        file = str(self.file)
        try:
            found = load_config_from_file(file)
            machines = found.num_machines
        except Exception as error:  # noqa: BLE001 - YAML's and JSON's errors, and all that a wrong type leads to
            raise HarnessError(
                f"--launch {self.plan} is not a configuration of `accelerate launch`: "
                f"{' '.join(str(error).split())[:300]}",
                f"Pass {', '.join(shipped())}, or a file that `accelerate config` wrote",
            ) from error
        if self.processes % machines:
            raise HarnessError(
                f"--num-processes {self.processes} cannot be shared by the {machines} machines of --launch "
                f"{self.plan}",
                "Use a multiple",
            )
        return found


PLANNED: ContextVar[Launch | None] = ContextVar("PLANNED", default=None)
"""The launch that a dry run plans for; None for one process."""


def shares() -> tuple[int, dict[str, int]]:
    """The number of processes, and how many of them share weights and state (gradients, moments), by kind."""
    launch = PLANNED.get()
    count = ranks.world_size() if launch is None else launch.processes
    name = (sharding() or "") if launch is None else launch.plan
    whole = "FSDP" in name or "fsdp" in name or name in ("ZeRO-3", "zero3")
    part = whole or name in ("ZeRO-2", "zero2")
    return count, {"weights": count if whole else 1, "state": count if part else 1}


def divides() -> bool:
    """Whether the launch in force, or the planned one, may divide the model among processes."""
    launch = PLANNED.get()
    return sharding() is not None if launch is None else launch.plan != DEFAULT


def sharding() -> str | None:
    """How the current launch divides the model; None if each process has a whole one."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"FSDP{os.environ.get('FSDP_VERSION', '')}"
    return None


def run(launch: Launch, config: TrainingConfig | None, words: list[str], output: Path) -> dict[str, Any]:
    """Runs a command, without the options of the launch, in its processes, and waits for them.

    `output` is the folder that it writes; returns the notes of the artifact there.

    Raises:
        HarnessError: the launch failed, or one of its processes did: `FailedElsewhere` if that process has
            already reported why.
        KeyboardInterrupt: they were interrupted.
    """
    found = launch.check(config)
    batch = "batch_size in --model-args" if config is None else "micro_batch_size"
    _start(arguments(launch, found, words), batch, output)
    return manifest.read(output).notes


def arguments(launch: Launch, found: "ClusterConfig", words: list[str]) -> list[str]:
    """The command line of `accelerate launch`; errors are those of `Launch.file`."""
    import torch

    given = [f"--config_file={launch.file}", f"--num_processes={launch.processes}"]
    given.append(f"--log_dir={os.devnull}")  # else torch leaves a temporary folder behind
    if found.main_process_port is None and found.num_machines == 1:
        given.append("--main_process_port=0")  # any that is free
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        threads = max((os.cpu_count() or 1) // launch.processes, 1)
        given.append(f"--num_cpu_threads_per_process={threads}")
    return [*given, "--module", "dcsft_harness.cli", *words]


def _start(given: list[str], batch: str, output: Path) -> None:
    import torch.distributed.run  # noqa: F401 - makes the loggers that are kept quiet
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        with _watching():
            launch.launch_command(launch.launch_command_parser().parse_args(given))
    except SignalException as error:
        raise interrupts.Interrupted(error.sigval) from error
    except ChildFailedError as error:
        codes = {failure.local_rank: failure.exitcode for failure in error.failures.values()}
        _report(codes, error, batch, output)
    except (ValueError, OSError, ImportError) as error:
        raise HarnessError(f"`accelerate launch` refuses: {error}", "Correct the file of --launch") from error


def _report(codes: Mapping[int, int], error: Exception, batch: str, output: Path) -> None:
    """Raises the error that a launch's exit codes mean, by rank in the order in which they ended.

    `batch` is the option that decides how much memory a process takes, `output` the folder that they write.

    KeyboardInterrupt if the processes were interrupted.
    """
    ended = (-signal.SIGTERM, 128 + signal.SIGTERM, ranks.ELSEWHERE)
    causes = {rank: code for rank, code in codes.items() if code not in ended}
    if 128 + signal.SIGINT in causes.values():
        raise KeyboardInterrupt from error
    if set(codes.values()) == {128 + signal.SIGTERM}:  # which somebody sent to the processes themselves
        raise interrupts.Interrupted(signal.SIGTERM) from error
    rank, code = next(iter(causes.items()), (0, 1))
    if code < 0:
        again = " to resume" if manifest.unfinished(output) else ""
        raise HarnessError(
            f"process {rank} of this launch was ended by signal {-code} ({signal.Signals(-code).name})",
            f"If memory ran out, lower {batch}. Rerun the same command{again}",
        ) from error
    raise ranks.FailedElsewhere("a process of this launch failed") from error


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """Hides the launcher's own messages, and restores what it changes in this process."""
    import logging

    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    loggers = [one for one in loggers if one.name.startswith(("torch.distributed", "accelerate"))]
    levels = [one.level for one in loggers]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    os.environ[ranks.WATCHED] = str(os.getpid())
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        del os.environ[ranks.WATCHED]
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError, TypeError):  # not in the main thread, or not Python's
                signal.signal(number, handler)
