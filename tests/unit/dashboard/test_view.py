"""What all pages have in common: headers, freshness, size, refusals in words, and nothing of anybody else's."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from markupsafe import Markup

import flask_taskworker.dashboard
from flask_taskworker.dashboard import charts, words
from flask_taskworker.dashboard.blueprint import ROUTES
from flask_taskworker.dashboard.responses import ASSETS
from flask_taskworker.errors import StoreError
from tests.support.dashboard_lab import Lab, assert_harmless, tags
from tests.support.stored import store_jobs

HERE = Path(flask_taskworker.dashboard.__file__).parent
PAGES = [r for r in ROUTES if r.methods == ("GET",) and r.endpoint != "job_all" and not r.endpoint.startswith("mail_")]


def filled(app: Flask) -> Lab:
    lab = Lab(app)
    store_jobs(lab.rows, {}, {"state": "failed"}, {"state": "succeeded"})
    with lab.app.app_context(), lab.task_worker.batch("import"):
        """Batch 1."""
    return lab


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """For tests that only look."""
    folder = str(tmp_path_factory.mktemp("shown"))
    app = Flask("shown", instance_path=folder, root_path=folder)
    app.config.update(TASKER_DURABILITY="normal", MAIL_DEFAULT_SENDER="us@x.org")
    yield filled(app)
    app.extensions["taskworker"].client.close()


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    return filled(make_app(TASKER_DURABILITY="normal", MAIL_DEFAULT_SENDER="us@x.org"))


def addresses() -> Iterator[Any]:
    for route in PAGES:
        if route.endpoint != "schedule":
            yield pytest.param(re.sub("<int:.*?>", "1", route.rule), id=route.endpoint)


each_page = pytest.mark.parametrize("address", list(addresses()))


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/", "/jobs/1", "/jobs/999", "/jobs?filter=zz:1", "/nowhere"])
def test_every_answer_has_the_headers(shown: Lab, address: str) -> None:
    headers = shown.client.get(f"/tasks{address}").headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_refusal_has_them_too(lab: Lab) -> None:
    lab.permissions = False
    assert lab.get("/").headers["Content-Security-Policy"].startswith("default-src 'none'")


@each_page
def test_no_page_needs_what_the_policy_forbids(shown: Lab, address: str) -> None:
    html = shown.page(address)
    assert_harmless(html)
    assert "<style" not in html
    assert [a for tag, a in tags(html) if tag == "script"] == [
        {"src": f"/tasks/assets/{ASSETS['live.js'].digest}/live.js"}
    ]


# -- reading -----------------------------------------------------------------------------------------------------------


@each_page
def test_page_is_fit_for_a_screen_reader(shown: Lab, address: str) -> None:
    found = tags(shown.page(address))
    assert found.count(("html", {"lang": "en"})) == 1
    assert [tag for tag, _ in found].count("h1") == 1
    assert ("a", {"class": "skip", "href": "#main"}) in found
    named = [tag for tag, a in found if tag == "svg" and not (a.get("aria-label") or a.get("aria-hidden"))]
    assert named == []
    assert [tag for tag, _ in found].count("table") == [tag for tag, _ in found].count("caption")
    assert all(a.get("scope") for tag, a in found if tag == "th")
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids))
    live = [a for _, a in found if "data-live" in a]
    spoken = shown.page(address).partition('aria-live="polite">')[2].partition("</div>")[0]
    assert "<time" not in spoken
    assert all(a.get("id") for a in live)


@each_page
def test_page_is_there_as_json(shown: Lab, address: str) -> None:
    response = shown.get(address, format="json")
    assert response.mimetype == "application/json"
    assert isinstance(response.get_json(), dict)
    assert "<svg" not in response.text


def test_errors_are_there_as_json_too(lab: Lab) -> None:
    assert lab.get("/jobs/999", format="json").get_json()["error"].startswith("Job 999 never existed")
    assert "'zz:1' is not known" in lab.get("/jobs", filter="zz:1", format="json").get_json()["error"]
    lab.permissions = False
    assert lab.get("/", format="json").get_json().keys() == {"error"}


@each_page
@pytest.mark.parametrize("hung", ["_=1700000000", "utm_source=chat&utm_campaign=x", "fbclid=1", "_scheme=javascript"])
def test_what_others_hang_on_links_is_passed_over(shown: Lab, address: str, hung: str) -> None:
    html = shown.page(f"{address}?{hung}")
    assert_harmless(html)
    for word in ("17000", "utm_", "fbclid", "javascript"):
        assert word not in html


def test_flasks_own_arguments_of_links_are_not_for_visitors(shown: Lab) -> None:
    controls = "_external=1&_scheme=ftp&_anchor=x&_method=POST"
    html = shown.page(f"/jobs?{controls}")
    assert 'href="/tasks/jobs?format=json"' in html
    assert "ftp:" not in html
    assert_harmless(shown.get(f"/jobs?{controls}&sort=1").text)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/jobs?page=-1", 400, "Unknown argument 'page'"),
        ("/jobs?sort=__class__", 400, "Unknown argument 'sort'"),
        ("/jobs?limit=1e9", 400, "Allowed: a whole number from 1 to 200"),
        ("/jobs?limit=-1", 400, "whole number"),
        ("/jobs?limit=201", 400, "whole number"),
        ("/jobs?before=%00", 400, "NUL"),
        ("/jobs?before=99999999999999999999999", 400, "whole number"),
        ("/jobs?before=%D9%A3", 400, "whole number"),
        ("/jobs?filter=%00", 400, "NUL"),
        ("/jobs?filter=state:gone", 400, "Unknown state 'gone'"),
        ("/jobs?filter=" + "x" * 1001, 400, "at most 1,000"),
        ("/jobs?filter=%22", 400, "quotation mark"),
        ("/jobs?format=xml", 400, "Allowed: json, html"),
        ("/?window=year", 400, "Allowed: 1h, 6h, 24h, 7d"),
        ("/jobs/0", 404, "Job 0 never existed"),
        ("/jobs/99999999999999999999", 404, "never existed"),
        ("/jobs/x", 404, "no such page"),
        ("/jobs/-1", 404, "no such page"),
        ("/jobs/1/%00", 400, "NUL"),
        ("/%F0%28", 404, "no such page"),
        ("/assets/../../view.py", 404, ""),
        ("/assets/x/style.css", 404, "no such file"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(shown: Lab, address: str, status: int, words: str) -> None:
    response = shown.client.get(f"/tasks{address}")
    assert response.status_code == status, response.text
    assert words in response.text.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/jobs/1/act", {"action": "__class__"}, 400),
        ("/jobs/1/act", {}, 400),
        ("/jobs/999/act", {"action": "cancel"}, 404),
        ("/jobs/bulk", {"action": "cancel", "filter": "zz:1"}, 400),
        ("/jobs/bulk", {"action": "cancel", "filter": "task:\0"}, 400),
        ("/jobs/confirm", {"action": "cancel", "scope": "ticked", "id": "x"}, 400),
        ("/jobs/confirm", {"action": "cancel", "scope": "ticked", "id": "-1"}, 400),
        ("/jobs/confirm", {"action": "cancel", "scope": "ticked", "id": "9" * 30}, 400),
        ("/jobs/confirm", {"action": "cancel", "scope": "all", "filter": 'args."a b":1'}, 400),
    ],
)
def test_form_that_cannot_be_is_refused(shown: Lab, path: str, form: dict[str, str], status: int) -> None:
    assert shown.post(path, **form).status_code == status
    assert shown.audit() == []


def test_database_that_does_not_answer_is_reported_in_words(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.page("/")
    path = Path(lab.app.extensions["taskworker"].config.database_uri.database)
    path.rename(path.with_suffix(".gone"))
    response = lab.get("/jobs")
    assert response.status_code == 503
    assert "task database" in response.text
    assert issubclass(StoreError, Exception)


# -- freshness and size ------------------------------------------------------------------------------------------------


def test_page_that_has_not_changed_is_not_sent_again(lab: Lab) -> None:
    first = lab.get("/jobs")
    again = lab.client.get("/tasks/jobs", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    store_jobs(lab.rows, {})
    assert lab.client.get("/tasks/jobs", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200


def test_the_passing_of_time_alone_changes_no_page(lab: Lab) -> None:
    store_jobs(lab.rows, {"state": "running", "started_at": 1_000}, {"created_at": lab.store.clock()})
    now = lab.store.clock()
    lab.store.clock = lambda: now
    pages = {address: lab.get(address).headers["ETag"] for address in ("/jobs", "/jobs/1", "/jobs/4", "/jobs/5")}
    lab.store.clock = lambda: now + 7_000
    assert {address: lab.get(address).headers["ETag"] for address in pages} == pages


def test_pages_and_assets_are_compressed_for_those_who_take_it(shown: Lab) -> None:
    for address in ("/jobs", f"/assets/{ASSETS['live.js'].digest}/live.js"):
        plain = shown.client.get(f"/tasks{address}")
        packed = shown.client.get(f"/tasks{address}", headers={"Accept-Encoding": "br, gzip"})
        assert "Content-Encoding" not in plain.headers
        assert packed.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in packed.headers["Vary"]
        assert len(gzip.decompress(packed.data)) == len(plain.data)
        refused = shown.client.get(f"/tasks{address}", headers={"Accept-Encoding": "gzip;q=0"})
        assert "Content-Encoding" not in refused.headers


def test_assets_are_kept_forever_under_a_name_of_their_content(shown: Lab) -> None:
    html = shown.page("/")
    for name in ASSETS:
        (address,) = re.findall(rf'"(/tasks/assets/[0-9a-f]+/{name})"', html)
        response = shown.client.get(address)
        assert "immutable" in response.headers["Cache-Control"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_stylesheet_is_small() -> None:
    assert len(ASSETS["style.css"].body) <= 8 * 1024


def test_a_first_visit_is_small(lab: Lab) -> None:
    store_jobs(lab.rows, *({"state": "failed", "args": f'[[{i}, "some text {i}"], {{}}]'} for i in range(60)))
    total = sum(len(asset.packed) for asset in ASSETS.values())
    for address in ("/", "/jobs", "/jobs/1"):
        total += len(lab.client.get(f"/tasks{address}", headers={"Accept-Encoding": "gzip"}).data)
    assert total <= 40_000


# -- of our own --------------------------------------------------------------------------------------------------------


def test_the_apps_own_templates_and_settings_leave_it_alone(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    (tmp_path / "templates" / "taskworker").mkdir(parents=True)
    (tmp_path / "templates" / "taskworker" / "layout.html").write_text("theirs")
    app = make_app()
    app.jinja_env.variable_start_string = "[["
    app.jinja_env.autoescape = False

    @app.context_processor
    def broken() -> dict[str, Any]:
        raise RuntimeError("for their pages only")

    html = Lab(app).page("/jobs")
    assert "theirs" not in html
    assert "<h1>Jobs</h1>" in html


def test_message_of_an_act_cannot_be_forged(lab: Lab) -> None:
    html = lab.act("/jobs/1/act", action="cancel")
    assert "Job 1 cancelled" in html
    for sign in ("", "0" * 20, "ä"):
        assert "Your account" not in lab.client.get(f"/tasks/jobs?note=Your+account&sign={sign}").text


def test_no_template_has_a_style_or_a_handler_in_it() -> None:
    for path in (HERE / "templates").rglob("*.html"):
        assert not re.search(r"<style|\sstyle=|\son(?!ce)[a-z]+=|\|\s*safe", path.read_text()), path.name


# -- words and charts --------------------------------------------------------------------------------------------------


def test_states_are_reported_by_shape_word_and_colour() -> None:
    shapes = {name: words.state(name) for name in words.SHAPES}
    assert 'class="state failed"' in shapes["failed"]
    assert "✕</span> failed" in shapes["failed"]
    assert words.state("<b>") == Markup('<span class="state other"><span aria-hidden="true">·</span> &lt;b&gt;</span>')


def test_moments_are_relative_with_the_moment_itself_as_the_title() -> None:
    assert words.ago(60_000, 240_000) == (
        '<time datetime="1970-01-01T00:01:00.000Z" title="1970-01-01 00:01:00 UTC" data-ago>3 min ago</time>'
    )
    assert ">in 40 s<" in words.ago(100_000, 60_000)
    assert "none" in words.ago(None, 1)
    assert "9999-12-31" in words.at(10**17)


def test_chart_says_what_it_shows() -> None:
    bars = [{"start": i * 60_000, "succeeded": i, "failed": i % 2, "cancelled": 0} for i in range(5)]
    chart = charts.throughput(bars, name="c", title="Ended <b>", days=False)
    assert 'role="img"' in chart
    assert "<title>Ended &lt;b&gt;. At most 4 in one bar.</title>" in chart
    assert '<details id="c-table"><summary>View as table</summary>' in chart
    assert chart.count("<tr>") == 1 + 4
    assert "<b>" not in chart
    assert charts.throughput([], name="c", title="t", days=True)
    one_of_many = charts.throughput(
        [{"start": 0, "succeeded": 99_999, "failed": 1, "cancelled": 0}], name="c", title="t", days=False
    )
    assert re.search(r'class="failed" d="M\S+ \S+h\S+v2\.0h', one_of_many)
    assert "d: 1, 2.5" in charts.sparkline([1, 2.5], "d")
    assert 'width="50"' in charts.meter(1, 2, "half")
