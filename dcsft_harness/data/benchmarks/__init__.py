"""The paper's published benchmarks; each becomes one local folder that its lmms-eval task reads.

    published files or hub rows --(dcsft data prepare)--> prepared folder --(process_docs)--> task

A `Source` describes one benchmark's raw form; `prepare` streams it into a folder; `prepared` reads the
folder.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcsft_harness.errors import HarnessError

if TYPE_CHECKING:
    from dcsft_harness.data.benchmarks.prepared import Album

Row = dict[str, Any]
"""One row of a task: the columns of `STANDING` and of the source's own `columns`."""

STANDING = {
    "prompt": "string",
    "answer": "string",
    "target": "string",
    "cluster": "string",
    "images": ["int64"],
}
"""Columns of every prepared row: the prompt; the gold in the scorer's own form, as JSON; the gold as SFT
target; the cluster name, shared by rows that are not independent; the images, as rows of the album."""


@dataclass(frozen=True)
class Picture:
    """An image of the album in a prepared folder."""

    index: int  # its row in the album, from 0; what a task row's `images` holds
    # width, height: of the upright image, in pixels
    width: int
    height: int
    orientation: int = 1  # its EXIF orientation, 1 to 8; 0 where the EXIF data is damaged


@dataclass(frozen=True)
class Hub:
    """A source's location for `datasets.load_dataset`."""

    path: str  # the hub id ("axiong/imagenet-r")
    split: str  # the split with the rows
    # the configuration; None is the default one. A tuple means all of them, in order.
    config: str | tuple[str, ...] | None = None
    gated: bool = False  # whether its terms have to be accepted on the hub first
    files: tuple[str, ...] = ()  # files that `load_dataset` does not read; if set, `split` is not loaded


@dataclass
class Opened:
    """A source being read."""

    folder: Path | None  # the value of `--source`; None reads from the hub
    pictures: "Album"  # collects the images of the current row
    any_count: bool = False  # whether a part of the published rows is accepted
    # files that are read completely, by role: the manifest records their hashes
    inputs: dict[str, Path] = field(default_factory=dict)
    # further notes for the manifest on how the rows were made
    notes: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None  # shows the user a message immediately


class Entry(NamedTuple):
    """One raw entry that becomes a row."""

    where: str  # its location for messages ("test-00000.parquet, row 17")
    raw: Any  # the argument of the source's `row`


def read_file(path: Path) -> Callable[[], bytes]:
    """Reads a file when it is called.

    Raises, then:
        HarnessError: the file is missing, or cannot be read.
    """

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise HarnessError(
                f"{path} cannot be read ({error.strerror})",
                "Complete the source, or leave the row out with --on-error skip",
            ) from error

    return read


def read_text(path: Path) -> str:
    """A small UTF-8 text file, with or without a byte order mark.

    Raises:
        HarnessError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_file(path)().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HarnessError(
            f"{path} is not UTF-8 text ({error})", "Download it again, or save it as UTF-8"
        ) from error


@dataclass(frozen=True)
class Source:
    """One published dataset, and how its rows become a task's."""

    task: str  # its task; also the name of its prepared folder
    version: int  # increased when rows change, so that older prepared folders are prepared again
    count: int | None  # published rows; None if that could not be verified
    # the task's own columns besides `STANDING`: name -> `datasets` type ("string", "int64", ["string"] for a
    # list). Columns that the row leaves out are empty.
    columns: Mapping[str, Any]
    entries: Callable[[Opened], Iterable[Entry]]  # streams the raw entries in the source's own order
    # turns an entry into a task's row; None skips an entry that the task does not use. Its `images` are the
    # `Picture.index` of each; `row` itself sets width and height. Raises HarnessError without the location,
    # which the caller adds.
    row: Callable[[Opened, Any], Row | None]
    needs: str = ""  # the required content of `--source`, in a line; by default a download of `hub`
    get: str = ""  # how to get that, in a line; by default the command that downloads `hub`
    hub: Hub | None = None  # its location for `load_dataset`; None if it is not there
    # whether equal items count once: training joins by content, while an evaluation has as many rows as were
    # published
    distinct: bool = False
    # a column, and the row count of each of its values; errors about missing rows name the value
    tally: tuple[str, Mapping[str, int]] | None = None
    # a column: rows with the same value stay adjacent in the seeded order, so that --limit has whole groups
    # of them
    together: str | None = None
    changed: str = ""  # what is new in this version, for the error about older folders

    def __post_init__(self) -> None:
        """Fills `needs` and `get` in from `hub`."""
        if self.hub is not None:
            place = self.hub.path
            object.__setattr__(self, "needs", self.needs or f"--source is a download of {place}")
            command = f"hf download --repo-type dataset {place} --local-dir DIR"
            object.__setattr__(self, "get", self.get or f"Get one with `{command}`")

    def command(self) -> str:
        """The command that prepares it."""
        return f"dcsft data prepare {self.task}" + ("" if self.hub else " --source DIR")

    def advice(self) -> str:
        """What to run to prepare it, and where its files are."""
        return f"Run `{self.command()}`. {self.needs}. {self.get}"


@dataclass(frozen=True)
class View:
    """A task on a subset of another source's rows."""

    task: str
    of: str  # the source's task, whose data is prepared
    column: str  # the column that decides
    values: tuple[str, ...]  # the included values
    count: int | None  # published rows
