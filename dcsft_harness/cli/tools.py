"""Commands that are not stages: quickstart, run, results, tasks, a board's page, lmms-eval."""

from pathlib import Path

import click

from dcsft_harness.cli import bar
from dcsft_harness.cli.sources import data_root
from dcsft_harness.errors import HarnessError, visible

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--output", type=FOLDER, default=Path("runs/quickstart"), show_default=True)
def quickstart(output: Path) -> None:
    """Run the whole chain on the embedded digits suite and print the table."""
    from dcsft_harness.cli.recipe import run_recipe

    run_recipe("digits", output, dry_run=False)


def _listed(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Prints the shipped recipes and exits."""
    if wanted:
        from tabulate import tabulate

        from dcsft_harness.recipes import recipe

        rows = [{"recipe": name, "about": recipe.summary(name)} for name in recipe.shipped()]
        click.echo(tabulate(rows, headers="keys", tablefmt="plain"))
        context.exit()


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--output", type=FOLDER, required=True)
@click.option(
    "--scale",
    type=click.Choice(["digits", "paper"]),
    default="digits",
    show_default=True,
    help="The embedded suite, on two cores; or the paper's models and data, on eight GPUs.",
)
@click.option("--dry-run", is_flag=True, help="Print every command, its inputs and its cost; run nothing.")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_listed, help="List recipes."
)
def run(recipes: tuple[str, ...], output: Path, scale: str, dry_run: bool) -> None:
    """Run recipes: shipped ones by name, or YAML files.

    Finished stages that are still valid are skipped, so the same command resumes an interrupted run. Stages
    that several recipes share run once per output folder.
    """
    from dcsft_harness.cli.recipe import run_recipe

    run_recipe(recipes, output, dry_run, scale)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="RUN...")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A .md file.")
def results(runs: tuple[Path, ...], output: Path) -> None:
    """Write a page with the results of recipes: tables, plots, and a verdict on each of the paper's claims.

    \b
    dcsft run paradigms difficulty --output runs/digits
    dcsft results runs/digits --output results.md
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.recipes.results import write

    counts = ", ".join(f"{count} {name}" for name, count in write(runs, output).items())
    bar.say(f"results: {counts} -> {output}")


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

    from dcsft_harness.lmms.listing import groups, listing

    listed = [{name: visible(str(cell)) for name, cell in row.items()} for row in listing()]
    bar.show(tabulate(listed, headers="keys", tablefmt="plain"))
    rows = [{"group": visible(name), "tasks": visible(", ".join(names))} for name, names in groups().items()]
    bar.show("\n" + tabulate(rows, headers="keys", tablefmt="plain"))


@tasks.command("check")
@click.argument("names", nargs=-1)
@data_root
def tasks_check(names: tuple[str, ...]) -> None:
    """Load every task (or the named ones) with its data, without a model or a network.

    Tasks without prepared data are listed with how to get it. If you named them, that is an error.
    """
    from dcsft_harness.lmms.checking import check
    from dcsft_harness.lmms.listing import listing

    wanted = names or tuple(str(row["task"]) for row in listing())
    failed: list[str] = []
    absent: list[str] = []
    for found in check(wanted):
        if found.state == "present":
            bar.show(visible(f"{found.task}: {found.said}"))
            continue
        (absent if found.state == "absent" else failed).append(found.task)
        line = f"{found.task}: {found.said}"
        (bar.say if found.state == "broken" or names else bar.show)(visible(line))
    if absent and not names:
        click.echo(f"{len(wanted) - len(absent) - len(failed)} tasks load; {len(absent)} have no data yet")
    failed += absent if names else []
    if failed:
        raise HarnessError(f"{len(failed)} tasks do not load: {', '.join(failed)}", "The reasons are above")


@click.command("path")
def digits_path() -> None:
    """Print the embedded checkpoint's folder."""
    from dcsft_harness.data.digits.checkpoint import path

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


early = (quickstart, run, results)
late = (tasks, lmms_eval)
