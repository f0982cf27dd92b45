"""The stage record, which describes one stage of the data flow completely, and the registry of stages.

Each file of this folder defines one stage, as `STAGE`. Its docstring begins with the verb in backquotes and a
summary of the stage, so that `dcsft --help` lists it without importing it:

    '''`dcsft label`: Label every item easy, medium or hard.'''

The command line, recipes, dry runs, the Python functions, the documentation's option tables and cost reports
are generated from the registry. A new stage is one new file.
"""

import contextlib
import inspect
import json
import os
import random
import re
import shlex
import sys
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dcsft_harness import interrupts, ranks, reading
from dcsft_harness.artifacts import KINDS, Artifact, disk, manifest, usage
from dcsft_harness.artifacts.disk import json_sha256
from dcsft_harness.data.digits import DIGITS
from dcsft_harness.environment import broken_import, importing
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.settings import Settings, as_arguments, at_home, extra, flag, read_text

DONE = "already_done"
"""The note that the same call had already finished the output."""
Progress = Callable[..., None]
"""Called with (units done, total units) and named figures to show; a unit is an item or a step."""
Notes = dict[str, Any]
"""The notes of a finished artifact's manifest: counts, tokens, accuracy."""


def _rows_sha256(path: Path, root: Path | None, outside: bool) -> str:
    """The hash of a user's rows and their images, or of another file; empty for an artifact."""
    from dcsft_harness.sampling import own_files

    if not own_files.is_data(str(path)) or path.suffix in (".yaml", ".yml"):
        return manifest.fingerprint(path) if path.is_file() else ""
    from dcsft_harness.sampling import own_data

    return json_sha256([manifest.fingerprint(path), own_data.images_sha256(path, root, outside)])


def _log_sha256(path: Path) -> str:
    """The hash of the logs of lmms-eval at a path, samples included; empty if there are none."""
    from dcsft_harness.leaderboard import collect

    files = [file for run in collect.find(path) if not run.is_dir() for file in collect.files_of(run)]
    return json_sha256(list(map(manifest.fingerprint, files))) if files else ""


def _named(name: str, text: str, kind: str) -> list[Path]:
    """The files and folders that an option's text names, given its kind in `settings.Reads`."""
    path = Path(text)
    if kind == "artifact" and not (path / manifest.NAME).is_file():
        from dcsft_harness.leaderboard import collect

        with contextlib.suppress(HarnessError):  # it does not exist
            # runs of lmms-eval, or a folder of any kind
            return collect.find(collect.named(path)[1] if name == "results" else path)
        return []
    if kind in ("pool", "tasks"):
        from dcsft_harness.sampling import own_files

        is_there = own_files.is_data(text) or (name == "data" and path.is_dir())  # else a task's name
    else:
        is_there = path.is_file() or (path.is_dir() and kind != "file" and text != DIGITS)
    return [path] if is_there else []


def place_of(name: str, given: object) -> Path:
    """The path of an option's input; of a board's results that of NAME=FOLDER, or a file of FOLDER/RUN.

    Raises:
        HarnessError: there are no such results.
    """
    path = Path(str(given))
    if name != "results" or path.exists():
        return path
    from dcsft_harness.leaderboard.collect import find, named

    place = named(path)[1]
    return place if place.exists() else find(place)[0]


def _task_sources(name: str, include_path: str | None) -> dict[str, str]:
    """Path -> hash of each file of a user's own task: its YAML, included YAML, rows and functions."""
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and include_path is None:
        return {}
    from dcsft_harness.lmms import tasks

    # Of a task's own file the first is the file itself.
    paths = tasks.sources(Path(name))[1:] if is_file else tasks.defined_in(Path(str(include_path)), [name])
    return {str(path): disk.settled_sha256(path) for path in paths}


def _registered(verb: str) -> "Stage":
    from dcsft_harness.stages import STAGES

    return STAGES[verb]


