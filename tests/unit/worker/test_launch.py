"""What the process learns about the server or command that started it; real servers: tests/system/processes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import click
import pytest
from flask.cli import FlaskGroup

from flask_taskworker.errors import NotSupported
from flask_taskworker.worker import launch


def under_uwsgi(monkeypatch: pytest.MonkeyPatch, **options: object) -> Any:
    """As in a process of uWSGI, which gives its options in a module that exists there alone."""
    module = SimpleNamespace(opt={name.replace("_", "-"): value for name, value in options.items()})
    module.worker_id = lambda: 0
    monkeypatch.setitem(sys.modules, "uwsgi", module)  # type: ignore[arg-type]
    return module


def test_plain_process_may_run_a_worker() -> None:
    launch.check_server()
    assert not launch.forks_later()
    assert not launch.is_loading_app()
    assert not launch.is_spawning()
    assert not launch.is_reloader_parent()
    assert launch.flask_command() is None


@pytest.mark.parametrize("options", [{}, {"enable_threads": False}, {"threads": b"0"}])
def test_uwsgi_without_threads_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    under_uwsgi(monkeypatch, **options)
    with pytest.raises(NotSupported, match="enable-threads = true"):
        launch.check_server()


@pytest.mark.parametrize("options", [{"enable_threads": True}, {"threads": b"4"}])
def test_uwsgi_with_threads_is_taken(monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    under_uwsgi(monkeypatch, **options)
    launch.check_server()


def test_master_of_uwsgi_only_forks_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module = under_uwsgi(monkeypatch)
    assert launch.forks_later()
    module.worker_id = lambda: 1
    assert not launch.forks_later()


def test_hook_after_a_fork_of_uwsgi_keeps_the_one_that_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    launch.after_uwsgi_fork(lambda: called.append("without uWSGI"))
    module = under_uwsgi(monkeypatch)
    module.post_fork_hook = lambda: called.append("theirs")
    launch.after_uwsgi_fork(lambda: called.append("ours"))
    module.post_fork_hook()
    assert called == ["theirs", "ours"]


def test_eventlet_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = SimpleNamespace(is_monkey_patched=lambda name: name == "thread")
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)  # type: ignore[arg-type]
    with pytest.raises(NotSupported, match="flask tasks run"):
        launch.check_server()


def test_gevent_that_comes_after_the_import_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkey = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)  # type: ignore[arg-type]
    with pytest.raises(NotSupported, match="Patch first"):
        launch.check_gevent()


@pytest.mark.parametrize(("arguments", "command"), [(["shell"], "shell"), (["tasks", "list"], "tasks")])
def test_command_of_flask_is_known(arguments: list[str], command: str) -> None:
    context: click.Context | None = None
    for name in ["flask", *arguments]:
        kind = FlaskGroup() if context is None else click.Group(name)
        context = click.Context(kind, parent=context, info_name=name)
    assert context is not None
    with context.scope(cleanup=False):
        assert launch.flask_command() == command
