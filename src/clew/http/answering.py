"""How a router of the history answers: who may ask, and what is said where there is no answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from fastapi import HTTPException, Request, Response
from pydantic import BaseModel
from sqlalchemy import Connection

from clew.diagnostics import report as report_problem
from clew.history.database import DatabaseError
from clew.http.access import Caller, Refusal, admin_token_in_force, refusal_to_control, refusal_to_read
from clew.http.answers import to_json
from clew.http.desk import Desk
from clew.http.health import NO_STORE, Refused

T = TypeVar("T")

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": Refused, "description": "The admin token is missing or wrong"},
    403: {"model": Refused, "description": "Only programs on this machine, or with the admin token"},
    503: {"model": Refused, "description": "The history can't be read now"},
}
"""What any route of the history may refuse with."""

NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {404: {"model": Refused, "description": "There is none of that id"}}

_RETRY_AFTER_S: Final = 5


async def may_read(request: Request) -> None:
    """Refuse who may not read: what a route depends on."""
    _heed(refusal_to_read(Caller.of(request), admin_token_in_force()))


async def may_control(request: Request) -> None:
    """Refuse who may not change anything: what a route depends on."""
    _heed(refusal_to_control(Caller.of(request), admin_token_in_force()))


async def asked_of(desk: Desk, question: Callable[[Connection], T]) -> T:
    """Return what the history answers to a question.

    Raises:
        HTTPException: there is no answer; it says why.
    """
    return await done(lambda: desk.ask(question))


async def done(work: Callable[[], Awaitable[T]]) -> T:
    """Do what a request asks for, and return what it returns.

    Raises:
        HTTPException: it could not be done; it says why, and nothing of the inside.
    """
    try:
        return await work()
    except HTTPException:
        raise
    except DatabaseError as error:
        raise HTTPException(503, str(error), {**NO_STORE, "Retry-After": str(_RETRY_AFTER_S)}) from error
    except Exception as error:
        report_problem("router", error)
        raise HTTPException(500, "the answer could not be made: see the log of the service", NO_STORE) from error


def missing(what: str) -> HTTPException:
    """Return the refusal that says what there is not."""
    return HTTPException(404, what, NO_STORE)


def as_response(answer: BaseModel, *, status: int = 200) -> Response:
    """Return an answer as the response, which nobody may keep."""
    return Response(to_json(answer), status, media_type="application/json", headers=NO_STORE)


def _heed(refusal: Refusal | None) -> None:
    if refusal is not None:
        headers = {**NO_STORE, "WWW-Authenticate": "Bearer"} if refusal.status == 401 else NO_STORE
        raise HTTPException(refusal.status, refusal.message, headers)
