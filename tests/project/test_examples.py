"""Every example runs as its first lines say, in processes of its own, on a copy that leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE = 45.0
RUNNING_ON = r"Running on (http://127\.0\.0\.1:\d+)"
on_posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and terminals")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of the examples, so that their instance folders are not in the repository."""
    unwanted = shutil.ignore_patterns("instance", "__pycache__")
    return shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=unwanted)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the examples make their temporary files."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


class Example:
    """A program that runs, with everything it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        self._said = said

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something that matches."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.said)
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said}"
            return found

        return wait_until(look, lambda: f"{pattern!r} in:\n{self.said}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


def wait_until(look: Callable[[], Any], what: Callable[[], str]) -> Any:
    """Look until there is something to see."""
    end = time.monotonic() + DEADLINE
    while not (seen := look()):
        assert time.monotonic() < end, f"waited {DEADLINE} s for {what()}"
        time.sleep(0.05)
    return seen


@contextmanager
def running(*arguments: str | Path, cwd: Path, stdin: int = subprocess.DEVNULL, **variables: str) -> Iterator[Example]:
    """Run Python with *arguments* until the end of the block at the latest."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "WERKZEUG_", "NO_COLOR"))}
    env = kept | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"} | variables
    said = cwd / f"said-{time.monotonic_ns()}.txt"
    command = [sys.executable, "-W", "always::ResourceWarning", *map(str, arguments)]
    with (
        said.open("wb") as out,
        subprocess.Popen(command, cwd=cwd, env=env, stdin=stdin, stdout=out, stderr=out) as process,
    ):
        try:
            yield Example(process, said)
        finally:
            process.kill()


