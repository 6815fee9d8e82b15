from __future__ import annotations

import asyncio
import email
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from flask_taskworker.mail import BadHeaderError, Mail, Message
from tests.support.smtp_server import SMTPServer

MakeMail = Callable[..., Mail]


def message() -> Message:
    return Message("hello", ["to@example.com"], "Gr\u00fc\u00dfe", bcc=["secret@example.com"])


def send_in_every_way(mail: Mail) -> None:
    mail.send(message())
    asyncio.run(mail.asend(message()))
    assert all(mail.send_many([message()]))
    with mail.connect() as connection:
        connection.send(message())


def test_memory_keeps_envelopes(make_mail: MakeMail) -> None:
    mail = make_mail(MAIL_BACKEND="memory")
    send_in_every_way(mail)
    assert len(mail.outbox) == 4
    envelope = mail.outbox[0]
    assert (envelope.sender, envelope.recipients) == ("from@example.com", ("to@example.com", "secret@example.com"))
    assert email.message_from_bytes(envelope.data)["Subject"] == "hello"


def test_console_prints(make_mail: MakeMail, capsys: pytest.CaptureFixture[str]) -> None:
    send_in_every_way(make_mail(MAIL_BACKEND="console"))
    shown = capsys.readouterr().out
    assert shown.count("Subject: hello\n") == 4
    assert shown.count("MAIL FROM <from@example.com> TO to@example.com, secret@example.com\n") == 4


def test_file_writes_one_private_file_a_mail(make_mail: MakeMail, tmp_path: Path) -> None:
    mail = make_mail(MAIL_BACKEND="file", MAIL_FILE_PATH=str(tmp_path / "out"))
    send_in_every_way(mail)
    files = sorted((tmp_path / "out").glob("*.eml"))
    assert len(files) == 4
    parsed = email.message_from_bytes(files[0].read_bytes())
    assert (parsed["X-Envelope-To"], parsed["Subject"]) == ("to@example.com, secret@example.com", "hello")
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


def test_file_goes_to_the_instance_folder_by_default(make_mail: MakeMail) -> None:
    mail = make_mail(MAIL_BACKEND="file")
    mail.send(message())
    assert len(list((Path(mail.app.instance_path) / "mail").iterdir())) == 1


@pytest.mark.parametrize("backend", ["memory", "console", "file"])
def test_backends_check_as_smtp_does(backend: str, make_mail: MakeMail) -> None:
    mail = make_mail(MAIL_BACKEND=backend)
    with pytest.raises(BadHeaderError):
        mail.send(Message("a\nb", ["to@example.com"]))
    with pytest.raises(AssertionError):
        mail.send(Message("a"))


def test_redirected_mail_goes_to_the_developer_alone(serve: Callable[..., SMTPServer], make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_REDIRECT_TO="dev@example.com")
    send_in_every_way(mail)
    assert [sent.recipients for sent in server.mails] == [["dev@example.com"]] * 4
    assert b"To: to@example.com" in server.mails[0].data
