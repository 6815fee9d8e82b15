"""The mails that the demo sends. Making a message needs an app, sending it is for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flask import render_template

from flask_taskworker import Mail, Message

from . import index
from .parsing import Function

mail = Mail()

OWNER = "owner@example.org"
ATTACHED = "index.csv"


def reader(number: int) -> str:
    """The address of one of the readers, who are counted from 1."""
    return f"reader-{number}@example.org"


def make_report(figures: Sequence[tuple[str, str]]) -> Message:
    """What the demo found, as text and HTML, with the index attached."""
    content = {"figures": figures, "longest": index.longest_functions(10)}
    message = Message(
        "Python’s standard library, indexed",
        recipients=[OWNER],
        body=render_template("report.txt", **content),
        html=render_template("report.html", **content),
    )
    message.attach(ATTACHED, "text/csv", index.as_csv())
    return message


def make_batch(number: int, functions: Sequence[Function]) -> Iterator[Message]:
    """A message for each reader, about a function to look at. The first reader gets the index too."""
    for n in range(1, number + 1):
        message = about(functions[n % len(functions)], reader(n))
        if n == 1:
            message.attach(ATTACHED, "text/csv", index.as_csv())
        yield message


def about(function: Function, recipient: str) -> Message:
    place = f"{function.file}, line {function.line}"
    return Message(
        f"Have a look at {function.name}",
        recipients=[recipient],
        body=f"Dear {recipient},\n\n{function.name} in {place}, has {function.lines} lines.\n",
        html=f"<p>Dear {recipient},<p><b>{function.name}</b> in {place}, has {function.lines} lines.",
    )
