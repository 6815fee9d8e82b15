"""Every way to start an application: flask commands, reloaders, servers. A worker runs where it should, only there."""

from __future__ import annotations

import signal
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.system.processes.lab import until
from tests.system.processes.parent import BACKGROUND, BLOCKING, Child, Lab, free_port, get

WEB = """
@app.get("/")
def index():
    return "hello"

@app.get("/enqueue")
def enqueue():
    return str(tasks.add.enqueue(1, 2).id)

@app.cli.command("greet")
def greet():
    record("greet", threads=[t.name for t in threading.enumerate()])

@app.cli.group("db")
def db():
    pass

@db.command("migrate")
def migrate():
    record("migrate", threads=[t.name for t in threading.enumerate()])
"""
START = "task_worker.start()"
OFTEN = {"LAB_TASKER_LOOP_INTERVAL": "0.5"}
"""A reloader's parent sees what it is when it looks."""

COMMANDS = {
    "background": ("shell", "routes", "--help", "greet", "db migrate", "tasks status"),
    "blocking": ("shell", "greet", "tasks status"),
}
UNHEALTHY = 4
"""What ``flask tasks status`` ends with: a job waits and no worker lives."""


@pytest.mark.parametrize("kind", COMMANDS)
def test_no_flask_command_starts_a_worker_at_import_or_blocks(lab: Lab, kind: str) -> None:
    lab.write("app", BACKGROUND if kind == "background" else BLOCKING, WEB, START, "record('imported')")
    job = lab.tasks.add.enqueue(1, 2)
    children = {command: lab.start("flask", "--app", "app", *command.split()) for command in COMMANDS[kind]}
    for command, child in children.items():
        assert child.wait() == (UNHEALTHY if command == "tasks status" else 0), f"{command}: {child.output}"
        assert "Traceback" not in child.output, f"{command}: {child.output}"
    assert {line["pid"] for line in lab.evidence("imported")} == {child.pid for child in children.values()}
    threads = [name for line in lab.evidence("greet") + lab.evidence("migrate") for name in line["threads"]]
    assert set(threads) == {"MainThread"}
    assert lab.row(job).claim == 0


def test_flask_run_starts_the_background_worker(lab: Lab) -> None:
    lab.write("app", BACKGROUND, WEB, START)
    port = free_port()
    child = lab.start("flask", "--app", "app", "run", "--port", str(port))
    job_id = int(get(port, "/enqueue"))
    assert lab.task_worker.get_job(job_id).result(timeout=30) == 3
    assert lab.evidence("end")[0]["pid"] == child.pid
    child.send(signal.SIGINT)
    assert child.wait() == 0, child.output
    assert lab.workers() == []


def test_flask_run_does_not_block_with_a_blocking_worker(lab: Lab) -> None:
    lab.write("app", BLOCKING, WEB, START)
    port = free_port()
    lab.start("flask", "--app", "app", "run", "--port", str(port))
    job_id = int(get(port, "/enqueue"))
    assert lab.task_worker.get_job(job_id).refresh().state == "ready"
    assert lab.workers() == []


def test_flask_tasks_run_works_with_start_at_import(lab: Lab) -> None:
    lab.write("app", BACKGROUND, WEB, START)
    child = lab.start("flask", "--app", "app", "tasks", "run")
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    assert len(lab.workers()) == 1
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.output


def reloading(lab: Lab, how: str, port: int) -> Child:
    if how == "flask run --debug":
        lab.write("app", BACKGROUND, WEB, START)
        return lab.start("flask", "--app", "app", "run", "--debug", "--port", str(port), **OFTEN)
    path = lab.write("app", BACKGROUND, WEB, START, f"app.run(port={port}, debug=True)")
    return lab.start("python", str(path), **OFTEN)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flask run --debug", "app.run(debug=True)"])
