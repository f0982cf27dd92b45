"""The `dcsft` command: one verb per arrow of the data flow. Heavy packages are imported inside commands."""

import gc
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import click

from dcsft_harness import __version__, interrupts, ranks
from dcsft_harness.cli import bar, recipes, running, score, tools
from dcsft_harness.environment import broken_import, refuse_threads
from dcsft_harness.errors import HarnessError, near, refusal, room, visible_lines
from dcsft_harness.settings import at_home
from dcsft_harness.stages import STAGES


class Flow(click.Group):
    """The stages' commands, created on first use, and other commands, in the order of the data flow."""

    def __init__(self, first: str = "", **given: Any) -> None:  # noqa: ANN401 - click's own
        """A group; `first` is the first word of its verbs, empty for the program itself."""
        super().__init__(**given)
        self._first = first

    def _verbs(self) -> dict[str, str]:
        """Command name -> verb, for the stages in this group itself."""
        start = f"{self._first} " if self._first else ""
        return {
            verb.removeprefix(start): verb
            for verb in STAGES
            if verb.startswith(start) and " " not in verb.removeprefix(start)
        }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the data flow."""
        names = {**dict.fromkeys(self._verbs()), **dict.fromkeys(self.commands)}
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by name."""
        if cmd_name in self._verbs():
            from dcsft_harness.cli.running import command_of

            return command_of(self._verbs()[cmd_name])
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A command by name; suggests near ones for an unknown name."""
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            found = near(args[0], names)
            also = f" Did you mean {' or '.join(found)}?" if found else ""
            raise click.UsageError(f"No such command '{args[0]}'.{also}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing the stages' files."""
        verbs = self._verbs()
        rows = {
            name: STAGES.about(verbs[name]) if name in verbs else self.commands[name].get_short_help_str(200)
            for name in self.list_commands(ctx)
        }
        for title, names in {**SECTIONS, "Commands": tuple(rows)}.items():
            if some := [(name, rows.pop(name)) for name in names if name in rows]:
                with formatter.section(title):
                    formatter.write_dl(some)


SECTIONS = {
    "Start": ("quickstart", "init", "run", "rehearse"),
    "The chain": ("sample", "label", "curate", "train", "merge", "evaluate", "leaderboard", "compare-cost"),
    "Results and publishing": ("score", "results", "card", "push"),
    "Data, tasks and models": ("data", "tasks", "digits", "lmms-eval", "env"),
}
"""How `dcsft --help` groups the commands, in the order of the data flow."""
ORDER = [name for names in SECTIONS.values() for name in names]


@click.group(cls=Flow, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="dcsft")
def dcsft() -> None:
    """Difficulty-curated SFT for vision-language models.

    \b
    pool -> rollouts -> labels -> curated set -> adapter -> scores -> leaderboard
      sample      label     curate         train     evaluate   leaderboard build

    `dcsft quickstart` runs the whole chain on the embedded digits suite in minutes, on a CPU.
    """  # noqa: D301 - click reads the \b
    refuse_threads()


GROUPS: dict[str, tuple[str, tuple[click.Command, ...]]] = {
    "train": ("Train with TRL and PEFT: curated set -> adapter.", ()),
    "leaderboard": ("Compare checkpoints: scores -> leaderboard.", (tools.serve,)),
    "data": ("Look at your own rows, prepare the paper's benchmarks, find overlap.", (tools.prepare,)),
    "digits": ("The embedded digits suite's base checkpoint.", (tools.digits_path,)),
}
"""First word of two-word verbs -> help, and its other commands, which are not stages."""

for name, (about, others) in GROUPS.items():
    dcsft.add_command(Flow(name, name=name, help=about, commands={str(one.name): one for one in others}))
