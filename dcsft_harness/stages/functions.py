"""The Python function of a stage: `import dcsft_harness as dcsft; dcsft.label("rollouts", output="labels")`.

It takes what Python has at hand: artifacts, rows in memory, mappings and functions. Its errors name arguments
where those of the command line name options.
"""

import contextlib
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dcsft_harness import ranks
from dcsft_harness.artifacts import KINDS, Artifact
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.settings import as_arguments, at_home, extra, flag
from dcsft_harness.stages.stage import DONE, Progress, Stage


def function_of(
    stage: Stage,
    bar: Callable[[str, bool], AbstractContextManager[Progress]],
    say: Callable[[str], None],
    show: Callable[[str, bool], None],
) -> Callable[..., Artifact | None]:
    """The Python function: first the command line's positional arguments, then options by name.

    `bar` shows the progress of the stage that it is called with, if its second argument says so; `say`
    prints a remark, and `show` the text of a stage that `shows`, whose function returns None without an
    output; its second argument is `markdown`.
    """
    first = [name for name, one in stage.options.model_fields.items() if extra(one, "positional")]
    if "model" in stage.options.model_fields and not first:
        first = ["model"]

    def function(
        *given: object, output: str | os.PathLike[str] | None = None, **options: object
    ) -> Artifact | None:
        if len(given) > len(first):
            listed = f" ({', '.join(first)})" if first else ""
            nameless = f"{'s' * (len(first) != 1)} without a name{listed}"
            raise HarnessError(
                f"{stage.name}() takes {len(first)} argument{nameless}, and got {len(given)}",
                f"Pass several as a list, and name the others: {', '.join(stage.options.model_fields)}",
            )
        named = {**dict(zip(first, given, strict=False)), **options}
        try:
            return run(named, output)
        except HarnessError as error:
            error.reword(
                lambda text: as_arguments(text, partial(argument_of, stage), [*named.values(), output])
            )
            raise

    def run(named: dict[str, object], output: str | os.PathLike[str] | None) -> Artifact | None:
        if output is None and not stage.shows:
            raise HarnessError(f"{stage.name}() needs an output", "Pass the folder to write")
        if not isinstance(output, str | os.PathLike | None):
            raise HarnessError(f"output {cut(repr(output))} is not a path", "Pass the folder to write")
        output = at_home(None if output is None else os.fspath(output))
        from dcsft_harness.lmms.tasks import including

        with _without_bars(), _own_random_numbers(), including():
            plain = at_home({name: _plain(value, name == "data") for name, value in named.items()})
            if "image_root" in stage.options.model_fields and plain.get("image_root") is None:
                _place_images(plain)
            # In a launch, the first process shows the bar.
            launches = named.get("num_processes") not in (None, 1, "1")
            with bar(stage.verb, not launches) as progress:
                if output is None:
                    notes = stage.run(stage.options.from_options(plain), None, progress)  # type: ignore[arg-type]
                else:
                    notes = stage(output, progress, **plain)
        if output is None and stage.show is not None:
            show(stage.show(notes), stage.markdown)
        if DONE not in notes and ranks.rank() == 0 and not ranks.watched():
            for remark in stage.remarks(notes):
                say(f"dcsft: {remark}")
        if problem := stage.failing(notes):
            raise problem
        return None if output is None else KINDS.get(stage.writes, Artifact)(output)

    function.__name__ = function.__qualname__ = stage.name
    module = sys.modules[stage.run.__module__].__doc__ or ""
    sentence = module.partition("\n")[0].partition("`: ")[2]
    fields = stage.options.model_fields
    listed = "\n".join(
        f"    {name}: {fields[name].description}"
        for name in [*first, *(name for name in fields if name not in first)]
    )
    function.__doc__ = "\n\n".join(filter(None, [sentence, stage.about, f"Options:\n{listed}"]))
    function.__signature__ = _signature(stage, first)  # type: ignore[attr-defined]
    return function


def argument_of(stage: Stage, flagged: str) -> tuple[str, FieldInfo] | None:
    """The Python argument of an option of a command, or of another stage's; and its field."""
    if flagged == "output":
        return flagged, FieldInfo(annotation=str)
    from dcsft_harness.stages import STAGES

    for one in chain([stage], (STAGES[verb] for verb in STAGES)):  # others are imported if they must be
        for name, field in one.options.model_fields.items():
            spelled = {flag(name), extra(field, "also"), *(["--set"] if name == "extra" else [])}
            if f"--{flagged}" in spelled:
                return name, field
    return None


def _signature(stage: Stage, first: list[str]) -> inspect.Signature:
    def parameter(name: str, kind: Any) -> inspect.Parameter:  # noqa: ANN401 - inspect's own
        field = stage.options.model_fields[name]
        default = (
            inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        )
        return inspect.Parameter(name, kind, default=default, annotation=field.annotation)

    where = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    rest = [name for name in stage.options.model_fields if name not in first]
    needed = {"default": None} if stage.shows else {}
    output = inspect.Parameter("output", where[1], annotation="str | os.PathLike[str]", **needed)
    ordered = [parameter(name, where[0]) for name in first]
    return inspect.Signature([*ordered, output, *(parameter(name, where[1]) for name in rest)])


def _place_images(plain: dict[str, Any]) -> None:
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
