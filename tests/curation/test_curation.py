"""labels -> curated set on disk: the right items, reproducible on every machine, in the trainers' format."""

import os
import re
import shutil
import subprocess
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_from_disk

from dcsft_harness import curation, records, sampling
from dcsft_harness.artifacts import manifest, storage
from dcsft_harness.curation import CurationConfig, labels, rules
from dcsft_harness.errors import HarnessError
from tests.fixtures.artifacts import item, picture, rollouts

KINDS = ["easy"] * 12 + ["medium"] * 8 + ["hard"] * 6 + ["unscored"] * 2


def labeled(folder, kinds=KINDS, **more):
    """Writes a rollouts and a labels artifact; returns the folder of the labels."""
    rollouts(folder / "rollouts", kinds, with_items=True, **more)
    labels.label(folder / "rollouts", folder / "labels")
    return folder / "labels"


LEFT = ["data", "difficulty.png", "gallery", "gallery.md", "manifest.json"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return labeled(tmp_path_factory.mktemp("source"))


def curated(source, output, *keep, **more):
    curation.curate(source, output, CurationConfig(keep=keep, **more))
    return load_from_disk(str(output / "data"))


def numbers(rows):
    """The indices of the rows in KINDS."""
    by_id = {item(number).item_id: number for number in range(len(KINDS))}
    return [by_id[key] for key in rows["item_id"]]


def test_an_item_is_returned_as_messages_and_images(source, tmp_path):
    rows = curated(source, tmp_path / "out", "medium")
    assert sorted(numbers(rows)) == list(range(12, 20))
    for number, row in zip(numbers(rows), rows, strict=True):
        assert row["messages"] == [
            {"role": "user", "content": f"<image>What is number {number}?"},
            {"role": "assistant", "content": f"It is answer {number}"},
        ]
        assert [image.tobytes() for image in row["images"]] == [picture(number).tobytes()]
        assert (row["difficulty"], row["pass_rate"]) == ("medium", 0.5)


def test_the_manifest_records_the_selection_and_its_source(source, tmp_path):
    curated(source, tmp_path / "out", "easy", mix={"hard": 0.25}, seed=7)
    found = manifest.read(tmp_path / "out", "curated set")
    assert {name: found.notes[name] for name in ("items", "easy", "medium", "hard", "task")} == {
        "items": 16,
        "easy": 12,
        "medium": 0,
        "hard": 4,
        "task": "pool",
    }
    assert (found.config["keep"], found.config["mix"], found.config["seed"]) == (["easy"], {"hard": 0.25}, 7)
    assert found.input_folder("labels") == source.resolve()
    assert found.input_folder("rollouts") == (source.parent / "rollouts").resolve()


def test_items_without_a_label_are_never_selected(source, tmp_path):
    rows = curated(source, tmp_path / "out", "easy", "medium", "hard")
    assert sorted(numbers(rows)) == list(range(26))


def test_sizes_and_shares_are_met_exactly(source, tmp_path):
    rows = curated(source, tmp_path / "out", "easy", "medium", mix={"hard": 0.3}, size=10)
    assert (len(rows), rows["difficulty"].count("hard")) == (10, 3)


def test_the_selection_depends_on_the_seed_and_not_on_rollout_order(source, tmp_path):
    backwards = labeled(tmp_path / "backwards", backwards=True)
    one = curated(source, tmp_path / "one", "easy", "medium", size=9, seed=5)
    other = curated(backwards, tmp_path / "other", "easy", "medium", size=9, seed=5)
    assert one.to_list() == other.to_list()
    assert len(one) == 9
    assert curated(source, tmp_path / "third", "easy", "medium", size=9, seed=6)["item_id"] != one["item_id"]


def test_the_source_is_not_modified(source, tmp_path):
    before = sorted(str(path) for path in source.parent.rglob("*"))
    curated(source, tmp_path / "out", "easy")
    assert sorted(str(path) for path in source.parent.rglob("*")) == before


def test_the_folder_holds_the_set_and_nothing_else(source, tmp_path):
    curated(source, tmp_path / "out", "easy")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == LEFT


def test_large_sets_are_written_in_pieces(source, tmp_path, monkeypatch):
    config = {"mix": {"hard": 0.2}, "seed": 4}
    whole = curated(source, tmp_path / "whole", "easy", "medium", **config)
    pieces = []
    monkeypatch.setattr("dcsft_harness.curation.conversations.AT_ONCE", 1)
    monkeypatch.setattr("dcsft_harness.artifacts.storage.AT_ONCE", 1000)
    table = storage.Writer.table
    monkeypatch.setattr(
        storage.Writer, "table", lambda self, rows: pieces.append(len(rows)) or table(self, rows)
    )
    assert curated(source, tmp_path / "pieces", "easy", "medium", **config).to_list() == whole.to_list()
    assert len(pieces) > 3
    assert sorted(path.name for path in (tmp_path / "pieces").iterdir()) == LEFT


class TestItems:
    """Rollouts whose items do not match their responses."""

    def changed(self, folder, change):
        source = labeled(folder, ["easy"] * 3)
        items = folder / "rollouts" / "items"
        rows = change(load_from_disk(str(items)).to_list())
        features = load_from_disk(str(items)).features
        shutil.rmtree(items)
        Dataset.from_list(rows, features=features).save_to_disk(str(items))
        return source

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda rows: rows[1:], f"items lacks item {item(0).item_id}"),
            (lambda rows: [*rows, rows[1]], f"items holds item {item(1).item_id} twice"),
            (lambda rows: [rows[0], rows[1] | {"target": None}, rows[2]], "'target' has empty cells"),
        ],
    )
    @pytest.mark.parametrize("at_once", [1, 1 << 20])
    def test_that_do_not_match_are_refused(self, tmp_path, monkeypatch, change, said, at_once):
        monkeypatch.setattr("dcsft_harness.curation.conversations.AT_ONCE", at_once)
        with pytest.raises(HarnessError, match=said):
            curated(self.changed(tmp_path, change), tmp_path / "out", "easy")
        assert not (tmp_path / "out").exists()

    def test_may_have_several_images_or_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr(manifest, "refuse_changed", lambda *_: None)
        source = self.changed(
            tmp_path, lambda rows: [row | {"images": row["images"] * at} for at, row in enumerate(rows)]
        )
        rows = curated(source, tmp_path / "out", "easy")
        for number, row in zip(numbers(rows), rows, strict=True):
            assert row["messages"][0]["content"] == "<image>" * number + f"What is number {number}?"
            assert [image.tobytes() for image in row["images"]] == [picture(number).tobytes()] * number


