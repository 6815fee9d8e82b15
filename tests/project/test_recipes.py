"""The recipes run as their pages say: servers answer with what a job computes, workers run what the web enqueues."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/recipes"
BIN = Path(sys.executable).parent
DEADLINE = 45.0
SERVERS = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", (PAGES / "servers.md").read_text(), re.MULTILINE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return shutil.copytree(
        ROOT / "examples/recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("instance", "__pycache__")
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of this environment, with all that it starts, until the end of the block; then SIGTERM."""
    if not (BIN / command[0]).exists() and command[0] != "sh":
        pytest.skip(f"{command[0]} is not installed here")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "WERKZEUG_", "GUNICORN"))}
    paths = {"PYTHONPATH": f"{ROOT / 'src'}:{folder}", "PATH": f"{BIN}:{os.environ['PATH']}"}
    with (folder / f"said-{time.monotonic_ns()}.txt").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=kept | paths | variables, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url: str, folder: Path) -> str:
    """What the server answers, once it does."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    said = [path.read_text(errors="replace") for path in sorted(folder.glob("said-*"))]
    raise AssertionError("\n".join([f"{url} does not answer:", *said]))


def assert_that_jobs_run(port: int, folder: Path) -> None:
    assert json.loads(ask(f"http://127.0.0.1:{port}/add/1/2", folder)) == {"sum": 3}


# --- Web servers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", SERVERS)
def test_server_answers_with_what_a_job_has_computed(command: str, recipes: Path) -> None:
    if "gevent" in command:
        pytest.importorskip("gevent")
    port = free_port()
    with running(command.replace("8000", str(port)).split(), recipes):
        assert_that_jobs_run(port, recipes)
    said = "".join(path.read_text(errors="replace") for path in recipes.glob("said-*"))
    # uWSGI interrupts a worker that still imports the app when it is asked to end.
    assert "Traceback" not in said or "KeyboardInterrupt" in said


def test_page_of_servers_names_them_all() -> None:
    assert [command.split()[0] for command in SERVERS] == [
        *("gunicorn", "gunicorn", "gunicorn", "gunicorn", "uwsgi", "waitress-serve", "uvicorn", "flask")
    ]


# --- Workers ------------------------------------------------------------------------------------------------------


def test_both_lines_of_the_procfile_run(recipes: Path) -> None:
    lines = dict(line.split(": ", 1) for line in (recipes / "Procfile").read_text().splitlines())
    port = free_port()
    with ExitStack() as stack:
        for line in lines.values():
            stack.enter_context(running(["sh", "-c", f"exec {re.sub(r'^WEB_ONLY=1 ', 'env WEB_ONLY=1 ', line)}"],
                                        recipes, PORT=str(port)))  # fmt: skip
        assert_that_jobs_run(port, recipes)


def test_supervisor_runs_the_web_and_two_workers(recipes: Path) -> None:
    port = free_port()
    config = recipes / "supervisord.conf"
    config.write_text(
        "[supervisord]\nuser = root\n" * (os.getuid() == 0) + config.read_text().replace("8000", f"{port}")
    )
    with running(["supervisord", "--nodaemon", "--configuration", str(config)], recipes):
        assert_that_jobs_run(port, recipes)
    said = "".join(path.read_text(errors="replace") for path in recipes.glob("said-*"))
    assert all(f"spawned: '{name}'" in said for name in ("web", "worker-00", "worker-01"))


def commands_of(compose: Path) -> dict[str, list[str]]:
    text = compose.read_text()
    return {
        name: json.loads(command)
        for name, command in re.findall(r"^  (\w+):\n    build: \.\n    command: (.*)$", text, re.M)
    }


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_commands_and_health_check_of_compose_run(database: str, recipes: Path, request: pytest.FixtureRequest) -> None:
    commands = commands_of(recipes / "compose.yaml")
    assert set(commands) == {"web", "worker"}
    uri = f"sqlite:///{recipes}/taskworker.db" if database == "sqlite" else request.getfixturevalue("postgres_url")
    port, health = free_port(), free_port()
    with ExitStack() as stack:
        for name, command in commands.items():
            words = [word.replace("8000", str(port)).replace("8080", str(health)) for word in command]
            only = {"WEB_ONLY": "1"} if name == "web" else {}
            stack.enter_context(running(words, recipes, FLASK_TASKER_DATABASE_URI=uri, **only))
        assert_that_jobs_run(port, recipes)
        [check] = re.findall(r'test: \["CMD", "python", "-c", "(.*)"\]', (recipes / "compose.yaml").read_text())
        subprocess.run([sys.executable, "-c", check.replace("8080", str(health))], check=True, timeout=30)


def test_unit_of_systemd_is_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    [unit] = re.findall(r"```ini\n(\[Unit\].*?)```", (ROOT / "docs/deployment.md").read_text(), re.DOTALL)
    path = tmp_path / "myapp-tasks.service"
    path.write_text(unit.replace("/srv/myapp/.venv/bin/flask", "/bin/true").replace("User=myapp", "User=root"))
    answer = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
    assert path.name not in answer.stderr, answer.stderr


# --- Scaling ------------------------------------------------------------------------------------------------------


def test_autoscaling_adds_and_removes_one_worker_at_a_time(recipes: Path) -> None:
    code = "from autoscale import number as n; print(n(31, 2), n(31, 8), n(10, 2), n(1, 2), n(0, 1))"
    kept = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{recipes}", "WEB_ONLY": "1"}
    python = subprocess.run([sys.executable, "-c", code], cwd=recipes, env=kept, capture_output=True, text=True)
    assert python.stdout.split() == ["3", "8", "2", "1", "1"], python.stderr
    flask = [sys.executable, "-m", "flask", "--app", "autoscale"]
    subprocess.run([*flask, "tasks", "db", "init"], cwd=recipes, env=kept, check=True, capture_output=True, timeout=60)
    asked = subprocess.run([*flask, "wanted", "2"], cwd=recipes, env=kept, capture_output=True, text=True, timeout=60)
    assert asked.stdout == "1\n", asked.stderr


def test_query_of_the_kubernetes_recipe_is_promql(recipes: Path, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed here")
    [query] = re.findall(r"query: (.*)", (recipes / "keda.yaml").read_text())
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps({"groups": [{"name": "one", "rules": [{"record": "waits", "expr": query}]}]}))
    subprocess.run(["promtool", "check", "rules", rules], check=True, timeout=30, capture_output=True)
    assert query.split("(")[1].split()[0] in (ROOT / "docs/monitoring.md").read_text()


# --- Extensions ---------------------------------------------------------------------------------------------------

SHOP = """
from sqlalchemy.orm import Mapped, mapped_column

