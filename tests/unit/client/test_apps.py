"""What is given as a Flask app."""

from __future__ import annotations

import pytest
from flask import Flask, current_app

from flask_taskworker.client.apps import as_app
from flask_taskworker.errors import ArgumentsError


def test_the_current_app_stands_for_the_app_itself() -> None:
    app = Flask("shop")
    assert as_app(app) is app
    with app.app_context():
        assert as_app(current_app) is app


@pytest.mark.parametrize("given", ["shop", None, Flask])
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(ArgumentsError, match="Give the Flask app itself"):
        as_app(given)
