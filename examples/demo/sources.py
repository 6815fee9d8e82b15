"""Which files to index: Python's standard library, and some that are broken on purpose."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BROKEN = {
    "no_colon.py": b"def function()\n    pass\n",
    "python2.py": b"print 'hello'\n",
    "unclosed.py": b"numbers = [1, 2, 3\n",
    "mixed_tabs.py": b"if True:\n        x = 1\n\ty = 2\n",
    "null_byte.py": b"x = '\0'\n",
    "no_such_encoding.py": b"# -*- coding: klingon -*-\n",
}
"""Files to plant. Parsing them must fail."""

# Python's own tests come with files that are not valid Python 3, each for a reason.
BROKEN_IN_LIBRARY = re.compile(r"\btests?/.*(bad|data/)")

FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
"""Folders within the library's that belong to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file to index."""

    package: str
    """The first folder of its path; "." for the library's root itself."""
    name: str
    """Its path from the library's root, for people."""
    path: Path

    @property
    def planted(self) -> bool:
        """Whether the demo made the file, so that its job must fail."""
        return self.package == "planted"

    @property
    def may_fail(self) -> bool:
        """Whether its job is expected to fail."""
        return self.planted or BROKEN_IN_LIBRARY.search(self.name) is not None


def find_sources(limit: int | None = None) -> list[Source]:
    """The files of the standard library, or about *limit* of them, taken evenly."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(python_files(root))
    step = 1 if limit is None else max(1, -(-len(paths) // limit))
    return [source_of(path, root) for path in paths[::step]]


def python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in FOREIGN]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def plant_broken(directory: Path) -> list[Source]:
    """Write the broken files into *directory*/planted."""
    planted = directory / "planted"
    planted.mkdir()
    for name, content in BROKEN.items():
        (planted / name).write_bytes(content)
    return [source_of(planted / name, directory) for name in BROKEN]


def source_of(path: Path, root: Path) -> Source:
    name = path.relative_to(root)
    return Source(package=name.parts[0] if len(name.parts) > 1 else ".", name=name.as_posix(), path=path)
