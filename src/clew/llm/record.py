"""The durable record of a call: one row of the history, written when it has ended, in a batch. Never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.state import state
from clew.history import payload
from clew.history.ids import new_id

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

TABLE: Final = "llm_calls"
_MAX_NAME_BYTES: Final = 255
_MAX_OPERATION_BYTES: Final = 64
_NAMES: Final = ("provider", "model", "response_model", "agent", "user_id", "error_type")


def the_recorder() -> Recorder | None:
    """Return what writes this process's records; ``None`` where the history is switched off or can't be used."""
    settings = runtime.ready().settings
    if settings is None or not settings.history:
        return None
    try:
        # SQLAlchemy is imported by the first call, not with clew
        from clew.history.recorder import recorder

        return recorder()
    except Exception as error:
        report("llm history", error)
        return None


def row_of(recorder: Recorder, **columns: Any) -> dict[str, Any]:
    """Return the row of a call that has ended.

    Args:
        recorder: writes it.
        columns: what is known of the call, as the app gave it.
    """
    row = recorder.row(**columns)
    row["id"] = new_id()
    for name in _NAMES:
        row[name] = payload.text(row.get(name), max_bytes=_MAX_NAME_BYTES)
    for name in ("provider", "model"):
        row[name] = row[name] or ""
    row["operation"] = payload.text(row["operation"], max_bytes=_MAX_OPERATION_BYTES) or ""
    max_bytes = recorder.settings.payload_max_bytes
    row["error_message"] = payload.text(row["error_message"] or None, max_bytes=max_bytes, redact=state.redact)
    return row


def keep(recorder: Recorder, row: dict[str, Any]) -> None:
    """Have the row written with the next batch."""
    try:
        from clew.history.writing import Change

        recorder.record(Change(table=TABLE, row=row))
    except Exception as error:
        report("llm history", error)
