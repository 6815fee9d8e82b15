"""Real mail servers on loopback ports: Postfix, Exim and OpenSMTPD from Debian, smtp-server and Haraka from npm.

They are unpacked into a folder, not installed, so nothing is started but by a test: ``get_mail_servers.sh`` fills it.
The first three relay what they take to a server of the tests, the others keep it in a folder.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from tests.support.smtp_server import SMTPServer, wait_until

FOLDER = Path(os.environ.get("MAIL_SERVERS", "~/.cache/flask-taskworker/mail-servers")).expanduser()
_LIBRARIES = ("root/usr/lib/postfix", "root/usr/lib/x86_64-linux-gnu", "root/usr/lib/aarch64-linux-gnu")


@dataclass(frozen=True)
class Arrived:
    """A mail as it came out of a server."""

    recipients: list[str]
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server is to allow; each of them says it in its own way."""

    connections: int | None = None
    mails: int | None = None
    """In one connection."""

    recipients: int | None = None
    size: int | None = None
    rate: int | None = None
    """Mails a second."""

    greylisting: bool = False
    """Whether each recipient is refused once, for now."""

    patience: int | None = None
    """Seconds without a command until it hangs up."""

    tls: Path | None = None
    """A file with a certificate and its key. STARTTLS is then required, as is the login of Ada with "right"."""


NONE = Limits()


@dataclass(frozen=True)
class RealServer:
    """One that runs."""

    name: str
    port: int
    arrived: Callable[[], list[Arrived]]
    """What came out of it at the other end, where it was started to relay."""

    recipients: Callable[[], list[str]]
    """Of the mails that it took, by its own account."""


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
def _as_root(name: str, user: str) -> Iterator[Path]:
    """A folder for a server that starts as root and goes on as *user*."""
    if os.geteuid() != 0:
        raise NotThere(f"{name} starts as root only")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        shutil.chown(folder, user)
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _certificate(limits: Limits, folder: Path, user: str) -> Path | None:
    if limits.tls is None:
        return None
    file = folder / "tls.pem"
    shutil.copy(limits.tls, file)
    file.chmod(0o600)
    shutil.chown(file, user)
    return file


def _arrived(sink: SMTPServer) -> list[Arrived]:
    return [Arrived(mail.recipients, mail.data) for mail in list(sink.mails)]


class _Answers(socketserver.ThreadingTCPServer):
    """A service that Postfix asks, on a loopback port: *handle* gets the connection as a file."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handle: Callable[[BinaryIO], None]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with self.request.makefile("rwb", buffering=0) as connection, suppress(OSError):
                    handle(connection)

        super().__init__(("127.0.0.1", 0), Handler)
        self.place = f"inet:127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        with self:
            yield
            self.shutdown()


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


def _policy() -> Callable[[BinaryIO], None]:
    """Postfix's protocol for policies: each recipient is put off once."""
    seen: set[bytes] = set()

    def handle(connection: BinaryIO) -> None:
        recipient = b""
        while line := connection.readline():
            if line.startswith(b"recipient="):
                recipient = line
            elif line == b"\n":
                action = "DUNNO" if recipient in seen else "DEFER_IF_PERMIT 4.7.1 greylisted"
                seen.add(recipient)
                connection.write(f"action={action}\n\n".encode())

    return handle


def _dovecot(connection: BinaryIO) -> None:
    """Dovecot's protocol for logins, which Postfix speaks."""
    connection.write(b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t" + b"0" * 32 + b"\nDONE\n")
    while line := connection.readline():
        command, number, *fields = line.decode().rstrip("\n").split("\t")
        if command == "AUTH":
            given = base64.b64decode(fields[-1].removeprefix("resp="))
            word = "OK" if given == b"\0ada\0right" else "FAIL"
            connection.write(f"{word}\t{number}\tuser=ada\n".encode())


@contextmanager
def postfix(limits: Limits = NONE, *, relay: bool = True, **settings: object) -> Iterator[RealServer]:
    """Postfix with its defaults, *limits*, and *settings* of main.cf."""
    port = free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(_as_root("postfix", "daemon"))
        sink = stack.enter_context(SMTPServer())
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
            "relayhost": f"[127.0.0.1]:{sink.port}",
            "smtp_tls_security_level": "none",
            "smtpd_client_event_limit_exceptions": "",
            "smtpd_client_connection_count_limit": limits.connections or 50,
            "smtpd_client_message_rate_limit": limits.rate or 0,
            "anvil_rate_time_unit": "1s",
            "message_size_limit": limits.size or 10_240_000,
            "smtpd_recipient_limit": limits.recipients or 1000,
            "smtpd_timeout": f"{limits.patience or 300}s",
        }
        if limits.greylisting:
            policy = _Answers(_policy())
            stack.enter_context(policy.running())
            main["smtpd_recipient_restrictions"] = f"check_policy_service {policy.place}"
        if (certificate := _certificate(limits, folder, "root")) is not None:
            logins = _Answers(_dovecot)
            stack.enter_context(logins.running())
            main |= {
                "smtpd_tls_security_level": "encrypt",
                "smtpd_tls_cert_file": certificate,
                "smtpd_tls_key_file": certificate,
                "smtpd_sasl_auth_enable": "yes",
                "smtpd_sasl_type": "dovecot",
                "smtpd_sasl_path": logins.place,
                "smtpd_recipient_restrictions": "permit_sasl_authenticated, reject",
            }
        main |= settings
        (config / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in main.items()))
        (config / "master.cf").write_text(_POSTFIX_MASTER.format(port=port))
        master = str(root / "usr/lib/postfix/sbin/master")
        stack.enter_context(_running([master, "-c", str(config), "-d"], port, folder / "output"))
        yield RealServer(
            "postfix", port, lambda: _arrived(sink), lambda: [r for mail in list(sink.mails) for r in mail.recipients]
        )


