"""The directory ``<database>-live/`` beside an SQLite file: one lock file and one socket for each living worker.

*Death.* A worker holds ``flock(LOCK_EX)`` on the file with its id. The kernel frees the lock when the last process
that has the descriptor ends, however it ends; so a lock that can be taken proves a death, across containers on one
kernel and immune to reused process ids and to clocks. A missing file proves nothing.

*Wake-up.* A worker listens on a UNIX datagram socket. An enqueuing process sends a datagram to each socket, which names
the queues that have work now; an empty one says only that there is news. A full socket means that its worker is awake
already: having read that many, it looks at the database rather than believe that it has them all.

Needs ``fcntl`` and UNIX sockets. Where they are missing (Windows), :func:`supported` says so in words.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...core.loggers import Logger, get_logger
from ...errors import NotSupported
from ..driver import Other, Ready

try:
    import fcntl
except ImportError:  # Windows
    _CAN_LOCK = False
else:
    _CAN_LOCK = hasattr(socket, "AF_UNIX")

log: Logger = get_logger("store")

SOCKET = ".sock"
LONGEST_ADDRESS = 103
"""Bytes; macOS and the BSDs allow this many, Linux 107."""
_LINUX: bool = sys.platform == "linux" and Path("/proc/self/fd").is_dir()
LONGEST_WORDS = 1000
"""Bytes of a datagram; what does not fit is left to a look at the database."""
MOST_BELIEVED = 4
"""Datagrams at once. A socket takes ten on Linux (net.unix.max_dgram_qlen), and 4 KB on macOS; where as
much came, more may be lost."""
_TICK = 100_000_000
"""Nanoseconds; longer than any file system's time stamps are coarse."""


def supported() -> None:
    """Raise NotSupported with the reason where workers cannot run. Enqueueing works everywhere."""
    if not _CAN_LOCK:
        raise NotSupported(
            "Workers need fcntl.flock and UNIX sockets, which this platform does not offer. Enqueueing works here; "
            "run the worker on Linux, macOS or another UNIX, or under WSL 2."
        )


class LiveDirectory:
    """The directory as the processes of one machine share it. Safe from any thread."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.path: Path = Path(f"{database}-live")
        self._name = str(self.path)
        self._descriptor: int | None = None
        self._sender: socket.socket | None = None
        self._listed_at = -1
        self._sockets: tuple[str, ...] = ()
        self._opening = threading.Lock()
        self._kept: list[int] = []
        self.own: frozenset[str] = frozenset()
        """The ids of this process's workers: they are woken by a call, not by a datagram."""

    def make(self) -> None:
        """Create the directory, for its owner alone. Raises NotSupported where others could take the locks away."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        status = self.path.lstat()
        if status.st_uid not in (os.getuid(), self._database.stat().st_uid) or status.st_mode & 0o022:
            raise NotSupported(
                f"Other users on this machine may write to {self.path} (user {status.st_uid}, "
                f"mode {status.st_mode & 0o7777:#o}): they could have jobs run twice. Stop the workers, remove it, and "
                "start them again."
            )

    def has_living(self) -> bool:
        """Whether a worker, of this process or another, holds its lock."""
        try:
            names = [name for name in os.listdir(self.path) if _is_name(name)]
        except OSError:
            return False
        return _CAN_LOCK and any(_is_locked(self.path / name) for name in names)

    def wake_others(self, ready: Ready = ()) -> None:
        """Send a datagram to each worker of another process. Costs one stat call when no worker listens. Never raises:
        the caller's job is stored, and workers look by themselves soon."""
        if not _CAN_LOCK:
            return
        with suppress(OSError, NotSupported):
            changed_at = os.stat(self._name).st_mtime_ns
            if changed_at != self._listed_at:
                self._forget_replaced()
                self._sockets = tuple(name for name in os.listdir(self.path) if name.endswith(SOCKET))
                # File systems stamp changes in ticks: a socket added within this one must not be missed.
                self._listed_at = changed_at if time.time_ns() - changed_at > _TICK else -1
            if self._sockets:
                words = "\0".join(f"{kind} {queue}" for queue, kind in ready).encode("utf-8", "replace")
                if len(words) > LONGEST_WORDS:
                    words = b""
                for name in self._sockets:
                    if name.removesuffix(SOCKET) not in self.own:
                        self._send(name, words)

    def _forget_replaced(self) -> None:
        """The directory may have been removed, and a worker have made it again."""
        with self._opening:
            if self._descriptor is not None and not os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                os.close(self._descriptor)
                self._descriptor = None

    def _send(self, name: str, words: bytes) -> None:
        # Full: already awake. Refused or gone: a dead worker's socket, which its rescuer clears away.
        with suppress(OSError):
            with self._opening:
                if self._sender is None:
                    self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                    self._sender.setblocking(False)
                sender = self._sender
            sender.sendto(words, self.address(name))

    def address(self, name: str) -> str:
        """A name for the socket that fits into the 107 bytes which a UNIX socket's path may have."""
        if _LINUX:
            return f"/proc/self/fd/{self._open()}/{name}"
        address = str(self._short_directory() / name)
        if len(os.fsencode(address)) > LONGEST_ADDRESS:
            raise NotSupported(
                f"{address} is too long a name for a socket. Set TMPDIR to a directory with a short name."
            )
        return address

    def _open(self) -> int:
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return self._descriptor

    def _short_directory(self) -> Path:
        """A private directory with a short name, to which the sockets of the long one are linked."""
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        short = Path(tempfile.gettempdir()) / f"tw-{os.getuid()}-{digest}"
        short.mkdir(mode=0o700, exist_ok=True)
        status = short.stat(follow_symlinks=False)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise NotSupported(f"{short} belongs to another user. Remove it, or set TMPDIR to a private directory.")
        return short

    def close(self) -> None:
        """Close the descriptors; they are opened again when needed."""
        if self._sender is not None:
            self._sender.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._sender = self._descriptor = None
        self._listed_at = -1

    def keep(self, lock: int) -> None:
        """A descriptor that stays open, and so locked, until the process ends."""
        self._kept.append(lock)

    def abandon(self) -> None:
        """Close the descriptors in a forked child. Closing keeps the parent's locks; unlocking would free them."""
        for lock in self._kept:
            os.close(lock)
        self._kept.clear()
        self._opening = threading.Lock()
        self.close()


