"""States, moments and periods as the pages write them. Pure: time is an argument."""

from __future__ import annotations

from markupsafe import Markup

from ..core.clock import from_ms
from ..core.rows import JobRecord
from ..core.words import counted, spoken
from ..store.rollups import Percentile

SHAPES = {
    "scheduled": "◷",
    "retrying": "↻",
    "ready": "○",
    "running": "●",
    "succeeded": "✓",
    "failed": "✕",
    "cancelled": "⊘",
    "discarded": "▽",
    "paused": "‖",
    "ok": "✓",
    "warn": "!",
    "late": "!",
}
"""A state is a shape, a word and a colour, so that none of the three is needed to tell it."""

_NOTHING = Markup('<span class="none">–</span>')


def state_of(record: JobRecord, discarded: int = 0) -> str:
    """The state as the pages name it: a scheduled job that has failed before is retrying."""
    if discarded:
        return "discarded"
    return "retrying" if record.state == "scheduled" and record.failures else record.state


def state(name: str, word: str = "") -> Markup:
    """A state as shape, word and colour; *word* instead of its name."""
    shape = SHAPES.get(name, "·")
    return Markup('<span class="state {}"><span aria-hidden="true">{}</span> {}</span>').format(
        name if name in SHAPES else "other", shape, word or name
    )


def ago(at: int | None, now: int) -> Markup:
    """A moment as "3 min ago" or "in 40 s", with the moment itself as its title."""
    if not at:
        return _NOTHING
    text = f"{spoken(now - at)} ago" if now >= at else f"in {spoken(at - now)}"
    return _time(at, text, "ago")


def age(since: int | None, now: int) -> Markup:
    """How long something has lasted: "41 s"."""
    return _time(since, spoken(max(0, now - since)), "age") if since else _NOTHING


def at(moment: int | None) -> Markup:
    """A moment as date and time."""
    return _time(moment, stamp(moment), "at") if moment else _NOTHING


def clock(moment: int | None) -> Markup:
    """A moment as the time of day."""
    return _time(moment, _utc(moment, "%H:%M:%S"), "clock") if moment else _NOTHING


def axis(moment: int, *, days: bool) -> Markup:
    """A moment under a chart: its time of day, or its day."""
    return _time(moment, _utc(moment, "%m-%d" if days else "%H:%M"), "day" if days else "minute")


def _time(moment: int, text: str, kind: str) -> Markup:
    # Nothing here comes from a row but the number; escaping hundreds of them would take a third of a page's time.
    return Markup(f'<time datetime="{iso(moment)}" title="{stamp(moment)}" data-{kind}>{text}</time>')


def took(milliseconds: float | None) -> str:
    """A period; a dash where there is none."""
    return "–" if milliseconds is None else spoken(round(milliseconds))


def percentile(found: Percentile | None) -> str:
    """A percentile as a period; "at least 5 min" where only a lower bound is known."""
    return "–" if found is None else f"{'at least ' if found.at_least else ''}{spoken(round(found.ms))}"


def number(value: int | None) -> str:
    """A count that stops at the most: "10,000+"; a dash where there is none."""
    return "–" if value is None else counted(value)


def plural(value: int, noun: str, nouns: str = "") -> str:
    """ "1 job", "2 jobs", "10,000+ jobs"; *nouns* where an s is not enough."""
    return f"{counted(value)} {noun if value == 1 else nouns or f'{noun}s'}"


def stamp(moment: int) -> str:
    """A stored moment: "2026-05-01 12:00:00 UTC"."""
    return _utc(moment, "%Y-%m-%d %H:%M:%S UTC")


def iso(moment: int) -> str:
    """A stored moment in ISO 8601, in UTC."""
    return _utc(moment, "%Y-%m-%dT%H:%M:%S") + f".{moment % 1000:03}Z"


def _utc(moment: int, form: str) -> str:
    try:
        return f"{from_ms(moment):{form}}"
    except OverflowError:
        # A damaged row must not take the page with it.
        return "?"
