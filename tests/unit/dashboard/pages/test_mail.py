"""The mail pages: who is where, and a mail's text only for those who may read it, and never as part of a page."""

from __future__ import annotations

import email
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker.mail import Attachment, MailJob, Message
from flask_taskworker.ops.access import PERMISSIONS
from tests.support.dashboard_lab import XSS, Lab, assert_harmless, tags

MakeLab = Callable[..., Lab]
READERS = set(PERMISSIONS)
OTHERS = READERS - {"mail_body"}
TRACKER = '<p>hello</p><img src="https://tracker.example/open.gif"><script>parent.stolen = 1</script>'


@pytest.fixture
def make_lab(make_app: Callable[..., Flask]) -> MakeLab:
    def make(permissions: set[str] = READERS, *, mail: bool = True, **config: Any) -> Lab:
        defaults = {"TASKER_DURABILITY": "normal", "MAIL_DEFAULT_SENDER": "us@x.org", "MAIL_BACKEND": "memory"}
        return Lab(make_app(**defaults | config), permissions, mail=mail)

    return make


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab()


def queue(lab: Lab, *recipients: str, delay: float = 0, uid: str | None = None, **fields: Any) -> MailJob:
    defaults = {"subject": "hello", "recipients": list(recipients or ["ana@x.org"]), "body": "text"}
    assert lab.mail is not None
    with lab.app.app_context():
        message = Message(**defaults | fields)
        return lab.mail.send_later(message, delay=delay, uid=uid)


def settle(lab: Lab, mail_id: str, ending: str, code: int = 550, text: str = "no such user") -> None:
    """The mail was given up."""
    now = lab.store.clock()
    lab.rows(
        "UPDATE taskworker_recipient SET ending = ?, code = ?, text = ? WHERE mail_id = ?", ending, code, text, mail_id
    )
    lab.rows("UPDATE taskworker_mail SET finished_at = ?, tries = 1 WHERE id = ?", now, mail_id)
    lab.rows(
        "UPDATE taskworker_job SET state = 'failed', finished_at = ?, expires_at = ?, failure_kind = ? WHERE uid = ?",
        *(now, now + 10**9, "unknown" if ending == "unknown" else "exception", mail_id),
    )


# -- the list ----------------------------------------------------------------------------------------------------------


def test_list_shows_each_mail_with_its_recipients(lab: Lab) -> None:
    sent = queue(lab, "ana@x.org", "bo@y.org", subject="Grüße", uid="1")
    lab.drain()
    # Those of one millisecond come in the order of their ids.
    waiting = queue(lab, *(f"u{n}@x.org" for n in range(8)), delay=100, uid="2")
    refused = queue(lab, "zed@bad.org", uid="3")
    settle(lab, refused.uid, "rejected")
    mails = lab.data("/mail")["mails"]
    assert [(mail["id"], mail["state"], mail["tries"]) for mail in mails] == [
        (refused.uid, "failed", 1),
        (waiting.uid, "scheduled", 0),
        (sent.uid, "accepted", 1),
    ]
    assert [(r["address"], r["ending"]) for r in mails[2]["recipients"]] == [
        ("ana@x.org", "accepted"),
        ("bo@y.org", "accepted"),
    ]
    assert (mails[2]["subject"], mails[2]["author"]) == ("Grüße", "us@x.org")
    assert (len(mails[1]["recipients"]), mails[1]["endings"]) == (5, {"waiting": 8})
    html = lab.page("/mail")
    for words in ("Grüße", "accepted", "rejected", "550", "no such user", "and more"):
        assert words in html


@pytest.mark.parametrize(("ending", "state"), [("rejected", "failed"), ("unknown", "held")])
def test_mail_whose_delivery_is_unknown_is_held(lab: Lab, ending: str, state: str) -> None:
    settle(lab, queue(lab).uid, ending)
    assert lab.data("/mail")["mails"][0]["state"] == state


def test_mail_whose_job_was_pruned_is_still_shown(lab: Lab) -> None:
    job = queue(lab)
    lab.drain()
    lab.rows("DELETE FROM taskworker_job")
    assert lab.data("/mail")["mails"][0]["state"] == "accepted"
    assert "pruned" in lab.page("/mail/message", id=job.uid)
    assert lab.post("/mail/retry", id=job.uid).status_code == 409


