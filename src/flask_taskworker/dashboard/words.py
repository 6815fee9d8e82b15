"""States, moments and periods as the pages write them. Pure: time is an argument."""

from __future__ import annotations

from markupsafe import Markup

from ..core.clock import from_ms
from ..core.words import counted, spoken, stamp
from ..store.rollups import Percentile

SHAPES = {
    "scheduled": "◷",
    "retrying": "↻",
    "held": "◌",
    "waiting": "⋯",
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
"""A state is a shape, a word and a colour, so that each of the three is enough to know it."""
_LOOKS = {
    # schedules
    "unreadable": ("warn", "cannot be read"),
    "late": ("late", "LATE"),
    "failing": ("failed", "failing"),
    "up": ("ok", "up"),
    "new": ("scheduled", "new"),
    "ended": ("cancelled", "ended"),
    # queues
    "idle": ("scheduled", "no worker yet"),
    "no worker": ("failed", "no worker"),
    "slow": ("late", "slow"),
    # limits
    "full": ("late", "full"),
    "closed": ("paused", "closed"),
    # workers
    "silent": ("warn", "silent"),
    "lost": ("failed", "LOST"),
    "draining": ("paused", "draining"),
    "left": ("cancelled", "left"),
    # mails and their recipients
    "undecided": ("warn", "held"),
    "partly refused": ("warn", "partly refused"),
    "orphaned": ("other", "without a job"),
    "waiting": ("scheduled", "waiting"),
    "accepted": ("ok", "accepted"),
    "deferred": ("retrying", "deferred"),
    "rejected": ("failed", "rejected"),
    "unknown": ("warn", "unknown"),
    # findings
    "warning": ("warn", "warning"),
    "error": ("failed", "error"),
}
_NOTHING = Markup('<span class="none">–</span>')


def state(name: str, word: str = "") -> Markup:
    """A state as shape, word and colour; *word* instead of its own."""
    look, own = _LOOKS.get(name, (name, name))
    return Markup('<span class="state {}"><span aria-hidden="true">{}</span> {}</span>').format(
        look if look in SHAPES else "other", SHAPES.get(look, "·"), word or own
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
    return _time(moment, f"{from_ms(moment):%H:%M:%S}", "clock") if moment else _NOTHING


def axis(moment: int, *, days: bool) -> Markup:
    """A moment under a chart: its time of day, or its day."""
    form, kind = ("%m-%d", "day") if days else ("%H:%M", "minute")
    return _time(moment, f"{from_ms(moment):{form}}", kind)


def _time(moment: int, text: str, kind: str) -> Markup:
    # Nothing here comes from a row but the number; escaping hundreds of them would take a third of a page's time.
    iso = f"{from_ms(moment):%Y-%m-%dT%H:%M:%S}.{moment % 1000:03}Z"
    return Markup(f'<time datetime="{iso}" title="{stamp(moment)}" data-{kind}>{text}</time>')


def took(period: float | Percentile | None) -> str:
    """A period in milliseconds; a dash where there is none."""
    if isinstance(period, Percentile):
        return f"{'> ' if period.at_least else ''}{spoken(round(period.ms))}"
    return "–" if period is None else spoken(round(period))


def number(value: int | None) -> str:
    """A count that stops at the most: "10,000+"; a dash where there is none."""
    return "–" if value is None else counted(value)


def plural(value: int, noun: str, nouns: str = "") -> str:
    """ "1 job", "2 jobs", "10,000+ jobs"; *nouns* where an s is not enough."""
    return f"{counted(value)} {noun if value == 1 else nouns or f'{noun}s'}"