class TestRefusals:
    def test_an_empty_set_is_refused(self, tmp_path):
        source = labeled(tmp_path, ["easy", "easy"])
        with pytest.raises(
            HarnessError, match="no item is hard: .*would be empty .*2 easy, 0 medium, 0 hard"
        ):
            curated(source, tmp_path / "out", "hard")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("kinds", "said"),
        [
            ([[1.0], [0.0]], "no item is medium: .*With one scored response per item .*sample more, such as"),
            ([[1.0, None], [0.0, None]], "no item is medium: .*With one scored response per item none"),
            ([[None, None]] * 3, "no response to the 3 items could be scored. See `error` in the rollouts"),
        ],
    )
    def test_no_medium_items_with_one_scored_response_per_item_or_none(self, tmp_path, kinds, said):
        source = labeled(tmp_path, kinds)
        with pytest.raises(HarnessError, match=said):
            curated(source, tmp_path / "out", "medium")

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"keep": ("easy",), "size": 13}, "13 easy items are requested, but the labels have 12"),
            (
                {"keep": ("easy",), "size": 16, "mix": {"hard": 0.5}},
                "8 hard items are requested, but the labels have 6",
            ),
            (
                {"keep": ("easy", "medium"), "weight": "p(1-p)", "size": 9},
                "9 easy+medium items with a weight above 0 are requested, but the labels have 8",
            ),
            (
                {"weight": "p(1-p)", "size": 9},
                "9 fitting items with a weight above 0 are requested, but the labels have 8",
            ),
            ({"weight": "posterior", "size": 99}, "99 fitting items are requested, but the labels have 26"),
        ],
    )
    def test_more_items_than_there_are(self, source, tmp_path, config, said):
        with pytest.raises(HarnessError, match=re.escape(said)):
            curation.curate(source, tmp_path / "out", CurationConfig(**config))
        assert not (tmp_path / "out").exists()

    def test_a_share_of_less_than_one_item(self, source, tmp_path):
        with pytest.raises(
            HarnessError, match="--mix hard=0.04 of 10 items is less than one item. Use a share of at"
        ):
            curated(source, tmp_path / "out", "easy", size=10, mix={"hard": 0.04})
        assert len(curated(source, tmp_path / "out", "easy", size=10, mix={"hard": 0.1})) == 10

    @pytest.mark.parametrize(
        ("size", "mix", "said"),
        [
            (1, {"hard": 0.6}, "--mix hard=0.6 of 1 items leaves no item that is easy. Use a larger --size"),
            (3, {"hard": 0.5, "medium": 0.49}, "--mix hard=0.5, medium=0.49 of 3 items leaves no item"),
        ],
    )
    def test_a_mix_that_takes_everything(self, source, tmp_path, size, mix, said):
        with pytest.raises(HarnessError, match=said):
            curated(source, tmp_path / "out", "easy", size=size, mix=mix)

    def test_a_mix_of_items_that_the_band_already_took(self, source, tmp_path):
        with pytest.raises(HarnessError, match=r"hard \(outside the band\) items are requested"):
            curated(source, tmp_path / "out", band=(0.0, 0.5), mix={"hard": 0.3})

    def test_an_occupied_output_folder(self, source, tmp_path):
        curated(source, tmp_path / "out", "easy")
        with pytest.raises(HarnessError, match="already holds a curated set"):
            curated(source, tmp_path / "out", "hard")

    def test_missing_rollouts(self, tmp_path):
        source = labeled(tmp_path, ["easy"])
        shutil.rmtree(tmp_path / "rollouts")
        with pytest.raises(HarnessError, match="the rollouts that .*labels was made from are no longer at"):
            curated(source, tmp_path / "out", "easy")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("hard", "not difficulty=share"),
            ("hart=0.1", "not difficulty=share"),
            ("hard=", "not difficulty=share"),
            ("hard=0.0.5", "not difficulty=share"),
            ("hard=.", "not difficulty=share"),
            ("hard=-1", "not difficulty=share"),
        ],
    )
    def test_an_invalid_mix(self, text, said):
        with pytest.raises(HarnessError, match=said):
            rules.parse_mix([text])

    def test_a_mix_that_names_a_difficulty_twice(self):
        with pytest.raises(HarnessError, match="--mix names hard twice"):
            rules.parse_mix(["hard=0.1", "hard=0.2"])

    def test_a_full_disk(self, tmp_path):
        # `datasets` raises its own error here, with the operating system's as the cause.
        source, disk = labeled(tmp_path, ["easy"] * 30), tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
        if shutil.which("mount") is None or os.geteuid() != 0 or subprocess.run(command).returncode:
            pytest.skip("mounting a small file system needs root")
        try:
            with pytest.raises(HarnessError, match="cannot write the curated set to .*: No space left"):
                curated(source, disk / "out", "easy")
            assert list(disk.iterdir()) == []
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def test_mix_shares_are_parsed():
    assert rules.parse_mix(["hard=0.05", "easy=.5"]) == {"hard": 0.05, "easy": 0.5}


def test_rollouts_that_were_edited_by_hand_are_refused(tmp_path):
    """Otherwise a set would carry the hash of data that it was not made from."""
    source = labeled(tmp_path, ["easy", "medium"])
    items = tmp_path / "rollouts" / sampling.ITEMS
    shutil.rmtree(items)
    sampling.write_items(
        items, [replace(item(n), target="other") for n in (0, 1)], [[picture(n)] for n in (0, 1)]
    )
    with pytest.raises(HarnessError, match=r"arrow does not match manifest\.json beside it"):
        curated(source, tmp_path / "set", "easy")
    table = records.read_table(source / labels.LABELS, records.Label)
    pq.write_table(table.slice(1), source / labels.LABELS)
    with pytest.raises(HarnessError, match=r"labels\.parquet does not match"):
        curated(source, tmp_path / "set", "easy")
    assert not (tmp_path / "set").exists()
    drawn = tmp_path / "rollouts" / sampling.ROLLOUTS
    pq.write_table(pq.read_table(drawn).slice(2), drawn)
    with pytest.raises(HarnessError, match=r"rollouts\.parquet does not match"):
        labels.label(tmp_path / "rollouts", tmp_path / "again")