class LivePresence:
    """One worker's lock and socket. Made before the worker's row is inserted, so that no row lacks its lock."""

    server_started_at: int | None = None

    def __init__(self, directory: LiveDirectory, worker_id: str) -> None:
        supported()
        directory.make()
        self._directory = directory
        self._id = worker_id
        self._name = worker_id + SOCKET
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = os.open(directory.path / worker_id, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._socket = self._bound()
        except BaseException:
            self._unlink(worker_id)
            os.close(self._lock)
            raise
        directory.own |= {worker_id}

    def _bound(self) -> socket.socket:
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            ear.setblocking(False)
            address = self._directory.address(self._name)
            ear.bind(address)
            os.chmod(address, 0o600)
            if not _LINUX:
                # The listing is of the long directory; a marker there announces the socket in the short one.
                (self._directory.path / self._name).touch(mode=0o600)
        except BaseException:
            ear.close()
            raise
        return ear

    def listen(self, loop: asyncio.AbstractEventLoop, on_wake: Callable[[Ready], None]) -> None:
        """Call *on_wake* on *loop* when datagrams come."""
        self._loop = loop
        loop.add_reader(self._socket, self._drain, on_wake)

    def _drain(self, on_wake: Callable[[Ready], None]) -> None:
        heard: list[bytes] = []
        with suppress(BlockingIOError):
            while True:
                heard.append(self._socket.recv(LONGEST_WORDS + 1))
        on_wake(_ready_in(heard))

    def renew(self) -> None:
        """Nothing: the kernel loses no locks."""

    def is_dead(self, other: Other) -> bool:
        """Whether the lock of that worker can be taken. A missing file proves nothing."""
        if not _is_name(other.id):
            return False
        return _is_locked(self._directory.path / other.id) is False

    def forget(self, worker_id: str) -> None:
        """Remove the lock file and the socket of a dead worker."""
        if _is_name(worker_id):
            self._unlink(worker_id)

    def hurry(self, seconds: float) -> None:
        """Nothing is waited for."""

    def close(self, *, keep_lock: bool = False) -> None:
        """Stop listening and free the lock; or keep it until the process ends."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
        self._socket.close()
        self._directory.own -= {self._id}
        if keep_lock:
            self._remove(self._name)
            self._directory.keep(self._lock)
        else:
            # In this order: in the other one a rescuer could find a free lock.
            self._unlink(self._id)
            os.close(self._lock)

    def abandon(self) -> None:
        """Close the descriptors in a forked child. Closing keeps the parent's lock; unlocking would free it."""
        self._directory.own -= {self._id}
        self._socket.close()
        os.close(self._lock)

    def _unlink(self, worker_id: str) -> None:
        self._remove(worker_id)
        self._remove(worker_id + SOCKET)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._directory.path / name).unlink()
        if not _LINUX:
            with suppress(OSError, NotSupported):
                Path(self._directory.address(name)).unlink()


def _ready_in(heard: Sequence[bytes]) -> Ready:
    """What is ready according to these datagrams; nothing where they may not be all, or are not ours."""
    if len(heard) > MOST_BELIEVED or sum(map(len, heard)) > LONGEST_WORDS:
        return ()
    ready = set()
    for word in b"\0".join(heard).split(b"\0"):
        kind, _, queue = word.decode("utf-8", "replace").partition(" ")
        if kind not in ("sync", "async", "held") or not queue:
            return ()
        ready.add((queue, kind))
    return ready


def _is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock; None without a file, or if it cannot be asked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _is_name(worker_id: object) -> bool:
    """Whether the id may name a file: it comes from a row, where anything may stand, and must not lead out of the
    directory."""
    return isinstance(worker_id, str) and worker_id.isascii() and worker_id.isalnum()