@dataclass(frozen=True)
class Stage:
    """One stage of the data flow."""

    verb: str  # as on the command line and in recipes: "train sft"
    options: type[Settings]  # its options, besides `output`, which every stage takes
    # (options, output, progress) -> notes; imports heavy packages inside
    run: Callable[[Any, Path, Progress | None], Notes]
    summary: Callable[[Mapping[str, Any]], str]  # notes -> its closing line
    writes: str  # the kind of artifact that it makes
    example: str = ""  # commands for its help, one per line
    about: str = ""  # further paragraphs for its help
    # (options, machine, tokens) -> seconds and bytes, for dry runs; see `recipes.chain`. None for stages
    # that take moments.
    estimate: Callable[[Mapping[str, Any], Any, Any], tuple[float, float]] | None = None
    prepared: bool = False  # whether it reads data that `dcsft data prepare` made
    shows: bool = False  # whether it can be run without an output, to be shown alone
    pushes: bool = False  # whether the command line can upload the result to a model hub
    passes: str = ""  # the target of the command line's `--set NAME=VALUE`, with the field `extra`; else ""
    show: Callable[[Mapping[str, Any]], str] | None = None  # notes -> text for stdout after the closing line
    markdown: bool = True  # whether that text is Markdown; otherwise it is printed as it is
    # notes -> text for stderr after that
    remarks: Callable[[Mapping[str, Any]], list[str]] = lambda notes: []
    # notes -> an error with which the command ends after all that; None for success
    failing: Callable[[Mapping[str, Any]], HarnessError | None] = lambda notes: None
    then: str = ""  # the command that usually follows, with {output} for the artifact's folder; "" for none
    leads: Callable[[Mapping[str, Any]], bool] = lambda notes: True  # notes -> whether that has work
    # of a stage that loads no model: its memory in bytes, and how many more per byte of its inputs. None for
    # a stage that calls `usage.admit` itself.
    light: tuple[float, float] | None = (0.3e9, 0.0)

    def __reduce__(self) -> tuple[Callable[[str], "Stage"], tuple[str]]:
        """Pickles only the command name: a spawned process looks the stage up, whatever it holds."""
        return _registered, (self.verb,)

    def next(self, output: object, given: Mapping[str, Any]) -> str:
        """`then` for an artifact and the options that made it, with known values for its placeholders.

        Known values are the model that a curated set's responses come from, and a user's rows: those trained
        on, or that the items of a curated set come from.
        """
        from dcsft_harness.sampling import own_files

        said = self.then.replace("{output}", shlex.quote(str(output)))
        if others := _other_scores(Path(str(output))) if "OTHER-SCORES" in said else []:
            said = said.replace("OTHER-SCORES...", " ".join(shlex.quote(str(one)) for one in others))
        direct = "data" in given and own_files.is_data(str(given["data"]))
        known = dict(given) if direct else _sampling(Path(str(output)))
        if not direct and "model" in known:
            said = said.replace("CKPT", str(known["model"]))
        if known.get("data") is None:
            return said
        scored = f"--scorer {shlex.quote(str(known.get('scorer') or 'SCORER'))}"
        if known.get("image_root") is not None:
            scored += f" --image-root {shlex.quote(str(known['image_root']))}"
        said = said.replace("--tasks TASK,...", f"--data {_held_out_rows(known)} {scored}")
        return said.replace("--task POOL", f"--data POOL {scored}")

    def plan(
        self,
        output: str | os.PathLike[str],
        device: str | None = None,
        **options: Any,  # noqa: ANN401 - the options' own types
    ) -> usage.Estimate:
        """The resources that the stage needs, after all checks that need no weights; runs and writes nothing.

        `device` is "cpu", "cuda", or the memory of a GPU such as "24 GB"; by default this process's device.

        Raises:
            HarnessError: an option, the model or the data cannot be used.
        """
        given = self.options.from_options(options)
        where = usage.Device.named(device)
        if self.light is not None:
            size = 0
            for name, text, kind in self.reading(
                {name: getattr(given, name) for name in given.model_fields_set}
            ):
                path = place_of(name, text)
                if kind == "artifact" and not path.exists():
                    raise HarnessError(f"{name} {path} does not exist", "Check the path")
                size += usage.bytes_of(path)
            memory = self.light[0] + self.light[1] * size
            return usage.Estimate(where, {"process": memory}, 2.0 + size / 5e7, float(size) / 2)
        reset = usage.PLANNING.set(where)
        try:
            self.run(given, Path(output), None)
        except usage.Planned as planned:
            return planned.estimate
        finally:
            usage.PLANNING.reset(reset)
        return usage.Estimate(where, {})

    def __call__(
        self,
        output: str | os.PathLike[str],
        progress: Progress | None = None,
        **options: Any,  # noqa: ANN401 - the options' own types
    ) -> Notes:
        """Checks the options and runs the stage, unless its output is already the result of these options.

        Returns the artifact's notes, with `DONE` if there was nothing left to do.

        Raises:
            HarnessError: an option is unknown or out of range, the output is another run's or another
                process writes it, a package cannot be imported, or the stage cannot run.
        """
        given, folder = self.options.from_options(options), Path(output)
        call: dict[str, Any] = {"verb": self.verb, "options": given.deciding()}
        if read := self.content(call["options"]):
            call["read"] = read
        places = self.places(call["options"], folder)
        with contextlib.ExitStack() as stack:
            # Before the lock: a finished artifact may lie where nothing can be written, or be read by others.
            found = manifest.done(folder, call, self._defaults(), places)
            if found is None:
                stack.enter_context(interrupts.noting(lambda: manifest.unfinished(folder)))
                if ranks.world_size() == 1 and getattr(given, "num_processes", None) in (None, 1):
                    stack.enter_context(manifest.taken(folder))
                found = manifest.done(folder, call, self._defaults(), places)  # by another process meanwhile
            if found is not None:
                manifest.sweep(folder)
                return {**found.notes, DONE: True}
            stack.callback(manifest.CALL.reset, manifest.CALL.set(call))
            stack.callback(manifest.PLACES.reset, manifest.PLACES.set(places))
            stack.enter_context(importing())
            try:
                return self.run(given, folder, progress)
            except Exception as error:
                problem = broken_import(error)
                if problem is None:
                    raise
                raise problem from error

    def places(self, options: Mapping[str, Any], output: Path) -> manifest.Places:
        """The files and folders that the options name, besides the output; see `manifest.Places`.

        The hashes of `content` already cover images and task folders, so their options are not listed here.
        """
        found: dict[str, dict[str, list[Path]]] = {}
        for name in ("image_root", "include_path"):
            if options.get(name) is not None:
                found[name] = {str(options[name]): []}
        for name, text, kind in self.reading(options):
            paths: list[Path] = []
            with contextlib.suppress(OSError):  # longer than a path can be: the stage says what it is
                paths = _named(name, text, kind)
            if paths and output.resolve() not in [path.resolve() for path in paths]:
                found.setdefault(name, {})[text] = paths
        return found

    def content(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Name -> hash of the contents that the options refer to and no input covers.

        These are files of rows with their images, the files of a user's own tasks, a log of lmms-eval with
        its samples, a checkpoint's chat template (empty if it has none), a system prompt, a user's scorer.
        """
        found = {}
        root, outside = options.get("image_root"), bool(options.get("allow_outside_root"))
        for name, text, kind in self.reading(options):
            path = Path(text)
            with contextlib.suppress(HarnessError, OSError):  # what cannot be read: the stage says why
                if kind in ("checkpoint", "model_args") and path.is_dir():
                    found[str(path)] = disk.code_sha256(path)
                elif kind == "model_args" and path.is_file():
                    found[str(path)] = disk.file_sha256(path)
                elif (kind in ("pool", "tasks") or name == "data") and path.exists():
                    if digest := _rows_sha256(path, root and Path(root), outside):
                        found[str(path)] = digest
                elif name == "rollouts" and not (path / manifest.NAME).is_file():
                    if digest := _log_sha256(path):
                        found[str(path)] = digest
                if kind in ("pool", "tasks"):
                    found |= _task_sources(text, options.get("include_path"))
        if ":" in str(options.get("scorer")):
            from dcsft_harness.scoring import get_scorer

            with contextlib.suppress(HarnessError):
                found[options["scorer"]] = str(get_scorer(options["scorer"]).version)
        return found

    def _defaults(self) -> dict[str, object]:
        fields = self.options.model_fields
        values = {name: one.get_default(call_default_factory=True) for name, one in fields.items()}
        return {name: list(one) if isinstance(one, tuple) else one for name, one in values.items()}

    @property
    def name(self) -> str:
        """The name of the Python function and of the stage's file."""
        return self.run.__module__.rpartition(".")[2]

    def as_function(
        self,
        bar: Callable[[str, bool], AbstractContextManager[Progress]],
        say: Callable[[str], None],
        show: Callable[[str, bool], None],
    ) -> Callable[..., Artifact | None]:
        """The Python function: first the command line's positional arguments, then options by name.

        `bar` shows the progress of the stage that it is called with, if its second argument says so; `say`
        prints a remark, and `show` the text of a stage that `shows`, whose function returns None without an
        output; its second argument is `markdown`.
        """
        first = [name for name, one in self.options.model_fields.items() if extra(one, "positional")]
        if "model" in self.options.model_fields and not first:
            first = ["model"]

        def function(
            *given: object, output: str | os.PathLike[str] | None = None, **options: object
        ) -> Artifact | None:
            if len(given) > len(first):
                listed = f" ({', '.join(first)})" if first else ""
                nameless = f"{'s' * (len(first) != 1)} without a name{listed}"
                raise HarnessError(
                    f"{self.name}() takes {len(first)} argument{nameless}, and got {len(given)}",
                    f"Pass several as a list, and name the others: {', '.join(self.options.model_fields)}",
                )
            named = {**dict(zip(first, given, strict=False)), **options}
            try:
                return run(named, output)
            except HarnessError as error:
                error.reword(lambda text: as_arguments(text, self._argument, [*named.values(), output]))
                raise

        def run(named: dict[str, object], output: str | os.PathLike[str] | None) -> Artifact | None:
            if output is None and not self.shows:
                raise HarnessError(f"{self.name}() needs an output", "Pass the folder to write")
            if not isinstance(output, str | os.PathLike | None):
                raise HarnessError(f"output {cut(repr(output))} is not a path", "Pass the folder to write")
            output = at_home(None if output is None else os.fspath(output))
            given_root = named.get("image_root") is not None or "image_root" not in self.options.model_fields
            from dcsft_harness.lmms.tasks import including

            with _without_bars(), _own_random_numbers(), including():
                plain = at_home({name: _plain(value, name == "data") for name, value in named.items()})
                if not given_root:
                    self._place_images(plain)
                # In a launch, the first process shows the bar.
                launches = named.get("num_processes") not in (None, 1, "1")
                with bar(self.verb, not launches) as progress:
                    if output is None:
                        notes = self.run(self.options.from_options(plain), None, progress)  # type: ignore[arg-type]
                    else:
                        notes = self(output, progress, **plain)
            if output is None and self.show is not None:
                show(self.show(notes), self.markdown)
            if DONE not in notes and ranks.rank() == 0 and not ranks.watched():
                for remark in self.remarks(notes):
                    say(f"dcsft: {remark}")
            if problem := self.failing(notes):
                raise problem
            return None if output is None else KINDS.get(self.writes, Artifact)(output)

        function.__name__ = function.__qualname__ = self.name
        module = sys.modules[self.run.__module__].__doc__ or ""
        sentence = module.partition("\n")[0].partition("`: ")[2]
        fields = self.options.model_fields
        listed = "\n".join(
            f"    {name}: {fields[name].description}"
            for name in [*first, *(name for name in fields if name not in first)]
        )
        function.__doc__ = "\n\n".join(filter(None, [sentence, self.about, f"Options:\n{listed}"]))
        function.__signature__ = self._signature(first)  # type: ignore[attr-defined]
        return function

    def _place_images(self, plain: dict[str, Any]) -> None:
        """Sets the image root of rows in memory, which have no folder: the current directory.

        Beside rows of a file, whose images are in its folder, the default does; see `own_files.root_of`.
        """
        from dcsft_harness.sampling import own_files

        given = [plain.get(name) for name in ("data", "pool", "tasks")]
        values = [one for value in given for one in (value if isinstance(value, list) else [value])]
        shown = [one for one in values if isinstance(one, _Kept) and one.has_paths]
        others = (one for one in values if isinstance(one, str | os.PathLike) and not isinstance(one, _Kept))
        if shown and not any(own_files.is_data(str(one)) for one in others):
            plain["image_root"] = Path(".")
            if all(one.opens for one in shown):
                plain.setdefault("allow_outside_root", True)

    def _argument(self, flagged: str) -> tuple[str, FieldInfo] | None:
        """The Python argument of an option of this command, or of another stage's; and its field."""
        if flagged == "output":
            return flagged, FieldInfo(annotation=str)
        from dcsft_harness.stages import STAGES

        for stage in chain([self], (STAGES[verb] for verb in STAGES)):  # others are imported if they must be
            for name, field in stage.options.model_fields.items():
                spelled = {flag(name), extra(field, "also"), *(["--set"] if name == "extra" else [])}
                if f"--{flagged}" in spelled:
                    return name, field
        return None

    def _signature(self, first: list[str]) -> inspect.Signature:
        def parameter(name: str, kind: Any) -> inspect.Parameter:  # noqa: ANN401 - inspect's own
            field = self.options.model_fields[name]
            default = (
                inspect.Parameter.empty
                if field.is_required()
                else field.get_default(call_default_factory=True)
            )
            return inspect.Parameter(name, kind, default=default, annotation=field.annotation)

        where = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        rest = [name for name in self.options.model_fields if name not in first]
        needed = {"default": None} if self.shows else {}
        output = inspect.Parameter("output", where[1], annotation="str | os.PathLike[str]", **needed)
        ordered = [parameter(name, where[0]) for name in first]
        return inspect.Signature([*ordered, output, *(parameter(name, where[1]) for name in rest)])

    def reading(self, options: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """Option, text and kind (see `settings.Reads`) of each of the inputs that the options name."""
        for name, one in self.options.model_fields.items():
            kind, value = extra(one, "reads"), read_text(one.annotation, options.get(name))
            if kind is None or value is None:
                continue
            if kind == "model_args":
                found = reading.named(reading.joined(value) if isinstance(value, Mapping) else str(value))
                # Others may be files, too: a system prompt, or what another engine reads.
                folders = [found.pop(name, "") for name in ("pretrained", "adapter")]
                value = [text for text in folders if text] + [*filter(os.path.isfile, found.values())]
            for text in value if isinstance(value, list | tuple) else [value]:
                yield name, str(text), kind

    def command(self, options: Mapping[str, Any], output: Path, joined: bool = False) -> list[str]:
        """The command line of this stage with these options, as a list of words that starts with `dcsft`.

        Options are values by name, as a recipe has them; `joined` writes an option and its value as one word.
        """
        first: dict[str, list[str]] = {}
        words: list[str] = []

        def pair(name: str, value: str) -> list[str]:
            return [f"{name}={value}"] if joined else [name, value]

        for name, value in options.items():
            known = self.options.model_fields.get(name)
            values = [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
            if known is not None and extra(known, "positional"):
                first[name] = values
            elif isinstance(value, bool):
                words += [flag(name)] if value else []
            elif isinstance(value, Mapping) and name == "extra":
                words += [
                    word for key, one in value.items() for word in pair("--set", f"{key}={json.dumps(one)}")
                ]
            elif isinstance(value, Mapping) and known is not None and extra(known, "reads") == "model_args":
                words += pair(flag(name), reading.joined(value))
            elif isinstance(value, Mapping) and known is not None and not extra(known, "repeated"):
                words += pair(flag(name), json.dumps(value))
            elif isinstance(value, Mapping):
                words += [word for key, one in value.items() for word in pair(flag(name), f"{key}={one}")]
            elif known is not None and extra(known, "repeated"):
                words += [word for one in values for word in pair(flag(name), one)]
            else:
                words += pair(flag(name), "none" if value is None else ",".join(values))
        # In the order of the options, not of the recipe: the first is the first argument.
        arguments = [word for name in self.options.model_fields for word in first.get(name, ())]
        return ["dcsft", *self.verb.split(), *arguments, *words, *pair("--output", str(output))]


def _sampling(folder: Path) -> dict[str, Any]:
    """The sampling options behind an artifact, with paths relative to the working directory.

    Only manifests are read: hashing a large input takes minutes. Empty if it is not known.
    """
    try:
        found = manifest.read(folder)
        while found.call.get("verb") != "sample":
            role = next(role for role in ("data", "labels", "rollouts") if role in found.inputs)
            found = manifest.read(_here(found, role))
        options = dict(found.call["options"])
        if options.get("data") is not None:
            options["data"] = _here(found, "data")
        if options.get("image_root") is not None and not Path(options["image_root"]).is_dir():
            options["image_root"] = None
        options["model"] = _sampled(found, str(options.get("model")))
    except (HarnessError, StopIteration, KeyError, TypeError):
        return {}
    return {name: value for name, value in options.items() if value is not None}


_ALIKE = ("limit", "items_sha256", "generation", "samples")
"""What is equal in notes on a task that a board compares."""


def _other_scores(folder: Path) -> list[Path]:
    """Comparable scores of the same tasks in neighboring folders, by time."""
    found = []
    try:
        mine = manifest.read(folder).notes["tasks"]
        for path in folder.parent.glob(f"*/{manifest.NAME}"):
            one = manifest.read(path.parent)
            theirs = one.notes.get("tasks", {}) if one.kind == "scores" and path.parent != folder else {}
            both = [(mine[task], theirs[task]) for task in mine.keys() & theirs.keys()]
            if both and all(a.get(key) == b.get(key) for a, b in both for key in _ALIKE):
                found.append((one.created, path.parent))
    except HarnessError:
        return []
    return [path for _, path in sorted(found)]


def _here(made: manifest.Manifest, role: str) -> Path:
    """An input's folder or file, relative to the working directory if it lies below."""
    place, here = (made.folder / made.inputs[role]["path"]).resolve(), Path.cwd()
    return place.relative_to(here) if place.is_relative_to(here) else place


def _sampled(rollouts: manifest.Manifest, named: str) -> str | None:
    """The options of training for the sampled checkpoint, from --model's value on; None if not known."""
    from dcsft_harness.data import digits

    arguments = reading.named(str(rollouts.config.get("model_args") or ""))
    base = arguments.get("pretrained", "")
    if "adapter" not in rollouts.inputs and named != rollouts.config["model"]:
        base = named  # and not an engine, as in the older spelling
    if "model" in rollouts.inputs and (place := _here(rollouts, "model")).name == Path(base).name:
        base = str(place)
    if not base:
        return None
    base = digits.DIGITS if base == digits.resolve(digits.DIGITS) else base
    further = (
        f" --adapter {shlex.quote(str(_here(rollouts, 'adapter')))}" if "adapter" in rollouts.inputs else ""
    )
    return shlex.quote(base) + further


_HELD_OUT = ("test", "held-out", "held_out", "heldout", "validation", "valid", "val", "dev", "eval")
"""Stems of files with held-out rows, beside those to train on."""


def _held_out_rows(known: Mapping[str, Any]) -> str:
    """The value of `--data` for evaluating a model trained on a user's rows; "TEST" if it is not known."""
    from dcsft_harness.sampling import own_files

    path = Path(str(known["data"]))
    if known.get("held_out") is not None:
        return f"{shlex.quote(str(path))} --held-out {float(known['held_out']):g}"
    names = (
        name
        for stem in _HELD_OUT
        for name in (stem + "".join(path.suffixes), path.name.replace("train", stem))
    )
    beside = [path.with_name(name) for name in names] if path.name else []
    found = next((one for one in beside if one != path and own_files.is_data(str(one))), None)
    return "TEST" if found is None else shlex.quote(str(found))


class _Kept(str):
    """The file that rows in memory were written to."""

    has_paths: bool  # whether a row names an image by a path
    opens: bool  # whether these are pictures that a `datasets.Dataset` opens itself

    def __new__(cls, given: object) -> "_Kept":
        from dcsft_harness.sampling import own_files

        path, has_paths = own_files.keep(given)
        made = super().__new__(cls, path)
        made.has_paths, made.opens = has_paths, has_paths and _opens_pictures(given)
        return made


def _opens_pictures(given: object) -> bool:
    """Whether rows are a `datasets.Dataset` that opens its images itself and names no other files."""
    from datasets import ClassLabel, Image, Value

    features = getattr(given, "features", None)
    if not isinstance(features, Mapping):  # an `IterableDataset` may not know its features
        return False
    kinds = {name: getattr(kind, "feature", kind) for name, kind in features.items()}
    return bool(kinds) and all(
        isinstance(kind, Image if name in ("image", "images") else Image | Value | ClassLabel)
        for name, kind in kinds.items()
    )


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets` while a function runs, and restores the caller's setting."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Restores the caller's random numbers: lmms-eval and trainers seed those of the whole process."""
    import numpy as np

    states, arrays, torch = random.getstate(), np.random.get_state(), sys.modules.get("torch")
    tensors = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states)
        np.random.set_state(arrays)
        if torch is not None:
            torch.set_rng_state(tensors)


def _plain(value: object, rows: bool = False) -> object:
    """An option's value as the settings expect it: artifacts as paths, rows in memory as a file.

    With `rows`, any iterable is rows; datasets and lists of dictionaries always are.
    """
    if isinstance(value, Artifact):
        if not Path(value).exists():
            raise HarnessError(f"{value!r} no longer exists", "Recreate it, or use another one")
        return os.fspath(value)
    rows = rows or hasattr(value, "with_format")
    rows = rows or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))
    if rows and isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return _Kept(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def percent(value: float | None) -> str:
    """Formats a share in [0, 1] for a closing line."""
    return "-" if value is None else f"{100 * value:.1f} %"


def counted(notes: Mapping[str, Any], words: Mapping[str, str]) -> list[str]:
    """Describes the nonzero counts among some notes."""
    some = {name: text for name, text in words.items() if notes.get(name)}
    return [
        f"{notes[name]} {text if notes[name] != 1 else _PLURAL.sub('', text)}" for name, text in some.items()
    ]


_PLURAL = re.compile(r"(?<=^item)s|(?<=^row)s|(?<=^response)s")


def out_of_tokens(truncated: int, total: int, what: str) -> list[str]:
    """A remark if at least 5 % of responses were truncated: with too low a limit the model seems to fail."""
    if 20 * truncated < max(total, 1):
        return []
    found = f"{truncated} of {total} {what} ran out of tokens: an answer is read only in a closed box or tag"
    return [f"{found}. Generate with a higher limit (--max-new-tokens)."]


def difficulties(notes: Mapping[str, Any]) -> str:
    """The number of items of each difficulty."""
    (count,) = counted(notes, {"items": "items"})
    return f"{count}: {notes['easy']} easy, {notes['medium']} medium, {notes['hard']} hard"


def with_paths(notes: Mapping[str, Any], output: Path) -> Notes:
    """Notes with the paths of images in an artifact, for the user to check."""
    return {**notes, "figure_paths": [str(output / name) for name in notes.get("figures", ())]}


def figure_paths(notes: Mapping[str, Any]) -> list[str]:
    """The images' locations, for a stage's remarks."""
    paths = notes.get("figure_paths") or []
    return [f"see {' and '.join(paths)}"] if paths else []


class Registry(UserDict[str, Any]):
    """Command -> stage, in the order of the data flow; a stage's file is imported on first use."""

    def __init__(self, folder: Path, package: str) -> None:
        """Finds the stages' files in the folder of a package."""
        super().__init__()
        self._about: dict[str, str] = {}
        self.find(folder, package)

    def find(self, folder: Path, package: str) -> None:
        """Adds the stages of a folder on the package's path."""
        for path in folder.glob("*.py"):
            with path.open(encoding="utf-8") as file:
                match = re.match(r'"""`dcsft ([^`]+)`: (.*)$', file.readline().rstrip())
            if match:
                self._about[match[1]] = match[2].removesuffix('"""')
                self.data[match[1]] = f"{package}.{path.stem}"
        self.data = dict(sorted(self.data.items(), key=lambda one: (_place(one[0]), one[0])))

    def about(self, verb: str) -> str:
        """A one-sentence description of a stage, without importing it."""
        return self._about[verb]

    def __getitem__(self, verb: str) -> Stage:
        """A stage; imports its file."""
        if isinstance(module := self.data[verb], str):
            stage: Stage = import_module(module).STAGE
            if stage.verb != verb:
                raise HarnessError(f"{module} names {verb!r} and holds {stage.verb!r}", "Rename one")
            self.data[verb] = stage
        return self.data[verb]  # type: ignore[no-any-return]


_FLOW = ("digits pretrain", "train cold-start", "sample", "label", "data", "curate", "train", "merge")
"""Commands or their first words in the order of the data flow; others follow."""


def _place(verb: str) -> int:
    """A command's position in the data flow."""
    for wanted in (verb, verb.partition(" ")[0]):
        if wanted in _FLOW:
            return _FLOW.index(wanted)
    return len(_FLOW)
