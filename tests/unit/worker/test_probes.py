"""How a worker's process tells others whether it works."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_taskworker.worker.probes import FilesHealth, Health, Probes, Systemd, WorkersHealth, read_health, words_of
from tests.support.cli_shop import Shop
from tests.system.cli.test_run import Shop as ProcessShop
from tests.system.cli.test_run import ended, until


class Told:
    """Some process's health, as a test says."""

    def __init__(self) -> None:
        self.live: str | None = None
        self.ready: str | None = None
        self.stops = False

    def not_live(self) -> str | None:
        return self.live

    def not_ready(self) -> str | None:
        return self.ready

    def is_stopping(self) -> bool:
        return self.stops


def ask(port: int | None, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_http_answers_for_live_and_ready(shop: Shop) -> None:
    told: Health = Told()
    with Probes(told, address=("127.0.0.1", 0)) as probes:
        assert ask(probes.port, "/livez") == ask(probes.port, "/readyz?x=1") == (200, "ok\n")
        told.ready = "no database"  # type: ignore[attr-defined]
        assert ask(probes.port, "/livez") == (200, "ok\n")
        assert ask(probes.port, "/readyz") == (503, "no database\n")
        assert ask(probes.port, "/readyz", "HEAD") == (503, "")
        assert ask(probes.port, "/")[0] == 404
        assert ask(probes.port, "/livez", "POST")[0] == 501


def test_client_that_says_nothing_holds_up_nothing(shop: Shop) -> None:
    with Probes(Told(), address=("127.0.0.1", 0)) as probes:
        with socket.create_connection(("127.0.0.1", probes.port or 0)) as silent:
            silent.sendall(b"GET /li")
            assert ask(probes.port, "/livez") == (200, "ok\n")


def until_ready(health: Health, why_not: str | None = None) -> None:
    """Wait until it is ready, or is not for that reason."""
    until(lambda: health.not_ready() == why_not, f"it does not say: {why_not or 'ready'}")


def test_worker_is_ready_while_it_takes_jobs(shop: Shop) -> None:
    health = WorkersHealth(shop.task_worker._workers)
    assert (health.not_live(), health.not_ready()) == (None, "no worker has started")
    shop.task_worker.start()
    until_ready(health)
    assert health.not_live() is None
    (worker,) = shop.task_worker._workers()
    worker.stop()
    until_ready(health, "it stops")
    assert health.is_stopping()


def test_worker_without_its_database_is_live_and_not_ready(shop: Shop) -> None:
    health = WorkersHealth(shop.task_worker._workers)
    shop.task_worker.start()
    until_ready(health)
    path = Path(shop.state.config.database_uri.database or "")
    path.rename(f"{path}.away")
    until_ready(health, "a worker does not reach the database")
    assert health.not_live() is None
    Path(f"{path}.away").rename(path)
    until_ready(health)


def test_worker_whose_loop_stands_still_is_not_live(shop: Shop) -> None:
    shop.task_worker.start()
    (worker,) = shop.task_worker._workers()
    health = WorkersHealth(lambda: [worker])
    assert health.not_live() is None
    worker.lag_ms = lambda: 31_000.0
    assert health.not_live() == "the event loop has not turned for 31 s"


# -- the file ----------------------------------------------------------------------------------------------------------


def test_file_says_how_it_is_and_goes_with_the_process(tmp_path: Path) -> None:
    told, file = Told(), tmp_path / "health"
    told.ready = "it stops"
    with Probes(told, file=file):
        until(file.exists, "the file does not exist")
        assert file.read_text() == words_of(None, "it stops") == "live: ok\nready: it stops\n"
        assert read_health(file, 30, needs_ready=False) is None
        assert read_health(file, 30, needs_ready=True) == "not ready: it stops"
    assert not file.exists()
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_old_or_odd_or_gone_is_not_good_news(tmp_path: Path) -> None:
    file = tmp_path / "health"
    assert read_health(file, 30, needs_ready=False) == f"{file} cannot be read: No such file or directory"
    file.write_text("")
    assert read_health(file, 30, needs_ready=False) == "not live: the file does not say"
    file.write_text(words_of("stuck", None))
    assert read_health(file, 30, needs_ready=False) == "not live: stuck"
    file.write_text(words_of(None, None))
    os.utime(file, (time.time() - 60, time.time() - 60))
    assert read_health(file, 30, needs_ready=False) == (f"{file} was written 60 s ago: the worker hangs or has ended")
    assert read_health(file, 90, needs_ready=True) is None


def test_documented_probe_reads_the_health_file(tmp_path: Path) -> None:
    """Containers start it every few seconds, so it imports nothing of ours."""
    docs = Path(__file__).parents[3] / "docs" / "cli.md"
    (code,) = re.findall(r"^\$ python -c '(.*)'$", docs.read_text(), re.MULTILINE)
    file = tmp_path / "worker.health"

    def probe() -> int:
        command = [sys.executable, "-c", code.replace("/run/worker.health", str(file))]
        return subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=30).returncode

    assert probe() == 1
    file.write_text(words_of(None, "no database"))
    assert probe() == 0
    os.utime(file, (1, 1))
    assert probe() == 1
    file.write_text(words_of("stuck", None))
    assert probe() == 1


