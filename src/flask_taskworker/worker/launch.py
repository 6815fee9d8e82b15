"""Under what this process was started: whether a ``start()`` at import is meant, and in which process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import click
from flask.cli import FlaskGroup, ScriptInfo

from ..errors import NotSupported
from ..patching import calls, is_set

_LOOK = 0.05
_LONGEST_BOOT = 60.0
"""Seconds within which a server's new process should serve; later its first request still tells."""


def flask_command() -> str | None:
    """The command that ``flask`` runs in this thread: "run", "shell", "tasks", …; None when it is not ``flask``.

    Empty while ``flask`` only looks for its commands, as for ``flask --help``.
    """
    context = click.get_current_context(silent=True)
    name = ""
    while context is not None:
        if isinstance(context.command, FlaskGroup):
            return name
        name = context.info_name or ""
        context = context.parent
    return None


def app_of_command() -> str | None:
    """What the ``flask`` command loads, as ``flask --app`` takes it; None when it is not ``flask``."""
    context = click.get_current_context(silent=True)
    info = None if context is None else context.find_object(ScriptInfo)
    if info is None:
        return None
    if info.create_app is not None:
        return f"{info.create_app.__module__}:{info.create_app.__qualname__}()"
    return info.app_import_path


def is_loading_app() -> bool:
    """Whether the ``flask`` command imports the app just now: a ``start()`` then is the module's, not the command's."""
    return ("flask.cli", "load_app") in calls(sys._getframe())


def is_spawning() -> bool:
    """Whether a new process imports its parent's main module, or loads its app, just now, to do work for the parent.

    That is one of multiprocessing ("spawn" or "forkserver"), or a job server of ours.
    """
    found = set(calls(sys._getframe()))
    return not found.isdisjoint({("multiprocessing.spawn", "prepare"), (f"{__package__}.job_server", "load_app")})


def _patched_by_gevent() -> bool:
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


_PATCHED_BEFORE = _patched_by_gevent()


def check_gevent() -> None:
    """Raise NotSupported where gevent has replaced threads and locks after this package had begun to use them."""
    if not _PATCHED_BEFORE and _patched_by_gevent():
        raise NotSupported(
            "gevent has patched this process after the application was imported, so locks of two kinds are mixed and "
            "would wait for each other. Patch first: begin the application's module, or gunicorn's configuration file, "
            "with `from gevent import monkey; monkey.patch_all()`; or leave out --preload; or use threads (gthread)."
        )


def check_server() -> None:
    """Raise NotSupported under a server that lets no thread run."""
    check_gevent()
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise NotSupported(
            "eventlet has replaced threads, and asyncio cannot run beside it. Run the worker in a process of its own, "
            "flask tasks run, or serve with threads (gthread)."
        )
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and not any(is_set(uwsgi.opt, name) for name in ("enable-threads", "threads")):
        raise NotSupported(
            "uWSGI runs without threads, so a background worker would never run. Add enable-threads = true to its "
            "configuration, and lazy-apps = true, so that each of its processes loads the application itself."
        )


def forks_later() -> bool:
    """Whether this process imports the app only to fork, later on, the processes that serve it.

    That is gunicorn's master with ``--preload``, and uWSGI's without ``lazy-apps``. It must not run jobs: its threads
    and connections would be copied into every process that it forks, and a job that kills its process would take the
    whole server along.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None:
        return not uwsgi.worker_id()
    return ("gunicorn.arbiter", "setup") in calls(sys._getframe())


def after_uwsgi_fork(call: Callable[[], None]) -> None:
    """Under uWSGI, *call* in each process that serves, the only one included. It runs no fork hooks of Python's."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    before: Callable[[], None] | None = getattr(uwsgi, "post_fork_hook", None)

    def hook() -> None:
        if before is not None:
            before()
        call()

    uwsgi.post_fork_hook = hook


def when_serving(call: Callable[[], None]) -> None:
    """After a fork, in the child: if the server has forked it, *call* in a thread as soon as it serves.

    Elsewhere nothing happens, and a first request must tell that this is a web process.
    """
    if ("gunicorn.arbiter", "spawn_worker") in calls(sys._getframe()):
        threading.Thread(target=_call_when_gunicorn_serves, args=(call,), name="taskworker-boot", daemon=True).start()


def _call_when_gunicorn_serves(call: Callable[[], None]) -> None:
    """Not before: the process may still have to give up its rights as root, or to run the user's hooks."""
    never = threading.Event()
    for _ in range(int(_LONGEST_BOOT / _LOOK)):
        if _gunicorn_serves():
            call()
            return
        never.wait(_LOOK)


def _gunicorn_serves() -> bool:
    stack = list(calls(sys._current_frames().get(threading.main_thread().ident or 0)))
    boot = ("gunicorn.workers.base", "init_process")
    return boot in stack[1:] and stack[stack.index(boot) - 1][1] == "run"


def is_reloader_parent() -> bool:
    """Whether this process is the parent of werkzeug's reloader, which would keep stale code forever.

    Looking at the environment instead (WERKZEUG_RUN_MAIN) stops workers under servers that never set it.
    """
    if "werkzeug._reloader" not in sys.modules:
        return False
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return ("werkzeug._reloader", "restart_with_reloader") in calls(frame)
