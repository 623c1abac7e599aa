"""The durable record of a message: a row for each send and for each try to process it. Never raises.

An app's thread only puts together what it knows; redaction, capping and the rest are done by the thread that writes the history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.engine import logs, runtime
from clew.engine.state import state
from clew.history import payload
from clew.history.ids import new_id
from clew.pipeline.coercion import limited

if TYPE_CHECKING:
    from clew.engine.operation import Operation
    from clew.history.recorder import Recorder
    from clew.history.writing import Change

TABLE: Final = "queue_messages"

TYPE: Final = "clew.queue.type"
"""The attribute with the type of a message."""
SOURCE: Final = "clew.queue.source"
"""The attribute with the service that sent a message."""
USER: Final = "user.id"
"""The attribute with the user for whom a message was sent."""
ENVELOPE: Final = "clew.queue.envelope"
"""The attribute that says who wrote a message's envelope: ``clew`` or ``plain``."""
ATTEMPT: Final = "clew.queue.attempt"
"""The attribute with the number of a try, from 1."""
REDELIVERY_COUNT: Final = "clew.queue.redelivery_count"
"""The attribute that says how often a message was delivered before."""

ABSENT: Final[Any] = object()
"""Stands for the payload of a message that has none to be kept."""

_MAX_NAME_BYTES: Final = 255
_MAX_ITEMS: Final = 1_000
_recorder: Callable[[], Recorder | None] | None = None


def keep(operation: Operation, *, body: Any = ABSENT, error: BaseException | None = None, **columns: Any) -> None:
    """Have a message recorded, where the history is on.

    Args:
        operation: the send, or the try to process it, which has ended.
        body: what it carries.
        error: what went wrong.
        columns: of the row: ``direction``, ``status``, ``messages``, ``duration_s``, ``wait_s`` (of a batch, on average), and
            ``sent_at`` in seconds since the epoch.
    """
    try:
        recorder = the_recorder()
        if recorder is not None:
            recorder.record_later(_Draft(recorder, operation, body, error, columns))
    except Exception as problem:
        report("message history", problem)


def the_recorder() -> Recorder | None:
    """Return what writes this process's records; ``None`` where the history is switched off or can't be used."""
    global _recorder
    if _recorder is None:
        settings = runtime.ready().settings
        if settings is None or not settings.history:
            return None
        # SQLAlchemy is imported by the first message, not with clew
        from clew.history.recorder import recorder

        _recorder = recorder
    return _recorder()


class _Draft:
    """What is known of a message, until the history's thread makes a row of it."""

    __slots__ = (
        "_attributes",
        "_body",
        "_columns",
        "_correlation_id",
        "_error_message",
        "_error_type",
        "_recorded_ns",
        "_recorder",
        "_size",
        "_span",
    )

    def __init__(
        self,
        recorder: Recorder,
        operation: Operation,
        body: Any,
        error: BaseException | None,
        columns: dict[str, Any],
    ) -> None:
        settings = recorder.settings
        self._recorder = recorder
        self._recorded_ns = clock.now_ns()
        self._attributes = operation.attributes
        self._correlation_id = operation.correlation_id
        self._span = operation._span.get_span_context()
        self._columns = columns
        self._size = len(body) if isinstance(body, (bytes, bytearray)) else None
        kept = settings.message_payloads and body is not ABSENT
        self._body = _taken(body, settings.payload_max_bytes) if kept else ABSENT
        self._error_type = operation.error_type
        # Not the error itself: it holds all that its frames hold
        self._error_message = logs._message(error) if error is not None else None

    def __call__(self) -> Change:
        from clew.history.writing import Change

        row = self._row()
        max_bytes = self._recorder.settings.payload_max_bytes
        try:
            row["error_message"] = payload.text(self._error_message or None, max_bytes=max_bytes, redact=state.redact)
            if self._body is not ABSENT:
                row["payload"] = payload.payload(_read(self._body), max_bytes=max_bytes, redact=state.redact)
                if isinstance(self._body, _Cut):
                    row["payload"]["bytes"] = self._body.size
        except Exception as error:
            # An object whose text form raises: the message counts all the same
            row["payload"] = f"<{type(error).__name__}>"
        return Change(table=TABLE, row=row)

    def _row(self) -> dict[str, Any]:
        columns, attributes, origin = self._columns, self._attributes, self._recorder.origin
        traced = self._span.is_valid
        ended_s, duration_s = self._recorded_ns / 1e9, columns["duration_s"]
        system = payload.text(attributes.get(semconv.MESSAGING_SYSTEM), max_bytes=32)
        return {
            # Made by the history's thread: the system's source of chance lets other threads run
            "id": new_id(self._recorded_ns),
            "service": origin.service,
            "instance": origin.instance,
            "trace_id": f"{self._span.trace_id:032x}" if traced else None,
            "span_id": f"{self._span.span_id:016x}" if traced else None,
            "correlation_id": self._correlation_id,
            "system": system or "unknown",
            "queue": _name(attributes.get(semconv.MESSAGING_DESTINATION_NAME)) or "unknown",
            "type": _name(attributes.get(TYPE)),
            "source": _name(attributes.get(SOURCE)),
            "user_id": _name(attributes.get(USER)),
            "message_id": _name(attributes.get(semconv.MESSAGING_MESSAGE_ID)),
            "consumer_group": _name(attributes.get(semconv.MESSAGING_CONSUMER_GROUP_NAME)),
            "envelope": payload.text(attributes.get(ENVELOPE), max_bytes=16),
            "attempt": _attempt(attributes),
            "size_bytes": attributes.get(semconv.MESSAGING_MESSAGE_BODY_SIZE, self._size),
            "payload": None,
            "error_type": _name(self._error_type),
            "error_message": None,
            "wait_s": None,
            **columns,
            "recorded_at": _at(ended_s),
            "sent_at": _at(columns.get("sent_at")),
            "started_at": _at(ended_s - duration_s),
            "finished_at": _at(ended_s),
        }


