"""One check and what it found so far: at most one look at a time, and the latest result while it is fresh."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from clew import clock
from clew.health.check import Check, CheckResult
from clew.health.loops import loop_of, running_loop
from clew.health.probing import Look

KEPT_RESULTS: Final = 10
# A poll tells an older result rather than wait for a slow part, but not one that is older than this beyond its freshness
_STILL_TOLD_S: Final = 30.0


class Watcher:
    """Looks at one check when it is asked to, and not again while a look has not come back.

    Args:
        check: what is looked at.
        told: called with each result, outside of every lock.
    """

    def __init__(self, check: Check, told: Callable[[CheckResult], None]) -> None:
        self.check = check
        self._told = told
        self._loop = running_loop()
        self._lock = threading.Lock()
        self._look: Look | None = None
        self._results: deque[CheckResult] = deque(maxlen=KEPT_RESULTS)

    @property
    def results(self) -> list[CheckResult]:
        """The latest results, newest first."""
        return list(self._results)[::-1]

    @property
    def last(self) -> CheckResult | None:
        """The newest result."""
        try:
            return self._results[-1]
        except IndexError:
            return None

    def is_tellable(self) -> bool:
        """Tell whether the newest result will do while a look is under way."""
        last = self.last
        return last is not None and clock.monotonic_s() - last.finished_s <= self.check.fresh_s + _STILL_TOLD_S

    def ask(self) -> CheckResult | Look:
        """Return the newest result where it is fresh, else the look that is under way: one that is begun, or was."""
        with self._lock:
            last, look = self.last, self._look
            if last is not None and clock.monotonic_s() - last.finished_s < self.check.fresh_s:
                return last
            if look is not None and look.is_orphaned:
                look = None
            if look is None:
                begun = self._look = Look(self.check, loop=loop_of(self._loop), found=self._found)
            else:
                begun = None
        if begun is not None:
            begun.start()
            return begun
        assert look is not None
        return self._keep(look, look.late()) if look.future.done() else look

    def give_up(self, look: Look) -> CheckResult:
        """Return the result of a look whose time is over."""
        return self._keep(look, look.late())

    def _found(self, look: Look, result: CheckResult) -> None:
        with self._lock:
            if self._look is look:
                self._look = None
            in_time = not look.future.done()
        if in_time:
            self._keep(look, result)

    def _keep(self, look: Look, result: CheckResult) -> CheckResult:
        with self._lock:
            first = not look.future.done()
            last = self.last
            if not first and last is not None:
                is_news = clock.monotonic_s() - last.finished_s >= self.check.fresh_s
                if not (is_news and result.hangs and self._look is look):
                    # It came back a moment ago, or another has told that it hangs
                    return last
            self._results.append(result)
            if first:
                look.future.set_result(result)
        self._told(result)
        return result
