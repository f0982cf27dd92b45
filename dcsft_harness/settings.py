"""Settings of stages: pydantic models, filled by the command line, recipes or Python.

A field states its name, type, default, range, unit and meaning once; the command line, recipes, the Python
functions and the documentation are generated from it. Values may arrive as text (`1e-5`, `none`, `a,b`) from
command lines and YAML; a wrong one is a `HarnessError` that names the option and the value.
"""

import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from dcsft_harness.errors import HarnessError, cut, unknown_name

_T = TypeVar("_T", bound="Settings")
Reads = Literal["artifact", "checkpoint", "file", "pool", "tasks", "model_args"]
"""The kinds of things that an option may name: see `option`."""


def read_pairs(given: object, name: str, form: str, example: str) -> object:
    """A repeated option's texts of a form like TASK=NAME as a mapping; anything else unchanged."""
    if not isinstance(given, list | tuple):
        return given or {}
    found: dict[str, str] = {}
    for one in given:
        key, sign, value = str(one).partition("=")
        if not (key and sign and value):
            raise HarnessError(f"{name} {one} is not of the form {form}", f"As in {example}")
        refuse_again(name, key, found)
        found[key] = value
    return found


def refuse_again(option: str, name: str, found: Mapping[str, object]) -> None:
    """Refuses a name that a repeated option gave before, of which the last would win silently."""
    if name in found:
        raise HarnessError(f"{option} gives {name} twice", "Pass it once")


def option(
    default: Any = ...,  # noqa: ANN401 - a field of any type
    about: str = "",
    *,
    positional: bool = False,
    repeated: bool = False,
    metavar: str | None = None,
    reads: Reads | None = None,
    bare: object = None,
    decides: bool = True,
    cli: bool = True,
    also: str | None = None,
    **limits: Any,  # noqa: ANN401 - pydantic's own: ge, gt, le, lt, default_factory
) -> Any:  # noqa: ANN401 - pydantic.Field's own type
    """A field of a stage's settings.

    Args:
        default: its value if none is given; `...` makes it required.
        about: its meaning, with the unit and the meaning of None.
        positional: whether the command line takes it without a name.
        repeated: whether to give a list by repeating the option; otherwise with commas.
        metavar: its placeholder in help; the type's name by default.
        reads: what it names, for recipes and lineage: an artifact's folder, a checkpoint (folder, hub name
            or "digits"), a file, a pool (task, folder or file), tasks, or model arguments.
        bare: the option's value if the command line gives it without one.
        decides: whether it affects the artifact; a resumed run may change options that do not.
        cli: whether the command line has it.
        also: another name on the command line, which help shows first.
        **limits: arguments of `pydantic.Field`.
    """
    extra: dict[str, Any] = {"positional": positional, "repeated": repeated, "metavar": metavar}
    extra |= {"reads": reads, "bare": bare, "decides": decides, "cli": cli, "also": also}
    if "default_factory" not in limits:
        limits["default"] = default
    return Field(description=about, json_schema_extra=extra, **limits)


def extra(field: FieldInfo, name: str) -> Any:  # noqa: ANN401 - what `option` was given
    """The arguments of `option` for a field, by one of its names."""
    found = field.json_schema_extra
    return found.get(name) if isinstance(found, dict) else None


