"""What the original documentation and Flask-Mail's show, piece by piece, with only the import changed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from flask_taskworker.mail import email_dispatched
from tests.support.smtp_server import SMTPServer, wait_until

PNG = bytes.fromhex("89504e470d0a1a0a")


@pytest.fixture
def server(serve: Callable[..., SMTPServer]) -> SMTPServer:
    return serve()


@pytest.fixture
def names(server: SMTPServer, make_app: Callable[..., Flask]) -> Iterator[dict[str, Any]]:
    """What the reader of the documentation has when a snippet begins."""
    app = make_app(MAIL_PORT=server.port, MAIL_DEFAULT_SENDER="from@example.com")
    app.open_resource = lambda name: io.BytesIO(PNG)  # type: ignore[method-assign]
    found: dict[str, Any] = {
        "__name__": __name__,
        "app": app,
        "users": [SimpleNamespace(name="ada", email="ada@example.com")] * 3,
    }
    exec("from flask_taskworker import Mail, Message\nmail = Mail(app)", found)
    with app.app_context():
        yield found


def run(names: dict[str, Any], code: str) -> None:
    exec(code, names)


def test_extension_instance(names: dict[str, Any]) -> None:
    run(
        names,
        """
from flask import Flask
from flask_taskworker import Mail

app = Flask(__name__)
mail = Mail(app)

mail = Mail()

app = Flask(__name__)
mail.init_app(app)
""",
    )
    assert names["app"].extensions["mail"].server == "127.0.0.1"


def test_sending_messages(names: dict[str, Any], server: SMTPServer) -> None:
    run(
        names,
        """
@app.route("/")
def index():

    msg = Message("Hello",
                  sender="from@example.com",
                  recipients=["to@example.com"])

    msg.recipients = ["you@example.com"]
    msg.add_recipient("somebodyelse@example.com")

    msg.body = "testing"
    msg.html = "<b>testing</b>"

    mail.send(msg)
    return "sent"
""",
    )
    assert names["app"].test_client().get("/").text == "sent"
    assert server.mails[0].recipients == ["you@example.com", "somebodyelse@example.com"]
    assert b"<b>testing</b>" in server.mails[0].data


def test_default_sender_and_sender_pair(names: dict[str, Any]) -> None:
    run(
        names,
        """
msg = Message("Hello",
              recipients=["to@example.com"])
assert msg.sender == "from@example.com"

msg = Message("Hello",
              sender=("Me", "me@example.com"))

assert msg.sender == "Me <me@example.com>"
""",
    )


def test_bulk_emails(names: dict[str, Any], server: SMTPServer) -> None:
    run(
        names,
        """
with mail.connect() as conn:
    for user in users:
        message = '...'
        subject = "hello, %s" % user.name
        msg = Message(recipients=[user.email],
                      body=message,
                      subject=subject)

        conn.send(msg)
""",
    )
    wait_until(lambda: server.sessions[0].ended)
    assert [session.mails for session in server.sessions] == [3]


def test_attachments(names: dict[str, Any], server: SMTPServer) -> None:
    run(
        names,
        """
msg = Message("Hello", recipients=["to@example.com"])
with app.open_resource("image.png") as fp:
    msg.attach("image.png", "image/png", fp.read())
mail.send(msg)
""",
    )
    assert b'Content-Disposition: attachment; filename="image.png"' in server.mails[0].data


def test_unit_tests_and_suppressing_emails(names: dict[str, Any], server: SMTPServer) -> None:
    names["emails"] = ["to@example.com"]
    names["mail"].state.suppress = True
    run(
        names,
        """
with mail.record_messages() as outbox:

    mail.send_message(subject='testing',
                      body='test',
                      recipients=emails)

    assert len(outbox) == 1
    assert outbox[0].subject == "testing"
""",
    )
    assert server.sessions == []


@pytest.mark.parametrize(
    "fields", ['subject="a\\nb"', 'sender="a@example.com\\r\\n"', 'recipients=["a@example.com\\n"]']
)
def test_header_injection(fields: str, names: dict[str, Any]) -> None:
    names["pytest"] = pytest
    defaults = 'recipients=["to@example.com"], ' if "recipients" not in fields else ""
    run(
        names,
        f"""
from flask_taskworker import BadHeaderError

with pytest.raises(BadHeaderError):
    mail.send(Message({defaults}{fields}))
""",
    )


def test_signalling_support(names: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    run(
        names,
        """
from flask_taskworker import email_dispatched

def log_message(message, app):
    app.logger.debug(message.subject)

email_dispatched.connect(log_message)
mail.send(Message("Hello of the signal", recipients=["to@example.com"]))
""",
    )
    email_dispatched.disconnect(names["log_message"])
    assert "Hello of the signal" in caplog.text


def test_documented_members_are_there(names: dict[str, Any]) -> None:
    run(
        names,
        """
from flask_taskworker import Attachment, Connection
assert all(map(callable, (Mail.send, Mail.connect, Mail.send_message)))
assert all(map(callable, (Connection.send, Connection.send_message, Message.attach, Message.add_recipient)))
Attachment("a.txt", "text/plain", b"x")
""",
    )
