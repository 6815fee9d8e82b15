"""Fixtures of the mail tests."""

from __future__ import annotations

import datetime as dt
import email.charset
import ipaddress
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flask import Flask

from flask_taskworker.mail import Mail, Message
from tests.support.smtp_server import SMTPServer


@pytest.fixture
def make_message() -> Callable[..., Message]:
    """A message that can be sent; keyword arguments replace its fields."""

    def make(**fields: Any) -> Message:
        defaults: dict[str, Any] = {
            "subject": "hello",
            "sender": "from@example.com",
            "recipients": ["to@example.com"],
            "body": "text",
            "date": 1_700_000_000.0,
        }
        return Message(**{**defaults, **fields})

    return make


@pytest.fixture
def flask_mail() -> Iterator[ModuleType]:
    """The real Flask-Mail; its change to the charsets of the whole process is undone."""
    kept = dict(email.charset.CHARSETS)
    sys.modules.pop("flask_mail", None)
    import flask_mail

    yield flask_mail
    email.charset.CHARSETS.clear()
    email.charset.CHARSETS.update(kept)
    sys.modules.pop("flask_mail", None)


@pytest.fixture
def serve() -> Iterator[Callable[..., SMTPServer]]:
    """Start SMTP servers; arguments as for SMTPServer. They end with the test."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(SMTPServer(**options))


@pytest.fixture
def make_mail(make_app: Callable[..., Flask]) -> Iterator[Callable[..., Mail]]:
    """A Mail of an app that sends to a server; keyword arguments are configuration. Its app's context is pushed."""
    with ExitStack() as contexts:

        def make(server: SMTPServer | None = None, **config: Any) -> Mail:
            defaults = {"MAIL_DEFAULT_SENDER": "from@example.com", "MAIL_PORT": server.port if server else 9}
            app = make_app(**{**defaults, **config})
            mail = Mail(app)
            contexts.enter_context(app.app_context())
            return mail

        yield make


_SIGNS_CERTIFICATES = x509.KeyUsage(
    **dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True),
    **dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "encipher_only", "decipher_only"),
        ),
        False,
    ),
)


class Certificates:
    """A certificate authority and what it signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        authority = self._build(self._name, self._key, days=10, authority=True)
        self.cafile = str(folder / "ca.pem")
        Path(self.cafile).write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    def server(self, host: str = "127.0.0.1", *, days: int = 10, self_signed: bool = False) -> ssl.SSLContext:
        """A server's context with a certificate for *host* that is valid until *days* from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._build(name, key, days=days, host=host, self_signed=self_signed)
        file = self.folder / f"{host}-{days}-{self_signed}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context

    def _build(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: int,
        host: str | None = None,
        authority: bool = False,
        self_signed: bool = False,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=20))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            # Python 3.13 wants both.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((key if self_signed else self._key).public_key()),
                critical=False,
            )
        )
        if authority:
            builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        if host is not None:
            is_address = host.replace(".", "").isdigit()
            alternative = x509.IPAddress(ipaddress.ip_address(host)) if is_address else x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return builder.sign(key if self_signed else self._key, hashes.SHA256())


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))