def test_reloaders_parent_runs_no_jobs_and_its_child_gets_new_code(lab: Lab, how: str) -> None:
    port = free_port()
    child = reloading(lab, how, port)
    assert get(port) == "hello"
    # The parent has started one too, and gives it up when it sees what it is.
    lab.await_state(lambda: len(lab.workers()) == 1 and lab.workers()[0].pid != child.pid)
    old = lab.workers()[0].pid
    assert [lab.tasks.add.enqueue(1, i).result(timeout=30) for i in range(10)] == list(range(1, 11))
    path = lab.folder / "app.py"
    path.write_text(path.read_text().replace('"hello"', '"changed"') + "\n")
    lab.await_state(lambda: [row.pid for row in lab.workers() if row.pid not in (old, child.pid)])
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3
    new = [row.pid for row in lab.workers()]
    ends = lab.evidence("end")
    assert len(ends) == 11
    assert {line["pid"] for line in ends} == {old, *new}
    assert child.pid not in {line["pid"] for line in ends}
    assert get(port) == "changed"


def test_job_that_the_reloaders_parent_has_begun_is_run_once(lab: Lab) -> None:
    jobs = [lab.tasks.hold.enqueue("g"), lab.tasks.ahold.enqueue("g")]
    port = free_port()
    child = reloading(lab, "app.run(debug=True)", port)
    assert get(port) == "hello"
    lab.await_evidence("start", 2)
    lab.await_state(lambda: "alive" in {row.state for row in lab.workers() if row.pid != child.pid})
    lab.open_gate("g")
    assert [job.result(timeout=30) for job in jobs] == ["g", "g"]
    lab.await_state(lambda: child.pid not in {row.pid for row in lab.workers()})
    assert len(lab.evidence("start")) == 2
    assert [lab.row(job).claim for job in jobs] == [1, 1]


def test_python_app_py(lab: Lab) -> None:
    port = free_port()
    child = lab.start("python", str(lab.write("app", BACKGROUND, WEB, START, f"app.run(port={port})")))
    assert lab.task_worker.get_job(int(get(port, "/enqueue"))).result(timeout=30) == 3
    assert lab.evidence("end")[0]["pid"] == child.pid


# -- gunicorn ----------------------------------------------------------------------------------------------------------


# From this version on it opens a socket in the home directory, and can be told not to.
QUIET = ["--no-control-socket"] if int(version("gunicorn").partition(".")[0]) >= 25 else []


def gunicorn(lab: Lab, *options: str, port: int | None = None) -> Child:
    bind = f"127.0.0.1:{port or free_port()}"
    return lab.start("gunicorn", "--bind", bind, "--worker-tmp-dir", str(lab.folder), *QUIET, *options, "app:app")


@pytest.mark.parametrize(
    "options", ["-w 2", "-w 2 --preload -k gthread --threads 2", pytest.param("-w 2 --reload", marks=pytest.mark.slow)]
)
def test_each_gunicorn_worker_works_and_the_master_does_not(lab: Lab, options: str) -> None:
    lab.write("app", BACKGROUND, WEB, START)
    port = free_port()
    server = gunicorn(lab, *options.split(), port=port)
    # Without any request: a schedule must run on a site without visitors.
    running_jobs = {row.pid for row in lab.await_workers(2)}
    assert server.pid not in running_jobs
    jobs = [lab.task_worker.get_job(int(get(port, "/enqueue"))) for _ in range(10)]
    assert [job.result(timeout=30) for job in jobs] == [3] * 10
    assert len(lab.evidence("end")) == 10
    assert {line["pid"] for line in lab.evidence("end")} <= running_jobs
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.output
    assert lab.workers() == []
    assert "Traceback" not in server.output


@pytest.mark.slow
def test_gunicorn_worker_that_was_killed_is_replaced_as_a_worker_too(lab: Lab) -> None:
    lab.write("app", BACKGROUND, WEB, START)
    gunicorn(lab, "-w", "2", "--preload")
    lab.await_workers(2)
    job = lab.tasks.hold.enqueue("g")
    holder = lab.await_evidence("start")[0]["pid"]
    lab.signal(holder, signal.SIGKILL)
    again = lab.await_evidence("start", 2)[1]
    assert (again["job"], again["claim"]) == (job.id, 2)
    lab.open_gate("g")
    assert job.result(timeout=30) == "g"
    lab.await_state(lambda: len(lab.workers()) == 2 and holder not in {row.pid for row in lab.workers()})


