"""Reads JSON and YAML from outside in bounded time and memory: plain data only, or a `ValueError`.

Callers add the file and the remedy to the error.
"""

import ast
import contextlib
import csv
import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TextIO, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from dcsft_harness.errors import HarnessError, cut

MOST_JSON = 64 * 2**20
"""The largest JSON file to read, in bytes: a manifest with some hundred thousand files."""
MOST_YAML = 2**20
"""The largest YAML file to read, in bytes: a thousand pages of settings."""
DEEPEST = 64
"""The most levels of nested lists and mappings."""
MOST_NODES = 20_000
"""The most values in a YAML file; each alias counts with its whole content."""
PIECE = 1 << 20
"""How much of a large file is read at once."""
_NUMBER = 100
"""The most characters of a number."""
T = TypeVar("T")


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """The text of a regular file.

    Raises:
        ValueError: it is not a regular file (a pipe may never end), larger than `most` bytes, or not UTF-8.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most // 2**20} MB")
    return data.decode("utf-8")


def json_file(path: Path) -> Any:  # noqa: ANN401 - JSON's
    """A JSON file's value; see `read_text` and `from_json`. Of a repeated key the last one counts."""
    return from_json(read_text(path), once=False)


def from_json(
    text: str | bytes, finite: bool = False, halves: bool = False, once: bool = True, whole: bool = False
) -> Any:  # noqa: ANN401 - JSON's
    """A JSON text's value; all JSON from outside is read here.

    Bytes are UTF-8. `finite` refuses numbers beyond float64, NaN and infinity included; `halves` accepts
    texts with half of a surrogate pair, which cannot be written as UTF-8; `once` refuses an object with a
    repeated key; `whole` reads 3.0 as 3, and refuses decimals beyond float64.

    Raises:
        ValueError: it is not JSON, or nested deeper than `DEEPEST`.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _once} if once else {}
    if finite:
        hooks |= {"parse_constant": _finite, "parse_float": _finite, "parse_int": _integer}
    if whole:
        hooks["parse_float"] = _whole
    try:
        value = json.loads(text, **hooks)  # noqa: TID251 - bounded here
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inner(one)]
        if not level:
            break
    else:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    # In UTF-8 input, only an escape can produce such a text.
    if not halves and ("\\ud" if isinstance(text, str) else b"\\ud") in text.lower():  # type: ignore[operator]
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"{code}, half of a surrogate pair, is not text") from error
    return value


class RepeatedKeyError(ValueError):
    """An object has a key twice: readers of JSON differ in which one counts."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"the key {cut(twice, 60)!r} appears twice")
    return found


