"""The `dcsft` command: one verb per arrow of the data flow. Heavy packages are imported inside commands."""

import errno
import os
import re
import sys
from collections.abc import Sequence

import click

from dcsft_harness import __version__, ranks
from dcsft_harness.cli import adapters, data, results, score, sources, tools, train
from dcsft_harness.errors import HarnessError, refusal


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dcsft")
def dcsft() -> None:
    """Difficulty-curated SFT for vision-language models.

    \b
    pool -> rollouts -> labels -> curated set -> adapter -> scores -> leaderboard
      sample      label     curate         train     evaluate   leaderboard build

    `dcsft quickstart` runs the whole chain on the embedded digits suite in minutes, on a CPU.
    """  # noqa: D301 - click reads the \b


for group in (
    tools.early,
    sources.commands,
    data.commands,
    train.commands,
    adapters.commands,
    results.commands,
    score.commands,
    tools.late,
):
    for command in group:
        dcsft.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 refused or failed, 2 misused, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] != ["lmms-eval"]:
        _calm()
    try:
        # click returns the code of `Context.exit`; of a command, what that returns, which is None.
        code = dcsft.main(args=arguments, prog_name="dcsft", standalone_mode=False) or 0
        ranks.leave()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"dcsft: {_sentence(error)}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        said = "interrupted; what is finished is kept, nothing half-written. Run the same command to go on."
        if ranks.rank() == 0 and not ranks.watched():
            click.echo(f"dcsft: {said}", err=True)
        return 130
    except ranks.FailedElsewhere:
        return ranks.ELSEWHERE if ranks.watched() else 1
    except HarnessError as error:
        if isinstance(error, ranks.Lost) and ranks.watched():
            return ranks.ELSEWHERE
        click.echo(f"dcsft{f' (rank {ranks.rank()})' if ranks.rank() else ''}: {error}", err=True)
        return 1
    except OSError as error:
        reason = refusal(error)
        if reason is None:
            raise
        remedy = "Check its permissions" if reason == errno.EACCES else "Free some space or name another disk"
        click.echo(f"dcsft: {error.filename or 'writing'}: {os.strerror(reason)}. {remedy}.", err=True)
        return 1


def _sentence(error: click.ClickException) -> str:
    """What click refuses, in the form of our own refusals: the problem, then the remedy."""
    said = error.format_message().strip()
    # click puts its suggestions in brackets after the full stop where there are several.
    said = re.sub(r"\((Did you mean .*\?)\)$", r"\1", said)
    said = said[:1].lower() + said[1:] + ("" if said.endswith((".", "?")) else ".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dcsft"
    return f"{said} `{path} --help` says what it takes."


def _calm() -> None:
    """One voice on the terminal: ours. Set before any of these packages is imported."""
    for name, value in {
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",  # else six lines for each file that an unreachable hub is asked for
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LOGURU_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if "datasets" in sys.modules:  # a caller in this process has it, which read the variable long ago
        sys.modules["datasets"].disable_progress_bars()
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def entry() -> None:
    """The console script."""
    code = main()
    ranks.ending()
    sys.exit(code)
