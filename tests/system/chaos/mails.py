"""Rows 31 to 33: a mail server that fails in every way, is away, or refuses the password."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from flask_taskworker.mail import Mail, Message
from tests.support.smtp_server import Delivered, Drop, Session, Silence, Slow, SMTPServer
from tests.system.chaos import journal
from tests.system.chaos.fleet import until
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import executions_of, percentile
from tests.system.chaos.worker import Place, Shop, log_to

SENDER = "from@example.com"
POOL = 2
FAULTY = {"MAIL", "RCPT", "DATA", "RSET", "."}
REFUSALS: tuple[Any, ...] = ("451 4.3.0 try again", b"450 4.2.0 occup\xe9\r\n", Drop(), Drop("4"))
STRAY = tuple(f"{line}\r\n451 4.3.0 try again\r\n".encode() for line in ("250 2.0.0 stray", "354 stray"))
FAULTS: tuple[Any, ...] = (*REFUSALS, *STRAY, "250 2.0.0 stray", Drop("421 4.3.2 closing\r\n"))
BYE = Drop("250 2.0.0 queued\r\n421 4.4.2 one mail is enough\r\n")
DOT_FAULTS: tuple[Any, ...] = (
    *REFUSALS,
    STRAY[0],
    Drop("421 4.3.2 closing\r\n"),
    Drop("2"),
    Drop("250 2.0.0 que"),
    BYE,
    Slow(0.3),
)
"""The beginning of an acceptance whose end is lost: the mail was taken, and no process knows."""


def serve_mail(place: Place, log: str) -> None:
    """The life of a worker that sends mail, too."""
    log_to(log)
    shop = Shop(place)
    Mail(shop.app)
    shop.task_worker.start()


def _config(server: SMTPServer, **more: Any) -> dict[str, Any]:
    return {
        "MAIL_SERVER": "127.0.0.1",
        "MAIL_PORT": server.port,
        "MAIL_POOL_SIZE": POOL,
        **more,
    }


def _post(stage: Stage, letters: list[Message]) -> list[Any]:
    with stage.shop.app.app_context():
        return list(Mail(stage.shop.app).send_later_many(letters))


def _letters(number: int) -> list[Message]:
    return [Message(f"letter {n}", [f"r{n}@x.org"], f"text of {n}", sender=SENDER) for n in range(number)]


# -- faults and kills --------------------------------------------------------------------------------------------------


class _Moods:
    """What the server does: a third of all commands fail, and an accepted mail takes its time."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.calm = False

    def behind(self, count: int) -> bytes:
        """What it says to commands that ride behind a message: it loses them, is strict, or has had enough."""
        strict = b"503 5.5.1 behind a message\r\n" * count
        return strict if self.calm else self._chance.choice([b"", strict, b"421 4.7.0 too many errors\r\n"])

    def __call__(self, session: Session, verb: str, line: str) -> Any:
        if verb == "EHLO":
            session.is_deaf = not self.calm and self._chance.random() < 0.02
        if verb in FAULTY and not self.calm and self._chance.random() < 0.3:
            return self._chance.choice(DOT_FAULTS if verb == "." else FAULTS)
        return Slow(0.1) if verb == "." else None


@row(
    "31",
    "mail-faults",
    "4xx, drops, half and stray replies, slow dots, too many connections; and kill -9 of the workers",
)
def mail_faults(run: Run) -> Result:
    """Every mail arrives; a second copy has a lost reply or a death for an excuse; the bytes never change."""
    number, kills = run.choose((1000, 40), (60, 2))
    pause = 0.4 if run.database == "sqlite" else 1.2
    moods = _Moods(random.Random(run.chance.random()))
    # Half of the connections that the three workers want.
    with SMTPServer(script=moods, behind=moods.behind, most=3) as server:
        config = _config(server, MAIL_RETRY_BASE=0.05, MAIL_RETRY_CAP=0.4, MAIL_TIMEOUT=2)
        with a_stage(run, **config) as stage:
            letters = _letters(number)
            jobs = _post(stage, letters)
            stage.start(3, serve_mail)
            settle(stage, 3)
            for _ in range(kills):
                time.sleep(pause * stage.chance.uniform(0.5, 1.5))
                stage.kill(stage.chance.choice(stage.children))
                stage.start(1, serve_mail)
            if not run.full:
                moods.calm, server.most = True, None
            states = stage.await_end(300)
            claimed = [job.recipients for job in jobs]
            settle(stage, 3)
            stage.stop()
    result = Result(done=f"{number} mails, {kills} kills, a third of all commands fail")
    _check_mails(result, server, letters, claimed, kills)
    result.figures["states"] = dict(states)
    return result