class _Cut(bytes):
    """How a large body begins."""

    size: int


def type_of(body: Any) -> str | None:
    """Return the type of a message by what it carries: the name of its class, or the text that it has under ``type``.

    Example:
        >>> type_of({"type": "document.uploaded"}), type_of({"id": 1}), type_of([1])
        ('document.uploaded', None, None)
    """
    if isinstance(body, Mapping):
        told = body.get("type")
        return told[:_MAX_NAME_BYTES] if isinstance(told, str) and told else None
    kind = type(body)
    if hasattr(kind, "model_fields") or hasattr(kind, "__struct_fields__") or is_dataclass(kind):
        return kind.__name__
    return None


def service_name() -> str:
    """Return this service's name as a header can have it."""
    return header_text(runtime.resource_attributes().get("service.name", ""))


@lru_cache(maxsize=1_024)
def header_text(value: Any) -> str:
    r"""Return a text that any broker takes as a header's value.

    Example:
        >>> header_text("Bestellungen\n")
        'Bestellungen?'
    """
    text = payload.text(value, max_bytes=_MAX_NAME_BYTES) or ""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)


def _name(value: Any) -> str | None:
    if type(value) is str and len(value) <= _MAX_NAME_BYTES:
        return _known_name(value)
    return None if value is None else payload.text(value, max_bytes=_MAX_NAME_BYTES)


@lru_cache(maxsize=1_024)
def _known_name(value: str) -> str | None:
    # Queues, types and sources are mostly the same ones
    return payload.text(value, max_bytes=_MAX_NAME_BYTES)


def _attempt(attributes: Mapping[str, Any]) -> int:
    attempt = attributes.get(ATTEMPT)
    if isinstance(attempt, int):
        return attempt
    redeliveries = attributes.get(REDELIVERY_COUNT, 0)
    return min(redeliveries + 1, 2**31 - 1) if isinstance(redeliveries, int) else 1


def _at(seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        # A stranger said when it was sent
        return None


def _taken(body: Any, max_bytes: int) -> Any:
    """Return what is to be kept, apart from what the app may change meanwhile, and not much more of it than is needed."""
    if isinstance(body, (bytes, bytearray)):
        if len(body) <= max_bytes:
            return bytes(body)
        cut = _Cut(body[: max_bytes + 1])
        cut.size = len(body)
        return cut
    if isinstance(body, (list, tuple)) and body and isinstance(body[0], (bytes, bytearray)):
        return [_taken(item, max_bytes) for item in body[:_MAX_ITEMS]]
    if hasattr(body, "model_dump"):
        return limited(body.model_dump())
    if is_dataclass(body) and not isinstance(body, type):
        return limited({field.name: getattr(body, field.name, None) for field in fields(body)})
    return limited(body)


def _read(taken: Any) -> Any:
    """Return what was kept as a person reads it: JSON as what it says, so that secrets are known by their keys."""
    if isinstance(taken, list) and taken and isinstance(taken[0], bytes):
        return [_read(item) for item in taken]
    if not isinstance(taken, bytes) or isinstance(taken, _Cut):
        return taken
    try:
        return json.loads(taken)
    except (ValueError, RecursionError):
        return taken