# ---------------------------------------------------------------- Exim

_EXIM = """\
exim_path = {exim}
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
log_selector = +received_recipients
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
acl_smtp_mail = mail
acl_smtp_rcpt = rcpt
acl_smtp_data = data
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
mail:
{mail}
  accept
rcpt:
{rcpt}
  accept
data:
  accept
{authenticators}
"""
_EXIM_RATE = """\
  defer message = too fast
    ratelimit = {rate} / 1s / strict / per_mail"""
_EXIM_GREYLISTING = """\
  defer message = greylisted
    seen = -1s / key=$local_part"""
_EXIM_LOGIN = """\
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_advertise_condition = ${if def:tls_in_cipher}
  server_condition = ${if and{{eq{$auth2}{ada}}{eq{$auth3}{right}}}}
  server_set_id = $auth2"""
_EXIM_TOOK = re.compile(r" <= .* for (.+)")


@contextmanager
def exim(limits: Limits = NONE, *, relay: bool = True) -> Iterator[RealServer]:
    """Exim, with *limits*. It forks for each mail that it relays."""
    port = free_port()
    with _as_root("exim", "mail") as folder, SMTPServer() as sink:
        binary = FOLDER / "root/usr/sbin/exim4"
        (folder / "spool").mkdir()
        shutil.chown(folder / "spool", "mail", "mail")
        settings: dict[str, object] = {
            "smtp_accept_max": 100,
            "smtp_accept_max_per_host": limits.connections or 50,
            "smtp_accept_max_per_connection": limits.mails or 1000,
            "recipients_max": limits.recipients or 0,
            "message_size_limit": limits.size or "50M",
            "smtp_receive_timeout": f"{limits.patience or 300}s",
            "queue_only": str(not relay).lower(),
        }
        certificate = _certificate(limits, folder, "mail")
        if certificate is not None:
            settings |= {"tls_advertise_hosts": "*", "tls_certificate": certificate, "auth_advertise_hosts": "*"}
        log_in = "  require authenticated = *"
        config = folder / "exim.conf"
        config.write_text(
            _EXIM.format(
                exim=binary,
                folder=folder,
                port=port,
                sink=sink.port,
                settings="".join(f"{name} = {value}\n" for name, value in settings.items()),
                mail=_EXIM_RATE.format(rate=limits.rate) if limits.rate else log_in if certificate else "",
                rcpt=_EXIM_GREYLISTING if limits.greylisting else "",
                authenticators=_EXIM_LOGIN if certificate else "",
            )
        )

        def taken() -> list[str]:
            log = folder / "mainlog"
            lines = log.read_text().splitlines() if log.exists() else []
            return [word for line in lines if (match := _EXIM_TOOK.search(line)) for word in match[1].split()]

        with _running([str(binary), "-bdf", "-q5s", "-C", str(config)], port, folder / "output"):
            yield RealServer("exim", port, lambda: _arrived(sink), taken)


# ---------------------------------------------------------------- OpenSMTPD

_OPENSMTPD = """\
{settings}
proc "limits" "{python} -S {filter} {folder}" user root
filter "limits" proc "limits"
listen on 127.0.0.1 port {port} filter "limits"
action "sink" relay host smtp://127.0.0.1:{sink}
match from any for any action "sink"
"""


