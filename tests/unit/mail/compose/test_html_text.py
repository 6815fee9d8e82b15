"""The plain text that is made from HTML."""

from __future__ import annotations

import time

import pytest

from flask_taskworker.mail.compose.html_text import text_of


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>Hello</p><p>Ada</p>", "Hello\n\nAda"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<b>bold</b> and\n   <i>plain</i>", "bold and plain"),
        ("5&nbsp;&lt;&nbsp;6 &amp; 7 &euro;", "5 < 6 & 7 \u20ac"),
        ("a < b and c > d", "a < b and c > d"),
        ('<a href="https://x.org/?a=1&amp;b=2">reset</a> it', "reset (https://x.org/?a=1&b=2) it"),
        ("<a href=#top>top</a>", "top"),
        ("<!DOCTYPE html><html><head><title>t</title><style>p > a {}</style></head><body>x", "x"),
        ("a<script>if (1 < 2) { alert('<b>') }</script>b", "ab"),
        ("a<!-- > <b>hidden</b> -->b", "ab"),
        ("<!--[if mso]><table><![endif]-->x", "x"),
        ("<table><tr><th>a</th><td>b</td></tr><tr><td>c</td></tr></table>", "a b\n\nc"),
        ("<img src='cid:1'>", ""),
        ("", ""),
        ("never closed <b", "never closed"),
    ],
)
def test_words_of_html(source: str, text: str) -> None:
    assert text_of(source) == text


@pytest.mark.parametrize("piece", ["<", "<!--", "<a href=", "<style>", "<p", "&", "\n", "</", "-->", "<a href='"])
def test_time_grows_with_the_length_alone(piece: str) -> None:
    began = time.process_time()
    text_of(piece * 100_000)
    assert time.process_time() - began < 5
