"""The end of a process with work: nothing new is started, what goes on may finish within the one deadline, the rest is marked.

An interpreter that ends waits for the threads of pools before anything that was registered with :mod:`atexit` is called, however
long their work takes. So this begins before that wait.
"""

from __future__ import annotations

import atexit
import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from clew.diagnostics import report
from clew.engine.ending import add_part, flush, hold_up_end, let_finish
from clew.history.going_on import GoingOn

# What is left to the history of the time that work and records have together
_MOST_FOR_RECORDS_S: Final = 1.0
_SHARE_FOR_RECORDS: Final = 1 / 3


class Finishing:
    """Ends the work of this process, before its records and its telemetry are flushed.

    Args:
        going_on: the work.
        cut: marks what does not finish in time.
        hold: has nothing new started, before that is waited for.
        leave: is called when all is over or marked.
    """

    def __init__(
        self,
        going_on: GoingOn[Any, Any],
        cut: Callable[[Any], object],
        *,
        hold: Callable[[], object] | None = None,
        leave: Callable[[], object] | None = None,
    ) -> None:
        self._going_on = going_on
        self._cut = cut
        self._hold = hold
        self._left = leave
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
        """Tell whether some work does."""
        return self._going_on.any()

    def flush(self, timeout_s: float) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_s: float) -> bool:
        """Let work finish, and mark what does not.

        Args:
            timeout_s: for work and records together.

        Returns:
            True when all of it finished.
        """
        if self._hold is not None:
            self._hold()
        for_records_s = min(_MOST_FOR_RECORDS_S, timeout_s * _SHARE_FOR_RECORDS)
        done = self._going_on.wait_for_none(max(0.0, timeout_s - for_records_s))
        for work, _ in self._going_on.all():
            self._cut(work)
        if self._left is not None:
            self._left()
        return done

    def leave(self) -> None:
        """Do so when the main thread is over and the interpreter is about to wait for pools, unless other threads work on."""
        try:
            if self._going_on.any() and not _others_work():
                hold_up_end(self._leave)
        except Exception as error:
            report("end of work", error)

    def _leave(self, timeout_s: float) -> None:
        if not self.shutdown(timeout_s):
            # Whoever ends this process may not wait for its threads
            flush(max(0.5, timeout_s * _SHARE_FOR_RECORDS))


def _others_work() -> bool:
    pools = set(getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ()))
    own = {threading.main_thread(), threading.current_thread()}
    return any(not thread.daemon and thread.is_alive() for thread in set(threading.enumerate()) - pools - own)
