"""TLS is what was asked for and verified; no password goes anywhere else."""

from __future__ import annotations

import asyncio
import logging
import smtplib
import socket
import ssl
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from flask_taskworker.mail import Mail, MailError, Message
from flask_taskworker.mail.errors import AuthenticationFailed, CertificateError, ConnectError, ConnectTimeout
from flask_taskworker.mail.smtp import opening
from flask_taskworker.mail.smtp import server as server_module
from tests.support.mail_fixtures import Certificates
from tests.support.smtp_server import Drop, Session, SMTPServer

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]

PASSWORD = "hunter2-secret"
USERS = {"ada": PASSWORD}
LOGIN = {"MAIL_USERNAME": "ada", "MAIL_PASSWORD": PASSWORD}
MODES = {"starttls": "MAIL_USE_TLS", "implicit_tls": "MAIL_USE_SSL"}


def message() -> Message:
    return Message("hello", ["to@example.com"], "text", sender="from@example.com")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_verified_server_gets_login_and_mail_over_tls(
    mode: str, serve: Serve, make_mail: MakeMail, certificates: Certificates
) -> None:
    server = serve(**{mode: certificates.server(), "users": USERS})
    mail = make_mail(server, **{MODES[mode]: True, "MAIL_CAFILE": certificates.cafile, **LOGIN})
    for _ in range(2):
        assert mail.send(message())
    session = server.sessions[0]
    assert (session.tls, session.user, session.mails) == (True, "ada", 2)
    if mode == "starttls":
        assert session.verbs[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


BAD_CERTIFICATES: dict[str, dict[str, Any]] = {
    "wrong host": {"host": "mail.example.org"},
    "expired": {"days": -1},
    "self-signed": {"self_signed": True},
}


@pytest.mark.parametrize("options", BAD_CERTIFICATES.values(), ids=BAD_CERTIFICATES)
def test_server_that_cannot_prove_itself_gets_nothing(
    options: dict[str, Any], mode: str, serve: Serve, make_mail: MakeMail, certificates: Certificates
) -> None:
    server = serve(**{mode: certificates.server(**options), "users": USERS})
    mail = make_mail(server, **{MODES[mode]: True, "MAIL_CAFILE": certificates.cafile, **LOGIN})
    with pytest.raises(ssl.SSLCertVerificationError, match="MAIL_CAFILE") as caught:
        mail.send(message())
    assert isinstance(caught.value, CertificateError | smtplib.SMTPException)
    assert not any("AUTH" in session.verbs or session.mails for session in server.sessions)


def test_unknown_authority_is_refused_by_default(
    mode: str, serve: Serve, make_mail: MakeMail, certificates: Certificates
) -> None:
    with pytest.raises(CertificateError):
        make_mail(serve(**{mode: certificates.server()}), **{MODES[mode]: True}).send(message())


def test_verification_can_be_switched_off_by_name(
    mode: str, serve: Serve, make_mail: MakeMail, certificates: Certificates
) -> None:
    server = serve(**{mode: certificates.server(self_signed=True)})
    assert make_mail(server, **{MODES[mode]: True, "MAIL_TLS_VERIFY": False}).send(message())
    assert server.sessions[0].tls


def test_own_context_is_used_as_it_is(mode: str, serve: Serve, make_mail: MakeMail, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=certificates.cafile)
    server = serve(**{mode: certificates.server()})
    assert make_mail(server, **{MODES[mode]: True, "MAIL_SSL_CONTEXT": context}).send(message())


def test_stripped_starttls_fails_and_never_goes_on_in_clear_text(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(users=USERS)
    with pytest.raises(smtplib.SMTPNotSupportedError):
        make_mail(server, MAIL_USE_TLS=True, **LOGIN).send(message())
    assert server.sessions[0].verbs == ["EHLO"]


def test_refused_starttls_fails(serve: Serve, make_mail: MakeMail, certificates: Certificates) -> None:
    def script(session: Session, verb: str, line: str) -> str | None:
        return "454 4.7.0 not now" if verb == "STARTTLS" else None

    server = serve(starttls=certificates.server(), script=script)
    with pytest.raises(MailError, match=r"454 4\.7\.0 not now"):
        make_mail(server, MAIL_USE_TLS=True, MAIL_TIMEOUT=0.3).send(message())
    assert "MAIL" not in server.sessions[0].verbs


@pytest.mark.parametrize("verb", ["STARTTLS", "AUTH"])
def test_drop_while_logging_in_raises(verb: str, serve: Serve, make_mail: MakeMail, certificates: Certificates) -> None:
    def script(session: Session, seen: str, line: str) -> Drop | None:
        return Drop() if seen == verb else None

    server = serve(starttls=certificates.server(), users=USERS, script=script)
    with pytest.raises(MailError):
        make_mail(server, MAIL_USE_TLS=True, MAIL_CAFILE=certificates.cafile, **LOGIN).send(message())


def test_tls_is_not_started_unasked(serve: Serve, make_mail: MakeMail, certificates: Certificates) -> None:
    server = serve(starttls=certificates.server(self_signed=True))
    assert make_mail(server).send(message())
    assert not server.sessions[0].tls


def test_plain_text_behind_the_starttls_reply_is_not_believed(
    serve: Serve, make_mail: MakeMail, certificates: Certificates
) -> None:
    def script(session: Session, verb: str, line: str) -> bytes | None:
        return b"220 go ahead\r\n250-injected\r\n250 AUTH PLAIN\r\n" if verb == "STARTTLS" else None

    server = serve(starttls=certificates.server(), script=script)
    # Either outcome is safe; believing the injected lines is not.
    mail = make_mail(server, MAIL_USE_TLS=True, MAIL_CAFILE=certificates.cafile, **LOGIN)
    with pytest.raises(MailError):
        mail.send(message())
    assert all("AUTH" not in session.verbs for session in server.sessions)


def test_wrong_password_raises_the_error_of_both_families(serve: Serve, make_mail: MakeMail) -> None:
    server = serve(users={"ada": "another"})
    with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
        make_mail(server, **LOGIN).send(message())
    assert isinstance(caught.value, AuthenticationFailed)
    assert (caught.value.smtp_code, caught.value.smtp_error) == (535, b"5.7.8 authentication failed")


def test_server_without_login_raises_not_supported(serve: Serve, make_mail: MakeMail) -> None:
    with pytest.raises(smtplib.SMTPNotSupportedError):
        make_mail(serve(), **LOGIN).send(message())


@pytest.mark.parametrize(
    "half", [{"MAIL_USERNAME": "ada"}, {"MAIL_PASSWORD": PASSWORD}, {**LOGIN, "MAIL_PASSWORD": ""}]
)
def test_login_needs_both_name_and_password(half: dict[str, str], serve: Serve, make_mail: MakeMail) -> None:
    server = serve(users=USERS)
    assert make_mail(server, **half).send(message())
    assert server.sessions[0].user is None


def test_password_is_nowhere_to_be_seen(
    serve: Serve, make_mail: MakeMail, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    mail = make_mail(serve(users=USERS), MAIL_DEBUG=True, **LOGIN)
    mail.send(message())
    refused = make_mail(serve(users={"ada": "another"}), MAIL_DEBUG=True, **LOGIN)
    texts = [repr(mail.state), repr(mail.state.config), repr(mail.connect())]
    try:
        refused.send(message())
    except MailError as error:
        texts.append("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))
        texts.append(repr(error.__cause__) + repr(error.__context__))
    assert len(texts) == 5
    encoded = "AGFkYQBodW50ZXIyLXNlY3JldA"
    seen = "\n".join([*texts, caplog.text, *capfd.readouterr()])
    assert PASSWORD not in seen
    assert encoded not in seen
    assert "AUTH ***" in caplog.text
    assert "MAIL FROM:<from@example.com>" in caplog.text


@pytest.mark.parametrize("size", [10, 255_000, 300_000, 1_500_000])
def test_message_of_any_size_is_not_in_the_log(
    size: int, serve: Serve, make_mail: MakeMail, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    letter = message()
    letter.body = "https://example.org/reset/token\n" * (size // 32 + 1)
    mail = make_mail(serve(), MAIL_DEBUG=True)
    mail.send(letter)
    mail.send_many([letter, letter])
    assert "reset/token" not in caplog.text
    assert "send: a message of" in caplog.text


def test_nothing_is_logged_of_the_dialogue_without_debug(
    serve: Serve, make_mail: MakeMail, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    make_mail(serve()).send(message())
    assert "MAIL FROM" not in caplog.text


@pytest.mark.parametrize("chosen", ["web1.example.org", None])
def test_name_in_ehlo_can_be_chosen(
    chosen: str | None, serve: Serve, make_mail: MakeMail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_fqdn", lambda: "a1b2c3d4e5f6")  # a container's, which some servers refuse
    server = serve()
    make_mail(server, MAIL_LOCAL_HOSTNAME=chosen).send(message())
    assert server.sessions[0].commands[0] == f"EHLO {chosen or '[127.0.0.1]'}"


def test_tls_from_the_first_byte_to_a_port_without_it_names_the_key(serve: Serve, make_mail: MakeMail) -> None:
    with pytest.raises(ConnectError, match="set MAIL_USE_TLS instead of MAIL_USE_SSL"):
        make_mail(serve(), MAIL_USE_SSL=True).send(message())


def test_clear_text_to_a_port_for_tls_names_the_key(monkeypatch: pytest.MonkeyPatch, make_mail: MakeMail) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(opening, "_IMPLICIT_TLS_PORT", silent.getsockname()[1])
        mail = make_mail(MAIL_PORT=silent.getsockname()[1], MAIL_TIMEOUT=0.2)
        with pytest.raises(ConnectTimeout, match="set MAIL_USE_SSL"):
            mail.send(message())


def test_clear_text_login_to_a_distant_host_is_warned_of(
    serve: Serve, make_mail: MakeMail, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(users=USERS)
    make_mail(server, **LOGIN).send(message())
    assert "without TLS" not in caplog.text
    loop_class = asyncio.BaseEventLoop
    real = loop_class.getaddrinfo

    async def resolve(self: Any, host: Any, *args: Any, **kwargs: Any) -> Any:
        return await real(self, "127.0.0.1" if host == "mail.example.org" else host, *args, **kwargs)

    monkeypatch.setattr(loop_class, "getaddrinfo", resolve)
    make_mail(server, MAIL_SERVER="mail.example.org", **LOGIN).send(message())
    assert "logging in to mail.example.org" in caplog.text
