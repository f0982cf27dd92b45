"""Columns of a board's items as JavaScript files that a page reads from disk, without a server.

A page opened by file:// may not fetch its neighbours, but it may load them as scripts: each file is one
call, `dcsft.take(name, content)`, with content as JSON that cannot end a script element. Whole numbers
are packed: little-endian, of the smallest width that leaves the largest value free for "none".
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Json = dict[str, Any]
WIDTHS = ((1, "<u1"), (2, "<u2"), (4, "<u4"))
"""Bytes a number, and numpy's name for it."""
QUARTERS = 3
"""Up to so many different scores, four items share a byte."""
_ESCAPES = {mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def script(name: str, content: Json) -> bytes:
    """One data file: a call that hands over its content. Lone surrogates become question marks."""
    said = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f'dcsft.take("{name}",{escaped(said)});\n'.encode("utf-8", errors="replace")


def escaped(said: str) -> str:
    """JSON without the characters that could end a script element or a line of JavaScript."""
    for mark, instead in _ESCAPES.items():  # `translate` looks at one letter after another
        said = said.replace(mark, instead)
    return said


def write_script(folder: Path, name: str, content: Json) -> None:
    """Writes the data file of this name, like "b0t3r17", below a folder."""
    (folder / f"{name}.js").write_bytes(script(name, content))


def numbers(values: NDArray[np.int64]) -> Json:
    """Whole numbers from 0, shape (n,), -1 for none, as {"w": bytes each, "d": base64}."""
    largest = int(values.max(initial=0))
    width, kind = next((w, k) for w, k in WIDTHS if largest < 256**w - 1)
    filled = np.where(values < 0, 256**width - 1, values)
    return {"w": width, "d": base64.b64encode(filled.astype(kind).tobytes()).decode("ascii")}


def texts(column: pa.Array | Sequence[str | None]) -> Json:
    """Texts, shape (n,), as {"v": the different ones, "c": their numbers}."""
    array = column if isinstance(column, pa.Array) else pa.array(column, pa.string())
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    used, places = np.unique(codes, return_inverse=True)
    kept = used[used >= 0]
    places = places - (len(used) - len(kept))  # none comes first, and becomes -1
    return {"v": array.dictionary.take(pa.array(kept)).to_pylist(), "c": numbers(places)}


def scores(rows: Sequence[NDArray[np.float64] | None]) -> Json:
    """All rows' scores of a task's items, each shape (n,), as {"v": values, "w", "r": [base64]}.

    A score is its place among the values, the largest number of the width one that is missing; of width
    0.25 four items share a byte, the first in its lowest bits. A row without the task is null.
    """
    some = [np.unique(row[~np.isnan(row)]) for row in rows if row is not None]
    values = np.unique(np.concatenate(some)) if some else np.zeros(0)
    width: float = 0.25
    if len(values) > QUARTERS:
        width = next(w for w, _ in WIDTHS if len(values) < 256**w)
    return {
        "v": values.tolist(),
        "w": width,
        "r": [None if row is None else _packed(row, values, width) for row in rows],
    }


def _packed(row: NDArray[np.float64], values: NDArray[np.float64], width: float) -> str:
    missing = 3 if width < 1 else 256 ** int(width) - 1
    codes = np.where(np.isnan(row), missing, np.searchsorted(values, row))
    if width < 1:
        codes = np.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4)
        packed = (codes << np.array([0, 2, 4, 6])).sum(axis=1).astype("<u1")
    else:
        packed = codes.astype(f"<u{int(width)}")
    return base64.b64encode(packed.tobytes()).decode("ascii")
