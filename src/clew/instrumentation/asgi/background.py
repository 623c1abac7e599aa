"""Starlette's background tasks, which run after the response, in a span of their own.

What else an app does after its response (exits of dependencies with ``yield``, a plain ASGI app's own work) is no task that could
be told from the request beforehand: it is seen by :mod:`clew.instrumentation.asgi.request`, which makes a span of it where it took
long.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import wrapt

from clew.diagnostics import report
from clew.engine.operation import Operation
from clew.instrumentation.asgi.request import HttpExchange, current_exchange

_PATCHED: Final = "_clew_runs_in_a_span"


@functools.cache
def follow_background_tasks() -> None:
    """Give background tasks a span, whether Starlette is imported already or only later."""
    wrapt.when_imported("starlette.background")(_follow)
    # A subclass, with a call of its own
    wrapt.when_imported("fastapi.background")(_follow)


def _follow(module: Any) -> None:
    kinds: list[Any] = [vars(module)[name] for name in ("BackgroundTask", "BackgroundTasks") if name in vars(module)]
    for kind in kinds:
        call = vars(kind).get("__call__")
        if call is not None and not hasattr(call, _PATCHED):
            kind.__call__ = _traced(call)


def _traced(call: Any) -> Any:
    @functools.wraps(call)
    async def run(self: Any) -> None:
        exchange = current_exchange()
        operation = _begin(exchange) if exchange is not None else None
        if exchange is None or operation is None:
            await call(self)
            return
        error: BaseException | None = None
        try:
            with operation:
                await call(self)
        except BaseException as raised:
            error = raised
            raise
        finally:
            exchange.end_background(error)

    setattr(run, _PATCHED, True)
    return run


def _begin(exchange: HttpExchange) -> Operation | None:
    try:
        return exchange.begin_background()
    except Exception as error:
        report("background task", error)
        return None
