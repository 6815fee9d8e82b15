"""Live progress for browsers: server-sent events about one job, and one reader a process however many watch.

The stream follows the HTML standard, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import Any

from flask import Flask
from itsdangerous import BadSignature, URLSafeSerializer

from ..core.jobs import Job
from ..core.loggers import Logger, get_logger
from ..core.rows import JobState
from ..errors import ConfigError, StoreError

log: Logger = get_logger("jobs")

PAUSE = 1.0
"""Seconds between two looks at the database."""
SIGN_OF_LIFE = 15.0
"""Seconds without news after which a comment is sent, so that a server notices that a browser has gone."""
ENDED = frozenset(state.value for state in JobState if state.finished)
_SALT = "flask_taskworker.progress"


class ProgressFeed:
    """The news of watched jobs. One thread reads for all who watch, and ends with the last of them.

    Safe from any thread.
    """

    def __init__(self, read: Callable[[Sequence[str]], list[Job[Any]]]) -> None:
        """*read* gives the jobs with these uids, as far as there are any."""
        self._read = read
        self._lock = threading.Lock()
        self._watchers: dict[str, list[SimpleQueue[str]]] = {}
        self._known: dict[str, str] = {}
        """The last event of each job that is watched."""
        self._is_reading = False

    def watch(self, uid: str) -> Iterator[str]:
        """The text of the stream: how the job is now, and after each change, until it has ended or is gone."""
        news: SimpleQueue[str] = SimpleQueue()
        with self._lock:
            self._watchers.setdefault(uid, []).append(news)
            if uid in self._known:
                news.put(self._known[uid])
            if not self._is_reading:
                threading.Thread(target=self._serve, name="taskworker-progress", daemon=True).start()
                self._is_reading = True
        try:
            while True:
                try:
                    event = news.get(timeout=SIGN_OF_LIFE)
                except Empty:
                    event = ":\n\n"
                if event:
                    yield event
                if not event or event.startswith(_ENDED_EVENTS):
                    return
        finally:
            with self._lock:
                self._watchers[uid].remove(news)
                if not self._watchers[uid]:
                    del self._watchers[uid]
                    self._known.pop(uid, None)

    def _serve(self) -> None:
        while True:
            with self._lock:
                asked = list(self._watchers)
                self._is_reading = bool(asked)
            if not asked:
                return
            try:
                found = {job.uid: _event(job) for job in self._read(asked)}
            except StoreError as error:
                log.warning("the progress of jobs that browsers watch cannot be read: %s", error)
            else:
                self._tell(asked, found)
            time.sleep(PAUSE)

    def _tell(self, asked: Sequence[str], found: dict[str, str]) -> None:
        with self._lock:
            for uid in asked:
                event = found.get(uid, "")
                # A job that was never there may still be committed.
                if event != self._known.get(uid, "") and uid in self._watchers:
                    self._known[uid] = event
                    for news in self._watchers[uid]:
                        news.put(event)


def token_for(app: Flask, uid: str) -> str:
    """The signed uid of a job, for a URL. Raises ConfigError without ``SECRET_KEY``."""
    return _serializer(app).dumps(uid)


def uid_of(app: Flask, token: str) -> str | None:
    """The uid that *token* holds; None if this app has not signed it. Raises ConfigError without ``SECRET_KEY``."""
    with suppress(BadSignature):
        uid: str = _serializer(app).loads(token)
        return uid
    return None


def _serializer(app: Flask) -> URLSafeSerializer:
    if not app.secret_key:
        raise ConfigError("A token for the progress of a job is signed with SECRET_KEY. Give the app one.")
    return URLSafeSerializer(app.secret_key, salt=_SALT)


def _event(job: Job[Any]) -> str:
    """The state is the event's id: a browser that connects again names the last one."""
    progress = job.progress
    shown = None if progress is None else {**asdict(progress), "percent": progress.percent}
    data = {"state": job.state, "attempt": job.attempt, "progress": shown}
    return f"id: {job.state}\ndata: {json.dumps(data)}\n\n"


_ENDED_EVENTS = tuple(f"id: {state}\n" for state in ENDED)
