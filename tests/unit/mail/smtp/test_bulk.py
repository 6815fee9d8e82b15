"""Many mails at once: order, errors, bounded memory, and servers that fail in the middle."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import pytest

from flask_taskworker.errors import ArgumentsError
from flask_taskworker.mail import Attachment, BadHeaderError, ConnectionRefused, Mail, MailError, Message, SendResult
from flask_taskworker.mail.errors import ConnectError, DataRefused, DeliveryUnknown, RecipientsRefused
from tests.support.smtp_server import EXTENSIONS, Drop, Session, SMTPServer, wait_until

Serve = Callable[..., SMTPServer]
MakeMail = Callable[..., Mail]


def letters(count: int, **fields: Any) -> Iterator[Message]:
    for number in range(count):
        yield Message(f"letter {number}", [f"reader{number}@example.com"], "text", **fields)


def subjects(server: SMTPServer) -> list[str]:
    return [mail.data.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode() for mail in server.mails]


def collect(mail: Mail, messages: Any) -> list[SendResult]:
    async def run() -> list[SendResult]:
        return [result async for result in mail.asend_many(messages)]

    return asyncio.run(run())


@pytest.fixture(params=["pipelining", "one by one"])
def serve_each(request: pytest.FixtureRequest, serve: Serve) -> Serve:
    extensions = EXTENSIONS if request.param == "pipelining" else EXTENSIONS[1:]
    return lambda **options: serve(**{"extensions": extensions, **options})


def test_results_come_in_the_order_given(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    mail = make_mail(server, MAIL_POOL_SIZE=3)
    messages = list(letters(300))
    results = mail.send_many(messages)
    assert [result.message for result in results] == messages
    assert [result.message_id for result in results] == [message.msgId for message in messages]
    assert all(results)
    assert sorted(subjects(server)) == sorted(message.subject for message in messages)
    assert server.bad_lines == []


def test_pool_size_connections_work_at_once_and_are_kept(serve_each: Serve, make_mail: MakeMail) -> None:
    server = serve_each()
    mail = make_mail(server, MAIL_POOL_SIZE=3)
    for _ in range(2):
        assert all(mail.send_many(letters(100)))
    assert len(server.sessions) == 3
    assert len(collect(mail, letters(50))) == 50
    assert len(server.sessions) == 3


def test_next_mail_rides_with_the_message_before(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    make_mail(server, MAIL_POOL_SIZE=1).send_many(letters(5))
    verbs = server.sessions[0].verbs
    assert verbs == ["EHLO", *["MAIL", "RCPT", "DATA"] * 5]


def test_every_mail_is_announced(serve: Serve, make_mail: MakeMail) -> None:
    mail = make_mail(serve(script=lambda session, verb, line: "550 no" if "reader3@" in line else None))
    messages = list(letters(10))
    with mail.record_messages() as outbox:
        mail.send_many(messages)
    assert {message.subject for message in outbox} == {f"letter {i}" for i in range(10) if i != 3}


def test_nothing_to_send_is_fine(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)
    assert mail.send_many([]) == []
    assert collect(mail, []) == []
    assert server.sessions == []


def test_one_message_where_many_belong_is_refused_with_the_remedy(serve: Serve, make_mail: MakeMail) -> None:
    for mail in (make_mail(server := serve()), make_mail(TESTING=True)):
        for given in (next(letters(1)), 3):
            for send in (mail.send_many, mail.send_later_many, partial(collect, mail)):
                with pytest.raises(ArgumentsError, match=r"^messages is .*\. Give a list, .* Write \[message\]\.$"):
                    send(given)
    assert server.mails == []


def test_async_generator_where_no_one_awaits_is_refused_with_the_remedy(make_mail: MakeMail) -> None:
    async def slowly() -> AsyncIterator[Message]:
        yield next(letters(1))

    with pytest.raises(ArgumentsError, match=r"messages is <async_generator.* An async generator is for asend_many"):
        make_mail(TESTING=True).send_many(slowly())  # type: ignore[arg-type]


def test_suppressed_bulk_is_recorded(make_mail: MakeMail) -> None:
    mail = make_mail(TESTING=True)
    with mail.record_messages() as outbox:
        assert all(mail.send_many(letters(3)))
        assert all(collect(mail, letters(3)))
    assert len(outbox) == 6


def test_failing_mail_has_its_error_in_its_result(serve_each: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> str | None:
        if "bad@" in line:
            return "550 5.1.1 no such user"
        return "554 5.7.1 spam" if verb == "." and session.recipients == ["spam@x.org"] else None

    server = serve_each(script=script)
    mail = make_mail(server, MAIL_POOL_SIZE=2)
    messages = [
        Message("good", ["good@x.org"], "text"),
        Message("bad", ["bad@x.org"], "text"),
        Message("broken\nsubject", ["good@x.org"], "text"),
        Message("partly", ["good@x.org", "bad@x.org"], "text"),
        Message("spam", ["spam@x.org"], "text"),
        Message("no one", [], "text"),
        Message("surrogate", ["good@x.org"], "\ud800"),
        Message("last", ["good@x.org"], "text"),
    ]
    good, bad, broken, partly, spam, unaddressed, surrogate, last = mail.send_many(messages)
    assert good
    assert last
    assert isinstance(bad.error, RecipientsRefused)
    assert bad.refused["bad@x.org"].code == 550
    assert isinstance(broken.error, BadHeaderError)
    assert (partly.error, partly.accepted, [*partly.refused]) == (None, ("good@x.org",), ["bad@x.org"])
    assert isinstance(spam.error, DataRefused)
    assert spam.refused["spam@x.org"].code == 554
    assert isinstance(unaddressed.error, AssertionError)
    assert isinstance(surrogate.error, MailError)
    assert not any((bad, broken, partly, spam, unaddressed, surrogate))
    assert subjects(server) == ["good", "partly", "last"] or sorted(subjects(server)) == ["good", "last", "partly"]


@pytest.mark.parametrize("odd", [None, "text", 7, b"bytes"])
def test_what_is_not_a_message_has_its_error_and_the_others_are_sent(
    odd: Any, serve: Callable[..., SMTPServer], make_mail: MakeMail
) -> None:
    server = serve()
    mail = make_mail(server)
    results = mail.send_many([*letters(30), odd, *letters(30)])
    assert [bool(result) for result in results] == [True] * 30 + [False] + [True] * 30
    assert isinstance(results[30].error, MailError)
    assert len(server.mails) == 60


@pytest.mark.parametrize("field", [{"date": float("nan")}, {"extra_headers": {"": "x"}}, {"attachments": ["a.pdf"]}])
def test_message_that_cannot_be_written_has_its_error_and_the_others_are_sent(
    field: dict[str, Any], serve: Callable[..., SMTPServer], make_mail: MakeMail
) -> None:
    server = serve()
    mail = make_mail(server)
    results = mail.send_many([*letters(3), Message("odd", ["a@example.com"], "text", **field), *letters(3)])
    assert [bool(result) for result in results] == [True] * 3 + [False] + [True] * 3
    assert len(server.mails) == 6


def test_file_that_was_attached_open_has_its_error_and_the_others_are_sent(
    serve: Callable[..., SMTPServer], make_mail: MakeMail
) -> None:
    server = serve()
    mail = make_mail(server)
    with Path(__file__).open() as file:
        odd = Message("odd", ["a@example.com"], "text", attachments=[Attachment("a", "text/plain", cast(Any, file))])
        results = mail.send_many([*letters(3), odd, *letters(3)])
    assert [bool(result) for result in results] == [True] * 3 + [False] + [True] * 3


def test_unreachable_server_raises_and_takes_nothing_more(make_mail: MakeMail) -> None:
    mail = make_mail(MAIL_PORT=1)
    taken = []

    def messages() -> Iterator[Message]:
        for letter in letters(10_000):
            taken.append(letter)
            yield letter

    with pytest.raises(ConnectionRefused):
        mail.send_many(messages())
    assert len(taken) <= 200
    with pytest.raises(ConnectionRefused):
        collect(mail, messages())


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
def test_mails_survive_a_server_that_drops_before_the_message(
    verb: str, serve_each: Serve, make_mail: MakeMail
) -> None:
    def script(session: Session, seen: str, line: str) -> Drop | None:
        # Far from the first of a connection: a mail that was hit is the next to go, so of its three tries one is safe.
        is_hit = seen == verb and session.verbs.count(verb) == 5
        return Drop("421 4.3.2 restarting\r\n") if is_hit else None

    server = serve_each(script=script)
    results = make_mail(server, MAIL_POOL_SIZE=2).send_many(letters(60))
    assert all(results)
    assert sorted(subjects(server)) == sorted(f"letter {i}" for i in range(60))


def test_only_the_mail_whose_reply_was_lost_is_unknown(serve_each: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> Drop | None:
        return Drop() if verb == "." and session.mails == 5 else None

    server = serve_each(script=script)
    results = make_mail(server, MAIL_POOL_SIZE=1).send_many(letters(20))
    unknown = [i for i, result in enumerate(results) if not result]
    assert unknown
    assert all(isinstance(results[i].error, DeliveryUnknown) for i in unknown)
    assert sorted(subjects(server)) == sorted(f"letter {i}" for i in range(20) if i not in unknown)


def test_421_behind_the_last_reply_loses_nothing(serve_each: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> Drop | None:
        is_last = verb == "." and session.mails == 2
        return Drop("250 2.0.0 queued\r\n421 4.7.0 too many messages\r\n") if is_last else None

    server = serve_each(script=script)
    results = make_mail(server, MAIL_POOL_SIZE=2).send_many(letters(30))
    assert all(results)
    assert len(server.mails) == 30


def test_server_that_goes_away_for_good_ends_the_rest_with_its_error(serve: Serve, make_mail: MakeMail) -> None:
    def script(session: Session, verb: str, line: str) -> Any:
        if verb == "." and session.mails == 4:
            server.greeting = Drop("421 4.3.2 closed\r\n")
            return Drop("250 2.0.0 queued\r\n")
        return None

    server = serve(script=script)
    results = make_mail(server, MAIL_POOL_SIZE=1, MAIL_TIMEOUT=0.3).send_many(letters(500))
    assert len(results) == 500
    assert isinstance(results[-1].error, ConnectError)
    assert sum(map(bool, results)) == len(server.mails) > 0
    assert len(server.sessions) < 30


def test_generator_that_raises_leaves_what_it_made_sent(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server)

    def messages() -> Iterator[Message]:
        yield from letters(100)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mail.send_many(messages())
    assert 0 < len(server.mails) <= 100
    assert all(mail.send_many(letters(5)))


def test_slow_generator_is_not_waited_for(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()

    def messages() -> Iterator[Message]:
        for number, letter in enumerate(letters(5)):
            time.sleep(0.03)  # longer than a chunk may wait to be filled
            wait_until(lambda number=number: len(server.mails) >= number)
            yield letter

    assert all(make_mail(server, MAIL_POOL_SIZE=1).send_many(messages()))
    assert len(server.mails) == 5


def test_async_generator_is_taken(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()

    async def messages() -> AsyncIterator[Message]:
        for letter in letters(100):
            await asyncio.sleep(0)
            yield letter

    assert all(collect(make_mail(server), messages()))
    assert len(server.mails) == 100


def test_leaving_the_loop_stops_and_leaves_connections_in_order(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_POOL_SIZE=2)

    async def some() -> int:
        seen = 0
        results = mail.asend_many(letters(100_000))
        async for result in results:
            assert result
            seen += 1
            if seen == 50:
                break
        await results.aclose()
        return seen

    assert asyncio.run(some()) == 50
    assert len(server.mails) < 1000
    assert server.bad_lines == []
    before = len(server.mails)
    assert mail.send(next(letters(1)))
    assert len(server.mails) == before + 1
    assert len(server.sessions) <= 2 + before // 100


def test_single_mail_need_not_wait_for_a_bulk(serve: Serve, make_mail: MakeMail) -> None:
    server = serve()
    mail = make_mail(server, MAIL_POOL_SIZE=1)

    async def both() -> int:
        results = mail.asend_many(letters(5_000))
        async for _ in results:
            break
        urgent = asyncio.create_task(mail.asend(Message("urgent", ["now@example.com"], "text")))
        ended = 1
        async for _ in results:
            ended += 1
            if urgent.done():
                break
        assert await urgent
        await results.aclose()
        return ended

    assert asyncio.run(both()) < 2_000


def test_only_some_hundred_messages_are_held_at_a_time(serve: Serve, make_mail: MakeMail) -> None:
    mail = make_mail(serve())
    alive: WeakSet[Message] = WeakSet()
    peak = 0

    def messages() -> Iterator[Message]:
        nonlocal peak
        for letter in letters(1_000):
            alive.add(letter)
            peak = max(peak, len(alive))
            yield letter

    async def consume() -> int:
        return sum([1 async for result in mail.asend_many(messages()) if result])

    assert asyncio.run(consume()) == 1_000
    gc.collect()
    assert peak < 300
    assert len(alive) <= 1
