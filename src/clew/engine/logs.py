"""Logs: structlog for the app, one handler for everything that still speaks ``logging``, and one way from both to OTLP.

A log event is a dictionary. It gets time, level, callsite, service, correlation, trace and span ids; it is redacted; it is
written to standard error, coloured on a terminal and as a JSON line elsewhere; and it is queued as an OTLP log record.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final, cast

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.engine.coercion import attribute_value, clean
from clew.engine.context import correlation_id
from clew.pipeline.providers import SCOPE, Pipeline
from clew.pipeline.redaction import Redactor
from clew.settings import Settings

EventDict = MutableMapping[str, Any]

MAX_STACKTRACE_LENGTH: Final = 16_000
_SEVERITIES: Final = {
    "debug": (SeverityNumber.DEBUG, "DEBUG", logging.DEBUG),
    "info": (SeverityNumber.INFO, "INFO", logging.INFO),
    "warning": (SeverityNumber.WARN, "WARN", logging.WARNING),
    "warn": (SeverityNumber.WARN, "WARN", logging.WARNING),
    "error": (SeverityNumber.ERROR, "ERROR", logging.ERROR),
    "exception": (SeverityNumber.ERROR, "ERROR", logging.ERROR),
    "critical": (SeverityNumber.FATAL, "FATAL", logging.CRITICAL),
    "fatal": (SeverityNumber.FATAL, "FATAL", logging.CRITICAL),
}
# Fields of an event that are parts of the log record, not attributes of it
_RECORD_FIELDS: Final = frozenset(
    {"event", "level", "logger", "timestamp", "service", "trace_id", "span_id", "exc_info", "exception", "_time_ns"}
)
_CALLSITE: Final = {
    "filename": semconv.CODE_FILE_PATH,
    "lineno": semconv.CODE_LINE_NUMBER,
    "func_name": semconv.CODE_FUNCTION_NAME,
}
# The last is uvicorn's: the message once more, with colours
_STANDARD_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
_OWN_PACKAGES: Final = ("clew.", "structlog.", "logging")


class LogStream:
    """The one way of a log event: enrich, redact, write, queue.

    Args:
        settings: level and format.
        redactor: replaces secrets in fields and messages.
        pipeline: takes records to OTLP; ``None`` where logs are off.
    """

    def __init__(self, settings: Settings, redactor: Redactor, pipeline: Pipeline | None) -> None:
        self.level = _SEVERITIES[settings.log_level][2]
        self._settings = settings
        self._redactor = redactor
        self._pipeline = pipeline if pipeline is not None and settings.enabled("logs") else None
        self._service = _service_name(settings, pipeline)
        self._scopes: dict[str, InstrumentationScope] = {}
        self._render = _renderer(settings)

    def write(self, event: EventDict) -> None:
        """Take one event, with at least ``event``, ``level`` and ``logger``, all the way. Never raises."""
        try:
            self._write(event)
        except Exception as error:
            report("log", error)

    def _write(self, event: EventDict) -> None:
        now_ns = event.pop("_time_ns", None) or clock.now_ns()
        context = otel_context.get_current()
        span_context = trace.get_current_span(context).get_span_context()
        error = _error(event.pop("exc_info", None))
        event["event"] = str(event.get("event", ""))
        self._redactor.fields(event)
        record = self._record(event, now_ns, context, error) if self._pipeline is not None else None
        event["timestamp"] = datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat(timespec="milliseconds")
        event["service"] = self._service
        if (cid := correlation_id(context)) is not None:
            event.setdefault("correlation_id", cid)
        if span_context.is_valid:
            event["trace_id"] = trace.format_trace_id(span_context.trace_id)
            event["span_id"] = trace.format_span_id(span_context.span_id)
        if error is not None:
            event["exception"] = self._redactor.text(_stacktrace(error))
        first = {key: event.pop(key) for key in ("timestamp", "level", "event", "logger", "service") if key in event}
        line = self._render(None, first["level"], {**first, **event})
        print(line, file=sys.stderr, flush=True)
        if record is not None and self._pipeline is not None:
            self._pipeline.add_log(record)

    def _record(
        self, event: EventDict, now_ns: int, context: otel_context.Context, error: BaseException | None
    ) -> ReadableLogRecord:
        severity, text, _ = _SEVERITIES.get(str(event["level"]), _SEVERITIES["info"])
        max_length = self._settings.max_value_length
        attributes: dict[str, Any] = {
            _CALLSITE.get(key, key): attribute_value(value, max_length=max_length)
            for key, value in event.items()
            if key not in _RECORD_FIELDS
        }
        if (cid := correlation_id(context)) is not None:
            attributes.setdefault("correlation_id", cid)
        if error is not None:
            attributes[semconv.EXCEPTION_TYPE] = type(error).__qualname__
            attributes[semconv.EXCEPTION_MESSAGE] = clean(_message(error), max_length)
            attributes[semconv.EXCEPTION_STACKTRACE] = _stacktrace(error)
        record = LogRecord(
            timestamp=now_ns,
            observed_timestamp=now_ns,
            context=context,
            severity_text=text,
            severity_number=severity,
            body=clean(str(event["event"]), max_length),
            attributes=attributes,
        )
        pipeline = cast("Pipeline", self._pipeline)
        return ReadableLogRecord(
            log_record=record, resource=pipeline.resource, instrumentation_scope=self._scope(str(event["logger"]))
        )

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
        self._stream.write(
            {
                **fields,
                "event": message,
                "level": record.levelname.lower(),
                "logger": record.name,
                "filename": record.filename,
                "lineno": record.lineno,
                "func_name": record.funcName,
                "exc_info": record.exc_info,
                "_time_ns": int(record.created * 1e9),
            }
        )


_stream: Callable[[], LogStream] | None = None
_bridge: LoggingBridge | None = None


def install(stream: LogStream, current_stream: Callable[[], LogStream]) -> None:
    """Make structlog and ``logging`` write to a stream.

    Args:
        stream: where ``logging`` goes.
        current_stream: gives the stream when something is logged, configuring clew when nobody has.
    """
    global _bridge
    prepare(current_stream)
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


def prepare(current_stream: Callable[[], LogStream]) -> None:
    """Configure structlog, so that loggers made before :func:`clew.configure` work as those made after."""
    global _stream
    if _stream is not None:
        _stream = current_stream
        return
    _stream = current_stream
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            _finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=_factory,
        cache_logger_on_first_use=False,
    )


class _Sink:
    """What structlog calls last. The event has been written by then."""

    def __init__(self, name: str) -> None:
        self.name = name

    def msg(self, event: None) -> None:
        """Take the place of a real logger's method."""

    debug = info = warning = warn = error = critical = fatal = exception = log = failure = msg


