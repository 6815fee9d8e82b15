"""The commands that list jobs and steer them, called in this process."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from flask import Flask
from flask.cli import ScriptInfo

from flask_taskworker import Every, Job, JobState, Mail
from flask_taskworker.cli import group, listing, log_output, operations
from flask_taskworker.cli.follow import Followed
from flask_taskworker.ops import browse
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.work import PRUNE_BATCH
from tests.support.cli_shop import Answer, Shop

HOUR = 3_600_000
INJECTIONS = [
    "'; DROP TABLE taskworker_job; --",
    "' OR '1'='1",
    '" OR ""="',
    "1; DELETE FROM taskworker_job",
    "x' UNION SELECT value FROM taskworker_meta --",
    "%",
    "\\' OR 1=1 --",
]
HOSTILE = ["\x1b[31mred", "two\nlines", "bell\x07", "\u202eright to left", "tab\tbed"]


@pytest.fixture
def shop(make_app: Callable[..., Flask]) -> Iterator[Shop]:
    shop = Shop(make_app())
    yield shop
    shop.task_worker.stop()
    shop.state.client.close()


def fail(shop: Shop, *numbers: int) -> list[Job[int]]:
    """Jobs that have failed: what stands in for a number is none."""
    jobs = shop.add.enqueue_many([(f"n{number}",) for number in numbers])
    shop.work()
    return [job.refresh() for job in jobs]


def rows_of(answer: Answer) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.out.splitlines()]


def write(shop: Shop, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(shop.state.config.database_uri.database or "")) as connection:
        connection.execute(sql, values)
        connection.commit()


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_the_newest_first(shop: Shop) -> None:
    one, two = shop.add.enqueue(1), shop.crawl.using(delay=3600).enqueue("x")
    answer = shop("jobs")
    assert (answer.code, answer.err) == (0, "")
    header, first, second = answer.out.splitlines()
    assert header.split() == ["job", "task", "state", "queue", "try", "age", "took", "error"]
    assert first.split()[:6] == [str(two.id), "shop.crawl", "scheduled", "in", "59", "min"]
    assert second.split()[:5] == [str(one.id), "shop.add", "ready", "default", "1/1"]


def test_jobs_of_an_empty_store_teach(shop: Shop) -> None:
    assert shop("jobs") == Answer(0, "", "There is no job yet. Enqueue one: flask tasks call NAME\n")


def test_jobs_that_fit_the_filter_are_listed_as_json(shop: Shop) -> None:
    shop.add.enqueue(1)
    job = shop.crawl.enqueue("https://example.org/a b")
    for words in (["queue:web"], ["task:shop.c*", "state:ready"], ['args.url:"https://example.org/a b"']):
        (row,) = rows_of(shop("jobs", "--json", *words))
        assert (row["id"], row["task"], row["state"], row["discarded"]) == (job.id, "shop.crawl", "ready", False)


def test_jobs_that_do_not_fit_end_with_3(shop: Shop) -> None:
    shop.add.enqueue(1)
    assert shop("jobs", "state:failed") == Answer(3, "", "No job fits the filter.\n")
    assert shop("jobs", "state:failed", "--json").code == 3


def test_older_jobs_are_on_the_next_page(shop: Shop) -> None:
    ids = [job.id for job in shop.add.enqueue_many([(n,) for n in range(5)])]
    answer = shop("jobs", "--limit", "2", "--json")
    assert [row["id"] for row in rows_of(answer)] == ids[:2:-1]
    assert answer.err == f"Older jobs: --before {ids[3]}\n"
    answer = shop("jobs", "--before", str(ids[3]), "--json")
    assert [row["id"] for row in rows_of(answer)] == ids[2::-1]
    assert answer.err == ""


def test_first_job_that_fits_is_found_beyond_the_first_page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 3)
    first = shop.crawl.enqueue("x")
    shop.add.enqueue_many([(n,) for n in range(10)])
    (row,) = rows_of(shop("jobs", "task:shop.crawl", "--json"))
    assert row["id"] == first.id
    answer = shop("jobs", "task:nope")
    assert answer == Answer(3, "", "No job fits the filter.\n")


@pytest.mark.parametrize(
    "words", [["nope:1"], ["state:odd"], ["after:soon"], ['"open'], ["--limit", "0"], ["x" * 2000]]
)
def test_wrong_filter_is_wrong_usage(shop: Shop, words: list[str]) -> None:
    answer = shop("jobs", *words)
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err


def test_progress_and_error_of_a_job_are_in_the_list(shop: Shop) -> None:
    (job,) = fail(shop, 1)
    assert r"ValueError: \x1b[31mn1 is no number" in shop("jobs").out
    running = "state = 'running', worker_id = 'w', finished_at = NULL, expires_at = NULL"
    write(shop, f"UPDATE taskworker_job SET {running}, progress = '[1, 4, \"x\"]' WHERE id = ?", job.id)
    assert "running 25 %" in shop("jobs", "state:running").out


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failures_are_grouped_by_their_cause(shop: Shop) -> None:
    jobs = fail(shop, 1, 2, 3)
    shop.crawl.enqueue("bad")
    (row,) = rows_of(shop("failures", "--json"))
    assert (row["count"], row["task"], row["newest"]) == (3, "shop.add", jobs[-1].id)
    assert row["error"] == {"kind": "exception", "type": "ValueError", "message": "\x1b[31mn3 is no number"}
    answer = shop("failures")
    assert answer.code == 0
    assert r"ValueError: \x1b[31mn3 is no number" in answer.out
    assert "\x1b" not in answer.out


def test_failures_are_those_since_then(shop: Shop) -> None:
    fail(shop, 1)
    shop.jump(2 * HOUR)
    assert shop("failures", "--since", "3h").out != ""
    assert shop("failures", "--since", "1h") == Answer(0, "", "No job failed in the last 1 h.\n")


def test_retry_of_a_group_takes_its_jobs_and_no_others(shop: Shop) -> None:
    jobs = fail(shop, 1, 2)
    write(shop, "UPDATE taskworker_job SET failure_group = 'other' WHERE id = ?", jobs[0].id)
    (row,) = [row for row in rows_of(shop("failures", "--json")) if row["group"] != "other"]
    answer = shop("retry", "--group", str(row["group"]), "--yes")
    assert (answer.code, answer.out) == (0, "1\n")
    assert [job.refresh().state for job in jobs] == [JobState.FAILED, JobState.READY]


# -- acts on many ------------------------------------------------------------------------------------------------------


def test_act_on_many_refuses_without_yes_where_nobody_can_be_asked(shop: Shop) -> None:
    jobs = fail(shop, 1, 2)
    for act in ("retry", "discard"):
        answer = shop(act, "--filter", "state:failed")
        assert (answer.code, answer.out) == (2, "")
        assert f"{act.capitalize()} 2 jobs? Nobody can be asked here; add --yes if that is meant." in answer.err
    assert {job.refresh().state for job in jobs} == {JobState.FAILED}


def test_act_on_many_does_it_and_prints_how_many(shop: Shop) -> None:
    jobs = fail(shop, 1, 2, 3)
    assert shop("retry", "--filter", f"id:{jobs[0].id}", "--yes") == Answer(0, "1\n", "")
    assert shop("retry", "--filter", "task:shop.*", "--yes").out == "2\n"
    assert {job.refresh().state for job in jobs} == {JobState.READY}
    assert shop("cancel", "--filter", "state:ready", "--yes").out == "3\n"
    assert {job.refresh().state for job in jobs} == {JobState.CANCELLED}
    assert shop("discard", "--filter", "task:*", "--yes").out == "3\n"
    assert shop("jobs").out == ""
    assert shop("restore", "--filter", "task:*", "--yes").out == "3\n"
    assert len(rows_of(shop("jobs", "--json"))) == 3


def test_dry_run_prints_the_jobs_and_changes_nothing(shop: Shop) -> None:
    jobs = fail(shop, 1, 2)
    ready = shop.add.enqueue(1)
    answer = shop("retry", "--filter", "task:*", "--dry-run")
    assert (answer.code, answer.out.split()) == (0, [str(job.id) for job in reversed(jobs)])
    assert answer.err == "Retry would take 2 jobs. Nothing was done.\n"
    answer = shop("cancel", str(ready.id), str(jobs[0].id), "--dry-run")
    assert (answer.code, answer.out) == (1, f"{ready.id}\n")
    assert ready.refresh().state is JobState.READY
    assert shop("status", "--json").json["counts"]["failed"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say which jobs: give their numbers, or --filter, or --group"),
        (["1", "--filter", "state:failed"], "only one of these"),
        (["--group", "x", "--filter", "state:failed"], "only one of these"),
        (["--filter", ""], "The filter is empty. If you mean every job, say so: --filter 'task:*'"),
        (["--filter", "odd:1"], "The filter word 'odd:1' is not known."),
        (["one"], "'one' is not a valid integer"),
    ],
)
def test_act_on_no_clear_set_of_jobs_is_wrong_usage(shop: Shop, words: list[str], message: str) -> None:
    job = shop.add.enqueue(1)
    job.cancel()
    answer = shop("retry", "--yes", *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert job.refresh().state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("act", "text"),
    [("retry", "state:ready"), ("cancel", "state:failed"), ("retry", "task:nope"), ("restore", "task:*")],
)
def test_act_that_is_possible_with_no_job_ends_with_3(shop: Shop, act: str, text: str) -> None:
    shop.add.enqueue(1)
    answer = shop(act, "--filter", text, "--yes")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("No job fits with which that is possible: ")


def test_running_job_cannot_be_put_away(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_job SET state = 'running', worker_id = 'w'")
    answer = shop("discard", str(job.id))
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith(f"Job {job.id} is running: a running job cannot be put away")
    assert shop("cancel", str(job.id)).err == f"Job {job.id} is asked to stop.\n"


def test_discarded_job_that_waited_waits_again_when_restored(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    assert shop("discard", str(job.id)).err == f"Job {job.id} is cancelled, put away.\n"
    assert shop("jobs").out == ""
    assert "state      cancelled, discarded" in shop("job", str(job.id)).out
    assert shop("restore", str(job.id)).err == f"Job {job.id} is ready.\n"
    assert shop("restore", str(job.id)).code == 3


def test_acts_are_noted_with_the_user(shop: Shop) -> None:
    fail(shop, 1)
    shop("retry", "--filter", "state:failed", "--yes")
    (note,) = Browser(shop.state.store).audit()
    assert (note.action, note.target, note.number) == ("retry", "state:failed", 1)
    assert note.who.endswith(" (flask tasks)")


# -- asking ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of its own")
@pytest.mark.parametrize(("reply", "goes_on"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_terminal_is_asked(reply: bytes, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with (
        open(ours, "r+b", buffering=0) as terminal,
        open(theirs, closefd=False) as stdin,
        open(theirs, "w") as err,
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", err)
        terminal.write(reply)
        if goes_on:
            group.confirm("Retry 2 jobs?", yes=False)
        else:
            with pytest.raises(SystemExit) as ended:
                group.confirm("Retry 2 jobs?", yes=False)
            assert ended.value.code == 1
        seen = b""
        while b"Retry 2 jobs? [y/N]" not in seen:
            seen += terminal.read(1000)


@pytest.mark.parametrize("text", ["state:ready", "shop.add", "queue:default args.x:1"])
def test_act_on_many_is_confirmed_with_the_exact_number(shop: Shop, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for bound in ("WINDOW", "FEW", "ARGS_WINDOW", "MOST"):
        monkeypatch.setattr(browse, bound, 2)
    shop.add.enqueue_many([(1,)] * 1_203)
    asked = shop("cancel", "--filter", text)
    assert asked.code == 2
    assert "Cancel 1,203 jobs?" in asked.err

    def enqueue_more(question: str, *, yes: bool) -> None:
        assert question == "Cancel 1,203 jobs?"
        shop.add.enqueue(1)

    monkeypatch.setattr(operations, "confirm", enqueue_more)
    assert shop("cancel", "--filter", text).out == "1203\n"
    assert shop.state.store.counts().ready == 1


def test_purge_is_confirmed_with_the_exact_number(shop: Shop) -> None:
    shop.add.enqueue_many([(1,)] * 3)
    assert shop("cancel", "--yes", "--filter", "state:ready").out == "3\n"
    shop.jump(60_000)
    assert "Delete 3 jobs that ended before " in shop("purge", "--done-before", "1s").err


# -- queues ------------------------------------------------------------------------------------------------------------


def test_paused_queue_gives_no_jobs_until_it_is_resumed(shop: Shop) -> None:
    job = shop.crawl.enqueue("x")
    assert shop("pause", "web") == Answer(0, "", "Queue 'web' is paused.\n")
    other = shop.add.enqueue(1)
    shop.task_worker.start()
    other.result(timeout=20)
    assert job.refresh().state is JobState.READY
    assert shop("resume", "web") == Answer(0, "", "Queue 'web' is resumed.\n")
    job.result(timeout=20)


def test_status_shows_paused_queues_and_lets_their_jobs_wait(shop: Shop) -> None:
    shop.crawl.enqueue("x")
    assert shop("status").code == 4
    shop("pause", "web", "default")
    shop.jump(HOUR)
    answer = shop("status")
    assert answer.code == 0
    assert [line.split() for line in answer.out.splitlines() if "paused" in line] == [
        ["default", "paused", "0", "0/0"],
        ["web", "paused", "1", "0/0", "1", "h"],
    ]
    assert {q["name"]: q["state"] for q in shop("status", "--json").json["queues"]} == {
        "default": "paused",
        "web": "paused",
    }
    shop("resume", "web")
    assert shop("status").code == 4


def test_resume_of_what_is_not_paused_ends_with_3(shop: Shop) -> None:
    assert shop("resume", "web") == Answer(3, "", "Queue 'web' is not paused.\n")
    shop("pause", "web")
    assert shop("resume", "web", "default").code == 1


def test_pause_of_a_queue_that_no_task_names_says_so(shop: Shop) -> None:
    assert shop("pause", "typo").err == "Note: no task names the queue 'typo'.\nQueue 'typo' is paused.\n"
    assert shop("pause", "").code == 2
    assert shop("pause").code == 2


# -- purge -------------------------------------------------------------------------------------------------------------


def test_purge_deletes_what_ended_before_and_nothing_else(shop: Shop) -> None:
    old = fail(shop, *range(300))
    shop.jump(2 * HOUR)
    new = fail(shop, 7)
    waiting = shop.add.enqueue(1)
    answer = shop("purge", "--done-before", "1h", "--dry-run")
    assert answer == Answer(0, "300\n", "Nothing was done.\n")
    answer = shop("purge", "--done-before", "1h")
    assert answer.code == 2
    assert "add --yes" in answer.err
    assert shop("purge", "--done-before", "1h", "--yes") == Answer(0, "300\n", "")
    assert [row["id"] for row in rows_of(shop("jobs", "task:shop.add", "--json"))] == [waiting.id, new[0].id]
    assert shop.state.store.attempts(old[0].id) == []
    assert shop("purge", "--done-before", "1h", "--yes").code == 3


def test_job_that_is_put_back_while_others_are_purged_stays(shop: Shop) -> None:
    jobs = fail(shop, *range(PRUNE_BATCH + 1))
    with shop.app.app_context():
        batches = group.operations().purge(shop.state.store.clock() + 1)
        assert next(batches) == PRUNE_BATCH
        assert jobs[-1].retry()
        assert list(batches) == [0]
    assert jobs[-1].refresh().state is JobState.READY


def test_purge_needs_a_period(shop: Shop) -> None:
    assert shop("purge", "--yes").code == 2
    assert shop("purge", "--yes", "--done-before", "long").code == 2


# -- hostile words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", INJECTIONS)
def test_sql_in_any_word_is_only_a_word(shop: Shop, word: str) -> None:
    job = shop.add.using(queue=word).enqueue(1)
    quoted = word if '"' in word else f'"{word}"'
    for key in ("task", "queue", "schedule", "worker", "group", "unique", "uid", "args.x"):
        answer = shop("jobs", f"{key}:{quoted}", "--json")
        assert answer.code in (0, 2, 3), answer.err
        if answer.code == 0:
            assert [row["id"] for row in rows_of(answer)] == [job.id]
    assert shop("cancel", "--group", word, "--yes").code == 2
    assert shop("retry", "--group", word, "--yes").code == 3
    assert shop("pause", word).code == 0
    assert shop("resume", word).code == 0
    for command in ("run", "pause", "resume", "skip", "next"):
        assert shop("schedule", command, word).code == 3
    assert job.refresh().state is JobState.READY


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_names_and_errors_steer_no_terminal(shop: Shop, word: str) -> None:
    shop.add.schedule(Every(hours=1), name="hourly", args=(1,))
    write(shop, "UPDATE taskworker_schedule SET name = ?", word)
    shop.add.enqueue(1)
    texts = ("task", "queue", "unique_key", "uid", "schedule", "failure_group", "error", "origin")
    write(shop, f"UPDATE taskworker_job SET {', '.join(f'{name} = ?' for name in texts)}", *[word] * len(texts))
    ended = "state = 'failed', finished_at = created_at, fire_at = 1"
    write(shop, f"UPDATE taskworker_job SET failure_kind = ?, progress = ?, {ended}", word, f'[1, 2, "{word}"]')
    shop.add.enqueue(1)
    write(shop, "UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = ? WHERE id = 2", word)
    write(shop, "INSERT INTO taskworker_queue (name, paused, paused_by) VALUES (?, 1, ?)", word, word)
    some = (["jobs"], ["job", "1"], ["status"], ["doctor", "--no-smtp"], ["pause", word], ["jobs", "--json"])
    others = (
        ["failures"],
        ["job", "2"],
        ["job", "1", "--json"],
        ["schedule", "list"],
        ["schedule", "next", word],
        ["retry", "1"],
    )
    for words in (*some, *others):
        answer = shop(*words)
        lines = (answer.out + answer.err).splitlines()
        assert lines
        assert all(line.isprintable() for line in lines), words
    assert shop("pause", word).code == 2


READING = [
    *(["status"], ["jobs"], ["job", "1"], ["failures"], ["schedule", "list"], ["schedule", "next", "x"], ["doctor"]),
    *(["retry", "1"], ["cancel", "--filter", "state:ready"], ["discard", "1"], ["restore", "1"], ["pause", "web"]),
    *(["resume", "web"], ["purge", "--done-before", "1d"], ["schedule", "pause", "x"], ["job", "1", "--follow"]),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_command_never_creates_a_database(make_app: Callable[..., Flask], words: list[str]) -> None:
    shop = Shop(make_app(), tables=False)
    answer = shop(*words)
    assert answer.code == 1
    assert f"There are no tables in {shop.state.config.database_uri}" in answer.out + answer.err
    assert not Path(shop.state.config.database_uri.database or "").exists()
    assert completed(shop, ["job"], "") == []
    assert shop("run", "--check").code == 0
    assert not Path(shop.state.config.database_uri.database or "").exists()


@pytest.mark.parametrize("words", [["jobs"], ["mail", "list"], ["mail", "show", "x"]], ids=" ".join)
def test_reading_command_never_creates_tables_on_postgresql(
    make_app: Callable[..., Flask], postgres_url: str, words: list[str]
) -> None:
    app = make_app(TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=postgres_url)
    Mail(app)
    shop = Shop(app, tables=False)
    answer = shop.runner.invoke(args=words if words[0] == "mail" else ["tasks", *words])
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "There are no tables in postgresql" in answer.stderr
    assert shop.state.store.driver.schema_version() is None
    shop.state.client.close()


@pytest.mark.parametrize(
    "words", [["job", "1", "--follow"], ["status", "--watch"], ["call", "shop.add", "x=1", "--wait"]]
)
def test_ctrl_c_ends_a_command_with_130(shop: Shop, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    shop.add.enqueue(1)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    monkeypatch.setattr(Job, "result", interrupt)
    assert shop(*words).code == 130


def test_search_that_stopped_early_has_an_exit_code_of_its_own(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 2)
    monkeypatch.setattr(listing, "_PATIENCE", 0)
    shop.add.enqueue_many([(1,)] * 5)
    answer = shop("jobs", "task:none")
    assert (answer.code, answer.out) == (6, "")
    assert "Searched down to job 3. Older jobs: --before 3" in answer.err
    assert shop("jobs", "task:none", "--before", "2").code == 3


def test_lines_of_a_log_record_never_look_like_records_of_their_own() -> None:
    record = logging.LogRecord(
        "x", logging.ERROR, "", 0, "one\n2026-01-01 12:00:00,000 ERROR   forged\u2028two", (), None
    )
    first, *others = log_output.TextFormatter().format(record).split("\n")
    assert first.endswith("ERROR   x: one")
    assert others == ["    2026-01-01 12:00:00,000 ERROR   forged", "    two"]


def test_database_that_everybody_may_change_is_refused(shop: Shop) -> None:
    shop.add.enqueue(1)
    path = Path(shop.state.config.database_uri.database or "")
    path.chmod(0o666)
    for words in (["jobs"], ["status"], ["retry", "1"], ["run"]):
        answer = shop(*words)
        assert (answer.code, answer.out) == (1, ""), words
        assert f"Everybody on this machine may write into {path}: its mode is 0o666. chmod 600 it." in answer.err
    path.chmod(0o600)
    assert shop("jobs").code == 0


# -- completion --------------------------------------------------------------------------------------------------------


def completed(shop: Shop, words: list[str], incomplete: str) -> list[str]:
    info = ScriptInfo(create_app=lambda: shop.app)
    complete = ShellComplete(shop.app.cli, {"obj": info}, "flask", "_FLASK_COMPLETE")
    return [item.value for item in complete.get_completions(["tasks", *words], incomplete)]


def test_shell_completes_jobs_schedules_and_filters(shop: Shop) -> None:
    one, two = shop.add.enqueue(1), shop.add.enqueue(2)
    two.cancel()
    shop.task_worker.start()
    one.result(timeout=20)
    shop.task_worker.stop()
    assert completed(shop, ["job"], "") == [str(two.id), str(one.id)]
    assert completed(shop, ["retry"], "") == [str(two.id)]
    assert completed(shop, ["cancel"], "") == []
    assert completed(shop, ["schedule", "pause"], "shop") == ["shop.nightly", "shop.nightly#2"]
    assert completed(shop, ["jobs"], "state:f") == ["state:failed"]
    assert completed(shop, ["retry", "--filter"], "task:shop.a") == ["task:shop.add"]
    assert completed(shop, ["retry", "--filter"], "state:failed queue:w") == ["state:failed queue:web"]
    assert completed(shop, ["pause"], "w") == ["web"]


def all_commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = f"{path}_{name}".replace("-", "_")
        if isinstance(command, click.Group):
            yield from all_commands(command, words)
        else:
            yield words, command


def test_every_option_of_every_command_has_a_variable_that_its_help_names(shop: Shop) -> None:
    Mail(shop.app)
    groups = {"tasks": "", "mail": "_mail"}
    found = [pair for name, path in groups.items() for pair in all_commands(shop.app.cli.commands[name], path)]  # type: ignore[arg-type]
    assert {"_mail_send_test", "_mail_list", "_schedule_next", "_db_sql", "_run"} <= {path for path, _ in found}
    for path, command in found:
        text = " ".join(command.get_help(click.Context(command, info_name="x")).split())
        for option in command.params:
            if isinstance(option, click.Option):
                word = next(word for word in option.opts if word.startswith("--"))
                variable = f"TASKER_CLI{path}_{word[2:].replace('-', '_')}".upper()
                assert f"env var: {variable}" in text, f"{path} {word}"


# -- following a job ---------------------------------------------------------------------------------------------------


def test_follow_goes_on_until_the_job_has_ended(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    answers: list[Answer] = []
    follower = threading.Thread(target=lambda: answers.append(shop("job", str(job.id), "--follow", "--json")))
    follower.start()
    shop.task_worker.start()
    follower.join(20)
    (answer,) = answers
    assert answer.code == 0, answer.err
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert (events[-1]["event"], events[-1]["state"]) == ("state", "succeeded")


def test_follow_shows_what_is_new_and_nothing_twice(shop: Shop) -> None:
    job = shop.add.enqueue(1)
    followed, browser = Followed(), Browser(shop.state.store)

    def news() -> list[tuple[str, str]]:
        return [(event["event"], words) for event, words in followed.news(browser.job(job.id), 0)]

    assert news() == [("state", "ready")]
    assert news() == []
    lines = [[1, "INFO", "shop", "one"]]
    write(shop, "INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, 1, ?)", job.id, json.dumps(lines))
    write(shop, "UPDATE taskworker_job SET state = 'running', worker_id = 'w', progress = '[1, 4, \"x\"]'")
    assert news() == [("log", "INFO shop: one"), ("progress", "1 of 4 (25 %) x"), ("state", "running, try 1 of 1")]
    lines.append([2, "INFO", "shop", "two"])
    write(shop, "UPDATE taskworker_log SET lines = ?", json.dumps(lines))
    assert news() == [("log", "INFO shop: two")]


def test_follow_of_a_failed_job_ends_with_1(shop: Shop) -> None:
    (job,) = fail(shop, 1)
    answer = shop("job", str(job.id), "--follow")
    assert answer.code == 1
    assert answer.out.splitlines()[-1].endswith(r" failed: ValueError: \x1b[31mn1 is no number")
    other = shop.add.enqueue(1)
    other.cancel()
    answer = shop("job", str(other.id), "--follow")
    assert (answer.code, answer.out.splitlines()[-1][9:]) == (1, "cancelled")
    assert shop("job", "99", "--follow").code == 3


def test_job_shows_what_its_tries_have_logged_and_where_it_comes_from(shop: Shop) -> None:
    (job,) = fail(shop, 1)
    lines = [[1_700_000_000_000, "WARNING", "shop", "no \x1b[31mrows"], [1_700_000_001_000, "INFO", "shop", "done"]]
    write(shop, "INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, 1, ?)", job.id, json.dumps(lines))
    write(shop, "UPDATE taskworker_job SET origin = ? WHERE id = ?", '{"request": "POST /x\\n"}', job.id)
    out = shop("job", str(job.id)).out
    assert "  22:13:20 WARNING shop: no \\x1b[31mrows\n  22:13:21 INFO shop: done\n" in out
    assert "  by         request POST /x\\n\n" in out
    found = shop("job", str(job.id), "--json").json
    assert [(line["claim"], line["level"], line["text"]) for line in found["lines"]] == [
        (1, "WARNING", "no \x1b[31mrows"),
        (1, "INFO", "done"),
    ]
    assert found["origin"] == {"request": "POST /x\n"}
    followed = [json.loads(line) for line in shop("job", str(job.id), "--follow", "--json").out.splitlines()]
    assert [event["text"] for event in followed if event["event"] == "log"] == ["no \x1b[31mrows", "done"]
