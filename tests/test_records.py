"""Ids that identify an item, and tables that round-trip."""

import io
import typing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dcsft_harness import records
from dcsft_harness.errors import HarnessError
from tests.fixtures.artifacts import picture

PARTS = ("task", "prompt", "answer", [b"pixels"])


class TestItemId:
    def test_is_32_hex_digits_and_stable(self):
        # Hard-coded, because every artifact on a user's disk is joined by it.
        assert records.item_id(*PARTS) == "5f52ee86a7f74282ac2c1c0513d32a76"

    @pytest.mark.parametrize("position", range(4))
    def test_depends_on_each_part(self, position):
        changed = list(PARTS)
        changed[position] = [b"other"] if position == 3 else "other"
        assert records.item_id(*changed) != records.item_id(*PARTS)

    def test_depends_on_the_boundaries_between_parts(self):
        assert records.item_id("ab", "c", "d", []) != records.item_id("a", "bc", "d", [])
        assert records.item_id("a", "b", "c", [b"de"]) != records.item_id("a", "b", "c", [b"d", b"e"])

    def test_depends_on_the_order_of_images(self):
        assert records.item_id("a", "b", "c", [b"1", b"2"]) != records.item_id("a", "b", "c", [b"2", b"1"])


class TestPixels:
    def test_do_not_depend_on_the_files_encoding(self):
        original, seen = picture(3), set()
        for form, more in (("PNG", {}), ("PNG", {"compress_level": 0}), ("BMP", {}), ("TIFF", {})):
            stored = io.BytesIO()
            original.save(stored, form, **more)
            seen.add(records.pixels(Image.open(stored)))
        assert seen == {records.pixels(original)}

    def test_depend_on_every_pixel(self):
        changed = picture(3)
        changed.putpixel((0, 0), (1, 2, 3))
        assert records.pixels(changed) != records.pixels(picture(3))

    def test_depend_on_the_shape_even_if_the_bytes_are_equal(self):
        assert records.pixels(picture(0, (2, 6))) != records.pixels(picture(0, (6, 2)))

    def test_of_grey_equal_those_of_its_rgb_image(self):
        grey = Image.new("L", (4, 4), 9)
        assert records.pixels(grey) == records.pixels(grey.convert("RGB"))


# Surrogates cannot be written as UTF-8, in Parquet as elsewhere.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLE = st.integers(-(2**63), 2**63 - 1)
REAL = st.floats(allow_nan=False)
BY_TYPE = {str: TEXT, bool: st.booleans(), int: WHOLE, float: REAL, type(None): st.none()}
BY_TYPE[list[float]] = st.lists(REAL, max_size=4)


def values(annotation):
    if annotation in BY_TYPE:
        return BY_TYPE[annotation]
    choices = typing.get_args(annotation)
    if annotation is records.Difficulty:
        return st.sampled_from(records.DIFFICULTIES)
    return st.one_of(*map(values, choices))


def rows(record):
    columns = {name: values(kind) for name, kind in typing.get_type_hints(record).items()}
    return st.lists(st.builds(record, **columns), max_size=4)


RECORDS = (records.Item, records.Rollout, records.Label, records.Score)


class TestTables:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_round_trip(self, tmp_path, data):
        record = data.draw(st.sampled_from(RECORDS))
        written = data.draw(rows(record))
        assert records.write_table(tmp_path / "table", record, written) == len(written)
        table = records.read_table(tmp_path / "table", record)
        assert [record(**row) for row in table.to_pylist()] == written
        assert table.schema.names == records.schema(record).names

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(HarnessError, match=r"rollouts\.parquet does not exist"):
            records.read_table(tmp_path / "rollouts.parquet", records.Rollout)

    def test_a_missing_column_is_named(self, tmp_path):
        pq.write_table(pa.table({"item_id": ["a"], "n": [1]}), tmp_path / "labels.parquet")
        with pytest.raises(HarnessError, match=r"labels\.parquet lacks the column 'k'"):
            records.read_table(tmp_path / "labels.parquet", records.Label)

    def test_a_column_with_a_default_may_be_missing(self, tmp_path):
        row = {"item_id": "a", "sample_index": 0, "response": "x", "score": 1.0, "extracted": None}
        row |= {"n_tokens": 2, "finish_reason": "stop", "seed": 0, "task": "t", "prompt": "p", "answer": "x"}
        pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "rollouts.parquet")
        table = records.read_table(tmp_path / "rollouts.parquet", records.Rollout)
        assert table.to_pylist() == [{**row, "censored": False, "error": None}] * 2

    def test_unknown_columns_are_left_out(self, tmp_path):
        one = records.Item("id", "task", 0, "prompt", "answer", "target")
        records.write_table(tmp_path / "items", records.Item, [one])
        table = pq.read_table(tmp_path / "items").append_column("mine", pa.array([1]))
        pq.write_table(table, tmp_path / "items")
        assert records.read_table(tmp_path / "items", records.Item).to_pylist() == [vars(one)]

    # Cut at the start the magic bytes are missing, later the footer or a page.
    @pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
    def test_a_truncated_file_is_named(self, tmp_path, kept):
        path = tmp_path / "items.parquet"
        some = [records.Item(str(n), "task", n, "prompt", "answer", "target") for n in range(50)]
        records.write_table(path, records.Item, some)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(HarnessError, match=r"items\.parquet is not a readable Parquet file"):
            records.read_table(path, records.Item)

    def test_a_damaged_page_is_named(self, tmp_path):
        path = tmp_path / "items.parquet"
        some = [records.Item(str(n), "task", n, "prompt", "answer", "target") for n in range(50)]
        records.write_table(path, records.Item, some)
        whole = path.read_bytes()
        path.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
        with pytest.raises(HarnessError, match=r"items\.parquet is not a readable Parquet file"):
            records.read_table(path, records.Item)

    def test_a_column_of_another_type_is_named(self, tmp_path):
        table = pa.table({**dict.fromkeys(("item_id", "task", "prompt", "answer", "target"), ["a"])})
        pq.write_table(table.append_column("doc_id", pa.array(["first"])), tmp_path / "items")
        with pytest.raises(HarnessError, match="items: the column 'doc_id' holds string"):
            records.read_table(tmp_path / "items", records.Item)

    def test_an_empty_cell_in_a_required_column_is_named(self, tmp_path):
        columns = dict.fromkeys(("item_id", "task", "prompt", "answer"), ["a", "b"])
        table = pa.table({**columns, "doc_id": [0, 1], "target": ["a", None]})
        pq.write_table(table, tmp_path / "items")
        with pytest.raises(HarnessError, match="items: the column 'target' has 1 empty cells"):
            records.read_table(tmp_path / "items", records.Item)

    def test_integers_and_wide_text_of_other_programs_are_read(self, tmp_path):
        some = records.Label("id", 2, 1, 0.5, 0.1, 0.9, "medium", "task")
        table = pa.table({name: [value] for name, value in vars(some).items()})
        table = table.set_column(3, "pass_rate", pa.array([1])).set_column(
            0, "item_id", pa.array(["id"], pa.large_string())
        )
        pq.write_table(table, tmp_path / "labels")
        found = records.read_table(tmp_path / "labels", records.Label)
        assert found.schema == records.schema(records.Label)
        assert found["pass_rate"].to_pylist() == [1.0]


def test_an_answer_that_is_not_text_becomes_json():
    assert records.as_text("goose") == "goose"
    assert records.as_text([1, 2.5]) == "[1, 2.5]"
    assert records.as_text("naïve") == "naïve" and records.as_text(["naïve"]) == '["naïve"]'
