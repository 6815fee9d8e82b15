"""A real SMTP server on loopback whose replies a test can script, in a thread of its own.

It keeps what it received: every command, every mail byte for byte, and every line that a clean client would not send.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 33554432")
SOURCES = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
"""The environment of a process that is to import the package."""

VERBS = {"EHLO", "HELO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "AUTH", "STARTTLS"}


@dataclass(frozen=True)
class Drop:
    """Close the connection, after *say* (which may be half a reply)."""

    say: str = ""


@dataclass(frozen=True)
class Slow:
    """Answer as usual, after a while."""

    seconds: float


class Silence:
    """Say nothing, and go on reading."""


@dataclass
class Delivered:
    sender: str
    recipients: list[str]
    data: bytes
    options: str
    reply_lost: bool = False


@dataclass
class Session:
    """One connection."""

    number: int
    tls: bool = False
    user: str | None = None
    commands: list[str] = field(default_factory=list)
    sender: str | None = None
    options: str = ""
    recipients: list[str] = field(default_factory=list)
    mails: int = 0
    ended: bool = False
    is_deaf: bool = False
    """Whether what comes together with another command is lost."""

    @property
    def verbs(self) -> list[str]:
        return [command.split(" ")[0].split(":")[0] for command in self.commands]


Script = Callable[[Session, str, str], Any]


def at(verb: str, reply: Any, *, times: int = 1) -> Callable[[Session, str, str], Any]:
    """A script: *reply* to the first *times* commands of *verb*."""
    left = [times]

    def script(session: Session, seen: str, line: str) -> Any:
        if seen == verb and left[0]:
            left[0] -= 1
            return reply
        return None

    return script


class SMTPServer:
    """``script(session, verb, line)`` is asked before each command, with verb "." for the end of a message: None lets
    the server answer by itself, a string is the reply, bytes go out as they are; or :class:`Drop`, :class:`Silence`.
    """

    def __init__(self, **options: Any) -> None:
        self.extensions: tuple[str, ...] = options.pop("extensions", EXTENSIONS)
        self.script: Script | None = options.pop("script", None)
        self.greeting: Any = options.pop("greeting", "220 ready")
        self.implicit_tls: ssl.SSLContext | None = options.pop("implicit_tls", None)
        self.starttls: ssl.SSLContext | None = options.pop("starttls", None)
        self.users: dict[str, str] = options.pop("users", {})
        self.most: int | None = options.pop("most", None)
        """How many connections it takes at once; further ones are turned away with *refusal*."""
        self.refusal: Any = options.pop("refusal", Drop("421 4.7.0 too many connections\r\n"))
        self.behind: Callable[[int], bytes] | None = options.pop("behind", None)
        """What it answers to the commands that came behind a message, before its reply; it does not follow them."""
        self.is_deaf: bool = options.pop("is_deaf", False)
        """Whether it loses what comes together with another command."""
        self.turned_away = self.behind_seen = 0
        assert not options
        self.sessions: list[Session] = []
        self.mails: list[Delivered] = []
        self.bad_lines: list[bytes] = []
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port = 0

    def __enter__(self) -> SMTPServer:
        self._thread.start()
        assert self._ready.wait(30), "the mail server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    @property
    def open_sessions(self) -> int:
        return sum(not session.ended for session in self.sessions)

    def hang_up(self, session: Session) -> None:
        """Close the connection of *session*, and wait until its client must have noticed."""
        self._loop.call_soon_threadsafe(self._writers[session.number].transport.abort)
        wait_until(lambda: session.ended)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.implicit_tls, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = Session(len(self.sessions) + 1, tls=self.implicit_tls is not None)
        # The writer first: who sees the session may hang up at once.
        self._writers[session.number] = writer
        self.sessions.append(session)
        try:
            await self._talk(session, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            session.ended = True
            self._tasks.discard(task)
            if writer.transport is not None:
                writer.transport.abort()

    async def _talk(self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.most is not None and self.open_sessions > self.most:
            self.turned_away += 1
            await self._answer(writer, self.refusal)
            return
        if not await self._answer(writer, self.greeting):
            return
        while line := await reader.readline():
            if self.is_deaf or session.is_deaf:
                reader._buffer.clear()  # type: ignore[attr-defined]
            if not line.endswith(b"\r\n"):
                self.bad_lines.append(line)
            text = line.decode("utf-8", "replace").strip("\r\n")
            session.commands.append(text)
            verb = text.split(" ")[0].upper()
            if verb not in VERBS:
                self.bad_lines.append(line)
            scripted = self.script(session, verb, text) if self.script else None
            if isinstance(scripted, Slow):
                await asyncio.sleep(scripted.seconds)
                scripted = None
            reply = scripted if scripted is not None else self._own_reply(session, verb, text)
            if not await self._answer(writer, reply):
                return
            if verb == "STARTTLS" and str(reply).startswith("220"):
                assert self.starttls is not None
                await writer.start_tls(self.starttls)
                session.tls = True
            if verb == "DATA" and str(reply).startswith("354") and not await self._take(session, reader, writer):
                return
            if verb == "QUIT" and not isinstance(reply, Silence):
                return

    async def _take(self, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines: list[bytes] = []
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                return False
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                self.bad_lines.append(line)
            lines.append(line[1:] if line.startswith(b".") else line)
        reply = self.script(session, ".", "") if self.script else None
        if isinstance(reply, Slow):
            await asyncio.sleep(reply.seconds)
            reply = None
        reply = reply if reply is not None else ("250 2.0.0 queued" if session.recipients else "554 5.5.1 no rcpt")
        taken = str(reply.say if isinstance(reply, Drop) else reply)
        if taken.startswith("2") and session.recipients:
            session.mails += 1
            lost = isinstance(reply, Drop) and not reply.say.endswith("\n")
            self.mails.append(self._delivered(session, lines, reply_lost=lost))
        session.sender, session.recipients = None, []
        early = bytes(reader._buffer) if self.behind is not None else b""  # type: ignore[attr-defined]
        if self.behind is None or not early or isinstance(reply, Drop | Silence | bytes):
            return await self._answer(writer, reply)
        reader._buffer.clear()  # type: ignore[attr-defined]
        self.behind_seen += 1
        said = self.behind(early.count(b"\n"))
        return await self._answer(writer, f"{reply}\r\n".encode() + said) and not said.startswith(b"421")

    @staticmethod
    def _delivered(session: Session, lines: list[bytes], *, reply_lost: bool = False) -> Delivered:
        return Delivered(str(session.sender), [*session.recipients], b"".join(lines), session.options, reply_lost)

    async def _answer(self, writer: asyncio.StreamWriter, reply: Any) -> bool:
        if isinstance(reply, Drop):
            writer.write(reply.say.encode())
            await writer.drain()
            return False
        if not isinstance(reply, Silence):
            writer.write(reply if isinstance(reply, bytes) else f"{reply}\r\n".encode())
            await writer.drain()
        return True

    def _own_reply(self, session: Session, verb: str, text: str) -> str:
        replies: dict[str, Callable[[], str]] = {
            "EHLO": lambda: self._extensions(session),
            "STARTTLS": lambda: "220 go ahead" if self.starttls else "502 no",
            "AUTH": lambda: self._log_in(session, text),
            "MAIL": lambda: self._begin(session, text),
            "RCPT": lambda: self._add_recipient(session, text),
            "DATA": lambda: "354 go ahead" if session.recipients else "554 5.5.1 no valid recipients",
            "RSET": lambda: self._reset(session),
            "HELO": lambda: "250 ok",
            "NOOP": lambda: "250 ok",
            "QUIT": lambda: "221 bye",
        }
        return replies.get(verb, lambda: "500 5.5.2 what?")()

    def _extensions(self, session: Session) -> str:
        lines = ["test.example greets you", *self.extensions]
        if self.starttls and not session.tls:
            lines.append("STARTTLS")
        if self.users:
            lines.append("AUTH PLAIN")
        return "\r\n".join(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines)

    def _begin(self, session: Session, text: str) -> str:
        if session.sender is not None:
            return "503 5.5.1 nested MAIL command"
        inside, _, session.options = text.partition(":")[2].partition(">")
        session.sender = inside.lstrip("<")
        return "250 2.1.0 ok"

    def _add_recipient(self, session: Session, text: str) -> str:
        if session.sender is None:
            return "503 5.5.1 need MAIL"
        session.recipients.append(text.partition(":<")[2].partition(">")[0])
        return "250 2.1.5 ok"

    def _reset(self, session: Session) -> str:
        session.sender, session.recipients = None, []
        return "250 2.0.0 ok"

    def _log_in(self, session: Session, text: str) -> str:
        method, _, argument = text.partition(" ")[2].partition(" ")
        if method.upper() != "PLAIN":
            return "504 5.5.4 only PLAIN"
        _, user, password = base64.b64decode(argument).decode().split("\0")
        if self.users.get(user) != password:
            return "535 5.7.8 authentication failed"
        session.user = user
        return "235 2.7.0 welcome"


def wait_until(is_so: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a state that another thread brings about."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)