class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
"""


def test_migrations_leave_the_tables_of_the_jobs_alone(tmp_path: Path) -> None:
    if importlib.util.find_spec("flask_migrate") is None:
        pytest.skip("Flask-Migrate is not installed here")
    first = re.findall(r"```python\n(.*?)```", (PAGES / "data.md").read_text(), re.DOTALL)[0]
    (tmp_path / "app.py").write_text(first + SHOP)
    kept = os.environ | {"PYTHONPATH": str(ROOT / "src")}

    def flask(*words: str) -> str:
        command = [sys.executable, "-m", "flask", *words]
        answer = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    for words in ("tasks db init", "db init", "db migrate", "db upgrade", "tasks db check"):
        flask(*words.split())
    [made] = (tmp_path / "migrations/versions").glob("*.py")
    assert "create_table('order'" in made.read_text()
    assert "taskworker" not in made.read_text()


SECURE = """
from flask import Flask
from flask_security import MailUtil, Security, SQLAlchemyUserDatastore, current_user
from flask_security.decorators import url_for_security
from flask_security.models import fsqla_v3 as models
from flask_sqlalchemy import SQLAlchemy
from flask_taskworker import BackgroundTaskWorker, Mail, Message
from flask_taskworker.dashboard import create_dashboard

app = Flask(__name__)
app.config.update(
    SQLALCHEMY_DATABASE_URI="sqlite:///users.db", SECRET_KEY="s", SECURITY_PASSWORD_SALT="1", WTF_CSRF_ENABLED=False,
    SECURITY_PASSWORD_HASH="plaintext", SECURITY_PASSWORD_SCHEMES=["plaintext"], MAIL_BACKEND="memory",
    SECURITY_RECOVERABLE=True, SECURITY_EMAIL_VALIDATOR_ARGS={{"check_deliverability": False}},
    MAIL_DEFAULT_SENDER="shop@example.org", SECURITY_EMAIL_SENDER="shop@example.org",
)
db = SQLAlchemy(app)
models.FsModels.set_db_info(db)
task_worker = BackgroundTaskWorker(app)
mail = Mail(app)

class Role(db.Model, models.FsRoleMixin):
    pass

class User(db.Model, models.FsUserMixin):
    pass

{page}

store = SQLAlchemyUserDatastore(db, User, Role)
app.security = Security(app, store, mail_util_cls=QueuedMail)
app.register_blueprint(create_dashboard(task_worker, access=access_by_role), url_prefix="/tasks")
with app.app_context():
    db.create_all()
    operator = store.create_role(name="operator")
    store.create_user(email="ada@example.org", password="secret-ada", roles=[operator])
    store.create_user(email="bob@example.org", password="secret-bob")
    db.session.commit()
task_worker.start()
seen = [app.test_client().get("/tasks/").status_code]
for name in ("ada", "bob"):
    client = app.test_client()
    client.post("/login", data={{"email": f"{{name}}@example.org", "password": f"secret-{{name}}"}})
    seen.append(client.get("/tasks/").status_code)
print(*seen)
app.test_client().post("/reset", data={{"email": "ada@example.org"}})
with app.app_context():
    [job] = task_worker.jobs("queue:mail")
    job.result(timeout=20)
print(*mail.outbox[0].recipients)
task_worker.stop()
"""


def test_flask_security_gives_access_by_role_and_queues_its_mails(tmp_path: Path) -> None:
    if importlib.util.find_spec("flask_security") is None:
        pytest.skip("Flask-Security is not installed here")
    text = (PAGES / "users.md").read_text()
    blocks = re.findall(
        r"```python\n(.*?)```", text.partition("## Flask-Security")[2].partition("## Flask-Admin")[0], re.DOTALL
    )
    (tmp_path / "secure.py").write_text(SECURE.format(page="\n".join(blocks)))
    kept = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "secure.py"]
    answer = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=55)
    assert answer.stdout.split() == ["302", "200", "403", "ada@example.org"], answer.stdout + answer.stderr
