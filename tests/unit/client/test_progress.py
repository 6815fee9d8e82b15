"""Live progress: server-sent events of a job, for those who have its token, and one reader however many watch."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from werkzeug.serving import make_server

from flask_taskworker import BackgroundTaskWorker, Job, current_job
from flask_taskworker.client import progress
from flask_taskworker.errors import ConfigError

pytestmark = pytest.mark.both_databases


@pytest.fixture
def port(app: Flask, task_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server whose ``/progress/<token>`` is the view."""
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    app.secret_key = "secret"
    app.add_url_rule("/progress/<token>", view_func=task_worker.progress_view())
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


class Browser:
    """One connection that reads the stream of a job."""

    def __init__(self, port: int, token: str, **headers: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET /progress/{token} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.type = next((line for line in iter(self._file.readline, b"\r\n") if line.startswith(b"Content-Type")), b"")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """What each event says, until the stream ends."""
        for line in self._file:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def readers() -> int:
    return sum(thread.name == "taskworker-progress" for thread in threading.enumerate())


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets the job end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def job(app: Flask, task_worker: BackgroundTaskWorker, gate: threading.Event) -> Job[Any]:
    """A job that is at 1 of 4 and waits."""

    @task_worker.task
    def work() -> None:
        current_job.progress(1, 4, "first part")
        gate.wait(60)
        current_job.progress(4, 4)

    return work.enqueue()


def test_browser_sees_how_far_a_job_is_until_it_has_ended(
    app: Flask, task_worker: BackgroundTaskWorker, port: int, job: Job[Any], gate: threading.Event
) -> None:
    seen = []
    with Browser(port, task_worker.progress_token(job)) as browser:
        assert browser.status == 200
        assert b"text/event-stream" in browser.type
        for event in browser:
            seen.append(event)
            if event["progress"]:
                gate.set()
    assert seen[-1]["state"] == "succeeded"
    assert {"done": 1, "total": 4, "text": "first part", "percent": 25.0} in [event["progress"] for event in seen]


def test_browser_that_comes_back_after_the_end_is_told_to_stop(
    task_worker: BackgroundTaskWorker, port: int, job: Job[Any], gate: threading.Event
) -> None:
    gate.set()
    job.result(timeout=20)
    token = task_worker.progress_token(job)
    with Browser(port, token) as late:
        assert [event["state"] for event in late] == ["succeeded"]
    with Browser(port, token, Last_Event_ID="succeeded") as again:
        assert again.status == 204


@pytest.mark.sqlite_only
def test_token_of_another_signs_nothing(
    app: Flask, task_worker: BackgroundTaskWorker, port: int, job: Job[Any]
) -> None:
    token = task_worker.progress_token(job)
    app.secret_key = "another"
    for wrong in (token, job.uid, f"{token}x"):
        with Browser(port, wrong) as browser:
            assert browser.status == 404


def test_any_number_of_browsers_have_one_reader_that_ends_with_the_last(
    task_worker: BackgroundTaskWorker, port: int, job: Job[Any], gate: threading.Event
) -> None:
    token = task_worker.progress_token(job)
    with ExitStack() as stack:
        browsers = [stack.enter_context(Browser(port, token)) for _ in range(40)]
        streams = [iter(browser) for browser in browsers]
        assert all(next(stream)["state"] for stream in streams)
        assert readers() == 1
        gate.set()
        assert {list(stream)[-1]["state"] for stream in streams} == {"succeeded"}
    for thread in threading.enumerate():
        if thread.name == "taskworker-progress":
            thread.join(20)
    assert readers() == 0


@pytest.mark.sqlite_only
def test_token_needs_a_secret_key(task_worker: BackgroundTaskWorker, job: Job[Any]) -> None:
    with pytest.raises(ConfigError, match="SECRET_KEY"):
        task_worker.progress_token(job)
