"""Steps of a job as its task sees them: what it need not do again when it runs again. Pure."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar, cast, overload

from ..errors import StepError

T = TypeVar("T")
Item = TypeVar("Item")


class HandedOver(BaseException):
    """The worker stops, and the job goes on in another one. Never an error: ``except Exception`` lets it pass."""


class Suspended(BaseException):
    """The job sleeps, or waits for a notice, and leaves its function: ``except Exception`` lets it pass."""

    def __init__(self, until: int) -> None:
        super().__init__("The job sleeps, or waits for a notice.")
        self.until = until
        """When it goes on at the latest, in epoch milliseconds."""


@dataclass(slots=True)
class StepsOfTry:
    """What one execution has to do with steps."""

    names: set[str] = field(default_factory=set)
    """Those that it has used."""
    stored: dict[str, str | None] | None = None
    """The results of earlier executions, as stored; None until they are read."""
    is_suspended: bool = False
    """Whether the function was to be left."""


class Cursor(Generic[T]):
    """How far a long loop of a job is. It is stored, and the loop goes on from there when the job runs again."""

    __slots__ = ("_amove", "_is_stopping", "_move", "position")

    def __init__(
        self,
        position: T,
        move: Callable[[T], None],
        amove: Callable[[T], Coroutine[Any, Any, None]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self.position: T = position
        """What was given to the last :meth:`move`, in whichever execution; the start before the first."""
        self._move = move
        self._amove = amove
        self._is_stopping = is_stopping

    def move(self, position: T) -> None:
        """Store how far the loop is: one commit, of the cursor's session where it has one.

        A worker that stops hands the job over here. Raises LeaseLost, JobCancelled, or StepError for a value that
        cannot be stored.
        """
        self._move(position)

    async def amove(self, position: T) -> None:
        """As :meth:`move`, in a coroutine."""
        await self._amove(position)

    @overload
    def over(
        self, items: Callable[[T], Iterable[Item]], *, key: Callable[[Item], T] | None = None, every: int = 1
    ) -> Iterator[Item]: ...
    @overload
    def over(self, items: Iterable[Item], *, every: int = 1) -> Iterator[Item]: ...
    def over(self, items: Any, *, key: Callable[[Any], T] | None = None, every: int = 1) -> Iterator[Any]:
        """The items that are not done yet; the cursor moves after each, or after every *every* of them.

        *items*: a function that gives those after a position, which is called again until it gives none; or an iterable
        that begins with the same items each time. The position after an item is ``key(item)``; without a key it is the
        number of items done.
        """
        if key is None and type(self.position) is not int:
            raise StepError("A cursor without key= counts its items, so start= must be a whole number. Give a key.")
        behind, since = self.position, 0
        while True:
            is_empty = True
            for item in items(behind) if callable(items) else islice(items, cast(int, behind), None):
                is_empty = False
                yield item
                behind = key(item) if key is not None else cast(T, cast(int, behind) + 1)
                since += 1
                if since >= every or self._is_stopping():
                    self.move(behind)
                    since = 0
            if is_empty or not callable(items):
                break
        if since:
            self.move(behind)
