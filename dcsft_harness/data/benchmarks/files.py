"""Files of a data set by name, wherever its user unpacked them: in folders, or still in their archives."""

import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TextIO

from dcsft_harness.data.benchmarks.source import read_file
from dcsft_harness.errors import HarnessError

_CHUNK = 2**20
_SPACE = re.compile(r"\s*")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error)


class Files:
    """The files below a folder, and those in the zip archives that lie in it."""

    def __init__(self, root: Path) -> None:
        """Looks at nothing yet."""
        self.root = root
        self._archives: list[tuple[Path, zipfile.ZipFile, dict[str, list[str]]]] | None = None

    def image(self, name: str, *folders: str) -> Callable[[], bytes]:
        """What reads an image.

        Args:
            name: its path as the annotations give it ("train2014/COCO_train2014_000000000009.jpg").
            folders: where its users unpack it to, below the root.

        Raises, when it is called:
            HarnessError: the image is nowhere, or cannot be read.
        """
        base = PurePosixPath(name).name
        places = [
            self.root / name,
            *(self.root / folder / part for folder in folders for part in (name, base)),
        ]

        def read() -> bytes:
            for place in places:
                if place.is_file():
                    return read_file(place)()
            packed = self._packed(name)
            if packed is None:
                raise HarnessError(
                    f"the image {name} is neither below {self.root} nor in its zip archives",
                    "Put the images there, or leave the row out with --on-error skip",
                )
            path, archive, member = packed
            with telling_damage(path):
                return archive.read(member)

        return read

    def find(self, *names: str) -> tuple[Path, str | None] | None:
        """The first file of some names: in the root, in a folder of it, or (with its name there) in a zip."""
        for name in names:
            for place in (self.root / name, *sorted(self.root.glob(f"*/{name}"))):
                if place.is_file():
                    return place, None
        for name in names:
            packed = self._packed(name)
            if packed is not None:
                return packed[0], packed[2]
        return None

    def _packed(self, name: str) -> tuple[Path, zipfile.ZipFile, str] | None:
        """The archive that has a file of this name, or else of this base name, and the file's path in it.

        What lies in an archive may be named from a folder of the archive's own name on.

        Raises:
            HarnessError: several files are named so, and they are not the same.
        """
        if self._archives is None:
            self._archives = []
            for path in sorted(self.root.glob("*.zip")):
                with telling_damage(path):
                    archive = zipfile.ZipFile(path)
                members: dict[str, list[str]] = {}
                for member in archive.namelist():
                    members.setdefault(PurePosixPath(member).name, []).append(member)
                self._archives.append((path, archive, members))
        base = PurePosixPath(name).name
        found = [
            (path, archive, member)
            for path, archive, members in self._archives
            for member in members.get(base, ())
        ]
        found = [one for one in found if f"/{one[0].stem}/{one[2]}".endswith(f"/{name}")] or found
        if len({(file.CRC, file.file_size) for file in (one[1].getinfo(one[2]) for one in found)}) > 1:
            raise HarnessError(
                f"{name} can be {' or '.join(f'{path.name}: {member}' for path, _, member in found)}",
                f"Unpack the right one below {self.root}, to the place that its name says",
            )
        return next(iter(found), None)


@contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Makes a `HarnessError` of an archive that is cut short or damaged, or may not be read."""
    try:
        yield
    except PermissionError as error:
        raise HarnessError(f"{path} cannot be read ({error.strerror})", "Check its permissions") from error
    except _DAMAGED as error:
        raise HarnessError(
            f"{path} is damaged or was cut short ({type(error).__name__}: {error})", "Download it again"
        ) from error


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a tar archive in its order, as (path in it, bytes), read once from front to back.

    Raises:
        HarnessError: the archive is damaged, or ends too early.
    """
    with telling_damage(path), tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile():
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()


def json_rows(found: tuple[Path, str | None]) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON list or of a JSON Lines file, one at a time, with the place of each.

    Args:
        found: as `Files.find` gives it.

    Raises:
        HarnessError: it is not JSON, or ends too early.
    """
    path, member = found
    name = str(path) if member is None else f"{path}: {member}"
    with telling_damage(path):
        raw: IO[bytes] = path.open("rb") if member is None else zipfile.ZipFile(path).open(member)
    with io.TextIOWrapper(raw, encoding="utf-8") as file, telling_damage(path):
        try:
            for number, value in enumerate(_values(file), 1):
                yield f"{name}, row {number}", value
        except ValueError as error:  # not JSON, or not UTF-8
            raise HarnessError(
                f"{name} is not JSON, or was cut short ({error})", "Download it again"
            ) from error


def _values(file: TextIO) -> Iterator[Any]:
    """JSON values one after another, whether or not they stand in brackets with commas between them."""
    decoder, text, at, listed = json.JSONDecoder(), file.read(_CHUNK), 0, False
    at = _next(text, 0)
    if text[at : at + 1] == "[":
        listed, at = True, at + 1
    while True:
        at = _next(text, at)
        if listed and text[at : at + 1] == ",":
            at = _next(text, at + 1)
        if listed and text[at : at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            # The value may go on in the next piece of the file.
            more = file.read(_CHUNK)
            if not more and not listed and not text[at:].strip():
                return
            if not more:
                raise
            text, at = text[at:] + more, 0
            continue
        yield value


def _next(text: str, at: int) -> int:
    """The place of the first character from `at` that is no white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at
