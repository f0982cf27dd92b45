"""Commands of recipes: quickstart, init, run, rehearse and results."""

import fnmatch
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dcsft_harness import interrupts, reading
from dcsft_harness.artifacts import manifest
from dcsft_harness.cli import bar
from dcsft_harness.cli.running import FOLDER, assignments, completing, run_stage
from dcsft_harness.errors import HarnessError, unknown_name
from dcsft_harness.settings import flag

# `dcsft run`: stages, skipped stages and tables on the terminal.


def run_recipe(
    names: str | Sequence[str],
    output: Path,
    dry_run: bool,
    scale: str | None = None,
    given: Mapping[str, str] | None = None,
) -> None:
    """Runs recipes and prints the tables of their leaderboards; a dry run prints the plan."""
    from dcsft_harness import recipes
    from dcsft_harness.recipes import chain

    chosen = recipes.load(names, scale, given)
    if dry_run:
        bar.write(chain.described(chosen, output))
    chain.refuse_missing(chosen, output, unprepared=not dry_run)
    if dry_run:
        return
    clock = bar.Clock()
    from dcsft_harness.models.batching import remembering

    finished = [output / stage.name / manifest.NAME for stage in chosen.stages]
    with remembering(), interrupts.noting(lambda: any(one.is_file() for one in finished)):
        chain.run(chosen, output, run_stage, bar.say)
    tables = [output / stage.name for stage in chosen.stages if stage.verb == "leaderboard build"]
    bar.closing(chosen.name, f"{len(chosen.stages)} stages", clock, output)
    for folder in tables:
        bar.show((folder / "leaderboard.md").read_text(encoding="utf-8"))


@click.command()
@click.option("--output", type=FOLDER, default=Path("runs/quickstart"), show_default=True)
def quickstart(output: Path) -> None:
    """Run the whole chain on the embedded digits suite and print the table."""
    run_recipe("digits", output, dry_run=False)


