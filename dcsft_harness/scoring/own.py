"""A user's function as a scorer: where it is imported from, how it is called, and its version.

The version is a number made from the function's code and from what it keeps, so that a score records which
scorer made it. Code is that of the file now: a module whose file has changed is imported again.
"""

import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dcsft_harness import reading
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.scoring.verdict import FIELDS, NOT_FOUND, Scorer, Verdict


def imported(named: str) -> object:
    """What "package.module:function" names.

    Raises:
        HarnessError: it names a file, or it cannot be imported.
    """
    module, _, path = named.partition(":")
    if module.endswith(".py"):
        module = module.removesuffix(".py").replace("/", ".")
        raise HarnessError(f"scorer {named!r} names a file", f"Name its module: {module}:{path}")
    try:
        found: Any = _loaded(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:
        raise HarnessError(
            f"scorer {named!r} cannot be imported ({type(error).__name__}: {cut(str(error))})",
            "Write package.module:function, of a module in this folder or an installed one",
        ) from error
    return found


_READ: dict[str, bytes] = {}
"""Module -> the files that a scorer's module was imported from, as they were then."""
_FOLDERS: list[str] = []
"""The working directories that were added to the path of imports."""


def _loaded(name: str) -> ModuleType:
    """The module of that name, as another process would import it now.

    If its file, or one beside it that it imports, has changed since, these are imported again, and so is a
    module from a folder that was the working directory before.
    """
    here = os.getcwd()
    if here not in sys.path:
        _FOLDERS.append(here)
        sys.path.append(here)  # behind all else: the user's module, as `python -m` would find it
    left = [one for one in _FOLDERS if one != here]
    sys.path[:] = [one for one in sys.path if one not in left]
    known = sys.modules.get(name)
    if known is not None and _top(_file(known), name) in map(Path, left):
        _forget([_file(known)])
        known = None
    module = importlib.import_module(name) if known is None else known
    files = _files(module)
    written = b"".join(file.read_bytes() for file in files)
    if known is not None and _READ.get(name, written) != written or _older(files):
        _forget(files)
        module = importlib.import_module(name)
    _READ[name] = written
    return module


def _forget(files: Sequence[Path]) -> None:
    """Makes Python import files again, and not from bytecode.

    Python takes bytecode for current if the edited file is as long and of the same second.
    """
    for name in _modules(files):
        del sys.modules[name]
    for file in files:
        with contextlib.suppress(OSError):
            Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
    importlib.invalidate_caches()


def _modules(files: Sequence[Path]) -> dict[str, ModuleType]:
    """The modules that were imported from files, by each of their names."""
    return {
        name: one
        for name, one in list(sys.modules.items())
        if name != MAIN and getattr(one, "__file__", None) and _file(one) in files
    }


def _older(files: Sequence[Path]) -> list[Path]:
    """Those of the files that have changed since one of them imported them, or functions of theirs."""
    return [file for file in files if any(_is_older(one, file) for one in _modules(files).values())]


_INSTALLED = frozenset(map(Path, sysconfig.get_paths().values()))
"""Folders whose files are packages, not the user's own."""


def _files(one: object, installed: bool = True) -> list[Path]:
    """The file of a module, function or class, and those beside it that it imports; empty without one.

    Of an installed package it is the file alone, or none.
    """
    name = str(getattr(one, "__name__" if inspect.ismodule(one) else "__module__", ""))
    try:
        file = Path(inspect.getsourcefile(one) or "").absolute()  # type: ignore[arg-type]
    except TypeError:
        return []
    if file.suffix != ".py" or not file.is_file():
        return []
    root = _top(file, name)
    if root in _INSTALLED or {"site-packages", "dist-packages"} & {*root.parts}:
        return [file] if installed else []
    return reading.imported_files(file, root)


def _top(file: Path, name: str) -> Path:
    """The folder that a module of this name was imported from."""
    return [file, *file.parents][: name.count(".") + 2 + (file.name == "__init__.py")][-1]


def _file(module: ModuleType) -> Path:
    return Path(str(getattr(module, "__file__", None))).absolute()


def from_function(function: object, name: str = "") -> Scorer:
    """A user's function as a scorer, under that name or its own: "package.module:function".

    Raises:
        HarnessError: it is no function, or has to be called in another way.
    """
    if not name:
        inner: Any = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        name = f"{inner.__module__}:{getattr(inner, '__qualname__', type(inner).__name__)}"
    remedy = (
        f"Define it as function(response, *, answer); it may also take {', '.join(sorted(FIELDS))}, truncated"
    )
    if not callable(function):
        raise HarnessError(f"scorer {name!r} is {type(function).__name__}, not a function", remedy)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise HarnessError(f"scorer {name!r} has no signature ({error})", remedy) from error
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    fields = tuple(sorted(field for field in FIELDS if field in parameters))
    takes_truncated = takes_all or "truncated" in parameters
    more = {"truncated": False} if "truncated" in parameters else {}
    try:
        inspect.signature(function).bind("", answer="", **dict.fromkeys(fields), **more)
    except TypeError as error:
        raise HarnessError(
            f"scorer {name!r} cannot be called as scorer(response, answer=...) ({error})", remedy
        ) from error

    def score(response: str, **given: Any) -> Verdict:  # noqa: ANN401 - the item's own fields
        try:
            result = function(response, **{**more, **given})
        except HarnessError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise HarnessError(
                f"scorer {name!r} raises {type(error).__name__} ({cut(str(error))}; "
                f"{Path(last.filename).name}, line {last.lineno}) for the response {response[:80]!r}",
                "Correct the function, or return 0 where a response has no answer",
            ) from error
        if isinstance(result, Verdict):
            return result
        if getattr(result, "ndim", None) == 0:  # a number of numpy's or torch's
            result = result.item()
        is_number = isinstance(result, bool | int | float) and 0 <= result <= 1
        if not is_number:
            raise HarnessError(
                f"scorer {name!r} returned {type(result).__name__} {cut(str(result), 80)} for the response"
                f" {response[:80]!r}",
                "Return a Verdict, a bool, or a number from 0 to 1",
            )
        said = response.strip()
        return Verdict(float(result), said) if said else NOT_FOUND

    return Scorer(
        name,
        score,
        gold=lambda solution: solution,
        fields=fields,
        takes_truncated=takes_truncated,
        version=_version(function),
    )


def _version(function: Callable[..., object]) -> int:
    """A number made from the code of a user's function: its whole file, and those beside it that it imports.

    A script that is run, or a notebook, holds much besides: there it is the function, and what it names. Code
    that cannot be read is version 1. What the function keeps counts, too, see `_state`: arguments of a
    partial, variables around it, attributes of its object.

    Raises:
        HarnessError: its file has changed since it was imported.
    """
    kept: list[object] = []
    while isinstance(function, functools.partial):
        kept += map(_state, (*function.args, *sorted(function.keywords.items())))
        function = function.func
    kept += _kept(function)
    state = json.dumps(kept) if kept else ""
    function = inspect.unwrap(function)
    written = function if inspect.isroutine(function) else type(function)
    try:
        code = _code(written, function) or inspect.getsource(written).encode()
    except (OSError, TypeError):
        return 1
    return int(hashlib.sha256(code + state.encode()).hexdigest()[:7], 16)


def _code(one: object, function: object = None, installed: bool = True) -> bytes:
    """The content of the `_files` of a function or module; empty for one of a script or notebook.

    Raises:
        HarnessError: one has changed since it was imported.
    """
    files = [] if getattr(one, "__module__", None) == MAIN else _files(one, installed)
    module = sys.modules.get(str(getattr(one, "__module__", "")))
    older = files[:1] if files and _is_older(module, files[0], function) else _older(files)
    if older:
        raise HarnessError(
            f"{older[0].name} has changed since {getattr(one, '__qualname__', 'the scorer')} was imported",
            "Restart Python, or reload its module, then the function's own, and import the function again",
        )
    return b"".join(file.read_bytes() for file in files)


MAIN = "__main__"


def _kept(function: Any) -> list[object]:  # noqa: ANN401 - anything that can be called
    """What a function keeps, as `_state` has it: around it, in its object, defaults, a notebook's globals."""
    found: list[object] = []
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(_state(cell.cell_contents))
    owner = function.__self__ if inspect.ismethod(function) else function
    if not inspect.isroutine(owner) and not isinstance(owner, type):  # a class is code
        found += itertools.chain(
            *((name, _state(value)) for name, value in sorted(_attributes(owner).items()))
        )
    if (wrapped := getattr(function, "__wrapped__", None)) is not None:
        found += _kept(wrapped)
    inner = getattr(function, "__func__", function)
    is_main = getattr(inner, "__module__", None) == MAIN
    if inspect.isfunction(inner) and (is_main or "<locals>" in inner.__qualname__):
        # A function that is made several times has other values each time.
        found += map(_state, (*(inner.__defaults__ or ()), *sorted((inner.__kwdefaults__ or {}).items())))
    if is_main:
        parts = [inner] if inspect.isroutine(inner) else list(vars(type(inner)).values())
        for part in filter(inspect.isfunction, parts):
            for name in _names(part.__code__):
                value = part.__globals__.get(name)  # None for a built-in
                found.append([name, *(_source(value) if inspect.ismodule(value) else [_state(value)])])
    return found


def _attributes(owner: object) -> dict[str, object]:
    """An object's attributes, also those in slots, without the function that it wraps."""
    slots = [getattr(one, "__slots__", ()) for one in type(owner).__mro__]
    names = itertools.chain(
        *((one,) if isinstance(one, str) else one for one in slots), getattr(owner, "__dict__", ())
    )
    return {name: getattr(owner, name) for name in names if hasattr(owner, name) and name != "__wrapped__"}


_SEEN: ContextVar[tuple[object, ...]] = ContextVar("_SEEN", default=())
"""The values inside which `_state` is now: a function may name itself."""


def _state(one: object) -> object:
    """A value that a scorer keeps, for JSON: itself if it is plain, else its type, which may be a cache.

    Numbers, texts, patterns, tuples, frozen sets and data classes are plain; a function is its name and what
    it keeps, in a notebook with its code. Lists, sets and mappings are not.
    """
    if one is None or isinstance(one, str | int | float):
        return one
    if isinstance(one, re.Pattern):
        return [repr(one.pattern), one.flags]
    if getattr(one, "ndim", None) == 0:  # a number of numpy's or torch's
        return _state(one.item())  # type: ignore[attr-defined]
    if any(one is outer for outer in _SEEN.get()):
        return ""
    reset = _SEEN.set((*_SEEN.get(), one))
    try:
        if isinstance(one, tuple):
            return list(map(_state, one))
        if isinstance(one, frozenset):
            return sorted(json.dumps(_state(value)) for value in one)
        if isinstance(one, functools.partial):
            return [_state(value) for value in (one.func, one.args, tuple(sorted(one.keywords.items())))]
        if inspect.isroutine(one) and hasattr(one, "__qualname__"):
            return [one.__qualname__, *_source(one), *_kept(one)]
        if dataclasses.is_dataclass(one) and not isinstance(one, type):
            return [type(one).__name__, *(_state(pair) for pair in sorted(_attributes(one).items()))]
        return [one.__qualname__, *_source(one)] if isinstance(one, type) else type(one).__name__
    finally:
        _SEEN.reset(reset)


def _source(one: object) -> list[str]:
    """The code of a function, class or module: of a notebook's its own, else that of its files.

    Installed packages have none here: their code is not the user's.
    """
    with contextlib.suppress(OSError, TypeError):
        if getattr(one, "__module__", None) == MAIN:
            return [inspect.getsource(one)]  # type: ignore[arg-type]
        if code := _code(one, installed=False):
            return [hashlib.sha256(code).hexdigest()]
    return []


def _names(code: CodeType) -> list[str]:
    """The global names that code reads, also in functions inside it."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    mine = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(mine.union(*map(_names, inner)))


def _is_older(module: ModuleType | None, file: Path, function: object = None) -> bool:
    """Whether the file has other code than its module, or a function of it, in this process.

    Only for Python's own loader: those of pytest, for example, change code when they import it.
    """
    if module is None or type(getattr(module, "__loader__", None)) is not SourceFileLoader:
        return False
    mine = list(vars(module).values())  # also what it imported from the file
    mine += [part for one in mine if isinstance(one, type) for part in vars(one).values()]
    loaded = [getattr(one, "__code__", None) for one in (*mine, function)]
    here = [code for code in loaded if isinstance(code, CodeType) and code.co_filename == str(file)]
    try:
        return not set(here) <= _codes(file.read_bytes())
    except (SyntaxError, ValueError):  # it is being edited
        return True


@functools.lru_cache(maxsize=8)
def _codes(source: bytes) -> frozenset[CodeType]:
    """The code of all functions in a file, also of inner ones."""
    waiting: list[CodeType] = [compile(source, "", "exec", dont_inherit=True)]
    found: set[CodeType] = set()
    while waiting:
        inner = {one for one in waiting.pop().co_consts if isinstance(one, CodeType)} - found
        found |= inner
        waiting += inner
    return frozenset(found)