class Settings(BaseModel):
    """Base of all settings; frozen, and an unknown name is refused with near matches."""

    SECTION: ClassVar[str] = "Options"  # the help section of the options that a class declares first
    KIND: ClassVar[str] = "option"  # what errors call a field

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - the fields' own types
        """Validates the values; the error names the option, the value and the allowed ones."""
        known = type(self).model_fields
        for name in values:
            if name not in known:
                raise self.unknown(name)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(type(self), error, values) from None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Mapping[str, object]) -> dict[str, object]:
        for name, value in values.items():
            field = cls.model_fields.get(name)
            # As a path it would be the working folder.
            texts = value if isinstance(value, list | tuple) else [value]
            empty = any(isinstance(one, str) and not one for one in texts)
            if field is not None and empty and field.default != "" and extra(field, "reads"):
                raise HarnessError(f"{cls.said(name)} is empty", "Pass a value, or leave it out")
        return {
            name: read_text(cls.model_fields[name].annotation, value) if name in cls.model_fields else value
            for name, value in values.items()
        }

    @classmethod
    def unknown(cls, name: str) -> HarnessError:
        """The error for a name that no field has."""
        return unknown_name(cls.KIND, name, cls.model_fields)

    @classmethod
    def said(cls, name: str, *value: object) -> str:
        """A field, with its value if that is wrong, as errors quote it."""
        return " ".join([flag(name), *(cut(str(one).lower() if one is True else one, 80) for one in value)])

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """The settings from the options of a command line or recipe; errors are those of `__init__`."""
        return cls(**options)

    def changed(self, **values: object) -> Self:
        """A copy with other values, validated."""
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | values)

    def part(self, kind: type[_T]) -> _T:
        """The settings of a base class of this one."""
        given = self.model_fields_set & kind.model_fields.keys()
        return kind(**{name: getattr(self, name) for name in given})

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the artifact, as JSON-serializable values."""
        return {
            name: value
            for name, value in self.as_dict().items()
            if extra(type(self).model_fields[name], "decides") is not False
        }

    @classmethod
    def section(cls, name: str) -> str:
        """The section of an option in help: that of the class that declares it first."""
        owner = [one for one in cls.__mro__ if name in one.__dict__.get("__annotations__", {})][-1]
        return str(getattr(owner, "SECTION", Settings.SECTION))

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-serializable values, for a manifest."""
        return self.model_dump(mode="json")


_HOME = re.compile(r"(?:^|(?<=[,=]))~(?=/)")


_V = TypeVar("_V")


def at_home(value: _V) -> _V:
    """A value whose paths "~/..." are written out, as shells do at the start of a word."""
    made: object = value
    if isinstance(value, str) and "~/" in value:
        made = _HOME.sub(lambda _: str(Path.home()), value)
    elif isinstance(value, Path):
        made = Path(at_home(str(value)))
    elif isinstance(value, list):
        made = [at_home(one) for one in value]
    elif isinstance(value, tuple):
        made = tuple(at_home(one) for one in value)
    elif isinstance(value, dict):
        made = {name: at_home(one) for name, one in value.items()}
    return cast(_V, made)


def flag(name: str) -> str:
    """An option's name on the command line."""
    return "--" + name.replace("_", "-")


_COMMAND = re.compile(r"(`(?:dcsft|lmms-eval|accelerate|torchrun|pip|hf) [^`]*`)")
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])(?![\w-])(?: (?=(\S+)))?")
_PAIR = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z]) ([\w-]+)=([^\s,;)]*[^\s.,;:)])")
_VALUE = re.compile(r"None|true|-?[\d.]+(e-?\d+)?|[A-Z][A-Z_,:|]*|[^/=]*[/=].+|['\"{\[].*")
"""What is the value of the option before it: numbers, placeholders, paths, pairs, quoted texts."""


def as_arguments(
    text: str, known: Callable[[str], tuple[str, FieldInfo] | None], given: Iterable[object]
) -> str:
    """A message about options of the command line, about the arguments of a Python function instead.

    Commands in it stay. `known` is an option's argument and its field, None if it has none; `given` are the
    values of arguments, which a message may quote.
    """
    values = [str(one) for one in given if isinstance(one, str | os.PathLike) and str(one)]

    def pair(found: re.Match[str]) -> str:
        name, field = known(found[1]) or ("", None)
        if field is None or Mapping not in map(get_origin, members(field.annotation)):
            return found[0]
        if f"{found[2]}={found[3]}" in values:  # a text in place of the mapping
            return found[0]
        return f"{name}={{{found[2]!r}: {found[3]}}}"

    def argument(found: re.Match[str]) -> str:
        name, field = known(found[1]) or ("", None)
        if field is None:
            return found[0]
        word = (found[2] or "").rstrip(".,:;)")
        if bool in (kinds := members(field.annotation)) and str not in kinds:
            return f"{name}=True{' ' * bool(word)}"
        if word == "value":
            return f"{name} "
        quoted = any(text.startswith(one, found.end()) for one in values)
        is_value = quoted or word in get_choices(field.annotation) or _VALUE.fullmatch(word)
        return f"{name}={' ' * (bool(word) and not is_value)}"

    parts = _COMMAND.split(text)
    for at in range(0, len(parts), 2):
        text = _PAIR.sub(pair, parts[at])
        parts[at] = _FLAG.sub(argument, text)
    return "".join(parts)