@click.command()
@click.option(
    "--shape",
    type=click.Choice(["qwen2.5-vl-3b", "qwen3-vl-4b", "internvl3-2b"]),
    default="qwen2.5-vl-3b",
    show_default=True,
    help="The published size.",
)
@click.option("--output", type=FOLDER, required=True, help="The folder to write.")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:N; by default CUDA if available.")
@click.option("--layers", type=click.IntRange(1), help="Number of layers to keep, for a trial on a CPU.")
@click.option("--keep", is_flag=True, help="Keep the checkpoints; by default they are deleted at the end.")
@click.option(
    "--side",
    type=click.IntRange(56),
    metavar="PIXELS",
    help="Pixels per side of the images; by default they become 256 tokens.",
)
@click.option(
    "--within",
    type=click.FloatRange(0),
    metavar="SHARE",
    help="Fail if a stage's memory differs from its estimate by more than this share, such as 0.15.",
)
@click.option(
    "--chat-template-kwargs",
    "template",
    metavar="JSON",
    help='Further arguments of the chat template, as JSON: {"enable_thinking": false}.',
)
@click.option("--format", "form", type=click.Choice(bar.FORMATS), help="Format of the table.")
def rehearse(
    shape: str,
    output: Path,
    device: str | None,
    layers: int | None,
    keep: bool,
    side: int | None,
    within: float | None,
    template: str | None,
    form: str | None,
) -> None:
    """Run the whole chain at a published size with random weights, and measure it.

    Every stage is the real command, on four items. Run it first on a new machine. The table has time, peak
    memory beside the estimate of `--dry-run`, tokens per second, and bytes on disk; rehearsal.json has the
    same. Nothing is downloaded.

    \b
    dcsft rehearse --shape qwen2.5-vl-3b --layers 2 --output rehearsal
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.recipes import rehearsal

    clock = bar.Clock()
    given = None if template is None else reading.json_option("--chat-template-kwargs", template)
    found = rehearsal.rehearse(
        shape, output, device, layers, keep, lambda line: bar.say(f"rehearse: {line}"), side, given
    )
    bar.closing("rehearse", f"{len(found['stages'])} stages", clock, output)
    bar.show(rehearsal.table(found), form)
    if within is not None:
        rehearsal.refuse_wrong(found, within)


def _listed(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from tabulate import tabulate

        from dcsft_harness import recipes

        rows = [{"recipe": name, "about": recipes.summary(name)} for name in recipes.shipped()]
        click.echo(tabulate(rows, headers="keys", tablefmt="plain"))
        context.exit()


def _shipped() -> dict[str, Path]:
    from dcsft_harness import recipes

    return recipes.shipped()


@click.command()
@click.argument(
    "recipes", nargs=-1, required=True, metavar="RECIPE...", shell_complete=completing(_shipped, files=True)
)
@click.option("--output", type=FOLDER, required=True)
@click.option(
    "--scale",
    type=click.Choice(["digits", "paper"]),
    help="The embedded suite, on two cores (the default); or the paper's models and data, on eight GPUs (the "
    "default if a model is set).",
)
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable of the recipes: model=CKPT, pool=FILE, scorer=NAME, test=FILE, tasks=NAME,..., steps=N.",
)
@click.option("--dry-run", is_flag=True, help="Print every command, its inputs and its cost; run nothing.")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_listed, help="List recipes."
)
def run(
    recipes: tuple[str, ...], output: Path, scale: str | None, given: tuple[str, ...], dry_run: bool
) -> None:
    """Run recipes: shipped ones by name, or YAML files.

    Finished stages that are still valid are skipped, so the same command resumes an interrupted run. Stages
    that several recipes share run once per output folder.

    With your own data, and with --set model=CKPT your own model:

    \b
    dcsft run paradigms --set pool=train.jsonl --set scorer=choice \\
        --set test=test.jsonl --output mine
    """  # noqa: D301 - click reads the \b
    run_recipe(recipes, output, dry_run, scale, assignments(given))


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


class _Asked(click.Option):
    """An option that is asked for where it is not given; a wrong answer is named, and asked for again."""

    asking = False

    def __init__(self, *given: Any, check: Callable[[click.Context, str], None], **more: Any) -> None:  # noqa: ANN401 - click's own
        """The option; `check` raises a `HarnessError` for a value that would not run."""

        def checked(context: click.Context, _: click.Parameter, value: object) -> object:
            check(context, str(value).strip())
            return value

        super().__init__(*given, callback=checked, **more)

    def prompt_for_value(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own
        """Asks, unless the values before leave nothing to ask."""
        if self.name == "scorer" and not _own_pool(ctx):
            return ""  # a task has its own
        self.asking = True
        try:
            return super().prompt_for_value(ctx)
        except click.Abort as error:
            if not isinstance(error.__context__, EOFError):
                raise
            given = flag(str(self.name))
            bar.say("")  # ends the line of the question
            raise HarnessError(
                f"{given} is missing, and there is no terminal to ask in", f"Pass {given}"
            ) from None
        finally:
            self.asking = False

    def process_value(self, ctx: click.Context, value: Any) -> Any:  # noqa: ANN401 - click's own
        """The checked value; click asks again after its own errors alone."""
        try:
            return super().process_value(ctx, value)
        except HarnessError as error:
            if self.asking:
                raise click.UsageError(str(error)) from error
            raise


def _own_pool(context: click.Context) -> bool:
    """Whether the pool is a file or folder of rows, and not a task."""
    return Path(str(context.params.get("pool") or "")).exists()


def _check_model(_: click.Context, value: str) -> None:
    from dcsft_harness.evaluation.subject import open_subject

    if not Path(value).is_dir():
        open_subject(value, None)
    elif not any((Path(value) / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise HarnessError(
            f"--model {value} is neither an adapter nor a checkpoint", "Name its folder, or digits"
        )


def _check_rows(name: str, value: str) -> None:
    """Refuses what is no file, folder, task, or pattern of tasks."""
    if not Path(value).exists():
        if Path(value).suffix or "/" in value:
            raise HarnessError(f"--{name} {value} does not exist", "Check the path")
        from dcsft_harness import lmms

        known = lmms.task_index([value])
        if not fnmatch.filter(known, value):
            raise unknown_name("task", value, known, "dcsft tasks list")


def _check_scorer(context: click.Context, value: str) -> None:
    from dcsft_harness.scoring import SCORERS, get_scorer

    if value:
        get_scorer(value)
    elif _own_pool(context):
        raise HarnessError("--scorer is missing", f"Pass one of {', '.join(SCORERS)}")


def _check_test(context: click.Context, value: str) -> None:
    _refuse_nothing(context, "tasks", value)
    try:
        share = float(value or 0.5)
    except ValueError:
        _check_rows("test", value)
        return
    if not 0 < share < 1:
        raise HarnessError(f"--test {value} is not a share between 0 and 1", "Use for example 0.1, or a file")
    if value and not _own_pool(context):
        raise HarnessError(f"--test {value} needs a file of your own rows", "Leave it empty; name --tasks")


def _refuse_nothing(context: click.Context, other: str, value: str) -> None:
    """Refuses an empty answer where the other one that says what to evaluate on is empty, too."""
    if not value and context.params.get(other) == "":
        raise HarnessError("nothing to evaluate on", "Pass held-out rows (--test 0.1), or --tasks")


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _check_further(context: click.Context, value: str) -> None:
    _refuse_nothing(context, "test", value)
    for name in _names(value):
        _check_rows("tasks", name)


def _check_device(_: click.Context, value: str) -> None:
    from dcsft_harness.recipes import chain

    chain.assumed("", value)


def _check_output(_: click.Context, value: str) -> None:
    if Path(value).exists():
        raise HarnessError(f"{value} exists", "Name another file, or remove it")
    if Path(value).suffix not in (".yaml", ".yml"):
        raise HarnessError(
            f"--output {value} does not end in .yaml, as a recipe must", f"Pass --output {value}.yaml"
        )
    above = next((one for one in Path(value).absolute().parents if one.exists()), None)
    if above is not None and not above.is_dir():
        raise HarnessError(f"--output {value}: {above.name} is a file", "Name a file in a folder")


def _held_out_by_default() -> str:
    """A tenth of a file; nothing of a task."""
    return "0.1" if _own_pool(click.get_current_context()) else ""


def _devices() -> str:
    """This machine's, in the form of `init --device`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return f"{torch.cuda.device_count()}x{round(memory / 1e9)}"