def ask(url: str, **form: str) -> str:
    """GET, or POST when there is a form; redirects are followed."""
    data = urllib.parse.urlencode(form).encode() if form else None
    with urllib.request.urlopen(url, data, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


# --- hello.py -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("hello.py",), id="python hello.py"),
        pytest.param(
            ("-m", "flask", "--app", "hello.py", "run", "--debug", "--no-reload", "--port", "0"),
            id="flask run",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hello_adds_and_shows_its_job(command: tuple[str, ...], examples: Path) -> None:
    hello = examples / "hello.py"
    # Port 5000 may be in use here. With 0 the system chooses one, and it is in what the program says.
    hello.write_text(hello.read_text().replace("debug=True", "debug=True, use_reloader=False, port=0"))
    with running(*command, cwd=examples) as example:
        address = example.wait_for(RUNNING_ON)[1]
        job = json.loads(ask(f"{address}/add/1/2"))
        assert job["sum"] == 3
        assert "succeeded" in ask(f"{address}/tasks/jobs/{job['job']}")
        assert "Traceback" not in example.said


# --- factory ------------------------------------------------------------------------------------------------------


def order(address: str, goods: str, shop: str = "") -> dict[str, Any]:
    """Order something and wait until it is packed."""
    placed = json.loads(ask(f"{address}{shop}/orders/{goods}", please="yes"))

    def look() -> dict[str, Any] | None:
        shown: dict[str, Any] = json.loads(ask(address + placed["look"]))
        return shown if shown["state"] == "succeeded" else None

    packed: dict[str, Any] = wait_until(look, lambda: f"{goods} to be packed")
    return placed | packed


@pytest.mark.slow
def test_factory_packs_orders(examples: Path) -> None:
    command = ("-m", "flask", "--app", "examples.factory.wsgi", "run", "--debug", "--no-reload", "--port", "0")
    with running(*command, cwd=examples.parent) as example:
        address = example.wait_for(RUNNING_ON)[1]
        assert order(address, "tea")["result"] == "tea, packed by The corner shop"
        assert json.loads(ask(f"{address}/reports/", please="yes"))["job"] > 1
        assert "orders.pack" in ask(f"{address}/tasks/jobs")
        with pytest.raises(urllib.error.HTTPError, match="404") as missing:
            ask(f"{address}/orders/999")
        missing.value.close()


@pytest.mark.slow
def test_two_shops_have_their_own_jobs(examples: Path) -> None:
    with running("-m", "examples.factory.two_shops", cwd=examples.parent, FLASK_RUN_PORT="0") as example:
        address = example.wait_for(RUNNING_ON)[1]
        packed = [order(address, "tea", shop) for shop in ("/north", "/south")]
        assert [shown["result"] for shown in packed] == ["tea, packed by North", "tea, packed by South"]
        assert [shown["job"] for shown in packed] == [1, 1]  # two databases


# --- two_processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@on_posix
def test_web_process_enqueues_and_worker_process_works(examples: Path) -> None:
    folder = examples / "two_processes"
    with running("-m", "flask", "--app", "web.py", "run", "--port", "0", cwd=folder) as web:
        address = web.wait_for(RUNNING_ON)[1]
        assert "ready" in ask(address, below="10000")
        with running("worker.py", cwd=folder) as worker:
            counted = wait_until(lambda: re.search(r"([\d,]+) primes, counted by process (\d+)", ask(address)), str)
            assert counted.groups() == ("1,229", str(worker.process.pid))
            ask(address, below="100000000")
            wait_until(lambda: "<progress" in ask(address), lambda: "progress on the page")
            assert "cancelled" in wait_until(lambda: cancelled(address), lambda: "the job to be cancelled")
            assert worker.end() == 0, worker.said
        assert "Traceback" not in web.said + worker.said


def cancelled(address: str) -> str | None:
    ask(f"{address}/cancel/2", please="yes")
    page = ask(address)
    return page if "cancelled" in page else None


# --- demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_keeps_its_promises(examples: Path, scratch: Path) -> None:
    command = ("-m", "examples.demo", "--once", "--limit", "60")
    with running(*command, cwd=examples.parent, TMPDIR=str(scratch)) as demo:
        assert demo.process.wait(DEADLINE) == 0, demo.said
    assert re.search(r"All \d+ checks hold", demo.said)
    for word in ("files", "definitions", "retries", "pick-up", "schedule", "rescued", "The ten longest functions"):
        assert word in demo.said
    assert re.search(r"dashboard +✓ each of 9 pages shows what ran", demo.said)
    assert re.search(r"report +mailed from the queue", demo.said)
    assert re.search(r"mails +100 different messages in [\d.]+ s, [\d,]+ a second", demo.said)
    assert not re.search(r"Traceback|\w(Error|Warning)\b.*: ", demo.said), demo.said
    assert not list(scratch.iterdir()), "the demo has left files behind"


BREAK_A_PROMISE = """
import sys
from examples.demo import sources
from examples.demo.__main__ import main
sources.BROKEN["sound.py"] = b"x = 1"
sys.exit(main(["--limit", "10"]))
"""


@pytest.mark.slow
def test_demo_fails_when_a_check_fails(examples: Path, scratch: Path) -> None:
    with running("-c", BREAK_A_PROMISE, cwd=examples.parent, TMPDIR=str(scratch)) as demo:
        assert demo.process.wait(DEADLINE) == 1, demo.said
    assert re.search(r"not so: each file that was made to be broken has failed.*planted/sound\.py", demo.said)
    [kept] = scratch.iterdir()
    assert (kept / "demo.log").is_file(), "what failed should be there to look into"


REPEAT_A_MAIL = """
import sys
from examples.demo.__main__ import main
from examples.demo.mail_server import Inbox
arrive = Inbox.handle_DATA

async def arrive_twice(self, server, session, envelope):
    if "reader-7@example.org" in envelope.rcpt_tos:
        await arrive(self, server, session, envelope)
    return await arrive(self, server, session, envelope)

Inbox.handle_DATA = arrive_twice
sys.exit(main(["--limit", "10"]))
"""


@pytest.mark.slow
def test_demo_notices_a_mail_that_arrives_twice(examples: Path, scratch: Path) -> None:
    with running("-c", REPEAT_A_MAIL, cwd=examples.parent, TMPDIR=str(scratch)) as demo:
        assert demo.process.wait(DEADLINE) == 1, demo.said
    assert re.findall("not so: ([^.]+)", demo.said) == ["each mail of the batch arrived exactly once"]
    assert "Seen: 101 of 100" in demo.said


@pytest.mark.slow
@on_posix
def test_demo_ends_cleanly_when_interrupted(examples: Path, scratch: Path) -> None:
    with running("-m", "examples.demo", cwd=examples.parent, TMPDIR=str(scratch)) as demo:
        demo.wait_for(r"indexing +\d+")
        assert demo.end(signal.SIGINT) == 130
    assert demo.said.rstrip().endswith("Interrupted.")
    assert "Traceback" not in demo.said
    assert not list(scratch.iterdir()), "the demo has left files behind"


@pytest.mark.slow
@on_posix
def test_demo_on_a_terminal_serves_its_page_until_ctrl_c(examples: Path, scratch: Path) -> None:
    ours, theirs = os.openpty()
    try:
        command = ("-m", "examples.demo", "--limit", "20", "--port", "0")
        with running(*command, cwd=examples.parent, stdin=theirs, TMPDIR=str(scratch)) as demo:
            # Before the first job: the address is useless when all is over.
            address = demo.wait_for(r"dashboard  (http://127\.0\.0\.1:\d+)/tasks/")[1]
            assert "Throughput" in ask(f"{address}/tasks/")
            demo.wait_for(rf"The dashboard is at {address}/tasks/")
            assert "examples.demo.tasks.parse_file" in ask(f"{address}/tasks/jobs?filter=task:*parse_file")
            assert "The longest functions" in ask(address)
            status = json.loads(ask(f"{address}/status.json"))
            assert status["index"]["files"] > 10
            assert status["jobs"]["fingerprint"]["succeeded"] == 30
            assert demo.end(signal.SIGINT) == 0, demo.said
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Traceback" not in demo.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--limit", "0"), "not a whole number of 1 or more"),
        (("--data", "examples"), "'examples' is not empty"),
        (("--help",), "the exit code is 0 if every check held"),
    ],
    ids=["limit", "data", "help"],
)
def test_demo_explains_its_options(arguments: tuple[str, ...], words: str, examples: Path) -> None:
    with running("-m", "examples.demo", *arguments, cwd=examples.parent) as demo:
        assert demo.process.wait(DEADLINE) == (0 if "--help" in arguments else 2)
    assert words.casefold() in " ".join(demo.said.split()).casefold()
