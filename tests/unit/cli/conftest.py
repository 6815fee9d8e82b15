"""The fixtures of the mail tests."""

from tests.support.mail_fixtures import certificates, flask_mail, make_mail, make_message, serve

__all__ = ["certificates", "flask_mail", "make_mail", "make_message", "serve"]
