"""Row 33: one job for many calls, while processes that call and processes that work are killed."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.system.chaos import journal
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.worker import Place, Shop

CALLED = "called"
KEYS, CALLERS, THREADS, WORKERS = 100, 4, 8, 2
DEBOUNCE, AT_MOST = 0.3, 1.5
_UNSTARTED = (
    "SELECT args FROM taskworker_job WHERE task = 'shop.save' AND state IN ('scheduled', 'ready') AND claim = 0"
)


@row("33", "debounce", "kill -9 of callers and workers")
def debounce(run: Run) -> Result:
    """Each accepted call is covered by a run that began after it, with its arguments or newer ones."""
    calls, kills, keys = run.choose((10_000, 40, KEYS), (300, 3, 10))
    with a_stage(run) as stage:
        place = Path(run.folder, "calls")
        place.mkdir()
        stage.start(WORKERS)
        settle(stage, WORKERS)
        callers = stage.start(CALLERS, call_for_ever, keys)
        crowd = _watch(stage, callers, calls, kills, keys)
        Path(place, "stop").touch()
        for child in callers:
            stage.await_exit(child, time.monotonic())
        stage.await_end(120)
        entries = journal.read(place)
        result = Result(done=f"{calls} calls with {keys} keys, {kills} kills")
        accepted, uncovered = _uncovered(entries)
        result.expect("every accepted call covered by a run that began after it", not uncovered)
        result.expect("at most one unstarted job a key", crowd <= 1)
        result.figures["accepted"] = accepted
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
                except Exception:  # noqa: BLE001 - whatever it is: not accepted
                    continue
                journal.write(folder, journal.ACCEPTED, [name])
                number += 1
                time.sleep(0.02)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _watch(stage: Stage, callers: list[Any], calls: int, kills: int, keys: int) -> int:
    """Kill, until all calls are made; how many unstarted jobs one key had at most, at any look."""
    crowd, killed = 0, 0
    place = Path(stage.place.folder, "calls")
    while True:
        rows = stage.shop.store.driver.read(_UNSTARTED, {})
        crowd = max([crowd, *Counter(json.loads(args)[0][0] for (args,) in rows).values()])
        accepted = sum(entry.word == journal.ACCEPTED for entry in journal.read(place))
        if accepted >= calls and killed >= kills:
            return crowd
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


def _uncovered(entries: list[journal.Entry]) -> tuple[int, list[str]]:
    """How many calls were accepted, and which no run covers: one that began later, with arguments at least as new.

    Arguments are as new where their call was not over before the other began: which of the two came first is the
    database's choice.
    """
    called = {entry.uid: entry.at for entry in entries if entry.word == CALLED}
    accepted = {entry.uid: entry.at for entry in entries if entry.word == journal.ACCEPTED}
    runs: dict[str, list[journal.Entry]] = {}
    for entry in entries:
        if entry.word == journal.BEGAN:
            runs.setdefault(entry.uid.partition(":")[0], []).append(entry)
    missing = [
        name
        for name in accepted
        if not any(
            ran.at > called[name] and accepted.get(ran.uid, float("inf")) >= called[name]
            for ran in runs.get(name.partition(":")[0], ())
        )
    ]
    return len(accepted), missing
