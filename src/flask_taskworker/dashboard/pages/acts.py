"""Acts on jobs: one by one, some that were ticked, or all that fit a filter; many are acted on by a job of its own."""

from __future__ import annotations

from flask import Response, request
from werkzeug.exceptions import BadRequest, Forbidden

from ...core.words import number_in
from ...ops.bulk import AT_ONCE, enqueue_bulk
from .. import words
from ..rows import ACTIONS, Action, job_line
from ..view import Route, View

SAMPLES = 10


def one(view: View, job_id: int) -> Response:
    """Do it to one job."""
    name, action = _action(view)
    done = view.operations(action.permission).act(name, job_id)
    state = "" if done else f"Nothing was done: job {job_id} was in no state for that."
    return view.redirect("job", job_id=job_id, message=state or f"{action.done.format(f'Job {job_id}')}.")


def confirm(view: View) -> Response:
    """Act on the jobs that are ticked; before all that fit are changed, ask: how many there are, and ten of them."""
    name, action = _action(view)
    text = view.form("filter")
    if view.form("scope") != "all":
        ticked = request.form.getlist("id")
        ids = [number for one in ticked if (number := number_in(one)) is not None]
        if len(ticked) > AT_ONCE or len(ids) < len(ticked):
            raise BadRequest("id must be the numbers of at most 1,000 jobs.")
        if not ticked:
            return view.redirect("jobs", filter=text, message="No job was ticked, so nothing was done.")
        done = view.operations(action.permission).act_on_some(name, ids, chosen=view.filter(text))
        message = action.done.format(words.plural(done, "job"))
        if done < len(ids):
            message += f"; {words.plural(len(ids) - done, 'job')} in no state for that, or no longer in this list"
        return view.redirect("jobs", filter=text, message=f"{message}.")
    chosen = view.filter(text)
    fitting = chosen.exact()
    found = view.browser.first(chosen, limit=AT_ONCE, names=view.names)
    before = view.browser.end()
    data = {
        "action": name,
        "word": action.word,
        "count": view.browser.count_all(chosen, before=before, names=view.names),
        "before": before,
        "in_batches": found.older is not None,
        "filter": fitting,
        "back": text,
        "jobs": [job_line(view, row) for row in found.rows[:SAMPLES]],
    }
    return view.page("confirm.html", data, title=f"{action.word} all that fit?")


def bulk(view: View) -> Response:
    """Do it to all that fit: here and now if they are few, else by a job."""
    name, action = _action(view)
    chosen = view.filter(view.form("filter"))
    before = _before(view)
    found = view.browser.first(chosen, limit=AT_ONCE, names=view.names)
    if found.older is not None:
        state = view.state
        job = enqueue_bulk(state.registry, state.client, name, chosen, view.who, before)
        return view.redirect("job", job_id=job.id, message="This job does it, batch by batch.")
    ids = [row.record.id for row in found.rows if row.record.id < before]
    done = view.operations(action.permission).act_on_some(name, ids, str(chosen), chosen=chosen)
    message = f"{action.done.format(words.plural(done, 'job'))}."
    return view.redirect("jobs", filter=view.form("back"), message=message)


def _action(view: View) -> tuple[str, Action]:
    name = view.form("action")
    if name not in ACTIONS:
        raise BadRequest(f"action is {name!r:.80}. Allowed: {', '.join(ACTIONS)}.")
    action = ACTIONS[name]
    if not view.may(action.permission):
        raise Forbidden(f"You may not do this: it needs the permission {action.permission!r}.")
    return name, action


def _before(view: View) -> int:
    """What was confirmed ends here: jobs with this number or a greater one came later."""
    text = view.form("before")
    number = number_in(text) if text else view.browser.end()
    if number is None:
        raise BadRequest("before must be the number from the page that asked.")
    return number


ROUTES = (
    Route("/jobs/<int:job_id>/act", "act", one, methods=("POST",)),
    Route("/jobs/confirm", "confirm", confirm, methods=("POST",)),
    Route("/jobs/bulk", "bulk", bulk, methods=("POST",)),
)
