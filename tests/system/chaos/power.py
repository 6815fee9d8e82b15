"""Rows 10 and 11: the power is cut while jobs are enqueued and run."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.chaos.fleet import until
from tests.system.chaos.powercut import MODELS, NOTE, Disk, Record, packed, parse
from tests.system.chaos.row import SQLITE, Result, Run, row
from tests.system.chaos.shims import built, compiler
from tests.system.chaos.stage import a_stage
from tests.system.chaos.worker import Place, Shop

ACCEPTED, SUCCEEDED = "accepted ", "succeeded "


@row("10", "power-full", "the power is cut, TASKER_DURABILITY = full", (SQLITE,))
def cut_full(run: Run) -> Result:
    """Nothing that was accepted is lost, nothing that was reported as succeeded is undone, no file is damaged."""
    found, result = _cut(run, "full")
    if found is not None:
        result.expect("accepted and lost 0", not found.lost)
        result.expect("endings undone 0", not found.taken_back)
    return result


@row("11", "power-normal", "the power is cut, TASKER_DURABILITY = normal", (SQLITE,))
def cut_normal(run: Run) -> Result:
    """Late commits may be lost; the file is not damaged."""
    found, result = _cut(run, "normal")
    if found is not None and run.full:
        # Else the simulation cuts nothing off, and shows nothing.
        result.expect("the simulation can lose jobs", found.lost > 0)
    return result


@dataclass(slots=True)
class _Found:
    images: int = 0
    corrupt: list[str] = field(default_factory=list)
    lost: int = 0
    cuts_with_a_loss: int = 0
    most_lost: int = 0
    taken_back: int = 0
    accepted: int = 0


def _cut(run: Run, durability: str) -> tuple[_Found | None, Result]:
    if compiler() is None:
        return None, Result(done="nothing", skipped="it needs a C compiler")
    jobs, cuts = run.choose((300, 100), (24, 8))
    records = _record(run, durability, jobs)
    found = _Found(accepted=sum(record.path.startswith(ACCEPTED) for record in records))
    for index, disk in _cuts(run, records, cuts):
        _examine(run, records[: index + 1], disk, found)
    syncs = sum(record.kind == 3 for record in records)
    result = Result(done=f"{jobs} jobs, {cuts} cuts x {len(MODELS)} models, {len(records)} records, {syncs} syncs")
    result.figures |= {
        "images": found.images,
        "corrupt": len(found.corrupt),
        "images that lack an accepted job": found.cuts_with_a_loss,
        "most of them lacking": found.most_lost,
        "endings undone": found.taken_back,
    }
    result.expect("corrupt 0 " + "; ".join(found.corrupt[:3]), not found.corrupt)
    result.expect("all accepted", found.accepted == jobs)
    return found, result


# -- the record --------------------------------------------------------------------------------------------------------


def _record(run: Run, durability: str, jobs: int) -> list[Record]:
    """All writes of a worker and an enqueuer who work together, from the first one on."""
    log = run.folder / "power"
    environment = {
        "LD_PRELOAD": str(built("power")),
        "CHAOS_POWER_LOG": str(log),
        "CHAOS_POWER_FILES": run.url.removeprefix("sqlite:///"),
    }
    with a_stage(run, TASKER_DURABILITY=durability, CHAOS_JOBS=jobs) as stage:
        (enqueuer,) = stage.spawn(1, "tests.system.chaos.power:enqueue", **environment)
        until(lambda: log.exists() and log.stat().st_size > 100_000, "the tables are made", 30)
        (worker,) = stage.spawn(1, **environment)
        # Not by a look into the database: the last to close it writes, and this process is not recorded.
        until(lambda: "works on all queues" in stage.whole_logs(), "the worker has begun", 30)
        enqueuer.join(60)
        assert enqueuer.exitcode == 0, stage.logs()
        stage.children.remove(enqueuer)
        assert worker.is_alive(), stage.logs()
        stage.await_end()
    return parse(log.read_bytes())


def enqueue(place: Place, log: str) -> None:
    """The life of the enqueuer: two threads, single jobs and a few batches; each notes what it heard."""
    shop = Shop(place)
    shop.store.driver.prepare()
    jobs = int(place.config["CHAOS_JOBS"])
    threads = [threading.Thread(target=_enqueue, args=(shop, range(n, jobs, 2))) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shop.close()


def _enqueue(shop: Shop, numbers: range) -> None:
    with shop.app.app_context():
        for number in numbers:
            job = shop.hold.enqueue("x" * (number * 977 % 24_000 + 1))
            _note(f"{ACCEPTED}{job.uid}")
            if number % 3 == 0:
                job.result(timeout=60)
                _note(f"{SUCCEEDED}{job.uid}")


def _note(text: str) -> None:
    descriptor = os.open(os.environ["CHAOS_POWER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, packed(Record(NOTE, text, 0, b"")))
    finally:
        os.close(descriptor)


# -- the cuts ----------------------------------------------------------------------------------------------------------


def _cuts(run: Run, records: list[Record], number: int) -> Iterator[tuple[int, Disk]]:
    """The disk at that many moments: half of them right after a process learned something, the others anywhere."""
    notes = [index for index, record in enumerate(records) if record.kind == NOTE]
    half = run.chance.sample(notes, min(number // 2, len(notes)))
    others = [index for index in range(len(records)) if index not in half]
    chosen = {*half, *run.chance.sample(others, number - len(half))}
    disk = Disk()
    for index, record in enumerate(records):
        disk.apply(record)
        if index in chosen:
            yield index, disk


def _examine(run: Run, records: list[Record], disk: Disk, found: _Found) -> None:
    """Build what each model leaves, and look into it as a worker would after the next boot."""
    told = [record.path for record in records if record.kind == NOTE]
    accepted = {text.removeprefix(ACCEPTED) for text in told if text.startswith(ACCEPTED)}
    succeeded = {text.removeprefix(SUCCEEDED) for text in told if text.startswith(SUCCEEDED)}
    for model in MODELS:
        found.images += 1
        states = _states(run.folder / "cut", disk.after_cut(model, run.chance))
        if isinstance(states, str):
            found.corrupt.append(f"{model} after {len(records)} records: {states}")
            continue
        lost = len(accepted - states.keys())
        found.lost += lost
        found.most_lost = max(found.most_lost, lost)
        found.cuts_with_a_loss += bool(lost)
        found.taken_back += sum(states.get(uid) != "succeeded" for uid in succeeded)


def _states(folder: Path, files: dict[str, bytes]) -> dict[str, str] | str:
    """Every job's state by its uid; or what is wrong with the file."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for path, content in files.items():
        (folder / Path(path).name).write_bytes(content)
    if not (folder / "jobs.db").exists():
        return {}
    try:
        with closing(sqlite3.connect(folder / "jobs.db")) as connection:
            ((verdict,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
            if verdict != "ok":
                return str(verdict)
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'taskworker_job'").fetchall():
                return {}
            return dict(connection.execute("SELECT uid, state FROM taskworker_job").fetchall())
    except sqlite3.DatabaseError as error:
        return str(error)
