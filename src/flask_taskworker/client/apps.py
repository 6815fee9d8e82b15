"""What is given as a Flask app."""

from __future__ import annotations

from flask import Flask

from ..errors import ArgumentsError


def as_app(app: object) -> Flask:
    """The app that *app* is or stands for. Raises ArgumentsError for anything else."""
    if not isinstance(app, Flask):
        raise ArgumentsError(
            f"app is {app!r:.100}. Give the Flask app itself, as from Flask(__name__) or create_app()."
        )
    # current_app stands for another app elsewhere, and for none at all in a worker.
    found: Flask = getattr(app, "_get_current_object", lambda: app)()
    return found
