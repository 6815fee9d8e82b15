"""gevent: it works where this package is imported after the patch, or before a server's own; else it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.smtp_server import SMTPServer
from tests.system.processes.parent import Lab, free_port, get

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


WEB = """
from flask import Flask
from flask_taskworker import BackgroundTaskWorker
app = Flask("shop", instance_path={path!r})
task_worker = BackgroundTaskWorker(app)

@task_worker.task
def add(x, y):
    return x + y

@task_worker.task
async def twice(x):
    return 2 * x

@app.get("/")
def index():
    return f"{{add.enqueue(1, 2).result(timeout=20)}} {{twice.enqueue(4).result(timeout=20)}}"

task_worker.start()
"""
UWSGI = "uwsgi --http-socket {bind} --module web:app --gevent 20 --gevent-monkey-patch --enable-threads --master"


@pytest.mark.parametrize(
    "command",
    [
        "gunicorn -k gevent --preload --bind {bind} web:app",
        f"{UWSGI} --die-on-term --lazy-apps",
        f"{UWSGI} --die-on-term",
    ],
)
def test_jobs_run_under_a_server_that_patches_after_it_has_imported_the_application(lab: Lab, command: str) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed here")
    if not (Path(sys.executable).parent / command.split()[0]).exists():
        pytest.skip(f"{command.split()[0]} is not installed here")
    lab.write("web", WEB.format(path=str(lab.folder / "instance")))
    port = free_port()
    server = lab.start(*command.format(bind=f"127.0.0.1:{port}").split())
    assert get(port, "/") == "3 8", server.output
    server.send(signal.SIGTERM)
    server.wait()


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


AROUND = """
import gevent

def letter():
    with app.app_context():
        return bool(mail.send(Message("hello", ["a@example.org"], "text")))

letter()
on_their_way = [gevent.spawn(letter) for _ in range(3)]
gevent.sleep(0)
task_worker.start()
print(ready.enqueue().result(20), *(one.get(timeout=20) for one in on_their_way), end=" ")
"""


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("", "True"),
        ("task_worker.start(); ready.enqueue().result(20)", "AppError Mail cannot be sent here: "),
        (AROUND, "None True True True AppError Mail cannot be sent here: "),
    ],
    ids=["no worker", "worker first", "mail first"],
)
def test_mail_is_sent_or_refused_with_the_remedy_and_never_hangs(first: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed here")
    with SMTPServer() as server:
        code = MAIL.format(first=first, port=server.port, path=str(tmp_path / "instance"))
        environment = {"PYTHONPATH": str(SOURCES), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith(said), ended.stderr