@click.command()
@click.option(
    "--model",
    prompt="Model: a hub name, a folder, or digits",
    cls=_Asked,
    check=_check_model,
    default="digits",
    help="The checkpoint: a hub name, a folder, or digits.",
)
@click.option(
    "--pool",
    prompt="Training rows: a file, or a task",
    cls=_Asked,
    check=lambda _, value: _check_rows("pool", value),
    type=str,
    help="The training rows: a file, or a task.",
)
@click.option(
    "--scorer",
    prompt="Scorer of the rows: exact_word, choice, math, open_answer, box_iou",
    cls=_Asked,
    check=_check_scorer,
    type=str,
    help="Scorer for the rows of a file.",
)
@click.option(
    "--test",
    prompt="Held-out rows: a file, or the share of the training rows to hold out",
    cls=_Asked,
    check=_check_test,
    default=_held_out_by_default,
    help="Held-out rows: a file, or the share of the training rows to hold out, such as 0.1.",
)
@click.option(
    "--tasks",
    prompt="Further tasks to evaluate on, comma-separated, or empty",
    cls=_Asked,
    check=_check_further,
    default="",
    show_default=False,
    help="Further tasks to evaluate on, comma-separated.",
)
@click.option(
    "--device",
    prompt="Device: cpu, or GPUs as NUMBERxGIGABYTES",
    cls=_Asked,
    check=_check_device,
    default=_devices,
    help="Hardware to estimate for: cpu, or GPUs as NUMBERxGIGABYTES, such as 1x24.",
)
@click.option(
    "--output",
    prompt="Recipe file to write",
    cls=_Asked,
    check=_check_output,
    type=click.Path(path_type=Path, dir_okay=False),
    default="mine.yaml",
    help="The recipe file to write.",
)
def init(output: Path, device: str, **given: str) -> None:
    """Write a recipe that compares SFT, SFT-M, SFT-EM and GRPO on your model and data.

    \b
    dcsft init
    dcsft init --model CKPT --pool train.jsonl --scorer choice --test 0.1 \\
        --tasks "" --output mine.yaml
    """  # noqa: D301 - click reads the \b
    import yaml

    from dcsft_harness import recipes
    from dcsft_harness.artifacts.disk import write_text
    from dcsft_harness.recipes import chain

    chosen: dict[str, object] = {name: value.strip() for name, value in given.items() if value.strip()}
    if "tasks" in chosen:
        chosen["tasks"] = _names(given["tasks"])
    try:
        chosen["held_out"] = float(given["test"])
        del chosen["test"]
    except ValueError:
        pass
    if not Path(given["pool"]).exists():
        chosen.pop("scorer", None)  # a task has its own
    chosen |= chain.assumed(given["model"], device)
    written = {
        "name": output.stem,
        "about": "SFT, SFT-M, SFT-EM and GRPO",
        "include": ["paradigms"],
        "set": chosen,
    }
    made = recipes.load("paradigms", given=chosen)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, yaml.safe_dump(written, sort_keys=False))
    bar.write("\n".join(chain.estimated(made)))
    for remark in chain.too_large(made):
        bar.say(f"dcsft: {remark}")
    bar.say(f"init: {len(made.stages)} stages -> {output}")
    bar.say(f"next: {shlex.join(['dcsft', 'run', str(output), '--output', f'runs/{output.stem}'])}")


commands = (quickstart, init, run, rehearse, results)
