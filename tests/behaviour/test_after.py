"""Jobs that wait for other jobs, as a running worker has them. On every database alike."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from flask_taskworker import BackgroundTaskWorker, Job, JobCancelled, JobState, Limit, current_job, signals
from flask_taskworker.errors import ArgumentsError, NotAccepted
from flask_taskworker.ops.operations import Operations
from flask_taskworker.store import flows
from tests.support.postgres import connect
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


class Graph:
    """A task that notes when it ran, and fails or waits on request."""

    def __init__(self, task_worker: BackgroundTaskWorker) -> None:
        self.task_worker = task_worker
        self.order: list[str] = []
        self.broken: set[str] = set()
        self.gates: dict[str, threading.Event] = {}

        @task_worker.task
        def node(name: str) -> str:
            if name in self.gates:
                self.gates[name].wait(20)
            self.order.append(name)
            if name in self.broken:
                raise ValueError(name)
            return name

        self.node = node

    def gate(self, name: str) -> threading.Event:
        return self.gates.setdefault(name, threading.Event())


@pytest.fixture
def graph(task_worker: BackgroundTaskWorker) -> Graph:
    return Graph(task_worker)


def test_chain_runs_in_order(graph: Graph) -> None:
    gate = graph.gate("first")
    job = first = graph.node.enqueue("first")
    for name in ("second", "third"):
        job = graph.node.using(after=job).enqueue(name)
    assert job.state is JobState.SCHEDULED
    assert job.run_at is None
    gate.set()
    assert job.result(timeout=20) == "third"
    assert graph.order == ["first", "second", "third"]
    assert first.refresh().state is JobState.SUCCEEDED


def test_fan_out_and_fan_in(graph: Graph) -> None:
    gate = graph.gate("first")
    first = graph.node.enqueue("first")
    both = graph.node.using(after=first).enqueue_many([("left",), ("right",)])
    last = graph.node.using(after=both).enqueue("last")
    gate.set()
    last.result(timeout=20)
    assert graph.order[0] == "first"
    assert graph.order[-1] == "last"
    assert len(graph.order) == 4


def test_results_of_parents_are_asked_for(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def number(value: int) -> int:
        return value

    @task_worker.task
    def add() -> int:
        return sum(parent.result() for parent in current_job.parents)

    parents = number.enqueue_many([(i,) for i in range(10)])
    assert add.using(after=parents).enqueue().result(timeout=20) == 45


def test_parent_that_has_ended_is_not_waited_for(graph: Graph) -> None:
    graph.broken = {"bad"}
    good, bad = graph.node.enqueue("good"), graph.node.enqueue("bad")
    good.result(timeout=20)
    wait_for(lambda: bad.refresh().state is JobState.FAILED)
    child = graph.node.using(after=good).enqueue("child")
    assert child.state is not JobState.SCHEDULED
    assert child.result(timeout=20) == "child"
    assert graph.node.using(after=bad, when="ended").enqueue("any").result(timeout=20) == "any"
    assert graph.node.using(after=bad, when="failed").enqueue("alarm").result(timeout=20) == "alarm"
    assert graph.node.using(after=bad).enqueue("no").state is JobState.CANCELLED
    no = graph.node.using(after=[good, bad]).enqueue_many([("no",), ("no",)])
    assert {job.state for job in no} == {JobState.CANCELLED}
    assert graph.node.using(after=good, when="failed").enqueue("no").state is JobState.CANCELLED


def test_failure_cancels_what_waits_and_theirs_in_turn(graph: Graph) -> None:
    gate = graph.gate("first")
    graph.broken = {"first"}
    first = graph.node.enqueue("first")
    child = graph.node.using(after=first).enqueue("child")
    grandchild = graph.node.using(after=child).enqueue("grandchild")
    alarm = graph.node.using(after=first, when="failed").enqueue("alarm")
    tidy = graph.node.using(after=grandchild, when="ended").enqueue("tidy")
    told: list[int] = []
    receiver = lambda _, job, **__: told.append(job.id)  # noqa: E731
    signals.job_cancelled.connect(receiver)
    gate.set()
    with pytest.raises(JobCancelled, match=f"Job {first.id} failed"):
        child.result(timeout=20)
    with pytest.raises(JobCancelled, match=f"Job {child.id} was cancelled"):
        grandchild.result(timeout=20)
    assert alarm.result(timeout=20) == "alarm"
    assert tidy.result(timeout=20) == "tidy"
    assert set(graph.order) == {"first", "alarm", "tidy"}
    wait_for(lambda: sorted(told) == [child.id, grandchild.id])


def test_cancelled_parent_cancels_what_waits_for_it(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "PIECE", 20)
    first = graph.node.using(delay=3600).enqueue("first")
    chain = [graph.node.using(after=first).enqueue("child")]
    for _ in range(48):
        chain.append(graph.node.using(after=chain[-1]).enqueue("child"))
    alarm = graph.node.using(after=first, when="failed").enqueue("alarm")
    first.cancel()
    assert {job.refresh().state for job in (*chain, alarm)} == {JobState.CANCELLED}


def test_retry_brings_the_tail_back(graph: Graph) -> None:
    graph.broken = {"first"}
    first = graph.node.enqueue("first")
    child = graph.node.using(after=first).enqueue("child")
    last = graph.node.using(after=[first, child]).enqueue("last")
    wait_for(lambda: last.refresh().state is JobState.CANCELLED)
    graph.broken.clear()
    gate = graph.gate("first")
    assert first.retry(following=True)
    assert last.refresh().state is JobState.SCHEDULED
    gate.set()
    last.result(timeout=20)
    assert graph.order[-3:] == ["first", "child", "last"]


def test_job_cancelled_while_it_waited_waits_again_when_it_is_retried(graph: Graph) -> None:
    gate = graph.gate("first")
    first = graph.node.enqueue("first")
    child = graph.node.using(after=first).enqueue("child")
    assert child.cancel()
    assert child.retry()
    assert child.refresh().state is JobState.SCHEDULED
    gate.set()
    child.result(timeout=20)
    assert graph.order == ["first", "child"]


def test_retry_of_a_job_waits_for_no_ending_of_a_parent_that_waits_for_it(
    app: Flask, graph: Graph, rows: Rows, driver: str
) -> None:
    if driver == "sqlite":
        return  # one writer at a time
    gate = graph.gate("first")
    first = graph.node.enqueue("first")
    child = graph.node.using(after=first).enqueue("child")
    assert child.cancel()
    url = app.extensions["taskworker"].config.database_uri.render_as_string(hide_password=False)
    with connect(url) as ending, ending.transaction():
        # As an ending does it: the parent's row first, then the child's.
        ending.execute("SET LOCAL lock_timeout = '10s'")
        ending.execute("SELECT 1 FROM taskworker_job WHERE id = %s FOR UPDATE", (first.id,))
        retry = threading.Thread(target=child.retry)
        retry.start()
        wait_for(
            lambda: rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%SHARE%%'")
        )
        ending.execute("UPDATE taskworker_job SET priority = priority WHERE id = %s", (child.id,))
    retry.join()
    gate.set()
    assert child.result(timeout=20) == "child"


def test_a_person_overrules_how_a_parent_has_ended(graph: Graph) -> None:
    graph.broken = {"first"}
    child = graph.node.using(after=graph.node.enqueue("first")).enqueue("child")
    wait_for(lambda: child.refresh().state is JobState.CANCELLED)
    assert child.retry()
    assert child.result(timeout=20) == "child"


def test_own_delay_and_priority_and_limit_count_after_the_parents(graph: Graph) -> None:
    @graph.task_worker.task(limit=Limit("one", running=1))
    def limited() -> int:
        return 1

    gate = graph.gate("first")
    first = graph.node.enqueue("first")
    later = graph.node.using(after=first, delay=3600).enqueue("later")
    held = limited.using(after=first, priority=3).enqueue()
    gate.set()
    assert held.result(timeout=20) == 1
    wait_for(lambda: later.refresh().run_at is not None)
    assert later.state is JobState.SCHEDULED
    assert later.created_at is not None
    assert later.run_at is not None
    assert (later.run_at - later.created_at).total_seconds() == 3600


def test_job_waits_for_a_batch(graph: Graph) -> None:
    gate = graph.gate("a")
    with graph.task_worker.batch("letters") as batch:
        graph.node.using(batch=batch).enqueue_many([("a",), ("b",)])
        child = graph.node.using(after=batch).enqueue("child")
    alarm = graph.node.using(after=batch, when="failed").enqueue("alarm")
    assert child.refresh().state is JobState.SCHEDULED
    gate.set()
    child.result(timeout=20)
    assert graph.order[-1] == "child"
    with pytest.raises(JobCancelled, match=f"Batch {batch.id}"):
        alarm.result(timeout=20)
    assert graph.node.using(after=batch).enqueue("late").result(timeout=20) == "late"


def test_member_of_a_batch_waits_for_another(graph: Graph) -> None:
    graph.broken = {"a"}
    with graph.task_worker.batch("letters") as batch:
        first = graph.node.using(batch=batch).enqueue("a")
        graph.node.using(batch=batch, after=first).enqueue_many([(str(i),) for i in range(600)])
    assert batch.wait(timeout=20) == (601, 0, 1, 600)


def test_graph_in_a_session_is_there_with_its_commit(app: Flask, graph: Graph) -> None:
    engine = create_engine(app.extensions["taskworker"].config.database_uri)
    with Session(engine) as session:
        first = graph.node.using(session=session).enqueue("first")
        child = graph.node.using(session=session, after=first).enqueue("child")
        session.rollback()
        first = graph.node.using(session=session).enqueue("first")
        child = graph.node.using(session=session, after=first).enqueue("child")
        session.commit()
    assert child.result(timeout=20) == "child"
    assert graph.order == ["first", "child"]
    engine.dispose()


def test_run_now_leaves_jobs_alone_that_wait(graph: Graph, app: Flask) -> None:
    first = graph.node.using(delay=3600).enqueue("first")
    child = graph.node.using(after=first).enqueue("child")
    state = app.extensions["taskworker"]
    operations = Operations(app, state.client, state.registry, who="me")
    assert not operations.act("run", child.id)
    assert operations.act("discard", child.id)
    assert operations.act("discard", first.id)
    assert operations.act("restore", child.id)
    assert child.refresh().state is JobState.CANCELLED
    assert operations.act("restore", first.id)
    assert operations.act("retry", child.id)
    assert child.refresh().state is JobState.SCHEDULED
    assert operations.act("run", first.id)
    child.result(timeout=20)
    assert graph.order == ["first", "child"]


@pytest.mark.timing(cleaning_interval=0.05, prune_interval=0.1)
def test_parents_are_kept_for_what_waits_for_them(app: Flask, make_worker: Any, rows: Rows) -> None:
    app.config["TASKER_KEEP_SUCCEEDED"] = 0
    graph = Graph(make_worker(app))
    gate = graph.gate("slow")
    first = graph.node.enqueue("first")
    slow = graph.node.enqueue("slow")
    last = _collect(graph).using(after=[first, slow]).enqueue()
    wait_for(lambda: "first" in graph.order)
    other = graph.node.enqueue("other")
    wait_for(lambda: not rows("SELECT 1 FROM taskworker_job WHERE id = ?", other.id))
    gate.set()
    wait_for(lambda: "first+slow" in graph.order)
    wait_for(lambda: not rows("SELECT 1 FROM taskworker_job WHERE id IN (?, ?)", first.id, last.id))
    assert rows("SELECT 1 FROM taskworker_edge UNION ALL SELECT 1 FROM taskworker_wait") == []


def _collect(graph: Graph) -> Any:
    @graph.task_worker.task
    def collect() -> None:
        graph.order.append("+".join(parent.result() for parent in current_job.parents))

    return collect


def test_misuse_is_refused_and_stores_nothing(graph: Graph, rows: Rows) -> None:
    for wrong in ({"after": 7}, {"after": ["first"]}, {"when": "ended"}):
        with pytest.raises(ArgumentsError):
            graph.node.using(**wrong)
    job = graph.node.using(delay=3600).enqueue("first")
    with pytest.raises(ArgumentsError, match="when"):
        graph.node.using(after=job, when="done")  # type: ignore[arg-type]
    rows("DELETE FROM taskworker_job")
    with pytest.raises(NotAccepted, match=f"Job {job.id} is not there"):
        graph.node.using(after=job).enqueue("child")
    assert rows("SELECT count(*) FROM taskworker_job") == [(0,)]


def test_random_graphs_run_in_their_order_and_end(graph: Graph) -> None:
    rand = random.Random(7)
    for turn in range(8):
        jobs: list[Job[str]] = []
        parents: dict[str, list[int]] = {}
        for number in range(rand.randint(2, 15)):
            some = rand.sample(range(number), min(number, rand.randint(0, 3)))
            name = f"{turn}:{number}"
            parents[name] = some
            if rand.random() < 0.1:
                graph.broken.add(name)
            jobs.append(graph.node.using(after=[jobs[i] for i in some] or None).enqueue(name))
        wait_for(lambda jobs=jobs: all(job.refresh().state.finished for job in jobs))  # type: ignore[misc]
        for i, (name, some) in enumerate(parents.items()):
            ran = [graph.order.index(f"{turn}:{p}") for p in some if f"{turn}:{p}" in graph.order]
            well = all(jobs[p].state is JobState.SUCCEEDED for p in some)
            assert (name in graph.order) == well
            assert not well or all(place < graph.order.index(name) for place in ran)
            assert jobs[i].state is not JobState.SUCCEEDED or well
