"""Labels and curated sets against a plain Python reference, row by row, on all kinds of tables."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from dcsft_harness import records
from dcsft_harness.artifacts import manifest
from dcsft_harness.curation import CurationConfig, choose, labels
from dcsft_harness.errors import HarnessError

SCORES = st.sampled_from([1.0, 0.0, 0.5, 0.49, None])


@st.composite
def tables(draw):
    """Rollout rows of a few items in any order: all G samples, a censored part, or invalid ones."""
    samples, rows = draw(st.integers(1, 4)), []
    for number in range(draw(st.integers(1, 5))):
        count = samples if draw(st.integers(0, 9)) else draw(st.integers(1, 5))
        scores = draw(st.lists(SCORES, min_size=count, max_size=count))
        censored = len({score >= 0.5 for score in scores if score is not None}) == 2 and draw(st.booleans())
        censored ^= draw(st.integers(0, 30)) == 30
        step = draw(st.sampled_from([1, 1, 1, 31, 32, 33, -1, 2**58]))
        for index, score in enumerate(scores[: draw(st.integers(1, count)) if censored else count]):
            failed = score is None and draw(st.booleans())
            at = index * step if draw(st.integers(0, 60)) else 0
            rows.append(row(f"{number * 7 % 5}", at, score, censored, "no image" if failed else None))
    return draw(st.permutations(rows))


def row(item, index, score, censored=False, error=None):
    said = "" if error else "said"
    task = f"task of {item}"
    return vars(
        records.Rollout(item, index, said, score, None, 1, "stop", 0, task, "p", "a", censored, error)
    )


def reference(rows):
    """The labels that `dcsft label` makes of the rows, or the beginning of its error."""
    items = {
        key: [one for one in rows if one["item_id"] == key] for key in sorted({r["item_id"] for r in rows})
    }
    found = []
    for key, own in items.items():
        if len({one["sample_index"] for one in own}) < len(own):
            return f"item {key} has a sample_index twice"
    for key, own in items.items():
        right = [one["score"] >= 0.5 for one in own if one["score"] is not None]
        censored = any(one["censored"] for one in own)
        if censored and len(set(right)) < 2:
            return f"item {key} is marked as censored"
        n, k = len(right), sum(right)
        rated = n > 0 and not censored
        low = 0.0 if k == 0 else beta.ppf((1 - 0.95) / 2, k + 0.5, n - k + 0.5)
        high = 1.0 if k == n else beta.ppf(1 - (1 - 0.95) / 2, k + 0.5, n - k + 0.5)
        values = (k / n, float(low), float(high)) if rated else (None, None, None)
        name = "hard" if k == 0 else "easy" if k == n else "medium"
        found.append(records.Label(key, n, k, *values, name if n else None, own[0]["task"], censored))
    most = max(len(own) for own in items.values())
    for key, own in items.items():
        if len(own) < most and not any(one["censored"] for one in own):
            return f"item {key} has {len(own)} samples, while others have {most}"
    return [vars(one) for one in found]


@given(rows=tables(), at_once=st.integers(1, 9), grouped=st.integers(1, 9))
def test_labels_equal_the_plain_python_reference(rows, at_once, grouped):
    wanted = reference(rows)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcsft_harness.artifacts.storage.ROWS_AT_ONCE", at_once)
        rollouts, output = Path(name) / "rollouts", Path(name) / "labels"
        with manifest.writing("rollouts", rollouts, {}) as draft:
            table = pa.Table.from_pylist(rows, schema=records.schema(records.Rollout))
            pq.write_table(table, draft.folder / "rollouts.parquet", row_group_size=grouped)
        if isinstance(wanted, str):
            with pytest.raises(HarnessError, match=wanted):
                labels.label(rollouts, output)
            assert not output.exists()
        else:
            notes = labels.label(rollouts, output)
            assert records.read_table(output / labels.LABELS, records.Label).to_pylist() == wanted
            kinds = [one["difficulty"] for one in wanted]
            counted = {
                "easy": kinds.count("easy"),
                "hard": kinds.count("hard"),
                "unlabelled": kinds.count(None),
            }
            counted |= {"items": len(wanted), "censored": sum(one["censored"] for one in wanted)}
            assert {name: notes[name] for name in counted} == counted


LABELS = [
    records.Label(f"{number * 7 % 23:02}", 8, 4, 0.5, 0.1, 0.9, kind, "task")
    for number, kind in zip(range(23), (*records.DIFFICULTIES, None) * 6, strict=False)
]


def chosen(config, some=LABELS):
    table = pa.Table.from_pylist([vars(one) for one in some], schema=records.schema(records.Label))
    return choose(table, config)["item_id"].to_pylist()


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (CurationConfig(keep=("easy", "medium")), "17 04 12 07 09 22 00 05 10 20 15 02"),
        (CurationConfig(keep=("easy", "medium"), size=7, seed=3), "02 00 22 20 07 04 12"),
        (
            CurationConfig(keep=("medium", "easy"), mix={"hard": 0.25}, seed=5),
            "22 10 17 05 12 15 02 00 11 06 14 04 07 09 20 16",
        ),
        (
            CurationConfig(keep=("medium",), mix={"hard": 0.2, "easy": 0.3}, size=10, seed=1),
            "04 07 02 17 20 22 14 11 15 09",
        ),
    ],
)
def test_the_selection_and_its_order_are_stable_across_versions(config, wanted):
    assert chosen(config) == wanted.split()
    assert chosen(config, LABELS[::-1]) == wanted.split()


@given(
    kinds=st.lists(st.sampled_from([*records.DIFFICULTIES, None]), min_size=1, max_size=30),
    keep=st.lists(st.sampled_from(records.DIFFICULTIES), min_size=1, max_size=2, unique=True),
    share=st.one_of(st.none(), st.floats(0.05, 0.5)),
    size=st.one_of(st.none(), st.integers(1, 10)),
    seed=st.integers(0, 3),
)
def test_the_selection_is_a_seeded_shuffle_of_the_sorted_ids(kinds, keep, share, size, seed):
    left = next(name for name in records.DIFFICULTIES if name not in keep)
    config = CurationConfig(keep=tuple(keep), mix={left: share} if share else {}, size=size, seed=seed)
    some = [
        records.Label(f"{number * 7 % 31} é", 1, 0, None, None, None, kind, "task")
        for number, kind in enumerate(kinds)
    ]
    ids = {
        name: sorted(one.item_id for one in some if one.difficulty == name) for name in records.DIFFICULTIES
    }
    kept = sorted(key for name in keep for key in ids[name])
    whole = size or round(len(kept) / (1 - (share or 0)))
    mixed = round((share or 0) * whole)
    plain = len(kept) if size is None else size - mixed
    if not kept or not 0 < plain <= len(kept) or mixed > len(ids[left]) or (share and not mixed):
        why = "the set would be empty|are requested, but the labels have|is less than one item|no item"
        with pytest.raises(HarnessError, match=why):
            chosen(config, some)
        return
    rng = np.random.Generator(np.random.PCG64(seed))
    wanted = []
    for names, number in ((kept, plain), (ids[left], mixed))[: 1 + bool(share)]:
        drawn = np.array(names, dtype=str)
        wanted += (drawn if number == len(names) else rng.permutation(drawn)[:number]).tolist()
    assert chosen(config, some) == rng.permutation(np.array(wanted, dtype=str)).tolist()


def test_labels_with_a_repeated_item_are_refused():
    with pytest.raises(HarnessError, match="the labels hold item 07 twice"):
        chosen(CurationConfig(keep=("easy",)), [*LABELS, LABELS[1]])
