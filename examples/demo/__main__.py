"""python -m examples.demo [--once] [--limit N] [--data DIR] [--port PORT]"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from flask_taskworker import TaskWorkerError

from . import summary
from .app import create_app, log_to
from .mail_server import receiving
from .page import DASHBOARD, create_page, listen, mount, serving
from .screen import BOLD, DIM, Screen, Stuck
from .stage import Stage, Step
from .steps import STEPS
from .tally import Tally
from .tasks import task_worker

FAILED, INTERRUPTED = 1, 130
LOG = "demo.log"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code says whether all was as it should be."""
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, end_like_ctrl_c)
    # Without a terminal, the page would only keep a script waiting.
    serves = sys.stdin.isatty() and not options.once
    with listen(options.port) if serves else nullcontext() as listener:
        data = options.data or Path(tempfile.mkdtemp(prefix="taskworker-demo-"))
        code = FAILED
        try:
            code = demonstrate(data, options, listener)
        except KeyboardInterrupt:
            code = INTERRUPTED
            print("\nInterrupted.")
        finally:
            logging.shutdown()
            # What failed may be looked into.
            if options.data is None and code != FAILED:
                shutil.rmtree(data, ignore_errors=True)
    return code


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Index the sources of Python's standard library with background jobs, and show how it goes.",
        epilog="On a terminal the demo serves its dashboard meanwhile and goes on until Ctrl-C. "
        "The exit code is 0 if every check held, 1 otherwise.",
    )
    parser.add_argument("--once", action="store_true", help="end after the summary; serve no pages")
    parser.add_argument("--limit", type=positive, metavar="N", help="index only about N files, and do less elsewhere")
    parser.add_argument("--data", type=new_directory, metavar="DIR", help="keep databases and log in DIR, new or empty")
    parser.add_argument("--port", type=int, help="port of the web pages (default: 5000, or any if that is in use)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def new_directory(text: str) -> Path:
    """Make the directory. Jobs of an earlier run would be found there and run again, so it must be empty."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be made: {error.strerror}") from error
    if any(path.iterdir()):
        raise argparse.ArgumentTypeError(f"{text!r} is not empty")
    return path


def end_like_ctrl_c(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def demonstrate(data: Path, options: argparse.Namespace, listener: socket.socket | None) -> int:
    """All of it, from the app to the summary."""
    log_to(data / LOG)
    make_room_for_syntax_trees()
    with receiving() as inbox:
        app = create_app(data, inbox.port)
        stage = Stage(data=data, limit=options.limit, screen=Screen(), tally=Tally(app), inbox=inbox)
        app.register_blueprint(create_page(stage))
        mount(app)
        with app.app_context(), serving(app, listener) as address:
            greet(stage, address, temporary=options.data is None)
            present(stage, address)
    return FAILED if stage.broken_promises() else 0


def present(stage: Stage, address: str | None) -> None:
    """The steps and the summary, while the worker works."""
    task_worker.start()
    try:
        run_steps(stage)
        summary.show(stage)
        if address:
            wait_for_ctrl_c(stage.screen, address)
    finally:
        task_worker.stop(timeout=1)


def make_room_for_syntax_trees() -> None:
    """They are millions of objects with no cycles among them: the garbage collector need not look so often.

    Those of the standard library's tests hold outdated syntax. Parsing it warns, which does not matter here.
    """
    gc.set_threshold(20_000, 20, 20)
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    warnings.filterwarnings("ignore", "invalid ", DeprecationWarning)


def greet(stage: Stage, address: str | None, *, temporary: bool) -> None:
    screen = stage.screen
    python = f"Python {platform.python_version()} on {os.cpu_count()} cores"
    screen.line(screen.paint("Flask-TaskWorker indexes Python's standard library", BOLD) + f"  ({python})")
    if address:
        screen.line(f"  dashboard  {screen.paint(address + DASHBOARD, BOLD)}  every job, while it runs and afterwards")
        screen.line(f"  index      {screen.paint(address, BOLD)}")
    kept = "removed at the end unless a check fails; --data DIR keeps it" if temporary else "stays"
    screen.line(f"  log        {stage.data / LOG}  {screen.paint(f'({kept})', DIM)}")
    screen.line()


def run_steps(stage: Stage) -> None:
    for step in STEPS:
        begun = time.perf_counter()
        before = len(stage.broken_promises())
        done = run_step(step, stage)
        good = len(stage.broken_promises()) == before
        seconds = time.perf_counter() - begun
        stage.screen.line(f"  {step.title:<10}{stage.screen.mark(good)} {done}  {seconds:.1f} s")


def run_step(step: Step, stage: Stage) -> str:
    try:
        return step.run(stage)
    except (Stuck, TaskWorkerError) as error:
        stage.check(f"{step.title} goes to its end", kept=False, seen=error)
        return str(error)


def wait_for_ctrl_c(screen: Screen, address: str) -> None:
    screen.line()
    dashboard = screen.paint(address + DASHBOARD, BOLD)
    screen.line(f"  The dashboard is at {dashboard} and the schedules go on. Ctrl-C ends the demo.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        screen.line()


if __name__ == "__main__":
    sys.exit(main())
