"""A mail server: how it is reached, and how long what it does not allow is remembered."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flask_taskworker.errors import ConfigError
from flask_taskworker.mail.smtp.server import REMEMBERED_S, Server, ServerFacts, check_tls, facts_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_a_server_does_not_allow_is_forgotten_after_a_while() -> None:
    clock = Clock()
    facts = ServerFacts(clock)
    facts.stop_overlapping()
    facts.stop_pipelining()
    facts.limit_recipients(50)
    assert (facts.may_overlap, facts.may_pipeline, facts.most_recipients) == (False, False, 50)
    clock.now = REMEMBERED_S
    assert (facts.may_overlap, facts.may_pipeline, facts.most_recipients) == (True, True, None)


def test_a_server_that_takes_very_few_recipients_is_tried_with_ten() -> None:
    facts = ServerFacts(Clock())
    facts.limit_recipients(1)
    assert facts.most_recipients == 10


def test_facts_belong_to_host_port_and_account() -> None:
    one = Server(hostname="facts.example", port=25, username="ana")
    assert facts_of(one) is facts_of(Server(hostname="facts.example", port=25, username="ana", timeout=1))
    assert facts_of(one) is not facts_of(Server(hostname="facts.example", port=25))


def test_contexts_are_made_once_for_each_set_of_certificates() -> None:
    async def context(**options: Any) -> ssl.SSLContext | None:
        return await Server(hostname="mail", port=25, **options).tls_context()

    assert asyncio.run(context()) is None
    secure = asyncio.run(context(use_tls=True))
    assert secure is not None
    assert secure.verify_mode is ssl.CERT_REQUIRED
    assert asyncio.run(context(use_ssl=True)) is secure
    lax = asyncio.run(context(use_tls=True, verify=False))
    assert lax is not None
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)
    own = ssl.create_default_context()
    assert asyncio.run(context(use_tls=True, ssl_context=own)) is own


def test_a_password_is_in_no_description() -> None:
    server = Server(hostname="mail", port=587, username="ana", password="hunter2")
    assert "hunter2" not in repr(server)
    assert str(server) == "mail port 587"


@pytest.mark.parametrize("text", ["no certificate", None])
def test_certificates_that_cannot_be_read_are_refused_at_once(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    config: Any = SimpleNamespace(ssl_context=None, cafile=str(file), tls_verify=True)
    with pytest.raises(ConfigError, match="MAIL_CAFILE"):
        check_tls(config)
    config.ssl_context = "tls"
    with pytest.raises(ConfigError, match="MAIL_SSL_CONTEXT"):
        check_tls(config)
