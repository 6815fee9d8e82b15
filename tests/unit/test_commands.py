"""The `flask` command groups: their name, and what is said where an app has one of that name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import click
import pytest
from flask import Blueprint, Flask

from flask_taskworker import BackgroundTaskWorker, Mail
from flask_taskworker.commands import LazyGroup, mail_commands, tasks_command
from flask_taskworker.errors import ConfigError


def own_first(app: Flask, extension: Any) -> None:
    app.cli.add_command(click.Group(extension[1]))
    extension[0](app)


def own_last(app: Flask, extension: Any) -> None:
    extension[0](app)
    app.cli.add_command(click.Group(extension[1]))


def blueprint(app: Flask, extension: Any) -> None:
    extension[0](app)
    group = Blueprint(extension[1], "todo")
    group.cli.add_command(click.Command("list"))
    app.register_blueprint(group)


@pytest.mark.parametrize("extension", [(BackgroundTaskWorker, "tasks"), (Mail, "mail")], ids=["tasks", "mail"])
@pytest.mark.parametrize("order", [own_first, own_last, blueprint])
def test_two_groups_of_one_name_are_warned_of(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture, order: Any, extension: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        order(make_app(), extension)
    assert f"has two commands `flask {extension[1]}`" in caplog.text


def test_extensions_add_commands_by_the_keyword_that_click_has(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    BackgroundTaskWorker(app)
    app.cli.add_command(click.Group("db"), name="migrations")  # as Flask-Migrate does
    assert "migrations" in app.cli.commands


def test_group_may_have_another_name(make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(TASKER_COMMAND="jobs")
    with caplog.at_level(logging.WARNING):
        own_first(app, (BackgroundTaskWorker, "tasks"))
    assert "two commands" not in caplog.text
    assert app.test_cli_runner().invoke(args=["jobs", "--help"]).exit_code == 0


@pytest.mark.parametrize("name", ["", "two words", 7, None])
def test_bad_name_is_refused(make_app: Callable[..., Flask], name: Any) -> None:
    with pytest.raises(ConfigError, match="TASKER_COMMAND = .* is not allowed. Allowed: a word"):
        BackgroundTaskWorker(make_app(TASKER_COMMAND=name))


def test_commands_come_in_the_order_of_their_use() -> None:
    found = tasks_command.list_commands(click.Context(tasks_command))
    assert found[:5] == ["run", "status", "workers", "queues", "doctor"]
    assert found[-2:] == ["schedule", "db"]
    assert set(mail_commands.list_commands(click.Context(mail_commands))) == {"list", "send-test", "show"}


@pytest.mark.parametrize("group", [tasks_command, mail_commands], ids=["tasks", "mail"])
def test_every_command_has_a_summary(group: LazyGroup) -> None:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.get_short_help_str(), name
