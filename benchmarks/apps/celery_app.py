"""Celery with Redis as its broker and no result backend."""

from __future__ import annotations

from celery import Celery

from ..peer import this_tally, this_url

app = Celery("bench", broker=this_url())
count = this_tally().count


@app.task
def nothing() -> None:
    """No work."""
    count()
