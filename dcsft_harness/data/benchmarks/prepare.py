"""published files or hub rows -> prepared folder: streamed, checked, shuffled, and written atomically."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.disk import file_sha256, json_sha256
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.data.benchmarks.prepared import STORED, Album
from dcsft_harness.data.benchmarks.source import STANDING, Entry, Opened, Row, Source
from dcsft_harness.errors import HarnessError

if TYPE_CHECKING:
    from datasets import Dataset, Features

Progress = Callable[[int, int], None]

SEED = 2602
"""Seed of the row order: published rows come class by class, and --limit should cover many classes."""
SKIPPED = "skipped.jsonl"
_SAID = 3
_AGAIN = "Download the data again, or leave the row out: --on-error skip"


def prepare(
    task: str,
    folder: Path | None = None,
    *,
    on_error: str = "stop",
    any_count: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Makes a task's prepared folder in `prepared.root`.

    It holds rows/ (a `datasets` folder without images), images.arrow (the images as published, each once),
    skipped.jsonl (skipped rows with reasons, if any) and manifest.json.

    Args:
        task: a benchmark task of the suite; for a task on a subset of another task's rows, the other is
            prepared.
        folder: the published files; None loads from the hub.
        on_error: "stop" at an unusable row, or "skip" it, which the manifest records.
        any_count: accept a part of the published rows; recorded.
        progress: called with (rows made, rows published).
        say: called with messages to show immediately.

    Returns:
        The manifest's notes: rows, images, skipped, values of the counted column.

    Raises:
        HarnessError: the data is not available, a row is unusable, rows are missing, or the folder is
            occupied.
    """
    source = prepared.source_of(task)
    output = prepared.folder_of(task)
    _refuse(source, folder, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(output.parent.glob(f".{output.name}.unfinished-*")):
        say(f"{path} was left by a run that was killed, if none is writing it now: it can be removed")
    config = {
        "task": source.task,
        "version": source.version,
        "album": STORED,
        "seed": SEED,
        "published": source.count,
        "any_count": any_count,
        "on_error": on_error,
        "from": str(folder) if folder else f"hub: {source.hub.path if source.hub else ''}",
    }
    with manifest.writing(prepared.KIND, output, config) as draft:
        album = Album(draft.folder / prepared.ALBUM)
        opened = Opened(folder, album, any_count, say=say)
        making = _Making(source, opened, album, on_error == "skip", progress)
        try:
            making.write(draft.folder)
        finally:
            images = album.close()
        _check_counts(source, making, any_count)
        draft.notes.update({"images": images, **making.notes()})
    return draft.notes


def _refuse(source: Source, folder: Path | None, output: Path) -> None:
    if (output / manifest.NAME).is_file():
        raise HarnessError(
            f"{source.task} is prepared already, in {output}",
            "Remove that folder to prepare it again, or name another --data-root",
        )
    if folder is None and source.hub is None:
        raise HarnessError(f"{source.task} needs --source DIR", f"{source.needs}. {source.get}")
    if folder is not None and not folder.is_dir():
        raise HarnessError(f"--source {folder} is not a folder", f"{source.needs}. {source.get}")


class _Making:
    """One source being prepared, and the counts so far."""

    def __init__(
        self, source: Source, opened: Opened, album: Album, skip: bool, progress: Progress | None
    ) -> None:
        self.source, self.opened, self.album, self.skip = source, opened, album, skip
        self.progress = progress or (lambda done, total: None)
        self.rows = 0
        self.skipped: list[tuple[str, str]] = []
        self.values: Counter[str] = Counter()
        self.content = hashlib.sha256()
        self._seen: dict[str, str] = {}

    def write(self, folder: Path) -> None:
        """Writes the rows in their seeded order, and the skipped ones."""
        from datasets import Dataset, disable_progress_bars
        from datasets.arrow_writer import ArrowWriter

        disable_progress_bars()
        features, unordered = _features(self.source), folder / ".unordered.arrow"
        with ArrowWriter(path=str(unordered), features=features) as writer:
            for row in self._made():
                writer.write(row)
            writer.finalize()
        if not self.rows:
            raise HarnessError(f"{self.source.task}: there are no rows to prepare", self.source.needs)
        shuffled = Dataset.from_file(str(unordered)).shuffle(seed=SEED, keep_in_memory=True)
        _together(shuffled, self.source.together).save_to_disk(str(folder / prepared.ROWS))
        unordered.unlink()
        if self.skipped:
            lines = [json.dumps({"row": where, "reason": reason}) for where, reason in self.skipped]
            (folder / SKIPPED).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def notes(self) -> dict[str, Any]:
        """The manifest's notes on the rows and their source."""
        notes = {
            "rows": self.rows,
            "skipped": len(self.skipped),
            "reasons": [reason for _, reason in self.skipped[:_SAID]],
            "rows_sha256": self.content.hexdigest(),
            "images_sha256": self.album.content.hexdigest(),
            "read": {name: file_sha256(path) for name, path in sorted(self.opened.inputs.items())},
            **self.opened.notes,
        }
        if self.source.tally:
            notes["values"] = {self.source.tally[0]: dict(sorted(self.values.items()))}
        return notes

    def _made(self) -> Iterator[Row]:
        for entry in self.source.entries(self.opened):
            row = self._row(entry)
            if row is None or self._doubled(entry, row):
                self.album.forget()
                continue
            self.album.keep()
            row["source"] = self.source.task
            self.rows += 1
            if self.source.tally:
                self.values[str(row[self.source.tally[0]])] += 1
            self.content.update(json_sha256(row).encode())
            self.progress(self.rows, self.source.count or self.rows)
            yield row

    def _doubled(self, entry: Entry, row: Row) -> bool:
        """Whether the row repeats an earlier one, if the source counts repeats once."""
        if not self.source.distinct:
            return False
        key = json_sha256([row[name] for name in ("prompt", "answer", "images")])
        if key not in self._seen:
            self._seen[key] = entry.where
            return False
        self.skipped.append((entry.where, f"the same item as {self._seen[key]}"))
        return True

    def _row(self, entry: Entry) -> Row | None:
        try:
            return self.source.row(self.opened, entry.raw)
        except (HarnessError, TypeError, AttributeError, KeyError, ValueError) as cause:
            # A value of another type may raise any error in the code that reads it.
            odd = f"a column holds a value of another type than published ({type(cause).__name__}: {cause})"
            error = cause if isinstance(cause, HarnessError) else HarnessError(odd, _AGAIN)
            placed = HarnessError(f"{entry.where}: {error.problem}", error.remedy)
            if not self.skip:
                raise placed from cause
            self.skipped.append((entry.where, str(error)))
            if len(self.skipped) <= _SAID:
                self.opened.say(f"skipped: {placed}")
            return None


def _together(rows: "Dataset", column: str | None) -> "Dataset":
    """Moves rows with equal values of a column next to the first of them."""
    if column is None:
        return rows
    first: dict[str, int] = {}
    values = rows[column][:]
    for at, value in enumerate(values):
        first.setdefault(value, at)
    order = sorted(range(len(values)), key=lambda at: (first[values[at]], at))
    return rows.select(order, keep_in_memory=True)


def _features(source: Source) -> "Features":
    from datasets import Features, List, Value

    columns = {**STANDING, "source": "string", **source.columns}
    return Features(
        {
            name: List(Value(kind[0])) if isinstance(kind, list) else Value(kind)
            for name, kind in columns.items()
        }
    )


def _check_counts(source: Source, making: _Making, any_count: bool) -> None:
    """Refuses row counts that differ from the published ones, in total or per value, by name."""
    found = making.rows + len(making.skipped)
    if any_count or source.count is None:
        return
    lacking = []
    if source.tally and not making.skipped:
        _, published = source.tally
        lacking = [
            f"{name} ({making.values[name]} of {published.get(name, 0)})"
            for name in dict.fromkeys([*published, *making.values])
            if making.values[name] != published.get(name, 0)
        ]
    if found == source.count and not lacking:
        return
    more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
    said = f": {', '.join(lacking[:8])}{more}" if lacking else ""
    raise HarnessError(
        f"{source.task} has {source.count:,} published rows, and {found:,} were found{said}",
        "Complete the source; --any-count takes what is there, and says so in the manifest",
    )
