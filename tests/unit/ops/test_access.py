"""Who gets in, and what they may do: closed unless opened, and no other site can act through a visitor's browser."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, redirect
from flask_wtf.csrf import CSRFProtect
from werkzeug.test import TestResponse

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.dashboard import create_dashboard
from flask_taskworker.dashboard.blueprint import ROUTES
from flask_taskworker.errors import ArgumentsError, ConfigError
from flask_taskworker.ops.access import PERMISSIONS
from tests.support.apps import task_worker_of
from tests.support.dashboard_lab import OWN, Lab
from tests.support.stored import store_jobs

GETS = [r for r in ROUTES if "GET" in r.methods]
POSTS = [r for r in ROUTES if "POST" in r.methods]
ACTS = [r for r in POSTS if "GET" not in r.methods]
ADDRESSES = [r.rule.replace("<int:job_id>", "1") for r in GETS] + ["/assets/x/style.css", "/nowhere"]
FORM = {"action": "cancel", "scope": "all", "filter": "", "queue": "default", "name": "default", "id": "1"}


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app(TASKER_DURABILITY="normal", MAIL_DEFAULT_SENDER="us@x.org")


def mounted(app: Flask, **options: Any) -> Flask:
    task_worker = BackgroundTaskWorker(app)
    app.register_blueprint(create_dashboard(task_worker, **options), url_prefix="/tasks")
    return app


def cancel_a_job(app: Flask, **request: Any) -> None:
    def add() -> None: ...

    job = task_worker_of(app).task(add).enqueue()
    headers = {**OWN, **request.pop("headers", {})}
    answer = app.test_client().post(f"/tasks/jobs/{job.id}/act", data={"action": "cancel"}, headers=headers, **request)
    assert answer.status_code == 303


def answers(app: Flask, **request: Any) -> Iterator[tuple[str, TestResponse]]:
    """What every address answers."""
    client = app.test_client()
    for address in ADDRESSES:
        yield address, client.get(f"/tasks{address}", **request)
    for route in POSTS:
        address = route.rule.replace("<int:job_id>", "1")
        yield address, client.post(f"/tasks{address}", data=FORM, **{"headers": OWN} | request)


def statuses(app: Flask, **request: Any) -> set[int]:
    return {answer.status_code for _, answer in answers(app, **request)}


# -- closed by default -------------------------------------------------------------------------------------------------


def test_dashboard_that_no_one_opened_is_closed_everywhere(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert statuses(mounted(app)) == {403}
    assert "The log of the application says how to open it" in app.test_client().get("/tasks/").get_data(as_text=True)
    assert "create_dashboard(task_worker, access=…)" in caplog.text
    assert "TASKER_DASHBOARD_USER" in caplog.text


BYPASSES = [
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Original-URL", "/tasks/assets/x/style.css"),
    ("X-Rewrite-URL", "/"),
    ("Authorization", "Basic Og=="),
    ("Authorization", "Bearer null"),
    ("X-HTTP-Method-Override", "OPTIONS"),
    ("X-Forwarded-Host", "localhost"),
    ("X-Real-IP", "127.0.0.1"),
    ("Host", "127.0.0.1"),
]


def test_no_header_opens_it(app: Flask) -> None:
    mounted(app)
    for name, value in BYPASSES:
        assert statuses(app, headers={**OWN, name: value}) == {403}, name


PATHS = ["/tasks//", "/tasks/./jobs", "/tasks/%2e%2e/tasks/jobs", "//tasks/jobs", "/TASKS/jobs", "/tasks/jobs;x=.css"]


def test_no_path_opens_it(app: Flask) -> None:
    client = mounted(app).test_client()
    for path in PATHS:
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            answer = client.open(path, method=method, follow_redirects=True)
            assert answer.status_code in (403, 404, 405), (path, method, answer.status)


def test_debug_mode_opens_it_to_this_machine_only(app: Flask) -> None:
    mounted(app)
    local = {"environ_base": {"REMOTE_ADDR": "127.0.0.1"}}
    client = app.test_client()
    assert client.get("/tasks/", **local).status_code == 403
    app.debug = True
    assert client.get("/tasks/", **local).status_code == 200
    assert client.get("/tasks/", environ_base={"REMOTE_ADDR": "::1"}, headers={"Host": "[::1]:5000"}).status_code == 200
    assert client.get("/tasks/", environ_base={"REMOTE_ADDR": "10.0.0.5"}).status_code == 403
    for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Via"):
        assert client.get("/tasks/", headers={name: "for=127.0.0.1"}, **local).status_code == 403, name
    # A foreign page can have its own name lead here.
    assert client.get("/tasks/", headers={"Host": "evil.example"}, **local).status_code == 403
    assert client.get("/tasks/", headers={"Host": "localhost.evil.example"}, **local).status_code == 403


def test_debug_mode_behind_a_plain_reverse_proxy_opens_nothing(app: Flask) -> None:
    mounted(app)
    app.debug = True
    for protocol in ("HTTP/1.0", "HTTP/0.9"):
        assert statuses(app, environ_overrides={"SERVER_PROTOCOL": protocol}) == {403}, protocol


@pytest.mark.parametrize("server", ["gunicorn/26.0.0", "waitress", "Apache"])
def test_debug_mode_on_another_server_needs_the_link_from_the_log(
    app: Flask, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    mounted(app)
    app.debug = True
    there = {"environ_base": {"REMOTE_ADDR": "127.0.0.1", "SERVER_SOFTWARE": server}}
    assert statuses(app, **there) == {403}
    found = re.search(r"http://localhost/tasks/(\?token=\w{32})", caplog.text)
    assert found is not None
    client = app.test_client()
    assert client.get("/tasks/?token=" + "0" * 32, **there).status_code == 403
    answer = client.get(f"/tasks/{found[1]}", **there)
    assert (answer.status_code, answer.headers["Location"]) == (303, "http://localhost/tasks/")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "SameSite=Strict" in answer.headers["Set-Cookie"]
    assert client.get("/tasks/jobs", **there).status_code == 200
    assert client.get("/tasks/jobs", headers={"X-Forwarded-For": "10.0.0.5"}, **there).status_code == 403
    assert app.test_client().get("/tasks/jobs", **there).status_code == 403


# -- a password --------------------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_user_and_password_open_it(app: Flask) -> None:
    app.config.update(TASKER_DASHBOARD_USER="ana", TASKER_DASHBOARD_PASSWORD="grün:7")
    mounted(app)
    answer = app.test_client().get("/tasks/", headers=basic("ana", "grün:7"))
    assert answer.status_code == 200
    for headers in (
        *({}, basic("ana", "x"), basic("bo", "grün:7"), basic("", ""), basic("ana", ""), basic("anä", "grün:7")),
        *({"Authorization": "Basic ???"}, {"Authorization": "Basic"}, {"Authorization": "Digest username=ana"}),
    ):
        assert statuses(app, headers={**OWN, **headers}) == {401}
    assert app.test_client().get("/tasks/").headers["WWW-Authenticate"].startswith("Basic realm=")


def test_who_logged_in_is_noted(app: Flask) -> None:
    app.config.update(TASKER_DASHBOARD_USER="ana", TASKER_DASHBOARD_PASSWORD="x")
    mounted(app)
    cancel_a_job(app, headers=basic("ana", "x"))
    store = app.extensions["taskworker"].store
    assert store.driver.read("SELECT who FROM taskworker_audit", {}) == [("ana",)]


def test_half_a_login_is_refused(make_app: Callable[..., Flask]) -> None:
    for config in (
        {"TASKER_DASHBOARD_USER": "ana"},
        {"TASKER_DASHBOARD_PASSWORD": "x"},
        {"TASKER_DASHBOARD_USER": "", "TASKER_DASHBOARD_PASSWORD": ""},
        {"TASKER_DASHBOARD_USER": "a:b", "TASKER_DASHBOARD_PASSWORD": "x"},
        {"TASKER_DASHBOARD_URL": "tasks"},
        {"TASKER_DASHBOARD_URL": "/tasks/"},
    ):
        with pytest.raises(ConfigError, match="TASKER_DASHBOARD_"):
            BackgroundTaskWorker(make_app(**config))


# -- the access callback -----------------------------------------------------------------------------------------------


def test_what_is_not_clearly_a_yes_opens_nothing(app: Flask) -> None:
    lab = Lab(app, mail=False)
    for answer in (False, None, set(), (), "all", 1, object(), {"retyr"}, ["view", 1], "view"):
        lab.permissions = answer
        assert statuses(app) == {403}, answer


def test_a_wrong_answer_is_reported_in_the_log(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    mounted(app, access=lambda: {"retyr"}).test_client().get("/tasks/")
    assert "'retyr'" in caplog.text
    assert "mail_body" in caplog.text


@pytest.mark.parametrize("name", ["access", "who"])
def test_callback_that_raises_opens_nothing_and_is_logged(
    app: Flask, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    callbacks: dict[str, Any] = {"access": lambda: True, name: lambda: 1 // 0}
    assert mounted(app, **callbacks).test_client().get("/tasks/").status_code == 403
    assert "ZeroDivisionError" in caplog.text


def test_callback_may_abort_as_a_view_does(app: Flask) -> None:
    assert mounted(app, access=lambda: abort(404)).test_client().get("/tasks/").status_code == 404


def test_callback_may_send_visitors_to_the_login(app: Flask) -> None:
    mounted(app, access=lambda: redirect("/login"))
    for _, answer in answers(app):
        assert (answer.status_code, answer.headers["Location"]) == (302, "/login")


def test_callback_may_be_async(app: Flask) -> None:
    async def access() -> bool:
        return True

    assert mounted(app, access=access).test_client().get("/tasks/").status_code == 200


def test_true_is_everything_but_the_text_of_mails(app: Flask) -> None:
    lab = Lab(app)
    lab.permissions = True
    assert lab.get("/mail/source", id="x").status_code == 403
    app.debug = True
    assert lab.get("/mail/source", id="x").status_code == 404


def test_read_is_to_look_and_nothing_else(app: Flask) -> None:
    lab = Lab(app)
    (job_id,) = store_jobs(lab.rows, {"args": '[["s3cr3t"], {}]', "state": "succeeded", "result": '"s3cr3t"'})
    lab.permissions = "read"
    for page in ("/jobs", f"/jobs/{job_id}"):
        html = lab.page(page)
        assert "s3cr3t" not in html
        assert '<form class="act"' not in html
        assert "s3cr3t" not in str(lab.data(page))
    for route in ACTS:
        assert lab.post(re.sub("<int:.*?>", str(job_id), route.rule), **FORM).status_code == 403
    assert lab.audit() == []


NEEDED = {"retry": "retry", "run": "run", "cancel": "cancel", "discard": "discard", "restore": "discard"}


@pytest.mark.parametrize("action", NEEDED)
def test_each_act_needs_its_permission(app: Flask, action: str) -> None:
    lab = Lab(app)
    state = {"retry": "failed", "run": "scheduled"}.get(action, "ready")
    (job_id,) = store_jobs(lab.rows, {"state": state, "run_at": 9_000_000_000_000 if state == "scheduled" else 0})
    lab.permissions = set(PERMISSIONS) - {NEEDED[action]}
    for path in (f"/jobs/{job_id}/act", "/jobs/confirm", "/jobs/bulk"):
        assert lab.post(path, action=action, scope="all", filter="").status_code == 403
    assert lab.audit() == []
    lab.permissions = {"view", NEEDED[action]}
    if action == "restore":
        lab.permissions = {"view", "discard"}
        lab.post(f"/jobs/{job_id}/act", action="discard")
    assert lab.post(f"/jobs/{job_id}/act", action=action).status_code == 303
    assert lab.audit()[0].action == action


def test_routes_for_operations_name_a_permission_of_their_own() -> None:
    for route in ACTS:
        # Those three look at the action that was sent.
        assert route.permission in PERMISSIONS
        assert (route.permission == "view") == (route.endpoint in ("act", "confirm", "bulk"))


# -- forged forms ------------------------------------------------------------------------------------------------------

FORGED: list[dict[str, str]] = [
    {},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost:8080"},
    {"Origin": "http://localhost@evil.example"},
    {"Referer": "http://evil.example/?http://localhost/"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": "none", "Origin": "http://localhost"},
    {"Origin": "javascript://localhost"},
    {"Origin": "http://[localhost"},
]


def test_forged_form_changes_nothing(app: Flask) -> None:
    lab = Lab(app)
    store_jobs(lab.rows, {}, {"state": "failed"})
    before = everything(lab)
    for headers in FORGED:
        for route in POSTS:
            path = f"/tasks{route.rule.replace('<int:job_id>', '1')}"
            assert lab.client.post(path, data=FORM, headers=headers).status_code == 403, (path, headers)
        # Neither as JSON, nor with the method hidden in the form.
        assert lab.client.post("/tasks/jobs/1/act", json=FORM, headers=headers).status_code == 403
        assert lab.client.put("/tasks/jobs/1", data={"_method": "POST"}, headers=headers).status_code in (403, 405)
    assert everything(lab) == before


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, "localhost"),
        ({"Origin": "http://intranet.test"}, "intranet.test"),
        ({"Origin": "https://App.Example"}, "app.example"),
        ({"Origin": "http://intranet.test:8080"}, "intranet.test:8080"),
        ({"Referer": "http://intranet.test/tasks/jobs/1"}, "intranet.test"),
    ],
)
def test_form_of_its_own_page_is_taken(app: Flask, headers: dict[str, str], host: str) -> None:
    lab = Lab(app)
    (job_id,) = store_jobs(lab.rows, {})
    answer = lab.client.post(f"/tasks/jobs/{job_id}/act", data={"action": "cancel"}, headers={**headers, "Host": host})
    assert answer.status_code == 303
    assert lab.rows("SELECT state FROM taskworker_job") == [("cancelled",)]


def everything(lab: Lab) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""
    names = [name for (name,) in lab.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: lab.rows(f"SELECT * FROM {name}") for name in names}


def test_looking_changes_nothing(app: Flask) -> None:
    lab = Lab(app)
    store_jobs(lab.rows, {}, {"state": "failed"}, {"state": "scheduled", "run_at": 9_000_000_000_000})
    before = everything(lab)
    for address in ADDRESSES:
        assert lab.client.get(f"/tasks{address}", query_string={}).status_code in (200, 400, 404)
    for route in ACTS:
        path = f"/tasks{route.rule.replace('<int:job_id>', '1')}"
        assert lab.client.get(path, query_string=None, headers=OWN).status_code in (404, 405)
    assert everything(lab) == before


# -- beside Flask-WTF --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["CSRFProtect", "dashboard"])
def test_works_beside_csrf_protect(app: Flask, first: str) -> None:
    app.config["SECRET_KEY"] = "k"
    app.add_url_rule("/own", "own", lambda: "done", methods=["POST"])
    if first == "CSRFProtect":
        CSRFProtect(app)
    lab = Lab(app)
    if first == "dashboard":
        CSRFProtect(app)
    (job_id,) = store_jobs(lab.rows, {})
    # In this process no page was shown before.
    assert lab.post(f"/jobs/{job_id}/act", action="cancel").status_code == 303
    assert lab.client.post(f"/tasks/jobs/{job_id}/act", data={"action": "retry"}).status_code == 403
    # The application's own forms are as well protected as before.
    assert lab.client.post("/own", headers=OWN).status_code == 400


# -- mounting ----------------------------------------------------------------------------------------------------------


def test_configuration_alone_mounts_it(make_app: Callable[..., Flask]) -> None:
    app = make_app(TASKER_DASHBOARD_URL="/ops/tasks", TASKER_DASHBOARD_USER="a", TASKER_DASHBOARD_PASSWORD="b")
    BackgroundTaskWorker(app)
    client = app.test_client()
    assert client.get("/ops/tasks/").status_code == 401
    html = client.get("/ops/tasks/", headers=basic("a", "b")).text
    assert 'href="/ops/tasks/jobs"' in html


def test_two_dashboards_with_different_doors(app: Flask) -> None:
    task_worker = BackgroundTaskWorker(app)
    app.register_blueprint(create_dashboard(task_worker, access=lambda: True), url_prefix="/a")
    public = create_dashboard(task_worker, access=lambda: "read", name="status")
    parent = Blueprint("parent", __name__, url_prefix="/p")
    parent.register_blueprint(public, url_prefix="/b")
    app.register_blueprint(parent)
    client = app.test_client()
    assert 'href="/a/jobs"' in client.get("/a/jobs").text
    assert 'href="/p/b/jobs"' in client.get("/p/b/jobs").text
    assert client.post("/p/b/jobs/bulk", data=FORM, headers=OWN).status_code == 403


def test_each_app_of_a_factory_sees_its_own_jobs(make_app: Callable[..., Flask]) -> None:
    task_worker = BackgroundTaskWorker()

    @task_worker.task(name="add")
    def add() -> None: ...

    apps = [make_app(), make_app()]
    for app in apps:
        task_worker.init_app(app)
        app.register_blueprint(create_dashboard(task_worker, access=lambda: True), url_prefix="/tasks")
    with apps[0].app_context():
        add.enqueue()
    seen = [app.test_client().get("/tasks/jobs?format=json").get_json()["jobs"] for app in apps]
    assert [len(rows) for rows in seen] == [1, 0]


def test_who_stands_in_the_audit_log(app: Flask) -> None:
    numbers = count(1)
    mounted(app, access=lambda: True, who=lambda: f"user {next(numbers)}")
    app.test_client().get("/tasks/")
    cancel_a_job(app)
    store = app.extensions["taskworker"].store
    assert store.driver.read("SELECT who, action FROM taskworker_audit", {}) == [("user 2", "cancel")]


def test_act_of_a_user_with_an_odd_name_is_noted(app: Flask) -> None:
    mounted(app, access=lambda: True, who=lambda: "a\0\ud800")
    cancel_a_job(app)
    assert app.extensions["taskworker"].store.driver.read("SELECT who FROM taskworker_audit", {}) == [("a\\0\\ud800",)]


def test_without_a_name_the_address_stands_in_the_audit_log(app: Flask) -> None:
    mounted(app, access=lambda: True)
    cancel_a_job(app, environ_base={"REMOTE_ADDR": "10.0.0.7"})
    assert app.extensions["taskworker"].store.driver.read("SELECT who FROM taskworker_audit", {}) == [("10.0.0.7",)]


def test_refusal_is_reported_once_an_app_and_then_at_debug(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    dashboard = create_dashboard(task_worker := BackgroundTaskWorker())
    apps = [make_app(), make_app()]
    with caplog.at_level(logging.DEBUG, "flask_taskworker.dashboard"):
        for app in apps:
            task_worker.init_app(app)
            app.register_blueprint(dashboard, url_prefix="/tasks")
            assert [app.test_client().get(page).status_code for page in ("/tasks/", "/tasks/jobs")] == [403, 403]
    records = [r for r in caplog.records if r.name == "flask_taskworker.dashboard"]
    assert [r.levelno for r in records] == 2 * [logging.WARNING, logging.DEBUG]
    assert all("a request from 127.0.0.1 was refused" in r.message for r in records)


@pytest.mark.parametrize("task_worker", ["tasks", None, Flask("shop")])
def test_dashboard_of_what_is_not_a_task_worker_is_refused(task_worker: Any) -> None:
    with pytest.raises(ArgumentsError, match="is not a TaskWorker. Give the BackgroundTaskWorker"):
        create_dashboard(task_worker)


@pytest.mark.parametrize("name", ["access", "who"])
def test_callback_that_cannot_be_called_is_refused_where_it_is_given(name: str) -> None:
    with pytest.raises(ArgumentsError, match=f"{name} is True. Give a function .* such as {name}=lambda: True"):
        create_dashboard(BackgroundTaskWorker(), **{name: True})  # type: ignore[arg-type]
