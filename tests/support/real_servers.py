"""Real mail servers on loopback ports: Postfix, Exim and OpenSMTPD from Debian, smtp-server and Haraka from npm.

They are unpacked into a folder, not installed, so nothing is started but by a test: ``get_mail_servers.sh`` fills it.
The first three relay what they take to a server of the tests, the others keep it in a folder.
"""

from __future__ import annotations

import email
import email.policy
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.smtp_server import SMTPServer, wait_until

FOLDER = Path(os.environ.get("MAIL_SERVERS", "~/.cache/flask-taskworker/mail-servers")).expanduser()
_LIBRARIES = ("root/usr/lib/postfix", "root/usr/lib/x86_64-linux-gnu", "root/usr/lib/aarch64-linux-gnu")


@dataclass(frozen=True)
class Arrived:
    """A mail as it came out of a server."""

    recipients: list[str]
    data: bytes

    @property
    def subject(self) -> str:
        return str(email.message_from_bytes(self.data, policy=email.policy.default)["Subject"])


@dataclass(frozen=True)
class RealServer:
    """One that runs."""

    name: str
    port: int
    arrived: Callable[[], list[Arrived]]
    log: Path

    def recipients(self) -> list[str]:
        return [recipient for mail in self.arrived() for recipient in mail.recipients]


class NotThere(Exception):
    """The server is not in the folder, or needs rights that this process does not have."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(str(FOLDER / path) for path in _LIBRARIES)}


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _running(command: list[str], port: int, log: Path, **options: object) -> Iterator[None]:
    if not Path(command[0]).exists():
        raise NotThere(f"{command[0]} is missing. Run tests/support/get_mail_servers.sh.")
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, **{"env": _environment(), **options}
        )
    try:
        wait_until(lambda: _is_open(port) or process.poll() is not None, 20)
        assert process.poll() is None, log.read_text("utf-8", "replace")[-2000:]
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)


@contextmanager
def _relaying(name: str, start: Callable[[Path, int, int], object]) -> Iterator[RealServer]:
    if os.geteuid() != 0:
        raise NotThere(f"{name} starts as root only")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    folder.chmod(0o755)
    port = free_port()
    try:
        with SMTPServer() as sink, start(folder, port, sink.port):  # type: ignore[attr-defined]
            yield RealServer(
                name, port, lambda: [Arrived(m.recipients, m.data) for m in list(sink.mails)], folder / "log"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- Postfix

_POSTFIX_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


_POSTFIX_QUEUES = "incoming active deferred bounce defer corrupt hold flush trace saved maildrop public private"


@contextmanager
def postfix(**settings: object) -> Iterator[RealServer]:
    """Postfix with its defaults and *settings* of main.cf."""

    @contextmanager
    def start(folder: Path, port: int, sink: int) -> Iterator[None]:
        queue, data, config = folder / "queue", folder / "data", folder / "config"
        for path in (queue, data, config):
            path.mkdir()
        for name in _POSTFIX_QUEUES.split():
            (queue / name).mkdir(mode=0o700)
            shutil.chown(queue / name, "daemon")
        (queue / "pid").mkdir()
        shutil.chown(data, "daemon")
        root = FOLDER / "root"
        main = {
            "compatibility_level": "3.6",
            "queue_directory": queue,
            "data_directory": data,
            "daemon_directory": root / "usr/lib/postfix/sbin",
            "command_directory": root / "usr/sbin",
            "shlib_directory": root / "usr/lib/postfix",
            "meta_directory": root / "etc/postfix",
            "mail_owner": "daemon",
            "setgid_group": "mail",
            "import_environment": "MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH",
            "maillog_file": folder / "log",
            "maillog_file_prefixes": folder,
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "myhostname": "postfix.example",
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "mynetworks": "127.0.0.0/8",
            "relayhost": f"[127.0.0.1]:{sink}",
            "smtp_tls_security_level": "none",
            **settings,
        }
        (config / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in main.items()))
        (config / "master.cf").write_text(_POSTFIX_MASTER.format(port=port))
        master = str(root / "usr/lib/postfix/sbin/master")
        with _running([master, "-c", str(config), "-d"], port, folder / "output"):
            yield

    with _relaying("postfix", start) as server:
        yield server


# ---------------------------------------------------------------- Exim

_EXIM = """\
exim_path = {exim}
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
pid_file_path = {folder}/pid
primary_hostname = exim.example
exim_user = mail
exim_group = mail
never_users =
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
host_lookup =
rfc1413_hosts =
keep_environment = LD_LIBRARY_PATH
smtp_accept_queue_per_connection = 0
remote_max_parallel = 4
acl_smtp_rcpt = accept
acl_smtp_data = accept
{settings}
begin routers
sink:
  driver = manualroute
  transport = sink
  domains = *
  route_list = * 127.0.0.1
  self = send
begin transports
sink:
  driver = smtp
  port = {sink}
  allow_localhost = true
begin retry
* * F,1h,1s
begin acl
accept:
  accept
