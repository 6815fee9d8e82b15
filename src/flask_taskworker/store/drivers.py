"""Which driver a configuration names."""

from __future__ import annotations

from pathlib import Path

from ..core.config import TaskWorkerConfig
from ..errors import ConfigError
from .driver import Driver
from .sqlite.driver import SqliteDriver


def make_driver(config: TaskWorkerConfig) -> Driver:
    """The driver that the configuration names."""
    if config.driver == "sqlite":
        path = Path(config.database_uri.database or "")
        return SqliteDriver(path, durability=config.durability, lock_timeout=config.lock_timeout)
    try:
        from .postgresql.driver import PostgresqlDriver
    except ModuleNotFoundError as error:
        raise ConfigError(
            "TASKER_DRIVER = 'postgresql' needs psycopg 3. Install it: pip install 'Flask-TaskWorker[postgres-binary]'"
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"TASKER_DRIVER = 'postgresql' needs psycopg 3, which cannot be loaded: {' '.join(str(error).split())}. "
            "Install PostgreSQL's client library libpq, or have one with it: pip install 'psycopg[binary]'"
        ) from error
    return PostgresqlDriver(config.database_uri, listen=config.listen)
