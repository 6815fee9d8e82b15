"""The files of examples/monitoring use metrics, labels, options and addresses that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.cli.running import run
from flask_taskworker.metrics import create_metrics
from tests.support.waiting import wait_for

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"


def read_yaml(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
    return found


def queries() -> Iterator[str]:
    """The PromQL of the dashboard, with its variables filled in, and that of KEDA."""
    for panel in board()["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$queue", ".*")
    (scaled,) = read_yaml("keda.yml")
    yield from (trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])


def test_every_metric_of_the_files_exists(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    app.register_blueprint(create_metrics(task_worker, access=lambda: True))
    client = app.test_client()
    wait_for(lambda: 'taskworker_workers{state="alive"} 1' in client.get("/metrics").text)
    families = set(re.findall(r"^# TYPE (\w+) ", client.get("/metrics").text, re.MULTILINE))
    families |= {"taskworker_limit_open", "taskworker_limit_waiting"}  # only where code has limits
    rules = [rule["expr"] for group in read_yaml("alerts.yml")[0]["groups"] for rule in group["rules"]]
    used = set(re.findall(r"taskworker_\w+", "\n".join([*queries(), *rules])))
    assert {name.removesuffix("_bucket") for name in used} <= families


def test_the_dashboard_has_what_grafana_reads() -> None:
    found = board()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= found.keys()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries")
        assert {"datasource", "gridPos", "fieldConfig", "options", "targets"} <= panel.keys()
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert all(
            target["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for target in panel["targets"]
        )
    taken = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in panels
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken), "panels overlap"
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = re.findall(r"\$\{?(\w+)", json.dumps(panels))
    assert set(used) <= variables | {"__rate_interval"}


def test_kubernetes_runs_workers_with_options_and_probes_that_exist() -> None:
    options = {word for parameter in run.params for word in parameter.opts}
    deployments = read_yaml("kubernetes.yml")
    for deployment in deployments:
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["command"][-2:] == ["tasks", "run"]
        assert {arg for arg in container["args"] if arg.startswith("--")} <= options
        ports = {port["name"] for port in container["ports"]}
        for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            if probe in container:
                get = container[probe]["httpGet"]
                assert (get["path"], get["port"] in ports) == (path, True)
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (scaled,) = read_yaml("keda.yml")
    assert scaled["spec"]["scaleTargetRef"]["name"] in {one["metadata"]["name"] for one in deployments}


def test_the_grace_period_is_longer_than_the_shutdown_timeout(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    spec = read_yaml("kubernetes.yml")[0]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > app.extensions["taskworker"].config.shutdown_timeout