def json_object(line: str | bytes) -> dict[str, Any]:
    """A line of JSONL from outside: an object of finite numbers and valid Unicode; else ValueError.

    Numbers are those of tables: 3.0 is 3.
    """
    try:
        text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
        found = from_json(text, finite=True, whole=True)
    except RepeatedKeyError:
        raise
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:  # whose "line 1" would appear beside the line's number in its file
        if error.msg == "Extra data" and text.rstrip()[error.pos :] == ",":
            raise ValueError("not JSON (a comma follows the object)") from error
        said = error.msg.removesuffix(" at")
        raise ValueError(f"not JSON ({said} at character {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"not JSON ({cut(str(error))})") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def json_values(file: TextIO, decoder: json.JSONDecoder, most: float = math.inf) -> Iterator[tuple[Any, str]]:
    """The members of a JSON list, or values one after another, each with its text; read one at a time.

    Raises:
        ValueError: what follows is not JSON, a value has more than `most` characters, or the list is not all.
    """
    text, at, ended, listed = "", 0, False, None
    while True:
        while at < len(text) and (text[at].isspace() or (listed and text[at] == ",")):
            at += 1
        if listed is None and at < len(text):
            listed = text[at] == "["
            at += listed
            continue
        if listed and at < len(text) and text[at] == "]":
            rest = text[at + 1 :]
            while not rest.strip() and (rest := file.read(PIECE)):
                pass
            if rest.strip():
                raise ValueError(f"the list is followed by {cut(rest.strip(), 60)!r}")
            return
        try:
            if at == len(text):
                raise ValueError("it ends too early")
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            if ended and at == len(text) and not listed:
                return
            if ended or len(text) - at > most:
                raise
            text, at = text[at:], 0
            more = file.read(max(PIECE, len(text)))
            text, ended = text + more, not more
            continue
        yield value, text[at:end]
        at = end


def own_table(package: str, name: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file of this project."""
    text = (resources.files(package) / name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())


def _inner(value: object) -> Iterator[object]:
    """The lists and mappings inside one value."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (one for one in values if isinstance(one, dict | list))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{cut(text, 60)} is not a finite number")
    return value


def _whole(text: str) -> int | float:
    value = _finite(text)
    return int(value) if value.is_integer() else value


def _integer(text: str) -> int:
    if len(text) > 300:  # float64 ends at 309 digits, and Python refuses to read 4,300
        raise ValueError(f"{cut(text, 60)} is a number of {len(text.lstrip('-'))} digits")
    return int(text)


def yaml_file(path: Path) -> Any:  # noqa: ANN401 - YAML's own types
    """A YAML file's value; see `read_text` and `from_yaml`."""
    return from_yaml(read_text(path, MOST_YAML))


def from_yaml(text: str) -> Any:  # noqa: ANN401 - YAML's own types
    """A YAML text's value: null, booleans, numbers, texts, lists, and mappings with text keys.

    Dates are texts and 1e-6 is a number, as in YAML 1.2, whose numbers are those of JSON.

    Raises:
        ValueError: it is not YAML, or holds other types, a number that is not finite, a repeated key, or more
            than `MOST_NODES` values or `DEEPEST` levels.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: TID251 - a SafeLoader
    except yaml.YAMLError as error:
        said = str(error).replace(' in "<unicode string>",', " at")  # over several lines
        raise ValueError(" ".join(said.split())) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, bounded, for plain data only."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Counts levels and values during parsing, before anything is constructed."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._count, self._depth + 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(None, None, "an alias lies inside the value that it refers to", mark)
        self._count += self._sizes[id(node)] if alias else 1
        self._sizes[id(node)] = self._count - before
        if self._count > MOST_NODES:
            said = f"it has more than {MOST_NODES} values, counting the value behind each alias"
            raise yaml.MarkedYAMLError(None, None, said, mark)
        return node

    def parse_node(self, block: bool = False, indentless_sequence: bool = False) -> yaml.Event:
        """Refuses excessive depth at the start of a level: composing it would recurse further."""
        if self._depth > DEEPEST:
            said = f"it is nested deeper than {DEEPEST} levels"
            mark = self.peek_token().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, said, mark)
        event: yaml.Event = super().parse_node(block, indentless_sequence)
        return event

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses keys that are not texts, and repeated keys."""
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        seen: set[str] = set()
        for key in own:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    None, None, f"the key {str(key.value)[:50]!r} is not text; quote it", key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    None, None, f"the key {key.value[:50]!r} appears twice", key.start_mark
                )
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """A finite number of bounded length."""
    if len(node.value) > _NUMBER:
        raise yaml.MarkedYAMLError(None, None, f"a number of {len(node.value)} characters", node.start_mark)
    whole = node.tag == "tag:yaml.org,2002:int"
    try:
        made = loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)
    except ValueError as error:
        raise yaml.MarkedYAMLError(None, None, f"{node.value!r} is not a number", node.start_mark) from error
    if not math.isfinite(made):
        raise yaml.MarkedYAMLError(None, None, f"{node.value!r} is not a finite number", node.start_mark)
    found: int | float = made
    return found


# YAML 1.1 wants a point and a sign: its 1e-6 is text, which is how JSON writes 0.000001.
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)


def shaped(kind: TypeAdapter[T], value: object, where: str = "") -> T:
    """A value, validated against a type; `where` is its location in the file.

    The ValueError names the first wrong location, and the number of others.
    """
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = problems[0]
        place = ".".join(str(part)[:100] for part in (*filter(None, [where]), *first["loc"]))
        said = re.sub("^Value error, | or (an )?instance of .*", "", first["msg"])
        if first["type"] == "missing":
            problem = " is missing"
        elif first["type"] == "extra_forbidden":
            problem = " is not a known name"
        elif said == "Input should be a valid dictionary":
            problem = f" is {_short(first['input'])}, not a mapping"
        else:
            problem = f": {said[:1].lower()}{said[1:]}, not {_short(first['input'])}"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"{place or 'it'}{problem}{more}") from error


def _short(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping | list | tuple):
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    return cut(repr(value), 80)


# Model arguments as text, `key=value,key=value`, as lmms-eval takes them.