@contextmanager
def opensmtpd(limits: Limits = NONE, *, relay: bool = True) -> Iterator[RealServer]:
    """OpenSMTPD, with *limits* but for TLS. Its spool is compiled in: one runs at a time. It relays slowly."""
    if not Path("/var/spool/smtpd").is_dir():
        raise NotThere("/var/spool/smtpd is missing. Run tests/support/get_mail_servers.sh.")
    port = free_port()
    with _as_root("opensmtpd", "root") as folder, SMTPServer() as sink:
        settings = [
            f"smtp limit max-mails {limits.mails or 100}",
            f"smtp limit max-rcpt {limits.recipients or 1000}",
            f"smtp max-message-size {limits.size or 36_700_160}",
        ]
        config = folder / "smtpd.conf"
        config.write_text(
            _OPENSMTPD.format(
                settings="\n".join(settings),
                python=sys.executable,
                filter=Path(__file__).with_name("opensmtpd_filter.py"),
                folder=folder,
                port=port,
                sink=sink.port if relay else 1,
            )
        )
        (folder / "limits").write_text(json.dumps([limits.connections, limits.rate, limits.greylisting]))
        taken = folder / "taken"
        with Path("/var/spool/smtpd.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in Path("/var/spool/smtpd").glob("*"):
                shutil.rmtree(left, ignore_errors=True)
            with _running([str(FOLDER / "root/usr/sbin/smtpd"), "-d", "-f", str(config)], port, folder / "log"):
                yield RealServer(
                    "opensmtpd",
                    port,
                    lambda: _arrived(sink),
                    lambda: taken.read_text().split() if taken.exists() else [],
                )


# ---------------------------------------------------------------- from npm

_KEEP = """\
const fs = require('fs');
const limits = JSON.parse(process.env.LIMITS);
let n = 0, connections = 0, recent = [];
const seen = new Set();
exports.limits = limits;
exports.keep = (recipients, data) => {
  const name = process.env.KEEP + '/' + process.pid + '-' + (n++);
  fs.writeFileSync(name + '.tmp', JSON.stringify(recipients) + '\\n' + data.toString('latin1'));
  fs.renameSync(name + '.tmp', name + '.mail');
};
exports.connected = () => { connections++; return limits.connections && connections > limits.connections; };
exports.disconnected = () => { connections--; };
exports.isTooFast = () => {
  const now = Date.now();
  recent = recent.filter(at => now - at < 1000);
  if (limits.rate && recent.length >= limits.rate) return true;
  recent.push(now);
  return false;
};
exports.isNew = (address) => {
  if (!limits.greylisting || seen.has(address)) return false;
  seen.add(address);
  return true;
};
"""

_SMTP_SERVER = """\
const { SMTPServer } = require(process.argv[3] + '/node_modules/smtp-server');
const { limits, keep, isTooFast, isNew } = require('./keep');
const fs = require('fs');
const no = (code, text) => Object.assign(new Error(text), { responseCode: code });
const pem = limits.tls ? fs.readFileSync(limits.tls) : null;
new SMTPServer({
  logger: false,
  disabledCommands: pem ? [] : ['STARTTLS', 'AUTH'],
  key: pem, cert: pem, authOptional: !pem,
  maxClients: limits.connections || undefined,
  size: limits.size || undefined,
  socketTimeout: (limits.patience || 60) * 1000,
  onAuth: (auth, session, next) => (auth.username === 'ada' && auth.password === 'right'
    ? next(null, { user: 'ada' }) : next(no(535, '5.7.8 wrong'))),
  onMailFrom(address, session, next) {
    session.mails = (session.mails || 0) + 1;
    if (limits.mails && session.mails > limits.mails) {
      this.connections.forEach(c => c.session === session && (c.send(421, '4.7.0 too many mails'), c.close()));
      return;
    }
    next(isTooFast() ? no(450, '4.7.1 too fast') : null);
  },
  onRcptTo(address, session, next) {
    if (limits.recipients && session.envelope.rcptTo.length >= limits.recipients) {
      return next(no(452, '4.5.3 too many recipients'));
    }
    next(isNew(address.address) ? no(450, '4.7.1 greylisted') : null);
  },
  onData(stream, session, done) {
    const chunks = [];
    stream.on('data', c => chunks.push(c));
    stream.on('end', () => {
      if (stream.sizeExceeded) return done(no(552, '5.3.4 too large'));
      keep(session.envelope.rcptTo.map(r => r.address), Buffer.concat(chunks));
      done();
    });
  },
}).listen(Number(process.argv[2]), '127.0.0.1');
"""

_HARAKA_PLUGIN = """\
const DSN = require('haraka-dsn');
const { limits, keep, connected, disconnected, isTooFast, isNew } = require(process.env.KEEP + '/../keep');
exports.hook_connect = (next) => (connected() ? next(DENYSOFTDISCONNECT, 'too many connections') : next());
exports.hook_disconnect = (next) => { disconnected(); next(); };
exports.hook_mail = (next, connection) => {
  if (limits.tls && !connection.notes.auth_user) return next(DENY, 'log in first');
  if (limits.mails && connection.tran_count > limits.mails) return next(DENYSOFTDISCONNECT, 'too many mails');
  next(isTooFast() ? DENYSOFT : CONT, 'too fast');
};
exports.hook_rcpt = (next, connection, params) => {
  if (limits.recipients && connection.transaction.rcpt_to.length > limits.recipients) {
    return next(DENYSOFT, DSN.proto_too_many_rcpts('too many', 452));
  }
  next(isNew(params[0].address) ? DENYSOFT : OK, 'greylisted');
};
exports.hook_queue = (next, connection) => {
  const t = connection.transaction;
  t.message_stream.get_data((data) => {
    keep(t.rcpt_to.map(r => (typeof r.address === 'function' ? r.address() : r.address)), data);
    next(OK);
  });
};
exports.hook_queue_outbound = exports.hook_queue;  // of those who have logged in
"""


def _kept(folder: Path) -> list[Arrived]:
    found = []
    for file in sorted(folder.glob("*.mail")):
        head, _, body = file.read_bytes().partition(b"\n")
        found.append(Arrived(json.loads(head), body.decode("utf-8").encode("latin-1")))
    return found


@contextmanager
def _node(name: str, limits: Limits, command: Callable[[Path, int], list[str]]) -> Iterator[RealServer]:
    node = shutil.which("node")
    if node is None or not (FOLDER / "npm/node_modules").exists():
        raise NotThere("node, or its packages, are missing. Run tests/support/get_mail_servers.sh.")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    mails = folder / "mails"
    mails.mkdir()
    (folder / "keep.js").write_text(_KEEP)
    port = free_port()
    environment = {**os.environ, "KEEP": str(mails), "LIMITS": json.dumps(asdict(limits), default=str)}
    try:
        with _running([node, *command(folder, port)], port, folder / "log", env=environment):
            yield RealServer(
                name, port, lambda: _kept(mails), lambda: [r for mail in _kept(mails) for r in mail.recipients]
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def smtp_server(limits: Limits = NONE, *, relay: bool = True) -> Iterator[RealServer]:
    """The server of Nodemailer, with *limits*."""

    def command(folder: Path, port: int) -> list[str]:
        (folder / "server.js").write_text(_SMTP_SERVER)
        return [str(folder / "server.js"), str(port), str(FOLDER / "npm")]

    with _node("smtp-server", limits, command) as server:
        yield server


@contextmanager
def haraka(limits: Limits = NONE, *, relay: bool = True) -> Iterator[RealServer]:
    """Haraka, with *limits*. It answers 503 to what is sent behind a message before its reply."""

    def command(folder: Path, port: int) -> list[str]:
        config, plugins = folder / "config", folder / "plugins"
        config.mkdir()
        plugins.mkdir()
        defaults = (FOLDER / "npm/node_modules/Haraka/config/connection.ini").read_text()
        files = {
            "smtp.ini": f"listen=127.0.0.1:{port}\nnodes=0\ninactivity_timeout={limits.patience or 300}\n",
            "connection.ini": defaults.replace("bytes=26214400", f"bytes={limits.size or 26214400}"),
            "plugins": "keep\n",
            "me": "haraka.example\n",
            "host_list": "example.com\n",
            "loglevel": "NOTICE\n",
        }
        if limits.tls is not None:
            files |= {
                "plugins": "tls\nauth/flat_file\nkeep\n",
                "tls.ini": "key=tls_key.pem\ncert=tls_cert.pem\n",
                "tls_key.pem": limits.tls.read_text(),
                "tls_cert.pem": limits.tls.read_text(),
                "auth_flat_file.ini": "[core]\nmethods=PLAIN\nconstrain_sender=false\n[users]\nada=right\n",
            }
        for name, content in files.items():
            (config / name).write_text(content)
        (plugins / "keep.js").write_text(_HARAKA_PLUGIN)
        return [str(FOLDER / "npm/node_modules/Haraka/bin/haraka"), "-c", str(folder)]

    with _node("haraka", limits, command) as server:
        yield server


SERVERS = {"postfix": postfix, "exim": exim, "opensmtpd": opensmtpd, "smtp-server": smtp_server, "haraka": haraka}