@pytest.mark.slow
def test_gunicorn_lets_jobs_end_when_it_is_asked_to_stop(lab: Lab) -> None:
    lab.write("app", BACKGROUND, WEB, START)
    server = gunicorn(lab, "-w", "2")
    jobs = [lab.tasks.hold.enqueue("g"), lab.tasks.ahold.enqueue("g")]
    lab.await_evidence("start", 2)
    server.send(signal.SIGTERM)
    lab.await_state(lambda: {row.state for row in lab.workers()} <= {"draining"})
    lab.open_gate("g")
    assert server.wait() == 0, server.output
    assert [(lab.row(job).state, lab.row(job).claim) for job in jobs] == [("succeeded", 1)] * 2


@pytest.mark.slow
def test_start_in_a_gunicorn_hook(lab: Lab) -> None:
    lab.write("app", BACKGROUND, WEB)
    hooks = lab.write("hooks", "def post_worker_init(worker):\n    import app\n    app.task_worker.start()")
    server = gunicorn(lab, "-w", "2", "--preload", "-c", str(hooks))
    running_jobs = {row.pid for row in lab.await_workers(2)}
    assert server.pid not in running_jobs
    assert lab.tasks.add.enqueue(1, 2).result(timeout=30) == 3


SCHEDULED = """
# None is left out where the machine is too busy to fire in time.
@task_worker.task(name="tick", schedule=Every(seconds=1, misfire="all", overlap="allow"))
def tick():
    record("tick", fire_at=current_job.fire_at.timestamp())

@task_worker.task(name="atick", schedule=Cron("* * * * * *", misfire="all", overlap="allow"))
async def atick():
    record("atick", fire_at=current_job.fire_at.timestamp())
"""


def ticked_once_each(lab: Lab, what: str) -> None:
    """Four fire times at least, one job each and none left out."""

    def all_in_a_row() -> bool:
        # A later one may be quicker.
        fired = sorted(line["fire_at"] for line in lab.evidence(what))
        assert len(fired) == len(set(fired)), fired
        return len(fired) >= 4 and fired[-1] - fired[0] == len(fired) - 1

    until(all_in_a_row, f"four {what}s in a row")


@pytest.mark.slow
def test_schedule_ticks_once_under_three_gunicorn_workers(lab: Lab) -> None:
    lab.write("app", BACKGROUND, WEB, SCHEDULED, START)
    gunicorn(lab, "-w", "3")
    ticked_once_each(lab, "tick")
    ticked_once_each(lab, "atick")


@pytest.mark.slow
def test_schedule_ticks_once_in_two_processes(lab: Lab) -> None:
    lab.write("web", BACKGROUND, SCHEDULED, START, "threading.Event().wait()")
    lab.write("worker", BLOCKING, SCHEDULED, START)
    for name in ("web", "worker"):
        lab.start("python", str(Path(lab.folder, f"{name}.py")))
    ticked_once_each(lab, "tick")
    ticked_once_each(lab, "atick")


@pytest.mark.slow
def test_tasks_have_the_same_names_however_the_module_is_run(lab: Lab) -> None:
    """``python app.py`` enqueues; the worker is ``flask --app app tasks run``, where the module has another name."""
    path = lab.write(
        "app", BACKGROUND, """
        @task_worker.task
        def double(number):
            record("doubled")
            return 2 * number

        if __name__ == "__main__":
            record("result", value=double.enqueue(4).result(timeout=PATIENCE))
        """,
    )  # fmt: skip
    worker = lab.start("flask", "--app", "app", "tasks", "run")
    lab.start("python", str(path)).went_well()
    assert lab.evidence("result")[0]["value"] == 8
    assert lab.evidence("doubled")[0]["pid"] == worker.pid
