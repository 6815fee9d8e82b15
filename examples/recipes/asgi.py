"""The same application under an ASGI server, such as uvicorn."""

from __future__ import annotations

from asgiref.wsgi import WsgiToAsgi
from wsgi import app as flask_app

app = WsgiToAsgi(flask_app)
