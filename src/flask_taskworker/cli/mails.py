"""``flask mail list`` and ``flask mail show``: the queued mails."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.policy import default as policy
from typing import Any

import click

from ..commands import mail_commands
from ..errors import NotDecodable, StoreError
from ..mail.queue.queue import RecipientState, load_recipients
from ..mail.queue.stored import StoredMail, load_mails
from ..ops.browse import Browser
from ..ops.rows import MailRow, RecipientRow
from ..store.sql import Store
from .group import AS_JSON, INCOMPLETE, LIMIT, NOTHING, MailCommand, app_state, browser, complete_mail, tell
from .text import iso, moment, moment_in, odd_fields, pairs, safe, safe_lines, table, to_json, unless_odd

_LONGEST_SUBJECT = 60
_RECIPIENTS = 100
"""Recipients of each mail of a list that are read."""
_HEADERS = ("From", "To", "Cc", "Reply-To", "Subject", "Date", "Message-ID")


@mail_commands.command("list", cls=MailCommand)
@click.option("--to", "address", metavar="TEXT", help="Only mails to an address that has this in it.")
@LIMIT
@click.option("--before", metavar="ID", help="Only older ones than this mail: the next page.")
@AS_JSON
def list_mails(address: str | None, limit: int, before: str | None, as_json: bool) -> None:
    """List queued mails, the newest first: those that mail.send_later has stored.

    They are kept for MAIL_KEEP after their end. Exits with 3 if no mail is to the address, with 6 if the search stopped
    before it had seen all mails: go on with --before.
    """
    found = browser()
    page = found.mails(limit=limit, before=before, address=address)
    recipients = _recipients(found, page.rows)
    if as_json:
        for row in page.rows:
            click.echo(to_json(_fields(row, recipients[row.id])))
    elif page.rows:
        headers = ("mail", "queued", "to", "subject", "state", "tries", "size")
        cells = [_cells(row, recipients[row.id]) for row in page.rows]
        click.echo("\n".join(table(headers, cells, right={"tries", "size"})))
    if page.older is not None:
        tell(f"Older mails: --before {page.older}")
    if not page.rows:
        which = "None of the newest mails" if page.searched_out else "No mail"
        tell(f"{which} is to such an address." if address else "There is no queued mail.")
        if address:
            sys.exit(INCOMPLETE if page.searched_out else NOTHING)


def _recipients(found: Browser, rows: list[MailRow]) -> dict[str, list[RecipientRow]]:
    first = found.first_recipients([row.id for row in rows], _RECIPIENTS)
    return {row.id: first.get(row.id, []) for row in rows}


def _cells(row: MailRow, recipients: list[RecipientRow]) -> tuple[str, ...]:
    return (
        row.id,
        moment_in(row, "created_at") or "",
        _to_words(recipients),
        _cut(_subject(row)),
        _state(row, recipients),
        unless_odd(row, "tries", str(row.tries)),
        unless_odd(row, "size", f"{row.size:,}"),
    )


def _to_words(recipients: list[RecipientRow]) -> str:
    if not recipients:
        return ""
    more = len(recipients) - 1
    plus = f" and {more}{'+' if len(recipients) == _RECIPIENTS else ''} more" if more else ""
    return f"{recipients[0].address}{plus}"


def _subject(row: MailRow) -> str:
    return str(BytesHeaderParser(policy=policy).parsebytes(bytes(row.head or b"")).get("Subject", ""))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SUBJECT else f"{text[:_LONGEST_SUBJECT]}…"


def _state(row: MailRow, recipients: list[RecipientRow]) -> str:
    """What has become of it: the ending that its recipients share, or how many have which."""
    if row.state in ("cancelled", "running"):
        return row.state
    endings = [recipient.ending for recipient in recipients]
    counts = {ending: endings.count(ending) for ending in dict.fromkeys(endings)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{number} {ending}" for ending, number in counts.items())


def _fields(row: MailRow, recipients: list[RecipientRow]) -> dict[str, Any]:
    return {
        "id": row.id,
        "message_id": row.message_id,
        "subject": _subject(row),
        "sender": row.sender,
        "recipients": [
            {"address": r.address, "ending": r.ending, "code": r.code, "text": r.text, **odd_fields(r)}
            for r in recipients
        ],
        "job": row.job_id,
        "job_state": row.state,
        "tries": row.tries,
        "size": row.size,
        "once": bool(row.once),
        "created_at": iso(row.created_at),
        "next_try_at": iso(row.run_at) if row.state == "scheduled" else None,
        "give_up_at": iso(row.give_up_at),
        "finished_at": iso(row.finished_at),
        **odd_fields(row),
    }


# -- show --------------------------------------------------------------------------------------------------------------


@mail_commands.command("show", cls=MailCommand)
@click.argument("mail_id", metavar="ID", shell_complete=complete_mail)
@click.option("--eml", is_flag=True, help="Print the mail's bytes, as they are sent, and nothing else.")
@AS_JSON
def show_mail(mail_id: str, eml: bool, as_json: bool) -> None:
    """Show one queued mail: its header, and where each recipient stands.

    ID is that of the mail, as in the list, or the number of its job. Its text is shown by --eml only.
    """
    if eml and as_json:
        raise click.UsageError("Give either --eml or --json, not both.")
    mail = _load(app_state().store, mail_id)
    if eml:
        sys.stdout.buffer.write(mail.data())
        sys.stdout.buffer.flush()
    elif as_json:
        click.echo(to_json(_whole_fields(mail)))
    else:
        click.echo("\n".join(_lines(mail)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mail:
    """One queued mail with all that there is of it."""

    row: MailRow
    recipients: list[RecipientState]
    stored: StoredMail | NotDecodable
    """The mail as it is sent, or why it cannot be."""

    def data(self) -> bytes:
        """Its bytes. Raises NotDecodable."""
        if isinstance(self.stored, NotDecodable):
            raise self.stored
        return self.stored.envelope.data

    def header(self) -> dict[str, str]:
        """Its header lines; of one that cannot be read those at its beginning."""
        data = bytes(self.row.head or b"") if isinstance(self.stored, NotDecodable) else self.stored.envelope.data
        parsed = BytesHeaderParser(policy=policy).parsebytes(data)
        return {name: str(value) for name, value in parsed.items()}


def _load(store: Store, mail_id: str) -> _Mail:
    uid = _uid_of(store, mail_id)
    row = Browser(store).mail(uid)
    read, dialect = store.driver.read, store.driver.dialect
    mails = load_mails(read, dialect, [uid])
    if row is None or uid not in mails:
        tell(f"There is no queued mail {mail_id!r}: it never existed, or it was pruned after MAIL_KEEP.")
        sys.exit(NOTHING)
    return _Mail(row=row, recipients=load_recipients(read, dialect, [uid]).get(uid, []), stored=mails[uid])


def _uid_of(store: Store, mail_id: str) -> str:
    """The id of a mail by the number of its job. An id is longer than any such number."""
    if mail_id.isascii() and mail_id.isdecimal() and len(mail_id) < 19:
        return store.record(int(mail_id)).uid
    if "\0" in mail_id:
        raise StoreError("No database takes NUL.")
    return mail_id


def _lines(mail: _Mail) -> list[str]:
    row = mail.row
    facts = [
        ("job", f"{row.job_id}, {row.state}" if row.job_id else "pruned"),
        ("sender", safe(row.sender)),
        ("size", unless_odd(row, "size", f"{row.size:,} bytes")),
        ("tries", unless_odd(row, "tries", str(row.tries))),
        ("queued", moment_in(row, "created_at")),
        ("next try", moment(row.run_at) if row.state == "scheduled" else None),
        ("gives up", moment_in(row, "give_up_at") if row.finished_at is None else None),
        ("ended", moment_in(row, "finished_at")),
        ("once", "it is handed over once at most" if row.once else None),
        *((f"odd {name}", safe(value)) for name, value in row.odd.items()),
        ("not sent", safe(mail.stored) if isinstance(mail.stored, NotDecodable) else None),
    ]
    lines = [click.style(f"Mail {safe(row.id)}", bold=True), *pairs(facts), "", click.style("Header", bold=True)]
    lines += pairs([(name, safe(value)) for name, value in mail.header().items() if name in _HEADERS])
    lines += ["", click.style("Recipients", bold=True)]
    return lines + [f"  {line}" for r in mail.recipients for line in safe_lines(_recipient_words(r)).splitlines()]


def _recipient_words(state: RecipientState) -> str:
    odd = "".join(f", {name} is {value}, which cannot be read" for name, value in state.odd.items())
    return f"{state.address}  {state}{odd}"


def _whole_fields(mail: _Mail) -> dict[str, Any]:
    cannot = {"cannot_be_read": str(mail.stored)} if isinstance(mail.stored, NotDecodable) else {}
    return _fields(mail.row, []) | {"recipients": _recipient_fields(mail), "header": mail.header()} | cannot


def _recipient_fields(mail: _Mail) -> list[dict[str, Any]]:
    return [
        {
            "address": state.address,
            "ending": state.ending,
            "code": state.code,
            "text": state.text,
            "next_try_at": state.next_try,
            **odd_fields(state),
        }
        for state in mail.recipients
    ]
