"""A filter of OpenSMTPD (smtpd-filters(7)), which has no such limits itself: connections, mails a second, greylisting.

It also writes down the recipients of each mail that the server has taken.
"""

import json
import sys
import time
from collections import defaultdict, deque
from pathlib import Path

folder = Path(sys.argv[1])
most, rate, greylisting = json.loads((folder / "limits").read_text())
sessions: set[str] = set()
recipients: dict[str, list[str]] = defaultdict(list)
seen: set[str] = set()
recent: deque[float] = deque(maxlen=rate or 1)


def decide(phase: str, session: str, argument: str) -> str:
    match phase:
        case "connect":
            if most is not None and len(sessions) > most:
                return "disconnect|421 4.7.0 too many connections"
        case "mail-from":
            if rate is not None and len(recent) == rate and time.monotonic() - recent[0] < 1:
                return "reject|450 4.7.1 too fast"
            recent.append(time.monotonic())
        case "rcpt-to":
            if greylisting and argument not in seen:
                seen.add(argument)
                return "reject|450 4.7.1 greylisted"
    return "proceed"


def say(line: str) -> None:
    print(line, flush=True)


for line in sys.stdin:
    kind, *fields = line.rstrip("\n").split("|")
    if line == "config|ready\n":
        for event in ("link-connect", "link-disconnect", "tx-rcpt", "tx-commit", "tx-reset"):
            say(f"register|report|smtp-in|{event}")
        for phase in ("connect", "mail-from", "rcpt-to"):
            say(f"register|filter|smtp-in|{phase}")
        say("register|ready")
    elif kind == "filter":
        _, _, _, phase, session, token, argument = fields[:7]
        say(f"filter-result|{session}|{token}|{decide(phase, session, argument)}")
    elif kind == "report":
        _, _, _, event, session, *details = fields
        if event == "link-connect":
            sessions.add(session)
        elif event == "link-disconnect":
            sessions.discard(session)
        elif event == "tx-rcpt" and details[1] == "ok":
            recipients[session].append(details[2])
        elif event == "tx-commit":
            with (folder / "taken").open("a") as taken:
                taken.write("".join(f"{recipient}\n" for recipient in recipients.pop(session, [])))
        elif event == "tx-reset":
            recipients.pop(session, None)
