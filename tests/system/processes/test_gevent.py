"""gevent: patched before the application is imported it works; patched later, everything refuses with the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.smtp_server import SMTPServer

SOURCES = Path(__file__).parents[3] / "src"
APP = """
{first}
from flask import Flask
from flask_taskworker import BackgroundTaskWorker
app = Flask("shop", instance_path={path!r})
task_worker = BackgroundTaskWorker(app)

@task_worker.task
def add(x, y):
    return x + y

{then}
try:
    task_worker.start()
    print(add.enqueue(1, 2).result(timeout=20))
except Exception as error:
    print(type(error).__name__, error)
    try:
        add.enqueue(1, 2)
    except Exception as error:
        print(type(error).__name__, error)
task_worker.stop(timeout=5)
"""
PATCH = "from gevent import monkey; monkey.patch_all()"


def run(tmp_path: Path, first: str, then: str) -> str:
    pytest.importorskip("gevent", reason="gevent is not installed here")
    code = APP.format(first=first, then=then, path=str(tmp_path / "instance"))
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout


def test_worker_runs_where_gevent_has_patched_first(tmp_path: Path) -> None:
    assert run(tmp_path, PATCH, "").split() == ["3"]


def test_start_and_enqueue_are_refused_where_gevent_patches_later(tmp_path: Path) -> None:
    said = run(tmp_path, "", PATCH)
    assert said.count("NotSupported gevent has patched this process after the application was imported") == 2


MAIL = """
from gevent import Timeout, monkey; monkey.patch_all()
from flask import Flask
from flask_taskworker import BackgroundTaskWorker, Mail, Message
app = Flask("shop", instance_path={path!r})
app.config.update(MAIL_PORT={port}, MAIL_DEFAULT_SENDER="shop@example.org")
task_worker, mail = BackgroundTaskWorker(app), Mail(app)

@task_worker.task
def ready():
    pass

{first}
with app.app_context():
    try:
        with Timeout(20):
            print(bool(mail.send(Message("hello", ["a@example.org"], "text"))))
    except Exception as error:
        print(type(error).__name__, error)
task_worker.stop(timeout=5)
"""


@pytest.mark.parametrize(
    ("first", "said"),
    [("", "True"), ("task_worker.start(); ready.enqueue().result(20)", "AppError Mail cannot be sent here: ")],
)
def test_mail_is_sent_or_refused_with_the_remedy_and_never_hangs(first: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed here")
    with SMTPServer() as server:
        code = MAIL.format(first=first, port=server.port, path=str(tmp_path / "instance"))
        environment = {"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith(said), ended.stderr
