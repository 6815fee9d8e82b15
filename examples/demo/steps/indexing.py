"""The main work: a job for each file, one for each package, while a schedule reports every second."""

from __future__ import annotations

import time
from collections import defaultdict

from flask_taskworker import Job, JobState

from .. import index
from ..parsing import FileFacts
from ..sources import Source, find_sources, plant_broken
from ..stage import Stage
from ..tasks import gather_package, parse_file, task_worker

Jobs = dict[str, Job[FileFacts]]
"""The job for each file's name."""

URGENT = 100
"""A priority. All others have 0."""
TIMEOUT = 60


def run(stage: Stage) -> str:
    begun = time.perf_counter()
    sources = plant_broken(stage.data) + find_sources(stage.limit)
    jobs = enqueue_files(sources)
    gathering = enqueue_packages(sources, jobs)
    stage.screen.follow("indexing", len(sources), lambda: progress(stage, gathering))
    for job in gathering:
        job.result(timeout=TIMEOUT)
    seconds = time.perf_counter() - begun
    check_files(stage, sources, jobs)
    check_urgent(stage, jobs)
    tell_index(stage, seconds)
    return f"{len(sources):,} files parsed, {len(gathering)} packages gathered: {len(sources) / seconds:,.0f} files/s"


def enqueue_files(sources: list[Source]) -> Jobs:
    """All files but the last in one transaction. The last one comes when all others wait, and is urgent.

    Enqueueing needs no worker. It is stopped meanwhile, so that nothing begins before the urgent job is there.
    """
    task_worker.stop()
    *many, last = sources
    jobs = parse_file.enqueue_many([(source.name, str(source.path)) for source in many])
    urgent = parse_file.using(priority=URGENT).enqueue(last.name, str(last.path))
    task_worker.start()
    return dict(zip((source.name for source in sources), [*jobs, urgent], strict=True))


def enqueue_packages(sources: list[Source], jobs: Jobs) -> list[Job[int]]:
    """A job for each package, which waits for the jobs of its files. Only one per package is there at a time."""
    packages: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for source in sources:
        packages[source.package][source.name] = jobs[source.name].id
    return [gather_package.using(unique=package).enqueue(package, files) for package, files in packages.items()]


def progress(stage: Stage, gathering: list[Job[int]]) -> tuple[int, str]:
    """How many files are done, and how it stands otherwise."""
    failed = stage.tally.of(parse_file, "failed")
    gathered = stage.tally.ended(gather_package)
    return stage.tally.ended(parse_file), f"{failed} failed, {gathered}/{len(gathering)} packages"


def check_files(stage: Stage, sources: list[Source], jobs: Jobs) -> None:
    states = {source: jobs[source.name].refresh().state for source in sources}
    unfinished = [source.name for source, state in states.items() if not state.finished]
    stage.check("each file's job has finished", not unfinished, unfinished)
    repeated = [name for name, job in jobs.items() if stage.tally.endings[job.id] != 1]
    stage.check("each file's job ended exactly once", not repeated, repeated)
    stage.check("each file is in the index", sorted(index.file_names()) == sorted(jobs))
    survived = [source.name for source, state in states.items() if source.planted and state != JobState.FAILED]
    stage.check("each file that was made to be broken has failed", not survived, survived)
    surprises = [source.name for source, state in states.items() if state == JobState.FAILED and not source.may_fail]
    stage.check("no other file has failed", not surprises, surprises)


def check_urgent(stage: Stage, jobs: Jobs) -> None:
    """A higher priority goes first."""
    names = {job.id: name for name, job in jobs.items()}
    first = next(jobs[names[job_id]] for job_id in stage.tally.begun if job_id in names)
    stage.check("the urgent job, enqueued last, began first", first.priority == URGENT, first)
    stage.tell("priority", f"the urgent job, enqueued last, began before {len(jobs) - 1:,} others")


def tell_index(stage: Stage, seconds: float) -> None:
    totals = index.totals()
    definitions = totals.functions + totals.classes
    stage.tell(
        "files", f"{totals.files + totals.broken:,} in {seconds:.1f} s, {totals.broken} of them broken on purpose"
    )
    stage.tell("lines", f"{totals.lines:,} in {totals.packages} packages")
    documented = totals.documented / definitions if definitions else 0
    stage.tell(
        "definitions", f"{totals.functions:,} functions, {totals.classes:,} classes, {documented:.0%} documented"
    )
    imported = ", ".join(f"{module} ({number})" for module, number in index.most_imported(6))
    stage.tell("imports", f"most packages import {imported}")
