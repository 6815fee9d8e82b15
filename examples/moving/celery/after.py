"""The same with Flask-TaskWorker: ``flask --app after run`` and ``flask --app after tasks run``."""

from __future__ import annotations

import shops
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Cron, Job, Limit, Rate, Retry, current_job

task_worker = BackgroundTaskWorker()


@task_worker.task(retry=Retry(5, base=1, on=ConnectionError), limit=Limit("shops", rate=Rate(10, per=1)), keep=86_400)
def fetch_price(shop: str, article: str) -> dict[str, object]:
    return {"shop": shop, "cents": shops.ask(shop, article), "tries": current_job.attempt}


@task_worker.task(keep=86_400)
def cheapest(article: str) -> str:
    prices = [job.result() for job in current_job.parents]
    best = min(prices, key=lambda price: price["cents"])
    return f"{article}: {best['shop']}, {best['cents']} cents"


@task_worker.task(schedule=Cron("0 3 * * *"))
def watch() -> None:
    for article in shops.WATCHED:
        compare(article)


def compare(article: str) -> Job[str]:
    prices = fetch_price.enqueue_many((shop, article) for shop in shops.SHOPS)
    return cheapest.using(after=prices).enqueue(article)


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.update(config)
    task_worker.init_app(app)

    @app.post("/compare/<article>")
    def start(article: str):
        return {"job": compare(article).uid}, 202

    @app.get("/jobs/<uid>")
    def show(uid: str):
        job = task_worker.get_job(uid=uid)
        is_done = job.state == "succeeded"
        return {"ready": job.state.finished, "result": job.result() if is_done else None}

    return app
