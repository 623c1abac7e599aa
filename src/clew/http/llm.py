"""The routes of LLM calls, for an app of FastAPI: what was used by whom, and the calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from clew.history import llm_calls, llm_usage
from clew.history.paging import MAX_LIMIT
from clew.http.answering import ERRORS, NOT_FOUND, as_response, asked_of, may_read, missing
from clew.http.desk import Desk
from clew.http.llm_answers import LlmCallsAnswer, LlmUsageAnswer, WholeLlmCall
from clew.http.llm_questions import CallsQuestion, UsageQuestion


def make_router() -> APIRouter:
    """Return a router with the routes of LLM calls."""
    desk = Desk()
    router = APIRouter(prefix="/llm", tags=["llm"], responses=ERRORS, dependencies=[Depends(may_read)])

    @router.get("/usage", response_model=LlmUsageAnswer, summary="What LLM calls used and cost")
    async def usage(asked: Annotated[UsageQuestion, Query()]) -> Response:
        report = await asked_of(
            desk,
            lambda found: llm_usage.report(
                found, by=asked.by, since=asked.begin(), until=asked.until, service=asked.service, limit=asked.limit
            ),
        )
        return as_response(LlmUsageAnswer.of(report))

    @router.get("/calls", response_model=LlmCallsAnswer, summary="LLM calls, newest first")
    async def calls(asked: Annotated[CallsQuestion, Query()]) -> Response:
        limit = min(asked.limit, MAX_LIMIT)
        wanted = asked.filter()
        page = await asked_of(
            desk, lambda found: llm_calls.page(found, wanted, after=asked.after, before=asked.before, limit=limit)
        )
        return as_response(LlmCallsAnswer.of(page, limit=limit))

    @router.get("/calls/{call_id}", response_model=WholeLlmCall, responses=NOT_FOUND, summary="One LLM call")
    async def call(call_id: str) -> Response:
        row = await asked_of(desk, lambda found: llm_calls.CALLS.one(found, call_id))
        if row is None:
            raise missing(f"there is no LLM call {call_id[:80]!r}: it never was, or it is archived by now")
        return as_response(WholeLlmCall.of(row))

    return router
