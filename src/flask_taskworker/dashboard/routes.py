"""What a page module tells the blueprint: its routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Route:
    """One address. *function* gets the View and what stands in the address, and returns a response.

    *arguments*: the query arguments that it knows beside ``format``; others are refused.
    """

    rule: str
    endpoint: str
    function: Callable[..., Any]
    methods: tuple[str, ...] = ("GET",)
    permission: str = "view"
    arguments: tuple[str, ...] = ()
