"""Mails a second, beside Flask-Mail's: ``python -m benchmarks mail`` (needs Flask-Mail installed).

Each row builds, writes and sends text+html messages of 5 KB to a sink on loopback. The rows take turns, round after
round, and the median counts, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import flask_mail
from flask import Flask

from benchmarks.common import Row as Figure
from benchmarks.smtp_sink import sink
from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.mail import Mail, Message

TEXT = "Dear reader, this line is one of many that make up the letter of this week.\n" * 32
HTML = "<p>Dear reader, <b>this</b> line is one of many that make up the letter.</p>\n" * 32

Row = Callable[[int], None]


def make_app(mail_class: Any, port: int, pool_size: int, **options: Any) -> tuple[Flask, Any]:
    app = Flask("benchmark", **options)
    app.config.update(MAIL_PORT=port, MAIL_DEFAULT_SENDER="sender@example.org", MAIL_POOL_SIZE=pool_size)
    return app, mail_class(app)


def messages(message_class: Any, count: int) -> Iterator[Any]:
    for number in range(count):
        yield message_class(f"Letter number {number}", recipients=[f"reader{number}@example.org"], body=TEXT, html=HTML)


@contextmanager
def rows(port: int, pool_size: int) -> Iterator[dict[str, Row]]:
    """What is compared, by name. The worker of the queued mails runs all the time."""
    their_app, theirs = make_app(flask_mail.Mail, port, pool_size)
    with TemporaryDirectory() as folder:
        our_app, ours = make_app(Mail, port, pool_size, instance_path=folder)
        worker = BackgroundTaskWorker(our_app)
        worker.start()
        try:
            yield make_rows(their_app, theirs, our_app, ours, pool_size)
        finally:
            worker.stop()


def make_rows(their_app: Flask, theirs: Any, our_app: Flask, ours: Any, pool_size: int) -> dict[str, Row]:
    def flask_mails(count: int) -> None:
        with their_app.app_context(), theirs.connect() as connection:
            for message in messages(flask_mail.Message, count):
                connection.send(message)

    def connect(count: int) -> None:
        with our_app.app_context(), ours.connect() as connection:
            for message in messages(Message, count):
                connection.send(message)

    def send_many(count: int) -> None:
        with our_app.app_context():
            assert all(ours.send_many(messages(Message, count)))

    async def consume(count: int) -> None:
        async for result in ours.asend_many(messages(Message, count)):
            assert result

    def asend_many(count: int) -> None:
        with our_app.app_context():
            asyncio.run(consume(count))

    def send_later_many(count: int) -> None:
        with our_app.app_context():
            jobs = ours.send_later_many(messages(Message, count))
            assert not any(job.result(60) for job in jobs)

    return {
        "Flask-Mail, with mail.connect()": flask_mails,
        "with mail.connect()": connect,
        f"send_many, pool of {pool_size}": send_many,
        f"asend_many, pool of {pool_size}": asend_many,
        f"send_later_many, pool of {pool_size}": send_later_many,
    }


def compare(title: str, round_trip: float, pool_size: int, counts: dict[int, int], rounds: int) -> list[Figure]:
    """Mails a second for each row, printed and returned; *counts* are mails by the row's position."""
    with sink(round_trip) as port, rows(port, pool_size) as compared:
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for position, (name, row) in enumerate(compared.items()):
                count = counts.get(position, counts[-1])
                began = time.perf_counter()
                row(count)
                rates.setdefault(name, []).append(count / (time.perf_counter() - began))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    base = next(iter(medians.values()))
    print(f"\n{title}")
    for name, rate in medians.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        print(f"  {name:34} {rate:8.0f} mails/s  {rate / base:5.1f} x   ({spread})")
    return [Figure(f"{title}: {name}", rate, "mails/s", f"{rate / base:.1f} x") for name, rate in medians.items()]


async def drain(mail: Any, count: int) -> None:
    began, done = time.perf_counter(), 0
    async for result in mail.asend_many(messages(Message, count)):
        assert result
        done += 1
        if done % (count // 10) == 0:
            megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rate = done / (time.perf_counter() - began)
            print(f"  {done:9} mails  {rate:6.0f}/s  peak memory {megabytes:.1f} MB", flush=True)


def memory(count: int) -> None:
    """Send *count* generated messages and show that memory stays flat."""
    print(f"\n{count} generated messages through asend_many")
    with sink() as port:
        app, mail = make_app(Mail, port, 4)
        with app.app_context():
            asyncio.run(drain(mail, count))


def main(rounds: int = 5) -> list[Figure]:
    """Measure beside Flask-Mail, without and with a round trip."""
    print(f"text+html messages of 5 KB, built, written and sent; median of {rounds} interleaved rounds")
    return [
        *compare("loopback", 0.0, 4, {0: 500, -1: 2000}, rounds),
        *compare("10 ms round trip", 0.01, 20, {0: 25, 1: 50, -1: 1500}, rounds),
    ]


def command(arguments: list[str]) -> None:
    """``python -m benchmarks.mail [--rounds N] [--million]``."""
    parser = argparse.ArgumentParser(prog="benchmarks mail", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--million", action="store_true", help="also send a million messages, and watch memory")
    options = parser.parse_args(arguments)
    main(options.rounds)
    if options.million:
        memory(1_000_000)


if __name__ == "__main__":
    command(sys.argv[1:])
