"""Commands of stages, cards and uploads, and what commands share: the data root, options, closing lines."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from pydantic.fields import FieldInfo

from dcsft_harness import ranks, reading
from dcsft_harness.cli import bar
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.settings import (
    Settings,
    at_home,
    extra,
    flag,
    get_choices,
    is_sequence,
    members,
    refuse_again,
)
from dcsft_harness.stages import DONE, STAGES, Stage
from dcsft_harness.stages.following import next_command

# The folder of prepared data.

FOLDER = click.Path(path_type=Path, file_okay=False)


def _use_root(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        from dcsft_harness.data.benchmarks import prepared

        prepared.use(value)


ROOT: dict[str, Any] = {
    "type": FOLDER,
    "expose_value": False,
    "callback": _use_root,
    "help": "The folder of prepared data; default: $DCSFT_DATA, or data/ in the cache folder.",
}
"""The data option of every command that reads prepared data."""


# `dcsft card` and `push`, and uploads after other commands.


@contextlib.contextmanager
def pushing(output: Path | None, repo: str | None, private: bool) -> Iterator[None]:
    """Checks before the block that an upload can succeed, and uploads after it.

    Raises:
        HarnessError: it cannot succeed, or `private` is given without a repository.
    """
    if private and repo is None:
        raise HarnessError("--private needs --push-to-hub", "Name a repository, or leave --private out")
    if repo is not None:
        from dcsft_harness.training import hub

        hub.check(repo)
    yield
    if repo is not None and output is not None and ranks.rank() == 0:
        push_folder(output, repo, private)


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option(
    "--scores",
    type=FOLDER,
    multiple=True,
    help="A folder of scores of the artifact or its base; repeatable.",
)
def card(artifact: Path, scores: tuple[Path, ...]) -> None:
    """Regenerate the model card of an adapter or checkpoint, with its scores.

    \b
    dcsft card adapter --scores after --scores before
    """  # noqa: D301 - click reads the \b
    from dcsft_harness.training.hub import write_card

    clock = bar.Clock()
    write_card(artifact, scores)
    bar.closing(
        "card", f"{len(scores)} folder{'s' * (len(scores) != 1)} of scores", clock, artifact / "README.md"
    )


@click.command()
@click.argument("artifact", type=FOLDER)
@click.argument("repo")
@click.option("--private", is_flag=True, help="Create a new repository as private.")
def push(artifact: Path, repo: str, private: bool) -> None:
    """Upload a finished adapter or checkpoint, with its card, to the model hub."""
    push_folder(artifact, repo, private)


def push_folder(folder: Path, repo: str, private: bool) -> None:
    """Uploads a finished artifact and prints its address."""
    from dcsft_harness.training import hub

    clock = bar.Clock()
    bar.closing("push", str(folder), clock, hub.push(folder, repo, private))


hub_commands = (card, push)

# Commands of stages: their options, progress bar and closing line.

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


def run_stage(verb: str, output: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a stage, prints its closing line, and returns the artifact's notes."""
    stage = STAGES[verb]
    clock = bar.Clock()
    # In a launch, the first process shows the bar; this one waits for it and reports the result.
    launches = options.get("num_processes") not in (None, 1, "1")
    with bar.stage(verb, shown=not launches) as report:
        notes = stage(output, report, **options)
    if _reports():
        bar.closing(verb, "already done" if DONE in notes else stage.summary(notes), clock, output)
    return notes


def _reports() -> bool:
    """Whether this process shows the result: of a launch, the process that waits for it, or else rank 0."""
    return ranks.rank() == 0 and not ranks.watched()


FIRST = ("Required", "Options", "Model", "Pool", "Model and pool", "What to train, and where")
"""Sections of help that come before the others."""


