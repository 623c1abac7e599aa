"""Logs: structlog for the app, one handler for everything that still speaks ``logging``, and one way from both to OTLP.

A log event is a dictionary. It gets time, level, callsite, service, correlation, trace and span ids; it is redacted; it is
written to standard error, coloured on a terminal and as a JSON line elsewhere; and it is queued as an OTLP log record.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO, cast

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.pipeline.coercion import MAX_STACKTRACE_LENGTH, attribute_value, clean
from clew.pipeline.current import get_current
from clew.pipeline.providers import SCOPE, Pipeline
from clew.pipeline.records import Facts, LogItem
from clew.pipeline.redaction import Redactor
from clew.pipeline.tracing import CORRELATION_KEY, SPAN_KEY, RecordedSpan
from clew.settings import Settings

EventDict = MutableMapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Severity:
    """A level, as OTLP and as ``logging`` have it."""

    number: int
    text: str
    threshold: int


SEVERITIES: Final = {
    "debug": Severity(number=5, text="DEBUG", threshold=logging.DEBUG),
    "info": Severity(number=9, text="INFO", threshold=logging.INFO),
    "warning": Severity(number=13, text="WARN", threshold=logging.WARNING),
    "warn": Severity(number=13, text="WARN", threshold=logging.WARNING),
    "error": Severity(number=17, text="ERROR", threshold=logging.ERROR),
    "exception": Severity(number=17, text="ERROR", threshold=logging.ERROR),
    "critical": Severity(number=21, text="FATAL", threshold=logging.CRITICAL),
    "fatal": Severity(number=21, text="FATAL", threshold=logging.CRITICAL),
}
# Names of the line itself, which fields of an event do not take the place of
_RESERVED: Final = frozenset(
    {"event", "level", "logger", "timestamp", "service", "trace_id", "span_id", "exc_info", "exception"}
)
_FIXED: Final = frozenset({int, float, bool, type(None)})
# The last is uvicorn's: the message once more, with colours
_STANDARD_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}

# Celery's lines have the arguments of a task beside what they say
_NOT_SHOWN: Final = {"celery.app.trace": "data", "celery.worker.strategy": "data"}

_Thread = tuple[str | None, SpanContext]
"""What ties a log event to the work it is part of: its correlation id and its span."""


_new_tuple: Final[Any] = tuple.__new__


class LogStream:
    """The one way of a log event: enrich, redact, write, queue.

    Args:
        settings: level and format.
        redactor: replaces secrets in fields and messages.
        pipeline: takes records to OTLP; ``None`` where logs are off.
    """

    def __init__(self, settings: Settings, redactor: Redactor, pipeline: Pipeline | None) -> None:
        self.level = SEVERITIES[settings.log_level].threshold
        self._max_length = settings.max_value_length
        self._redactor = redactor
        self._pipeline = pipeline if pipeline is not None and settings.enabled("logs") else None
        self._add_log = self._pipeline.add_log if self._pipeline is not None else None
        self._service = _service_name(settings, pipeline)
        self._scopes: dict[str, InstrumentationScope] = {}
        self._render = _renderer(settings)
        self._writes_all = settings.log_format != "none"

    def take(
        self,
        level: str,
        event: str,
        logger_name: str,
        fields: Mapping[str, Any],
        *,
        callsite: tuple[str, int, str] | None = None,
        error: BaseException | None = None,
        time_ns: int | None = None,
    ) -> None:
        """Take one event of the work at hand all the way. Never raises.

        Args:
            level: a key of the levels, such as ``warning``.
            event: what happened.
            logger_name: who says so.
            fields: more about it.
            callsite: file, line and function.
            error: the exception that it is about.
            time_ns: when it happened, in nanoseconds since the epoch; by default now.
        """
        severity = SEVERITIES.get(level) or SEVERITIES["info"]
        if severity.threshold < self.level:
            return
        try:
            context = get_current()
            span: Any = context.get(SPAN_KEY)
            if span is None:
                ids = trace.INVALID_SPAN_CONTEXT
            else:
                ids = span._context if isinstance(span, RecordedSpan) else span.get_span_context()
            thread: _Thread = context.get(CORRELATION_KEY), ids  # type: ignore[assignment]
            if time_ns is None:
                time_ns = clock.now_ns()
            stacktrace = _stacktrace(error) if error is not None else None
            if self._pipeline is not None:
                attributes = self._attributes(fields)
                if callsite is not None:
                    (
                        attributes[semconv.CODE_FILE_PATH],
                        attributes[semconv.CODE_LINE_NUMBER],
                        attributes[semconv.CODE_FUNCTION_NAME],
                    ) = callsite
                self._queue(time_ns, severity, event, logger_name, attributes, thread, error, stacktrace)
            if self._writes_all or (severity.threshold >= logging.WARNING and _is_own(logger_name)):
                self._write(time_ns, level, event, logger_name, fields, callsite, thread, stacktrace)
        except Exception as problem:
            report("log", problem)

    def take_event(
        self,
        level: str,
        event: str,
        logger_name: str,
        fields: Mapping[str, Any] | Facts,
        duration_ns: int | None,
        context: Context,
        span: trace.Span,
        error: BaseException | None,
    ) -> None:
        """Take an event of an operation.

        Args:
            level: as in :meth:`take`.
            event: what happened.
            logger_name: who says so.
            fields: more about it, or what it is made from when it is sent.
            duration_ns: how long it took, where it has ended.
            context: where its correlation id is.
            span: what it is part of.
            error: the exception that it is about.
        """
        severity = SEVERITIES[level]
        if severity.threshold < self.level or (self._add_log is None and not self._writes_all):
            return
        try:
            time_ns = clock.now_ns()
            ids = span._context if isinstance(span, RecordedSpan) else span.get_span_context()
            if not isinstance(fields, dict):
                facts = cast("Facts", fields)
                deferred = facts.at_start
                if duration_ns is not None:
                    facts.duration_ns = duration_ns
                    deferred = facts.at_end
                if error is None and not self._writes_all and self._add_log is not None:
                    scope = self._scopes.get(logger_name) or self._scope(logger_name)
                    self._add_log(
                        _new_tuple(
                            LogItem,
                            (
                                time_ns,
                                severity.number,
                                severity.text,
                                event,
                                deferred,
                                ids[0],
                                ids[1],
                                ids[3],
                                scope,
                            ),
                        )
                    )
                    return
                fields = deferred()
            elif duration_ns is not None:
                fields = {**fields, "duration_s": round(duration_ns / 1e9, 6)}
            thread: _Thread = cast("str | None", context.get(CORRELATION_KEY)), ids
            stacktrace = _stacktrace(error) if error is not None else None
            if self._pipeline is not None:
                attributes = self._attributes(fields)
                self._queue(time_ns, severity, event, logger_name, attributes, thread, error, stacktrace)
            # What happens to the app's own work is no warning of clew's
            if self._writes_all:
                self._write(time_ns, level, event, logger_name, fields, None, thread, stacktrace)
        except Exception as problem:
            report("log", problem)

    def _queue(
        self,
        time_ns: int,
        severity: Severity,
        event: str,
        logger_name: str,
        attributes: dict[str, Any],
        thread: _Thread,
        error: BaseException | None,
        stacktrace: str | None,
    ) -> None:
        correlation_id, ids = thread
        if correlation_id is not None and "correlation_id" not in attributes:
            attributes["correlation_id"] = correlation_id
        if error is not None:
            attributes[semconv.EXCEPTION_TYPE] = type(error).__qualname__
            attributes[semconv.EXCEPTION_MESSAGE] = clean(_message(error), self._max_length)
            attributes[semconv.EXCEPTION_STACKTRACE] = stacktrace
        if len(event) > self._max_length:
            event = clean(event, self._max_length)
        scope = self._scopes.get(logger_name) or self._scope(logger_name)
        number, text = severity.number, severity.text
        item = _new_tuple(LogItem, (time_ns, number, text, event, attributes, ids[0], ids[1], ids[3], scope))
        cast("Callable[[LogItem], None]", self._add_log)(item)

    def _attributes(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields as they are now: what may change before it is sent is turned into something that does not."""
        attributes: dict[str, Any] = {}
        for key, value in fields.items():
            if key not in _RESERVED:
                kind = type(value)
                if kind in _FIXED or (kind is str and len(value) <= self._max_length):
                    attributes[key] = value
                else:
                    # Before it becomes a text, in which the keys of a container are no keys any more
                    shown = self._redactor.value(key, value)
                    attributes[key] = attribute_value(shown, max_length=self._max_length)
        return attributes

    def _write(
        self,
        time_ns: int,
        level: str,
        event: str,
        logger_name: str,
        fields: Mapping[str, Any],
        callsite: tuple[str, int, str] | None,
        thread: _Thread,
        stacktrace: str | None,
    ) -> None:
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "event": self._redactor.text(event),
            "logger": logger_name,
            "service": self._service,
        }
        for key, value in fields.items():
            if key not in _RESERVED:
                kind = type(value)
                line[key] = value if kind is int or kind is float else self._redactor.value(key, value)
        if callsite is not None:
            line["filename"], line["lineno"], line["func_name"] = callsite
        correlation_id, ids = thread
        if correlation_id is not None:
            line.setdefault("correlation_id", correlation_id)
        if ids[5]:
            line["trace_id"] = trace.format_trace_id(ids[0])
            line["span_id"] = trace.format_span_id(ids[1])
        if stacktrace is not None:
            line["exception"] = self._redactor.text(stacktrace)
        render = cast("Callable[..., str]", self._render)
        terminal = _terminal or sys.stderr
        terminal.write(f"{render(None, level, line)}\n")
        terminal.flush()

    def _scope(self, name: str) -> InstrumentationScope:
        scope = self._scopes.get(name)
        if scope is None:
            scope = InstrumentationScope(name, SCOPE.version if name.startswith("clew") else "")
            if len(self._scopes) < 1_000:
                self._scopes[name] = scope
        return scope


