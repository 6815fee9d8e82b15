"""Overview, Jobs and Job: what they show, what their buttons do, and what they keep to themselves."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import Every, Retry, current_job
from flask_taskworker.core.current_job import RunningJob, set_running
from flask_taskworker.core.filters import JobFilter
from flask_taskworker.core.rows import Claim
from flask_taskworker.core.words import MOST
from flask_taskworker.errors import ArgumentsError, DeclarationError, JobCancelled
from flask_taskworker.ops.bulk import act_on_all, enqueue_bulk
from flask_taskworker.ops.operations import BULK
from flask_taskworker.store.sql import MAX_ID
from flask_taskworker.testing import Jobs
from tests.support.dashboard_lab import Lab, assert_harmless
from tests.support.stored import store_jobs, store_many

XSS = (
    "<script>alert(1)</script>",
    "<ScRiPt/x>alert(1)</sCrIpT>",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "<svg onload=alert(1)>",
    "<svg><script>alert&#40;1)</script>",
    "</td></tr></table><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</pre><iframe src=javascript:alert(1)>",
    "</summary><details open ontoggle=alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<!--<img src='--><img src=x onerror=alert(1)>'>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<style>@import'//evil.example'</style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
)
SSTI = (
    "{{ 7 * 191 }}",
    "{% for x in (13,) %}{{ x }}37{% endfor %}",
    "{{ config }}",
    "${7*191}",
    "{0.__class__}",
    "%(x)s",
)


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    return Lab(make_app(TASKER_DURABILITY="normal"), mail=False)


def row_of(text: str, **more: Any) -> dict[str, Any]:
    """A failed job that has *text* wherever a row has text."""
    error = {"type": text, "message": text, "traceback": f'  File "{text}", line 1, in {text}\n    {text}\n'}
    values = {"task": text, "queue": text, "args": json.dumps([[text], {text: text}]), "error": json.dumps(error)}
    origin = json.dumps({"request": text, "job": text})
    more = {"state": "failed", "failure_kind": text, "failure_group": text, "unique_key": text, **more}
    return {**values, "progress": json.dumps([1, 2, text]), "result": json.dumps(text), "origin": origin, **more}


# -- hostile rows ------------------------------------------------------------------------------------------------------


def test_markup_in_a_row_stays_text(lab: Lab) -> None:
    for text in XSS:
        # The values of one that is not declared are covered.
        lab.task_worker.task(name=text)(lambda *args, **kwargs: None)
    now = lab.store.clock()
    times = {"started_at": now - 5, "finished_at": now}
    failed = store_jobs(lab.rows, *(row_of(text, **times) for text in XSS))
    succeeded = store_jobs(lab.rows, *(row_of(text, state="succeeded", **times) for text in XSS))
    for job_id, text in zip(failed, XSS, strict=True):
        lines = json.dumps([[now, text, text, text]])
        lab.rows("INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, 1, ?)", job_id, lines)
    lab.rows(
        "INSERT INTO taskworker_attempt (job_id, claim, attempt, worker_id, finished_at, outcome, error) "
        "SELECT id, 1, 1, task, finished_at, task, error FROM taskworker_job"
    )
    lists = ("/", "/jobs", "/jobs?filter=state:failed")
    pages = {path: lab.page(path) for path in (*lists, *(f"/jobs/{job_id}" for job_id in (*failed, *succeeded)))}
    pages["confirm"] = lab.post("/jobs/confirm", action="retry", scope="all", filter="").text
    for html in pages.values():
        assert_harmless(html)
        assert not [tag for tag in ("script", "img", "iframe", "math", "base", "style") if f"<{tag}" in stripped(html)]
    for job_id, text in zip(succeeded, XSS, strict=True):
        assert lab.data(f"/jobs/{job_id}")["result"] == text


def stripped(html: str) -> str:
    """The page without the one script of ours."""
    return html.lower().replace('<script src="/tasks/assets/', "")


def test_template_code_in_a_row_stays_text(lab: Lab) -> None:
    ids = store_jobs(lab.rows, *(row_of(text) for text in SSTI))
    for path in ("/jobs", *(f"/jobs/{job_id}" for job_id in ids)):
        html = lab.page(path)
        assert "1337" not in html
        assert "SECRET_KEY" not in html
    assert "1337" not in lab.page("/jobs", filter=f'task:"{SSTI[0]}"')


def test_markup_in_the_filter_stays_text(lab: Lab) -> None:
    for text in XSS:
        response = lab.get("/jobs", filter=f"task:{text}")
        assert response.status_code in (200, 400)
        assert_harmless(response.text)


def test_damaged_rows_harm_no_page(lab: Lab) -> None:
    bad = ("", "null", "[", "[1]", '"x"', "[[]]", "[" * 3000, '[[{"$": 1}], {"a": {"$": "dict", "v": 3}}]', "\x01")
    ids = store_jobs(
        lab.rows,
        *(
            {"args": text, "result": text, "error": text, "origin": text, "progress": text, "state": "failed"}
            for text in bad
        ),
    )
    lab.page("/jobs")
    for job_id in ids:
        lab.page(f"/jobs/{job_id}")
        lab.data(f"/jobs/{job_id}")


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff x"])
def test_half_a_character_in_stored_json_harms_no_page(lab: Lab, text: str) -> None:
    half = json.loads(f'"{text}"')
    lab.task_worker.task(name="known")(lambda *args, **kwargs: None)
    row = {**row_of(half), "task": "known", "queue": "q", "failure_kind": "exception", "failure_group": "g"}
    now = lab.store.clock()
    stored = {**row, "unique_key": None, "started_at": now - 5, "finished_at": now, "claim": 1}
    ids = store_jobs(
        lab.rows,
        stored,
        {**stored, "state": "succeeded"},
        {**stored, "state": "running", "finished_at": None, "worker_id": "w"},
    )
    lab.rows(
        "INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, 1, ?)", ids[0], json.dumps([[1, *[half] * 3]])
    )
    info = json.dumps({"name": half, "version": half, "queues": [half]})
    lab.rows(
        "INSERT INTO taskworker_worker (id, host, pid, state, started_at, beat_at, info) "
        "VALUES ('w', 'h', 1, 'alive', 1, ?, ?)",
        *(now, info),
    )
    pages = ["/", "/jobs", "/failures", "/queues", "/workers", *(f"/jobs/{job_id}" for job_id in ids)]
    for path in pages:
        lab.page(path)
        assert lab.client.get(f"/tasks{path}?format=json").is_json
    for what in ("args", "result", "error", "log"):
        assert lab.get(f"/jobs/{ids[0]}/all", what=what).status_code == 200
    assert "\ufffd" in lab.page(f"/jobs/{ids[0]}")


def test_page_of_a_job_has_a_bounded_size_whatever_its_tries_have_logged(lab: Lab) -> None:
    quotes = '"' * 500
    (job_id,) = store_jobs(lab.rows, {"state": "failed", "claim": 20, "failures": 20, "failure_kind": "exception"})
    lines = json.dumps([[1, "INFO", "x", quotes]] * 200)
    frames = f'  File "/app/x.py", line 1, in x\n    {quotes}\n' * 40
    error = json.dumps({"type": "E", "message": quotes * 80, "traceback": frames})
    lab.rows("UPDATE taskworker_job SET error = ?", error)
    for claim in range(1, 21):
        lab.rows("INSERT INTO taskworker_log (job_id, claim, lines) VALUES (?, ?, ?)", job_id, claim, lines)
        lab.rows(
            "INSERT INTO taskworker_attempt (job_id, claim, attempt, finished_at, outcome, error) "
            "VALUES (?, ?, ?, 1, 'failed', ?)",
            *(job_id, claim, claim, error),
        )
    page = lab.page(f"/jobs/{job_id}")
    assert len(page) < 2_000_000
    assert len(lab.get(f"/jobs/{job_id}", format="json").text) < 1_000_000
    assert "what=log" in page
    assert len(lab.get(f"/jobs/{job_id}/all", what="log").data) > 20 * 200 * 500


# -- children ----------------------------------------------------------------------------------------------------------


def test_a_job_shows_its_children(lab: Lab) -> None:
    (other,) = store_jobs(lab.rows, {"origin": '{"job": 2}', "created_at": 100_000})
    (parent,) = store_jobs(
        lab.rows, {"claim": 1, "state": "succeeded", "started_at": 100_000, "finished_at": 200_000, "created_at": 5}
    )
    assert parent == 2
    origins = ['{"job": 2}', '{"job": 2, "traceparent": "00-1"}', '{"job": 20}', '{"request": "GET /2"}', None]
    ids = store_jobs(lab.rows, *({"origin": origin, "created_at": 150_000} for origin in origins))
    later = store_jobs(lab.rows, {"origin": '{"job": 2}', "created_at": 900_000})
    data = lab.data(f"/jobs/{parent}")
    assert [row["id"] for row in data["children"]] == ids[:2]
    assert data["has_more_children"] is False
    assert f'href="/tasks/jobs/{ids[0]}"' in lab.page(f"/jobs/{parent}")
    assert [row["id"] for row in lab.data("/jobs", filter="parent:2")["jobs"]] == [*later, *ids[1::-1]]
    assert lab.data(f"/jobs/{other}")["children"] == []


def test_of_many_children_the_first_are_shown_and_all_are_listed(lab: Lab) -> None:
    (parent,) = store_jobs(lab.rows, {"claim": 1, "state": "running", "started_at": 1_000})
    ids = store_jobs(lab.rows, *[{"origin": json.dumps({"job": parent})}] * 25)
    data = lab.data(f"/jobs/{parent}")
    assert [row["id"] for row in data["children"]] == ids[:20]
    assert data["has_more_children"] is True
    assert f'href="/tasks/jobs?filter=parent:{parent}"' in lab.page(f"/jobs/{parent}")
    assert [row["id"] for row in lab.data("/jobs", filter=f"parent:{parent}")["jobs"]] == ids[::-1]


def test_children_are_found_far_behind_their_parent(lab: Lab) -> None:
    """It waited while a hundred thousand others were enqueued."""
    store_many(lab.rows, 100_000, created_at="i * 10")
    lab.rows("UPDATE taskworker_job SET claim = 1, started_at = 900000, finished_at = 900100 WHERE id = 3")
    lab.rows("UPDATE taskworker_job SET origin = ? WHERE id IN (5, 90002, 90009)", '{"job": 3}')
    assert [row["id"] for row in lab.data("/jobs/3")["children"]] == [90_002, 90_009]


def test_a_job_that_enqueues_another_is_its_parent(lab: Lab) -> None:
    @lab.task_worker.task(name="child")
    def child() -> None: ...

    parent = lab.task_worker.task(name="parent")(lambda: child.enqueue().id).enqueue()
    lab.drain()
    assert [row["task"] for row in lab.data(f"/jobs/{parent.id}")["children"]] == ["child"]


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secrets_are_covered_everywhere(lab: Lab) -> None:
    @lab.task_worker.task(name="sign_up", sensitive=("ssn", "return"))
    def sign_up(name: str, password: str, *tokens: str, ssn: str = "", info: Any = None) -> Any:
        return "s3cr3t"

    @lab.task_worker.task(name="show")
    def show(url: str) -> Any:
        logging.getLogger("app").warning("using %s", url)
        return {"api_key": "s3cr3t", "plain": 1, "nested": [{"Set-Cookie": "s3cr3t"}]}

    info = {"Authorization": "s3cr3t", "deep": [{"card_number": "s3cr3t", "fine": "yes"}], "SSN": "s3cr3t"}
    first = sign_up.enqueue("ana", "s3cr3t", "s3cr3t", ssn="s3cr3t", info=info)
    second = show.enqueue("postgres://me:s3cr3t@host/db")
    lab.drain()
    for path in ("/jobs", f"/jobs/{first.id}", f"/jobs/{second.id}", f"/jobs/{first.id}?format=json"):
        text = lab.client.get(f"/tasks{path}").text
        assert "s3cr3t" not in text, path
        assert "•••" in text or "\\u2022" in text
    args = lab.data(f"/jobs/{first.id}")["args"]
    assert args["name"] == "ana"
    assert args["info"]["deep"] == [{"card_number": "•••", "fine": "yes"}]
    assert lab.data(f"/jobs/{first.id}")["result"] == "•••"
    assert lab.data(f"/jobs/{second.id}")["result"]["plain"] == 1


def test_what_sensitive_takes_is_checked(lab: Lab) -> None:
    for wrong in ("ssn", ("",), (1,), {"a": 1}):
        with pytest.raises(DeclarationError, match="sensitive"):
            lab.task_worker.task(sensitive=wrong)(lambda: None)  # type: ignore[arg-type]


@pytest.fixture
def known(lab: Lab) -> str:
    """The name of a task that takes anything."""
    lab.task_worker.task(name="known")(lambda *args, **kwargs: None)
    return "known"


def test_long_values_are_cut(lab: Lab, known: str) -> None:
    (job_id,) = store_jobs(lab.rows, {"task": known, "args": json.dumps([["x" * 50_000], {}])})
    html = lab.page(f"/jobs/{job_id}")
    assert "xxxxxxxxxx" in html
    assert len(html) < 20_000
    assert len(json.dumps(lab.data(f"/jobs/{job_id}"))) < 25_000
    assert "x" * 200 not in lab.page("/jobs")


@pytest.mark.parametrize("size", [50_000, 3_000_000])
def test_what_is_cut_is_there_as_text(lab: Lab, known: str, size: int) -> None:
    args = json.dumps([["x" * size], {"password": "s3cr3t"}])
    values = {"task": known, "args": args, "result": json.dumps({"token": "s3cr3t", "y": "y" * size})}
    (job_id,) = store_jobs(lab.rows, {**values, "state": "succeeded"})
    html = lab.page(f"/jobs/{job_id}")
    assert len(html) < 30_000
    for what, letter in (("args", "x"), ("result", "y")):
        assert f'href="/tasks/jobs/{job_id}/all?what={what}" download' in html
        whole = lab.get(f"/jobs/{job_id}/all", what=what)
        assert whole.mimetype == "text/plain"
        assert whole.headers["Content-Disposition"] == f'attachment; filename="job-{job_id}-{what}.txt"'
        assert letter * size in whole.text
        assert "•••" in whole.text
        assert "s3cr3t" not in whole.text
    lab.permissions = {"view"}
    assert {lab.get(f"/jobs/{job_id}/all", what=what).status_code for what in ("args", "result")} == {403}
    assert "download" not in lab.page(f"/jobs/{job_id}")


def test_a_long_traceback_is_cut_at_its_beginning(lab: Lab) -> None:
    error = json.dumps({"type": "E", "message": "m", "traceback": "first\n" + "x" * 60_000 + "\nlast\n"})
    short, long = store_jobs(
        lab.rows, {"state": "failed", "error": '{"type": "E", "traceback": "t"}'}, {"state": "failed", "error": error}
    )
    html = lab.page(f"/jobs/{long}")
    assert len(html) < 40_000
    assert "first" not in html
    assert "last\n" in html
    assert "first" in lab.get(f"/jobs/{long}/all", what="error").text
    assert "download" not in lab.page(f"/jobs/{short}")
    assert lab.get(f"/jobs/{long}/all", what="other").status_code == 400
    assert lab.get("/jobs/999/all", what="error").status_code == 404


def test_arguments_that_a_list_has_only_in_part_are_not_guessed(lab: Lab) -> None:
    store_jobs(lab.rows, {"args": json.dumps([["x" * 1_990], {"password": "s3cr3t"}])})
    html = lab.page("/jobs")
    assert "xxx" not in html
    assert "open the job" in html


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_tabs_tell_the_states(lab: Lab) -> None:
    store_jobs(lab.rows, {}, {}, {"state": "failed"}, {"state": "scheduled", "failures": 1, "run_at": 9 * 10**12})
    tabs = {tab["state"]: tab["count"] for tab in lab.data("/jobs")["tabs"]}
    assert tabs["ready"] == "2"
    assert tabs["failed"] == "1"
    assert tabs["scheduled"] == tabs["retrying"] == "1"
    store_many(lab.rows, MOST + 5)
    assert {t["state"]: t["count"] for t in lab.data("/jobs")["tabs"]}["succeeded"] == "10,000+"


def test_filter_chooses_the_rows(lab: Lab) -> None:
    lab.task_worker.task(name="app.add")(lambda user_id: None)
    ids = store_jobs(lab.rows, {}, {"task": "mail.send", "state": "failed"}, {"args": '[[], {"user_id": 42}]'})

    def found(text: str) -> list[int]:
        return [row["id"] for row in lab.data("/jobs", filter=text)["jobs"]]

    assert found("") == ids[::-1]
    assert found("task:mail.*") == found("state:failed") == [ids[1]]
    assert found("args.user_id:42") == [ids[2]]
    assert found(f"#{ids[0]}") == [ids[0]]
    assert 'value="task:mail.*"' in lab.page("/jobs", filter="task:mail.*")


def test_pages_lead_from_the_newest_to_the_oldest(lab: Lab) -> None:
    ids = store_jobs(lab.rows, *({} for _ in range(7)))
    seen: list[int] = []
    before: int | None = None
    while True:
        data = lab.data("/jobs", limit="3", **({"before": str(before)} if before else {}))
        seen += [row["id"] for row in data["jobs"]]
        before = data["older"]
        if before is None:
            break
    assert seen == ids[::-1]
    assert f"before={ids[4]}" in lab.page("/jobs", limit="3")


def test_empty_list_teaches(lab: Lab) -> None:
    assert "flask tasks call NAME" in lab.page("/jobs")
    assert "flask tasks run" in lab.page("/")
    assert "No job fits" in lab.page("/jobs", filter="state:failed")


# -- acts --------------------------------------------------------------------------------------------------------------


def states(lab: Lab) -> dict[int, str]:
    return dict(lab.rows("SELECT id, CASE discarded WHEN 0 THEN state ELSE 'discarded' END FROM taskworker_job"))


def test_buttons_do_what_they_say(lab: Lab) -> None:
    (failed, later, done) = store_jobs(
        lab.rows, {"state": "failed"}, {"state": "scheduled", "run_at": 9 * 10**12}, {"state": "succeeded"}
    )
    assert f"Job {failed} back in the queue." in lab.act(f"/jobs/{failed}/act", action="retry")
    assert f"Job {later} made ready." in lab.act(f"/jobs/{later}/act", action="run")
    assert "discarded" in lab.act(f"/jobs/{done}/act", action="discard")
    assert states(lab) == {failed: "ready", later: "ready", done: "discarded"}
    assert "restored" in lab.act(f"/jobs/{done}/act", action="restore")
    assert "Nothing was done" in lab.act(f"/jobs/{done}/act", action="retry")
    assert [(row.who, row.action) for row in lab.audit()] == [
        *(("ana", action) for action in ("restore", "discard", "run", "retry"))
    ]


def test_only_the_buttons_that_fit_are_there(lab: Lab) -> None:
    ids = store_jobs(lab.rows, {}, {"state": "failed"}, {"state": "running"}, {"state": "succeeded"})
    offered = [sorted(lab.data(f"/jobs/{job_id}")["actions"]) for job_id in ids]
    assert offered == [["cancel", "discard"], ["discard", "retry"], ["cancel"], ["discard"]]
    lab.permissions = {"view", "cancel"}
    assert [len(lab.data(f"/jobs/{job_id}")["actions"]) for job_id in ids] == [1, 0, 1, 0]
    assert 'value="retry"' not in lab.page("/jobs")


def test_discarded_jobs_can_only_be_restored(lab: Lab) -> None:
    store_jobs(lab.rows, {"discarded": 1, "state": "failed"})
    assert lab.data("/jobs", filter="discarded:yes")["actions"] == {"restore": "Restore"}
    assert "restore" not in lab.data("/jobs")["actions"]
    assert "1 job restored" in lab.act("/jobs/bulk", action="restore", filter="discarded:yes")


def test_ticked_jobs_are_acted_on(lab: Lab) -> None:
    ids = store_jobs(lab.rows, *({"state": "failed"} for _ in range(4)), {"state": "succeeded"})
    form = {"action": "retry", "scope": "ticked", "filter": "task:app.add"}
    response = lab.client.post(
        "/tasks/jobs/confirm", data={**form, "id": [ids[0], ids[1], ids[4]]}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert response.status_code == 303
    html = lab.client.get(response.headers["Location"]).text
    assert "2 jobs back in the queue; 1 job in no state for that, or no longer in this list." in html
    assert list(states(lab).values()) == ["ready", "ready", "failed", "failed", "succeeded"]
    assert "No job was ticked" in lab.act("/jobs/confirm", action="retry", filter="")


def test_all_that_fit_are_acted_on_after_a_question(lab: Lab) -> None:
    ids = store_jobs(lab.rows, *({"state": "failed"} for _ in range(14)), {"state": "failed", "task": "other"})
    response = lab.post("/jobs/confirm", action="retry", scope="all", filter="task:app.add after:-30000d")
    assert response.status_code == 200
    assert "<strong>14</strong> jobs that fit" in response.text
    assert response.text.count('<th scope="row">') == 10
    assert "failed" in set(states(lab).values())
    (chosen,) = re.findall(r'type="hidden" name="filter" value="([^"]*)"', response.text)
    assert "after:" in chosen
    assert "-30000d" not in chosen
    assert "14 jobs back in the queue" in lab.act("/jobs/bulk", action="retry", filter=chosen, back="state:ready")
    assert list(states(lab).values()).count("ready") == 14
    assert states(lab)[ids[-1]] == "failed"
    assert (lab.audit()[0].target, lab.audit()[0].number) == (chosen, 14)


def test_many_are_acted_on_by_a_job(lab: Lab) -> None:
    store_many(lab.rows, 2_500, state="'ready'", finished_at="NULL", expires_at="NULL")
    response = lab.post("/jobs/confirm", action="cancel", scope="all", filter="state:ready")
    assert "There are many, so a job does it in batches of 1,000." in response.text
    assert "<strong>2,500</strong>" in response.text
    lab.permissions = {"view", "retry"}
    assert lab.post("/jobs/bulk", action="cancel", filter="state:ready").status_code == 403
    lab.permissions = {"view", "payload", "cancel"}
    html = lab.act("/jobs/bulk", action="cancel", filter="state:ready")
    assert BULK in html
    assert "This job does it" in html
    (bulk_id,) = (i for (i,) in lab.rows("SELECT id FROM taskworker_job WHERE task = ?", BULK))
    (younger,) = store_jobs(lab.rows, {})
    for queue in ("q0", "q1", "q2", "q3", "default"):
        lab.rows("INSERT INTO taskworker_queue (name, paused) VALUES (?, 1)", queue)
    lab.drain()
    after = states(lab)
    assert after.pop(bulk_id) == "succeeded"
    # What was enqueued later was not confirmed.
    assert after.pop(younger) == "ready"
    assert set(after.values()) == {"cancelled"}
    assert [(row.who, row.action, row.number) for row in lab.audit()] == [("ana", "cancel", 2_500)]
    assert lab.data(f"/jobs/{bulk_id}")["result"] == 2_500


def test_act_on_many_is_not_repeated_by_who_may_only_retry(lab: Lab) -> None:
    ids = store_jobs(
        lab.rows, {"task": BULK, "state": "failed"}, {"task": BULK, "state": "failed"}, {"state": "failed"}
    )
    assert lab.post(f"/jobs/{ids[0]}/act", action="retry").status_code == 409
    assert "1 job back in the queue" in lab.act("/jobs/bulk", action="retry", filter="state:failed")
    assert list(states(lab).values()) == ["failed", "failed", "ready"]


def test_act_on_many_stops_after_a_batch_when_it_is_cancelled(lab: Lab) -> None:
    store_many(lab.rows, 2_500, state="'failed'")
    names = dict.fromkeys(Claim._fields, "")
    claim = Claim(**names)._replace(id=MAX_ID, claim=1)  # type: ignore[arg-type]
    set_running(RunningJob(claim, on_report=lambda job, report: None, cancelled=True))
    try:
        with lab.app.app_context(), pytest.raises(JobCancelled):
            act_on_all("discard", "state:failed", "ana", lab.browser.end())
    finally:
        set_running(None)
    assert list(states(lab).values()).count("discarded") == 1_000
    assert [(row.action, row.number) for row in lab.audit()] == [("discard", 1_000)]


def test_job_that_acts_is_not_put_into_a_paused_queue(lab: Lab) -> None:
    state = lab.app.extensions["taskworker"]

    def enqueue() -> str:
        job = enqueue_bulk(
            lab.task_worker._registry, state.client, "cancel", JobFilter(task="x"), "ana", lab.browser.end()
        )
        return job.queue

    def work_on(queues: list[str] | None, *exclude: str) -> None:
        lab.rows("DELETE FROM taskworker_worker")
        info = {"queues": queues, "exclude": exclude}
        values = ("w", "h", 1, 1, lab.store.clock(), "alive", json.dumps(info))
        columns = "id, host, pid, started_at, beat_at, state, info"
        lab.rows(f"INSERT INTO taskworker_worker ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", *values)

    assert enqueue() == "bulk"
    work_on(None)
    assert enqueue() == "bulk"
    work_on(None, "bulk")
    assert enqueue() == "default"
    work_on(["default", "mail"])
    assert enqueue() == "default"
    lab.rows("INSERT INTO taskworker_queue (name, paused) VALUES ('default', 1)")
    assert enqueue() == "mail"


def test_filter_that_would_mean_something_else_later_is_refused() -> None:
    chosen = JobFilter.parse("task:a.* after:-1h args.x:1 state:failed,ready discarded:yes", 10**12)
    assert JobFilter.parse(chosen.exact(), 0) == chosen
    with pytest.raises(ArgumentsError, match="read differently"):
        JobFilter(args=(("a b", "1"),)).exact()


# -- one job -----------------------------------------------------------------------------------------------------------


def test_job_tells_its_story(lab: Lab) -> None:
    @lab.task_worker.task(name="report", retry=Retry(2, base=0.001, jitter=0))
    def report(number: int) -> None:
        logging.getLogger("app").warning("no rows for %s", number)
        current_job.progress(2, 5, "loading rows")
        raise KeyError("total")

    @lab.app.post("/reports")
    def make() -> str:
        return str(report.enqueue(7).id)

    job_id = int(lab.client.post("/reports").text)
    Jobs(lab.app).drain(scheduled=True, raise_errors=False)
    html, data = lab.page(f"/jobs/{job_id}"), lab.data(f"/jobs/{job_id}")
    assert "by POST /reports" in html
    assert data["state"] == "failed"
    assert data["args"] == {"number": 7}
    assert data["error"]["type"] == "KeyError"
    frame = data["error"]["frames"][0]
    assert frame["function"] == "report"
    assert frame["source"] == 'raise KeyError("total")'
    assert [one["outcome"] for one in data["tries"]] == ["failed", "retrying"]
    assert all([line["text"] for line in one["lines"]] == ["no rows for 7"] for one in data["tries"])
    assert "no rows for 7" in html
    assert data["percent"] == 40.0
    assert "<progress" in html
    assert data["timeline"][0]["what"] == "enqueued"
    assert "All frames" in html
    assert data["earlier"]["failed"] == 1
    lab.permissions = {"view"}
    hidden = lab.data(f"/jobs/{job_id}")
    assert (hidden["args"], hidden["tries"][0]["lines"]) == (None, [])
    assert "no rows for 7" not in lab.page(f"/jobs/{job_id}")


def test_job_leads_to_its_parent(lab: Lab) -> None:
    (parent,) = store_jobs(lab.rows, {})
    (child,) = store_jobs(lab.rows, {"origin": json.dumps({"job": parent})})
    assert f'Parent <a href="/tasks/jobs/{parent}">' in lab.page(f"/jobs/{child}")


def test_long_story_is_shortened(lab: Lab) -> None:
    (job_id,) = store_jobs(lab.rows, {"state": "failed", "claim": 40})
    for claim in range(1, 41):
        lab.rows(
            "INSERT INTO taskworker_attempt (job_id, claim, attempt, started_at, finished_at, outcome) "
            "VALUES (?, ?, ?, ?, ?, 'retrying')",
            *(job_id, claim, claim, claim * 1_000, claim * 1_000 + 7),
        )
    data = lab.data(f"/jobs/{job_id}")
    steps = [step["what"] for step in data["timeline"]]
    assert "31 more tries" in steps
    assert len(steps) < 15
    assert [one["claim"] for one in data["tries"]] == list(range(40, 20, -1))
    assert "Older tries are not shown" in lab.page(f"/jobs/{job_id}")


# -- overview ----------------------------------------------------------------------------------------------------------


def test_overview_tells_what_happened(lab: Lab) -> None:
    @lab.task_worker.task(name="add", schedule=Every(hours=1))
    def add() -> None: ...

    @lab.task_worker.task(name="boom")
    def boom() -> None:
        raise ValueError("no <b>total</b>")

    for _ in range(3):
        add.enqueue()
    boom.enqueue()
    Jobs(lab.app).drain(scheduled=True, raise_errors=False)
    data = lab.data("/")
    assert data["health"]["failed_in_hour"] == 1
    tiles = {tile["label"]: tile for tile in data["tiles"]}
    assert tiles["Failed in an hour"]["value"] == 1
    assert sum(tiles["Done a minute"]["series"]) == 4
    assert sum(bar["succeeded"] for bar in data["throughput"]) == 3
    assert sum(bar["failed"] for bar in data["throughput"]) == 1
    assert {row["task"] for row in data["slowest"]} == {"add", "boom"}
    (failure,) = data["failures"]
    shown = (failure["error"]["type"], failure["error"]["message"], failure["count"])
    assert shown == ("ValueError", "no <b>total</b>", 1)
    for window, bars in (("1h", 60), ("6h", 72), ("24h", 24), ("7d", 56)):
        throughput = lab.data("/", window=window)["throughput"]
        assert len(throughput) == bars
        assert sum(bar["succeeded"] + bar["failed"] for bar in throughput) == 4, window


def test_overview_lets_jobs_of_paused_queues_wait(lab: Lab) -> None:
    store_jobs(lab.rows, {"created_at": lab.store.clock() - 600_000, "queue": "slow"})
    assert not lab.data("/")["health"]["healthy"]
    lab.rows("INSERT INTO taskworker_queue (name, paused) VALUES ('slow', 1)")
    assert lab.data("/")["health"]["problems"] == []


def test_overview_says_what_is_wrong(lab: Lab) -> None:
    store_jobs(lab.rows, {"created_at": lab.store.clock() - 600_000})
    data = lab.data("/")
    assert not data["health"]["healthy"]
    assert "no living worker takes it" in data["health"]["problems"][0]
    assert "Unhealthy." in lab.page("/")
    lab.rows("UPDATE taskworker_job SET state = 'cancelled', finished_at = 1, expires_at = 1")
    lab.rows("INSERT INTO taskworker_queue (name, paused) VALUES ('slow', 1)")
    html = lab.page("/")
    assert "Healthy." in html
    assert "slow" in html


# -- cheap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["/", "/?window=7d", "/jobs", "/jobs?filter=state:ready", "/jobs?before=5", "/jobs/1"]
)
def test_page_asks_the_database_at_most_four_times(lab: Lab, address: str) -> None:
    store_jobs(lab.rows, *({} for _ in range(3)), *({"state": "failed", "failure_group": str(i)} for i in range(9)))
    with lab.statements() as seen:
        assert lab.client.get(f"/tasks{address}").status_code == 200
    assert 1 <= len(seen) <= 4, seen


def test_question_before_an_act_on_many_asks_at_most_four_times(lab: Lab) -> None:
    store_many(lab.rows, 1_200, state="'ready'", finished_at="NULL", expires_at="NULL")
    with lab.statements() as seen:
        assert lab.post("/jobs/confirm", action="cancel", scope="all", filter="").status_code == 200
    assert len(seen) <= 4
