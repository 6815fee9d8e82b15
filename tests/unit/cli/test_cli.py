"""The commands that look and act, called in this process; ``flask tasks run`` has a module of its own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from flask import Flask
from flask.cli import ScriptInfo

from flask_taskworker import BackgroundTaskWorker, Every, Job, JobState
from flask_taskworker.cli.text import safe, to_json
from flask_taskworker.commands import tasks_command
from flask_taskworker.core.words import spoken
from flask_taskworker.store.statements import jobs as job_statements
from tests.support.cli_shop import Shop

MINUTE = 60_000


@pytest.fixture
def shop(make_app: Callable[..., Flask]) -> Iterator[Shop]:
    shop = Shop(make_app())
    yield shop
    shop.task_worker.stop()
    shop.state.client.close()


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_of_an_empty_store_is_healthy_and_teaches(shop: Shop) -> None:
    answer = shop("status")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("Healthy.\n")
    assert "No worker runs. Start one: flask tasks run" in answer.out
    assert "There is no job yet. Enqueue one: flask tasks call NAME" in answer.out


def test_status_is_unhealthy_while_jobs_are_ready_and_no_worker_lives(shop: Shop) -> None:
    shop.add.enqueue(1)
    answer = shop("status")
    assert answer.code == 4
    assert answer.out.startswith(
        "Unhealthy.\n  - 1 job is ready and no living worker takes it. Start one: flask tasks run\n"
    )
    shop.register_worker()
    assert shop("status").code == 0


def test_status_is_unhealthy_while_jobs_are_due_and_no_worker_lives(shop: Shop) -> None:
    shop.add.using(delay=60).enqueue(1)
    assert shop("status").code == 0
    shop.jump(5 * MINUTE)
    answer = shop("status")
    assert answer.code == 4
    assert "Jobs have been due for 4 min and no living worker takes them." in answer.out


def test_status_is_unhealthy_while_schedules_are_due_and_no_worker_lives(shop: Shop) -> None:
    shop.add.schedule(Every(seconds=1), name="often", args=(1,))
    assert shop("status").code == 0
    shop.jump(5 * MINUTE + MINUTE // 2)
    answer = shop("status")
    assert answer.code == 4
    assert "Schedule 'often' is late by 5 min: no living worker fires it. Start one with this code" in answer.out
    assert [line.split()[-4:] for line in answer.out.splitlines() if line.startswith("  often")] == [
        ["by", "5", "min", "late"]
    ]
    # Workers live, but with other code or without the scheduler.
    shop.register_worker()
    answer = shop("status", "--json")
    assert answer.code == 4
    assert answer.json["healthy"] is False
    assert [problem.partition(":")[0] for problem in answer.json["problems"]] == ["Schedule 'often' is late by 5 min"]


def test_status_names_the_latest_of_many_schedules(shop: Shop) -> None:
    shop.add.schedule(Every(minutes=1), name="often", args=(1,))
    shop.add.schedule(Every(hours=1), name="paused", args=(1,))
    shop.add.schedule(Every(hours=2), name="rarely", args=(1,))
    shop("schedule", "pause", "paused")
    shop.jump(2 * 60 * MINUTE + 2 * MINUTE)
    assert "2 schedules are late, 'often' by 2 h 1 min: no living worker fires them." in shop("status").out


def test_status_is_unhealthy_when_a_worker_has_not_checked_in(shop: Shop) -> None:
    shop.register_worker(silent_for=10_000)
    assert shop("status").code == 0
    shop.jump(4 * MINUTE)
    answer = shop("status")
    assert answer.code == 4
    assert "Worker web1:4312 has not checked in for 4 min: frozen, cut off or dead." in answer.out


def test_status_is_unhealthy_when_no_living_worker_works_on_a_queue(shop: Shop) -> None:
    shop.register_worker(["default", "mail"])
    shop.add.enqueue(1)
    assert shop("status").code == 0
    shop.crawl.enqueue("x")
    answer = shop("status")
    assert answer.code == 4
    assert "Queue 'web' has jobs that are ready (1) and no living worker works on it." in answer.out
    assert "Start one: flask tasks run web" in answer.out


def test_status_is_unhealthy_when_a_job_has_been_ready_for_too_long(shop: Shop) -> None:
    shop.add.enqueue(1)
    shop.jump(4 * MINUTE)
    shop.register_worker()
    assert shop("status").code == 0
    shop.jump(6 * MINUTE)
    answer = shop("status")
    assert answer.code == 4
    assert "A job in queue 'default' has been ready for 6 min." in answer.out


def test_retried_job_has_waited_since_it_was_retried(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    job.cancel()
    shop.jump(60 * MINUTE)
    job.retry()
    status = shop("status", "--json").json
    assert datetime.fromisoformat(status["at"]) - datetime.fromisoformat(status["queues"][0]["oldest_at"]) < timedelta(
        seconds=60
    )


def test_long_queue_hides_no_other(shop: Shop) -> None:
    shop.add.enqueue_many([(1,), (2,), (3,)])
    shop.crawl.enqueue("x")
    rows = shop.state.store.driver.read(job_statements.waiting_by_queue(), {"most": 2})
    assert [(name, ready) for name, ready, _ in rows] == [("default", 2), ("web", 1)]


def test_status_shows_workers_queues_counts_and_schedules(shop: Shop) -> None:
    shop.register_worker()
    shop.add.enqueue(1)
    shop.add.schedule(Every(hours=3), name="rarely", args=(1,))
    lines = shop("status").out.splitlines()
    worker = next(line.split() for line in lines if "web1:4312" in line)
    assert (worker[1], worker[-6:]) == ("up", ["1/100", "2/6", "99", "MB", "all", "0123456789ab"])
    assert any(line.split()[:4] == ["default", "ok", "1", "0/106"] for line in lines)
    assert any(line.split() == ["0", "1", "0", "0", "0", "0", "0"] for line in lines)
    assert any(line.split()[:5] == ["rarely", "every", "3", "hours", "never"] for line in lines)


def test_status_as_json_is_one_line_with_all_of_it(shop: Shop) -> None:
    shop.register_worker(["web"])
    shop.crawl.enqueue("x")
    shop.add.schedule(Every(hours=3), name="rarely", args=(1,))
    answer = shop("status", "--json")
    assert answer.out.count("\n") == 1
    status = answer.json
    assert (status["healthy"], status["problems"]) == (True, [])
    assert (status["workers"][0]["host"], status["workers"][0]["queues"]) == ("web1", ["web"])
    assert (status["queues"][0]["name"], status["counts"]["ready"]) == ("web", 1)
    assert status["schedules"][0]["when"] == "every 3 hours"


# -- list --------------------------------------------------------------------------------------------------------------


def test_list_shows_signature_options_and_schedules(shop: Shop) -> None:
    answer = shop("list")
    lines = answer.out.splitlines()
    assert (answer.code, answer.err) == (0, "")
    assert lines[:4] == [
        "shop.add(x: int, y: int = 2) -> int",
        "    sync, queue default, no retry",
        "shop.crawl(url: str, *, depth: int = 1) -> dict[str, object]",
        "    async, queue web, priority 10, retry: 3 tries, exponential, from 1 min to 1 h, timeout 30 s",
    ]
    assert '    schedule shop.nightly: 0 3 * * * (Europe/Berlin) "At 03:00 every day", next 20' in answer.out
    assert "    schedule shop.nightly#2: every hour, next 20" in answer.out


def test_list_as_json_has_an_object_a_line(shop: Shop) -> None:
    tasks = [json.loads(line) for line in shop("list", "--json").out.splitlines()]
    assert [task["name"] for task in tasks] == ["shop.add", "shop.crawl", "shop.nightly"]
    assert (tasks[1]["kind"], tasks[1]["max_attempts"], tasks[1]["timeout_s"]) == ("async", 3, 30.0)
    following = datetime.fromisoformat(tasks[2]["schedules"][0]["next_at"])
    assert timedelta(0) < following - datetime.now(UTC) <= timedelta(hours=25)


def test_list_of_an_app_without_tasks_says_what_to_do(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    task_worker = BackgroundTaskWorker(app)
    result = app.test_cli_runner().invoke(args=["tasks", "list"])
    assert len(task_worker.registry) == 0
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Declare one with @task_worker.task" in result.stderr


# -- call --------------------------------------------------------------------------------------------------------------


def enqueued(shop: Shop, *words: str) -> tuple[Job[Any], Any]:
    """The job that ``flask tasks call`` with these words makes, and its arguments."""
    answer = shop("call", *words)
    assert (answer.code, answer.err) == (0, "")
    job = shop.task_worker.get_job(int(answer.out))
    return job, shop.task_worker.registry.codec.decode_call(shop.state.store.args(job.id))


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["x=1", "y=-2.5"], ((), {"x": 1, "y": -2.5})),
        (["x=ana", 'y="1"'], ((), {"x": "ana", "y": "1"})),
        (['x=["a", null]', "y="], ((), {"x": ["a", None], "y": ""})),
        (["x=NaN", "y=a=b"], ((), {"x": "NaN", "y": "a=b"})),
        (["--json", '{"x": {"a": 1}}', "y=3"], ((), {"x": {"a": 1}, "y": 3})),
        (["--args", '[1, "b"]'], ((1, "b"), {})),
        (["--args", "[1]", "y=3"], ((1,), {"y": 3})),
    ],
)
def test_call_reads_values_as_json_if_they_are_else_as_text(shop: Shop, words: list[str], args: Any) -> None:
    assert enqueued(shop, "shop.add", *words)[1] == args


def test_call_passes_queue_priority_and_time_on(shop: Shop) -> None:
    job, _ = enqueued(shop, "shop.crawl", "url=x", "--queue", "slow", "--priority", "-3", "--in", "2h")
    assert (job.queue, job.priority, job.state) == ("slow", -3, JobState.SCHEDULED)
    assert job.run_at is not None
    assert job.created_at is not None
    assert job.run_at - job.created_at == timedelta(hours=2)
    at, _ = enqueued(shop, "shop.crawl", "url=x", "--at", "2199-05-01T12:00:00+02:00")
    assert at.run_at == datetime(2199, 5, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["z=1"], ": missing a required argument: 'x'"),
        (["x"], "'x' is not KEY=VALUE. Positional arguments go into --args '[…]'."),
        (["=1"], "'=1' is not KEY=VALUE"),
        (["x=1", "x=2"], "The argument 'x' is given twice."),
        (["--json", "[1]"], "--json is '[1]'. Give an object"),
        (["--json", "{"], "--json is not JSON: "),
        (["--args", "{}"], "--args is '{}'. Give an array"),
        (["--args", "[1]", "--json", '{"x": 2}'], "multiple values for argument 'x'"),
        (["x=1", "--in", "soon"], "'soon' is not a period. Give seconds, or for example 30s"),
        (["z=1", "--now"], ": missing a required argument: 'x'"),
        (["x=1", "--in", "99999w"], "'99999w' is out of range"),
        (["x=1", "--in", "1s", "--at", "2199-01-01T00:00:00Z"], "Give either --in or --at, not both."),
        (["x=1", "--at", "2199-01-01"], "has no offset from UTC. Add one, such as 2199-01-01T00:00:00Z."),
        (["x=1", "--at", "noon"], "'noon' is not a moment. Give one such as"),
        (["x=1", "--queue", ""], "queue = '' is not allowed"),
        (["x=1", "--priority", "3000000000"], "priority = 3000000000 is not allowed"),
        (["x=1", "--now", "--in", "5"], "--now makes no job. Leave out --in"),
        (["x=1", "--wait", "y=2"], "To wait without a limit put --wait last."),
    ],
)
def test_call_refuses_what_does_not_fit_and_stores_nothing(shop: Shop, words: list[str], message: str) -> None:
    answer = shop("call", "shop.add", *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert sum(getattr(shop.state.store.counts(), name) for name in ("ready", "scheduled")) == 0


def test_call_of_an_unknown_task_names_those_that_exist(shop: Shop) -> None:
    answer = shop("call", "shop.nope")
    assert (answer.code, answer.out) == (3, "")
    known = "shop.add, shop.crawl, shop.nightly"
    assert answer.err == f"Error: No task is registered as 'shop.nope'. Registered: {known}.\n"


def test_call_now_runs_in_an_app_context_without_a_job(shop: Shop) -> None:
    answer = shop("call", "shop.crawl", "url=x", "--now")
    assert answer.json == {"app": shop.app.name, "at": "2026-01-02T00:00:00+00:00", "pair": ["x", 1]}
    assert shop("call", "shop.add", "x=4", "--now").out == "6\n"
    assert shop.ran == [(4, 2)]
    assert shop("status", "--json").json["counts"]["ready"] == 0


def test_call_now_shows_the_exception_of_the_task(shop: Shop) -> None:
    with pytest.raises(ValueError, match="is no number"):
        shop("call", "shop.add", "x=a", "--now")


def test_call_wait_prints_the_result(shop: Shop) -> None:
    shop.task_worker.start()
    answer = shop("call", "shop.crawl", "url=x", "--wait", "20")
    assert answer.code == 0
    assert answer.json["pair"] == ["x", 1]
    assert answer.err.startswith("Waiting for job 1.")
    assert shop("call", "shop.nightly", "--wait").out == "null\n"


def test_call_wait_fails_with_the_job_in_one_line(shop: Shop) -> None:
    shop.task_worker.start()
    answer = shop("call", "shop.add", "x=a", "--wait", "20")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[-1] == r"Error: Job 1 failed: ValueError: \x1b[31ma is no number"


def test_call_wait_says_when_no_worker_is_there(shop: Shop) -> None:
    answer = shop("call", "shop.add", "x=1", "--wait", "0")
    assert answer.code == 1
    assert "No worker runs, so nothing will happen until you start one: flask tasks run" in answer.err
    assert "Error: Job 1 had no result within the timeout." in answer.err


# -- job ---------------------------------------------------------------------------------------------------------------


def test_job_shows_state_arguments_and_result(shop: Shop) -> None:
    with shop.app.app_context():
        job = shop.crawl.using(unique="k").enqueue("x", depth=3)
    assert '  arguments   "x", depth=3\n' in shop("job", str(job.id)).out
    shop.work()
    out = shop("job", str(job.id)).out
    assert out.startswith(f"Job {job.id} shop.crawl\n  state       succeeded\n")
    assert f'  result      {{"app": "{shop.app.name}", "at": "2026-01-02T00:00:00+00:00", "pair": ["x", 3]}}\n' in out
    assert "  tries       1 of 3, claimed 1 time\n" in out
    assert "  unique key  shop.crawl:k\n" in out


def test_job_shows_each_failed_try_with_its_traceback(shop: Shop) -> None:
    job = shop.crawl.enqueue("bad")
    shop.work()
    answer = shop("job", str(job.id))
    assert r"  error      ValueError: no\nsuch \x1b[31mpage" in answer.out
    assert "\nTry 1: retrying after " in answer.out
    assert "\n  Traceback (most recent call last):\n" in answer.out
    assert "\x1b" not in answer.out


def test_job_as_json_has_all_of_it(shop: Shop) -> None:
    job = shop.crawl.enqueue("bad")
    shop.work()
    answer = shop("job", str(job.id), "--json")
    assert answer.out.count("\n") == 1
    found = answer.json
    assert (found["id"], found["task"], found["state"]) == (job.id, "shop.crawl", "retrying")
    assert (found["args"], found["kwargs"], found["result"]) == (["bad"], {}, None)
    assert found["error"]["message"] == "no\nsuch \x1b[31mpage"
    assert [(one["attempt"], one["outcome"]) for one in found["tries"]] == [(1, "retrying")]
    assert datetime.fromisoformat(found["created_at"]).tzinfo is not None


@pytest.mark.parametrize("stored", ['[[{"$":"shop.Gone","v":1}],{}]', "no JSON \x1b[31m", "[" * 5000])
def test_job_whose_arguments_nobody_can_read_is_shown_all_the_same(shop: Shop, stored: str) -> None:
    job = shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_job SET args = ?", stored)
    assert f"  arguments  {safe(stored[:40])}" in shop("job", str(job.id)).out
    assert shop("job", str(job.id), "--json").json["args"]


def test_unknown_job_is_told_by_the_exit_code(shop: Shop) -> None:
    answer = shop("job", "77")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("Error: There is no job 77: ")


# -- retry and cancel --------------------------------------------------------------------------------------------------


def test_cancel_and_retry_print_the_jobs_with_which_it_was_possible(shop: Shop) -> None:
    one, two = (job.id for job in shop.add.enqueue_many([(1,), (2,)]))
    answer = shop("cancel", str(one), str(two), str(one))
    assert (answer.code, answer.out) == (0, f"{one}\n{two}\n")
    answer = shop("retry", str(one), "77")
    assert (answer.code, answer.out) == (1, f"{one}\n")
    assert answer.err.splitlines()[0] == f"Job {one} is ready."
    assert answer.err.splitlines()[1].startswith("There is no job 77: ")
    answer = shop("cancel", str(two))
    assert (answer.code, answer.out) == (3, "")
    assert answer.err == f"Job {two} is cancelled: it has finished already.\n"
    answer = shop("retry", str(one))
    assert (answer.code, answer.err) == (
        3,
        f"Job {one} is ready: only failed and cancelled jobs can be tried again.\n",
    )


def test_retry_goes_on_after_a_job_whose_unique_key_is_taken(shop: Shop) -> None:
    first = shop.add.using(unique="k").enqueue(1)
    first.cancel()
    shop.add.using(unique="k").enqueue(2)
    other = shop.add.enqueue(3)
    other.cancel()
    answer = shop("retry", str(first.id), str(other.id))
    assert (answer.code, answer.out) == (1, f"{other.id}\n")
    assert f"Job {first.id} cannot run again: " in answer.err


# -- what holds for all ------------------------------------------------------------------------------------------------


def write(shop: Shop, sql: str, *values: Any) -> None:
    path = shop.state.config.database_uri.database or ""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql, values)
        connection.commit()


def test_schema_of_another_version_is_told_by_the_exit_code(shop: Shop) -> None:
    shop.state.store.driver.prepare()
    write(shop, "UPDATE taskworker_meta SET value = '99' WHERE name = 'schema_version'")
    other = Shop(Flask("shop2", instance_path=shop.app.instance_path + "2"), tables=False)
    assert other.state.config.database_uri != shop.state.config.database_uri
    Path(shop.state.config.database_uri.database or "").rename(other_path(other))
    answer = other("status")
    assert (answer.code, answer.out) == (5, "")
    assert answer.err.startswith("Error: The task database has schema version 99, ")
    assert answer.err.count("\n") == 1


def other_path(shop: Shop) -> Path:
    path = Path(shop.state.config.database_uri.database or "")
    path.parent.mkdir()
    return path


def test_database_that_cannot_be_opened_is_one_line(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    shop = Shop(make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}"), tables=False)
    for words in (["status"], ["run"], ["job", "1"], ["call", "shop.add", "x=1"]):
        answer = shop(*words)
        assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1), answer.err
        assert answer.err.startswith("Error: ")


def test_no_color_wins(shop: Shop) -> None:
    assert "\x1b[" in shop("status", color=True).out
    assert "\x1b[" not in shop("status", color=True, env={"NO_COLOR": "1"}).out


def test_options_of_reading_commands_come_from_the_environment(shop: Shop) -> None:
    assert shop("status", env={"TASKER_CLI_STATUS_JSON": "1"}).json["healthy"]


def test_help_names_an_environment_variable_for_every_option() -> None:
    context = click.Context(tasks_command)
    for name in tasks_command.list_commands(context):
        command = tasks_command.get_command(context, name)
        assert command is not None
        text = " ".join(command.get_help(click.Context(command, info_name=name)).split())
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        for option in options:
            word = next(word for word in option.opts if word.startswith("--"))
            variable = f"TASKER_CLI_{name}_{word[2:].replace('-', '_')}".upper()
            assert f"env var: {variable}" in text, f"{name} {word}"


def test_app_with_a_worker_and_mail_imports_no_commands() -> None:
    script = (
        "import sys\n"
        "from flask import Flask\n"
        "from flask_taskworker import BackgroundTaskWorker, Mail\n"
        "app = Flask('lean')\n"
        "BackgroundTaskWorker(app), Mail(app)\n"
        "print([name for name in sys.modules if 'taskworker' in name and 'cli' in name.split('.')])\n"
        "runner = app.test_cli_runner()\n"
        "print(runner.invoke(args=['tasks', 'list', '--help']).exit_code)\n"
        "print(runner.invoke(args=['mail', 'list', '--help']).exit_code)\n"
        "print(runner.invoke(args=['mail', 'send-test', '--help']).exit_code)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split() == ["[]", "0", "0", "0"]


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        (["call"], "shop.c", ["shop.crawl"]),
        (["run", "web"], "", ["default", "web"]),
        (["call", "shop.add", "--queue"], "w", ["web"]),
        (["run"], "--max-m", ["--max-memory"]),
        ([], "st", ["status"]),
    ],
)
def test_shell_completes_commands_options_tasks_and_queues(
    shop: Shop, words: list[str], incomplete: str, found: list[str]
) -> None:
    info = ScriptInfo(create_app=lambda: shop.app)
    complete = ShellComplete(shop.app.cli, {"obj": info}, "flask", "_FLASK_COMPLETE")
    assert [item.value for item in complete.get_completions(["tasks", *words], incomplete)] == found


# -- texts -------------------------------------------------------------------------------------------------------------


def test_control_characters_are_written_as_escapes() -> None:
    assert safe("a\x1b[31m\n\x9b\u202eü") == "a\\x1b[31m\\n\\x9b\\u202eü"
    line = to_json({"a\x1b": "\x9b\u202e\U000e0001ü"})
    assert line.isprintable()
    assert json.loads(line) == {"a\x1b": "\x9b\u202e\U000e0001ü"}


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (7, "7 ms"),
        (400, "0.4 s"),
        (9_000, "9 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (3_599_000, "59 min"),
        (11_100_000, "3 h 5 min"),
        (183_600_000, "2 d 3 h"),
    ],
)
def test_periods_are_spoken_in_two_units(milliseconds: int, words: str) -> None:
    assert spoken(milliseconds) == words
