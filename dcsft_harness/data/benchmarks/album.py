"""The pictures of a prepared folder: each written once, as published, however many rows or names it has."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcsft_harness import pictures, records
from dcsft_harness.data.benchmarks.source import Picture
from dcsft_harness.errors import HarnessError

FORMAT = 3
"""Version of the file of pictures and of how they are shown; a prepared folder of another version is prepared
again. 3: upright, 16 bits scaled to 8 (`pictures.to_rgb`); 2: with digests."""
_FLUSH = 16 * 2**20
"""Bytes of pictures kept before they are written."""


class Writer:
    """Appends rows to an Arrow stream file that `datasets.Dataset.from_file` maps; a few at a time."""

    def __init__(self, path: Path, features: Any) -> None:  # noqa: ANN401 - datasets.Features
        """Opens the file."""
        import pyarrow as pa

        self._schema = features.arrow_schema
        self._sink = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self.count = 0

    def write(self, row: dict[str, Any], size: int = 256) -> None:
        """Adds a row of about `size` bytes."""
        self._rows.append(row)
        self._bytes += size
        self.count += 1
        if self._bytes >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._flush()
        self._stream.close()
        self._sink.close()


class Album:
    """Collects pictures by name and content; those of a row that turns out to be bad are forgotten again."""

    def __init__(self, path: Path) -> None:
        """Begins the file of pictures."""
        from datasets import Features, Image, Value

        number = Value("int64")
        columns = {"name": Value("string"), "image": Image(), "width": number, "height": number}
        features = Features({**columns, "digest": Value("binary")})
        self._writer = Writer(path, features)
        self._known: dict[str, Picture] = {}
        self._new: dict[str, tuple[bytes, bytes]] = {}  # what is encoded, and its pixels' digest
        self._named: list[str] = []
        self._by_content: dict[bytes, Picture] = {}
        self.content = hashlib.sha256()

    def add(self, name: str, read: Callable[[], bytes]) -> Picture:
        """See `source.Pictures.add`."""
        if name in self._known:
            return self._known[name]
        data = read()
        digest = hashlib.sha256(data).digest()
        if digest not in self._by_content:
            picture, turned = _decoded(name, data)
            width, height = picture.size
            self._by_content[digest] = Picture(self._writer.count + len(self._new), width, height, turned)
            self._new[name] = data, records.pixel_digest(picture)
        self._known[name] = self._by_content[digest]
        self._named.append(name)
        return self._known[name]

    def keep(self) -> None:
        """Writes the pictures that came with the row just made."""
        for name, (data, digest) in self._new.items():
            image = {"bytes": data, "path": Path(name).name}
            known = self._known[name]
            row = {"name": name, "image": image, "width": known.width, "height": known.height}
            self._writer.write({**row, "digest": digest}, len(data))
            self.content.update(hashlib.sha256(data).digest())
        self._new, self._named = {}, []

    def forget(self) -> None:
        """Leaves out the pictures that came with the row just made."""
        for name in self._named:
            del self._known[name]
        for data, _ in self._new.values():
            del self._by_content[hashlib.sha256(data).digest()]
        self._new, self._named = {}, []

    def close(self) -> int:
        """Finishes the file; returns how many pictures it has."""
        self._writer.close()
        return self._writer.count


def _decoded(name: str, data: bytes) -> tuple[Any, int]:
    """An encoded picture as it is shown, all of its pixels read, and its EXIF orientation."""
    from PIL import Image

    try:
        picture, _ = pictures.read(data)
    except pictures.UnreadableError as error:
        raise HarnessError(
            f"the image {name} cannot be read ({error})",
            "Fetch it again, or leave it out with --on-error skip",
        ) from error
    with Image.open(io.BytesIO(data)) as image:
        return picture, pictures.orientation(image)
