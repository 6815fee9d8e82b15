"""All rows, in their order. Importing this module enters them."""

from __future__ import annotations

import tests.chaos.kills
import tests.chaos.clocks
import tests.chaos.power
import tests.chaos.disks
import tests.chaos.servers
import tests.chaos.deploys  # noqa: F401, I001 - in the order of the matrix
from tests.chaos.row import ROWS

__all__ = ["ROWS"]
