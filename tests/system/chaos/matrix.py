"""All rows, in the order of the fault matrix."""

from __future__ import annotations

import importlib

from tests.system.chaos.row import ROWS

PARTS = (
    "kills",
    "clocks",
    "power",
    "disks",
    "servers",
    "deploys",
    "mails",
    "backlog",
    "keys",
    "limits",
    "loops",
    "flows",
    "steps",
)
"""The modules whose rows there are: each enters its own when it is imported."""

for part in PARTS:
    importlib.import_module(f"tests.system.chaos.{part}")

__all__ = ["ROWS"]
