"""Mail: what was queued, where each recipient stands, and what a mail looks like.

Mails hold links that log people in, so what stands in them needs the permission ``mail_body``. Their HTML is never
part of a page: it has an address of its own, which forbids it everything, and is shown in a sandboxed frame.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from flask import Response, current_app, request
from werkzeug.exceptions import NotFound

from ...errors import NotAccepted, NotDecodable
from ...mail.queue.reading import Letter, headers_of, mail_bytes, plain
from ...ops.rows import MailRow, RecipientRow
from ...ops.views import mail_view, with_more
from ..view import Route, View

PAGE = 50
_FIRST = 5
"""Recipients that the list shows of a mail."""
READ = 2_000_000
"""Octets of a mail that are read for its page; the frame with its HTML, and the files, have all."""
TEXT = 20_000
"""Characters of its text that are shown."""
_MOST = 200
"""Recipients that the page of a mail shows."""
_PLAIN_HEADERS = ("From", "To", "Cc", "Reply-To", "Subject", "Date", "Message-ID")
"""Those that are shown without ``mail_body``."""

FRAME_CSP = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src {}; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'"
)
IMAGES = {"blocked": "data:", "shown": "data: https: http:"}
_CONNECTING = re.compile(
    "</?(?:iframe|frame|frameset|noframes|object|embed|applet|portal|fencedframe|webview|link|base|meta)(?=[\\s/>]|$)[^>]*>?",
    re.IGNORECASE,
)
"""Tags for which a browser connects to another host before it asks the policy."""


# -- the list ----------------------------------------------------------------------------------------------------------


def page(view: View) -> Response:
    """The queued mails, newest first."""
    address = view.argument("to").removeprefix("to:").strip()
    before = request.args.get("before") or None
    found = view.browser.mails(limit=PAGE, before=before, address=address or None)
    ids = [mail.id for mail in found.rows]
    endings = view.browser.mail_endings(ids)
    recipients = view.browser.first_recipients(ids, _FIRST)
    data = {
        "mails": [_shown(mail, endings[mail.id], recipients.get(mail.id, [])) for mail in found.rows],
        "to": address,
        "older": found.older,
        "searched_out": found.searched_out,
        "is_first": before is None,
        "is_set_up": "mail" in view.app.extensions,
    }
    return view.page("mail.html", data, title="Mail")


def _shown(mail: MailRow, endings: Mapping[str, int], recipients: list[RecipientRow]) -> dict[str, Any]:
    told = [
        with_more(one, address=plain(one.address), text=plain(one.text or ""), ending=one.ending or "waiting")
        for one in recipients
    ]
    return with_more(mail_view(mail, endings, recipients), recipients=told)


# -- one mail ----------------------------------------------------------------------------------------------------------


def message(view: View) -> Response:
    """One mail: where its recipients stand, and, for those who may, what is in it."""
    mail = _found(view)
    body, problem = _bytes_or_problem(view, mail.id) if view.may("mail_body") else (None, "")
    recipients = view.browser.first_recipients([mail.id], _MOST + 1).get(mail.id, [])
    is_part = len(recipients) > _MOST
    endings = view.browser.mail_endings([mail.id])[mail.id] if is_part else Counter(one.ending for one in recipients)
    data = {
        **_shown(mail, endings, recipients[:_MOST]),
        "may_read": view.may("mail_body"),
        "is_there": body is not None,
        "problem": problem,
        "images": view.choice("images", IMAGES, "blocked"),
        **_content(mail, body),
    }
    return view.page("mail_message.html", data, title=data["subject"] or "(no subject)")


def _bytes_or_problem(view: View, mail_id: str) -> tuple[bytes | None, str]:
    try:
        return mail_bytes(view.state.store, mail_id), ""
    except NotDecodable as error:
        return None, str(error)


def _found(view: View) -> MailRow:
    mail_id = request.values.get("id", "")
    mail = view.browser.mail(mail_id)
    if mail is None:
        raise NotFound(f"No mail has the id {mail_id!r:.80}: it was never queued, or it was pruned after MAIL_KEEP.")
    return mail


def _content(mail: MailRow, body: bytes | None) -> dict[str, Any]:
    """What is in the mail; without its *body* the header lines that a list of mails shows too."""
    letter = None if body is None else Letter.of(body[:READ], most=TEXT + 1)
    if letter is None or body is None:
        headers = [header for header in headers_of(mail.head or b"") if header[0] in _PLAIN_HEADERS]
        cut = {"text_cut": False, "read_cut": False}
        return {"headers": headers, "text": None, "has_html": None, "attachments": None, **cut}
    return {
        "headers": letter.headers,
        "text": letter.text and letter.text[:TEXT],
        "text_cut": len(letter.text or "") > TEXT,
        "read_cut": len(body) > READ,
        "has_html": letter.html is not None,
        "attachments": letter.attachments,
    }


# -- what is in it -----------------------------------------------------------------------------------------------------


def html(view: View) -> Response:
    """The HTML of a mail, for the frame: no script, no form, no link out of it, and no picture from elsewhere."""
    images = view.choice("images", IMAGES, "blocked")
    text = Letter.of(_body(view)).html
    if text is None:
        raise NotFound("This mail has no HTML.")
    safe = without_connections(text).encode("utf-8", "replace")
    response = current_app.response_class(safe, content_type="text/html; charset=utf-8")
    return _guarded(response, FRAME_CSP.format(IMAGES[images]))


def without_connections(html: str) -> str:
    """*html* without the tags that make a browser connect to another host, whatever the policy says.

    The comment in their place keeps the text around it from becoming such a tag.
    """
    return _CONNECTING.sub("<!-- -->", html)


def source(view: View) -> Response:
    """The mail as a file, as it goes over the wire."""
    return _file(_body(view), "message/rfc822", "eml")


def text(view: View) -> Response:
    """All of the mail's text as a file."""
    body = _body(view)
    found = Letter.of(body, most=len(body)).text
    if found is None:
        raise NotFound("This mail has no plain text.")
    return _file(found.encode("utf-8", "replace"), "text/plain; charset=utf-8", "txt")


