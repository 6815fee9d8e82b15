"""Takes the pictures of the dashboard for the documentation: ``tox -e pictures -- [NAME...] [--to DIR]``.

An hour of the demo goes by in a minute: its jobs are real, and so is how long they took, but the clock of the store is
set back, and comes a minute nearer to the present with each round of work. Chance is seeded.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask, Response

from docs.small_png import shrink
from examples.demo import index
from examples.demo.app import create_app
from examples.demo.mail_server import Inbox, receiving
from examples.demo.messages import mail, make_batch, make_report
from examples.demo.page import DASHBOARD, VISITORS, listen, serving
from examples.demo.sources import Source, find_sources, plant_broken
from examples.demo.tasks import (
    fingerprint,
    gather_package,
    parse_file,
    send_batch,
    survive,
    task_worker,
    wait_too_long,
    watch,
    watch_in_thread,
)
from flask_taskworker import Cron, Every, Job
from flask_taskworker.dashboard import create_dashboard

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "docs/_static"
MINUTES = 60
WIDTH, TALLEST = 1100, 900
FONT = "body{font-family:'Liberation Sans',Arial,sans-serif!important}"
"""As wide as those of most systems, where the system's own may be anything."""
CUT = """(tallest) => {
const boxes = [...document.querySelectorAll("main :is(tr, p, li, dt, dd, pre, summary, svg)")]
    .filter((element) => element.checkVisibility({contentVisibilityAuto: true}))
    .map((element) => element.getBoundingClientRect()).filter((box) => box.height);
const ends = boxes.map((box) => Math.ceil(box.bottom)).filter((end) => end <= tallest);
return Math.max(...ends.filter((end) => !boxes.some((box) => box.top < end - 2 && box.bottom > end + 2)));
}"""
"""Where to cut the page: through nothing, and not below a heading."""
LARGEST = 120_000
"""Bytes of a picture."""
PATIENCE = 60.0
PACKAGES = ("json", "email", "asyncio", "http", "logging", "xml", "unittest")
HOSTS = ("web-1", "worker-1", "worker-2")
"""What the machine is called, in the pictures: first in this process, then in those of the other workers."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One file in docs/_static."""

    name: str
    address: str
    theme: str = "light"
    tallest: int = TALLEST


