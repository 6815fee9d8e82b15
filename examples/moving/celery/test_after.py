from __future__ import annotations

import after
import pytest
import shops


@pytest.fixture
def app(tmp_path):
    return after.create_app(TESTING=True, TASKER_DATABASE_URI=f"sqlite:///{tmp_path / 'jobs.db'}")


def test_prices_are_compared(app, jobs):
    client = app.test_client()
    address = f"/jobs/{client.post('/compare/tea').json['job']}"
    assert client.get(address).json == {"ready": False, "result": None}
    assert jobs.drain(scheduled=True).succeeded == len(shops.SHOPS) + 1
    assert client.get(address).json == {"ready": True, "result": "tea: south, 298 cents"}


def test_shop_that_does_not_answer_is_asked_again(app, jobs, monkeypatch):
    answers = iter([ConnectionError("no answer"), ConnectionError("no answer"), 250])

    def ask(shop, article):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(shops, "ask", ask)
    with app.app_context():
        job = after.fetch_price.enqueue("north", "tea")
    assert jobs.drain(scheduled=True).retrying == 2
    assert job.result()["tries"] == 3


def test_comparison_runs_each_night(app, jobs, task_clock):
    task_clock.advance(days=1)
    jobs.assert_performed(after.watch, times=1)
    jobs.assert_performed(after.cheapest, times=len(shops.WATCHED))


def test_worker_process_compares(app, jobs, live_worker):
    with app.app_context():
        assert after.compare("rice").result(timeout=20) == "rice: south, 299 cents"
