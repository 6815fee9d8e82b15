"""``flask mail list`` and ``flask mail show``: the queued mails."""

from __future__ import annotations

import sys
from email.parser import BytesHeaderParser
from email.policy import default as policy

import click

from ..commands import mail_commands
from ..core.words import number_in
from ..errors import NotDecodable
from ..mail.queue.stored import load_mails
from ..ops.rows import RecipientRow
from ..ops.views import MailView, as_json, mail_view
from ..store.sql import MAX_ID
from .group import AS_JSON, INCOMPLETE, LIMIT, NOTHING, MailCommand, app_state, browser, complete_mail, print_list, tell
from .text import moment, pairs, safe, to_json

_LONGEST_SUBJECT = 60
_RECIPIENTS = 100
"""Recipients of each mail of a list that are read."""
_HEADERS = ("From", "To", "Cc", "Reply-To", "Subject", "Date", "Message-ID")


@mail_commands.command("list", cls=MailCommand)
@click.option("--to", "address", metavar="TEXT", help="Only mails to an address that contains this.")
@LIMIT
@click.option("--before", metavar="ID", help="Only mails older than this one: the next page.")
@AS_JSON
def list_mails(address: str | None, limit: int, before: str | None, in_json: bool) -> None:
    """List mails queued with mail.send_later, newest first.

    They are kept for MAIL_KEEP after they ended. Exits with 3 if no mail matches --to, with 6 if the search stopped
    before it had seen all mails: continue with --before.
    """
    found = browser()
    page = found.mails(limit=limit, before=before, address=address)
    ids = [row.id for row in page.rows]
    endings, recipients = found.mail_endings(ids), found.first_recipients(ids, _RECIPIENTS)
    mails = [mail_view(row, endings[row.id], recipients.get(row.id, ())) for row in page.rows]
    headers = ("mail", "queued", "to", "subject", "state", "tries", "size")
    print_list(mails, headers, _cells, in_json=in_json, right={"tries", "size"})
    if page.older is not None:
        tell(f"Older mails: --before {page.older}")
    if not mails:
        which = "None of the newest mails" if page.searched_out else "No mail"
        tell(f"{which} is to such an address." if address else "No mail is queued.")
        if address:
            sys.exit(INCOMPLETE if page.searched_out else NOTHING)


def _cells(mail: MailView) -> tuple[str, ...]:
    more = sum(mail.endings.values()) - 1
    to = f"{mail.recipients[0].address}{f' and {more:,} more' if more else ''}" if mail.recipients else ""
    subject = mail.subject if len(mail.subject) <= _LONGEST_SUBJECT else f"{mail.subject[:_LONGEST_SUBJECT]}…"
    return (mail.id, moment(mail.created_at) or "", to, subject, mail.state, str(mail.tries), f"{mail.size:,}")


# -- show --------------------------------------------------------------------------------------------------------------


@mail_commands.command("show", cls=MailCommand)
@click.argument("mail_id", metavar="ID", shell_complete=complete_mail)
@click.option("--eml", is_flag=True, help="Print only the bytes of the mail, as they are sent.")
@AS_JSON
def show_mail(mail_id: str, eml: bool, in_json: bool) -> None:
    """Show one queued mail: its header and the state of each recipient.

    ID is the id from the list or the number of its job. Only --eml shows the text.
    """
    if eml and in_json:
        raise click.UsageError("Give either --eml or --json, not both.")
    store, found = app_state().store, browser()
    # An id is longer than the number of any job.
    number = number_in(mail_id)
    uid = mail_id if number is None else store.record(number).uid
    row = found.mail(uid)
    stored = load_mails(store.driver.read, store.driver.dialect, [uid]).get(uid)
    if row is None or stored is None:
        tell(f"Mail {mail_id!r} is not queued: it never existed, or it was pruned after MAIL_KEEP.")
        sys.exit(NOTHING)
    if eml:
        if isinstance(stored, NotDecodable):
            raise stored
        sys.stdout.buffer.write(stored.envelope.data)
        sys.stdout.buffer.flush()
        return
    recipients = found.first_recipients([uid], MAX_ID).get(uid, [])
    mail = mail_view(row, found.mail_endings([uid])[uid], recipients)
    # Of a mail that cannot be read, the lines at its beginning.
    data = bytes(row.head or b"") if isinstance(stored, NotDecodable) else stored.envelope.data
    header = {name: str(value) for name, value in BytesHeaderParser(policy=policy).parsebytes(data).items()}
    problem = str(stored) if isinstance(stored, NotDecodable) else None
    if in_json:
        click.echo(to_json(as_json(mail) | {"header": header, "problem": problem}))
    else:
        click.echo("\n".join(_lines(mail, header, problem)))


def _lines(mail: MailView, header: dict[str, str], problem: str | None) -> list[str]:
    facts = [
        ("state", mail.state),
        ("job", str(mail.job) if mail.job else "pruned"),
        ("sender", mail.sender),
        ("size", f"{mail.size:,} bytes"),
        ("tries", str(mail.tries)),
        ("queued", moment(mail.created_at)),
        ("next try", moment(mail.next_try_at)),
        ("gives up", moment(mail.give_up_at)),
        ("ended", moment(mail.finished_at)),
        ("once", "it is handed over at most once" if mail.once else None),
        ("not sent", problem),
    ]
    lines = [click.style(f"Mail {safe(mail.id)}", bold=True), *pairs(facts), "", click.style("Header", bold=True)]
    lines += pairs([(name, value) for name, value in header.items() if name in _HEADERS])
    lines += ["", click.style("Recipients", bold=True)]
    return lines + [safe(f"  {recipient.address}  {_standing(recipient)}") for recipient in mail.recipients]


def _standing(recipient: RecipientRow) -> str:
    reply = f" {recipient.code}" if recipient.code is not None and recipient.code > 0 else ""
    words = f' "{recipient.text}"' if recipient.text else ""
    following = f", next try {moment(recipient.next_try_at)}" if recipient.next_try_at else ""
    return f"{recipient.ending}{reply}{words}{following}"
