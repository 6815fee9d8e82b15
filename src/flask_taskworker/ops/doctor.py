"""What is wrong with an installation, and what to do about it: for ``flask tasks doctor`` and the System page.

Each check only looks, in a bounded time, and fails alone. The tables are neither made nor upgraded here.
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
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from flask import Flask
from sqlalchemy.engine import URL

from ..core.mail_config import MailConfig
from ..core.triggers import trigger_from_text
from ..core.words import counted, spoken
from ..errors import NotDecodable, NotSupported, SchemaError, StoreError
from ..mail.errors import MailError
from ..mail.smtp.connection import SMTPConnection
from ..mail.smtp.hosts import server_of
from ..mail.smtp.server import Server
from ..store.migrations import newest
from ..store.sql import ScheduleRow
from .browse import Browser
from .health import LATE_MS, name_of
from .overview import Overview

if TYPE_CHECKING:
    from ..state import AppState

Level = Literal["ok", "warning", "error"]

FIXED_SQLITE = (3, 51, 3)
"""Before it, two checkpoints at once may corrupt a file (sqlite.org/wal.html, "the WAL-reset bug")."""

LITTLE_SPACE = 1_000_000_000
NO_SPACE = 100_000_000
LONG_LOG = 64_000_000
"""Bytes."""

SKEW_MS = 2_000
LATE_BEAT_MS = 5_000
LATE_PRUNING_MS = 3_600_000

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check has found."""

    level: Level
    text: str
    fix: str | None = None
    """What to do about it; None where nothing is to be done."""
    cause: Literal["no tables", "schema"] | None = None
    """Whether there are no tables, or they do not fit this version."""


def _ok(text: str) -> Finding:
    return Finding(level="ok", text=text)


def _warning(text: str, fix: str) -> Finding:
    return Finding(level="warning", text=text, fix=fix)


def _error(text: str, fix: str, cause: Literal["no tables", "schema"] | None = None) -> Finding:
    return Finding(level="error", text=text, fix=fix, cause=cause)


def findings(app: Flask, *, smtp: bool = True, timeout: float = 3.0) -> list[Finding]:
    """All that can be told of *app*'s tasks and mail, the worst not first but where it belongs.

    *smtp*: also connect to the mail server, which takes up to *timeout* seconds. Safe from any thread. Never raises
    for what it finds.
    """
    state = cast("AppState", app.extensions["taskworker"])
    found = [*_guarded(_platform, state)]
    schema = list(_guarded(_schema, state))
    found += schema
    found += [f for check in _FILE_CHECKS for f in _guarded(check, state)]
    if all(finding.level == "ok" for finding in schema):
        found += [f for check in _STORE_CHECKS for f in _guarded(check, state)]
    if smtp:
        found += _guarded(partial(_mail, app, timeout), state)
    return found


def _guarded(check: Callable[[AppState], Iterator[Finding]], state: AppState) -> Iterator[Finding]:
    """A check that cannot look says so, and the others go on."""
    try:
        yield from check(state)
    except StoreError as error:
        fix = "See that the database can be reached, then run flask tasks doctor again."
        yield _error(str(error), fix, "schema" if isinstance(error, SchemaError) else None)
    except (OSError, sqlite3.Error) as error:
        yield _warning(f"A check could not be made: {error}", "Run it as the user that runs the application.")


# -- the database ------------------------------------------------------------------------------------------------------


def _platform(state: AppState) -> Iterator[Finding]:
    try:
        state.store.driver.check_platform()
    except NotSupported as error:
        yield _error(str(error), "Run workers elsewhere; enqueueing works here.")


def _schema(state: AppState) -> Iterator[Finding]:
    where = state.config.database_uri.render_as_string(hide_password=True)
    found = state.store.driver.schema_version()
    if found is None:
        fix = "Check TASKER_DATABASE_URI. If it is right: flask tasks db init"
        yield _error(f"There are no tables in {where}.", fix, "no tables")
    elif found < newest():
        text = f"The tables are of version {found}, {newest()} is needed."
        yield _error(text, "flask tasks db upgrade", "schema")
    elif found > newest():
        yield _error(
            f"The tables are of version {found}, which a newer Flask-TaskWorker made; this one knows {newest()}.",
            "Install the newer one.",
            "schema",
        )
    else:
        yield _ok(f"The tables are of version {found}, in {where}.")


def _path(state: AppState) -> Path | None:
    """The SQLite file, if there is one."""
    path = state.config.database_uri.database
    return Path(path) if state.config.driver == "sqlite" and path and Path(path).exists() else None


def _sqlite_version(state: AppState) -> Iterator[Finding]:
    if state.config.driver != "sqlite":
        return
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= FIXED_SQLITE:
        yield _ok(f"SQLite {version}.")
        return
    yield _warning(
        f"SQLite {version} can corrupt a file when two checkpoints race (the WAL-reset bug, mended in 3.51.3). "
        "Flask-TaskWorker makes one checkpoint at a time, which avoids it.",
        "Let no other program write into the file, or use a Python with SQLite 3.51.3 or newer.",
    )


