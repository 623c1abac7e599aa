"""The end of a process with jobs: schedulers start no more, runs may finish within the one deadline, the rest is marked.

An interpreter that ends waits for the threads of pools before anything that was registered with :mod:`atexit` is called, however
long a job takes. So this begins before that wait.
"""

from __future__ import annotations

import atexit
import importlib
import sys
import threading
from typing import Any, Final

from clew.diagnostics import report
from clew.engine.ending import add_part, flush, hold_up_end, let_finish
from clew.jobs.running import running

# What is left to the history of the time that jobs and records have together
_MOST_FOR_RECORDS_S: Final = 1.0
_SHARE_FOR_RECORDS: Final = 1 / 3


class Ending:
    """Ends the jobs of this process, before its records and its telemetry are flushed."""

    def __init__(self) -> None:
        self._is_armed = False

    def arm(self) -> None:
        """Take part in the end of the process. Once is enough."""
        if self._is_armed:
            return
        self._is_armed = True
        add_part(self)
        let_finish(self)
        importlib.import_module("concurrent.futures.thread")
        register: Any = getattr(threading, "_register_atexit", atexit.register)
        try:
            # Later than the pools', and so called before they wait for their threads
            register(self.leave)
        except RuntimeError:
            # The interpreter is ending
            return

    def goes_on(self) -> bool:
        """Tell whether a run does."""
        return running.any()

    def flush(self, timeout_s: float) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_s: float) -> bool:
        """Let runs finish, and mark those that do not.

        Args:
            timeout_s: for jobs and records together.

        Returns:
            True when all of them finished.
        """
        schedule = sys.modules.get("clew.jobs.schedule")
        if schedule is not None:
            for scheduler in schedule.schedules.all().values():
                try:
                    scheduler.hold()
                except Exception as error:
                    report("job schedulers", error)
        for_records_s = min(_MOST_FOR_RECORDS_S, timeout_s * _SHARE_FOR_RECORDS)
        done = running.wait_for_none(max(0.0, timeout_s - for_records_s))
        for run, _ in running.all():
            run.cut()
        if schedule is not None:
            from clew.jobs.upkeep import leave_schedules

            leave_schedules()
        return done

    def leave(self) -> None:
        """Do so when the main thread is over and the interpreter is about to wait for pools, unless other threads work on."""
        try:
            if running.any() and not _others_work():
                hold_up_end(self._leave)
        except Exception as error:
            report("job end", error)

    def _leave(self, timeout_s: float) -> None:
        if not self.shutdown(timeout_s):
            # Whoever ends this process may not wait for its threads
            flush(max(0.5, timeout_s * _SHARE_FOR_RECORDS))


def _others_work() -> bool:
    pools = set(getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ()))
    own = {threading.main_thread(), threading.current_thread()}
    return any(not thread.daemon and thread.is_alive() for thread in set(threading.enumerate()) - pools - own)


ending: Final = Ending()
