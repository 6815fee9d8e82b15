"""What is covered stays so: in lists of arguments, in words, and for who asks whether a value is the one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import JobState
from flask_taskworker.core.filters import JobFilter
from flask_taskworker.dashboard.redact import arguments, without_logins
from flask_taskworker.ops.bulk import enqueue_bulk
from tests.support.dashboard_lab import Lab


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    lab = Lab(make_app(TASKER_DURABILITY="normal"), mail=False)

    @lab.task_worker.task(name="pay", sensitive=("ssn",))
    def pay(user: str, password: str, ssn: str = "") -> None: ...

    with lab.app.app_context():
        pay.enqueue("bob", "hunter2", ssn="123")
    return lab


def asked(lab: Lab, text: str) -> set[int]:
    """What each address answers to this filter."""
    form = {"action": "cancel", "scope": "all", "filter": text}
    answers = (lab.get("/jobs", filter=text), *(lab.post(f"/jobs/{path}", **form) for path in ("confirm", "bulk")))
    return {answer.status_code for answer in answers}


@pytest.mark.parametrize("text", ["args.password:hunter2", "args.ssn:123", "task:pay args.SSN:9", "task:p* args.ssn:9"])
def test_covered_values_cannot_be_guessed_by_filters(lab: Lab, text: str) -> None:
    assert asked(lab, text) == {400}
    assert lab.audit() == []


def test_hidden_arguments_cannot_be_guessed_by_filters(lab: Lab) -> None:
    lab.permissions = {"view", "cancel"}
    assert asked(lab, "args.user:bob") == {403}
    lab.permissions = {"view", "payload"}
    assert [row["task"] for row in lab.data("/jobs", filter="args.user:bob")["jobs"]] == ["pay"]


def test_name_that_one_task_covers_can_be_asked_of_another(lab: Lab) -> None:
    @lab.task_worker.task(name="tax")
    def tax(ssn: str) -> None: ...

    with lab.app.app_context():
        tax.enqueue("7")
    assert "in the task pay" in lab.get("/jobs", filter="args.ssn:7").text
    assert len(lab.data("/jobs", filter="task:tax args.ssn:7")["jobs"]) == 1


def test_all_that_a_sensitive_rest_takes_is_covered(lab: Lab) -> None:
    @lab.task_worker.task(name="rest", sensitive=("values", "options"))
    def rest(plain: int, *values: str, **options: Any) -> None: ...

    with lab.app.app_context():
        job = rest.enqueue(1, "x", pin="9")
    assert lab.data(f"/jobs/{job.id}")["args"] == {"plain": 1, "values[0]": "•••", "pin": "•••"}
    assert asked(lab, "task:rest args.pin:9") == {400}


def test_password_with_an_at_sign_is_covered_as_a_whole() -> None:
    assert without_logins("redis://ana:p@ss@host/1 and http://x/@y") == "redis://ana:•••@host/1 and http://x/@y"


def test_keys_in_addresses_are_covered() -> None:
    words = "GET https://x.org/reset?token=abc.d-e&page=2&API-Key=1#top failed, see '?id=7&access_token=f'"
    covered = "GET https://x.org/reset?token=•••&page=2&API-Key=••• failed, see '?id=7&access_token=•••'"
    assert without_logins(words) == covered


NAMED = (
    *("pwd", "db_pwd", "credential", "userCredentials", "otp", "otpCode", "pin", "userPin", "PIN", "cvv", "cvv2"),
    *("session", "session_id", "sessionid", "jwt", "id_jwt", "bearer", "signature", "X-Hub-Signature", "sig", "csrf"),
    *("access_code", "passphrase", "api-key", "private_key", "auth", "set-cookie", "creditCard", "iban", "mfa"),
)


def test_value_with_the_name_of_a_secret_is_covered_wherever_it_stands(lab: Lab) -> None:
    task = lab.task_worker.task(name="deep")(lambda value: None)
    for name in NAMED:
        nested = {"deep": [{name: "5ecret"}], "pairs": [[name, "5ecret"], ("b", 1)], "items": [(name, "5ecret")]}
        call = json.dumps([[{**nested, "listed": [{"name": name, "value": "5ecret"}]}], {}])
        assert "5ecret" not in str(arguments(call, task)), name


def test_harmless_names_are_not_covered(lab: Lab) -> None:
    task = lab.task_worker.task(name="deep")(lambda value: None)
    for name in ("shipping", "opinion", "spin", "signal", "side", "status_code", "country_code", "user"):
        assert arguments(json.dumps([[{name: "plain"}], {}]), task) == {"value": {name: "plain"}}


WORDS = {
    "https://5ecret0123456789@github.com/x.git": "https://•••@github.com/x.git",
    "https://x.org/#access_token=5ecret&x=1": "https://x.org/#access_token=•••&x=1",
    "https://s3/a?X-Amz-Credential=5ecret&X-Amz-Signature=5ecret&Expires=1": (
        "https://s3/a?X-Amz-Credential=•••&X-Amz-Signature=•••&Expires=1"
    ),
    "https://hooks.example/services/T0/5ecret0123456789abcdefgh": "https://hooks.example/services/T0/•••",
    "https://x.org/orders/123e4567-e89b-12d3-a456-426614174000": (
        "https://x.org/orders/123e4567-e89b-12d3-a456-426614174000"
    ),
    "host=db user=me password='5 ecret' dbname=x": "host=db user=me password=••• dbname=x",
    "Server=x;Uid=y;Pwd=5ecret;Encrypt=yes": "Server=x;Uid=y;Pwd=•••;Encrypt=yes",
    "redis://:5ecret@host/0": "redis://:•••@host/0",
    "amqp://5ecret0123456789abcdef@host": "amqp://•••@host",
    "Authorization: Bearer 5ecret": "Authorization: •••",
    "{'Authorization': 'Basic 5ecret', 'Accept': 'x'}": "{'Authorization': '•••', 'Accept': 'x'}",
    "('X-Api-Key', '5ecret')": "('X-Api-Key', '•••')",
    "Cookie: a=5ecret; b=5ecret": "Cookie: •••",
    "sent bearer 5ecret0123": "sent bearer •••",
    "got eyJhbGciOiJI.eyJzdWIiOi5ecret.c2ln-bmF0 back": "got ••• back",
    "KeyError: 'total'": "KeyError: 'total'",
    "Key (id)=(3) already exists": "Key (id)=(3) already exists",
}


@pytest.mark.parametrize("text", WORDS)
def test_what_logs_in_is_covered_in_words(text: str) -> None:
    assert without_logins(text) == WORDS[text]


def test_token_in_the_path_of_the_request_that_enqueued_is_covered(lab: Lab) -> None:
    with lab.app.test_request_context("/reset/5ecret0123456789abcdefgh"):
        job = lab.task_worker._registry.find("pay").enqueue("bob", "x")
    for text in (lab.page(f"/jobs/{job.id}"), lab.get(f"/jobs/{job.id}", format="json").text):
        assert "/reset/" in text
        assert "5ecret" not in text


@pytest.mark.parametrize(
    "part",
    [
        "x-",
        "1a-",
        "https://a1",
        "?a=1#",
        "eyJ",
        "?",
        "&a",
        "?key",
        "a://b:",
        "?key=",
        "&" + "k" * 79 + "=",
    ],
)
def test_covering_takes_no_longer_for_odd_words(part: str) -> None:
    # Squares would take minutes.
    assert len(without_logins(part * (100_000 // len(part)))) > 60_000


def test_nothing_of_a_task_that_is_not_declared_here_is_shown(lab: Lab) -> None:
    with lab.app.app_context():
        job = lab.task_worker._registry.find("pay").enqueue("bob", "hunter2", ssn="xyzzy")
    lab.rows(
        "UPDATE taskworker_job SET task = 'of.another.process', state = 'succeeded', finished_at = 5, result = '7'"
    )
    lab.rows(
        "UPDATE taskworker_job SET args = ? WHERE id = ?", '[["bob", "xyzzy"], {"plain": {"ssn": "xyzzy"}}]', job.id
    )
    data = lab.data(f"/jobs/{job.id}")
    assert data["args"] == {"argument[0]": "•••", "argument[1]": "•••", "plain": "•••"}
    assert data["result"] == "•••"
    for path in ("/jobs", f"/jobs/{job.id}", f"/jobs/{job.id}/all?what=args", f"/jobs/{job.id}/all?what=result"):
        text = lab.client.get(f"/tasks{path}").text
        assert "bob" not in text
        assert "xyzzy" not in text


@pytest.mark.parametrize(
    "text", ["args.user:bob", "task:of.another.* args.user:bob", "task:of.another.process args.user:bob"]
)
def test_values_of_a_task_that_is_not_declared_here_cannot_be_guessed_by_filters(lab: Lab, text: str) -> None:
    lab.rows("UPDATE taskworker_job SET task = 'of.another.process', args = ?", '[[], {"user": "bob"}]')
    assert lab.data("/jobs", filter=text)["jobs"] == []
    asked(lab, text)
    assert lab.rows("SELECT DISTINCT state FROM taskworker_job") == [("ready",)]


def test_a_worker_that_acts_on_many_guesses_no_covered_value_either(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the dashboard may know fewer tasks than the worker, or others."""

    @lab.task_worker.task(name="tax")
    def tax(ssn: str) -> None: ...

    with lab.app.app_context():
        plain, unknown = tax.enqueue("123"), tax.enqueue(ssn="123")
        lab.rows("UPDATE taskworker_job SET task = 'of.another.process' WHERE id = ?", unknown.id)
        lab.rows("UPDATE taskworker_job SET state = 'scheduled', run_at = 9000000000000")
        state = lab.app.extensions["taskworker"]
        enqueue_bulk(
            lab.task_worker._registry,
            state.client,
            "cancel",
            JobFilter(args=(("ssn", "123"),)),
            "ana",
            lab.browser.end(),
        )
    lab.drain()
    found = dict(lab.rows("SELECT task, state FROM taskworker_job WHERE task <> 'flask_taskworker.bulk'"))
    assert found == {"pay": "scheduled", "tax": "cancelled", "of.another.process": "scheduled"}
    assert plain.refresh().state is JobState.CANCELLED
