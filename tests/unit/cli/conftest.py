"""The fixtures of the tests of commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mail_fixtures import certificates, flask_mail, make_mail, make_message, serve
from tests.system.cli.test_run import Shop as ProcessShop

__all__ = ["certificates", "flask_mail", "make_mail", "make_message", "serve"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[ProcessShop]:
    shop = ProcessShop(tmp_path)
    yield shop
    shop.close()
