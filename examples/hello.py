from flask import Flask

from flask_taskworker import BackgroundTaskWorker

app = Flask(__name__)
app.config["TASKER_DASHBOARD_URL"] = "/tasks"  # the dashboard; in debug mode only this machine may open it
task_worker = BackgroundTaskWorker(app)


@task_worker.task
def add(x: int, y: int) -> int:
    return x + y


@app.get("/add/<int:x>/<int:y>")
def enqueue(x: int, y: int):
    job = add.enqueue(x, y)  # stored when this returns
    return {"job": job.id, "sum": job.result(timeout=5)}


task_worker.start()  # a thread beside the web application

if __name__ == "__main__":
    app.run(debug=True)
