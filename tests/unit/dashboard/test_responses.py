"""What every response of the dashboard gets."""

from __future__ import annotations

import gzip

from flask import Flask, Response

from flask_taskworker.dashboard.responses import HEADERS, finish

LONG = "<p>" + "text " * 400


def answer(body: str, *, status: int = 200, **headers: str) -> Response:
    with Flask("shop").test_request_context(headers={key.replace("_", "-"): value for key, value in headers.items()}):
        return finish(Response(body, status=status))


def test_headers_keep_strangers_out() -> None:
    response = answer("hello", status=404)
    assert {name: response.headers[name] for name in HEADERS} == HEADERS


def test_long_pages_are_compressed_for_browsers_that_take_it() -> None:
    packed = answer(LONG, Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.get_data()).decode() == LONG
    assert answer(LONG, Accept_Encoding="gzip;q=0").get_data(as_text=True) == LONG
    assert "Content-Encoding" not in answer("short", Accept_Encoding="gzip").headers


def test_page_that_differs_only_in_how_long_ago_is_not_sent_again() -> None:
    before = answer('<time datetime="2026-01-01">3 s ago</time>')
    etag = before.headers["ETag"]
    again = answer('<time datetime="2026-01-01">4 s ago</time>', If_None_Match=etag)
    assert again.status_code == 304
    assert answer('<time datetime="2026-01-02">3 s ago</time>', If_None_Match=etag).status_code == 200
