"""Where the tests keep files that no power cut has to spare."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_ENOUGH = 3 << 30


def in_memory() -> Path | None:
    """A folder in memory, or None where there is none, or too small a one, or one that runs no programs."""
    folder = Path("/dev/shm")
    if not folder.is_dir() or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return None
    return folder if shutil.disk_usage(folder).free > _ENOUGH else None
