"""``flask mail list`` and ``flask mail show``, and what the doctor says of the mail server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import Mail, Message
from flask_taskworker.ops.doctor import Finding, findings
from tests.support.cli_shop import Answer, Shop
from tests.support.mail_fixtures import Certificates
from tests.support.smtp_server import SMTPServer

Serve = Callable[..., SMTPServer]


class Office(Shop):
    """An app with tasks and mail."""

    def __init__(self, app: Flask) -> None:
        super().__init__(app)
        self.mail = Mail(app)

    def __call__(self, *words: str, group: str = "mail", **options: Any) -> Answer:
        result = self.runner.invoke(args=[group, *words], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def queue(self, *recipients: str, subject: str = "hello") -> int:
        message = Message(subject, recipients=list(recipients), body="the text", sender="me@example.com")
        with self.app.app_context():
            return self.mail.send_later(message).id

    def ids(self, *words: str) -> list[str]:
        return [json.loads(line)["id"] for line in self("list", "--json", *words).out.splitlines()]

    def finding(self) -> Finding:
        (found,) = [f for f in findings(self.app) if "mail server" in f.text or "No mail " in f.text]
        return found


@pytest.fixture
def make_office(make_app: Callable[..., Flask]) -> Iterator[Callable[..., Office]]:
    with ExitStack() as at_end:

        def make(server: SMTPServer | None = None, **config: Any) -> Office:
            office = Office(make_app(**{"MAIL_PORT": server.port if server else 1} | config))
            at_end.callback(office.state.client.close)
            at_end.callback(office.task_worker.stop)
            return office

        yield make


# -- list --------------------------------------------------------------------------------------------------------------


def test_queued_mails_are_listed_the_newest_first(make_office: Callable[..., Office]) -> None:
    office = make_office()
    assert office("list") == Answer(0, "", "No mail is queued.\n")
    office.queue("ana@example.org", "bo@example.org")
    office.queue("zed@example.org", subject="Grüße")
    header, first, second = office("list").out.splitlines()
    assert header.split() == ["mail", "queued", "to", "subject", "state", "tries", "size"]
    assert first.split()[4:7] == ["zed@example.org", "Grüße", "ready"]
    assert "ana@example.org and 1 more  hello    ready" in second


def test_mails_to_an_address_are_found(make_office: Callable[..., Office]) -> None:
    office = make_office()
    office.queue("ana@example.org")
    office.queue("bo@example.org", "zed@example.org")
    (row,) = map(json.loads, office("list", "--to", "zed@", "--json").out.splitlines())
    assert [r["address"] for r in row["recipients"]] == ["bo@example.org", "zed@example.org"]
    assert (row["subject"], row["state"], row["sender"]) == ("hello", "ready", "me@example.com")
    assert office("list", "--to", "absent@") == Answer(3, "", "No mail is to such an address.\n")


def test_older_mails_are_on_the_next_page(make_office: Callable[..., Office]) -> None:
    office = make_office()
    for _ in range(3):
        office.queue("ana@example.org")
    ids = office.ids()
    answer = office("list", "--limit", "2", "--json")
    assert answer.err == f"Older mails: --before {ids[1]}\n"
    assert office.ids("--before", ids[1]) == ids[2:]


@pytest.mark.parametrize("word", ["' OR '1'='1", "%", "_", "\\", "'; DROP TABLE taskworker_mail; --"])
def test_sql_in_an_address_or_id_is_only_text(make_office: Callable[..., Office], word: str) -> None:
    office = make_office()
    office.queue("ana@example.org")
    assert office("list", "--to", word).code == 3
    assert office("show", word).code == 3
    office("list", "--before", word)
    assert len(office.ids()) == 1


# -- show --------------------------------------------------------------------------------------------------------------


def test_mail_is_shown_with_each_recipient(make_office: Callable[..., Office], serve: Serve) -> None:
    def script(session: object, verb: str, line: str) -> str | None:
        return "550 5.1.1 \x1b[31mno such user" if verb == "RCPT" and "zed" in line else None

    office = make_office(serve(script=script))
    number = office.queue("ana@example.org", "zed@example.org", subject="Hi")
    office.work()
    answer = office("show", str(number))
    assert answer.code == 0
    assert f"  job     {number}\n" in answer.out
    assert "  Subject     Hi\n" in answer.out
    assert "  ana@example.org  accepted" in answer.out
    assert "  zed@example.org  rejected 550" in answer.out
    assert "no such user" in answer.out
    assert "the text" not in answer.out
    assert "\x1b" not in answer.out
    assert "partly refused" in office("list").out
    shown = json.loads(office("show", office.ids()[0], "--json").out)
    assert (shown["header"]["Subject"], shown["job"]) == ("Hi", number)
    assert (shown["state"], shown["endings"]) == ("partly refused", {"accepted": 1, "rejected": 1})
    assert [(r["address"], r["ending"], r["code"]) for r in shown["recipients"]] == [
        ("ana@example.org", "accepted", 250),
        ("zed@example.org", "rejected", 550),
    ]


def test_eml_is_the_mail_byte_for_byte(make_office: Callable[..., Office], serve: Serve) -> None:
    server = serve()
    office = make_office(server)
    number = office.queue("ana@example.org", subject="Grüße")
    result = office.runner.invoke(args=["mail", "show", str(number), "--eml"])
    office.work()
    assert result.exit_code == 0
    # SMTP ends every message with a line's end.
    assert server.mails[0].data in (result.stdout_bytes, result.stdout_bytes + b"\r\n")


@pytest.mark.parametrize("words", [["0123"], ["x"], ["9" * 30], ["-1x"]])
def test_unknown_mail_ends_with_3(make_office: Callable[..., Office], words: list[str]) -> None:
    answer = make_office()("show", "--", *words)
    assert (answer.code, answer.out) == (3, "")


def test_eml_and_json_exclude_each_other(make_office: Callable[..., Office]) -> None:
    assert make_office()("show", "x", "--eml", "--json").code == 2


@pytest.mark.parametrize("words", [["retry", "{}"], ["retry", "--filter", "id:{}", "--yes"]], ids=["number", "filter"])
def test_retry_opens_the_recipients_of_a_mail_again(
    make_office: Callable[..., Office], serve: Serve, words: list[str]
) -> None:
    refuses = True

    def script(session: object, verb: str, line: str) -> str | None:
        return "550 no" if verb == "RCPT" and refuses else None

    server = serve(script=script)
    office = make_office(server)
    number = office.queue("ana@example.org")
    office.work()
    assert office("jobs", "state:failed", group="tasks").code == 0
    assert server.mails == []
    refuses = False
    assert office(*(word.format(number) for word in words), group="tasks").code == 0
    office.work()
    assert [mail.recipients for mail in server.mails] == [["ana@example.org"]]


# -- the doctor --------------------------------------------------------------------------------------------------------


def test_mail_server_that_answers_is_well(make_office: Callable[..., Office], serve: Serve) -> None:
    found = make_office(serve()).finding()
    assert (found.level, found.text.endswith("answers, in clear text on this machine.")) == ("ok", True)


def test_tls_version_is_reported(make_office: Callable[..., Office], serve: Serve, certificates: Certificates) -> None:
    server = serve(starttls=certificates.server())
    found = make_office(server, MAIL_USE_TLS=True, MAIL_CAFILE=certificates.cafile).finding()
    assert (found.level, found.text.endswith("answers over TLSv1.3.")) == ("ok", True)
    found = make_office(server, MAIL_USE_TLS=True).finding()
    assert found.level == "error"


def test_mail_server_that_is_away_is_an_error(make_office: Callable[..., Office]) -> None:
    office = make_office()
    assert office.finding().level == "error"
    assert not any("mail server" in f.text for f in findings(office.app, smtp=False))
    answer = office("doctor", group="tasks")
    assert answer.code == 4
    assert "ERROR    The mail server 127.0.0.1 port 1 cannot be used: " in answer.out
    assert "mail server" not in office("doctor", "--no-smtp", group="tasks").out


def test_suppressed_mail_needs_no_server(make_office: Callable[..., Office]) -> None:
    assert make_office(MAIL_SUPPRESS_SEND=True).finding().text.startswith("No mail leaves this machine")
