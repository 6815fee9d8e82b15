"""Lists, groups and figures for pages and commands: right, and bounded whatever lies in the table."""

from __future__ import annotations

from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.filters import JobFilter
from flask_taskworker.steering import Steering, names_of
from flask_taskworker.store.browse import Browser


def test_smoke(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    @idle_worker.task
    def add(x: int, y: int = 1) -> int:
        return x + y

    jobs = add.enqueue_many([(1, 2), (3, 4), (5, 6)])
    later = add.using(delay=60).enqueue(7)
    state = app.extensions["taskworker"]
    browser = Browser(state.store)
    steer = Steering(app, state.client, idle_worker.registry, who="me")
    page = browser.jobs()
    assert [row.record.id for row in page.rows] == [later.id, *(j.id for j in reversed(jobs))]
    names = names_of(idle_worker.registry)
    for text in (
        "state:ready",
        "state:scheduled",
        "state:failed",
        "state:running",
        "state:retrying",
        "task:*add",
        "state:succeeded,ready",
        "group:abc",
        "schedule:x",
        "hidden:yes",
        "uid:x unique:k attempts:1 after:-1h before:2099-01-01 worker:w queue:default id:1",
    ):
        chosen = JobFilter.parse(text, state.store.clock())
        browser.jobs(chosen, limit=2, names=names)
        browser.count(chosen, names=names)
    assert browser.jobs(JobFilter.parse("args.x:3", 0), names=names).rows[0].record.id == jobs[1].id
    print(browser.state_counts(), browser.failures(0), browser.queues(), browser.schedules(), browser.schedule_runs())
    browser.mails()
    browser.mails(address="x")
    browser.audit()
    browser.oldest_ready_at()
    browser.tasks_waiting()
    browser.figures(0, step=60000, by="task")
    browser.running()
    browser.workers()
    browser.jobs_by_id([1])
    assert browser.job(later.id).args
    assert list(steer.act_on_all("discard", JobFilter.parse("state:ready", 0))) == [3]
    assert browser.count(JobFilter.parse("hidden:yes", 0)) == 3
    assert list(steer.act_on_all("restore", JobFilter.parse("hidden:yes", 0))) == [3]
    assert steer.act("run", later.id)
    assert list(steer.act_on_all("cancel", JobFilter())) == [4]
    assert list(steer.act_on_all("retry", JobFilter())) == [4]
    steer.pause_queue("default")
    assert [(q.name, q.paused, q.ready) for q in browser.queues()] == [("default", True, 4)]
    assert steer.resume_queue("default")
    print(browser.audit())
