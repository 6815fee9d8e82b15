"""All rows, in their order. Importing this module enters them."""

from __future__ import annotations

import tests.chaos.disks
import tests.chaos.kills  # noqa: F401
from tests.chaos.row import ROWS

__all__ = ["ROWS"]
