"""Records that were written completely are read; anything else in the file is recognized as damage."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.artifacts import disk

KEY = b"run"
ROWS = [{"item_id": f"{number:032x}", "response": "naïve\n" * number, "n": number} for number in range(8)]


def write(path, rows=ROWS, key=KEY):
    opened = disk.Journal(path, key, disk.read_records(path, key).whole_bytes)
    for row in rows:
        opened.append([row])
    opened.close()
    return path


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_records_are_read_in_the_order_of_writing(tmp_path):
    found = disk.read_records(write(tmp_path / "s"), KEY)
    assert (found.records, found.damaged, found.torn_bytes) == (ROWS, [], 0)
    assert found.whole_bytes == (tmp_path / "s").stat().st_size


def test_a_missing_or_empty_file_holds_nothing(tmp_path):
    assert disk.read_records(tmp_path / "s", KEY) == disk.Found()
    (tmp_path / "s").touch()
    assert disk.read_records(tmp_path / "s", KEY) == disk.Found()


def test_a_file_cut_at_any_byte_keeps_the_complete_records_and_can_be_continued(tmp_path):
    path = write(tmp_path / "s", ROWS[:3])
    whole = path.read_bytes()
    ends = [0]
    for line in lines(path):
        ends.append(ends[-1] + len(line))
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        found = disk.read_records(path, KEY)
        before = sum(end <= at for end in ends) - 1
        assert (found.records, found.damaged) == (ROWS[:before], [])
        assert (found.whole_bytes, found.torn_bytes) == (ends[before], at - ends[before])
    write(path, ROWS[2:])  # the last cut was in the last byte
    assert path.read_bytes() == whole + b"".join(disk.encode_record(row, KEY) for row in ROWS[3:])


@given(st.data())
def test_a_flipped_bit_loses_only_its_own_record(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("shard") / "s")
    whole = bytearray(path.read_bytes())
    ends = [0]
    for line in lines(path):
        ends.append(ends[-1] + len(line))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(whole))
    hit = sum(end <= bit // 8 for end in ends) - 1
    # The end of a line belongs to both its neighbors.
    lost = {hit, hit + 1} if bit // 8 == ends[hit + 1] - 1 else {hit}
    found = disk.read_records(path, KEY)
    assert found.records == [row for number, row in enumerate(ROWS) if number not in lost]
    assert found.damaged or found.torn_bytes


def test_two_interleaved_writers_lose_only_the_mixed_records(tmp_path):
    first, second = (disk.encode_record(row, KEY) for row in ROWS[:2])
    mixed = first[:40] + second[:40] + first[40:] + second[40:]
    path = tmp_path / "s"
    path.write_bytes(disk.encode_record(ROWS[2], KEY) + mixed + disk.encode_record(ROWS[3], KEY))
    found = disk.read_records(path, KEY)
    assert (found.records, found.damaged) == ([ROWS[2], ROWS[3]], [2, 3])


def test_records_of_another_run_are_not_read(tmp_path):
    path = write(tmp_path / "s", ROWS[:2])
    with path.open("ab") as file:
        file.write(disk.encode_record(ROWS[2], b"another run"))
    found = disk.read_records(path, KEY)
    assert (found.records, found.damaged) == (ROWS[:2], [3])


def test_zeros_after_a_power_failure_are_cut_off(tmp_path):
    path = write(tmp_path / "s", ROWS[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    assert disk.read_records(path, KEY).torn_bytes == 4096
    write(path, [])
    assert path.read_bytes() == whole


def test_a_write_that_fails_half_way_leaves_the_file_unchanged(tmp_path, monkeypatch):
    path = write(tmp_path / "s", ROWS[:2])
    before = path.read_bytes()
    opened = disk.Journal(path, KEY, len(before))
    write_some = os.write

    def full(handle, content):
        if len(content) < 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_some(handle, bytes(content)[:50])

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            opened.append(ROWS[2:4])
    assert path.read_bytes() == before
    opened.append(ROWS[2:])
    opened.close()
    assert disk.read_records(path, KEY).records == ROWS


def test_batches_of_less_than_a_second_wait_for_the_disk_together(tmp_path, monkeypatch):
    now, synced = 100.0, []
    monkeypatch.setattr(disk.time, "monotonic", lambda: now)
    opened = disk.Journal(tmp_path / "s", KEY, 0, sync_every=1.0)
    monkeypatch.setattr(disk.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    for number, row in enumerate(ROWS):
        now = 100.0 + 0.4 * number
        opened.append([row])
        assert disk.read_records(tmp_path / "s", KEY).records == ROWS[: number + 1]
    opened.close()
    ends = [sum(len(disk.encode_record(row, KEY)) for row in ROWS[:count]) for count in (4, 7, 8)]
    assert synced == ends