class LoggingBridge(logging.Handler):
    """Takes what libraries say through ``logging`` to the same stream, once."""

    def __init__(self, stream: LogStream) -> None:
        super().__init__(level=logging.NOTSET)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Turn a record of ``logging`` into a log event."""
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{record.msg} (its arguments do not fit: {error!r})"
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD_RECORD}
        fields.pop(_NOT_SHOWN.get(record.name, ""), None)
        self._stream.take(
            record.levelname.lower(),
            message,
            record.name,
            fields,
            callsite=(record.filename, record.lineno, record.funcName),
            error=error_of(record.exc_info),
            time_ns=int(record.created * 1e9),
        )


_bridge: LoggingBridge | None = None
_terminal: TextIO | None = None


def install(stream: LogStream) -> None:
    """Make ``logging`` write to a stream."""
    global _bridge
    root = logging.getLogger()
    if _bridge is not None:
        root.removeHandler(_bridge)
    for handler in list(root.handlers):
        # A plain handler on the terminal would write every line a second time
        if type(handler) is logging.StreamHandler and handler.stream in (sys.stderr, sys.stdout):
            root.removeHandler(handler)
    _bridge = LoggingBridge(stream)
    root.addHandler(_bridge)
    if root.level in (logging.WARNING, logging.NOTSET) or root.level > stream.level:
        root.setLevel(stream.level)
    adopt_server_logs()


def uninstall() -> None:
    """Leave ``logging`` as it was; for tests."""
    global _bridge
    if _bridge is not None:
        logging.getLogger().removeHandler(_bridge)
        _bridge = None


def write_to(terminal: TextIO | None) -> None:
    """Write lines to a stream whatever becomes of ``sys.stderr``: it may be about to lead back here."""
    global _terminal
    _terminal = terminal


class _ToBridge(logging.Handler):
    """Takes what a logger says that keeps it from the root logger."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on to the bridge of now."""
        if _bridge is not None:
            _bridge.handle(record)


