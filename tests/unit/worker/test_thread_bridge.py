"""Sync calls in threads, and back on the loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from flask_taskworker.client.threads import PoolClosed
from flask_taskworker.worker.thread_bridge import ThreadBridge
from tests.support.threads import no_thread_can_be_started

PATIENCE = 20
language = contextvars.ContextVar("language", default="en")


@asynccontextmanager
async def a_hop(size: int = 2) -> AsyncIterator[ThreadBridge]:
    hop = ThreadBridge(size, "hop-test")
    try:
        yield hop
    finally:
        hop.close()


def run(body: Callable[[ThreadBridge], Any], size: int = 2) -> Any:
    async def main() -> Any:
        async with a_hop(size) as hop:
            return await asyncio.wait_for(body(hop), PATIENCE)

    return asyncio.run(main())


def test_call_runs_in_a_thread_and_its_value_comes_back() -> None:
    async def body(hop: ThreadBridge) -> tuple[int, str]:
        return await hop.run(lambda: 6 * 7), await hop.run(lambda: threading.current_thread().name)

    value, name = run(body)
    assert value == 42
    assert name.startswith("hop-test-")


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_call_raises_comes_back_and_its_thread_goes_on(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def body(hop: ThreadBridge) -> tuple[BaseException | None, int]:
        failed = hop.run(fail)
        await asyncio.wait({failed})
        return failed.exception(), await hop.run(lambda: 5)

    assert run(body, size=1) == (error, 5)


def test_call_has_a_copy_of_the_callers_context_and_what_it_sets_is_gone() -> None:
    def speak() -> str:
        before = language.get()
        language.set("fr")
        return before

    async def body(hop: ThreadBridge) -> list[str]:
        heard = [await hop.run(speak)]
        language.set("de")
        heard += [await hop.run(speak), await hop.run(speak), language.get()]
        return heard

    assert run(body, size=1) == ["en", "de", "de", "de"]


def test_async_to_sync_in_a_call_runs_on_the_loop_from_which_the_call_came() -> None:
    """That is what asgiref gives; it must hold for the second call of a thread, too."""

    async def loop() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async def body(hop: ThreadBridge) -> list[bool]:
        here = asyncio.get_running_loop()
        return [await hop.run(async_to_sync(loop)) is here for _ in range(3)]

    assert run(body, size=1) == [True] * 3


def test_what_a_call_does_to_asgirefs_thread_locals_does_not_reach_the_next() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def nested() -> None:
        await sync_to_async(lambda: None)()

    async def body(hop: ThreadBridge) -> bool:
        await hop.run(async_to_sync(nested, force_new_loop=True))
        return await hop.run(async_to_sync(loop)) is asyncio.get_running_loop()

    assert run(body, size=1)


def test_call_that_has_not_begun_can_be_withdrawn_and_is_never_run() -> None:
    ran: list[str] = []

    async def body(hop: ThreadBridge) -> list[bool]:
        entered, release = threading.Event(), threading.Event()
        first = hop.run(lambda: (entered.set(), release.wait(PATIENCE)))
        second = hop.run(lambda: ran.append("second"))
        await asyncio.to_thread(entered.wait, PATIENCE)
        taken_back = [hop.withdraw(first), hop.withdraw(second), hop.withdraw(second)]
        release.set()
        await first
        await hop.run(lambda: ran.append("third"))
        return [*taken_back, second.cancelled()]

    assert run(body, size=1) == [False, True, False, True]
    assert ran == ["third"]


def test_lack_of_threads_for_a_moment_does_not_last() -> None:
    """What waits is run by the threads that there are; the next call asks for a further one again."""
    release = threading.Event()

    async def body(hop: ThreadBridge) -> int:
        entered = threading.Event()
        blocked = [hop.run(lambda: (entered.set(), release.wait(PATIENCE)))]
        await asyncio.to_thread(entered.wait, PATIENCE)
        with no_thread_can_be_started():
            blocked.append(hop.run(lambda: release.wait(PATIENCE)))
            while len(hop._threads) != 1:
                await asyncio.sleep(0)
        # Two threads are needed for it: the one that was refused, too, takes a call.
        quick = [hop.run(lambda: 3) for _ in range(2)]
        value = await quick[1]
        release.set()
        await asyncio.gather(*blocked, *quick)
        return value

    assert run(body, size=3) == 3


def test_no_call_waits_behind_a_busy_one_while_there_may_be_another_thread() -> None:
    release = threading.Event()

    async def body(hop: ThreadBridge) -> list[int]:
        await hop.run(lambda: None)  # so that a thread is idle
        blocked = [hop.run(lambda: release.wait(PATIENCE)) for _ in range(2)]
        quick = await hop.run(lambda: 3)
        release.set()
        return [quick, *map(int, await asyncio.gather(*blocked))]

    assert run(body, size=3) == [3, 1, 1]


def test_there_are_never_more_threads_than_allowed_and_they_are_used_again() -> None:
    async def body(hop: ThreadBridge) -> set[int]:
        return set(await asyncio.gather(*(hop.run(threading.get_ident) for _ in range(500))))

    assert 1 <= len(run(body, size=3)) <= 3


def test_idle_thread_keeps_nothing_of_its_last_call() -> None:
    class Large:
        pass

    async def body(hop: ThreadBridge) -> list[object]:
        def call() -> Large:
            kept.append(weakref.ref(large := Large()))
            return large

        kept: list[weakref.ref[Large]] = []
        # The thread lets go of a call before it says that it has returned.
        await hop.run(call)
        del call
        # The loop lets go of it with the step that it woke.
        await asyncio.sleep(0)
        gc.collect()
        return [ref() for ref in kept]

    assert run(body, size=1) == [None]


def test_call_whose_future_was_cancelled_does_no_harm() -> None:
    async def body(hop: ThreadBridge) -> int:
        entered, release = threading.Event(), threading.Event()
        call = hop.run(lambda: (entered.set(), release.wait(PATIENCE)))
        await asyncio.to_thread(entered.wait, PATIENCE)
        call.cancel()
        release.set()
        return await hop.run(lambda: 7)

    assert run(body, size=1) == 7


def test_closing_lets_what_was_taken_end_and_takes_no_more() -> None:
    async def body(hop: ThreadBridge) -> list[object]:
        taken = [hop.run(lambda: 1) for _ in range(10)]
        hop.close()
        refused = hop.run(lambda: 2)
        return [*await asyncio.gather(*taken), type(refused.exception())]

    assert run(body) == [*[1] * 10, PoolClosed]


def test_threads_end_when_it_is_closed() -> None:
    threads: list[threading.Thread] = []

    async def body(hop: ThreadBridge) -> None:
        await asyncio.gather(*(hop.run(lambda: threads.append(threading.current_thread())) for _ in range(20)))

    run(body)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_call_for_which_no_thread_can_be_started_is_refused_and_never_run() -> None:
    ran: list[str] = []

    async def body(hop: ThreadBridge) -> None:
        with no_thread_can_be_started():
            refused = [hop.run(lambda: ran.append("refused")) for _ in range(3)]
            await asyncio.wait(refused)
        assert [type(future.exception()) for future in refused] == [PoolClosed] * 3
        await hop.run(lambda: ran.append("accepted"))

    run(body)
    assert ran == ["accepted"]
