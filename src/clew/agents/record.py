"""The durable records of tasks and handoffs: rows that are written when they begin and when they end. An agent never waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.context import correlation_id
from clew.engine.state import state
from clew.engine.transfer import Offer, Passage, waited_s
from clew.history import payload
from clew.history.failure import error_columns

if TYPE_CHECKING:
    from clew.history.recorder import Recorder
    from clew.history.writing import Verb

TASKS: Final = "agent_tasks"
HANDOFFS: Final = "handoffs"
_MAX_REASON_BYTES: Final = 1_024
# What has columns of its own
_OWN: Final = frozenset(
    {
        semconv.GEN_AI_OPERATION_NAME,
        semconv.GEN_AI_AGENT_NAME,
        semconv.GEN_AI_AGENT_VERSION,
        semconv.ERROR_TYPE,
        "clew.agent.type",
        "clew.agent.task.attempt",
        "clew.task.id",
        "clew.handoff.id",
        "user.id",
    }
)


class _Record:
    """A row of this process.

    Args:
        recorder: writes it.
        identity: the row's id.
        table: its table.
    """

    __slots__ = ("_recorder", "_row", "_table", "id")

    def __init__(self, recorder: Recorder, identity: str, table: str) -> None:
        self._recorder = recorder
        self._table = table
        self._row: dict[str, Any] = {"id": identity}
        self.id = identity

    def _begin(self, context: Context, **columns: Any) -> None:
        span = trace.get_current_span(context).get_span_context()
        traced = span.is_valid
        self._row |= self._recorder.row(
            trace_id=f"{span.trace_id:032x}" if traced else None,
            span_id=f"{span.span_id:016x}" if traced else None,
            correlation_id=correlation_id(context),
            **columns,
        )

    def _lived(self) -> dict[str, Any]:
        origin = self._recorder.origin
        return {
            "host": payload.name(origin.host),
            "pid": origin.pid,
            "process_started_at": origin.process_started_at,
            "process_key": payload.name(origin.process_key),
            "heartbeat_at": clock.utc_now(),
            "heartbeat_s": self._recorder.settings.heartbeat_s,
        }

    def _kept(self, value: Any) -> Any:
        return payload.payload(value, max_bytes=self._recorder.settings.payload_max_bytes, redact=state.redact)

    def _error(self, kind: str | None, message: str, error: BaseException | None) -> dict[str, Any]:
        if kind is None:
            return {}
        max_bytes = self._recorder.settings.payload_max_bytes
        return error_columns(kind, message, error, max_bytes=max_bytes, redact=state.redact)

    def _send(self, row: Mapping[str, Any], verb: Verb, *, table: str = "") -> None:
        from clew.history.writing import Change

        self._recorder.steer(Change(table=table or self._table, row=dict(row), verb=verb))


class TaskRecord(_Record):
    """The row of a task."""

    __slots__ = ("_offered",)

    def begun(
        self,
        context: Context,
        attributes: Mapping[str, Any],
        *,
        attempt: int,
        parent_id: str | None,
        taken: tuple[Passage, Offer] | None,
    ) -> None:
        """Write that it begins.

        Args:
            context: its own.
            attributes: of it.
            attempt: the how manieth try it is.
            parent_id: the task within which it begins.
            taken: the handoff that it picks up, with what led there.
        """
        now = clock.utc_now()
        self._begin(
            context,
            agent=payload.name(attributes[semconv.GEN_AI_AGENT_NAME]),
            type=payload.name(attributes.get("clew.agent.type")) or "",
            version=payload.name(attributes.get(semconv.GEN_AI_AGENT_VERSION)),
            task_id=payload.name(attributes.get("clew.task.id")),
            user_id=payload.name(attributes.get("user.id")),
            status="running",
            attempt=attempt,
            parent_id=parent_id,
            handoff_id=taken[1].id if taken is not None else None,
            started_at=now,
            wait_s=waited_s(taken[1], clock.now_ns()) if taken is not None else None,
            metadata=self._metadata(attributes),
            **self._lived(),
        )
        self._offered: dict[str, Any] | None = None
        if taken is not None:
            self._offered = _as_taken(*taken, self._row)
            accepted = {"status": "accepted", "accepted_at": now, "accepted_by": self._row["instance"]}
            self._send({**self._offered, **accepted, "wait_s": self._row["wait_s"]}, "join", table=HANDOFFS)
        self._send(self._row, "record")

    def ended(
        self,
        status: str,
        attributes: Mapping[str, Any],
        *,
        duration_s: float,
        result: Any,
        failure: tuple[str | None, str, BaseException | None],
        ends_handoff: bool,
    ) -> None:
        """Write that it has ended.

        Args:
            status: how.
            attributes: of it.
            duration_s: how long it took, in seconds.
            result: what came of it, in a tuple; an empty one where nothing was told.
            failure: the error's type, its message, and what was raised.
            ends_handoff: whether the handoff that it picked up is over with it.
        """
        # The wall clock may have been set back meanwhile
        now = max(clock.utc_now(), self._row["started_at"])
        error = self._error(*failure)
        self._row |= {
            "status": status,
            "finished_at": now,
            "heartbeat_at": now,
            "duration_s": duration_s,
            "metadata": self._metadata(attributes),
            **error,
        }
        if result:
            self._row["result"] = self._kept(result[0])
        if ends_handoff and self._offered is not None:
            over = {"status": status, "finished_at": now, "duration_s": (self._row["wait_s"] or 0.0) + duration_s}
            told = {name: value for name, value in error.items() if name != "traceback"}
            self._send({**self._offered, **over, **told}, "join", table=HANDOFFS)
        self._send(self._row, "end")

    def _metadata(self, attributes: Mapping[str, Any]) -> Any:
        own = {key: value for key, value in attributes.items() if key not in _OWN}
        return self._kept(own) if own else None


def _as_taken(passage: Passage, offer: Offer, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what who picks a handoff up knows of it: the record of who made it may come later."""
    names = ("service", "instance", "correlation_id", "recorded_at", "task_id", "user_id")
    return {
        **{name: row[name] for name in names},
        "id": offer.id,
        "source": (payload.name(passage.agents[-1]) if passage.agents else None) or "",
        "target": payload.name(offer.target) or "",
        "mode": offer.mode,
        "status": "accepted",
        "depth": passage.depth,
        "chain": [payload.name(name) for name in passage.agents],
        "is_loop": offer.target in passage.agents,
        "is_too_deep": False,
        "handed_at": _moment(offer.handed_ns, row["started_at"]),
    }


