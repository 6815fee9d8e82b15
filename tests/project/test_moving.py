"""Each port in examples/moving holds: its own tests pass on a copy, and the guide shows the code that ran."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOVING = ROOT / "examples" / "moving"
PORTS = sorted(path.name for path in MOVING.iterdir() if path.is_dir() and not path.name.startswith("_"))


def run(folder: Path, *arguments: str) -> str:
    """Run Python in *folder*, with this package and nothing of the environment's Flask settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "PYTEST_", "TASKER_"))}
    answer = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=55,
        stdin=subprocess.DEVNULL,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def copy_of(port: str, folder: Path) -> Path:
    return shutil.copytree(MOVING / port, folder / port, ignore=shutil.ignore_patterns("__pycache__", "instance"))


def test_there_are_ports_of_four_libraries() -> None:
    assert PORTS == ["apscheduler", "celery", "rq", "threads"]


@pytest.mark.parametrize("port", PORTS)
def test_port_passes_its_tests_with_the_kit_and_with_a_worker_process(port: str, tmp_path: Path) -> None:
    folder = copy_of(port, tmp_path)
    said = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::ResourceWarning", "test_after.py")
    assert re.search(r"\b[4-9] passed\b", said)
    assert "live_worker" in (folder / "test_after.py").read_text()


@pytest.mark.parametrize("port", PORTS)
def test_what_was_ported_is_python_and_on_its_page(port: str) -> None:
    before = MOVING / port / "before.py"
    compile(before.read_text(), str(before), "exec")
    page = (ROOT / "docs" / "moving" / f"from-{port}.md").read_text()
    shown = re.findall(rf"\{{literalinclude\}} \.\./\.\./examples/moving/{port}/(\w+)\.py", page)
    assert {"before", "after"} <= set(shown)


BEFORE = {
    "threads": """
with before.mail.record_messages() as outbox:
    assert client.post("/signup", data={"email": "ana@example.org"}).status_code == 204
    number = client.post("/exports", data={"rows": 2}).json["export"]
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()
assert [message.subject for message in outbox] == ["Welcome"]
assert client.get(f"/exports/{number}").json == {"progress": "2 of 2", "result": "0,0\\n1,1"}
""",
    "apscheduler": """
with app.app_context():
    before.db.create_all()
at = "2099-01-01T00:00:00+00:00"
assert client.post("/reminders", data={"text": "Tea", "at": at}).json == {"reminder": 1}
assert client.get("/reminders/1").json == {"sent": False, "next": at}
before.remind(1)
assert client.get("/reminders/1").json["sent"]
assert client.post("/tidy").status_code == 204
assert [client.delete("/reminders/1").status_code for _ in range(2)] == [204, 404]
before.scheduler.shutdown()
""",
    "rq": """
with app.app_context():
    before.db.create_all()
    before.db.session.add_all([before.Order(customer="Ana", cents=cents) for cents in (1250, 750)])
    before.db.session.commit()
address = f"/jobs/{client.post('/reports/Ana').json['job']}"
assert client.get(address).json == {"state": "queued", "progress": None, "result": None}
rq.SimpleWorker([before.reports], connection=before.redis).work(burst=True)
assert client.get(address).json == {"state": "finished", "progress": "2 of 2", "result": "2 orders, 20.00"}
assert client.get("/jobs/nothing").status_code == 404
""",
    "celery": """
job = client.post("/compare/tea").json["job"]
assert client.get(f"/jobs/{job}").json == {"ready": True, "result": "tea: south, 298 cents"}
""",
}
"""Says of each application, before it was ported, what the tests of its port say."""

FIRST = {
    "threads": "import threading",
    "apscheduler": "",
    # No server: the broker is in this process.
    "rq": "import fakeredis, redis, rq; redis.Redis.from_url = lambda *_: fakeredis.FakeStrictRedis()",
    "celery": "config = dict(broker_url='memory://', result_backend='cache+memory://', task_always_eager=True, "
    "task_store_eager_result=True)",
}
NEEDS = {"threads": "flask_mail", "apscheduler": "flask_apscheduler", "rq": "fakeredis", "celery": "celery"}


@pytest.mark.parametrize(
    "port", [pytest.param(port, marks=() if port == "threads" else pytest.mark.slow) for port in PORTS]
)
def test_application_does_before_what_its_port_does(port: str, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS[port])
    config = "CELERY=config" if port == "celery" else "TESTING=True"
    made = f"import before\napp = before.create_app({config})\nclient = app.test_client()"
    run(copy_of(port, tmp_path), "-c", "\n".join([FIRST[port], made, BEFORE[port]]))
