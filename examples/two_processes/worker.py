"""The worker process: python examples/two_processes/worker.py

It claims jobs until Ctrl-C or SIGTERM; what runs then may end first. Start as many of them as you like: each job is
claimed once. ``flask --app examples/two_processes/web.py tasks run`` does the same with no file of its own.
"""

from __future__ import annotations

import logging

from shared import task_worker

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    task_worker.start()
