"""Row 33: one job for many calls, while processes that call and processes that work are killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.system.chaos import journal
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.worker import Place, Shop

CALLED = "called"
KEYS, CALLERS, THREADS, WORKERS = 100, 4, 8, 2
DEBOUNCE, AT_MOST = 0.3, 1.5
CROWDED = "crowded"
_KEY = {"sqlite": "substr(args, 1, instr(args, ','))", "postgresql": "split_part(args, ',', 1)"}
_ONE_A_KEY = (
    "CREATE UNIQUE INDEX one_unstarted_job_a_key ON taskworker_job ({}) "
    "WHERE task = 'shop.save' AND state IN ('scheduled', 'ready') AND claim = 0"
)
"""What would store a second one at any instant is refused."""


@row("33", "debounce", "kill -9 of callers and workers")
def debounce(run: Run) -> Result:
    """Each accepted call is covered by a run that began after it, with its arguments or newer ones."""
    calls, kills, keys = run.choose((10_000, 40, KEYS), (300, 3, 10))
    with a_stage(run) as stage:
        place = Path(run.folder, "calls")
        place.mkdir()
        stage.shop.store.driver.prepare()
        stage.shop.store.driver.write(_ONE_A_KEY.format(f"({_KEY[run.database]})"), {})
        stage.start(WORKERS)
        settle(stage, WORKERS)
        callers = stage.start(CALLERS, call_for_ever, keys)
        _watch(stage, callers, calls, kills, keys)
        Path(place, "stop").touch()
        for child in callers:
            stage.await_exit(child, time.monotonic())
        stage.await_end(120)
        entries = journal.read(place)
        result = Result(done=f"{calls} calls with {keys} keys, {kills} kills")
        accepted, uncovered, undecided = _uncovered(entries)
        result.expect("every accepted call covered by a run that began after it", not uncovered)
        result.expect("at most one unstarted job a key", not any(entry.word == CROWDED for entry in entries))
        result.figures |= {"accepted": accepted, "begun before the call returned": undecided}
        result.figures["runs"] = sum(entry.word == journal.BEGAN for entry in entries)
        # One that was started a moment ago must have its signal handlers first.
        settle(stage, WORKERS)
        stage.stop()
    return result


def call_for_ever(place: Place, log: str, keys: int) -> None:
    """The life of a caller: 8 threads that save pages until a file says stop."""
    shop = Shop(place)
    folder = Path(place.folder, "calls")

    def call(thread: int) -> None:
        number = thread
        with shop.app.app_context():
            while not Path(folder, "stop").exists():
                key = (number * 7 + thread) % keys
                name = f"{key}:{time.monotonic_ns()}-{thread}"
                journal.write(folder, CALLED, [name])
                save = shop.save.using(unique=("page", key), debounce=DEBOUNCE, at_most=AT_MOST)
                try:
                    save.enqueue(key, name)
                except Exception as error:  # noqa: BLE001 - whatever it is: not accepted
                    if "changed hands" in str(error):
                        journal.write(folder, CROWDED, [name])
                    continue
                journal.write(folder, journal.ACCEPTED, [name])
                number += 1
                time.sleep(0.02)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _watch(stage: Stage, callers: list[Any], calls: int, kills: int, keys: int) -> None:
    """Kill, until all calls are made."""
    killed = 0
    place = Path(stage.place.folder, "calls")
    while True:
        accepted = sum(entry.word == journal.ACCEPTED for entry in journal.read(place))
        if accepted >= calls and killed >= kills:
            return
        if killed < kills and accepted >= calls * killed / kills:
            child = stage.chance.choice(stage.children)
            stage.kill(child)
            killed += 1
            if child in callers:
                callers.remove(child)
                callers += stage.start(1, call_for_ever, keys)
            else:
                stage.start()
        time.sleep(0.05)


def _uncovered(entries: list[journal.Entry]) -> tuple[int, list[str], int]:
    """How many calls were accepted, and which no run covers, with their arguments or newer ones.

    A run with a call's own arguments covers it, since only the call itself has stored them; any other one must have
    begun when the call had returned. Arguments are as new where their call was not over before the other began: which
    of the two came first is the database's choice. And how many calls are covered only by a run that began, with the
    arguments of a call beside, before they returned.
    """
    called = {entry.uid: entry.at for entry in entries if entry.word == CALLED}
    accepted = {entry.uid: entry.at for entry in entries if entry.word == journal.ACCEPTED}
    runs: dict[str, list[journal.Entry]] = {}
    for entry in entries:
        if entry.word == journal.BEGAN:
            runs.setdefault(entry.uid.partition(":")[0], []).append(entry)

    def covers(ran: journal.Entry, name: str, since: float) -> bool:
        return ran.uid == name or (ran.at > since and accepted.get(ran.uid, float("inf")) >= called[name])

    def uncovered_by(names: Iterable[str], since: dict[str, float]) -> list[str]:
        return [n for n in names if not any(covers(ran, n, since[n]) for ran in runs.get(n.partition(":")[0], ()))]

    late = uncovered_by(accepted, accepted)
    missing = uncovered_by(late, called)
    return len(accepted), missing, len(late) - len(missing)
