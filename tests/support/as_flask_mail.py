"""A pytest plugin that gives our mail half to tests which import ``flask_mail``: Flask-Mail's own."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

if os.environ["REAL_FLASK_MAIL"]:
    import flask_mail  # what it changes for the whole process stays

    assert flask_mail.Mail.__module__ == "flask_mail"
    del sys.modules["flask_mail"]

from flask_taskworker.mail import install_as_flask_mail

install_as_flask_mail()


class _LazyString:
    def __init__(self, make: Any, *args: Any) -> None:
        self._make, self._args = make, args

    def __str__(self) -> str:
        return str(self._make(*self._args))


# What the tests of 0.9.1, which ran on Python 2 too, want beside it.
sys.modules["flask_mail"].PY3 = True  # type: ignore[attr-defined]
sys.modules["mock"] = mock
sys.modules["speaklater"] = SimpleNamespace(make_lazy_string=_LazyString)  # type: ignore[assignment]
