"""The routes of jobs, for an app of FastAPI: their runs, statistics and schedules, and control over them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Final, TypeVar, cast

from fastapi import APIRouter, Depends, HTTPException, Query, Response

from clew import clock
from clew.history import job_runs, job_statistics
from clew.history.paging import MAX_LIMIT
from clew.http import steering
from clew.http.answering import ERRORS, NOT_FOUND, as_response, asked_of, done, may_control, may_read, missing
from clew.http.desk import Desk
from clew.http.health import NO_STORE, Refused
from clew.http.job_answers import (
    CommandAnswer,
    ReportAnswer,
    RunsAnswer,
    ScheduledJobsAnswer,
    WholeRun,
)
from clew.http.job_questions import ControlQuestion, JobsQuestion, RunsQuestion, StatisticsQuestion
from clew.jobs.control import Command, UnknownJobError
from clew.jobs.schedule import Verb

T = TypeVar("T")

WAIT_S: Final = 5.0
"""How long a scheduler is waited for that was asked to do something."""


def make_router() -> APIRouter:
    """Return a router with the routes of jobs."""
    desk = Desk()
    router = APIRouter(prefix="/jobs", tags=["jobs"], responses=ERRORS)
    _add_reading(router, desk)
    for method, path, verb, summary in (
        ("POST", "/{job_id:path}/run", "run", "Run a job now, once, whatever its schedule"),
        ("POST", "/{job_id:path}/pause", "pause", "Start no more runs of a job until it is resumed"),
        ("POST", "/{job_id:path}/resume", "resume", "Let a paused job go on"),
        ("DELETE", "/{job_id:path}", "remove", "Take a job from its scheduler"),
    ):
        _add_control(router, desk, method=method, path=path, verb=cast("Verb", verb), summary=summary)
    return router


def _add_reading(router: APIRouter, desk: Desk) -> None:
    reading = [Depends(may_read)]

    @router.get("", response_model=ScheduledJobsAnswer, dependencies=reading, summary="The jobs that schedulers have")
    async def jobs(asked: Annotated[JobsQuestion, Query()]) -> Response:
        limit = min(asked.limit, job_statistics.MAX_JOBS)
        known = await _done(
            lambda: desk.do(lambda: steering.planned(desk.reader(), job=asked.job, instance=asked.instance))
        )
        return as_response(ScheduledJobsAnswer.of(known, limit=limit))

    @router.get("/runs", response_model=RunsAnswer, dependencies=reading, summary="Runs of jobs, newest first")
    async def runs(asked: Annotated[RunsQuestion, Query()]) -> Response:
        limit = min(asked.limit, MAX_LIMIT)
        wanted = asked.filter()
        page = await asked_of(
            desk, lambda found: job_runs.page(found, wanted, after=asked.after, before=asked.before, limit=limit)
        )
        return as_response(RunsAnswer.of(page, limit=limit))

    @router.get(
        "/runs/{run_id}",
        response_model=WholeRun,
        dependencies=reading,
        responses=NOT_FOUND,
        summary="One run of a job",
    )
    async def run(run_id: str) -> Response:
        row = await asked_of(desk, lambda found: job_runs.RUNS.one(found, run_id))
        if row is None:
            raise missing(f"there is no run {run_id[:80]!r}: it never was, or it is archived by now")
        return as_response(WholeRun.of(row))

    @router.get("/stats", response_model=ReportAnswer, dependencies=reading, summary="Statistics of jobs")
    async def stats(asked: Annotated[StatisticsQuestion, Query()]) -> Response:
        report = await asked_of(
            desk,
            lambda found: job_statistics.report(
                found, job=asked.job, since=asked.begin(), until=asked.until, limit=asked.limit
            ),
        )
        return as_response(ReportAnswer.of(report))


def _add_control(router: APIRouter, desk: Desk, *, method: str, path: str, verb: Verb, summary: str) -> None:
    async def steer(job_id: str, asked: Annotated[ControlQuestion, Query()]) -> Response:
        def ask() -> Command:
            return steering.ask(
                desk.reader(),
                job_id,
                verb,
                instance=asked.instance,
                scheduler=asked.scheduler,
                requested_by=asked.user,
            )

        command = await _done(lambda: desk.do(ask))
        deadline = clock.monotonic_s() + WAIT_S
        while command.outcome is None and clock.monotonic_s() < deadline:
            await asyncio.sleep(steering.POLL_S)
            command = await _done(partial(desk.do, partial(_outcome, desk, command)))
        if command.outcome is not None and not command.outcome.startswith("done"):
            raise HTTPException(409, command.outcome, NO_STORE)
        return as_response(CommandAnswer.of(command), status=202 if command.outcome is None else 200)

    router.add_api_route(
        path,
        steer,
        methods=[method],
        response_model=CommandAnswer,
        dependencies=[Depends(may_control)],
        responses={
            **NOT_FOUND,
            202: {"model": CommandAnswer, "description": "The scheduler has not taken it yet; it may within a minute"},
            409: {"model": Refused, "description": "The scheduler refused, or it failed"},
        },
        summary=summary,
        name=f"{verb}_job",
    )


def _outcome(desk: Desk, command: Command) -> Command:
    return steering.outcome(desk.reader(), command)


async def _done(work: Callable[[], Awaitable[T]]) -> T:
    async def known() -> T:
        try:
            return await work()
        except UnknownJobError as error:
            raise missing(f"{error}, of those that are alive") from error

    return await done(known)
