"""Libraries that are loaded before a process: one moves its clock, one records what it writes to disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def compiler() -> str | None:
    """A C compiler, where there is one."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def built(name: str) -> Path:
    """The library of that name, compiled once for each state of its source."""
    source = HERE / f"{name}.c"
    program = compiler()
    assert program is not None, "no C compiler"
    mark = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = Path(tempfile.gettempdir(), f"chaos-{os.getuid()}-{name}-{mark}.so")
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [program, "-O1", "-Wall", "-shared", "-fPIC", str(source), "-o", str(unfinished), "-ldl"]
        subprocess.run(command, check=True)
        unfinished.rename(library)
    return library