"""


@contextmanager
def exim(**settings: object) -> Iterator[RealServer]:
    """Exim, with *settings* of the main section."""

    @contextmanager
    def start(folder: Path, port: int, sink: int) -> Iterator[None]:
        binary = FOLDER / "root/usr/sbin/exim4"
        (folder / "spool").mkdir()
        for path in (folder, folder / "spool"):
            shutil.chown(path, "mail", "mail")
        extra = "".join(f"{name} = {value}\n" for name, value in {"smtp_accept_max": 100, **settings}.items())
        config = folder / "exim.conf"
        config.write_text(_EXIM.format(exim=binary, folder=folder, port=port, sink=sink, settings=extra))
        with _running([str(binary), "-bdf", "-q5s", "-C", str(config)], port, folder / "output"):
            yield

    with _relaying("exim", start) as server:
        yield server


# ---------------------------------------------------------------- OpenSMTPD

_OPENSMTPD = """\
{settings}
listen on 127.0.0.1 port {port}
action "sink" relay host smtp://127.0.0.1:{sink}
match from any for any action "sink"
"""


@contextmanager
def opensmtpd(settings: str = "") -> Iterator[RealServer]:
    """OpenSMTPD, with *settings* as further lines. Its spool is compiled in: one runs at a time."""

    @contextmanager
    def start(folder: Path, port: int, sink: int) -> Iterator[None]:
        if not Path("/var/spool/smtpd").is_dir():
            raise NotThere("/var/spool/smtpd is missing. Run tests/support/get_mail_servers.sh.")
        config = folder / "smtpd.conf"
        config.write_text(_OPENSMTPD.format(port=port, sink=sink, settings=settings))
        with Path("/var/spool/smtpd.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in Path("/var/spool/smtpd").glob("*"):
                shutil.rmtree(left, ignore_errors=True)
            with _running([str(FOLDER / "root/usr/sbin/smtpd"), "-d", "-f", str(config)], port, folder / "log"):
                yield

    with _relaying("opensmtpd", start) as server:
        yield server


# ---------------------------------------------------------------- from npm

_SMTP_SERVER = """\
const { SMTPServer } = require(process.argv[2] + '/node_modules/smtp-server');
const fs = require('fs');
const [port, folder, settings] = [Number(process.argv[3]), process.argv[4], JSON.parse(process.argv[5])];
let n = 0;
new SMTPServer({
  authOptional: true, disabledCommands: ['STARTTLS'], logger: false, ...settings,
  onData(stream, session, done) {
    const chunks = [];
    stream.on('data', c => chunks.push(c));
    stream.on('end', () => {
      const name = folder + '/' + process.pid + '-' + (n++);
      const recipients = session.envelope.rcptTo.map(r => r.address);
      fs.writeFileSync(name + '.tmp', JSON.stringify(recipients) + '\\n' + Buffer.concat(chunks).toString('latin1'));
      fs.renameSync(name + '.tmp', name + '.mail');
      done();
    });
  },
}).listen(port, '127.0.0.1');
"""

_HARAKA_KEEP = """\
const fs = require('fs');
let n = 0;
exports.hook_rcpt = (next) => next(OK);
exports.hook_queue = function (next, connection) {
  const t = connection.transaction;
  t.message_stream.get_data((data) => {
    const name = process.env.KEEP + '/' + process.pid + '-' + (n++);
    const recipients = t.rcpt_to.map(r => typeof r.address === 'function' ? r.address() : r.address);
    fs.writeFileSync(name + '.tmp', JSON.stringify(recipients) + '\\n' + data.toString('latin1'));
    fs.renameSync(name + '.tmp', name + '.mail');
    next(OK);
  });
};
"""


def _kept(folder: Path) -> list[Arrived]:
    found = []
    for file in sorted(folder.glob("*.mail")):
        head, _, body = file.read_bytes().partition(b"\n")
        found.append(Arrived(json.loads(head), body.decode("utf-8").encode("latin-1")))
    return found


@contextmanager
def _node(name: str, command: Callable[[Path, int], list[str]], **options: object) -> Iterator[RealServer]:
    node = shutil.which("node")
    if node is None or not (FOLDER / "npm/node_modules").exists():
        raise NotThere("node, or its packages, are missing. Run tests/support/get_mail_servers.sh.")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    (folder / "mails").mkdir()
    port = free_port()
    environment = {**os.environ, "KEEP": str(folder / "mails")}
    try:
        with _running([node, *command(folder, port)], port, folder / "log", env=environment, **options):
            yield RealServer(name, port, lambda: _kept(folder / "mails"), folder / "log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def smtp_server(**settings: object) -> Iterator[RealServer]:
    """The server of Nodemailer, with *settings* of its constructor."""

    def command(folder: Path, port: int) -> list[str]:
        script = folder / "server.js"
        script.write_text(_SMTP_SERVER)
        return [str(script), str(FOLDER / "npm"), str(port), str(folder / "mails"), json.dumps(settings)]

    with _node("smtp-server", command) as server:
        yield server


@contextmanager
def haraka() -> Iterator[RealServer]:
    """Haraka. It answers 503 to what is sent behind a message before its reply."""

    def command(folder: Path, port: int) -> list[str]:
        config, plugins = folder / "config", folder / "plugins"
        config.mkdir()
        plugins.mkdir()
        defaults = (FOLDER / "npm/node_modules/Haraka/config/connection.ini").read_text()
        (config / "smtp.ini").write_text(f"listen=127.0.0.1:{port}\nnodes=0\n")
        (config / "connection.ini").write_text(defaults)
        (config / "plugins").write_text("keep\n")
        (config / "me").write_text("haraka.example\n")
        (config / "host_list").write_text("example.com\n")
        (config / "loglevel").write_text("NOTICE\n")
        (plugins / "keep.js").write_text(_HARAKA_KEEP)
        return [str(FOLDER / "npm/node_modules/Haraka/bin/haraka"), "-c", str(folder)]

    with _node("haraka", command) as server:
        yield server


SERVERS = {"postfix": postfix, "exim": exim, "opensmtpd": opensmtpd, "smtp-server": smtp_server, "haraka": haraka}
