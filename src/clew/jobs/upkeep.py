"""What a process with jobs does at intervals, on the thread that writes the history: never on the app's."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from clew.history.recorder import Chore, recorder
from clew.jobs import commands, duplicates, heartbeat
from clew.jobs.lost import Watch
from clew.jobs.schedule import schedules
from clew.jobs.success import successes

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

POLL_S: Final = 1.0
SCHEDULES: Final = "schedules"

_kept: weakref.ref[Recorder] | None = None


def the_recorder() -> Recorder | None:
    """Return what writes this process's records, and see to what keeps them true."""
    global _kept
    found = recorder()
    if found is None or (_kept is not None and _kept() is found):
        return found
    _kept = weakref.ref(found)
    # Where there is no telemetry, to find out who this is takes threads, which can't be had when the interpreter ends
    _ = found.origin
    interval_s = found.settings.heartbeat_s
    watch = Watch(interval_s)
    poll_s = min(POLL_S, interval_s)
    for chore in (
        Chore(name="heartbeat", interval_s=interval_s, do=heartbeat.beat),
        Chore(name="lost", interval_s=interval_s, do=lambda at: watch.look(at, found.database), writes=False),
        Chore(name=SCHEDULES, interval_s=poll_s, do=lambda at: schedules.tell(at, found), writes=False),
        Chore(name="commands", interval_s=poll_s, do=lambda at: commands.take(at, found), writes=False),
        Chore(name="duplicates", interval_s=poll_s, do=lambda at: duplicates.look(at, found), writes=False),
        Chore(name="success", interval_s=poll_s, do=successes.read, writes=False),
    ):
        found.add_chore(chore)
    return found


def leave_schedules() -> None:
    """Have none of this process's schedulers shown any more, before its records end."""
    schedules.forget_all()
    found = _kept() if _kept is not None else None
    if found is not None:
        found.hurry(SCHEDULES)
