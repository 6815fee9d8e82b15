"""Autogenerate leaves the job tables alone, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from flask_taskworker.alembic import include_object
from flask_taskworker.store.schema import metadata


@pytest.mark.parametrize("name", sorted(metadata.tables))
def test_our_tables_and_their_columns_are_left_out(name: str) -> None:
    table = metadata.tables[name]
    things: list[tuple[Any, str]] = [(table, "table"), *((column, "column") for column in table.columns)]
    assert not any(include_object(item, item.name, kind, True, None) for item, kind in things)


def test_other_tables_are_kept() -> None:
    table = Table("taskworker_of_mine", MetaData(), Column("job", Integer))
    assert include_object(table, table.name, "table", True, None)
    assert include_object(table.c.job, "job", "column", True, None)