def _file(content: bytes, kind: str, ending: str) -> Response:
    response = current_app.response_class(content, content_type=kind)
    name = re.sub(r"[^0-9A-Za-z_-]", "_", request.args.get("id", ""))[:60]
    response.headers["Content-Disposition"] = f'attachment; filename="mail-{name}.{ending}"'
    return _guarded(response, FRAME_CSP.format(IMAGES["blocked"]))


def _body(view: View) -> bytes:
    body, problem = _bytes_or_problem(view, request.args.get("id", ""))
    if body is None:
        raise NotFound(problem or "There is no such mail, or its bytes are not stored any more.")
    return body


def _guarded(response: Response, csp: str) -> Response:
    response.headers["Content-Security-Policy"] = csp
    response.headers["Referrer-Policy"] = "no-referrer"
    # The policy says nothing of <link rel="dns-prefetch">, by which a sender would learn that the mail was opened.
    response.headers["X-DNS-Prefetch-Control"] = "off"
    return response


# -- acting ------------------------------------------------------------------------------------------------------------


def retry(view: View) -> Response:
    """Send the mail again to those who were not accepted."""
    mail = _found(view)
    operations = view.operations("retry")
    if mail.job_id is None:
        raise NotAccepted("The job of this mail was pruned, so it cannot be sent again. Queue a new one.")
    done = operations.act("retry", mail.job_id)
    words = "The mail goes out again." if done else f"Nothing was done: the mail is {mail.state}, not failed."
    return view.redirect("mail_message", message=words, id=mail.id)


ROUTES = (
    Route("/mail", "mail", page, arguments=("to", "before")),
    Route("/mail/message", "mail_message", message, arguments=("id", "images")),
    Route("/mail/html", "mail_html", html, permission="mail_body", arguments=("id", "images")),
    Route("/mail/source", "mail_source", source, permission="mail_body", arguments=("id",)),
    Route("/mail/text", "mail_text", text, permission="mail_body", arguments=("id",)),
    Route("/mail/retry", "retry_mail", retry, methods=("POST",), permission="retry"),
)
