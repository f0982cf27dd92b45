"""Rollouts of pools on a board's page: some items with all of their responses, as they were judged."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from dcsft_harness.artifacts import manifest
from dcsft_harness.artifacts.dataset_folder import IMAGES
from dcsft_harness.errors import HarnessError
from dcsft_harness.leaderboard.page.packing import Json, numbers, scores, texts, write_script
from dcsft_harness.leaderboard.page.pictures import Picture, store
from dcsft_harness.leaderboard.stats.intervals import Codes as Ints
from dcsft_harness.leaderboard.stats.intervals import Floats
from dcsft_harness.records import DIFFICULTIES, RIGHT, Rollout, as_wanted, readable, schema
from dcsft_harness.sampling import ITEMS, ROLLOUTS

_COLUMNS = ("item_id", "sample_index", "response", "score", "extracted", "n_tokens")


def write_pools(data: Path, pictures: Path, rollouts: Sequence[Path], samples: int) -> list[Json]:
    """Writes two files for each folder of rollouts: its items, and their responses one item after another.

    Args:
        data: where data files go.
        pictures: where pictures go.
        rollouts: folders of `dcsft sample`.
        samples: items of each; ids are hashes, so the first of them are a random draw.

    Returns:
        For each what the page calls it, and its counts.

    Raises:
        HarnessError: a folder holds no rollouts, they have changed, or they cannot be read.
    """
    return [_write(data, pictures, folder, f"p{number}", samples) for number, folder in enumerate(rollouts)]


def _write(data: Path, pictures: Path, folder: Path, name: str, samples: int) -> Json:
    from datasets import load_from_disk

    found = manifest.read(folder, "rollouts")
    manifest.refuse_changed(folder)
    items = load_from_disk(str(folder / ITEMS))
    known = items.data.table["item_id"] if items._indices is None else pa.chunked_array([items["item_id"]])
    order = np.asarray(pc.sort_indices(known))[:samples]
    chosen = items.select(order.tolist())
    ids = chosen["item_id"][:]
    drawn = _drawn(folder / ROLLOUTS, ids)
    starts, judged = _stretches(drawn, ids)
    texts_of = {key: chosen[key][:] for key in ("prompt", "answer", "doc_id")}
    shown = [[list(one) for one in _stored(pictures, row)] for row in chosen.select_columns([IMAGES])]
    content = {
        "ids": list(ids),
        "documents": numbers(np.array(texts_of["doc_id"], dtype=np.int64)),
        "answers": texts(texts_of["answer"]),
        "prompts": texts(texts_of["prompt"]),
        "pictures": shown,
        "difficulties": numbers(_difficulties(judged, starts)),
        "starts": numbers(starts),
    }
    write_script(data, f"{name}items", content)
    responses = {
        "responses": texts(drawn["response"].combine_chunks()),
        "extracted": texts(drawn["extracted"].combine_chunks()),
        "tokens": numbers(drawn["n_tokens"].to_numpy()),
        "scores": scores([judged]),
    }
    write_script(data, f"{name}r0", responses)
    told = {"name": folder.resolve().name, "items": len(ids), "of": len(items), "responses": len(drawn)}
    return {**told, "task": str(found.notes.get("task") or found.config.get("task") or "")}


def _stored(pictures: Path, row: Json) -> list[Picture]:
    return [store(pictures, image) for image in row[IMAGES]]


def _drawn(path: Path, ids: Sequence[str]) -> pa.Table:
    """The responses to some items, item by item, in the order in which they were drawn."""
    with readable(path):
        wanted = pc.field("item_id").isin(pa.array(ids, pa.string()))
        table = ds.dataset(path).to_table(list(_COLUMNS), filter=wanted)
    kinds = schema(Rollout)
    columns = {name: as_wanted(path, table[name], kinds.field(name)) for name in _COLUMNS}
    return pa.table(columns).sort_by([("item_id", "ascending"), ("sample_index", "ascending")])


def _stretches(drawn: pa.Table, ids: Sequence[str]) -> tuple[Ints, Floats]:
    """Where each item's responses begin and the last one's end; and all scores, NaN where there is none.

    Raises:
        HarnessError: an item has no response.
    """
    found = drawn["item_id"].combine_chunks().dictionary_encode()
    if lost := sorted(set(ids) - set(found.dictionary.to_pylist())):
        raise HarnessError(f"{ROLLOUTS} has no response to item {lost[0]}", "Sample the pool again")
    codes = np.asarray(found.indices)
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(ids)))]).astype(np.int64)
    return starts, np.array(drawn["score"].to_numpy(), dtype=np.float64)


def _difficulties(judged: Floats, starts: Ints) -> Ints:
    """What `dcsft label` makes of the responses: easy, medium, hard as 0, 1, 2; -1 where none is scored."""
    kinds = []
    for begin, end in zip(starts, starts[1:], strict=False):
        scored = judged[begin:end][~np.isnan(judged[begin:end])]
        right = int((scored >= RIGHT).sum())
        kind = "easy" if right == len(scored) else "hard" if right == 0 else "medium"
        kinds.append(DIFFICULTIES.index(kind) if len(scored) else -1)
    return np.array(kinds, dtype=np.int64)
