"""Handoffs that nobody has picked up in time: marked and told of once, by whichever process notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Row, Table, select, update

from clew import clock
from clew.catalog import semconv
from clew.catalog.metrics import HANDOFF_PROBLEMS
from clew.engine.metrics import registry
from clew.engine.runtime import current_log_stream
from clew.history import tally
from clew.history.liveness import thread_of
from clew.history.models import Handoff

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

_TABLE: Final[Table] = Handoff.__table__  # type: ignore[assignment]
_MAX_AT_ONCE: Final = 500
_READ: Final = dict.fromkeys(
    ("id", "trace_id", "span_id", "correlation_id", "task_id", "claim_by", *tally.reads(_TABLE.name))
)


def look(connection: Connection, recorder: Recorder) -> int:
    """Mark the handoffs that somebody should have picked up by now; return how many that were.

    Should somebody pick one up yet, it is accepted all the same.

    Args:
        connection: to read with.
        recorder: where they are marked.
    """
    now = clock.utc_now()
    is_open = (_TABLE.c.finished_at.is_(None), _TABLE.c.accepted_at.is_(None), _TABLE.c.claim_by.is_not(None))
    query = select(*(_TABLE.c[name] for name in _READ)).where(*is_open, _TABLE.c.claim_by < now)
    query = query.where(_TABLE.c.status == "waiting").order_by(_TABLE.c.claim_by).limit(_MAX_AT_ONCE)
    late = sorted(connection.execute(query), key=lambda row: str(row.id))
    if not late:
        return 0
    marked: list[Row[Any]] = []
    with recorder.database.write() as writing:
        for row in late:
            # One that is to come back goes on: who waits for it ends it
            values = {"status": "unclaimed"} | ({"finished_at": now} if row.mode == "pass_control" else {})
            of_it = update(_TABLE).where(_TABLE.c.id == row.id, _TABLE.c.status == "waiting", *is_open)
            if writing.execute(of_it.values(values)).rowcount == 1:
                tally.shift(writing, _TABLE.name, [(dict(row._mapping), {**row._mapping, **values})])
                marked.append(row)
    for row in marked:
        _tell(row)
    return len(marked)


def _tell(row: Row[Any]) -> None:
    labels = {"clew.handoff.source": row.source, semconv.GEN_AI_TRANSFER_TARGET_NAME: row.target}
    fields = {**labels, "clew.handoff.id": row.id, "clew.handoff.claim_by": row.claim_by.isoformat()}
    if row.task_id is not None:
        fields["clew.task.id"] = row.task_id
    with thread_of(row):
        current_log_stream().take("warning", "agent_handoff_unclaimed", "clew.agent.handoff", fields)
        registry.declared(HANDOFF_PROBLEMS).add(1, **labels, **{"clew.handoff.problem": "unclaimed"})