def pictures(job: int) -> list[Picture]:
    """All of them; *job* is the id of the job to show."""
    pages = ("jobs", "queues", "schedules", "workers", "mail", "system")
    return [
        Picture("overview", "", tallest=1400),
        Picture("overview-top", "", tallest=650),
        Picture("overview-dark", "", "dark", tallest=650),
        Picture("job", f"jobs/{job}"),
        Picture("failures", "failures?window=1h"),
        *(Picture(page, page) for page in pages),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Let the hour go by, then take the pictures; all, or those that are wanted."""
    parser = argparse.ArgumentParser(prog="pictures", description="Take the pictures of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    parser.add_argument("--to", type=Path, default=STATIC, metavar="DIR", help="default: docs/_static")
    options = parser.parse_args(arguments)
    known = {picture.name for picture in pictures(0)}
    if not known.issuperset(options.names):
        parser.error(f"the pictures are {', '.join(sorted(known))}")
    show_an_hour(options.names, options.to)


def show_an_hour(names: Sequence[str], target: Path) -> None:
    """Fill *target*."""
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])
    socket.gethostname = lambda: HOSTS[0]
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder, receiving() as inbox:
        refuse_some(inbox)
        app = create_app(folder, inbox.port)
        app.register_blueprint(
            create_dashboard(task_worker, access=lambda: VISITORS, who=lambda: "ana"), url_prefix=DASHBOARD.rstrip("/")
        )
        app.after_request(lambda response: without_this_machine(response, folder))
        with app.app_context(), listen(0) as listener, serving(app, listener) as address:
            hour = Hour(app, Path(folder))
            try:
                job = hour.pass_by()
                with other_worker(folder, HOSTS[1]):
                    wanted = [picture for picture in pictures(job) if not names or picture.name in names]
                    take(wanted, address + DASHBOARD, target)
            finally:
                task_worker.stop(timeout=1)


def without_this_machine(response: Response, folder: str) -> Response:
    """The paths on the pages are those of some server, not of the machine that took the pictures."""
    if response.mimetype == "text/html":
        text = response.get_data(as_text=True)
        for path, shown in ((folder, "/srv/demo"), (sysconfig.get_path("stdlib"), "/usr/lib/python3"), (ROOT, "/srv")):
            text = text.replace(str(path), shown)
        response.set_data(text)
    return response


def refuse_some(inbox: Inbox) -> None:
    """Let the mail server know some addresses better than others."""
    answers = {"reader-3@example.org": "550 5.1.1 No such user", "reader-8@example.org": "451 4.7.1 Try again later"}

    async def handle_RCPT(server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        answer = answers.get(address)
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    vars(inbox)["handle_RCPT"] = handle_RCPT


# --- The hour -----------------------------------------------------------------------------------------------------


class Hour:
    """What happens in it."""

    def __init__(self, app: Flask, folder: Path) -> None:
        self._app = app
        self._client = app.test_client()
        self._chance = random.Random(11)
        self._broken = plant_broken(folder)
        self._sources = find_sources()
        self._folder = folder
        self._behind_ms = 0
        store = app.extensions["taskworker"].store
        self._clock = store.clock
        store.clock = lambda: self._clock() - self._behind_ms

    def pass_by(self) -> int:
        """All of it; the id of a job to show. At the end the clock is right."""
        present = self._clock() // 60_000 * 60_000
        for minute in range(MINUTES, 0, -1):
            # Each round begins when a minute does: else schedules would seem to fire late.
            self._behind_ms = self._clock() - (present - minute * 60_000)
            if minute == MINUTES:
                self._declare()
            finish(self._work(minute))
        self._behind_ms = 0
        return self._at_last()

    def _declare(self) -> None:
        task_worker.start()
        send_batch.schedule(Cron("0 8 * * MON", timezone="Europe/Berlin"), name="weekly letter", args=(500,))
        fingerprint.schedule(Every(minutes=2), name="look at the disk", args=(str(self._sources[0].path),))

    def _work(self, minute: int) -> list[Job[Any]]:
        """A wave of files, and now and then something else."""
        number = round(16 + 9 * math.sin(minute / 7) + self._chance.randrange(-4, 5))
        jobs: list[Job[Any]] = [*self._parse(self._sources_of(number))]
        if minute % 4 == 0:
            jobs += fingerprint.enqueue_many([(str(self._sources[minute].path),)] * self._chance.randrange(1, 4))
        if minute % 9 == 0:
            jobs.append(self._gather(PACKAGES[minute // 9 % len(PACKAGES)]))
        if minute in (52, 49, 31, 30, 29, 28, 12, 5):
            jobs += self._parse(self._chance.sample(self._broken, 1 + minute % 3))
        if minute in (44, 21, 20, 7):
            jobs.append(wait_too_long.enqueue())
        if minute == 35:
            self._press("queues/pause", name="batch")
        if minute == 33:
            self._press("queues/resume", name="batch")
        if minute == 18:
            self._press("schedules/run", name="examples.demo.tasks.forget_reports")
        if minute in (40, 25, 10):
            jobs += self._mail(minute)
        return jobs

    def _sources_of(self, number: int) -> list[Source]:
        return self._chance.sample(self._sources, number)

    def _parse(self, sources: Sequence[Source], delay: float | None = None) -> list[Job[Any]]:
        if not sources:
            return []
        arguments = [(source.name, str(source.path)) for source in sources]
        return parse_file.using(delay=delay).enqueue_many(arguments)

    def _gather(self, package: str, later: int = 0) -> Job[int]:
        """A package; the last *later* of its files come in half an hour."""
        files = [source for source in self._sources if source.package == package]
        now = len(files) - later
        jobs = [*self._parse(files[:now]), *self._parse(files[now:], 1800)]
        return gather_package.enqueue(package, {file.name: job.id for file, job in zip(files, jobs, strict=True)})

    def _mail(self, minute: int) -> list[Job[Any]]:
        if minute == 40:
            return [mail.send_later(make_report([("files", "1,204 in 9.1 s"), ("retries", "60")]))]
        last = {25: 8, 10: 4}[minute]
        for message in [*make_batch(last, index.longest_functions(30))][-3:]:
            mail.send_later(message)
        return []

    def _press(self, page: str, **form: str) -> None:
        answer = self._client.post(DASHBOARD + page, data=form, headers={"Origin": "http://localhost"})
        assert answer.status_code == 303, answer.text

    def _at_last(self) -> int:
        """The present: a worker has been lost, some jobs run, some wait."""
        self._lose_a_worker()
        self._press("schedules/pause", name="examples.demo.tasks.report_progress")
        shown = self._gather("wsgiref", 2)
        watch.enqueue()
        watch_in_thread.enqueue()
        self._press("queues/pause", name="batch")
        send_batch.enqueue_many([(500,), (500,)])
        file = str(self._sources[7].path)
        finish([*self._parse(self._sources_of(2)), fingerprint.enqueue(file), *self._parse(self._broken[:2])])
        fingerprint.using(delay=600).enqueue(file).cancel()
        finish([wait_too_long.enqueue(), *self._parse(self._sources_of(3))])
        wait_for(lambda: shown.refresh().progress is not None and shown.progress.done == 5, "the shown job's progress")
        time.sleep(3)  # figures are stored some seconds after the facts
        return shown.id

    def _lose_a_worker(self) -> None:
        task_worker.stop()
        jobs = [survive.enqueue() for _ in range(3)]
        with other_worker(str(self._folder), HOSTS[2]):
            wait_for(lambda: all(job.refresh().state == "running" for job in jobs), "a worker to lose")
        task_worker.start()
        finish(jobs)


def finish(jobs: Sequence[Job[Any]]) -> None:
    """Wait until all of them have ended, whichever way."""
    wait_for(lambda: all(job.refresh().state.finished for job in jobs), f"{len(jobs)} jobs")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"pictures: waited for {what} for {PATIENCE:g} s")
        time.sleep(0.05)


@contextmanager
def other_worker(folder: str, host: str) -> Iterator[None]:
    """A worker on another machine, as it seems; killed at the end."""
    code = f"import socket; socket.gethostname = lambda: {host!r}; from flask.cli import main; main()"
    app = f"examples.demo.app:create_app({folder!r})"
    command = [sys.executable, "-c", code, "--app", app, "tasks", "run", "fragile", "gather"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Path(folder, f"{host}.log").open("wb") as log:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        ) as process:
            try:
                yield
            finally:
                process.kill()


# --- The pictures -------------------------------------------------------------------------------------------------


def take(wanted: Sequence[Picture], base: str, target: Path) -> None:
    """Each in a window of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = os.environ.get("TASKER_TEST_BROWSER", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-lcd-text"])
        for picture in wanted:
            context = browser.new_context(
                bypass_csp=True,  # for the font
                color_scheme=picture.theme,
                viewport={"width": WIDTH, "height": picture.tallest},
                extra_http_headers={"Accept-Encoding": "identity"},
            )
            page = context.new_page()
            page.goto(base + picture.address)
            shoot(page, picture, target / f"{picture.name}.png")
            context.close()
        browser.close()


def shoot(page: Any, picture: Picture, file: Path) -> None:
    """Write the picture, and say so."""
    page.wait_for_selector("#tools button")
    page.add_style_tag(content=FONT)
    height = min(picture.tallest, page.evaluate(CUT, picture.tallest) + 6)
    size = file.write_bytes(shrink(page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})))
    too_large = "  TOO LARGE" if size > LARGEST else ""
    sys.stdout.write(f"{file.name}  {WIDTH} x {height}, {size:,} bytes{too_large}\n")


if __name__ == "__main__":
    main()
