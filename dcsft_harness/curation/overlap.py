"""Training images that reappear in evaluation sets: exact copies by pixels, near copies by perceptual hash.

A model trained on an image has seen the evaluation's image, whatever the question. The 64-bit pHash of the
library imagehash finds near copies: the same image in another size or compression differs by a few bits,
another photograph by about 32. Plain images, charts of one form and pages of text may have close hashes,
so thumbnails decide (see `alike`). Crops, mirror images and heavy edits are not found; images that differ
in a few small letters alone are near copies.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcsft_harness import lmms, records
from dcsft_harness.artifacts import manifest
from dcsft_harness.data.benchmarks import prepared
from dcsft_harness.errors import HarnessError
from dcsft_harness.pictures import to_rgb
from dcsft_harness.sampling import own_files

if TYPE_CHECKING:
    from PIL.Image import Image

KIND = "overlap"
PAIRS, ITEMS = "pairs.parquet", "items.parquet"
DISTANCE = 4
"""Bits that two pHashes may differ in; chance brings two photographs that close once in 10^13 pairs."""
SIDE = 16
"""Pixels on a side of thumbnails."""
ALIKE, PLAIN = 0.98, 8
"""The correlation of near copies' thumbnails; and the most by which gray values of plain ones differ.

Of 200 random pictures each of bars, lines, dots, triangles and text, 135 pairs had close hashes, and 30 of
them, 29 of text, alike thumbnails too. None of 1,600 copies in other sizes, JPEG or gray was lost by them.
"""
_BITS = 64
_AT_ONCE = 1 << 20
"""Pairs of hashes that are compared together."""


@dataclass(frozen=True)
class Pair:
    """A pair of equal or nearly equal images: one of the pool and one of an evaluation set."""

    pool_image: str  # the name of the pool's image, or of the first document that shows it if it has none
    task: str  # the evaluation task
    image: str  # the name of the evaluation image
    kind: str  # "exact" (equal size and pixels) or "near"
    distance: int  # bits in which the pHashes differ, 0 to `_BITS`


@dataclass(frozen=True)
class Shared:
    """A pool item with a shared image; curated sets leave such items out.

    An item has one row per shared image, in their order.
    """

    item_id: str
    pool_image: str
    kind: str  # "exact" if any pair of that image is, else "near"
    tasks: str  # the evaluation tasks with the image, separated by commas


@dataclass(frozen=True)
class Images:
    """The images of a task, each once."""

    # each image's published name; "document 7, image 0", of own rows "line 8, image 0", if it has none
    names: list[str]
    digests: list[bytes]  # each image's hash of size and pixels
    hashes: NDArray[np.uint64]  # each image's pHash as a uint64, array of shape (images,)
    thumbs: NDArray[np.uint8]  # each image's `thumbnail`, array of shape (images, SIDE * SIDE)
    items: list[tuple[str, list[int]]]  # each item's id and the positions of its images


def overlap(
    pool: str,
    tasks: Sequence[str],
    output: Path,
    distance: int = DISTANCE,
    progress: lmms.Progress | None = None,
    own: Mapping[str, lmms.Task] | None = None,
    files: Mapping[str, Path] | None = None,
    described: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares a pool's images with those of evaluation sets and writes the shared ones.

    The folder holds pairs.parquet (`Pair`), items.parquet (`Shared`; the items for `curate --exclude`) and
    manifest.json. `tasks` are evaluation tasks or groups of them; pHashes of near copies differ in at most
    `distance` bits, 0 to 16. `own` has opened tasks of a user's own rows by their names, and `files` their
    files; `described` says what decides the ids of its items, as of rollouts. `progress` is called with
    (documents read, total documents). Returns the manifest's notes: images and items of the pool, items with
    a shared image, pairs by task.

    Raises:
        HarnessError: a task does not load, an image is unreadable, or the output is occupied.
    """
    files = files or {}
    name, ours, others = _opened(pool, tasks, own or {}, files)
    compared = [ours, *others.values()]
    total, numbers = sum(len(task.eval_docs) for task in compared), count(1)

    def step() -> None:
        if progress is not None:
            progress(next(numbers), total)

    config = {
        "pool": name,
        "tasks": sorted(others),
        "distance": distance,
        "hash": "pHash, 64 bits",
        "alike": ALIKE,
        **(described or {}),
    }
    inputs = prepared.inputs(map(lmms.data_name, compared))
    inputs |= {"pool" if one == pool else f"rows of {one}": path for one, path in files.items()}
    with manifest.writing(KIND, output, config, inputs) as draft:
        mine = read_images(ours, step)
        pairs: list[Pair] = []
        for other, task in others.items():
            pairs += compare(mine, other, read_images(task, step, items=False), distance)
        shared, kinds = _shared(mine, pairs), Counter((pair.task, pair.kind) for pair in pairs)
        records.write_table(draft.folder / PAIRS, Pair, pairs)
        records.write_table(draft.folder / ITEMS, Shared, shared)
        draft.notes.update(
            {
                "pool": name,
                "images": len(mine.names),
                "items": len(mine.items),
                "shared_images": len({pair.pool_image for pair in pairs}),
                "shared_items": len({row.item_id for row in shared}),
                "tasks": {one: {kind: kinds[one, kind] for kind in ("exact", "near")} for one in others},
            }
        )
    return draft.notes


