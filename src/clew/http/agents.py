"""The routes of agents, for an app of FastAPI: which there are and how they do, their tasks, handoffs, and who hands to whom."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from clew.history import agent_tasks, agents, handoffs
from clew.history.agents import AgentStatistics
from clew.history.paging import MAX_LIMIT
from clew.http.agent_answers import (
    AgentsAnswer,
    GraphAnswer,
    HandoffsAnswer,
    TasksAnswer,
    WholeAgent,
    WholeHandoff,
    WholeTask,
)
from clew.http.agent_drawing import draw
from clew.http.agent_questions import AgentQuestion, AgentsQuestion, GraphQuestion, HandoffsQuestion, TasksQuestion
from clew.http.answering import ERRORS, NOT_FOUND, as_response, asked_of, may_read, missing
from clew.http.desk import Desk
from clew.http.health import NO_STORE

SVG: Final = "image/svg+xml"
# A picture runs nothing and fetches nothing, whatever an agent is called
_HARMLESS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def make_router() -> APIRouter:
    """Return a router with the routes of agents."""
    desk = Desk()
    router = APIRouter(prefix="/agents", tags=["agents"], responses=ERRORS, dependencies=[Depends(may_read)])
    _add_tasks(router, desk)
    _add_handoffs(router, desk)
    # Last, because an agent may be called anything
    _add_agents(router, desk)
    return router


def _add_tasks(router: APIRouter, desk: Desk) -> None:
    @router.get("/tasks", response_model=TasksAnswer, summary="Tasks of agents, newest first")
    async def tasks(asked: Annotated[TasksQuestion, Query()]) -> Response:
        limit = min(asked.limit, MAX_LIMIT)
        wanted = asked.filter()
        page = await asked_of(
            desk, lambda found: agent_tasks.page(found, wanted, after=asked.after, before=asked.before, limit=limit)
        )
        return as_response(TasksAnswer.of(page, limit=limit))

    @router.get("/tasks/{record_id}", response_model=WholeTask, responses=NOT_FOUND, summary="One task of an agent")
    async def task(record_id: str) -> Response:
        row = await asked_of(desk, lambda found: agent_tasks.TASKS.one(found, record_id))
        if row is None:
            raise missing(f"there is no task {record_id[:80]!r}: it never was, or it is archived by now")
        return as_response(WholeTask.of(row))


def _add_handoffs(router: APIRouter, desk: Desk) -> None:
    @router.get("/handoffs", response_model=HandoffsAnswer, summary="Handoffs between agents, newest first")
    async def all_handoffs(asked: Annotated[HandoffsQuestion, Query()]) -> Response:
        limit = min(asked.limit, MAX_LIMIT)
        wanted = asked.filter()
        page = await asked_of(
            desk, lambda found: handoffs.page(found, wanted, after=asked.after, before=asked.before, limit=limit)
        )
        return as_response(HandoffsAnswer.of(page, limit=limit))

    @router.get("/handoffs/{record_id}", response_model=WholeHandoff, responses=NOT_FOUND, summary="One handoff")
    async def handoff(record_id: str) -> Response:
        row = await asked_of(desk, lambda found: handoffs.HANDOFFS.one(found, record_id))
        if row is None:
            raise missing(f"there is no handoff {record_id[:80]!r}: it never was, or it is archived by now")
        return as_response(WholeHandoff.of(row))

    @router.get(
        "/graph",
        response_model=GraphAnswer,
        responses={200: {"content": {SVG: {}}, "description": "JSON, or a picture"}},
        summary="Who hands to whom, how often, how long it takes, and what fails",
    )
    async def graph(asked: Annotated[GraphQuestion, Query()], request: Request) -> Response:
        found = await asked_of(
            desk,
            lambda connection: handoffs.graph(connection, agent=asked.agent, since=asked.begin(), until=asked.until),
        )
        if (asked.format or _preferred(request.headers.get("accept", ""))) == "svg":
            return Response(draw(found), media_type=SVG, headers={**NO_STORE, **_HARMLESS, "Vary": "Accept"})
        answer = as_response(GraphAnswer.of(found))
        answer.headers["Vary"] = "Accept"
        return answer


def _add_agents(router: APIRouter, desk: Desk) -> None:
    @router.get("", response_model=AgentsAnswer, summary="Agents, in which state they are, and how they do")
    async def all_agents(asked: Annotated[AgentsQuestion, Query()]) -> Response:
        found = await asked_of(
            desk,
            lambda connection: agents.listed(
                connection,
                type=asked.type,
                service=asked.service,
                state=asked.state,
                since=asked.begin(),
                until=asked.until,
                limit=asked.limit,
            ),
        )
        return as_response(AgentsAnswer.of(found))

    @router.get("/{name:path}", response_model=WholeAgent, responses=NOT_FOUND, summary="One agent, in each process")
    async def agent(name: str, asked: Annotated[AgentQuestion, Query()]) -> Response:
        if "\x00" in name:
            raise missing("there is no such agent")
        known, report = await asked_of(
            desk,
            lambda found: (
                agents.registered(found, agent=name),
                agents.statistics(found, agents=[name], since=asked.begin(), until=asked.until),
            ),
        )
        if not known:
            raise missing(f"there is no agent {name[:80]!r}: no process has registered it")
        figures = report.agents[0] if report.agents else AgentStatistics(agent=name)
        return as_response(WholeAgent.of_agent(known[0], figures))


def _preferred(accept: str) -> str:
    """Return what an Accept header would rather have: a picture only where it asks for one before JSON or anything else."""
    for part in accept.split(","):
        kind = part.split(";")[0].strip().lower()
        if kind == SVG:
            return "svg"
        if kind in ("application/json", "*/*"):
            return "json"
    return "json"