def test_list_is_filtered_by_recipient_and_paged(lab: Lab) -> None:
    for n in range(60):
        queue(lab, "ana_1@x.org" if n % 6 == 0 else "bo%@y.org")
    first = lab.data("/mail")
    assert len(first["mails"]) == 50
    assert first["older"] == first["mails"][-1]["id"]
    second = lab.data("/mail", before=first["older"])
    assert (len(second["mails"]), second["older"]) == (10, None)
    assert not {mail["id"] for mail in first["mails"]} & {mail["id"] for mail in second["mails"]}
    for to, number in (("ana_1@", 10), ("to:ANA_", 10), ("bo%@", 50), ("%", 50), ("a_a", 0), ("zed", 0)):
        assert len(lab.data("/mail", to=to)["mails"]) == number, to
    assert "No queued mail fits." in lab.page("/mail", to="zed")


def test_page_without_a_mail_extension_says_what_to_do(make_lab: MakeLab) -> None:
    assert "<code>mail = Mail(app)</code>" in make_lab(mail=False).page("/mail")


def test_pages_need_at_most_four_statements(lab: Lab) -> None:
    shared = Attachment("big.bin", "application/octet-stream", b"x" * 5000)
    jobs = [queue(lab, "ana@x.org", f"u{n}@x.org", html="<b>h</b>", attachments=[shared]) for n in range(5)]
    for path, arguments in (("/mail", {}), ("/mail", {"to": "ana"}), ("/mail/message", {"id": jobs[0].uid})):
        lab.page(path, **arguments)
        with lab.statements() as seen:
            lab.page(path, **arguments)
        assert len(seen) <= 4, seen


# -- one mail ----------------------------------------------------------------------------------------------------------


def test_page_of_a_mail_shows_what_is_in_it(lab: Lab) -> None:
    job = queue(
        lab,
        subject="Report",
        body="The report & more",
        html="<b>report</b>",
        attachments=[Attachment("r.pdf", "application/pdf", b"x" * 1234)],
    )
    html = lab.page("/mail/message", id=job.uid)
    for words in ("Report", "The report &amp; more", "r.pdf", "1,234", "ana@x.org", "Message-ID", "us@x.org"):
        assert words in html
    (frame,) = [attributes for tag, attributes in tags(html) if tag == "iframe"]
    assert frame["sandbox"] is None  # nothing is allowed to it
    assert frame["src"] == f"/tasks/mail/html?id={job.uid}&images=blocked"
    assert "<b>report</b>" not in html


def test_unknown_mail_is_404(lab: Lab) -> None:
    for path in ("/mail/message", "/mail/html", "/mail/source"):
        for arguments in ({"id": "gone"}, {"id": "' OR 1=1 --"}, {}):
            assert lab.get(path, **arguments).status_code == 404
    assert lab.post("/mail/retry", id="gone").status_code == 404
    plain = queue(lab)
    assert lab.get("/mail/html", id=plain.uid).status_code == 404
    assert lab.get("/mail/message", id=plain.uid, images="all").status_code == 400


def test_text_of_a_mail_needs_its_permission(make_lab: MakeLab) -> None:
    lab = make_lab(OTHERS)
    job = queue(
        lab, body="secret-text", html="<b>secret-html</b>", extra_headers={"List-Unsubscribe": "<https://secret-link>"}
    )
    for seen in (lab.page("/mail/message", id=job.uid), lab.get("/mail/message", id=job.uid, format="json").text):
        assert "secret" not in seen
        assert "hello" in seen
    assert "mail_body" in lab.page("/mail/message", id=job.uid)
    for path in ("/mail/html", "/mail/source", "/mail/text"):
        response = lab.get(path, id=job.uid)
        assert response.status_code == 403
        assert "secret" not in response.text