def _opened(
    pool: str, tasks: Sequence[str], own: Mapping[str, lmms.Task], files: Mapping[str, Path]
) -> tuple[str, lmms.Task, dict[str, lmms.Task]]:
    """The pool's name as a task, its task, and the evaluation tasks by name; see `overlap`."""
    ours = {own[pool].config.task: own[pool]} if pool in own else lmms.open_tasks([pool])
    if len(ours) != 1:
        raise HarnessError(f"{pool} is a group of {len(ours)} tasks ({', '.join(ours)})", "Name one of them")
    ((name, task),) = ours.items()
    named = [one for one in tasks if one not in own]
    others = lmms.open_tasks(named) if named else {}
    place = files[pool].resolve() if pool in files else None
    if name in others or any(files[one].resolve() == place for one in tasks if one in files):
        raise HarnessError(f"{name} is compared with itself", "Name evaluation tasks after the pool")
    for one in tasks:
        if one in own:
            others[_unused(own[one].config.task, [name, *others], files.get(one))] = own[one]
    return name, task, others


def _unused(name: str, taken: Sequence[str], path: Path | None) -> str:
    """The name of a user's evaluation set: its own, or with a number where a set in memory has none.

    Raises:
        HarnessError: a file has the name of the pool or of another set.
    """
    if name not in taken:
        return name
    if path is None or not own_files.is_kept(path):
        which = "the pool and an evaluation set" if name == taken[0] else "two evaluation sets"
        raise HarnessError(f"{which} are named {name}", "Rename the file")
    return next(one for number in count(2) if (one := f"{name}_{number}") not in taken)


def read_images(task: lmms.Task, step: Callable[[], None] = lambda: None, items: bool = True) -> Images:
    """Every image of a task, hashed; one that several documents share by name or by pixels is hashed once.

    `step` is called after each document. Without `items`, no items are collected and documents with known
    images are not opened.
    """
    names: list[str] = []
    owned: list[tuple[str, list[int]]] = []
    digests: list[bytes] = []
    hashes: list[int] = []
    thumbs = bytearray()
    known: dict[str | bytes, int] = {}  # by published names, of images without one by digests
    docs, rows = task.eval_docs_no_media, getattr(task, "row_names", {})
    for doc_id in range(len(docs)):
        given = _names(docs[doc_id])
        if not given or any(name not in known for name in given):
            item, images = lmms.describe(task, doc_id)
            shown = list(map(records.pixel_digest, images))
            where = rows.get(doc_id, f"document {doc_id}")
            keys: Sequence[str | bytes] = given if len(given) == len(images) else shown
            for number, (key, digest, image) in enumerate(zip(keys, shown, images, strict=True)):
                if key not in known:
                    known[key] = len(names)
                    names.append(key if isinstance(key, str) else f"{where}, image {number}")
                    digests.append(digest)
                    hashes.append(perceptual_hash(image))
                    thumbs += thumbnail(image)
            if items:
                owned.append((item.item_id, [known[key] for key in keys]))
        elif items:
            item_id = lmms.describe_item(task, doc_id).item_id
            owned.append((item_id, [known[name] for name in given]))
        step()
    gray = np.frombuffer(thumbs, np.uint8).reshape(-1, SIDE * SIDE)
    return Images(names, digests, np.array(hashes, dtype=np.uint64), gray, owned)


def _names(doc: Mapping[str, Any]) -> list[str]:
    """The published names of a document's images; empty unless it has prepared ones."""
    places = doc.get("images")
    if "source" not in doc or not isinstance(places, list):
        return []
    return [prepared.name(doc["source"], place) for place in places]