class SettingsCommand(click.Command):
    """A command whose options are settings: help lists them by section, required ones first."""

    def __init__(self, *given: Any, settings: Callable[[], type[Settings]], **more: Any) -> None:  # noqa: ANN401 - click's own
        """The command; `settings` imports its options' class, and `params` are further ones."""
        super().__init__(*given, **more)
        self._settings = settings

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The settings as arguments and options, then the further ones."""
        return [*parameters(self._settings()), *super().get_params(ctx)]

    def sections(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        """Options by section, in the order of the stage's record."""
        found: dict[str, list[click.Parameter]] = {"Required": []}
        for one in self.get_params(ctx):
            if not isinstance(one, click.Option):
                continue
            known = one.name in self._settings().model_fields
            name = self._settings().section(str(one.name)) if known else "Further options"
            found.setdefault("Required" if one.required else name, []).append(one)
        order = sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
        order.sort(key="Further options".__eq__)
        return {name: found[name] for name in order if found[name]}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections of options."""
        for name, some in self.sections(ctx).items():
            with formatter.section(name):
                formatter.write_dl([record for one in some if (record := one.get_help_record(ctx))])


_WIDE = 78
"""Columns of help that a line may take, behind its indentation."""


def folded(command: str) -> str:
    """A command of help on as many lines as a terminal of 80 columns needs."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if len(longer) > _WIDE - 2 and lines[-1]:
            lines[-1] += " \\"
            longer = f"    {word}"
            lines.append(longer)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def command_of(verb: str) -> click.Command:
    """The command of a stage, named by the last word of its verb."""
    stage = STAGES[verb]
    params = _further(stage)
    about = "Also write the report to this folder." if stage.shows else "The folder to write."
    params.append(click.Option(["--output"], type=FOLDER, required=not stage.shows, help=about))
    parts = [STAGES.about(verb), stage.about]
    if stage.example:
        parts.append("\b\n" + "\n".join(map(folded, stage.example.split("\n"))))
    return SettingsCommand(
        verb.split()[-1],
        settings=lambda: stage.options,
        params=params,
        callback=_callback(stage),
        help="\n\n".join(filter(None, parts)),
        short_help=STAGES.about(verb),
    )


class _Option(click.Option):
    """An option that a file of `--config` may give, too; if neither does, the settings' own error says so."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:  # noqa: ANN401 - click's own
        """The checked value. Given options, such as `--config`, are processed before missing ones."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            if ctx.params.get("config") is None:
                raise
            return None


def parameters(settings: type[Settings]) -> list[click.Parameter]:
    """The arguments and options of settings: arguments first, then options without a default."""
    first: list[click.Parameter] = []
    required: list[click.Parameter] = []
    others: list[click.Parameter] = []
    for name, field in settings.model_fields.items():
        if not extra(field, "cli"):
            continue
        if extra(field, "positional"):
            many = is_sequence(field.annotation)
            needed = many or field.is_required()
            shown_as = extra(field, "metavar") or name.upper()
            metavar = shown_as + "..." * many if needed else f"[{shown_as}]"
            first.append(
                click.Argument([name], nargs=-1 if many else 1, required=needed, metavar=metavar, type=str)
            )
            continue
        kinds, text = members(field.annotation), field.description or ""
        names = [flag(name), name]
        if extra(field, "also"):
            names.insert(0, extra(field, "also"))
        if bool in kinds:
            if field.default:
                names[0] = f"{flag(name)}/--no-{name}"
            others.append(click.Option(names, is_flag=True, default=None, help=text))
            continue
        default = field.default
        if not field.is_required() and default not in (None, (), "") and field.default_factory is None:
            text += f"  [default: {','.join(default) if isinstance(default, tuple) else default}]"
        plain = "DIR" if extra(field, "reads") == "artifact" else _metavar(field.annotation)
        given: dict[str, Any] = {"metavar": extra(field, "metavar") or plain, "help": text}
        if extra(field, "repeated"):
            given["multiple"] = True
        elif extra(field, "bare") is not None:
            given |= {"is_flag": False, "flag_value": str(extra(field, "bare"))}
        elif is_sequence(field.annotation) or given["metavar"].endswith("=V,..."):
            given |= {"multiple": True, "callback": _joined}
        elif extra(field, "reads"):
            given |= {"multiple": True, "callback": _once}
        if (complete := _completing(name, field)) is not None:
            given["shell_complete"] = complete
        choices = () if is_sequence(field.annotation) else get_choices(field.annotation)
        kind = click.Choice(choices) if choices else str
        one = _Option(names, required=field.is_required(), type=kind, **given)
        (required if field.is_required() else others).append(one)
    return [*first, *required, *others]


