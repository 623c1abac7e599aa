"""Many checks at once: what is fresh is taken as it is, the rest is waited for, each until its own deadline."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterable
from typing import Final

from clew import clock
from clew.health.check import CheckResult, HealthReport
from clew.health.probing import Look
from clew.health.watcher import Watcher

# A deadline that has come is not missed by a rounding
_LEAST_WAIT_S: Final = 0.001


class Sweep:
    """Gathers a result of each watcher.

    Args:
        watchers: whom to ask.
        patience_s: how long to wait for a look where an older result can be told; ``None`` for as long as it may take.
    """

    def __init__(self, watchers: Iterable[Watcher], *, patience_s: float | None) -> None:
        self._started_s = clock.monotonic_s()
        self._until_s = None if patience_s is None else self._started_s + patience_s
        self._order: list[str] = []
        self._results: dict[str, CheckResult] = {}
        self._waiting: list[tuple[Watcher, Look]] = []
        for watcher in watchers:
            self._order.append(watcher.check.name)
            known = watcher.ask()
            if isinstance(known, CheckResult):
                self._results[known.name] = known
            else:
                self._waiting.append((watcher, known))

    def run(self) -> HealthReport:
        """Wait, in a thread that may."""
        while self._take():
            concurrent.futures.wait([look.future for _, look in self._waiting], self._wait_s())
        return self._report()

    async def run_async(self) -> HealthReport:
        """Wait, while the event loop runs on."""
        while self._take():
            futures = [asyncio.wrap_future(look.future) for _, look in self._waiting]
            await asyncio.wait(futures, timeout=self._wait_s())
        return self._report()

    def _take(self) -> bool:
        """Take what there is by now; true while there is more to wait for."""
        now_s = clock.monotonic_s()
        still: list[tuple[Watcher, Look]] = []
        for watcher, look in self._waiting:
            name = watcher.check.name
            if look.future.done():
                self._results[name] = look.future.result()
            elif now_s >= look.deadline_s:
                self._results[name] = watcher.give_up(look)
            elif self._is_patience_over(now_s) and watcher.is_tellable() and (last := watcher.last) is not None:
                self._results[name] = last
            else:
                still.append((watcher, look))
        self._waiting = still
        return bool(still)

    def _is_patience_over(self, now_s: float) -> bool:
        return self._until_s is not None and now_s >= self._until_s

    def _wait_s(self) -> float:
        ends = [look.deadline_s for _, look in self._waiting]
        now_s = clock.monotonic_s()
        if self._until_s is not None and now_s < self._until_s:
            ends.append(self._until_s)
        return max(_LEAST_WAIT_S, min(ends) - now_s)

    def _report(self) -> HealthReport:
        results = tuple(self._results[name] for name in self._order)
        return HealthReport(results=results, duration_s=clock.monotonic_s() - self._started_s)
