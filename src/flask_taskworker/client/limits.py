"""Limits that are changed at run time, for all processes: ``task_worker.limits["carrier"].set(running=2)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from ..core.limits import Limit, Numbers, Rate
from ..errors import DeclarationError
from ..store.admission import remove_limit, set_limit, stored_limits
from .client import Client


class LimitSetting:
    """One limit. Safe from any thread; every change is for all processes, and stays when they restart."""

    def __init__(self, client: Client, name: str, declared: Numbers | None) -> None:
        self._client = client
        self.name = name
        self._declared = declared

    def __repr__(self) -> str:
        return f"<Limit {self.name}>"

    @property
    def numbers(self) -> Numbers:
        """What holds now. Raises DeclarationError where no such limit is stored or declared."""
        self._client.store.driver.prepare()
        numbers = stored_limits(self._client.store.driver.read).get(self.name, self._declared)
        if numbers is None:
            raise DeclarationError(f"No limit is named {self.name!r}.")
        return numbers

    def set(self, *, running: int | None = None, rate: Rate | None = None, who: str = "code") -> Numbers:
        """Change what is given; the rest stays. Running jobs go on, and no new ones start above the limit."""
        if running is None and rate is None:
            raise DeclarationError(f"Nothing is given for {self.name!r}. Give it running=…, rate=Rate(…) or both.")
        given = Limit(running=running, rate=rate)._numbers
        changed = {name: value for name, value in asdict(given).items() if value is not None}
        numbers = replace(self.numbers, **changed)
        store = self._client.store
        store.driver.transaction(lambda run: set_limit(run, self.name, numbers, store.clock(), who=who))
        self._client.wake()
        return numbers

    def reset(self) -> None:
        """Back to what the code declares; to no limit where it declares none."""
        store, declared = self._client.store, self._declared
        store.driver.prepare()
        if declared is None:
            store.driver.transaction(lambda run: remove_limit(run, self.name, store.clock()))
        else:
            store.driver.transaction(lambda run: set_limit(run, self.name, declared, store.clock()))
        self._client.wake()


class LimitSettings(Mapping[str, LimitSetting]):
    """The limits by name, those of queues as "queue:mail"."""

    def __init__(self, client: Client, declared: Mapping[str, Numbers]) -> None:
        self._client = client
        self._declared = declared

    def __getitem__(self, name: str) -> LimitSetting:
        return LimitSetting(self._client, name, self._declared.get(name))

    def __iter__(self) -> Iterator[str]:
        self._client.store.driver.prepare()
        return iter(sorted({*stored_limits(self._client.store.driver.read), *self._declared}))

    def __len__(self) -> int:
        return len(list(iter(self)))