def _moment(at_ns: int, now: datetime) -> datetime:
    try:
        return min(datetime.fromtimestamp(at_ns / 1e9, tz=UTC), now)
    except (OverflowError, ValueError, OSError):
        return now


class HandoffRecord(_Record):
    """The row of a handoff."""

    __slots__ = ()

    def begun(
        self,
        context: Context,
        passage: Passage,
        *,
        attributes: Mapping[str, Any],
        carrier: Mapping[str, str],
        parent_id: str | None,
        summary: Any,
        claim_within_s: float | None,
        problems: frozenset[str],
    ) -> None:
        """Write that it was made.

        Args:
            context: its own.
            passage: what leads to the other agent, with what it is to pick up.
            attributes: of the handoff.
            carrier: what continues its thread.
            parent_id: the task within which it is made.
            summary: what is said about what is handed over.
            claim_within_s: after how many seconds nobody is thought to pick it up; ``None`` never.
            problems: what is odd about it.
        """
        offer = passage.offer
        if offer is None:
            return
        handed_at = datetime.fromtimestamp(offer.handed_ns / 1e9, tz=UTC)
        reason = attributes.get("clew.handoff.reason")
        self._begin(
            context,
            source=payload.name(attributes["clew.handoff.source"]),
            target=payload.name(offer.target),
            mode=offer.mode,
            status="waiting",
            reason=payload.text(reason, max_bytes=_MAX_REASON_BYTES, redact=state.redact),
            task_id=payload.name(attributes.get("clew.task.id")),
            user_id=payload.name(attributes.get("user.id")),
            summary=self._kept(summary) if summary is not None else None,
            depth=passage.depth,
            chain=[payload.name(name) for name in passage.agents],
            is_loop="loop" in problems,
            is_too_deep="too_deep" in problems,
            parent_id=parent_id,
            carrier=dict(carrier),
            handed_at=handed_at,
            claim_by=_later(handed_at, claim_within_s),
            finished_at=None,
            # One that passes control lives on without this process
            **(self._lived() if offer.mode == "return_to_caller" else {}),
        )
        self._send(self._row, "join")

    def ended(self, status: str, duration_s: float, failure: tuple[str | None, str, BaseException | None]) -> None:
        """Write that it is over.

        Args:
            status: how.
            duration_s: how long it took, in seconds.
            failure: the error's type, its message, and what was raised.
        """
        now = max(clock.utc_now(), self._row["handed_at"])
        told = {name: value for name, value in self._error(*failure).items() if name != "traceback"}
        self._row |= {"status": status, "finished_at": now, "duration_s": duration_s, **told}
        self._send(self._row, "join")


def _later(at: datetime, seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(min(at.timestamp() + seconds, 253_000_000_000.0), tz=UTC)


def task_record() -> TaskRecord | None:
    """Return a record for a task that begins; ``None`` where the history is switched off or can't be used."""
    found = _recorder()
    return TaskRecord(found, _new_id(), TASKS) if found is not None else None


def handoff_record(identity: str) -> HandoffRecord | None:
    """Return a record for a handoff; ``None`` where the history is switched off or can't be used."""
    found = _recorder()
    return HandoffRecord(found, identity, HANDOFFS) if found is not None else None


def _new_id() -> str:
    from clew.history.ids import new_id

    return new_id()


def _recorder() -> Recorder | None:
    settings = runtime.ready().settings
    if settings is None or not settings.history:
        return None
    try:
        # SQLAlchemy is imported by the first task, not with clew
        from clew.agents import upkeep

        return upkeep.the_recorder()
    except Exception as error:
        report("agent history", error)
        return None