for command in (*recipes.commands, *running.hub_commands, score.score, *tools.commands):
    dcsft.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0: done; 1: refused or failed; 2: wrong usage; 130, 143 and 129: ended by Ctrl-C, SIGTERM and SIGHUP.
    """
    given = sys.argv[1:] if argv is None else argv
    arguments = at_home(list(given))  # shells leave that of NAME=~/FILE and "~/FILE" as it is
    if arguments[:1] != ["lmms-eval"]:
        _calm()
        interrupts.install()
    try:
        # click returns the code of `Context.exit`, or the command's return value, which is None.
        code = dcsft.main(args=arguments, prog_name="dcsft", standalone_mode=False) or 0
        ranks.leave()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        bar.say(f"dcsft: {_sentence(error)}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ or error  # click turns it into an Abort
        number = cause.number if isinstance(cause, interrupts.Interrupted) else signal.SIGINT
        if ranks.rank() == 0 and not ranks.watched():
            bar.say(f"dcsft: {interrupts.said(cause)}")
        return 128 + number
    except ranks.FailedElsewhere:
        return ranks.ELSEWHERE if ranks.watched() else 1
    except HarnessError as error:
        if isinstance(error, ranks.Lost) and ranks.watched():
            return ranks.ELSEWHERE
        bar.say(f"dcsft{f' (rank {ranks.rank()})' if ranks.rank() else ''}: {error}")
        return 1
    except OSError as error:
        reason = refusal(error)
        if reason is None:
            raise
        bar.say(f"dcsft: {error.filename or 'writing'}: {os.strerror(reason)}. {room(reason)}.")
        return 1
    except Exception as error:
        problem = broken_import(error)
        if problem is None:
            raise
        bar.say(f"dcsft: {problem}")
        return 1


def _sentence(error: click.ClickException) -> str:
    """A click usage error in the form of our own errors: the problem, then the remedy."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        return _unknown_option(error.option_name, error.ctx)
    said = error.format_message().strip()
    # click puts several suggestions in brackets after the full stop.
    said = re.sub(r"\((Did you mean .*\?)\)$", r"\1", said)
    said = said[:1].lower() + said[1:] + ("" if said.endswith((".", "?")) else ".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dcsft"
    return f"{said} `{path} --help` lists what it takes."


def _unknown_option(name: str, context: click.Context) -> str:
    """The sentence about an option that a command lacks: near names, else the commands that have it."""
    path = context.command_path
    if isinstance(context.command, click.Group):
        return f"no such option '{name}'. Name a command first: `{path} --help` lists them."
    names = [one for param in context.command.get_params(context) for one in param.opts if one[:2] == "--"]
    if found := near(name.lstrip("-"), (one.lstrip("-") for one in names)):
        remedy = f" Did you mean {' or '.join(f'--{one}' for one in found)}?"
    else:
        others = [f"`{verb}`" for verb, options in _options(dcsft, context) if name in options]
        remedy = f" It belongs to {', '.join(others[:3])}." if others else ""
        if not others and any(one.name == "passed" for one in context.command.params):
            argument = name.lstrip("-").replace("-", "_")
            remedy = f" TRL's arguments are passed as --set {argument}=VALUE."
    return f"no such option '{name}'.{remedy} `{path} --help` lists what it takes."


def _options(
    group: click.Group, context: click.Context, path: str = "dcsft"
) -> Iterator[tuple[str, set[str]]]:
    """Each command of a group with its options, those of the chain first."""
    chain = SECTIONS["The chain"]
    for name in sorted(group.list_commands(context), key=lambda name: name not in chain):
        if isinstance(command := group.get_command(context, name), click.Group):
            yield from _options(command, context, f"{path} {name}")
        elif command is not None:
            yield f"{path} {name}", {one for param in command.get_params(context) for one in param.opts}


def _calm() -> None:
    """Silences other packages on the terminal. Called before any of them is imported."""
    for name, value in {
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",  # else it prints six lines per file when the hub is unreachable
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LOGURU_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Visible())
    if "datasets" in sys.modules:  # already imported in this process, where it read the variable long ago
        sys.modules["datasets"].disable_progress_bars()
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


class _Visible(logging.Formatter):
    """Log records as safe text: they quote names, responses and other packages' errors."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an unexpected error like the interpreter, with quoted content made safe."""
    for line in "".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"):
        bar.say(line)


def _streams() -> None:
    """Makes every character printable, and closed streams (`dcsft tasks list >&-`) such that can be used."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the end
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def entry() -> None:
    """The console script."""
    _streams()
    sys.excepthook = _traceback
    code = main()
    ranks.ending()
    gc.freeze()  # the interpreter's last collection would walk all modules, for 0.3 s
    sys.exit(code)
