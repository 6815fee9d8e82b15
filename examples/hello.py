from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Cron

app = Flask(__name__)
app.config["TASKER_DASHBOARD_URL"] = "/tasks"  # the dashboard, private by default
task_worker = BackgroundTaskWorker(app)


@task_worker.task(retry=5)
def add(x: int, y: int) -> int:
    return x + y


@task_worker.task(schedule=Cron("0 3 * * *", timezone="Europe/Berlin"))
def nightly() -> None:
    app.logger.info("good night")


@app.get("/add/<int:x>/<int:y>")
def enqueue(x: int, y: int):
    job = add.enqueue(x, y)  # stored when this returns
    add.using(delay=60, unique=f"{x}+{y}").enqueue(x, y)  # again, but once a minute
    return {"job": job.id, "sum": job.result(timeout=5)}


task_worker.start()  # a thread beside the web application

if __name__ == "__main__":
    app.run(debug=True)