def separated(arguments: str) -> list[str]:
    """The parts `key=value` of model arguments, without white space around them; blank ones are left out.

    A comma inside a JSON object or list separates nothing.
    """
    parts, start, depth, quoted = [], 0, 0, False
    for at, sign in enumerate(arguments):
        if depth and sign == '"' and arguments[at - 1] != "\\":
            quoted = not quoted
        elif not quoted and sign in "{[" and (depth or arguments[at - 1 : at] == "="):
            depth += 1
        elif not quoted and sign in "}]" and depth:
            depth -= 1
        elif sign == "," and not depth:
            parts.append(arguments[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, arguments[start:]) if part.strip()]


def refuse_comma(path: object) -> None:
    """Refuses weights whose path has a comma: no model arguments can name it."""
    if "," in str(path):
        raise HarnessError(
            f"the path {path} has a comma, which separates model arguments", "Rename the folder"
        )


def refuse_malformed(option: str, arguments: str) -> None:
    """Refuses model arguments with a part that is no `key=value`, or that give a name twice."""
    found = set()
    for part in separated(arguments):
        name, sign, _ = part.partition("=")
        if not sign:
            raise HarnessError(
                f"{option} {arguments!r}: {part!r} is not key=value",
                "Write key=value,key=value; values cannot contain commas",
            )
        if name.strip() in found:
            raise HarnessError(f"{option} gives {name.strip()} twice", "Pass it once")
        found.add(name.strip())


def merged(given: object) -> dict[str, Any]:
    """The `metadata` of a task's file: a mapping, or lmms-eval's list of mappings; else empty."""
    parts = given if isinstance(given, list) else [given]
    return {name: value for part in parts if isinstance(part, Mapping) for name, value in part.items()}


def is_unset(value: object) -> bool:
    """Whether a value means "not given": None, or its text form on a command line."""
    return value is None or (isinstance(value, str) and value.strip().lower() in {"none", "null", ""})


def named(arguments: str) -> dict[str, str]:
    """Model arguments by name; JSON objects in one spelling, so that equal ones compare equal."""
    found = {}
    for part in separated(arguments):
        name, _, value = part.partition("=")
        if value.startswith("{"):
            with contextlib.suppress(ValueError):  # refused where it is used
                value = json.dumps(from_json(value), sort_keys=True)
        found[name.strip()] = value
    return found


def joined(arguments: Mapping[str, object]) -> str:
    """Model arguments as text; objects and lists as JSON."""
    parts = (
        (name, json.dumps(value) if isinstance(value, Mapping | list | tuple) else value)
        for name, value in arguments.items()
    )
    return ",".join(f"{name}={value}" for name, value in parts)


def json_option(name: str, value: object) -> dict[str, Any]:
    """An option's value that is a JSON object, or the text of one; anything else is an error."""
    found = value
    if isinstance(value, str):
        try:
            found = from_json(value, finite=True)
        except ValueError as error:
            raise HarnessError(
                f"{name}={cut(value)} is not JSON ({error})",
                f"Write an object, as in {name}='{{\"enable_thinking\": false}}'",
            ) from None
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise HarnessError(
            f"{name}={cut(str(value))} is not an object of names and values",
            f"Write one, as in {name}='{{\"enable_thinking\": false}}'",
        )
    return dict(found)


_OURS = Path(__file__).absolute().parent
"""This package, whose scorers have versions of their own."""


def imported_files(file: Path, root: Path) -> list[Path]:
    """A Python file, and those of its own folder that it imports, directly or through others.

    `root` is the folder of its outermost package, from which absolute imports are resolved.
    """
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one in found or not one.is_file():
            continue
        found[one] = None
        places: list[Path] = []
        with contextlib.suppress(SyntaxError, ValueError):  # what cannot be imported imports nothing
            for node in ast.walk(ast.parse(one.read_bytes())):
                if isinstance(node, ast.Import):
                    places += [root.joinpath(*alias.name.split(".")) for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    start = one.parents[node.level - 1] if 0 < node.level <= len(one.parents) else root
                    place = start.joinpath(*(node.module or "").split("."))
                    places += [place, *(place / alias.name for alias in node.names)]
        parts = [part for place in places for part in (Path(f"{place}.py"), place / "__init__.py")]
        waiting += [
            part for part in parts if part.is_relative_to(file.parent) and not part.is_relative_to(_OURS)
        ]
    return list(found)