def _journal(state: AppState) -> Iterator[Finding]:
    path = _path(state)
    if path is None:
        return
    # Made read-only, so that looking changes nothing.
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)
    try:
        ((mode,),) = connection.execute("PRAGMA journal_mode").fetchall()
    finally:
        connection.close()
    log = Path(f"{path}-wal")
    size = log.stat().st_size if log.exists() else 0
    if mode != "wal":
        yield _error(f"The journal mode of {path} is {mode}, not wal.", "flask tasks db init")
    elif size > LONG_LOG:
        yield _warning(
            f"The write-ahead log {log} has {_megabytes(size)}: a read transaction that somebody keeps open holds it.",
            f"Find the process and end it: fuser -v {log}",
        )
    else:
        yield _ok(f"The journal mode is wal; {path} has {_megabytes(path.stat().st_size)}, its log {_megabytes(size)}.")


def _modes(state: AppState) -> Iterator[Finding]:
    path = _path(state)
    if path is None or os.name == "nt":
        return
    open_files = list(_open_files(path))
    yield from open_files
    if not open_files:
        yield _ok("Only the owner can read the database and its companions.")


def _open_files(path: Path) -> Iterator[Finding]:
    owner = path.stat().st_uid
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-live")):
        if not name.exists():
            continue
        found = name.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != owner:
            yield _error(
                f"{name} belongs to user {found.st_uid}, the database to user {owner}.",
                f"Stop the workers, delete {name} if you did not create it, and start them again.",
            )
        fix = f"chmod {'700' if name.is_dir() else '600'} {name}"
        if mode & (0o022 if name.is_dir() else 0o002):
            yield _error(f"Other users on this machine may write to {name} (mode {mode:#o}).", fix)
        elif mode & 0o077:
            yield _warning(
                f"Others than its owner may use {name} (mode {mode:#o}); mails lie there in clear text.", fix
            )
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    if folder & 0o002 and not folder & stat.S_ISVTX:
        yield _error(
            f"Everybody on this machine may replace files in {path.parent} (mode {folder:#o}).",
            f"chmod o-w {path.parent}",
        )


def _space(state: AppState) -> Iterator[Finding]:
    path = _path(state)
    if path is None:
        return
    free = shutil.disk_usage(path.parent).free
    fix = "Make room: without it no job is accepted and no ending can be recorded."
    if free < NO_SPACE:
        yield _error(f"There are {_megabytes(free)} free beside {path}.", fix)
    elif free < LITTLE_SPACE:
        yield _warning(f"There are {_megabytes(free)} free beside {path}.", fix)
    else:
        yield _ok(f"There are {_megabytes(free)} free beside the database.")


def _file_system(state: AppState) -> Iterator[Finding]:
    path = _path(state)
    if path is None or not _MOUNTS.exists():
        return
    kind = file_system_of(path.resolve(), _MOUNTS.read_text())
    if kind in _NETWORK:
        yield _error(
            f"{path} lies on a network file system ({kind}), where SQLite's locks and its write-ahead log do not work.",
            "Put it on a local disk (TASKER_DATABASE_URI), or use PostgreSQL for several machines.",
        )
    elif kind is not None:
        yield _ok(f"The database lies on a local file system ({kind}).")


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


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


_FILE_CHECKS = (_sqlite_version, _journal, _modes, _space, _file_system)


# -- what lies in it ---------------------------------------------------------------------------------------------------


def _workers(state: AppState) -> Iterator[Finding]:
    overview = Overview.take(state.store)
    problems = overview.problems()
    for problem in problems:
        yield _error(problem, "flask tasks status shows more.")
    if not problems:
        count = len(overview.claiming)
        yield _ok(f"{count} {'worker takes' if count == 1 else 'workers take'} jobs; none waits too long.")
    yield from _clocks(overview)


def _clocks(overview: Overview) -> Iterator[Finding]:
    """A beat in the future is told by a clock that goes ahead; an old one by one behind, or by a slow worker."""
    fix = "Keep the clocks of all machines by NTP: times of jobs are compared with the clock of whoever looks."
    ages = [(worker, overview.now - worker.beat_at) for worker in overview.claiming]
    for worker, age in ages:
        name = name_of(worker)
        if age < -SKEW_MS:
            yield _warning(f"The clock of worker {name} is {spoken(-age)} ahead of this machine's.", fix)
        elif age > LATE_BEAT_MS:
            yield _warning(f"Worker {name} was last seen {spoken(age)} ago: it is slow, or its clock is behind.", fix)
    if ages and all(-SKEW_MS <= age <= LATE_BEAT_MS for _, age in ages):
        yield _ok(f"The clocks of all workers agree within {spoken(LATE_BEAT_MS)}.")


