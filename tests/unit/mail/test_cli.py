from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from flask_taskworker.mail import Mail
from tests.support.smtp_server import SMTPServer

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]


def invoke(mail: Mail, *arguments: str) -> tuple[int, str, str]:
    result = mail.app.test_cli_runner().invoke(args=["mail", "send-test", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_sends_and_says_so(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    code, out, _ = invoke(make_mail(server), "to@example.com")
    assert code == 0
    assert out.startswith("sent to to@example.com as <")
    assert server.mails[0].recipients == ["to@example.com"]


def test_json_has_one_object_for_each_mail(serve: Serve, make_mail: MakeMail) -> None:
    code, out, _ = invoke(make_mail(serve()), "to@example.com", "--json", "--count", "3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["accepted"] for row in rows] == [["to@example.com"]] * 3
    assert rows[0]["error"] is None


def test_refusal_is_a_failure(serve: Serve, make_mail: MakeMail) -> None:
    def script(session: object, verb: str, line: str) -> str | None:
        return "550 5.1.1 \x1b[31mno such user" if verb == "RCPT" else None

    mail = make_mail(serve(script=script))
    code, out, _ = invoke(mail, "to@example.com")
    assert code == 1
    assert "550 5.1.1" in out
    assert "\x1b" not in out
    code, out, _ = invoke(mail, "to@example.com", "--json")
    assert code == 1
    assert json.loads(out)["error"]["type"] == "RecipientsRefused"


def test_server_that_is_away_is_a_failure(make_mail: MakeMail) -> None:
    code, out, _ = invoke(make_mail(MAIL_PORT=1), "to@example.com")
    assert code == 1
    assert "Is the server running" in out


@pytest.mark.parametrize("arguments", [[], ["noaddress"], ["a@b\r\nc"], ["to@example.com", "--count", "0"]])
def test_wrong_usage_exits_with_2(arguments: list[str], make_mail: MakeMail) -> None:
    assert invoke(make_mail(TESTING=True), *arguments)[0] == 2


def test_missing_sender_is_wrong_usage(make_mail: MakeMail) -> None:
    mail = make_mail(TESTING=True, MAIL_DEFAULT_SENDER=None)
    code, _, errors = invoke(mail, "to@example.com")
    assert code == 2
    assert "--from" in errors
    assert invoke(mail, "to@example.com", "--from", "me@example.com")[0] == 0


def test_suppressed_app_says_that_nothing_was_sent(make_mail: MakeMail) -> None:
    code, _, errors = invoke(make_mail(TESTING=True), "to@example.com")
    assert code == 0
    assert "nothing left this machine" in errors
