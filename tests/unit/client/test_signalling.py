"""Sending signals: no receiver harms another, and coroutines run wherever they are sent from."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from blinker import Signal
from flask import Flask, has_app_context

from flask_taskworker.client.signalling import SignalSender, send


def raising(sender: Any, **_: Any) -> None:
    raise ValueError("a receiver's fault")


def test_a_receiver_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    signal, seen = Signal(), []

    def note(sender: Any, job: int) -> None:
        seen.append(job)

    signal.connect(raising)
    signal.connect(note)
    send(signal, Flask("shop"), job=7)
    assert seen == [7]
    assert "a receiver's fault" in caplog.text


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_coroutine_receives_with_and_without_a_running_loop(on_loop: bool) -> None:
    signal, seen = Signal(), []

    async def note(sender: Any, job: int) -> None:
        await asyncio.sleep(0)
        seen.append(job)

    async def on_a_loop() -> None:
        send(signal, app, job=7)

    app = Flask("shop")
    signal.connect(note)
    if on_loop:
        asyncio.run(on_a_loop())
    else:
        send(signal, app, job=7)
    assert seen == [7]


def test_a_worker_sends_in_order_beside_its_loop_and_inside_the_app() -> None:
    signal, sender, app = Signal(), SignalSender(), Flask("shop")
    seen: list[tuple[int, bool, bool]] = []

    def note(_: Any, job: int) -> None:
        seen.append((job, has_app_context(), threading.current_thread() is threading.main_thread()))
        if job == 1:
            raise SystemExit

    assert not sender.wanted(signal)
    signal.connect(note)
    for job in (1, 2):
        sender.announce(signal, app, job=job)
    sender.announce(signal, None, job=3)
    sender.close(timeout=20)
    assert seen == [(1, True, False), (2, True, False)]
    assert sender.backlog == 0
