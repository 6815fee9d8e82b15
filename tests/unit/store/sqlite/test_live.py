"""The directory of the living: what a datagram tells, and when it is not to be believed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from pathlib import Path

import pytest

from flask_taskworker.errors import NotSupported
from flask_taskworker.store.sqlite.live import LONGEST_WORDS, LiveDirectory, LivePresence

Heard = list[Collection[tuple[str, str]]]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.db"
    path.touch(0o600)
    return path


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


# -- whose it is -------------------------------------------------------------------------------------------------------

requires_modes = pytest.mark.skipif(os.name == "nt", reason="no such modes")
as_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")


def refuse(database: Path) -> None:
    with pytest.raises(NotSupported, match=r"Other users on this machine may write to .*jobs\.db-live"):
        LivePresence(LiveDirectory(database), "abc123")


@requires_modes
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_worker_refuses_a_directory_in_which_others_may_take_its_lock_away(database: Path, mode: int) -> None:
    live = Path(f"{database}-live")
    live.mkdir()
    live.chmod(mode)
    refuse(database)
    live.rmdir()
    LivePresence(LiveDirectory(database), "abc123").close()


@as_root
def test_worker_refuses_a_directory_that_another_user_has_made_beforehand(database: Path) -> None:
    live = Path(f"{database}-live")
    live.mkdir(0o700)
    os.chown(live, 4_242, -1)
    refuse(database)
    # Who owns the database decides what runs in any case.
    os.chown(database, 4_242, -1)
    LivePresence(LiveDirectory(database), "abc123").close()


@as_root
def test_worker_refuses_a_link_that_another_user_could_point_elsewhere(database: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    live = Path(f"{database}-live")
    live.symlink_to(tmp_path / "real")
    os.lchown(live, 4_242, -1)
    refuse(database)
