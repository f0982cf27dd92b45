"""What the suite knows of one published data set, and what reading it goes through."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dcsft_harness.errors import HarnessError

Row = dict[str, Any]
"""One row of a task: the columns of `STANDING` and of the source's own `columns`."""

STANDING = {
    "prompt": "string",
    "answer": "string",
    "target": "string",
    "cluster": "string",
    "images": ["int64"],
}
"""What every prepared row has: the prompt; the gold in the scorer's own form, as JSON; the gold as SFT
teaches it; the name that rows share which are not independent; the pictures, as rows of the album."""


@dataclass(frozen=True)
class Picture:
    """A picture of the album that a prepared folder keeps beside its rows.

    Attributes:
        index: its row in the album, from 0; what a task row's `images` holds.
        width, height: of the upright image, in pixels.
        orientation: its EXIF orientation, 1 to 8; 0 where the EXIF data is damaged.
    """

    index: int
    width: int
    height: int
    orientation: int = 1


class Pictures(Protocol):
    """Where a source puts the pictures of the row that it is making."""

    def add(self, name: str, read: Callable[[], bytes]) -> Picture:
        """The picture of that name; `read` gives its encoded bytes and is called for a new name alone.

        Raises:
            HarnessError: the bytes are no image, or one that was cut short; names it.
        """


@dataclass(frozen=True)
class Hub:
    """Where `datasets.load_dataset` finds a source.

    Attributes:
        path: the hub id ("axiong/imagenet-r").
        split: the split with the rows.
        config: the configuration; None is the default one. A tuple: all of them, one after another.
        gated: whether its terms have to be accepted on the hub first.
        files: files that `load_dataset` does not read; with them, `split` is not loaded.
    """

    path: str
    split: str
    config: str | tuple[str, ...] | None = None
    gated: bool = False
    files: tuple[str, ...] = ()


@dataclass
class Opened:
    """A source that is being read.

    Attributes:
        folder: what `--source` named; None reads from the hub.
        pictures: takes the pictures of the row that is being made.
        any_count: whether a part of the published rows is enough.
        inputs: files read as a whole, by what they are: their hashes go into the manifest.
        notes: what else the manifest shall say of how the rows came about.
        say: tells the user something that they should know now.
    """

    folder: Path | None
    pictures: Pictures
    any_count: bool = False
    inputs: dict[str, Path] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None


class Entry(NamedTuple):
    """One thing that becomes a row.

    Attributes:
        where: what a message calls it ("test-00000.parquet, row 17").
        raw: whatever the source's `row` takes.
    """

    where: str
    raw: Any


def read_file(path: Path) -> Callable[[], bytes]:
    """Reads a file when it is called.

    Raises, then:
        HarnessError: the file is not there, or cannot be read.
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
    """A small text file as a whole, with or without a byte order mark.

    Raises:
        HarnessError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_file(path)().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HarnessError(
            f"{path} is not UTF-8 text ({error})", "Fetch it again, or save it as UTF-8"
        ) from error


@dataclass(frozen=True)
class Source:
    """One published data set and how its rows become a task's.

    Attributes:
        task: the task that it is for; also the name of its prepared folder.
        version: raised when rows change, so that a folder prepared before is prepared again.
        changed: what this version does and the one before did not, for the message that refuses folders.
        count: published rows; None where that could not be verified.
        columns: the task's own columns beside `STANDING`: name -> `datasets` type ("string", "int64",
            ["string"] for a list). Columns that the row leaves out are empty.
        entries: what there is to read, streamed in the source's own order.
        row: an entry as a task's row; None leaves it out because the task does not ask it. Its `images`
            are the `Picture.index` of each; width and height are the row's own business.
            Raises HarnessError without the place, which is added.
        hub: where `load_dataset` gets it; None if it cannot.
        needs: what `--source` must hold, in a line.
        get: how to get that, in a line.
        distinct: whether equal items are one: in what is trained on, joins go by content, while an
            evaluation has as many rows as were published.
        tally: a column, and how many rows each of its values has; a shortfall is named by it.
        together: a column: rows with the same value stand side by side in the seeded order, so that
            --limit has whole groups of them.
    """

    task: str
    version: int
    count: int | None
    columns: Mapping[str, Any]
    entries: Callable[[Opened], Iterable[Entry]]
    row: Callable[[Opened, Any], Row | None]
    needs: str
    get: str
    hub: Hub | None = None
    distinct: bool = False
    tally: tuple[str, Mapping[str, int]] | None = None
    together: str | None = None
    changed: str = ""

    def command(self) -> str:
        """The command that prepares it."""
        return f"dcsft data prepare {self.task}" + ("" if self.hub else " --source DIR")


@dataclass(frozen=True)
class View:
    """A task that asks some rows of another's source.

    Attributes:
        task: the task.
        of: the source's task, which is what gets prepared.
        column: the column that decides.
        values: the values that it asks.
        count: published rows.
    """

    task: str
    of: str
    column: str
    values: tuple[str, ...]
    count: int | None