def perceptual_hash(image: "Image") -> int:
    """The 64 bits of an image's pHash."""
    import imagehash

    bits = imagehash.phash(to_rgb(image)).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(image: "Image") -> bytes:
    """The gray values of an image in SIDE x SIDE pixels."""
    from PIL.Image import Resampling

    return to_rgb(image).convert("L").resize((SIDE, SIDE), Resampling.LANCZOS).tobytes()


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two thumbnails show the same, in whatever brightness and contrast; plain ones in the same."""
    first, second = (thumb - thumb.mean() for thumb in (one, other))
    spread = np.sqrt(np.square(first).sum() * np.square(second).sum())
    if min(first.std(), second.std()) < 1:
        return bool(np.abs(one.astype(int) - other).max() <= PLAIN)
    return bool(first @ second >= ALIKE * spread)


def compare(pool: Images, task: str, other: Images, distance: int) -> list[Pair]:
    """The pairs of equal and nearly equal images, by distance and then in the pool's order."""
    pairs = []
    for row, column, bits in near(pool.hashes, other.hashes, distance):
        kind = "exact" if pool.digests[row] == other.digests[column] else "near"
        if kind == "exact" or alike(pool.thumbs[row], other.thumbs[column]):
            pairs.append(Pair(pool.names[row], task, other.names[column], kind, bits))
    return sorted(pairs, key=lambda pair: (pair.kind, pair.distance))


def near(mine: NDArray[np.uint64], others: NDArray[np.uint64], distance: int) -> list[tuple[int, int, int]]:
    """The positions of hashes that differ in at most `distance` bits, and in how many, in their order.

    Of distance + 1 parts of such hashes one is equal, so only hashes with an equal part are compared: at the
    default distance one pair in 1,600.
    """
    found: list[tuple[int, int, int]] = []
    edges = np.linspace(0, _BITS, distance + 2).astype(np.uint64)
    parts = [
        (low, np.uint64((1 << int(high - low)) - 1)) for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    for number, (shift, mask) in enumerate(parts):
        order = np.argsort((others >> shift) & mask, kind="stable")
        keys, wanted = ((others >> shift) & mask)[order], (mine >> shift) & mask
        first, last = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, "right")
        counts = last - first
        ends = np.cumsum(counts)
        start = 0
        while start < len(mine):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
            some = counts[start:stop]
            rows = np.repeat(np.arange(start, stop), some)
            places = np.arange(len(rows)) - np.repeat(np.cumsum(some) - some, some)
            columns = order[np.repeat(first[start:stop], some) + places]
            differing = mine[rows] ^ others[columns]
            bits = np.bitwise_count(differing)
            fits = bits <= distance
            for earlier, wide in parts[:number]:  # found there already
                fits &= ((differing >> earlier) & wide) != 0
            found += zip(rows[fits].tolist(), columns[fits].tolist(), bits[fits].tolist(), strict=True)
            start = stop
    return sorted(found)


def _shared(pool: Images, pairs: Sequence[Pair]) -> list[Shared]:
    by_image: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_image.setdefault(pair.pool_image, []).append(pair)
    found = []
    for item_id, places in pool.items:
        for name in (pool.names[place] for place in dict.fromkeys(places)):
            if name in by_image:
                kinds = {pair.kind for pair in by_image[name]}
                tasks = ",".join(sorted({pair.task for pair in by_image[name]}))
                found.append(Shared(item_id, name, "exact" if "exact" in kinds else "near", tasks))
    return found


_IDENTIFYING = {"scorer": "scorer", "images_sha256": "set of images"}
"""What decides the ids of own rows' items besides the rows -> what it is called."""


def without(
    labels: pa.Table, folder: Path, task: object, rollouts: manifest.Manifest | None = None
) -> pa.Table:
    """Label rows without items whose image `overlap` found in an evaluation set, for the pool `task`.

    `rollouts` are those of the labels.

    Raises:
        HarnessError: the folder is of another pool, or of one whose items have other ids (other rows, images
            or scorer); it has changed, or is not an overlap folder.
    """
    found = manifest.read(folder, KIND)
    if found.config["pool"] != task:
        raise HarnessError(
            f"--exclude {folder} is the overlap of {found.config['pool']}, but the labels are of {task}",
            f"Run `dcsft data overlap {task} TASK...`",
        )
    if rollouts is not None:
        pool, data = found.inputs.get("pool", {}), rollouts.inputs.get("data", {})
        pairs = {"file of rows": (pool.get("sha256"), data.get("sha256"))}
        pairs |= {
            name: (found.config.get(key), rollouts.config.get(key)) for key, name in _IDENTIFYING.items()
        }
        # An older overlap says less.
        differing = [
            name for name, (one, other) in pairs.items() if None not in (one, other) and one != other
        ]
        if differing:
            raise HarnessError(
                f"--exclude {folder} is of {task} with another {' and '.join(differing)} than was"
                " sampled, so its items have other ids",
                "Run `dcsft data overlap` again, with the --scorer of `dcsft sample`",
            )
    manifest.refuse_changed(folder, ITEMS)
    shared = records.read_table(folder / ITEMS, Shared)
    return labels.filter(pc.invert(pc.is_in(labels["item_id"], value_set=shared["item_id"].combine_chunks())))
