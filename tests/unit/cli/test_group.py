"""What all commands have in common: exit codes, environment variables, completion."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from flask import Flask
from flask.cli import ScriptInfo

from flask_taskworker import Every, Job, JobState, Mail
from flask_taskworker.cli import listing
from flask_taskworker.ops import browse
from tests.support.cli_shop import Shop, completed, rows_of, write


def test_schema_of_another_version_is_reported_by_the_exit_code(shop: Shop) -> None:
    shop.state.store.driver.prepare()
    write(shop, "UPDATE taskworker_meta SET value = '99' WHERE name = 'schema_version'")
    other = Shop(Flask("shop2", instance_path=shop.app.instance_path + "2"), tables=False)
    assert other.state.config.database_uri != shop.state.config.database_uri
    Path(shop.state.config.database_uri.database or "").rename(other_path(other))
    answer = other("status")
    assert (answer.code, answer.out) == (5, "")
    assert answer.err.startswith("Error: The tables have version 99, ")
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


@pytest.mark.no_tables_yet
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_command_never_creates_a_database(make_app: Callable[..., Flask], words: list[str]) -> None:
    shop = Shop(make_app(), tables=False)
    answer = shop(*words)
    assert answer.code == 1
    assert f"No tables found in {shop.state.config.database_uri}" in answer.out + answer.err
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
    assert "No tables found in postgresql" in answer.stderr
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


def test_ctrl_c_while_a_line_is_printed_ends_the_command_with_130(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add.enqueue(1)
    echo = click.echo

    def interrupt(message: object = None, **options: Any) -> None:
        if not options.get("err"):
            raise KeyboardInterrupt
        echo(message, **options)

    monkeypatch.setattr(click, "echo", interrupt)
    for words in (["job", "1"], ["jobs"], ["status"], ["schedule", "list"], ["doctor"], ["list", "--json"]):
        assert shop(*words).code == 130, words


def test_search_that_stopped_early_has_an_exit_code_of_its_own(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 2)
    monkeypatch.setattr(listing, "_PATIENCE", 0)
    shop.add.enqueue_many([(1,)] * 5)
    answer = shop("jobs", "task:none")
    assert (answer.code, answer.out) == (6, "")
    assert "Searched down to job 3. Older jobs: --before 3" in answer.err
    assert shop("jobs", "task:none", "--before", "2").code == 3


def test_database_that_everybody_may_change_is_refused(shop: Shop) -> None:
    shop.add.enqueue(1)
    path = Path(shop.state.config.database_uri.database or "")
    path.chmod(0o666)
    for words in (["jobs"], ["status"], ["retry", "1"], ["run"]):
        answer = shop(*words)
        assert (answer.code, answer.out) == (1, ""), words
        assert f"Every user on this machine may write to {path} (mode 0o666). Run: chmod 600 {path}" in answer.err
    path.chmod(0o600)
    assert shop("jobs").code == 0


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


def test_no_two_commands_spell_one_option_differently(shop: Shop) -> None:
    Mail(shop.app)
    spellings: dict[str, set[tuple[Any, ...]]] = {}
    for name in ("tasks", "mail"):
        for _, command in all_commands(shop.app.cli.commands[name], ""):  # type: ignore[arg-type]
            for option in (one for one in command.params if isinstance(one, click.Option)):
                spellings.setdefault(max(option.opts, key=len), set()).add((*option.opts, option.is_flag))
    assert {name for name, kinds in spellings.items() if len(kinds) > 1} == set()
    assert spellings["--limit"] == {("-n", "--limit", False)}
    assert spellings["--yes"] == {("-y", "--yes", True)}
    # It says how to print, and nothing else.
    assert spellings["--json"] == {("--json", True)}
