"""The application's own database: what the jobs have found. It has nothing to do with the one that holds the jobs.

Async jobs write it through aiosqlite, so that the event loop is free meanwhile; the page and the summary read it.
"""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import astuple
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite
from flask import current_app

from .parsing import FileFacts, Function

SCHEMA = """
CREATE TABLE file (name TEXT PRIMARY KEY, package TEXT, lines INT, functions INT, classes INT, documented INT);
CREATE TABLE broken (name TEXT PRIMARY KEY, package TEXT, error TEXT);
CREATE TABLE function (lines INT, file TEXT, name TEXT, line INT, PRIMARY KEY (file, line, name)) WITHOUT ROWID;
CREATE TABLE import (importer TEXT, module TEXT, PRIMARY KEY (importer, module)) WITHOUT ROWID;
CREATE TABLE report (fire_at TEXT, files INT, late_ms REAL);
"""

LOCK_TIMEOUT = 30
"""Seconds that one writer waits for another."""


class Totals(NamedTuple):
    """The whole index in numbers."""

    files: int
    broken: int
    packages: int
    lines: int
    functions: int
    classes: int
    documented: int


class Report(NamedTuple):
    """What the schedule's job noted: when it was to run, how many files were indexed, how late it ran."""

    fire_at: str
    files: int
    late_ms: float


def create(path: Path) -> None:
    """Make the tables, empty."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")  # so that the page reads while jobs write
        db.executescript(SCHEMA)


def path() -> Path:
    """Where the current app has its index."""
    index: Path = current_app.config["INDEX"]
    return index


# --- Writing, from async jobs -------------------------------------------------------------------------------------


async def add_files(package: str, facts: Sequence[FileFacts], broken: Mapping[str, str]) -> None:
    """Store files of a package in one transaction; *broken* says why others could not be parsed.

    Storing the same again changes nothing: a job may run twice.
    """
    files = [(f.file, package, f.lines, f.functions, f.classes, f.documented) for f in facts]
    functions = [astuple(function) for f in facts for function in f.longest]
    imports = {(package, module) for f in facts for module in f.imports}
    reasons = [(name, package, error) for name, error in broken.items()]
    async with aiosqlite.connect(path(), timeout=LOCK_TIMEOUT) as db:
        await db.executemany("INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?)", files)
        await db.executemany("INSERT OR REPLACE INTO function VALUES (?, ?, ?, ?)", functions)
        await db.executemany("INSERT OR REPLACE INTO import VALUES (?, ?)", imports)
        await db.executemany("INSERT OR REPLACE INTO broken VALUES (?, ?, ?)", reasons)
        await db.commit()


async def add_report(fire_at: str, late_ms: float) -> None:
    """Note how far the index has come."""
    async with aiosqlite.connect(path(), timeout=LOCK_TIMEOUT) as db:
        await db.execute("INSERT INTO report SELECT ?, count(*), ? FROM file", (fire_at, late_ms))
        await db.commit()


def forget_reports(before: datetime) -> int:
    """Delete the reports of times before *before*, and say how many there were. Called in a thread, so it may block."""
    with closing(sqlite3.connect(path(), timeout=LOCK_TIMEOUT)) as db, db:
        return db.execute("DELETE FROM report WHERE fire_at < ?", (before.isoformat(),)).rowcount


# --- Reading ------------------------------------------------------------------------------------------------------


def totals() -> Totals:
    [row] = select(
        "SELECT count(*), (SELECT count(*) FROM broken), count(DISTINCT package), ifnull(sum(lines), 0),"
        " ifnull(sum(functions), 0), ifnull(sum(classes), 0), ifnull(sum(documented), 0) FROM file"
    )
    return Totals._make(row)


def longest_functions(most: int) -> list[Function]:
    """The longest first."""
    rows = select("SELECT lines, file, name, line FROM function ORDER BY lines DESC, file, line LIMIT ?", most)
    return [Function(*row) for row in rows]


def most_imported(most: int) -> list[tuple[str, int]]:
    """Modules, and how many packages import each."""
    return select("SELECT module, count(*) FROM import GROUP BY module ORDER BY 2 DESC, 1 LIMIT ?", most)


def largest_packages(most: int) -> list[tuple[str, int, int, int]]:
    """Packages with their numbers of files, lines and definitions."""
    return select(
        "SELECT package, count(*), sum(lines), sum(functions + classes) FROM file"
        " GROUP BY package ORDER BY 3 DESC LIMIT ?",
        most,
    )


def broken() -> list[tuple[str, str]]:
    """Files that could not be parsed, and why."""
    return select("SELECT name, error FROM broken ORDER BY name")


def reports() -> list[Report]:
    """What the schedule's jobs noted, oldest first."""
    return [Report._make(row) for row in select("SELECT * FROM report ORDER BY fire_at")]


def as_csv() -> str:
    """All files that could be parsed, a line for each below the names of the columns."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("file", "package", "lines", "functions", "classes", "documented"))
    writer.writerows(select("SELECT * FROM file ORDER BY name"))
    return table.getvalue()


def file_names() -> list[str]:
    """Every file in the index, the broken ones too."""
    return [name for (name,) in select("SELECT name FROM file UNION ALL SELECT name FROM broken")]


def select(sql: str, *parameters: object) -> list[Any]:
    with closing(sqlite3.connect(path())) as db:
        return db.execute(sql, parameters).fetchall()