def members(kind: object) -> tuple[object, ...]:
    """The alternatives of a type: int and NoneType for `int | None`."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def is_sequence(kind: object) -> bool:
    """Whether a field's type is a list or tuple of values."""
    return any(get_origin(one) in (tuple, list, Sequence) for one in members(kind))


def read_text(kind: object, value: object) -> object:
    """Converts a value that arrived as text to its field's type; a yes or no is never a number."""
    kinds = members(kind)
    if isinstance(value, str):
        if type(None) in kinds and value.strip().lower() in {"none", "null"}:
            return None
        if bool in kinds and str not in kinds:
            return value.strip()
        if is_sequence(kind) and str not in kinds:
            return [part.strip() for part in value.split(",") if part.strip()] or [value]
        if int in kinds and str not in kinds and (number := _whole(value)) is not None:
            return number
    if isinstance(value, os.PathLike):
        path = value if Path in kinds else os.fspath(value)
        return [path] if is_sequence(kind) and str not in kinds else path
    if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
        return str(value).lower()
    return value


def _whole(text: str) -> int | None:
    """A text such as 1e6 or 8.0 as the whole number that it is."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else None


_BOUNDS: dict[str, tuple[str, str]] = {
    "greater_than": ("gt", "above {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "below {}"),
    "less_than_equal": ("le", "at most {}"),
}
_NOUNS: tuple[tuple[str, str, str], ...] = (
    ("int_", "a whole number", "Pass one, such as 8"),
    ("float_", "a number", "Pass one, such as 0.5"),
    ("finite_number", "a finite number", "Pass one, such as 0.5"),
    ("bool_", "true or false", "Pass true or false"),
    ("path_", "a path", "Pass the path of a file or folder"),
    ("string_", "text", "Use text"),
    ("dict_", "a mapping", "Pass names and values"),
    ("list_", "a list", "Pass a list"),
    ("tuple_", "a list", "Pass a list"),
)


def _refusal(cls: type[Settings], error: ValidationError, values: Mapping[str, object]) -> HarnessError:
    """The first problem that pydantic found, in one sentence."""
    found = error.errors(include_url=False, include_context=True)[0]
    kind, where = found["type"], [str(one) for one in found["loc"]]
    name = where[0] if where else ""
    if kind == "missing":
        field = cls.model_fields.get(name)
        about = f": {field.description}" if field is not None and field.description else ""
        return HarnessError(f"{cls.said(name)} is missing", f"Pass a value{about}")
    if kind == "literal_error":
        choices = get_choices(cls.model_fields[name].annotation)
        return unknown_name(f"{cls.said(name)} value", str(found["input"]), choices)
    if kind == "too_short":
        return HarnessError(f"{cls.said(name)} is empty", "Pass at least one")
    said = cls.said(name, found["input"] if len(where) > 1 else values.get(name, found["input"]))
    if kind in _BOUNDS:
        return HarnessError(f"{said} is out of range", f"It must be {_range(cls, name)}")
    for start, noun, remedy in _NOUNS:
        if kind.startswith(start):
            return HarnessError(f"{said} is not {noun}", remedy)
    return HarnessError(f"{said}: {found['msg']}", "Correct it")


def get_choices(kind: object) -> list[str]:
    """The texts that a field's `Literal` allows, also inside a list; empty for other types."""
    found: list[str] = []
    for one in members(kind):
        if get_origin(one) is Literal:
            found += [str(value) for value in get_args(one)]
        elif get_origin(one) in (tuple, list, Sequence):
            found += get_choices(get_args(one)[0])
    return found


def _range(cls: type[Settings], name: str) -> str:
    words = []
    for limit in cls.model_fields[name].metadata:
        for attribute, text in _BOUNDS.values():
            bound = getattr(limit, attribute, None)
            if bound is not None:
                words.append(text.format(f"{bound:g}" if isinstance(bound, float) else bound))
    return " and ".join(words)
