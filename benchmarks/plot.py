"""Bars as SVG, for the documentation: one group a kind of work, in the colours of the reader's theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LABEL, BAR, GAP = 720, 220, 18, 6
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1b1f24}.title{font-weight:600}.ours{fill:#0b5cad}.peer{fill:#8c959f}"
    ".floor{fill:none;stroke:#57606a}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#6cb6ff}"
    ".peer{fill:#6e7681}.floor{stroke:#9aa7b4}}"
)


def bars(groups: Mapping[str, Sequence[tuple[str, float]]], *, unit: str) -> str:
    """An SVG document. Names that begin with ``ours`` and ``floor`` are drawn apart from the peers'."""
    parts: list[str] = []
    y = 8
    for title, rows in groups.items():
        parts.append(f'<text class="title" x="0" y="{y + 14}">{escape(title)}</text>')
        y += 24
        largest = max(value for _, value in rows)
        for name, value in sorted(rows, key=lambda row: -row[1]):
            length = max(1.0, (WIDTH - LABEL - 110) * value / largest)
            kind = name.split(",")[0].split(":")[0]
            style = kind if kind in ("ours", "floor") else "peer"
            parts.append(f'<text x="0" y="{y + 14}">{escape(_shown(name))}</text>')
            parts.append(f'<rect class="{style}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}"/>')
            parts.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 14}">{value:,.0f} {escape(unit)}</text>')
            y += BAR + GAP
        y += 12
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">'
    return f"{head}<title>{escape(', '.join(groups))}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"


def _shown(name: str) -> str:
    return name.replace("ours", "Flask-TaskWorker").replace("floor: ", "bare loop, ")
