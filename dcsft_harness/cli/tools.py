"""Commands about data, tasks and models: data prepare, tasks, digits path, a board's page, lmms-eval, env."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dcsft_harness import environment
from dcsft_harness.cli import bar
from dcsft_harness.cli.running import FOLDER, ROOT
from dcsft_harness.errors import HarnessError, visible


@click.command()
@click.argument("task")
@click.option("--source", type=FOLDER, help="The published files; default: download from the hub.")
@click.option("--data-root", "--output", **ROOT)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="For an unusable row: stop, or skip it and record why.",
)
@click.option("--any-count", is_flag=True, help="Accept a subset of the published rows; recorded.")
def prepare(task: str, source: Path | None, on_error: str, any_count: bool) -> None:
    """Prepare the local folder that TASK reads from the published files.

    \b
    dcsft data prepare dcsft_imagenet_r
    dcsft data prepare dcsft_ref_l4 --source Ref-L4
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.data.benchmarks import prepared

    clock = bar.Clock()
    with bar.stage("data prepare") as report:
        notes = prepared.prepare(
            task,
            source,
            on_error=on_error,
            any_count=any_count,
            progress=report,
            say=lambda text: bar.say(f"data prepare: {text}"),
        )
    bar.closing("data prepare", _said(notes), clock, prepared.folder_of(task))


def _said(notes: Mapping[str, Any]) -> str:
    parts = [f"{notes['rows']} rows, {notes['images']} images"]
    parts += [f"{len(values)} values of {name}" for name, values in notes.get("values", {}).items()]
    if "chosen" in notes:
        parts.append(f"chosen: {notes['chosen']}")
    if notes["skipped"]:
        parts.append(f"{notes['skipped']} skipped (see skipped.jsonl)")
    return ", ".join(parts)


@click.group()
def tasks() -> None:
    """The suite's lmms-eval tasks: list them, check their data."""


@tasks.command("path")
def tasks_path() -> None:
    """Print the folder for lmms-eval's --include_path."""
    from dcsft_harness.tasks import path

    click.echo(path())


@tasks.command("list")
def tasks_list() -> None:
    """List the suite's tasks and groups of tasks."""
    from tabulate import tabulate

    from dcsft_harness.lmms.tasks import groups, listing

    listed = [{name: visible(str(cell)) for name, cell in row.items()} for row in listing()]
    bar.write(tabulate(listed, headers="keys", tablefmt="plain"))
    rows = [{"group": visible(name), "tasks": visible(", ".join(names))} for name, names in groups().items()]
    bar.write("\n" + tabulate(rows, headers="keys", tablefmt="plain"))


@tasks.command("check")
@click.argument("names", nargs=-1)
@click.option("--data-root", **ROOT)
def tasks_check(names: tuple[str, ...]) -> None:
    """Load every task (or the named ones) with its data, without a model or a network.

    Tasks without prepared data are listed with how to get it. If you named them, that is an error.
    """
    from dcsft_harness.lmms.tasks import check_tasks, listing

    wanted = names or tuple(str(row["task"]) for row in listing())
    failed: list[str] = []
    absent: list[str] = []
    for found in check_tasks(wanted):
        if found.state == "present":
            bar.write(visible(f"{found.task}: {found.said}"))
            continue
        (absent if found.state == "absent" else failed).append(found.task)
        line = f"{found.task}: {found.said}"
        (bar.say if found.state == "broken" or names else bar.write)(visible(line))
    if absent and not names:
        click.echo(f"{len(wanted) - len(absent) - len(failed)} tasks load; {len(absent)} have no data yet")
    failed += absent if names else []
    if failed:
        count = f"{len(failed)} tasks do" if len(failed) > 1 else "1 task does"
        raise HarnessError(f"{count} not load: {', '.join(failed)}", "See the reasons above")


@click.command("path")
def digits_path() -> None:
    """Print the embedded checkpoint's folder."""
    from dcsft_harness.data.digits import path

    click.echo(path())


@click.command()
@click.argument("board", type=FOLDER)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free one."
)
def serve(board: Path, port: int) -> None:
    """Serve a leaderboard's page locally; page/index.html also opens without a server.

    \b
    dcsft leaderboard serve board
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.leaderboard.page.serve import HOST, server

    with server(board, port) as running:
        click.echo(f"http://{HOST}:{running.effective_port}/ until Ctrl-C")
        running.run()
        click.echo("")


@click.command(
    "lmms-eval",
    context_settings={"ignore_unknown_options": True, "help_option_names": [], "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lmms_eval(arguments: tuple[str, ...]) -> None:
    """Run lmms-eval's own command line with the suite's task path filled in.

    Exits with 1 if lmms-eval fails; its own command always exits with 0.
    """
    from dcsft_harness.lmms import command_line

    click.get_current_context().exit(command_line(list(arguments)))


@click.command()
def env() -> None:
    """Print the versions and the hardware that a bug report needs."""
    import torch  # noqa: F401 - so that a CUDA device is found

    rows = {**environment.packages(), **environment.hardware()}
    width = max(map(len, rows))
    bar.write("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


commands = (tasks, lmms_eval, env)
