"""The start of a service, told in numbered steps, with a look at its health as the last one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from clew import clock
from clew.engine import runtime
from clew.engine.lifecycle import lifecycle, note_sigterm
from clew.engine.logger import get_logger
from clew.health import loops
from clew.health.check import HealthReport
from clew.health.monitor import monitor

_LOGGER: Final = "clew.startup"


class Startup:
    """A start-up under way: until the block ends the process is not ready. Made by :func:`startup`."""

    def __init__(self) -> None:
        self._number = 0
        self._step = ""
        self._started_s = 0.0
        self._log = get_logger(_LOGGER)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Do one step; an exception passes through, and the step is told as the one that failed.

        Args:
            name: what is done, in a few words.
        """
        self._number += 1
        self._step = name
        started_s = clock.monotonic_s()
        yield
        self._log.info("startup.step", number=self._number, step=name, duration_s=_since(started_s))
        self._step = ""

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
        else:
            self._end(monitor.look())

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)
            return
        try:
            report = await monitor.look_async()
        except asyncio.CancelledError:
            lifecycle.starting -= 1
            raise
        self._end(report)

    def _begin(self) -> None:
        runtime.ready()
        loops.note_loop()
        monitor.prepare()
        self._started_s = clock.monotonic_s()
        lifecycle.starting += 1

    def _fail(self, error: BaseException) -> None:
        lifecycle.starting -= 1
        self._log.error(
            "startup.failed", number=self._number, step=self._step, duration_s=_since(self._started_s), exc_info=error
        )

    def _end(self, report: HealthReport) -> None:
        self._number += 1
        fields: dict[str, Any] = {"number": self._number, "step": "look at its health", "status": report.status}
        fields["checks"] = len(report.results)
        unwell = [result for result in report.results if result.status != "ok"]
        if unwell:
            fields["unwell"] = {result.name: f"{result.status}: {result.text}" for result in unwell}
        tell = self._log.info if report.status == "ok" else self._log.warning
        tell("startup.step", **fields, duration_s=round(report.duration_s, 3))
        note_sigterm()
        lifecycle.starting -= 1
        self._log.info("startup.done", steps=self._number, duration_s=_since(self._started_s))


def startup() -> Startup:
    """Tell the start of a service in numbered steps; the last is a look at its health.

    Until the block ends, ``/readyz`` says that the process is not ready. SIGTERM is noted from then on: the process is not ready
    any more, and what handles the signal goes on as it would. In a coroutine, use ``async with``.

    Example:
        >>> import clew
        >>> with clew.startup() as start:
        ...     with start.step("open the database"):
        ...         pass
    """
    return Startup()


def _since(started_s: float) -> float:
    return round(clock.monotonic_s() - started_s, 3)
