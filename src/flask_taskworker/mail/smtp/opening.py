"""Opening a connection to a mail server, and what is raised where that fails."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl

import aiosmtplib
from aiosmtplib.response import SMTPResponse

from ...core.loggers import Logger, get_logger
from ..errors import (
    AuthenticationFailed,
    CertificateError,
    ConnectError,
    ConnectionRefused,
    ConnectTimeout,
    HeloRefused,
    HostNotFound,
    MailError,
    NotOffered,
    ServerDisconnected,
    ServerTimeout,
)
from .pipelining import PipeliningSMTP
from .server import Server
from .transaction import reply_of

log: Logger = get_logger("mail")

_IMPLICIT_TLS_PORT = 465


async def connect(server: Server) -> PipeliningSMTP:
    """Connect, start TLS and log in as *server* says.

    Raises ConnectError and its kinds, NotOffered, HeloRefused, AuthenticationFailed or ServerDisconnected, each with
    ``of_transport``; whatever else goes wrong on the way becomes a ConnectError.
    """
    client: PipeliningSMTP | None = None
    act = "connect to"
    try:
        client = PipeliningSMTP(
            trace=server.trace,
            hostname=server.hostname,
            port=server.port,
            timeout=server.timeout,
            use_tls=server.use_ssl,
            # Never None: aiosmtplib would start TLS by itself, and fail for a self-signed server without need.
            start_tls=server.use_tls,
            local_hostname=await server.own_name(),
            tls_context=await server.tls_context(),
        )
        await client.connect()
        act = "greet"
        if client.is_ehlo_or_helo_needed:
            try:
                await client.ehlo()
            except aiosmtplib.SMTPHeloError:
                await client.helo()
        act = "log in to"
        if server.username and server.password:
            if not client.get_transport_info("sslcontext") and not _is_loopback(server.hostname):
                log.warning("logging in to %s without TLS: the password can be read on the way", server)
            await client.login(server.username, server.password)
        return client
    except Exception as error:  # noqa: BLE001 — a setting changed at run time may break anything in there
        # Raised below, without the cause: the frames of its traceback hold the password.
        failure = _connect_error(error, server) if act == "connect to" else _dialogue_error(error, server, act)
        abort(client)
    except BaseException:
        abort(client)
        raise
    failure.of_transport = True
    raise failure


def abort(client: PipeliningSMTP | None) -> None:
    """Close at once, without goodbye."""
    if client is not None:
        if client.protocol is not None and client.protocol.transport is not None:
            client.protocol.transport.abort()  # type: ignore[attr-defined]
        client.close()


def _is_loopback(hostname: str) -> bool:
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return hostname == "localhost"


def _connect_error(error: Exception, server: Server) -> MailError:
    cause = error.__cause__ or error
    shown = f"Cannot connect to {server}: {str(cause) or type(cause).__name__}."
    if isinstance(error, aiosmtplib.SMTPResponseException):
        code, text = reply_of(SMTPResponse(error.code, error.message)).code, _text(error)
        return ConnectError(f"{server} refused the connection: {code} {text}.", code, text)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return CertificateError(f"{shown} {CertificateError.__doc__}")
    if isinstance(cause, ssl.SSLError) and server.use_ssl:
        remedy = "If it wants STARTTLS there, as port 587 does, set MAIL_USE_TLS instead of MAIL_USE_SSL."
        return ConnectError(f"{shown} Does it speak TLS on that port from the first byte (MAIL_USE_SSL)? {remedy}")
    if isinstance(error, TimeoutError):
        is_silent = server.port == _IMPLICIT_TLS_PORT and not server.use_ssl
        remedy = " Port 465 is for TLS from the first byte: set MAIL_USE_SSL." if is_silent else ""
        return ConnectTimeout(f"{server} did not answer within {server.timeout:g} s (MAIL_TIMEOUT).{remedy}")
    if isinstance(cause, socket.gaierror):
        return _with_errno(HostNotFound(shown), cause)
    # asyncio joins the errors of several addresses into one without a number.
    if isinstance(cause, OSError) and f"[Errno {errno.ECONNREFUSED}]" in f"[Errno {cause.errno}] {cause}":
        return _with_errno(ConnectionRefused(f"{shown} {ConnectionRefused.__doc__}"), cause)
    if isinstance(error, aiosmtplib.SMTPConnectError | OSError):
        return ConnectError(shown)
    return _dialogue_error(error, server, "connect to")


def _with_errno(error: ConnectError, cause: OSError) -> ConnectError:
    error.errno, error.strerror = cause.errno or errno.ECONNREFUSED, cause.strerror
    return error


def _dialogue_error(error: Exception, server: Server, act: str) -> MailError:
    match error:
        case aiosmtplib.SMTPAuthenticationError():
            text = _text(error)
            return AuthenticationFailed(error.code, text, f"{server} refused to log us in: {error.code} {text}.")
        case aiosmtplib.SMTPHeloError():
            return HeloRefused(error.code, _text(error))
        case aiosmtplib.SMTPResponseException():
            text = _text(error)
            return ConnectError(f"Cannot {act} {server}: {error.code} {text}.", error.code, text)
        case aiosmtplib.SMTPTimeoutError():
            return ServerTimeout(f"{server} did not answer within {server.timeout:g} s (MAIL_TIMEOUT).")
        case aiosmtplib.SMTPServerDisconnected() | OSError():
            return ServerDisconnected(f"{server} closed the connection before the login.")
        case aiosmtplib.SMTPException():
            return NotOffered(f"Cannot {act} {server}: {error}")
    # A setting that was changed after the start, such as a number for a password. repr() could show it.
    return ConnectError(f"Cannot {act} {server}: {type(error).__name__}: {error}")


def _text(error: aiosmtplib.SMTPResponseException) -> str:
    return reply_of(SMTPResponse(error.code, error.message)).text
