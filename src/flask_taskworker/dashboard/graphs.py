"""Graphs of jobs as SVG, made here. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.browse import Graph

_WIDE, _HIGH, _GAP, _NEXT = 120, 28, 14, 60
"""A box, the space below it, and that to the next column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One job."""

    id: int
    state: str
    x: int
    y: int
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Where everything is."""

    boxes: tuple[Box, ...]
    lines: tuple[tuple[int, int, int, int], ...]
    width: int
    height: int
    box: tuple[int, int] = (_WIDE, _HIGH)


def drawing(graph: Graph, current: int) -> Drawing:
    """Parents to the left of their children."""
    columns: dict[int, int] = {}
    # A parent has a smaller number than its children.
    for job_id in sorted(graph.jobs):
        columns[job_id] = 1 + max(
            (columns[p] for p, child in graph.edges if child == job_id and p in columns), default=-1
        )
    rows: dict[int, int] = {}
    boxes = {}
    for job_id, column in columns.items():
        row = rows[column] = rows.get(column, -1) + 1
        x, y = column * (_WIDE + _NEXT) + 1, row * (_HIGH + _GAP) + 1
        state = graph.jobs[job_id].record.state
        boxes[job_id] = Box(id=job_id, state=state, x=x, y=y, current=job_id == current)
    lines = tuple(
        (boxes[p].x + _WIDE, boxes[p].y + _HIGH // 2, boxes[c].x, boxes[c].y + _HIGH // 2)
        for p, c in sorted(graph.edges)
        if p in boxes and c in boxes
    )
    width = (max(columns.values()) + 1) * (_WIDE + _NEXT) - _NEXT + 2
    height = (max(rows.values()) + 1) * (_HIGH + _GAP) - _GAP + 2
    return Drawing(boxes=tuple(boxes.values()), lines=lines, width=width, height=height)
