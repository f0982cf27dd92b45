"""Reading a table in chunks gives the same columns and the same errors as reading it whole."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcsft_harness import records
from dcsft_harness.artifacts.storage import scan
from dcsft_harness.errors import HarnessError

NAMES = [field.name for field in records.schema(records.Rollout)]
ROW = records.Rollout("id", 0, "said", 1.0, None, 2, "stop", 0, "task", "prompt", "answer")


def whole(count=5):
    rows = [vars(ROW) | {"sample_index": number} for number in range(count)]
    return pa.Table.from_pylist(rows, schema=records.schema(records.Rollout))


def read(path, names=NAMES):
    with records.readable(path):
        return scan(path, records.Rollout, names).to_table(use_threads=False)


def both_refuse(path, match, names=NAMES):
    for way in (lambda: read(path, names), lambda: records.read_table(path, records.Rollout)):
        with pytest.raises(HarnessError, match=match):
            way()


def test_columns_are_read_as_they_were_written(tmp_path):
    pq.write_table(whole(), tmp_path / "rollouts", row_group_size=2)
    assert read(tmp_path / "rollouts").cast(whole().schema) == whole()
    assert read(tmp_path / "rollouts", ["score", "item_id"]).column_names == ["score", "item_id"]


def test_tables_from_other_programs_are_read_in_our_types(tmp_path):
    other = whole().set_column(0, "item_id", pa.array(["id"] * 5, pa.large_string()))
    other = other.set_column(3, "score", pa.array([1] * 5, pa.int8())).drop_columns(["censored", "error"])
    other = other.append_column("mine", pa.array([{"a": 1, "score": 2}] * 5)).select(
        ["mine", *other.column_names]
    )
    pq.write_table(other, tmp_path / "rollouts")
    assert read(tmp_path / "rollouts").cast(whole().schema) == whole()


def test_chunked_reading_refuses_the_same_tables_as_whole_reading(tmp_path):
    path = tmp_path / "rollouts"
    both_refuse(path, "rollouts does not exist")
    pq.write_table(whole().drop_columns("score"), path)
    both_refuse(path, "rollouts lacks the column 'score'")
    pq.write_table(whole().set_column(8, "task", pa.array([1] * 5)), path)
    both_refuse(path, "the column 'task' holds int64, not string")
    path.write_text("no table")
    both_refuse(path, "rollouts is not a readable Parquet file")


# Columns that are not requested are checked too; without statistics this means reading them.
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("names", [["item_id"], ["answer"]])
def test_empty_cells_are_counted_over_all_row_groups(tmp_path, statistics, names):
    answers = pa.array(["a", None, "a", None, None])
    table = whole().cast(pa.schema([field.with_nullable(True) for field in whole().schema]))
    table = table.set_column(10, "answer", answers)
    pq.write_table(table, tmp_path / "rollouts", row_group_size=2, write_statistics=statistics)
    both_refuse(tmp_path / "rollouts", "the column 'answer' has 3 empty cells", names)


def test_fractions_in_an_integer_column_are_found_even_when_it_is_not_requested(tmp_path):
    pq.write_table(whole().set_column(5, "n_tokens", pa.array([1, 2, 3, 4, 5.5])), tmp_path / "rollouts")
    both_refuse(tmp_path / "rollouts", "the column 'n_tokens' holds double, not int64", ["item_id"])


def test_a_damaged_page_is_named(tmp_path):
    path = tmp_path / "rollouts"
    pq.write_table(whole(), path)
    stored = path.read_bytes()
    path.write_bytes(stored[:4] + b"\xff" * 60 + stored[64:])
    both_refuse(path, "rollouts is not a readable Parquet file", ["item_id"])
