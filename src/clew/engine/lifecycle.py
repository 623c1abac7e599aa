"""Where the process is in its life: starting, at work, or about to end."""

from __future__ import annotations

import os
import signal
import threading
from datetime import datetime
from types import FrameType
from typing import Any, Final

from clew import clock


class Lifecycle:
    """What readiness goes by, beside the health of what the process depends on."""

    def __init__(self) -> None:
        self.started_at: datetime = clock.utc_now()
        self._started_s = clock.monotonic_s()
        self.starting = 0
        """How many start-ups are under way."""
        self.stopping = False
        """The process was asked to end."""

    @property
    def uptime_s(self) -> float:
        """Seconds since the process imported clew."""
        return clock.monotonic_s() - self._started_s

    def stop(self) -> None:
        """Note that the process ends: from now on it is not ready."""
        self.stopping = True

    def reset_after_fork(self) -> None:
        """Begin anew: a child has a life of its own."""
        self.__init__()  # type: ignore[misc]


lifecycle: Final = Lifecycle()
os.register_at_fork(after_in_child=lifecycle.reset_after_fork)


class _Noting:
    """A handler of SIGTERM that notes the end, and leaves the rest to the handler that was there before."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        lifecycle.stop()
        if callable(self._before):
            self._before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def note_sigterm() -> None:
    """Have SIGTERM noted, before the handler that is in place does what it did. Harmless outside the main thread, and twice.

    A handler that the app puts in place later takes the place of this one: so it is to be called when those are there.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGTERM)
    # None is a handler that is not Python's
    if handler is None or handler is signal.SIG_IGN or isinstance(handler, _Noting):
        return
    signal.signal(signal.SIGTERM, _Noting(handler))
