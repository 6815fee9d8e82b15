"""Find problems of an installation and say how to fix them: for ``flask tasks doctor`` and the System page.

Each check only looks, in a bounded time, and fails alone. The tables are neither created nor upgraded here.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from flask import Flask
from sqlalchemy.engine import URL

from ..client.health import LATE_PRUNING_MS, name_of
from ..core.mail_config import MailConfig
from ..core.words import counted, spoken
from ..errors import NotSupported, SchemaError, StoreError
from ..mail.errors import MailError
from ..mail.queue.queue import QUEUE as MAIL_QUEUE
from ..mail.smtp.connection import SMTPConnection
from ..mail.smtp.hosts import server_of
from ..state import AppState
from ..store.migrations import newest, refuse_newer
from .browse import Browser
from .limits import limit_views
from .overview import Overview
from .views import schedule_view

Level = Literal["ok", "warning", "error"]

FIXED_SQLITE = (3, 51, 3)
"""Before it, two checkpoints at once may corrupt a file (sqlite.org/wal.html, "the WAL-reset bug")."""

LITTLE_SPACE = 1_000_000_000
NO_SPACE = 100_000_000
LONG_LOG = 64_000_000
"""Bytes."""

SKEW_MS = 2_000
LATE_BEAT_MS = 5_000
LONG_OPEN_MS = 3_600_000

_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"),
        *("virtiofs", "vboxsf", "fuse.vmhgfs-fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"),
    )
)
_MOUNTS = Path("/proc/self/mounts")
_MASKED = "•••"
_KEYS = {"suppress": "suppress_send"}
"""Fields that are not called as their keys."""
_SHOWN = 5
_BATCHES = 1_000
"""Batches that are looked at: the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check has found."""

    level: Level
    text: str
    fix: str | None = None
    """What to do about it; None where nothing is to be done."""
    cause: Literal["no tables", "schema"] | None = None
    """Whether the tables are missing, or do not fit this version."""


def _ok(text: str) -> Finding:
    return Finding(level="ok", text=text)


def _warning(text: str, fix: str) -> Finding:
    return Finding(level="warning", text=text, fix=fix)


def _error(text: str, fix: str, cause: Literal["no tables", "schema"] | None = None) -> Finding:
    return Finding(level="error", text=text, fix=fix, cause=cause)


def findings(app: Flask, *, smtp: bool = True, timeout: float = 3.0) -> list[Finding]:
    """What is right and wrong with *app*'s tasks and mail.

    *smtp*: also connect to the mail server, which takes up to *timeout* seconds. Safe from any thread. Never raises
    for what it finds.
    """
    state: AppState = app.extensions["taskworker"]
    schema = [*_guarded(tables, state)]
    found = [*_guarded(platform, state), *schema]
    path = Path(state.config.database_uri.database or "")
    if state.config.driver == "sqlite":
        found += [f for check in FILE_CHECKS for f in _guarded(lambda _: check(path), state)]  # noqa: B023
        found += _guarded(lambda _: shared_file(app, path), state)
    if all(finding.level == "ok" for finding in schema):
        found += [f for check in STORE_CHECKS for f in _guarded(check, state)]
    if smtp:
        found += _guarded(lambda _: mail_server(app, timeout), state)
    return found


def _guarded(check: Callable[[AppState], Iterator[Finding]], state: AppState) -> Iterator[Finding]:
    """A check that cannot look says so, and the others go on."""
    try:
        yield from check(state)
    except SchemaError as error:
        # What is wrong, then what to do about it.
        text, _, fix = str(error).partition(". ")
        yield _error(f"{text}.", fix, "schema")
    except StoreError as error:
        yield _error(str(error), "Make sure the database can be reached, then run flask tasks doctor again.")
    except (OSError, sqlite3.Error) as error:
        yield _warning(f"A check could not be made: {error}", "Run it as the user that runs the application.")


# -- the database ------------------------------------------------------------------------------------------------------


def platform(state: AppState) -> Iterator[Finding]:
    """Whether workers can run here."""
    try:
        state.store.driver.check_platform()
    except NotSupported as error:
        yield _error(str(error), "Run workers elsewhere; enqueueing works here.")


def tables(state: AppState) -> Iterator[Finding]:
    """Whether the tables exist and fit this version."""
    where = state.config.database_uri.render_as_string(hide_password=True)
    found = state.store.driver.schema_version()
    if found is None:
        fix = "Check TASKER_DATABASE_URI. If it is right: flask tasks db init"
        yield _error(f"No tables found in {where}.", fix, "no tables")
    elif found < newest():
        text = f"The tables have version {found}, {newest()} is needed."
        yield _error(text, "flask tasks db upgrade", "schema")
    else:
        refuse_newer(found)
        yield _ok(f"The tables have version {found}, in {where}.")


def sqlite_version(_: Path) -> Iterator[Finding]:
    """Whether SQLite has the fix for racing checkpoints."""
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= FIXED_SQLITE:
        yield _ok(f"SQLite {version}.")
        return
    yield _warning(
        f"SQLite {version} can corrupt a file when two checkpoints race (the WAL-reset bug, fixed in 3.51.3). "
        "Flask-TaskWorker makes one checkpoint at a time, which avoids it.",
        "Let no other program write to the file, or use a Python with SQLite 3.51.3 or newer.",
    )


def journal(path: Path) -> Iterator[Finding]:
    """The journal mode, and how long the write-ahead log is."""
    if not path.exists():
        return
    # Opened read-only, so that looking changes nothing.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
        ((mode,),) = connection.execute("PRAGMA journal_mode").fetchall()
    log = Path(f"{path}-wal")
    size = log.stat().st_size if log.exists() else 0
    if mode != "wal":
        yield _error(f"The journal mode of {path} is {mode}, not wal.", "flask tasks db init")
    elif size > LONG_LOG:
        yield _warning(
            f"The write-ahead log {log} has {_megabytes(size)}: a process keeps a read transaction open.",
            f"Find the process and end it: fuser -v {log}",
        )
    else:
        yield _ok(f"The journal mode is wal; {path} has {_megabytes(path.stat().st_size)}, its log {_megabytes(size)}.")


def file_modes(path: Path) -> Iterator[Finding]:
    """Who may use the database and the files beside it."""
    if not path.exists() or os.name == "nt":
        return
    found, owner = [], path.stat().st_uid
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-live")):
        if not name.exists():
            continue
        status = name.stat()
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != owner:
            found.append(
                _error(
                    f"{name} belongs to user {status.st_uid}, the database to user {owner}.",
                    f"Stop the workers, delete {name} if you did not create it, and start them again.",
                )
            )
        fix = f"chmod {'700' if name.is_dir() else '600'} {name}"
        if mode & (0o022 if name.is_dir() else 0o002):
            found.append(_error(f"Other users on this machine may write to {name} (mode {mode:#o}).", fix))
        elif mode & 0o077:
            text = f"Other users may read {name} (mode {mode:#o}), and mails are stored there in clear text."
            found.append(_warning(text, fix))
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    if folder & 0o002 and not folder & stat.S_ISVTX:
        text = f"Other users on this machine may replace files in {path.parent} (mode {folder:#o})."
        found.append(_error(text, f"chmod o-w {path.parent}"))
    yield from found or [_ok("Only the owner can read the database and the files beside it.")]


def free_space(path: Path) -> Iterator[Finding]:
    """How much room is left on the disk."""
    if not path.exists():
        return
    free = shutil.disk_usage(path.parent).free
    text = f"{_megabytes(free)} are free on the disk of {path}."
    fix = "Free some space: without it no job is accepted and no result can be recorded."
    if free < LITTLE_SPACE:
        yield _error(text, fix) if free < NO_SPACE else _warning(text, fix)
    else:
        yield _ok(text)


def file_system(path: Path) -> Iterator[Finding]:
    """Whether the file is on a local disk."""
    if not path.exists() or not _MOUNTS.exists():
        return
    kind = file_system_of(path.resolve(), _MOUNTS.read_text())
    if kind in _NETWORK:
        yield _error(
            f"{path} is on a network file system ({kind}), where SQLite's locks and its write-ahead log do not work.",
            "Put it on a local disk (TASKER_DATABASE_URI), or use PostgreSQL for several machines.",
        )
    elif kind is not None:
        yield _ok(f"The database is on a local file system ({kind}).")


def file_system_of(path: Path, mounts: str) -> str | None:
    """The type of the file system on which *path* lies, by what ``/proc/self/mounts`` says."""
    best, kind = -1, None
    for line in mounts.splitlines():
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        # Spaces and the like stand there as \040.
        place = parts[1].encode("ascii", "backslashreplace").decode("unicode_escape")
        if path.is_relative_to(place) and len(place) >= best:
            best, kind = len(place), parts[2]
    return kind


def shared_file(app: Flask, path: Path) -> Iterator[Finding]:
    """Whether sessions of Flask-SQLAlchemy that only read keep jobs from being stored."""
    if "sqlalchemy" not in app.extensions or not path.exists():
        return

    def is_locked() -> bool:
        # A worker holds the lock for some milliseconds at a time.
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            return False

    with app.app_context():
        engines = app.extensions["sqlalchemy"].engines.values()
    for engine in engines:
        name = engine.url.database
        if engine.dialect.name != "sqlite" or not name or not path.samefile(name) or is_locked():
            continue
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            if is_locked():
                yield _warning(
                    f"A session that only reads holds the write lock of {path}, so a view that reads and then enqueues "
                    "gets NotAccepted.",
                    "Begin the transaction with the first write: see Transactions, Share one SQLite file.",
                )


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


FILE_CHECKS = (sqlite_version, journal, file_modes, free_space, file_system)


# -- what lies in it ---------------------------------------------------------------------------------------------------


def workers(state: AppState) -> Iterator[Finding]:
    """What makes the status unhealthy, and whether clocks agree."""
    overview = Overview.take(state.store)
    problems = overview.problems()
    for problem in problems:
        yield _error(problem, "flask tasks status shows more.")
    if not problems:
        count = len(overview.claiming)
        yield _ok(f"{count} {'worker takes' if count == 1 else 'workers take'} jobs; none waits too long.")
    fix = "Keep the clocks of all machines in sync (NTP): times of jobs are compared across machines."
    ages = [(name_of(worker), overview.now - worker.beat_at) for worker in overview.claiming]
    for name, age in ages:
        if age < -SKEW_MS:
            yield _warning(f"The clock of worker {name} is {spoken(-age)} ahead of this machine's.", fix)
        elif age > LATE_BEAT_MS:
            yield _warning(f"Worker {name} was last seen {spoken(age)} ago: it is slow, or its clock is behind.", fix)
    if ages and all(-SKEW_MS <= age <= LATE_BEAT_MS for _, age in ages):
        yield _ok(f"The clocks of all workers agree within {spoken(LATE_BEAT_MS)}.")


def tasks(state: AppState) -> Iterator[Finding]:
    """Whether the code declares the tasks of all waiting jobs."""
    waiting = Browser(state.store).tasks_waiting()
    unknown = {name: number for name, number in waiting.items() if state.registry.get(name) is None}
    for name, number in list(unknown.items())[:_SHOWN]:
        jobs = "1 job waits" if number == 1 else f"{counted(number)} jobs wait"
        chosen = shlex.quote(f'task:"{name}"')
        yield _warning(
            f"{jobs} for the task {name!r}, which this code does not declare.",
            f"Deploy code that declares it, or discard them: flask tasks discard --filter {chosen}",
        )
    if len(unknown) > _SHOWN:
        yield _warning(f"So do jobs of {len(unknown) - _SHOWN} more tasks.", "flask tasks jobs state:ready,scheduled")
    if not unknown:
        yield _ok("The code declares the tasks of all waiting jobs.")


def queues(state: AppState) -> Iterator[Finding]:
    """Which queues are paused."""
    for queue in Browser(state.store).queues():
        if queue.paused:
            since = "" if queue.paused_at is None else f" for {spoken(state.store.clock() - queue.paused_at)}"
            yield _warning(
                f"Queue {queue.name!r} is paused{since} by {queue.paused_by or 'an unknown user'}; "
                f"{counted(queue.ready)} of its jobs are ready.",
                f"flask tasks resume {shlex.quote(queue.name)}",
            )


def schedules(state: AppState) -> Iterator[Finding]:
    """Which schedules do not fire, and why."""
    now, stored, wrong = state.store.clock(), state.store.schedules(), []
    for row in stored:
        schedule = schedule_view(row, now)
        if schedule.state == "unreadable":
            text = f"The schedule {row.name!r} cannot be read by this version, so it never fires."
            fix = "Install the version that stored it, or remove it with task_worker.unschedule and create it again."
            wrong.append(_error(text, fix))
        if state.registry.get(row.task) is None:
            text = f"The schedule {row.name!r} is for the task {row.task!r}, which this code does not declare."
            fix = "Deploy code that declares it. A schedule from code is deleted after a week; remove one made at run "
            wrong.append(_warning(text, f"{fix}time with task_worker.unschedule({row.name!r})."))
        elif schedule.paused:
            text = f"The schedule {row.name!r} is paused."
            wrong.append(_warning(text, f"flask tasks schedule resume {shlex.quote(row.name)}"))
        elif schedule.late_ms:
            text = f"The schedule {row.name!r} is late by {spoken(schedule.late_ms)}."
            wrong.append(_error(text, "Make sure a worker with its task runs: flask tasks run"))
    yield from wrong
    if not wrong:
        yield _ok(f"{len(stored)} {'schedule is' if len(stored) == 1 else 'schedules are'} stored.")


def batches(state: AppState) -> Iterator[Finding]:
    """Which of the newest batches were left open: the process that made them has died, perhaps."""
    now = state.store.clock()
    for row in Browser(state.store).batches(limit=_BATCHES):
        if row.state == "open" and now - row.created_at > LONG_OPEN_MS:
            yield _warning(
                f"Batch {row.id} ({row.name!r}) has been open for {spoken(now - row.created_at)}. It ends only when "
                "it is sealed.",
                f"If no process adds jobs to it any more: flask tasks batch {row.id} --seal",
            )


def pruning(state: AppState) -> Iterator[Finding]:
    """Whether finished jobs are deleted in time."""
    late = Browser(state.store).overdue_for_pruning(state.store.clock() - LATE_PRUNING_MS)
    kept, kept_failed = state.config.keep_succeeded, state.config.keep_failed
    if late:
        yield _warning(
            f"{counted(late)} finished jobs should have been deleted an hour ago.",
            "Workers delete them: make sure one runs. Or now: flask tasks purge --done-before "
            f"{max(kept, kept_failed) // timedelta(days=1) or 1}d",
        )
    else:
        one, other = (spoken(round(period.total_seconds() * 1000)) for period in (kept, kept_failed))
        yield _ok(f"Finished jobs are kept for {one}, failed ones for {other}, and deleted in time.")


def limits(state: AppState) -> Iterator[Finding]:
    """Whether the limits that hold are those of the code, and hold for something."""
    browser, wrong = Browser(state.store), []
    found = limit_views(browser, state.registry, state.config, lanes=0)
    used = {queue.name for queue in browser.queues(also=sorted(task.options.queue for task in state.registry))}
    app = state.find_app()
    if app is not None and "mail" in app.extensions:
        used.add(MAIL_QUEUE)
    alone = browser.suspects() if any(limit.queue is not None for limit in found) else {}
    for limit in found:
        reset = f"flask tasks limit {shlex.quote(limit.name)} --reset"
        if not limit.is_declared:
            jobs = f"; {counted(limit.waiting)} of its jobs wait" if limit.waiting else ""
            text = f"The limit {limit.name!r} ({limit.numbers}) still holds, and this code does not declare it{jobs}."
            wrong.append(_warning(text, f"Workers delete one from code after a week. To delete it now: {reset}"))
        elif limit.source == "runtime":
            since = spoken(state.store.clock() - (limit.set_at or 0))
            text = f"The limit {limit.name!r} is {limit.numbers}: {limit.set_by} set it {since} ago. The code says "
            wrong.append(_warning(f"{text}{limit.declared}.", reset))
        if limit.queue is not None and limit.queue not in used:
            text = f"TASKER_QUEUE_LIMITS limits the queue {limit.queue!r}, and no task and no job uses it."
            wrong.append(_warning(text, "Correct its name, or remove it."))
        if number := alone.get(limit.queue or ""):
            text = f"Jobs that must run alone, beside the limit of their queue {limit.queue!r}: {counted(number)}."
            wrong.append(_warning(text, f"flask tasks jobs state:ready queue:{shlex.quote(limit.queue or '')}"))
    yield from wrong
    if found and not wrong:
        yield _ok(f"{len(found)} {'limit holds' if len(found) == 1 else 'limits hold'}, as the code declares.")


def keys(state: AppState) -> Iterator[Finding]:
    """Whether keys outlive the jobs that have them."""
    gone = Browser(state.store).keys_of_gone_jobs()
    if gone:
        text = f"Keys of jobs that are gone: {counted(gone)}. Rows of jobs were deleted by hand."
        yield _warning(text, "Nothing depends on them: the next call with such a key stores a new job.")
    else:
        yield _ok("Each key that lets a job stand for several calls belongs to a job.")


STORE_CHECKS = (workers, tasks, queues, limits, schedules, batches, pruning, keys)


# -- mail --------------------------------------------------------------------------------------------------------------


def mail_server(app: Flask, timeout: float) -> Iterator[Finding]:
    """Whether the mail server can be used. Connects, logs in and leaves, in a thread: the caller's may run a loop."""
    mail: Any = app.extensions.get("mail")
    config = getattr(mail, "config", None)
    if not isinstance(config, MailConfig):
        # None, or Flask-Mail itself.
        return
    if mail.suppress or config.backend != "smtp":
        why = "MAIL_SUPPRESS_SEND or TESTING is on" if mail.suppress else f"MAIL_BACKEND is {config.backend!r}"
        yield _ok(f"No mail leaves this machine: {why}.")
        return
    server = server_of(mail)

    async def talk() -> str | None:
        connection = await SMTPConnection.open(replace(server, timeout=min(timeout, server.timeout)))
        tls = connection.tls
        await connection.quit()
        return tls

    try:
        with ThreadPoolExecutor(1, "taskworker-doctor") as beside:
            tls = beside.submit(asyncio.run, talk()).result()
    except MailError as error:
        yield _error(f"The mail server {server} cannot be used: {error}", "Check MAIL_SERVER, MAIL_PORT and its log.")
        return
    is_local = server.hostname in ("localhost", "::1") or server.hostname.startswith("127.")
    if tls is None and not is_local:
        yield _warning(
            f"The connection to the mail server {server} is not encrypted: passwords and mails can be read.",
            "Set MAIL_USE_TLS = True (port 587), or MAIL_USE_SSL = True (port 465).",
        )
    else:
        yield _ok(f"The mail server {server} answers{f' over {tls}' if tls else ', in clear text on this machine'}.")


# -- settings ----------------------------------------------------------------------------------------------------------


def settings(app: Flask) -> dict[str, str]:
    """The settings in effect by their keys, with every secret masked; then the versions of what runs."""
    shown = {f"TASKER_{name}": value for name, value in _values(app.extensions["taskworker"].config)}
    mail = getattr(app.extensions.get("mail"), "config", None)
    if isinstance(mail, MailConfig):
        shown |= {f"MAIL_{name}": value for name, value in _values(mail)}
    return shown | {"Python": sys.version.split()[0], "SQLite": sqlite3.sqlite_version}


def _values(config: Any) -> Iterator[tuple[str, str]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, URL):
            value = value.render_as_string(hide_password=True)
        # What no repr shows is a secret.
        yield _KEYS.get(field.name, field.name).upper(), str(value) if field.repr or value is None else _MASKED
