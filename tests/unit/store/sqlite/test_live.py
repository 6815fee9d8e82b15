"""The directory of the living: what a datagram tells, and when it is not to be believed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from flask_taskworker.store.sqlite.live import LONGEST_WORDS, LiveDirectory, LivePresence

Heard = list[Collection[tuple[str, str]]]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def hear(database: Path, *told: Collection[tuple[str, str]]) -> Heard:
    """What a worker of another process hears when all this is sent before it listens."""

    async def listen() -> Heard:
        other_process = LiveDirectory(database)
        ear = LivePresence(LiveDirectory(database), "abc123")
        try:
            for ready in told:
                other_process.wake_others(ready)
            heard: Heard = []
            something = asyncio.Event()
            ear.listen(asyncio.get_running_loop(), lambda ready: (heard.append(ready), something.set()))  # type: ignore[func-returns-value]
            await asyncio.wait_for(something.wait(), 20)
            return heard
        finally:
            ear.close()
            other_process.close()

    return asyncio.run(listen())


def test_datagram_names_the_queues_that_have_work(database: Path) -> None:
    assert hear(database, {("mail", "async"), ("a b:ü", "sync")}) == [{("mail", "async"), ("a b:ü", "sync")}]


def test_datagrams_that_wait_are_heard_together(database: Path) -> None:
    assert hear(database, {("a", "sync")}, {("b", "async")}) == [{("a", "sync"), ("b", "async")}]


def test_empty_datagram_says_to_look(database: Path) -> None:
    assert hear(database, ()) == [()]
    assert hear(database, {("a", "sync")}, ()) == [()]


def test_more_queues_than_a_datagram_takes_are_left_to_a_look(database: Path) -> None:
    assert hear(database, {("q" * LONGEST_WORDS, "sync")}) == [()]


def test_datagrams_that_overflow_the_socket_are_not_believed(database: Path) -> None:
    assert hear(database, *({(f"q{i}", "sync")} for i in range(200))) == [()]


def test_bytes_that_overflow_the_socket_are_not_believed(database: Path) -> None:
    long = [("q" * 400 + str(i), "sync") for i in range(3)]
    assert hear(database, *([ready] for ready in long[:2])) == [set(long[:2])]
    assert hear(database, *([ready] for ready in long)) == [()]


def test_words_that_are_not_ours_say_to_look(database: Path) -> None:
    assert hear(database, {("", "sync")}) == [()]
    assert hear(database, {("q", "wood")}) == [()]