def test_health_of_several_processes_is_that_of_their_files(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    health = FilesHealth(lambda: [one, two], lambda: False)
    one.write_text(words_of(None, None))
    two.write_text(words_of(None, "no database"))
    assert (health.not_live(), health.not_ready()) == (None, None)
    one.write_text(words_of(None, "no database"))
    assert (health.not_live(), health.not_ready()) == (None, "not ready: no database")
    two.write_text(words_of("stuck", None))
    assert health.not_live() == "not live: stuck"
    assert FilesHealth(list, lambda: False).not_ready() == "no worker has started"
    assert FilesHealth(list, lambda: True).not_ready() == "it stops"


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_systemd_hears_ready_watchdog_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(20)
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"})
        assert systemd.interval == 1.0
        systemd.tell(live=True, ready=False, stopping=False)
        assert ear.recv(100) == b"WATCHDOG=1"
        systemd.tell(live=True, ready=True, stopping=False)
        assert ear.recv(100) == b"READY=1\nWATCHDOG=1"
        systemd.tell(live=False, ready=True, stopping=True)
        assert ear.recv(100) == b"STOPPING=1"


def test_watchdog_of_another_process_is_left_alone(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    assert Systemd({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3", "WATCHDOG_PID": "1"}).interval == float("inf")
    assert Systemd({"WATCHDOG_USEC": "3"}).interval == float("inf")
    assert Systemd({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "0"}).interval == float("inf")
    Systemd({}).tell(live=True, ready=True, stopping=True)
    Systemd({"NOTIFY_SOCKET": address}).tell(live=True, ready=True, stopping=True)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[ProcessShop]:
    shop = ProcessShop(tmp_path)
    yield shop
    shop.close()


def free_port() -> int:
    """Not one that the system hands out: another test might get it before it is used."""
    while True:
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", random.randint(20_000, 30_000)))
            except OSError:
                continue
            return int(taken.getsockname()[1])


def answers(port: int, path: str, status: int) -> bool:
    try:
        return ask(port, path)[0] == status
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_run_tells_its_health_by_port_file_and_to_systemd(processes: ProcessShop, workers: str) -> None:
    port, file = free_port(), processes.folder / "health"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(processes.folder / "notify"))
        ear.settimeout(30)
        process = processes.start(
            *("tasks", "run", "-w", workers, "--health-port", f"127.0.0.1:{port}", "--health-file", str(file)),
            NOTIFY_SOCKET=str(processes.folder / "notify"),
        )
        until(lambda: answers(port, "/readyz", 200), "it was never ready")
        until(lambda: read_health(file, 30, needs_ready=True) is None, "the file does not say so")
        assert ear.recv(100) == b"READY=1"
        assert answers(port, "/livez", 200)
        job = processes.enqueue("hold", 60)
        until((processes.folder / "held").exists, "the job did not start")
        process.send_signal(signal.SIGTERM)
        until(lambda: answers(port, "/readyz", 503), "it is ready though it stops")
        assert ear.recv(100) == b"STOPPING=1"
        (processes.folder / "let go").touch()
        code, _, err = ended(process)
    assert code == 0, err
    assert not file.exists()
    assert job.refresh().state == "succeeded"


@pytest.mark.parametrize("option", ["--health-port", "--metrics-port"])
def test_port_that_is_taken_is_said(shop: Shop, option: str) -> None:
    if option == "--metrics-port":
        pytest.importorskip("prometheus_client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = shop("run", option, f"127.0.0.1:{port}")
    assert answer.code == 1
    assert f"{option}: 127.0.0.1 port {port} cannot be used: Address already in use." in answer.err


def test_metrics_are_answered_while_the_worker_runs(shop: Shop) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    answers: list[tuple[int, str]] = []

    @shop.task_worker.task(name="shop.ask")
    def ask_for_metrics() -> None:
        answers.append(ask(port, "/metrics"))

    ask_for_metrics.enqueue()
    assert shop("run", "--drain", "--metrics-port", f"127.0.0.1:{port}").code == 0
    ((status, words),) = answers
    assert status == 200
    assert "taskworker_workers" in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--health-port", "web"], "'web' is neither a port nor HOST:PORT"),
        (["--health-port", "99999"], "'99999' is neither a port nor HOST:PORT"),
        (["--health-file", "/none/such/file"], "the folder '/none/such' does not exist"),
        (["--name", "{nope}"], "is invalid"),
        (["--name", "a\nb"], "is invalid"),
        (["-x", "web", "web"], "The queue 'web' is both given and excluded."),
        (["-x", ""], "queue = '' is not allowed"),
    ],
)
def test_wrong_options_of_run_are_refused(shop: Shop, words: list[str], message: str) -> None:
    answer = shop("run", *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in " ".join(answer.err.split())
