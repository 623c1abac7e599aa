"""redis-py: an operation for each command and pipeline, with the names of commands and never their keys or values.

A thin patch of our own. OpenTelemetry's instrumentation starts a trace for each command outside of any, so a consumer that
polls an empty queue makes one a second; and it records the text of pipelines' errors, which redis-py fills with arguments.

Source: https://opentelemetry.io/docs/specs/semconv/database/redis/
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import redis
import redis.asyncio
import redis.asyncio.client
import redis.asyncio.cluster
import redis.client
import redis.cluster
import wrapt

from clew.catalog import semconv
from clew.instrumentation.database import begin_query, end_query, is_at_work

T = TypeVar("T")

_MARK: Final = "_clew_instrumented"
_COMMAND: Final = re.compile(r"[A-Z][A-Z_.-]*(?: [A-Z][A-Z_-]*)?", re.ASCII)
_ERROR_CODE: Final = re.compile(r"[A-Z][A-Z_]{2,}(?= |$)", re.ASCII)
_MAX_NAME_LENGTH: Final = 48

_under_way: ContextVar[bool] = ContextVar("clew_redis_command", default=False)

_SYNC_CLIENTS: Final = (redis.Redis, redis.RedisCluster)
_ASYNC_CLIENTS: Final = (redis.asyncio.Redis, redis.asyncio.RedisCluster)
_SYNC_PIPELINES: Final = (redis.client.Pipeline, redis.cluster.ClusterPipeline)
_ASYNC_PIPELINES: Final = (redis.asyncio.client.Pipeline, redis.asyncio.cluster.ClusterPipeline)


def _command(args: tuple[Any, ...]) -> str:
    """Return the name of a command; what does not look like one is somebody's value."""
    name = args[0] if args else ""
    text = name.decode("latin-1") if isinstance(name, bytes) else str(name)
    text = text[: _MAX_NAME_LENGTH + 1].upper()
    return text if len(text) <= _MAX_NAME_LENGTH and _COMMAND.fullmatch(text) else "OTHER"


def _queued(pipeline: Any) -> list[str]:
    """Return the names of the commands that a pipeline is about to send."""
    strategy = getattr(pipeline, "_execution_strategy", None)  # a cluster's
    queue = pipeline.command_stack if strategy is None else strategy._command_queue
    return [_command(getattr(item, "args", None) or item[0]) for item in queue]


def _title(commands: list[str]) -> str:
    """Return what a pipeline is called: of one kind of command, it is named after it."""
    return f"PIPELINE {commands[0]}" if len(set(commands)) == 1 else "PIPELINE"


def _where(client: Any) -> dict[str, Any]:
    """Return where a client is connected to."""
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None) or {}
    found = {
        semconv.SERVER_ADDRESS: settings.get("host") or settings.get("path"),
        semconv.SERVER_PORT: settings.get("port"),
        semconv.DB_NAMESPACE: str(settings.get("db") or 0),
    }
    return {key: value for key, value in found.items() if value is not None}


def _error_code(error: Exception) -> str:
    """Return the code that the server's error starts with, such as ``WRONGTYPE``."""
    if not isinstance(error, redis.ResponseError):
        return ""
    # redis-py takes ERR and the like off, and writes a pipeline's command before the error
    text = str(error).rpartition("caused error: ")[2]
    found = _ERROR_CODE.match(text)
    return found.group() if found else ""


class _Query:
    """The operation of one command or pipeline, around the call that sends it."""

    __slots__ = ("_attributes", "_client", "_name", "_query", "_token")

    def __init__(self, client: Any, name: str, **attributes: Any) -> None:
        self._client = client
        self._name = name
        self._attributes = attributes

    def __enter__(self) -> None:
        self._token = _under_way.set(True)
        self._query = begin_query("redis", self._name, {**_where(self._client), **self._attributes})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        _under_way.reset(self._token)
        end_query(self._query, error, _error_code(error) if isinstance(error, Exception) else "")


def _is_measured() -> bool:
    # A client that is instrumented twice, by itself and with all others, asks twice for each command
    return not _under_way.get() and is_at_work()


def _execute(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _is_measured():
        return wrapped(*args, **kwargs)
    with _Query(client, _command(args)):
        return wrapped(*args, **kwargs)


async def _execute_async(
    wrapped: Callable[..., Awaitable[Any]], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if not _is_measured():
        return await wrapped(*args, **kwargs)
    with _Query(client, _command(args)):
        return await wrapped(*args, **kwargs)


def _execute_pipeline(wrapped: Callable[..., Any], pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _is_measured() or not (queued := _queued(pipeline)):
        return wrapped(*args, **kwargs)
    with _Query(pipeline, _title(queued), **{semconv.DB_OPERATION_BATCH_SIZE: len(queued)}):
        return wrapped(*args, **kwargs)


async def _execute_pipeline_async(
    wrapped: Callable[..., Awaitable[Any]], pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if not _is_measured() or not (queued := _queued(pipeline)):
        return await wrapped(*args, **kwargs)
    with _Query(pipeline, _title(queued), **{semconv.DB_OPERATION_BATCH_SIZE: len(queued)}):
        return await wrapped(*args, **kwargs)


def _pipeline(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Instrument the pipelines of one instrumented client."""
    return instrument(wrapped(*args, **kwargs))


def _patch(owner: Any, kind: type) -> None:
    """Patch a client or pipeline, or the class of one."""
    if issubclass(kind, (*_SYNC_PIPELINES, *_ASYNC_PIPELINES)):
        sync = issubclass(kind, _SYNC_PIPELINES)
        wrapt.wrap_function_wrapper(owner, "execute", _execute_pipeline if sync else _execute_pipeline_async)
        if hasattr(kind, "immediate_execute_command"):
            # What a pipeline asks while it watches keys
            name = "immediate_execute_command"
            wrapt.wrap_function_wrapper(owner, name, _execute if sync else _execute_async)
    else:
        sync = issubclass(kind, _SYNC_CLIENTS)
        wrapt.wrap_function_wrapper(owner, "execute_command", _execute if sync else _execute_async)
        if owner is not kind:
            wrapt.wrap_function_wrapper(owner, "pipeline", _pipeline)
    setattr(owner, _MARK, True)


def instrument(target: T) -> T:
    """Instrument a client in place, with its pipelines. Twice is harmless.

    Args:
        target: a synchronous or asynchronous client of redis-py, for one server or a cluster.

    Raises:
        TypeError: it is none.

    Example:
        >>> client = instrument(redis.Redis())
    """
    kinds = (*_SYNC_CLIENTS, *_ASYNC_CLIENTS, *_SYNC_PIPELINES, *_ASYNC_PIPELINES)
    if not isinstance(target, kinds):
        raise TypeError(f"a {type(target).__qualname__} is no redis client")
    if _MARK not in vars(target) and not any(_MARK in vars(kind) for kind in type(target).__mro__):
        _patch(target, type(target))
    return target


def instrument_all() -> None:
    """Instrument every client of redis-py, those that exist included. Twice is harmless."""
    for kind in (*_SYNC_CLIENTS, *_ASYNC_CLIENTS, *_SYNC_PIPELINES, *_ASYNC_PIPELINES):
        if _MARK not in vars(kind):
            _patch(kind, kind)
