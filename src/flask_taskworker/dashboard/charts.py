"""Charts as SVG, made here: they print, need no script, and say in words what they show. Pure.

Colours come from classes: the pages allow no inline style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from . import words

KINDS = ("ok", "failed", "cancelled")
_WIDTH, _HEIGHT = 720, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What ended in one slice of time."""

    start: int
    """Epoch milliseconds."""
    ok: int
    failed: int
    cancelled: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.ok + self.failed + self.cancelled


def throughput(bars: Sequence[Bar], *, name: str, title: str, days: bool) -> Markup:
    """A bar chart over time with its key, and the same as a table. *name*: its id on the page."""
    most = max((bar.total for bar in bars), default=0)
    body = Markup("").join(_layer(bars, kind, max(most, 1)) for kind in KINDS)
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" aria-label="{title}"><title>{title}</title>'
        '<path class="grid" d="M0 {h}H{w}M0 .5H{w}"/>{body}</svg>'
    ).format(w=_WIDTH, h=_HEIGHT, title=f"{title}. At most {most:,} in one bar.", body=body)
    return Markup('<figure>{}{}<div class="axis">{}</div>{}</figure>').format(
        _legend(bars, most), svg, _axis(bars, days=days), _table(bars, name, title)
    )


def _layer(bars: Sequence[Bar], kind: str, most: int) -> Markup:
    """The bars of one colour as one path: a tenth of what single rectangles would take."""
    width = _WIDTH / max(1, len(bars))
    parts = []
    for i, bar in enumerate(bars):
        value = getattr(bar, kind)
        below = sum(getattr(bar, lower) for lower in KINDS[: KINDS.index(kind)])
        if value:
            top = _HEIGHT - _HEIGHT * (below + value) / most
            # One failure among thousands must be seen.
            height = max(_HEIGHT * value / most, 2.0)
            parts.append(f"M{i * width + 0.5:.1f} {max(0.0, top):.1f}h{width - 1:.1f}v{height:.1f}h-{width - 1:.1f}z")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(parts)) if parts else Markup("")


_LEGEND = Markup(
    '<li><svg class="key" viewBox="0 0 8 8" aria-hidden="true"><rect class="{0}" width="8" height="8"/></svg>'
    "{0} {1:,}</li>"
)


def _legend(bars: Sequence[Bar], most: int) -> Markup:
    entries = [_LEGEND.format(kind, sum(getattr(bar, kind) for bar in bars)) for kind in KINDS]
    return Markup('<ul class="legend">{}<li>highest bar {:,}</li></ul>').format(Markup("").join(entries), most)


def _axis(bars: Sequence[Bar], *, days: bool) -> Markup:
    marks = [bars[round(i * (len(bars) - 1) / 4)].start for i in range(5)] if bars else []
    return Markup("").join(words.axis(mark, days=days) for mark in marks)


def _table(bars: Sequence[Bar], name: str, title: str) -> Markup:
    rows = Markup("").join(_table_row(bar) for bar in bars if bar.total)
    return Markup(
        '<details id="{}"><summary>View as table</summary><div class="scroll" tabindex="0"><table><caption>{}</caption>'
        '<thead><tr><th scope="col">From</th><th scope="col" class="num">ok</th><th scope="col" class="num">failed</th>'
        '<th scope="col" class="num">cancelled</th></tr></thead><tbody>{}</tbody></table></div></details>'
    ).format(f"{name}-table", f"{title}; times without any are left out", rows)


def _table_row(bar: Bar) -> Markup:
    # Numbers only: see words._time.
    cells = "".join(f'<td class="num">{value:,}</td>' for value in (bar.ok, bar.failed, bar.cancelled))
    return Markup(f'<tr><th scope="row">{words.at(bar.start)}</th>{cells}</tr>')


def sparkline(values: Sequence[float], title: str, *, kind: str = "run") -> Markup:
    """A tiny bar chart; its title says the values."""
    most = max(values, default=0) or 1
    width = 60 / max(1, len(values))
    path = "".join(
        f"M{i * width:.1f} 16h{width - 1:.1f}v-{max(1.0, 16 * value / most):.1f}h-{width - 1:.1f}z"
        for i, value in enumerate(values)
        if value
    )
    told = f"{title}: {', '.join(f'{value:,.10g}' for value in values)}"
    return Markup(
        '<svg class="spark" viewBox="0 0 60 16" preserveAspectRatio="none" role="img" aria-label="{0}">'
        '<title>{0}</title><path class="{1}" d="{2}"/></svg>'
    ).format(told, kind, path)


def meter(value: int, most: int, title: str) -> Markup:
    """How full something is."""
    share = min(1.0, value / most) if most else 0.0
    return Markup(
        '<svg class="meter" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{0}">'
        '<title>{0}</title><rect class="run" width="{1:.0f}" height="10"/></svg>'
    ).format(escape(title), share * 100)
