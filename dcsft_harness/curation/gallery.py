"""Images of labels: a histogram of pass rates by class, and items of each class with their responses."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from dcsft_harness import records
from dcsft_harness.artifacts import storage
from dcsft_harness.curation import suspects
from dcsft_harness.curation.rules import mix
from dcsft_harness.errors import HarnessError, cut
from dcsft_harness.sampling import ITEMS, ROLLOUTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAM, PAGE, PICTURES = "difficulty.png", "gallery.md", "gallery"
SHOWN = 3
"""The number of items of each class in the gallery."""
_ITEMS, _ROWS = 2_000, 500_000
"""The gallery only reads the first items of the pool, and the first rows of responses."""
_AT_ONCE = 64
"""Responses that are read together."""
_COLORS = {"easy": "#56B4E9", "medium": "#E69F00", "hard": "#D55E00"}
_BINS = 20
"""The number of bars if there are more distinct pass rates than this."""
_LONGEST = 1500
"""The most characters of a text in the gallery."""


def write(folder: Path, rollouts: Path, labels: pa.Table, chosen: pa.Table | None = None) -> list[str]:
    """Writes the histogram and, if there are items, the gallery; returns the files' names.

    The gallery shows the `chosen` rows of a curated set, if given, else the `labels`.
    """
    parts = [("pool", labels)] if chosen is None else [("before", labels), ("after curation", chosen)]
    _draw(folder / HISTOGRAM, parts)
    made = [HISTOGRAM]
    with contextlib.suppress(HarnessError):  # items may be unreadable: the labels do not need them
        if _write_page(folder, rollouts, labels if chosen is None else chosen):
            made.append(PAGE)
    return made


def _draw(path: Path, parts: Sequence[tuple[str, pa.Table]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = 4.6 * len(parts) + 0.6, 3.6
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Margins in inches. A layout that matplotlib finds itself draws everything twice.
    margins = {
        "left": 0.8 / width,
        "right": 1 - 0.1 / width,
        "bottom": 0.55 / height,
        "top": 1 - 0.35 / height,
    }
    axes = figure.subplots(1, len(parts), squeeze=False, gridspec_kw={**margins, "wspace": 0.18})[0]
    for one, (title, table) in zip(axes, parts, strict=True):
        _histogram(one, title, table)
    axes[0].set_ylabel("items")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _histogram(axes: "Axes", title: str, table: pa.Table) -> None:
    counted, items = {kind: _rates(table, kind) for kind in records.DIFFICULTIES}, mix(table)
    values = np.unique(np.concatenate([rates for rates, _ in counted.values()]))
    binned = len(values) > _BINS
    centers = (np.arange(_BINS) + 0.5) / _BINS if binned else values
    gaps = np.diff(centers)
    width = min(0.1, 0.8 * float(gaps.min())) if len(gaps) else 0.1
    bottom = np.zeros(len(centers))
    for kind, (rates, counts) in counted.items():
        # Of all rated items; items whose sampling stopped early have a class but no pass rate.
        places = (
            np.minimum(rates * _BINS, _BINS - 1).astype(int) if binned else np.searchsorted(values, rates)
        )
        heights = np.bincount(places, counts, minlength=len(centers))
        axes.bar(centers, heights, width, bottom, color=_COLORS[kind], label=f"{kind} ({items[kind]:,})")
        bottom = bottom + heights
    settled = sum(items.values()) - int(bottom.sum())
    more = f", {settled:,} without a rate" if settled else ""
    axes.set_title(f"{title}: {table.num_rows:,} items{more}", loc="left", fontsize=10)
    axes.set_xlabel("pass rate")
    axes.set_ylim(0, 1.25 * max(1.0, float(bottom.max(initial=0))))  # with room for the legend
    axes.locator_params(axis="y", integer=True)
    axes.set_xlim(-0.08, 1.08)
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)


def _rates(table: pa.Table, kind: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The distinct pass rates of a class, and the number of items with each."""
    rates = table["pass_rate"].filter(pc.fill_null(pc.equal(table["difficulty"], kind), False)).drop_null()
    counts = pc.value_counts(rates)  # ten million rates have few values, and sorting them takes seconds
    return counts.field("values").to_numpy().astype(np.float64), counts.field("counts").to_numpy()


