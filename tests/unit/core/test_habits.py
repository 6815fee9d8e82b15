"""What people write by habit from other libraries is answered with the call that works."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, Mail, Retry
from flask_taskworker.errors import JobCancelled, TaskWorkerError
from tests.support.waiting import wait_for

task_worker = BackgroundTaskWorker()


@task_worker.task(name="shop.add")
def add(a: int, b: int) -> int:
    return a + b


# For the type checker these are errors already.
task: Any = add
declare: Any = task_worker.task
every: Any = Every
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("habit", "answer"),
    [
        (lambda: task.delay(1, 2), "Write add.enqueue(…)"),
        (lambda: task.send(1, 2), "Write add.enqueue(…)"),
        (lambda: task.apply_async((1, 2), countdown=5), "Write add.using(delay=…, queue=…).enqueue(…)"),
        (lambda: task.s(1, 2), "Write add.bind(…)"),
        (lambda: task.starmap([(1, 2)]), "Write add.enqueue_many([(1,), (2,)])"),
        (lambda: task.enqueue(1, 2, delay=5), "Write add.using(delay=5).enqueue(1, 2)."),
        (lambda: task.enqueue(1, b=2, countdown=5), "Write add.using(delay=5).enqueue(1, b=2)."),
        (lambda: task.enqueue(1, 2, eta=NOON), f"Write add.using(run_at={NOON!r}).enqueue(1, 2)."),
        (lambda: task.enqueue(1, 2, queue="x", priority=3), "Write add.using(queue='x', priority=3).enqueue(1, 2)."),
        (lambda: task.enqueue(args=(1, 2)), "Write add.enqueue(*args, **kwargs)"),
        (lambda: task.enqueue(1, 2, max_retries=3), "Write @task_worker.task(retry=1 + 3)."),
        (lambda: task.using(countdown=5), "Write add.using(delay=5)"),
        (lambda: task.using(colour="red"), "It takes delay, run_at, expires, priority"),
        (lambda: declare(retries=3), "Write @task_worker.task(retry=1 + 3)."),
        (lambda: declare(autoretry_for=(OSError,)), "Write @task_worker.task(retry=Retry(5, on=OSError))."),
        (lambda: declare(time_limit=60), "Write @task_worker.task(timeout=60)."),
        (lambda: declare(bind=True), "Leave bind out: current_job is the running job"),
        (lambda: declare("shop.add"), "Write @task_worker.task(name='shop.add')."),
        (lambda: declare(schedule="*/5 * * * *"), "Give Cron('*/5 * * * *')."),
        (lambda: declare(schedule=30), "Give Every(seconds=30)."),
        (lambda: declare(schedule=timedelta(minutes=1)), "Give Every(seconds=60)."),
        (lambda: every(5), "Give Every(seconds=5), or minutes="),
        (lambda: task_worker.send_task("shop.add"), "Write the_task.enqueue(…)"),  # type: ignore[attr-defined]
        (lambda: task_worker.periodic_task, "Write @task_worker.task(schedule=Cron(…))"),  # type: ignore[attr-defined]
    ],
)
def test_habit_is_answered_with_the_call_that_works(app: Flask, habit: Callable[[], object], answer: str) -> None:
    task_worker.init_app(app)
    with app.app_context(), pytest.raises((TaskWorkerError, AttributeError)) as caught:
        habit()
    assert answer in str(caught.value)


def test_what_a_hint_says_works() -> None:
    task_worker.task(name="retries", retry=1 + 3)(lambda: None)
    task_worker.task(name="retry on", retry=Retry(5, on=OSError))(lambda: None)
    task_worker.task(name="every", schedule=Every(seconds=60))(lambda: None)
    assert add.using(queue="x", priority=3).bind(1, 2)


def test_a_task_has_the_attributes_of_its_function_and_no_others() -> None:
    assert add.__name__ == "add"
    assert not hasattr(add, "delay")
    assert not hasattr(add, "__len__")


def test_job_answers_the_habits_of_other_results(app: Flask, make_worker: Callable[..., BackgroundTaskWorker]) -> None:
    job: Any = make_worker(app).task(name="work")(lambda: 7).enqueue()
    with pytest.raises(AttributeError, match=r"A job has no 'get'. Write job\.result\(timeout=…\)"):
        job.get()
    assert job.result(timeout=10) == 7


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("TASKER_QUEUS", "TASKER_QUEUES"),
        ("TASKWORKER_QUEUES", "TASKER_QUEUES"),
        ("TASK_WORKER_THREADS", "TASKER_THREADS"),
        ("MAIL_SERVR", "MAIL_SERVER"),
        ("MAIL_DEFAULT_SENDR", "MAIL_DEFAULT_SENDER"),
    ],
)
def test_misspelled_setting_is_named_with_the_one_that_is_meant(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, key: str, meant: str
) -> None:
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config[key] = "x"
    with caplog.at_level(logging.WARNING):
        BackgroundTaskWorker(app)
        Mail(app)
    assert f"has {key}" in caplog.text
    assert f"Did you mean {meant}?" in caplog.text


def test_setting_of_another_package_is_no_misspelling(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config.update(MAIL_SENDER="x", MAILER_URL="y", MAIL_TEMPLATE_FOLDER="z", MAIL_SERVER="localhost")
    with caplog.at_level(logging.WARNING):
        Mail(app)
    assert caplog.text == ""


@pytest.mark.parametrize(("habit", "command"), [("worker", "run"), ("beat", "run"), ("inspect", "status")])
def test_command_of_another_queue_is_answered_with_ours(app: Flask, habit: str, command: str) -> None:
    BackgroundTaskWorker(app)
    name = app.extensions["taskworker"].config.command
    done = app.test_cli_runner().invoke(args=[name, habit])
    assert done.exit_code == 2
    assert f"No such command '{habit}'. It is called: " in done.output
    assert done.output.strip().endswith(f"{name} {command}")


def test_wait_without_a_timeout_that_no_worker_will_end_is_said_in_the_log(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    task_worker = BackgroundTaskWorker(app)
    client = app.extensions["taskworker"].client
    client.report_after = 0.0
    with app.app_context(), caplog.at_level(logging.WARNING):
        job = task_worker.task(name="work")(lambda: None).enqueue()
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(job.result)
            wait_for(lambda: "for the result of job" in caplog.text)
            job.cancel()
            with pytest.raises(JobCancelled):
                waiting.result(timeout=10)
    assert "without a timeout" in caplog.text
    assert "worker" in caplog.text