def _tasks(state: AppState) -> Iterator[Finding]:
    registry = state.registry
    waiting = Browser(state.store).tasks_waiting()
    unknown = {name: number for name, number in waiting.items() if registry.get(name) is None}
    for name, number in list(unknown.items())[:_SHOWN]:
        jobs = "1 job waits" if number == 1 else f"{counted(number)} jobs wait"
        yield _warning(
            f"{jobs} for the task {name!r}, which this code does not declare.",
            f"Deploy code that declares it, or put them away: flask tasks discard --filter {_quoted(name)}",
        )
    if len(unknown) > _SHOWN:
        yield _warning(f"So do jobs of {len(unknown) - _SHOWN} more tasks.", "flask tasks jobs state:ready,scheduled")
    if not unknown:
        yield _ok("The code declares the tasks of all jobs that wait.")


def _quoted(task: str) -> str:
    return shlex.quote(f'task:"{task}"')


def _queues(state: AppState) -> Iterator[Finding]:
    for queue in Browser(state.store).queues():
        if queue.paused:
            since = "" if queue.paused_at is None else f" for {spoken(state.store.clock() - queue.paused_at)}"
            yield _warning(
                f"Queue {queue.name!r} is paused{since} by {queue.paused_by or 'somebody'}; {counted(queue.ready)} of "
                "its jobs are ready.",
                f"flask tasks resume {shlex.quote(queue.name)}",
            )


def _schedules(state: AppState) -> Iterator[Finding]:
    registry, now = state.registry, state.store.clock()
    stored = state.store.schedules()
    wrong = [finding for schedule in stored for finding in _schedule(schedule, registry.get(schedule.task), now)]
    yield from wrong
    if not wrong:
        yield _ok(f"{len(stored)} {'schedule is' if len(stored) == 1 else 'schedules are'} stored.")


def _schedule(schedule: ScheduleRow, task: object, now: int) -> Iterator[Finding]:
    try:
        trigger_from_text(schedule.trigger)
    except NotDecodable:
        yield _error(
            f"The schedule {schedule.name!r} cannot be read by this version, and so never fires.",
            "Install the version that stored it, or end it with task_worker.unschedule and make it again.",
        )
    if schedule.odd:
        words = ", ".join(f"{name} is {value!r}" for name, value in schedule.odd.items())
        yield _error(
            f"The schedule {schedule.name!r} has values that cannot be read: {words}.",
            "Somebody has written them by hand: delete the row from taskworker_schedule, and make the schedule again. "
            "One that code declares is stored again by the next worker that starts.",
        )
    if task is None:
        yield _warning(
            f"The schedule {schedule.name!r} is for the task {schedule.task!r}, which this code does not declare.",
            "Deploy code that declares it. A schedule from code is deleted after a week; one made at run time ends "
            f"with task_worker.unschedule({schedule.name!r}).",
        )
    elif schedule.paused:
        yield _warning(
            f"The schedule {schedule.name!r} is paused.", f"flask tasks schedule resume {shlex.quote(schedule.name)}"
        )
    elif schedule.next_at is not None and now - schedule.next_at > LATE_MS:
        yield _error(
            f"The schedule {schedule.name!r} is late for {spoken(now - schedule.next_at)}.",
            "See that a worker with its task runs: flask tasks run",
        )


def _pruning(state: AppState) -> Iterator[Finding]:
    late = Browser(state.store).overdue_for_pruning(state.store.clock() - LATE_PRUNING_MS)
    config = state.config
    if late:
        yield _warning(
            f"{counted(late)} finished jobs should have been deleted an hour ago.",
            "Workers delete them: see that one runs. Or now: flask tasks purge --done-before "
            f"{max(config.keep_succeeded, config.keep_failed) // timedelta(days=1) or 1}d",
        )
    else:
        yield _ok(
            f"Finished jobs are kept for {_days(config.keep_succeeded)}, failed ones for {_days(config.keep_failed)}, "
            "and deleted in time."
        )


def _days(period: timedelta) -> str:
    return spoken(round(period.total_seconds() * 1000))


_STORE_CHECKS = (_workers, _tasks, _queues, _schedules, _pruning)


# -- mail --------------------------------------------------------------------------------------------------------------


def _mail(app: Flask, timeout: float, _: AppState) -> Iterator[Finding]:
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
    try:
        tls = _reach(replace(server, timeout=min(timeout, server.timeout)))
    except MailError as error:
        yield _error(f"The mail server {server} cannot be used: {error}", "Check MAIL_SERVER, MAIL_PORT and its log.")
        return
    if tls is None and not _is_local(server.hostname):
        yield _warning(
            f"The mail server {server} is reached in clear text, passwords and mails alike.",
            "Set MAIL_USE_TLS = True (port 587), or MAIL_USE_SSL = True (port 465).",
        )
    else:
        yield _ok(f"The mail server {server} answers{f' over {tls}' if tls else ', in clear text on this machine'}.")


def _reach(server: Server) -> str | None:
    """Connect, log in and leave; the version of TLS that was spoken. In a thread: the caller's may run a loop."""

    async def talk() -> str | None:
        connection = await SMTPConnection.open(server)
        tls = connection.tls
        await connection.quit()
        return tls

    with ThreadPoolExecutor(1, "taskworker-doctor") as beside:
        return beside.submit(asyncio.run, talk()).result()


def _is_local(hostname: str) -> bool:
    return hostname in ("localhost", "::1") or hostname.startswith("127.")


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
