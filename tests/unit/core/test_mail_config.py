from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flask_taskworker.core.mail_config import MailConfig
from flask_taskworker.errors import ConfigError


def read(**config: Any) -> MailConfig:
    return MailConfig.from_mapping(config)


def test_defaults() -> None:
    config = read()
    assert (config.server, config.port, config.use_tls, config.use_ssl) == ("127.0.0.1", 25, False, False)
    assert (config.pool_size, config.timeout, config.data_timeout) == (4, 30, 600)
    assert (config.tls_verify, config.backend, config.max_emails) == (True, "smtp", None)
    assert (config.retry_base, config.retry_cap) == (300, 3600)
    assert (config.expires, config.keep) == (timedelta(days=5), timedelta(days=7))


def test_values_from_the_environment_are_strings() -> None:
    config = read(MAIL_PORT="587", MAIL_MAX_EMAILS="50", MAIL_DEBUG="1", MAIL_USE_TLS="yes")
    assert (config.port, config.max_emails, config.debug, config.use_tls) == (587, 50, 1, True)


def test_string_that_looks_false_is_true_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert read(MAIL_USE_TLS="False").use_tls is True
    assert "MAIL_USE_TLS = 'False' is a string that is not empty" in caplog.text


def test_debug_and_suppress_follow_the_app() -> None:
    config = MailConfig.from_mapping({}, debug=True, testing=True)
    assert (config.debug, config.suppress) == (1, True)
    config = MailConfig.from_mapping({"MAIL_DEBUG": False, "MAIL_SUPPRESS_SEND": False}, debug=True, testing=True)
    assert (config.debug, config.suppress) == (0, False)


WRONG = {
    "MAIL_PORT": ["smtp", 70000, -1, 2.5],
    "MAIL_MAX_EMAILS": [-1, "many"],
    "MAIL_POOL_SIZE": [0, "x"],
    "MAIL_TIMEOUT": [0, -1, "30", True, float("nan")],
    "MAIL_DATA_TIMEOUT": [0],
    "MAIL_TLS_VERIFY": ["False", 0],
    "MAIL_BACKEND": ["sendmail"],
    "MAIL_REDIRECT_TO": ["dev", [1], 5],
    "MAIL_EXPIRES": ["a week"],
    "MAIL_KEEP": [-1],
    "MAIL_RETRY_BASE": [0],
    "MAIL_RETRY_CAP": [None, "x"],
    "MAIL_MAX_SIZE": [0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_value_is_refused_with_key_value_and_what_is_allowed(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = .* is not allowed\. Allowed: "):
        read(**{key: value})


def test_periods_may_be_timedeltas() -> None:
    config = read(MAIL_EXPIRES=timedelta(hours=1), MAIL_TIMEOUT=timedelta(seconds=5), MAIL_KEEP=60)
    assert (config.expires, config.timeout, config.keep) == (timedelta(hours=1), 5.0, timedelta(minutes=1))


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(read(MAIL_PASSWORD="hunter2"))
