"""Fixtures of the mail tests."""

from __future__ import annotations

import email.charset
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from flask_taskworker.mail import Message


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
    """The real Flask-Mail; its change to the charsets of the whole process is taken back."""
    kept = dict(email.charset.CHARSETS)
    sys.modules.pop("flask_mail", None)
    import flask_mail

    yield flask_mail
    email.charset.CHARSETS.clear()
    email.charset.CHARSETS.update(kept)
    sys.modules.pop("flask_mail", None)
