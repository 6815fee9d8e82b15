"""Where the jobs of a graph are drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from flask_taskworker.dashboard.graphs import drawing
from flask_taskworker.ops.browse import Graph


def test_parents_are_to_the_left_of_their_children() -> None:
    rows = {number: cast(Any, SimpleNamespace(record=SimpleNamespace(state="ready"))) for number in (1, 2, 3, 4)}
    edges = frozenset({(1, 2), (1, 3), (2, 4), (3, 4), (-7, 4), (4, 99)})
    drawn = drawing(Graph(edges=edges, jobs=rows), 4)
    x = {box.id: box.x for box in drawn.boxes}
    assert x[1] < x[2] == x[3] < x[4]
    assert len({(box.x, box.y) for box in drawn.boxes}) == 4
    assert [box.id for box in drawn.boxes if box.current] == [4]
    assert len(drawn.lines) == 4
    assert all(box.x < drawn.width and box.y < drawn.height for box in drawn.boxes)