def _joined(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> str | None:
    """A list's parts as one: `--tasks a --tasks b` is `--tasks a,b`."""
    return ",".join(values) if values else None


def _once(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> str | None:
    """The value of an option that names an input; two are refused, of which click would take the last.

    Of other options the last counts, as shells' scripts expect: `dcsft train sft $USUAL --seed 1`.
    """
    if len(values) > 1:
        raise click.UsageError(f"{param.opts[0]} is given {len(values)} times: {', '.join(values)}", ctx)
    return values[0] if values else None


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completing(names: Callable[[], Iterable[str]], files: bool = False) -> Complete:
    """Shell completion of names after the last comma; with files if the option accepts them too."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = [CompletionItem(before + comma + one) for one in names() if one.startswith(last)]
        return found + ([CompletionItem(incomplete, type="file")] if files else [])

    return complete


def task_names() -> list[str]:
    """The suite's tasks and groups."""
    from dcsft_harness.lmms.tasks import groups, listing

    return [*groups(), *(str(row["task"]) for row in listing())]


def _completing(name: str, field: FieldInfo) -> Complete | None:
    """The shell completion of an option's values; None leaves it to click."""
    if name == "scorer":
        from dcsft_harness.scoring import SCORERS

        return completing(lambda: SCORERS)
    if extra(field, "reads") in ("tasks", "pool") and name != "data":
        return completing(task_names)
    if extra(field, "reads") in ("artifact", "checkpoint", "file", "pool"):
        return completing(lambda: ["digits"] if extra(field, "reads") == "checkpoint" else [], files=True)
    return None


def _metavar(kind: object) -> str:
    choices = get_choices(kind)
    if choices:
        return "|".join(choices)
    names = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    found = [names[one] for one in members(kind) if one in names]
    if found:
        return found[0]
    return "NAME,..." if is_sequence(kind) else "TEXT"


def _further(stage: Stage) -> list[click.Parameter]:
    """The command's options that are not the stage's own."""
    found: list[click.Parameter] = []
    if stage.passes:
        found += [
            click.Option(
                ["--set", "passed"],
                multiple=True,
                metavar="NAME=VALUE",
                help=f"An argument of {stage.passes}, by TRL's name.",
            ),
            click.Option(
                ["--config"],
                type=FILE,
                help="A YAML file of these options, as in a recipe, and of TRL's arguments by TRL's names.",
            ),
        ]
    if stage.show is not None:
        found.append(
            click.Option(
                ["--format", "form"],
                type=click.Choice(bar.FORMATS),
                help="Format of the table; by default drawn on a terminal, Markdown elsewhere.",
            )
        )
    if stage.pushes:
        found += [
            click.Option(["--push-to-hub"], metavar="REPO", help="Upload the result to this repository."),
            click.Option(["--private"], is_flag=True, help="Create a new repository as private."),
        ]
    if stage.prepared:
        found.append(click.Option(["--data-root"], **ROOT))
    found.append(
        click.Option(
            ["--dry-run"],
            is_flag=True,
            help="Check everything, print memory and time; load and write nothing.",
        )
    )
    if "device" not in stage.options.model_fields:
        found.append(
            click.Option(
                ["--device"],
                metavar="NAME|SIZE",
                help='For a dry run: cpu, cuda, or a GPU by its memory ("24 GB"); by default this machine.',
            )
        )
    return found


def _plan(
    stage: Stage, output: Path | None, options: dict[str, Any], device: str | None, form: str | None
) -> None:
    """Prints what a stage needs, see `Stage.plan`; one that does not fit is an error."""
    if "device" in stage.options.model_fields:
        device = options.pop("device", None)
    with bar.stage(stage.verb):
        found = stage.plan(output or Path("output"), device, **options)
    if found.parts:
        bar.show(found.table(), form)
    else:
        count = int(str(found.settings.get("processes", 1)))
        each = f"{count} engines decide" if count > 1 else "its engine decides"
        bar.say(f"{stage.verb}: {each} how much memory to take, so nothing is estimated")
    found.refuse()


def _leave_out_wandb(given: Mapping[str, Any]) -> None:
    """Keeps TRL from importing wandb, which takes 1 to 2 s, in a command that does not report to it."""
    trackers = given.get("report_to") or []
    if not {"wandb", "all"}.intersection([trackers] if isinstance(trackers, str) else trackers):
        # Python's own mark of a module that cannot be imported. One that is imported already stays.
        sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]


def _callback(stage: Stage) -> Callable[..., None]:
    def call(
        output: Path | None,
        passed: tuple[str, ...] = (),
        config: Path | None = None,
        push_to_hub: str | None = None,
        private: bool = False,
        form: str | None = None,
        dry_run: bool = False,
        **options: Any,  # noqa: ANN401 - click hands over what the options say
    ) -> None:
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        device = None if "device" in stage.options.model_fields else given.pop("device", None)
        if device is not None and not dry_run:
            raise HarnessError(
                f"--device {cut(device, 80)} applies to dry runs, and --dry-run is not given",
                "Pass both; CUDA_VISIBLE_DEVICES selects the GPUs of a run",
            )
        if stage.passes:
            given = _with_passed(stage, given, config, passed)
        if dry_run:
            _plan(stage, output, given, device, form)
            return
        if stage.verb.startswith("train "):
            _leave_out_wandb(given.get("extra") or {})
        with pushing(output, push_to_hub, private):
            if output is None:
                with bar.stage(stage.verb) as report:
                    notes = stage.run(stage.options.from_options(given), None, report)  # type: ignore[arg-type]
            else:
                notes = run_stage(stage.verb, output, given)
        is_news = DONE not in notes and _reports()
        if is_news and stage.show is not None and (text := stage.show(notes)):
            if stage.markdown:
                bar.show(text, form)
            else:
                bar.write(text)
        for remark in stage.remarks(notes) if is_news else ():
            bar.say(f"dcsft: {remark}")
        if (problem := stage.failing(notes)) is not None:
            raise problem
        if is_news and stage.then and stage.leads(notes) and output is not None:
            bar.say(f"next: {next_command(stage, output, given)}")

    return call


def assignments(texts: Iterable[str]) -> dict[str, str]:
    """Names and values of several `--set NAME=VALUE`, each name once."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise HarnessError(f"--set {cut(text, 80)!r} is not NAME=VALUE", "Write for example --set seed=1")
        refuse_again("--set", name, found)
        found[name] = value
    return found


def _with_passed(
    stage: Stage, options: dict[str, Any], config: Path | None, passed: tuple[str, ...]
) -> dict[str, Any]:
    """The options from the command line, over those of a file; and the arguments passed on to TRL."""
    ours: dict[str, Any] = {}
    others: dict[str, Any] = {}
    if config is not None:
        try:
            read = reading.yaml_file(config)
        except (ValueError, OSError) as error:
            raise HarnessError(f"--config {config} cannot be read: {error}", "Fix the file") from error
        if not isinstance(read, dict):
            raise HarnessError(f"--config {config} is not a mapping", "Write name: value, one per line")
        for name, value in at_home(read).items():
            (ours if name in stage.options.model_fields else others)[str(name)] = value
    for name, value in assignments(passed).items():
        try:
            others[name] = reading.from_yaml(value)
        except ValueError as error:
            raise HarnessError(
                f"--set {name}={cut(value, 80)}: its value is not valid YAML ({error})",
                "Write a number, a word, true, false, or quote it",
            ) from error
    given = {**ours, **options}
    if others or ours.get("extra"):
        given["extra"] = {**(ours.get("extra") or {}), **others}
    return given
