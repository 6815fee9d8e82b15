"""Prices of several shops, with Celery: ``celery -A before worker``, ``celery -A before beat`` and a Redis."""

from __future__ import annotations

import shops
from celery import Celery, Task, chord, shared_task
from celery.result import AsyncResult
from celery.schedules import crontab
from flask import Flask


@shared_task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=True, max_retries=4, rate_limit="10/s")
def fetch_price(self: Task, shop: str, article: str) -> dict[str, object]:
    return {"shop": shop, "cents": shops.ask(shop, article), "tries": self.request.retries + 1}


@shared_task
def cheapest(prices: list[dict[str, object]], article: str) -> str:
    best = min(prices, key=lambda price: price["cents"])
    return f"{article}: {best['shop']}, {best['cents']} cents"


@shared_task
def watch() -> None:
    for article in shops.WATCHED:
        compare(article)


def compare(article: str) -> AsyncResult:
    return chord(fetch_price.s(shop, article) for shop in shops.SHOPS)(cheapest.s(article))


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        CELERY={
            "broker_url": "redis://",
            "result_backend": "redis://",
            "result_expires": 86_400,
            "beat_schedule": {"watch": {"task": "before.watch", "schedule": crontab(hour=3, minute=0)}},
        }
    )
    app.config.update(config)

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery(app.name, task_cls=FlaskTask)
    celery.config_from_object(app.config["CELERY"])
    celery.set_default()
    app.extensions["celery"] = celery

    @app.post("/compare/<article>")
    def start(article: str):
        return {"job": compare(article).id}, 202

    @app.get("/jobs/<job_id>")
    def show(job_id: str):
        result = AsyncResult(job_id)
        return {"ready": result.ready(), "result": result.result if result.successful() else None}

    return app


if __name__ != "__main__":
    celery = create_app().extensions["celery"]  # what `celery -A before` looks for
