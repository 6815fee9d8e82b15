"""gevent under a server that replaces threads only after it has imported the application.

Locks and threads made before would wait for those made later. So they are replaced when this package is imported, as
the application could do in its own first line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import FrameType


def patch_first() -> None:
    """Have gevent patch this process now, where its server is about to."""
    if _server_patches_later():
        import_module("gevent.monkey").patch_all()


def _server_patches_later() -> bool:
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None:
        return is_set(uwsgi.opt, "gevent-monkey-patch")
    # With --preload gunicorn's master imports the application, and the processes that it forks patch.
    return "gunicorn.workers.ggevent" in sys.modules and ("gunicorn.arbiter", "setup") in calls(sys._getframe())


def is_set(options: dict[str | bytes, object], name: str) -> bool:
    """Whether this option of uWSGI is on: keys and values are bytes or text, depending on its version."""
    value = options.get(name, options.get(name.encode(), False))
    return value not in (False, None, b"false", "false", b"0", "0", b"off", "off", b"no", "no")


def calls(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    """The stack as (module, function), innermost first."""
    while frame is not None:
        yield frame.f_globals.get("__name__", ""), frame.f_code.co_name
        frame = frame.f_back
