"""Keeps Alembic and Flask-Migrate from dropping the job tables that they find in the application's own database.

``context.configure(…, include_object=include_object)`` in ``migrations/env.py``. Pure; imports nothing of Alembic.
"""

from __future__ import annotations

from typing import Any

from .store.schema import metadata

_TABLES = frozenset(metadata.tables)


def include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """False for Flask-TaskWorker's tables and what belongs to them, True for everything else.

    Autogenerate would otherwise write a migration that drops them: they are in the database, and not in the models.
    """
    table = name if kind == "table" else getattr(getattr(item, "table", None), "name", None)
    return table not in _TABLES