def _check_mails(result: Result, server: SMTPServer, letters: list[Message], claimed: list[Any], kills: int) -> None:
    copies: dict[str, list[Delivered]] = defaultdict(list)
    for delivered in server.mails:
        for address in delivered.recipients:
            copies[address].append(delivered)
    wanted = {f"r{n}@x.org" for n in range(len(letters))}
    expected = {letter.msgId: letter.as_bytes() + b"\r\n" for letter in letters}
    endings = Counter(str(one) for each in claimed for one in each.values())
    false = [a for each in claimed for a, one in each.items() if str(one).startswith("accepted") and a not in copies]
    # The last copy needs no excuse; one whose reply was lost has it.
    more = sum(sum(not one.reply_lost for one in found) - 1 for found in copies.values() if not found[-1].reply_lost)
    result.figures |= {
        "endings": dict(endings),
        "copies": len(server.mails),
        "second copies": sum(map(len, copies.values())) - len(copies),
        "of them after a death": more,
        "connections turned away": server.turned_away,
        "commands refused behind a message": server.behind_seen,
        "sessions that lost commands": sum(session.is_deaf for session in server.sessions),
    }
    result.expect("lost 0", wanted <= copies.keys())
    result.expect("false 'accepted' 0", not false)
    result.expect(f"copies too many <= {POOL} connections a kill", more <= POOL * kills)
    result.expect("the same bytes", all(expected.get(_message_id(d)) == d.data for d in server.mails))
    result.expect("no stray line", not server.bad_lines)


def _message_id(delivered: Delivered) -> str:
    return delivered.data.partition(b"Message-ID: ")[2].partition(b"\r\n")[0].decode()


# -- away --------------------------------------------------------------------------------------------------------------


@row("32", "mail-down", "the mail server hangs up, or says nothing at all, for two minutes each")
def mail_down(run: Run) -> Result:
    """Mails wait, other jobs do not, and few tries are made; when it is back, all is sent."""
    seconds, number = run.choose((120.0, 500), (3.0, 20))
    result = Result(done=f"{number} mails, away for {seconds:g} s in each way")
    with SMTPServer() as server, a_stage(run, **_config(server, MAIL_TIMEOUT=5)) as stage:
        stage.start(2, serve_mail)
        settle(stage, 2)
        for name, greeting in (("hangs up", Drop()), ("says nothing", Silence())):
            _outage(stage, server, result, name, greeting, seconds, number)
        result.weigh(stage.judge(), doubled=False)
        # Mails leave no evidence of that kind: the server has it.
        assert result.judgement is not None
        mails = set(stage.finals()) - {e.uid for e in stage.journal()}
        result.judgement.lost = [uid for uid in result.judgement.lost if uid.split()[0] not in mails]
        result.checks["lost 0"] = not result.judgement.lost
        begun = executions_of(stage.journal()).values()
        accepted = {e.uid: e.at for e in stage.journal() if e.word == journal.ACCEPTED}
        waits = [one[0].began - accepted[one[0].uid] for one in begun if one[0].uid in accepted]
        stage.stop()
    p95 = percentile(waits, 0.95)
    result.figures["other jobs' start p95"] = f"{p95 * 1000:.0f} ms"
    result.expect("other jobs start within 1 s (p95)", p95 < run.within(1))
    result.expect("each mail once", len(server.mails) == 2 * number)
    return result


def _outage(
    stage: Stage, server: SMTPServer, result: Result, name: str, greeting: Any, seconds: float, number: int
) -> None:
    server.greeting, usual = greeting, server.greeting
    before, sent = len(server.sessions), len(server.mails)
    _post(stage, _letters(number))
    with stage.feeding(per_second=20):
        time.sleep(seconds)
    tries = len(server.sessions) - before
    server.greeting = usual
    back = time.monotonic()
    until(lambda: len(server.mails) >= sent + number, "all mails are sent", 120)
    drained = time.monotonic() - back
    result.figures |= {f"{name}: tries": tries, f"{name}: drained after": f"{drained:.1f} s"}
    # Two workers: each has its own patience.
    result.expect(f"{name}: <= 20 tries of each worker", tries <= 20 * 2)
    result.expect(f"{name}: drained <= 60 s", drained <= 60)


@row("33", "mail-login", "the mail server refuses the password")
def mail_login(run: Run) -> Result:
    """The mails stay, one alarm is given, and the server is not asked twice a minute."""
    seconds = run.choose(125.0, 3.0)
    count: Callable[[SMTPServer], int] = lambda server: sum(s.verbs.count("AUTH") for s in server.sessions)  # noqa: E731
    with SMTPServer(users={"ada": "right"}) as server:
        with a_stage(run, **_config(server, MAIL_USERNAME="ada", MAIL_PASSWORD="wrong")) as stage:
            stage.start(1, serve_mail)
            settle(stage, 1)
            _post(stage, _letters(50))
            time.sleep(seconds)
            logins = count(server)
            states = stage.states()
            said = stage.whole_logs()
            alarms = said.count(" ERROR ")
            server.users["ada"] = "wrong"
            began = time.monotonic()
            until(lambda: len(server.mails) >= 50, "all mails are sent", 120)
            drained = time.monotonic() - began
            stage.stop()
    result = Result(done=f"50 mails, {seconds:g} s with a wrong password, then the right one")
    result.figures |= {"logins": logins, "alarms": alarms, "states": dict(states), "drained after": f"{drained:.0f} s"}
    result.expect("<= 1 login a minute", logins <= 1 + seconds // 50)
    result.expect("one alarm", alarms == 1)
    result.expect("all mails stay", states["failed"] == 0 == states["succeeded"])
    result.expect("each mail once", len(server.mails) == 50)
    result.expect("the password is in no log", "wrong" not in said.replace("wrong password", ""))
    return result
