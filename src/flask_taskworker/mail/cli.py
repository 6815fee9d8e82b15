"""``flask mail …``: the commands. They reach the app's mail settings through ``app.extensions``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from flask import current_app

from ..commands import mail_commands
from .compose.fields import parse_mailbox
from .envelope import SendResult
from .errors import BadHeaderError, MailError
from .message import Message

F = TypeVar("F", bound=Callable[..., Any])


def _option(*names: str, **attributes: Any) -> Callable[[F], F]:
    variable = f"TASKER_CLI_MAIL_SEND_TEST_{names[0][2:]}".upper()
    return click.option(*names, envvar=variable, show_envvar=True, **attributes)


@mail_commands.command("send-test")
@click.argument("address")
@_option("--from", "sender", metavar="ADDRESS", help="The sender, instead of MAIL_DEFAULT_SENDER.")
@_option("--count", default=1, show_default=True, type=click.IntRange(1), metavar="N", help="How many mails to send.")
@_option("--json", "as_json", is_flag=True, help="One JSON object for each mail.")
def send_test(address: str, sender: str | None, count: int, as_json: bool) -> None:
    """Send a test mail to ADDRESS as the app is configured, and say what the server said.

    Exits with 0 if every mail was accepted, 1 if one was not, 2 for a wrong ADDRESS.
    """
    state = current_app.extensions["mail"]
    try:
        address = parse_mailbox(address, "ADDRESS").address
    except BadHeaderError as error:
        raise click.UsageError(str(error)) from None
    sender = sender or state.default_sender
    if not sender:
        raise click.UsageError("The mail has no sender. Give --from ADDRESS, or set MAIL_DEFAULT_SENDER.")
    name = current_app.name
    body = f"This is a test mail of {name}. If you can read it, mail works.\n"
    messages = [Message(f"Test mail {i + 1} of {name}", [address], body, sender=sender) for i in range(count)]
    results = list(_send(state, messages))
    for result in results:
        click.echo(_as_json(result) if as_json else _as_text(result))
    if state.suppress:
        click.echo("MAIL_SUPPRESS_SEND or TESTING is on: nothing left this machine.", err=True)
    sys.exit(0 if all(results) else 1)


def _send(state: Any, messages: list[Message]) -> Iterator[SendResult]:
    try:
        if len(messages) == 1:
            yield state.send(messages[0])
            return
        # On a terminal only: click writes nothing but the label elsewhere.
        with click.progressbar(messages, label="Sending", file=sys.stderr) as shown:
            yield from state.send_many(shown)
    except MailError as error:
        yield SendResult(message_id=messages[0].msgId, error=error, message=messages[0])


def _as_json(result: SendResult) -> str:
    shown = {
        "message_id": result.message_id,
        "accepted": list(result.accepted),
        "refused": {address: {"code": reply.code, "text": reply.text} for address, reply in result.refused.items()},
        "error": None if result.error is None else {"type": type(result.error).__name__, "text": str(result.error)},
    }
    return json.dumps(shown)


def _as_text(result: SendResult) -> str:
    if result.error is not None:
        return f"failed: {_printable(str(result.error))}"
    refused = "".join(f"; refused for {address}: {_printable(str(reply))}" for address, reply in result.refused.items())
    return f"sent to {', '.join(result.accepted) or 'no recipient'} as {result.message_id}{refused}"


def _printable(text: str) -> str:
    """What a server said, without the control characters that would act on a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
