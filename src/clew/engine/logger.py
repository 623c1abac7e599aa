"""Loggers for the app: structlog's, with its fast way to the log stream.

Source: https://www.structlog.org/en/stable/custom-wrappers.html
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final, cast

import structlog

from clew.engine.logs import SEVERITIES, EventDict, LogStream, error_of

_OWN_PACKAGES: Final = ("clew.", "structlog.", "logging")
_LEVELS: Final = {"warn": "warning", "exception": "error", "fatal": "critical"}
_MAX_REMEMBERED: Final = 10_000

_stream: Callable[[], LogStream] | None = None
_places: Final[dict[CodeType, tuple[str, str]]] = {}


def prepare(current_stream: Callable[[], LogStream]) -> None:
    """Configure structlog, so that loggers made before :func:`clew.configure` work as those made after.

    Args:
        current_stream: gives the stream when something is logged, configuring clew when nobody has.
    """
    global _stream
    is_first, _stream = _stream is None, current_stream
    if is_first:
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, _finish],
            wrapper_class=_Logger,
            logger_factory=_factory,
            cache_logger_on_first_use=True,
        )


class _Logger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]
    """A structlog logger that heeds the level before anything else is done."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> Any:
        processors = self._processors
        if processors[-1] is not _finish:
            # A test has put its own in their place
            return super()._proxy_to_logger(method_name, event, **fields)
        severity = SEVERITIES.get(method_name) or SEVERITIES["info"]
        stream = cast("Callable[[], LogStream]", _stream)()
        if severity.threshold < stream.level:
            return None
        if self._context:
            fields = {**self._context, **fields}
        fields = processors[0](self._logger, method_name, fields)
        _write(stream, self._logger, method_name, event, fields)
        return None


class _Sink:
    """What structlog takes for the logger beneath. It only knows its name: the event has been written before it is called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def msg(self, event: None) -> None:
        """Take the place of a real logger's method."""

    debug = info = warning = warn = error = critical = fatal = exception = log = failure = msg


def _factory(*args: Any) -> _Sink:
    return _Sink(str(args[0]) if args else "")


def _finish(sink: Any, method: str, event: EventDict) -> tuple[tuple[None], dict[str, Any]]:
    """End a structlog chain of others, in which clew's logger is not the wrapper."""
    _write(cast("Callable[[], LogStream]", _stream)(), sink, method, event.pop("event", ""), dict(event))
    return (None,), {}


def _write(stream: LogStream, sink: Any, method: str, event: Any, fields: dict[str, Any]) -> None:
    """Find logger and callsite, and write."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OWN_PACKAGES):
        frame = frame.f_back
    callsite, module = None, ""
    if frame is not None:
        code = frame.f_code
        file, function = _places.get(code) or _place(code)
        callsite, module = (file, frame.f_lineno, function), frame.f_globals.get("__name__", "")
    error = error_of(fields.pop("exc_info")) if "exc_info" in fields else None
    if fields.pop("stack_info", None):
        fields["stack"] = structlog.processors.StackInfoRenderer()(None, "", {"stack_info": True}).get("stack", "")
    stream.take(
        _LEVELS.get(method, method),
        event if type(event) is str else str(event),
        sink.name or module,
        fields,
        callsite=callsite,
        error=error,
    )


def _place(code: CodeType) -> tuple[str, str]:
    place = code.co_filename.rsplit("/", 1)[-1], code.co_name
    if len(_places) < _MAX_REMEMBERED:
        _places[code] = place
    return place


def get_logger(name: str = "", **fields: Any) -> structlog.typing.FilteringBoundLogger:
    """Return a structlog logger. Key-value pairs are fields; ``bind`` adds some for good.

    Args:
        name: the logger's name; by default the module that logs.
        fields: fields of every event.

    Example:
        >>> import clew
        >>> log = clew.get_logger()
        >>> log.info("order.placed", order_id=17)
    """
    if _stream is None:
        from clew.engine.runtime import current_log_stream

        prepare(current_log_stream)
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(*([name] if name else []), **fields))
