"""An SMTP server, so that the demo needs none: it takes every mail and delivers none."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiosmtpd.smtp import SMTP, Envelope, Session

HOST = "127.0.0.1"
MESSAGE_ID = re.compile(rb"^Message-ID:\s*(\S+)", re.IGNORECASE | re.MULTILINE)


class Inbox:
    """What has arrived: counted, not kept, but for mails with an attachment. Filled by the server's thread alone."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.count = 0
        """How many mails have arrived; may be read at any time, the others when nothing is on its way."""
        self.arrived: Counter[tuple[str, str]] = Counter()
        """How often, by Message-ID and recipient."""
        self.with_attachment: dict[str, bytes] = {}
        """Whole mails, by recipient."""
        self.last_arrival = 0.0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Called by aiosmtpd for each mail; the answer goes to the sender."""
        content = envelope.content
        assert isinstance(content, bytes)
        found = MESSAGE_ID.search(content)
        message_id = found[1].decode() if found else "none"
        self.arrived.update((message_id, recipient) for recipient in envelope.rcpt_tos)
        if b"\nContent-Disposition: attachment" in content:
            self.with_attachment.update(dict.fromkeys(envelope.rcpt_tos, content))
        self.last_arrival = time.perf_counter()
        self.count += 1
        return "250 Thank you"


@contextmanager
def receiving() -> Iterator[Inbox]:
    """Serve in a thread meanwhile, on any free port of this machine."""
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd's log, else a line for each command
    listener = socket.create_server((HOST, 0))
    inbox = Inbox(listener.getsockname()[1])
    end = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(listener, inbox, end)), name="mail-server")
    thread.start()
    try:
        yield inbox
    finally:
        end.set()
        thread.join()


async def serve(listener: socket.socket, inbox: Inbox, end: threading.Event) -> None:
    """Serve until *end* is set. Who is still connected then is cut off with the event loop."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(inbox, hostname="localhost", loop=loop), sock=listener)
    await asyncio.to_thread(end.wait)
    server.close()
