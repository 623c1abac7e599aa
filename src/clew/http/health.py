"""The routes of health, for an app of FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from clew.health import answers, loops, work
from clew.health.answers import PATIENCE_S, Answer
from clew.health.check import HealthReport
from clew.health.monitor import monitor
from clew.health.sweep import Sweep
from clew.http.access import Caller, admin_token_in_force, refusal_to_read
from clew.instrumentation.asgi.unobserved import unobserved

NO_STORE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_DESCRIPTION: Final = "200 when it is of use, 503 when it is not."


class Refused(BaseModel):
    """Why a request is refused, and what to do."""

    detail: str


def make_router() -> APIRouter:
    """Return a router with the routes of health. Polls of them are neither traced nor counted."""
    router = APIRouter(tags=["health"], lifespan=_live)
    for path, summary, model, answer in (
        ("/health", "How the process is, and each check", answers.Health, _polled(answers.health)),
        ("/healthz", "How the process is, in a word", answers.Overall, _polled(answers.overall)),
        ("/livez", "Whether the process lives", answers.Alive, _alive),
        ("/readyz", "Whether the process takes work", answers.Ready, _ready),
        ("/status", "What the process is, and how", answers.ServiceStatus, _polled(answers.service)),
        ("/status/detailed", "What each check found", answers.DetailedStatus, _guarded(_detailed)),
        (
            "/scheduler",
            "The schedulers of the process and their jobs",
            work.Schedulers,
            _guarded(work.scheduled_async),
        ),
    ):
        _add(router, path, summary, model, answer)
    return router


@asynccontextmanager
async def _live(_app: Any) -> AsyncIterator[None]:
    """Look for the first time before the first poll comes."""
    monitor.prepare()
    loops.note_loop()
    Sweep(monitor.watchers(), patience_s=0)
    yield


def _add(
    router: APIRouter,
    path: str,
    summary: str,
    model: type[BaseModel],
    answer: Callable[[Request], Awaitable[JSONResponse]],
) -> None:
    responses: dict[int | str, dict[str, Any]] = {503: {"model": model, "description": "It is of no use now"}}
    if path in ("/status/detailed", "/scheduler"):
        responses |= {
            401: {"model": Refused, "description": "The admin token is missing or wrong"},
            403: {"model": Refused, "description": "Only programs on this machine, or with the admin token"},
        }
    unobserved(answer, path)
    name = path.strip("/").replace("/", "_")
    router.add_api_route(
        path,
        answer,
        methods=["GET"],
        response_model=model,
        responses=responses,
        summary=summary,
        description=_DESCRIPTION,
        name=name,
    )
    # Load balancers ask so
    router.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False, name=f"{name}_head")


def _polled(tell: Callable[[HealthReport], Answer]) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def answer(_request: Request) -> JSONResponse:
        return _json(tell(await monitor.look_async(patience_s=PATIENCE_S)))

    return answer


async def _alive(_request: Request) -> JSONResponse:
    # That this runs is the event loop's answer
    loops.note_loop()
    return _json(answers.alive(loop_answers=True))


async def _ready(_request: Request) -> JSONResponse:
    return _json(answers.ready(await monitor.look_async(critical_only=True, patience_s=PATIENCE_S)))


def _guarded(tell: Callable[[], Awaitable[Answer]]) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def answer(request: Request) -> JSONResponse:
        refusal = refusal_to_read(Caller.of(request), admin_token_in_force())
        if refusal is not None:
            headers = {**NO_STORE, "WWW-Authenticate": "Bearer"} if refusal.status == 401 else NO_STORE
            return JSONResponse({"detail": refusal.message}, refusal.status, headers)
        return _json(await tell())

    return answer


async def _detailed() -> Answer:
    return answers.detailed(await monitor.look_async(patience_s=PATIENCE_S), monitor)


def _json(answer: Answer) -> JSONResponse:
    return JSONResponse(answer.body.model_dump(mode="json"), answer.status, NO_STORE)
