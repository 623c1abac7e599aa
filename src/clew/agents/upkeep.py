"""What a process with agents does at intervals, on the thread that writes the history: never on the app's."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Table, delete, exists, select, update
from sqlalchemy.orm import aliased

from clew import clock
from clew.agents import going_on
from clew.agents.registry import Known, registry
from clew.agents.unclaimed import look
from clew.history import liveness, payload
from clew.history.models import Agent, AgentTask, Handoff
from clew.history.recorder import Chore, recorder
from clew.history.writing import insert_into

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

TELL_S: Final = 1.0
CLAIM_S: Final = 5.0
_TIDY_S: Final = 3_600.0
_KEPT_S: Final = 7 * 86_400.0
_AGENTS: Final = "agents"
_TOLD_AT_ONCE: Final = 100
"""How many agents are told of before what waits to be written has its turn: a run of a job waits for its record."""
_TABLE: Final[Table] = Agent.__table__  # type: ignore[assignment]

_kept: weakref.ref[Recorder] | None = None
_is_leaving = False


def the_recorder() -> Recorder | None:
    """Return what writes this process's records, and see to what keeps them true."""
    global _kept, _is_leaving
    found = recorder()
    if found is None or (_kept is not None and _kept() is found):
        return found
    _kept, _is_leaving = weakref.ref(found), False
    registry.tell_anew()
    liveness.heart.keep_alive(AgentTask, lambda: _ids(going_on.tasks))
    liveness.heart.keep_alive(Handoff, lambda: _ids(going_on.handoffs))
    liveness.begin(found)
    interval_s = found.settings.heartbeat_s
    for chore in (
        Chore(name="agents heartbeat", interval_s=interval_s, do=lambda at: beat(at, found)),
        Chore(name=_AGENTS, interval_s=min(TELL_S, interval_s), do=lambda _: _tell_in_turn(found), writes=False),
        Chore(name="handoffs", interval_s=min(CLAIM_S, interval_s), do=lambda at: look(at, found), writes=False),
        Chore(name="agents tidied", interval_s=_TIDY_S, do=tidy),
    ):
        found.add_chore(chore)
    going_on.ending.arm()
    return found


def beat(connection: Connection, of: Recorder) -> None:
    """Say that the agents of this process are there: one statement for all of them.

    Args:
        connection: within a transaction.
        of: whose process.
    """
    known = registry.all()
    if not known or _is_leaving:
        return
    # Those that are still to be told have their turn: to begin anew with each beat would never end where a beat comes first
    told = sum(not one.is_dirty for one in known)
    values = {"heartbeat_at": clock.utc_now(), "gone_at": None}
    if connection.execute(update(_TABLE).where(*_own(of)).values(values)).rowcount < told:
        # Another process has swept them away
        registry.tell_anew()


def tell(of: Recorder) -> None:
    """Write what has changed since the last time; at the end of the process, that they are gone.

    Args:
        of: whose database, and whose process.
    """
    while _tell_some(of):
        pass
    if _is_leaving:
        with of.database.write() as connection:
            gone = {"gone_at": clock.utc_now(), "active": 0}
            connection.execute(update(_TABLE).where(*_own(of)).values(gone))


def _tell_in_turn(of: Recorder) -> None:
    if _is_leaving:
        tell(of)
    elif _tell_some(of):
        of.hurry(_AGENTS)


def _tell_some(of: Recorder) -> bool:
    """Write some of what has changed; return whether there is more."""
    changed = [known for known in registry.all() if known.is_dirty]
    if changed:
        _write(changed[:_TOLD_AT_ONCE], of)
    return len(changed) > _TOLD_AT_ONCE


def _write(changed: Sequence[Known], of: Recorder) -> None:
    for known in changed:
        known.is_dirty = False
    rows = [_row(known, of) for known in changed]
    keys = [column.name for column in _TABLE.primary_key.columns]
    try:
        with of.database.write() as connection:
            insert = insert_into(connection, _TABLE)
            set_ = {name: insert.excluded[name] for name in rows[0] if name not in keys}
            connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=set_), rows)
    except Exception:
        for known in changed:
            known.is_dirty = True
        raise


def tidy(connection: Connection) -> None:
    """Forget agents of processes that are long gone, where a later process has them.

    Args:
        connection: within a transaction.
    """
    later = aliased(Agent)
    before = clock.utc_now() - timedelta(seconds=_KEPT_S)
    has_heir = exists(select(later.agent).where(later.agent == Agent.agent, later.registered_at > Agent.registered_at))
    connection.execute(delete(Agent).where(Agent.gone_at < before, has_heir))


def leave() -> None:
    """Have the agents of this process told to be gone, before its records end."""
    global _is_leaving
    _is_leaving = True
    found = _kept() if _kept is not None else None
    if found is not None and registry.all():
        found.hurry(_AGENTS)


def _own(of: Recorder) -> tuple[Any, ...]:
    return _TABLE.c.process == str(of.origin.pid), _TABLE.c.instance == payload.name(of.origin.instance)


def _ids(work: Any) -> dict[str, float | None]:
    return {record.id: None for _, record in work.all() if record is not None}


def _row(known: Known, of: Recorder) -> dict[str, Any]:
    origin = of.origin
    return {
        "agent": payload.name(known.agent),
        "instance": payload.name(origin.instance),
        "process": str(origin.pid),
        "type": payload.name(known.type),
        "version": payload.name(known.version),
        "service": payload.name(origin.service),
        "registered_at": known.registered_at,
        "active": known.active,
        "tasks": known.tasks,
        "failures": known.failures,
        "failures_in_a_row": known.failures_in_a_row,
        "last_started_at": known.last_started_at,
        "last_finished_at": known.last_finished_at,
        "last_error_type": payload.name(known.last_error_type),
        "gone_at": None,
        "host": payload.name(origin.host),
        "pid": origin.pid,
        "process_started_at": origin.process_started_at,
        "process_key": payload.name(origin.process_key),
        "heartbeat_at": clock.utc_now(),
        "heartbeat_s": of.settings.heartbeat_s,
    }