def _write_page(folder: Path, rollouts: Path, labels: pa.Table) -> bool:
    """Writes the gallery; False if the rollouts have no items, or none near their beginning."""
    if not (rollouts / ITEMS).is_dir():
        return False
    rows = _near(rollouts / ITEMS, labels)
    if not rows:
        return False
    said = _responses(rollouts / ROLLOUTS, [row["item_id"] for row in rows])
    for row in rows:
        row["files"] = []
        with contextlib.suppress(UnidentifiedImageError):  # changed since it was sampled
            row["files"] = suspects.write_pictures(folder, PICTURES, row["item_id"], row[storage.IMAGES])
    parts = ["# Easy, medium and hard items\n"]
    for kind in records.DIFFICULTIES:
        mine = [row for row in rows if row["difficulty"] == kind]
        parts += [f"\n## {kind}\n"] if mine else []
        for row in mine:
            parts.append(_entry(row, said.get(row["item_id"], [])))
    (folder / PAGE).write_text("\n".join(parts), encoding="utf-8")
    return True


def _near(items: Path, labels: pa.Table) -> list[dict[str, Any]]:
    """Items of each class among the pool's first ones; medium ones with a pass rate near one half."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in records.DIFFICULTIES}
    seen = 0
    wanted = {kind: min(SHOWN, count) for kind, count in mix(labels).items()}
    columns = ["item_id", "prompt", "answer", storage.IMAGES]
    for table in storage.read(items, columns, 1 << 24):
        known = labels.filter(pc.is_in(labels["item_id"], value_set=table["item_id"].combine_chunks()))
        of = {row["item_id"]: row for row in known.select(["item_id", "k", "n", "difficulty"]).to_pylist()}
        ids = [key for key in table["item_id"].to_pylist() if key in of]
        ids.sort(key=lambda key: abs(of[key]["k"] / max(1, of[key]["n"]) - 0.5))
        for key in ids:
            kind = of[key]["difficulty"]
            if kind is None or len(found[kind]) >= wanted[kind]:
                continue
            (row,) = storage.embedded(table.filter(pc.equal(table["item_id"], key))).to_pylist()
            found[kind].append(row | of[key])
        seen += table.num_rows
        if seen >= _ITEMS or all(len(some) >= wanted[kind] for kind, some in found.items()):
            break
    return [row for some in found.values() for row in some]


def _responses(path: Path, ids: Sequence[str]) -> dict[str, list[tuple[int, str, float | None]]]:
    """Each item's responses with their scores, in order, as far as they are in the first rows."""
    found: dict[str, list[tuple[int, str, float | None]]] = {}
    seen, wanted = 0, pa.array(ids, pa.string())
    names = ["item_id", "sample_index", "response", "score"]
    # In small pieces: a row group may hold every response, of any length.
    with records.readable(path), pq.ParquetFile(path, buffer_size=storage.BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(_AT_ONCE, columns=names, use_threads=False):
            mine = batch.filter(pc.is_in(batch["item_id"], value_set=wanted))
            for row in mine.to_pylist():
                found.setdefault(row["item_id"], []).append(
                    (row["sample_index"], row["response"], row["score"])
                )
            seen += batch.num_rows
            if seen >= _ROWS:
                break
    return {key: sorted(rows, key=lambda one: one[0]) for key, rows in found.items()}


def _entry(row: dict[str, Any], said: Sequence[tuple[int, str, float | None]]) -> str:
    """One item, equal responses once."""
    texts = [("Prompt", row["prompt"]), ("Gold", row["answer"])]
    equal: dict[tuple[str, str], list[int]] = {}
    for index, response, score in said:
        verdict = "not scored" if score is None else "right" if score >= records.RIGHT else "wrong"
        equal.setdefault((verdict, response), []).append(index + 1)
    for (verdict, response), numbers in equal.items():
        which = f"Response {numbers[0]}" if len(numbers) == 1 else f"Responses {', '.join(map(str, numbers))}"
        texts.append((f"{which}, {verdict}", response))
    title = f"### {row['k']} of {row['n']} right, {row['item_id']}"
    shown = ((name, cut(text, _LONGEST)) for name, text in texts)
    return suspects.page_entry(title, row["files"], shown)
