"""What Prometheus's own tool says of the metrics, and of the alerts and queries in examples/monitoring."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, JobFailed
from flask_taskworker.metrics import create_metrics
from tests.project.test_monitoring_examples import queries
from tests.support.waiting import wait_for

PROMTOOL = shutil.which("promtool")
EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMTOOL is None, reason="no promtool on PATH: it comes with Prometheus"),
]

ALERTS = """
rule_files: [rules.yml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - series: 'taskworker_queue_oldest_seconds{queue="mail"}'
        values: '0x3 301+15x40'
      - series: 'taskworker_queue_paused{queue="mail"}'
        values: '0x50'
      - series: 'taskworker_queue_oldest_seconds{queue="paused"}'
        values: '301+15x50'
      - series: 'taskworker_queue_paused{queue="paused"}'
        values: '1x50'
    alert_rule_test:
      - {eval_time: 2m, alertname: JobsWait, exp_alerts: []}
      - eval_time: 4m
        alertname: JobsWait
        exp_alerts:
          - exp_labels: {queue: mail}
            exp_annotations: {summary: "Jobs in the queue mail have waited for 8m 1s."}
  - interval: 15s
    input_series:
      - series: 'taskworker_workers{state="alive"}'
        values: '1 1 0x20'
      - series: 'taskworker_workers{state="dead"}'
        values: '0x20'
    alert_rule_test:
      - {eval_time: 1m, alertname: NoWorker, exp_alerts: []}
      - eval_time: 3m
        alertname: NoWorker
        exp_alerts:
          - exp_labels: {state: alive}
            exp_annotations: {summary: "No worker is alive: nothing is done until one starts."}
  - interval: 15s
    input_series:
      - {series: 'taskworker_jobs_total{task="bad",queue="q",outcome="failed"}', values: '100+1x90'}
      - {series: 'taskworker_jobs_total{task="bad",queue="q",outcome="succeeded"}', values: '500+3x90'}
      - {series: 'taskworker_jobs_total{task="bad",queue="q",outcome="retried"}', values: '5+9x90'}
      - {series: 'taskworker_jobs_total{task="good",queue="q",outcome="failed"}', values: '7x90'}
      - {series: 'taskworker_jobs_total{task="good",queue="q",outcome="succeeded"}', values: '5+3x90'}
      - {series: 'taskworker_jobs_total{task="idle",queue="q",outcome="failed"}', values: '7x90'}
      - {series: 'taskworker_jobs_total{task="idle",queue="q",outcome="succeeded"}', values: '5x90'}
    alert_rule_test:
      - eval_time: 20m
        alertname: JobsFail
        exp_alerts:
          - exp_labels: {task: bad}
            exp_annotations: {summary: "25% of the jobs of bad fail."}
  - interval: 15s
    input_series:
      - series: 'taskworker_schedule_late_seconds{schedule="s"}'
        values: '0 0 0 105+15x20'
    alert_rule_test:
      - {eval_time: 1m, alertname: ScheduleLate, exp_alerts: []}
      - eval_time: 4m
        alertname: ScheduleLate
        exp_alerts:
          - exp_labels: {schedule: s}
            exp_annotations: {summary: "The schedule s should have fired 5m 0s ago."}
"""


def promtool(*arguments: str, cwd: Path, given: str = "") -> str:
    """What it says. Fails where it is not content."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=given, capture_output=True, text=True, cwd=cwd, timeout=30)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_metrics_are_as_prometheus_wants_them(app: Flask, task_worker: BackgroundTaskWorker, tmp_path: Path) -> None:
    app.register_blueprint(create_metrics(task_worker, access=lambda: True))
    task_worker.task(name="tick", schedule=Every(seconds=0.1))(lambda: None)
    fail = task_worker.task(name='every "kind" of \\ {name}')(lambda: 1 / 0)
    with pytest.raises(JobFailed):
        fail.enqueue().result(timeout=20)
    client = app.test_client()
    wait_for(lambda: 'outcome="failed",queue="default",task="every' in client.get("/metrics").text)
    text = client.get("/metrics").text
    assert "taskworker_schedule_late_seconds{" in text
    assert promtool("check", "metrics", given=text, cwd=tmp_path) == ""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A folder with the alerts in rules.yml."""
    shutil.copy(EXAMPLES / "alerts.yml", tmp_path / "rules.yml")
    return tmp_path


def test_alerts_can_be_read(rules: Path) -> None:
    assert "6 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", cwd=rules)


def test_alerts_fire_when_they_should(rules: Path) -> None:
    (rules / "alerts.yml").write_text(ALERTS)
    assert "SUCCESS" in promtool("test", "rules", "alerts.yml", cwd=rules)


def test_queries_of_the_dashboard_and_of_keda_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"q{i}", "expr": query} for i, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", cwd=tmp_path)
