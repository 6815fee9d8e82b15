"""The simulated disk keeps what was synced, and may lose the rest."""

from __future__ import annotations

import random

from tests.system.chaos.powercut import SYNC, TRUNCATE, UNLINK, WRITE, Disk, Record, packed, parse

CHANCE = random.Random(7)


def disk(*records: Record) -> Disk:
    made = Disk()
    for record in records:
        made.apply(record)
    return made


def write(offset: int, data: bytes, path: str = "a") -> Record:
    return Record(WRITE, path, offset, data)


def sync(path: str = "a") -> Record:
    return Record(SYNC, path, 0, b"")


def test_log_is_read_as_it_was_written() -> None:
    records = [write(3, b"xyz"), sync(), Record(TRUNCATE, "ä", 9, b"")]
    assert parse(b"".join(map(packed, records))) == records


def test_what_was_synced_stays_and_the_rest_is_lost() -> None:
    assert disk(write(0, b"one"), sync(), write(3, b"two")).after_cut("synced", CHANCE) == {"a": b"one"}


def test_sync_of_one_file_says_nothing_of_another() -> None:
    found = disk(write(0, b"one"), write(0, b"two", "b"), sync("b")).after_cut("synced", CHANCE)
    assert found == {"a": b"", "b": b"two"}


def test_some_of_the_writes_after_the_sync_may_be_there_without_those_before() -> None:
    one = disk(write(0, b"0000"), sync(), write(0, b"1"), write(1, b"2"))
    found = {one.after_cut("some", CHANCE)["a"] for _ in range(50)}
    assert found == {b"0000", b"1000", b"0200", b"1200"}


def test_last_write_may_be_torn_and_those_before_it_are_whole() -> None:
    one = disk(write(0, b"whole"), write(5, b"torn"))
    found = {one.after_cut("torn", CHANCE)["a"] for _ in range(50)}
    assert found == {b"whole", b"wholet", b"wholeto", b"wholetor", b"wholetorn"}


def test_gaps_are_zeros_and_a_truncation_needs_a_sync_too() -> None:
    cut = disk(write(2, b"x"), sync(), Record(TRUNCATE, "a", 1, b""))
    assert cut.after_cut("synced", CHANCE) == {"a": b"\0\0x"}
    cut.apply(sync())
    assert cut.after_cut("synced", CHANCE) == {"a": b"\0"}


def test_removal_is_certain_once_the_folder_was_synced() -> None:
    cut = disk(write(0, b"x", "f/a"), sync("f/a"), Record(UNLINK, "f/a", 0, b""))
    assert cut.after_cut("synced", CHANCE) == {"f/a": b"x"}
    cut.apply(sync("f"))
    assert cut.after_cut("synced", CHANCE) == {"f/a": b""}


def test_file_that_takes_the_place_of_a_removed_one_begins_empty() -> None:
    cut = disk(write(0, b"old"), sync(), Record(UNLINK, "a", 0, b""), write(1, b"n"), sync())
    assert cut.after_cut("synced", CHANCE) == {"a": b"\0n"}
