"""The routes of queues, for an app of FastAPI: which there are, how they do, and what went through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy import Connection

from clew.history import messages as history
from clew.history.paging import MAX_LIMIT, Row
from clew.http.answering import ERRORS, NOT_FOUND, as_response, asked_of, may_read, missing
from clew.http.desk import Desk
from clew.http.queue_answers import MessagesAnswer, QueuesAnswer, QueueStatisticsAnswer, WholeMessage
from clew.http.queue_questions import MessagesQuestion, QueuesQuestion


def make_router() -> APIRouter:
    """Return a router with the routes of queues."""
    desk = Desk()
    router = APIRouter(prefix="/queues", tags=["queues"], responses=ERRORS, dependencies=[Depends(may_read)])

    @router.get(
        "",
        response_model=QueuesAnswer,
        summary="The queues that messages went through, and what waits in those that are watched",
    )
    async def queues(asked: Annotated[QueuesQuestion, Query()]) -> Response:
        return as_response(await asked_of(desk, lambda found: QueuesAnswer.of(*_known(found, asked))))

    @router.get("/stats", response_model=QueueStatisticsAnswer, summary="Statistics of queues, types and sources")
    async def stats(asked: Annotated[QueuesQuestion, Query()]) -> Response:
        return as_response(await asked_of(desk, lambda found: QueueStatisticsAnswer.of(*_known(found, asked))))

    @router.get("/messages", response_model=MessagesAnswer, summary="Messages, newest first")
    async def messages(asked: Annotated[MessagesQuestion, Query()]) -> Response:
        limit = min(asked.limit, MAX_LIMIT)
        wanted = asked.filter()
        page = await asked_of(
            desk, lambda found: history.page(found, wanted, after=asked.after, before=asked.before, limit=limit)
        )
        return as_response(MessagesAnswer.of(page, limit=limit))

    @router.get("/messages/{record_id}", response_model=WholeMessage, responses=NOT_FOUND, summary="One message")
    async def message(record_id: str) -> Response:
        row = await asked_of(desk, lambda found: history.MESSAGES.one(found, record_id))
        if row is None:
            raise missing(f"there is no message {record_id[:80]!r}: it never was, or it is archived by now")
        return as_response(WholeMessage.of(row))

    return router


def _known(found: Connection, asked: QueuesQuestion) -> tuple[history.QueueReport, Sequence[Row]]:
    report = history.report(found, queue=asked.queue, limit=asked.limit)
    return report, history.depths(found, queue=asked.queue, limit=asked.limit)