def adopt(logger: logging.Logger) -> None:
    """Let a logger with handlers of its own speak through the bridge, too, and on the terminal through nothing else."""
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)
    if not logger.handlers:
        logger.propagate = True
    elif not logger.propagate and not any(type(handler) is _ToBridge for handler in logger.handlers):
        logger.addHandler(_ToBridge())


def adopt_server_logs() -> None:
    """Let the loggers of ASGI servers, which write to the terminal by handlers of their own, speak through the bridge.

    Access lines are left out: ``request_out`` says the same, and more.
    """
    if _bridge is None:
        return
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "gunicorn.error", "hypercorn.error"):
        server_logger = logging.getLogger(name)
        for handler in list(server_logger.handlers):
            if type(handler) is logging.StreamHandler:
                server_logger.removeHandler(handler)
        if not server_logger.handlers:
            server_logger.propagate = True
    for name in ("uvicorn.access", "gunicorn.access"):
        access_logger = logging.getLogger(name)
        if any(type(handler) is logging.StreamHandler for handler in access_logger.handlers):
            access_logger.handlers = []
            access_logger.propagate = False


def _is_own(logger_name: str) -> bool:
    """Tell whether it is clew that speaks: of lost telemetry nobody may hear by telemetry alone."""
    return logger_name.partition(".")[0] == "clew"


def error_of(exc_info: Any) -> BaseException | None:
    """Return the exception that ``exc_info`` stands for, as ``logging`` and structlog take it."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if len(exc_info) > 1 and isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__qualname__} without a text form>"


def _stacktrace(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = f"{type(error).__qualname__}: {_message(error)}"
    text = text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
    # The end of a stack trace says most, and Loki refuses what is longer than it takes
    return text if len(text) <= MAX_STACKTRACE_LENGTH else "…" + text[-MAX_STACKTRACE_LENGTH:]


def _service_name(settings: Settings, pipeline: Pipeline | None) -> str:
    if pipeline is not None:
        return str(pipeline.resource.attributes[semconv.SERVICE_NAME])
    return settings.service_name or "unknown_service:python"


def _renderer(settings: Settings) -> Callable[[Any, str, EventDict], str | bytes]:
    terminal = sys.stderr.isatty()
    if settings.log_format == "console" or (settings.log_format == "auto" and terminal):
        return structlog.dev.ConsoleRenderer(colors=terminal)
    return _json_line


def _plain(value: Any) -> Any:
    return attribute_value(value, max_length=8_192)


# Made once: json.dumps would make one for each line
_encode: Final = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def _json_line(_logger: Any, _level: str, line: EventDict) -> str:
    return _encode(line)
