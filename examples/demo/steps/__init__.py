"""The steps of the demo, in order. Each is a module with a function ``run(stage)``; a new one needs its line here."""

from __future__ import annotations

from ..stage import Step
from . import burst, crash, dashboard, indexing, mailing, mishaps, pick_up

STEPS = (
    Step(title="pick-up", run=pick_up.run),
    Step(title="indexing", run=indexing.run),
    Step(title="mishaps", run=mishaps.run),
    Step(title="crash", run=crash.run),
    Step(title="burst", run=burst.run),
    Step(title="mail", run=mailing.run),
    Step(title="dashboard", run=dashboard.run),
)
