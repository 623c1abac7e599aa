"""The end of a process with jobs: schedulers start no more, runs may finish within the one deadline, the rest is marked."""

from __future__ import annotations

import sys
from typing import Final

from clew.diagnostics import report
from clew.history.finishing import Finishing
from clew.jobs.running import running


def _hold() -> None:
    schedule = sys.modules.get("clew.jobs.schedule")
    for scheduler in schedule.schedules.all().values() if schedule is not None else ():
        try:
            scheduler.hold()
        except Exception as error:
            report("job schedulers", error)


def _leave() -> None:
    if "clew.jobs.schedule" in sys.modules:
        from clew.jobs.upkeep import leave_schedules

        leave_schedules()


ending: Final = Finishing(running, lambda run: run.cut(), hold=_hold, leave=_leave)
