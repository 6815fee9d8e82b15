"""Charts as SVG, made here: they print, need no script, and say in words what they show. Pure.

Colours come from classes: the pages allow no inline style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from . import words

KINDS = {"ok": "succeeded", "failed": "failed", "cancelled": "cancelled"}
"""The colours of a bar, from below, and what each stands for."""
_RUN_COLOURS = {"succeeded": "ok", "failed": "failed", "running": "run"}
_WIDTH, _HEIGHT = 720, 130

Bar = Mapping[str, int]
"""What ended in one slice of time, from ``start`` (epoch ms) on."""


def throughput(bars: Sequence[Bar], *, name: str, title: str, days: bool) -> Markup:
    """A bar chart over time with its key, and the same as a table. *name*: its id on the page."""
    most = max((sum(bar[state] for state in KINDS.values()) for bar in bars), default=0)
    body = Markup("").join(_layer(bars, kind, max(most, 1)) for kind in KINDS)
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img" aria-label="{title}"><title>{title}</title>'
        '<path class="grid" d="M0 {h}H{w}M0 .5H{w}"/>{body}</svg>'
    ).format(w=_WIDTH, h=_HEIGHT, title=f"{title}. At most {most:,} in one bar.", body=body)
    entries = Markup("").join(_LEGEND.format(kind, sum(bar[state] for bar in bars)) for kind, state in KINDS.items())
    marks = [bars[round(i * (len(bars) - 1) / 4)]["start"] for i in range(5)] if bars else []
    return Markup(
        '<figure><ul class="legend">{}<li>highest bar {:,}</li></ul>{}<div class="axis">{}</div>{}</figure>'
    ).format(entries, most, svg, Markup("").join(words.axis(at, days=days) for at in marks), _table(bars, name, title))


_LEGEND = Markup(
    '<li><svg class="key" viewBox="0 0 8 8" aria-hidden="true"><rect class="{0}" width="8" height="8"/></svg>'
    "{0} {1:,}</li>"
)


def _layer(bars: Sequence[Bar], kind: str, most: int) -> Markup:
    """The bars of one colour as one path: a tenth of what single rectangles would take."""
    width = _WIDTH / max(1, len(bars))
    lower = [KINDS[name] for name in list(KINDS)[: list(KINDS).index(kind)]]
    parts = []
    for i, bar in enumerate(bars):
        if value := bar[KINDS[kind]]:
            top = _HEIGHT - _HEIGHT * (sum(bar[state] for state in lower) + value) / most
            # One failure among thousands must be seen.
            height = max(_HEIGHT * value / most, 2.0)
            parts.append(f"M{i * width + 0.5:.1f} {max(0.0, top):.1f}h{width - 1:.1f}v{height:.1f}h-{width - 1:.1f}z")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(parts)) if parts else Markup("")


def _table(bars: Sequence[Bar], name: str, title: str) -> Markup:
    # Numbers only: see words._time.
    rows = Markup(
        "".join(
            f'<tr><th scope="row">{words.at(bar["start"])}</th>'
            + "".join(f'<td class="num">{bar[state]:,}</td>' for state in KINDS.values())
            + "</tr>"
            for bar in bars
            if any(bar[state] for state in KINDS.values())
        )
    )
    return Markup(
        '<details id="{}"><summary>View as table</summary><div class="scroll" tabindex="0"><table><caption>{}</caption>'
        '<thead><tr><th scope="col">From</th><th scope="col" class="num">ok</th><th scope="col" class="num">failed</th>'
        '<th scope="col" class="num">cancelled</th></tr></thead><tbody>{}</tbody></table></div></details>'
    ).format(f"{name}-table", f"{title}; times without any are left out", rows)


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


def runs(shown: Sequence[Mapping[str, Any]], most: int) -> Markup:
    """A bar for each of a schedule's last runs, at most *most*: its colour says how it ended, its height how long it
    took."""
    if not shown:
        return Markup("")
    oldest_first = list(reversed(shown))
    longest = max(run["took_ms"] or 0 for run in shown) or 1
    paths: dict[str, str] = {}
    for i, run in enumerate(oldest_first):
        height = 16 if run["state"] == "failed" else 4 + 12 * (run["took_ms"] or 0) / longest
        colour = _RUN_COLOURS.get(run["state"], "cancelled")
        paths[colour] = paths.get(colour, "") + f"M{i * 4} 16v-{height:.1f}h3V16z"
    bars = Markup("").join(Markup('<path class="{}" d="{}"/>').format(*path) for path in paths.items())
    told = ", ".join(f"{run['state']} {words.took(run['took_ms'])}".removesuffix(" –") for run in oldest_first)
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} 16" preserveAspectRatio="none" role="img"><title>{t}</title>{b}</svg>'
    ).format(w=most * 4, t=f"The last runs, oldest first: {told}", b=bars)


def meter(value: int, most: int, title: str) -> Markup:
    """How full something is."""
    share = min(1.0, value / most) if most else 0.0
    return Markup(
        '<svg class="meter" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{0}">'
        '<title>{0}</title><rect class="run" width="{1:.0f}" height="10"/></svg>'
    ).format(title, share * 100)
