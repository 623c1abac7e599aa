"""The JSON API under /api/: the questions of `clew.console.queries`, as GET requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clew.console import queries
from clew.console.answers import (
    log_json,
    metric_series_json,
    metric_summary_json,
    summary_json,
    trace_json,
    trace_summary_json,
)
from clew.console.errors import QueryError, StoreUnavailableError
from clew.console.parameters import Parameters
from clew.console.store import Store
from clew.http.access import Caller, refusal_to_read

_Question: TypeAlias = Callable[[Parameters], dict[str, Any]]

_MOST_ITEMS = 1_000
_MOST_SPANS = 10_000
_MOST_POINTS = 5_000
_DEFAULT_ITEMS = 100
_DEFAULT_POINTS = 500

_NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class NotInStoreError(Exception):
    """What was asked for by id or name is not in the store; the text says what."""


class Api:
    """Answers questions about a store in JSON.

    Args:
        store: where to look.
        admin_token: bearer token that lets clients on other machines look; None lets only this machine.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     Api(store).routes()[0].path
        '/api/summary'
    """

    def __init__(self, store: Store, *, admin_token: str | None = None) -> None:
        self._store = store
        self._admin_token = admin_token

    def routes(self) -> list[Route]:
        """Return the API's routes."""
        questions: dict[str, _Question] = {
            "/api/summary": self._summary,
            "/api/traces": self._traces,
            "/api/traces/{trace_id}": self._trace,
            "/api/logs": self._logs,
            "/api/metrics": self._metrics,
            "/api/metrics/{name:path}": self._metric,
        }
        routes = [Route(path, self._endpoint(question), methods=["GET"]) for path, question in questions.items()]
        return [*routes, Route("/api/healthz", self._healthz, methods=["GET"])]

    def _endpoint(self, question: _Question) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            refusal = refusal_to_read(Caller.of(request), self._admin_token, variable="CLEW_CONSOLE_ADMIN_TOKEN")
            if refusal is not None:
                return error_answer(refusal.status, refusal.message)
            try:
                content = await run_in_threadpool(question, Parameters(request.query_params, request.path_params))
            except QueryError as error:
                return error_answer(422, str(error))
            except NotInStoreError as error:
                return error_answer(404, str(error))
            except StoreUnavailableError as error:
                return error_answer(503, str(error))
            return JSONResponse(content, headers=_NO_STORE)

        return answer

    async def _healthz(self, _request: Request) -> Response:
        """Say whether the latest write worked; open to all, since it shows no telemetry."""
        if self._store.failure is not None:
            return error_answer(503, self._store.failure)
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    def _summary(self, parameters: Parameters) -> dict[str, Any]:
        parameters.refuse_others()
        return summary_json(queries.summary(self._store))

    def _traces(self, parameters: Parameters) -> dict[str, Any]:
        conditions: dict[str, Any] = {
            "service": parameters.text("service"),
            "operation": parameters.text("operation"),
            "min_duration_s": parameters.seconds("min_duration_s"),
            "errors_only": parameters.flag("errors_only"),
            "since": parameters.time("since"),
            "until": parameters.time("until"),
            "text": parameters.text("text"),
        }
        limit = parameters.limit(default=_DEFAULT_ITEMS, most=_MOST_ITEMS)
        parameters.refuse_others()
        found = queries.traces(self._store, **conditions, limit=limit)
        return {"traces": [trace_summary_json(item) for item in found], "limit": limit}

    def _trace(self, parameters: Parameters) -> dict[str, Any]:
        max_spans = parameters.limit(default=_MOST_SPANS, most=_MOST_SPANS, name="max_spans")
        parameters.refuse_others()
        trace_id = parameters.path("trace_id")
        found = queries.trace(self._store, trace_id, max_spans=max_spans)
        if found is None:
            raise NotInStoreError(f"there is no trace {trace_id} in the store: it never came in, or is deleted by now")
        return trace_json(found, queries.linked_traces(self._store, trace_id))

    def _logs(self, parameters: Parameters) -> dict[str, Any]:
        conditions: dict[str, Any] = {
            "trace_id": parameters.text("trace_id"),
            "span_id": parameters.text("span_id"),
            "service": parameters.text("service"),
            "min_severity": parameters.severity("min_severity"),
            "text": parameters.text("text"),
            "since": parameters.time("since"),
            "until": parameters.time("until"),
            "oldest_first": parameters.flag("oldest_first"),
        }
        limit = parameters.limit(default=_DEFAULT_ITEMS, most=_MOST_ITEMS)
        parameters.refuse_others()
        found = queries.logs(self._store, **conditions, limit=limit)
        return {"logs": [log_json(item) for item in found], "limit": limit}

    def _metrics(self, parameters: Parameters) -> dict[str, Any]:
        parameters.refuse_others()
        return {"metrics": [metric_summary_json(item) for item in queries.metrics(self._store)]}

    def _metric(self, parameters: Parameters) -> dict[str, Any]:
        service = parameters.text("service")
        since = parameters.time("since")
        until = parameters.time("until")
        max_series = parameters.limit(default=_DEFAULT_ITEMS, most=_MOST_ITEMS, name="max_series")
        max_points = parameters.limit(default=_DEFAULT_POINTS, most=_MOST_POINTS, name="max_points")
        parameters.refuse_others()
        name = parameters.path("name")
        found = queries.metric_series(
            self._store,
            name,
            service=service,
            since=since,
            until=until,
            max_series=max_series,
            max_points=max_points,
        )
        if not found:
            sender = "" if service is None else f" from service {service[:80]!r}"
            raise NotInStoreError(f"there is no metric {name[:80]!r}{sender} in the store: /api/metrics lists them")
        return {"name": name, "series": [metric_series_json(item) for item in found]}


def error_answer(status: int, message: str) -> JSONResponse:
    """Return a JSON error: ``{"error": {"status": 404, "message": "one sentence"}}``.

    Args:
        status: HTTP status code.
        message: one sentence that says what is wrong and what to do.

    Example:
        >>> error_answer(404, "there is no such trace").body
        b'{"error":{"status":404,"message":"there is no such trace"}}'
    """
    headers = dict(_NO_STORE)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"status": status, "message": message}}, status, headers)