def test_text_of_mails_is_closed_in_production_and_open_in_debug_mode(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.permissions = True
    job = queue(lab, html="<b>h</b>")
    assert lab.get("/mail/html", id=job.uid).status_code == 403
    lab.app.debug = True
    assert lab.get("/mail/html", id=job.uid).status_code == 200


def test_html_of_a_mail_may_do_nothing(lab: Lab) -> None:
    job = queue(lab, html=TRACKER)
    response = lab.get("/mail/html", id=job.uid)
    assert response.text == TRACKER
    assert response.mimetype == "text/html"
    policy = directives(response.headers["Content-Security-Policy"])
    assert policy["sandbox"] == ""
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == "'unsafe-inline'"
    assert policy["img-src"] == "data:"
    assert policy["frame-ancestors"] == "'self'"
    assert "script-src" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["X-DNS-Prefetch-Control"] == "off"
    assert response.headers["Cache-Control"] == "no-store"


CONNECTING = (
    *("iframe", "frame", "frameset", "object", "embed", "applet", "portal", "fencedframe", "link", "base", "meta"),
)


def test_html_of_a_mail_has_no_tag_that_connects_to_its_sender(lab: Lab) -> None:
    written = "".join(
        f'<{name} src="https://evil.example/{name}"></{name}><{name.upper()}\n/data=//evil.example>a{name}<{name}/>'
        for name in CONNECTING
    )
    nested = "<ifr<iframe src=//evil.example>ame src=//evil.example><<object>object data=//evil.example>"
    job = queue(lab, html=f"<p>before</p>{written}{nested}<p>after</p><embed src=//evil.example")
    html = lab.get("/mail/html", id=job.uid).text
    assert "<p>before</p>" in html
    assert "<p>after</p>" in html
    assert not {name for name, _ in tags(html)} & set(CONNECTING)
    assert not [name for name in CONNECTING if f"<{name}" in html.lower()]


def test_pictures_from_elsewhere_are_blocked_until_asked_for(lab: Lab) -> None:
    job = queue(lab, html=TRACKER)
    asked = lab.get("/mail/html", id=job.uid, images="shown")
    policy = directives(asked.headers["Content-Security-Policy"])
    assert policy["img-src"] == "data: https: http:"
    assert (policy["sandbox"], policy["default-src"]) == ("", "'none'")
    assert f"/tasks/mail/html?id={job.uid}&amp;images=shown" in lab.page("/mail/message", id=job.uid, images="shown")


def directives(policy: str) -> dict[str, str]:
    return {name: rest for name, _, rest in (part.strip().partition(" ") for part in policy.split(";"))}


def test_source_is_the_mail_as_it_goes_out(lab: Lab) -> None:
    job = queue(lab, attachments=[Attachment("a.bin", "application/octet-stream", b"x" * 5000)])
    response = lab.get("/mail/source", id=job.uid)
    assert response.mimetype == "message/rfc822"
    assert response.headers["Content-Disposition"] == f'attachment; filename="mail-{job.uid}.eml"'
    assert "sandbox" in response.headers["Content-Security-Policy"]
    parts = list(email.message_from_bytes(response.data).walk())
    assert parts[-1].get_payload(decode=True) == b"x" * 5000


def test_long_text_is_cut_and_there_as_a_file(lab: Lab) -> None:
    body = "a line of text\n" * 10_000 + "the end"
    job = queue(lab, body=body)
    html = lab.page("/mail/message", id=job.uid)
    assert len(html) < 30_000
    assert "a line of text" in html
    assert "the end" not in html
    assert f'href="/tasks/mail/text?id={job.uid}" download' in html
    whole = lab.get("/mail/text", id=job.uid)
    assert whole.mimetype == "text/plain"
    assert whole.headers["Content-Disposition"] == f'attachment; filename="mail-{job.uid}.txt"'
    assert whole.text.replace("\r\n", "\n") == body
    assert "download" not in lab.page("/mail/message", id=queue(lab).uid)


def test_of_a_long_mail_the_page_reads_the_beginning(lab: Lab) -> None:
    first, last = Attachment("first.bin", "a/b", b"x" * 2_000_000), Attachment("last.bin", "a/b", b"y")
    job = queue(lab, attachments=[first, last])
    html = lab.page("/mail/message", id=job.uid)
    assert "its first 2 MB were read" in html
    assert "text" in html
    assert "first.bin" in html
    assert "last.bin" not in html
    assert b"last.bin" in lab.get("/mail/source", id=job.uid).data
    assert "2 MB" not in lab.page("/mail/message", id=queue(lab, attachments=[last]).uid)


def test_an_attached_mail_is_listed_by_its_subject(lab: Lab) -> None:
    inner = Attachment(None, "message/rfc822", b"Subject: <b>inner\r\n\r\ninner text")
    html = lab.page("/mail/message", id=queue(lab, attachments=[inner]).uid)
    assert_harmless(html)
    assert "&lt;b&gt;inner" in html
    assert "message/rfc822" in html
    assert "inner text" not in html


def test_name_of_the_source_file_is_harmless(lab: Lab) -> None:
    assert lab.mail is not None
    with lab.app.app_context():
        message = Message(subject="s", recipients=["a@x.org"], body="b")
        lab.mail.send_later(message, uid='../../x";evil=".exe')
    found = lab.get("/mail/source", id='../../x";evil=".exe').headers["Content-Disposition"]
    assert found == 'attachment; filename="mail-______x__evil___exe.eml"'


# -- hostile mails -----------------------------------------------------------------------------------------------------


def test_foreign_text_is_never_markup(lab: Lab) -> None:
    for number, text in enumerate(XSS):
        job = queue(
            lab,
            f"u{number}@x.org",
            subject=text,
            sender=(text, "us@x.org"),
            body=text,
            html=f"<p>{text}",
            attachments=[Attachment(f"{text}.txt", "text/plain", "x"), Attachment(f"../..//{text}", "text/html", text)],
        )
        settle(lab, job.uid, "rejected", text=f"{text}\u202e\x1b[31m")
        lab.rows("UPDATE taskworker_recipient SET address = ? WHERE mail_id = ?", text, job.uid)
        html = lab.page("/mail/message", id=job.uid)
        assert_harmless(html.replace(f"/tasks/mail/html?id={job.uid}", "/tasks"))
        assert not set(html) & set("\u202e\x1b")
        data = lab.data("/mail/message", id=job.uid)
        assert (data["subject"], data["text"]) == (text, text)
        assert data["recipients"][0]["address"] == text
        assert all("/" not in attachment["name"].replace("</", "") for attachment in data["attachments"])
    assert_harmless(lab.page("/mail"))
    assert not set(lab.page("/mail")) & set("\u202e\x1b")
    for text in XSS:
        assert_harmless(lab.page("/mail", to=text))


def test_damaged_bytes_are_shown_as_far_as_they_go(lab: Lab) -> None:
    job = queue(lab)
    attached = b"Content-Type: image/<img>\r\nContent-Disposition: attachment; filename=x\r\n\r\n"
    headers = b"Subject: =?x?q?\xff?=\r\n<b>: x\r\nContent-Type: multipart/x\r\n\r\n"
    for body in (b"", b"\xff\0" * 3000, headers, attached):
        lab.rows("UPDATE taskworker_mail_body SET body = ?", body)
        assert_harmless(lab.page("/mail"))
        assert_harmless(lab.page("/mail/message", id=job.uid))
    lab.rows("DELETE FROM taskworker_mail_body")
    assert "not stored any more" in lab.page("/mail/message", id=job.uid)
    assert lab.get("/mail/source", id=job.uid).status_code == 404
    lab.page("/mail")


# -- acting ------------------------------------------------------------------------------------------------------------


def test_failed_mail_is_sent_again(lab: Lab) -> None:
    job = queue(lab)
    settle(lab, job.uid, "rejected")
    assert "Send again" in lab.page("/mail/message", id=job.uid)
    assert "The mail goes out again." in lab.act("/mail/retry", id=job.uid)
    assert [str(state.ending) for state in job.recipients.values()] == ["None"]
    assert [(a.who, a.action, a.target) for a in lab.audit()] == [
        ("ana", "retry", f"job {job.id} (flask_taskworker.mail.deliver)")
    ]
    lab.drain()
    assert lab.data("/mail")["mails"][0]["state"] == "accepted"
    assert "Send again" not in lab.page("/mail/message", id=job.uid)
    assert "Nothing was done" in lab.act("/mail/retry", id=job.uid)


def test_sending_again_needs_its_permission_and_an_own_page(make_lab: MakeLab) -> None:
    lab = make_lab(READERS - {"retry"})
    job = queue(lab)
    settle(lab, job.uid, "rejected")
    assert "Send again" not in lab.page("/mail/message", id=job.uid)
    assert lab.post("/mail/retry", id=job.uid).status_code == 403
    lab.permissions = READERS
    assert lab.client.post("/tasks/mail/retry", data={"id": job.uid}).status_code == 403
    assert lab.get("/mail/retry").status_code == 404
    assert lab.audit() == []
    assert job.refresh().state == "failed"