def _factory(*args: Any) -> _Sink:
    return _Sink(str(args[0]) if args else "")


def _finish(sink: Any, method: str, event: EventDict) -> tuple[tuple[None], dict[str, Any]]:
    """End a structlog chain: add level, logger and callsite, and write."""
    if _stream is None:
        raise structlog.DropEvent
    stream = _stream()
    level = _SEVERITIES.get(method, _SEVERITIES["info"])
    if level[2] < stream.level:
        raise structlog.DropEvent
    event["level"] = {"warn": "warning", "exception": "error", "fatal": "critical"}.get(method, method)
    frame = _caller()
    if frame is not None:
        event["filename"] = frame.f_code.co_filename.rsplit("/", 1)[-1]
        event["lineno"] = frame.f_lineno
        event["func_name"] = frame.f_code.co_name
    event["logger"] = sink.name or (frame.f_globals.get("__name__", "") if frame is not None else "")
    stream.write(event)
    return (None,), {}


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


def write_event(stream: LogStream, level: str, event: str, logger_name: str, fields: dict[str, Any]) -> None:
    """Write an event of an operation, past structlog: its callsite would be clew's own."""
    if _SEVERITIES[level][2] >= stream.level:
        stream.write({**fields, "event": event, "level": level, "logger": logger_name})


def _caller() -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OWN_PACKAGES):
        frame = frame.f_back
    return frame


def _error(exc_info: Any) -> BaseException | None:
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
    return structlog.processors.JSONRenderer(default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return attribute_value(value, max_length=8_192)
