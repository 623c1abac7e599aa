"""One look of one check: in a thread of its own, or as a task of the app's event loop; and what comes of it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from opentelemetry import context as otel_context

from clew import clock
from clew.engine import runtime
from clew.health.check import Check, CheckResult, HealthResult, Status
from clew.history.payload import payload, text

_STATUSES: Final = frozenset({"ok", "degraded", "failed"})
_MAX_TEXT_BYTES: Final = 500
_MAX_DATA_BYTES: Final = 4_096


class Look:
    """A look that is under way. Its future is settled once: by what it found, or by the end of its time.

    Args:
        check: what is looked at.
        loop: the event loop in which a coroutine runs, or ``None`` for one of its own.
        found: called with the look and the result when it came back, in time or not.
    """

    def __init__(
        self,
        check: Check,
        *,
        loop: asyncio.AbstractEventLoop | None,
        found: Callable[[Look, CheckResult], None],
    ) -> None:
        self.check = check
        self.future: Future[CheckResult] = Future()
        # Whoever waits for it can't cancel it for the others
        self.future.set_running_or_notify_cancel()
        self.started_s = clock.monotonic_s()
        self.deadline_s = self.started_s + check.timeout_s
        self.loop = loop if is_coroutine_function(check.probe) else None
        self._found = found
        self._task: asyncio.Task[None] | None = None

    @property
    def is_orphaned(self) -> bool:
        """The loop that it ran in is gone, so it will not come back."""
        return self.loop is not None and self.loop.is_closed()

    def start(self) -> None:
        """Begin to look; returns at once."""
        try:
            if self.loop is not None:
                self.loop.call_soon_threadsafe(self._start_task, context=contextvars.Context())
            else:
                name = f"clew-health-{self.check.name}"
                threading.Thread(target=self._in_thread, name=name, daemon=True).start()
        except RuntimeError as error:
            # No thread can be started, or the loop was closed a moment ago
            self._found(self, self.result(error))

    def result(self, outcome: Any, *, hangs: bool = False) -> CheckResult:
        """Return what an outcome means: what the probe returned, or what it raised."""
        status, sentence, data = _read(outcome)
        check, now_s = self.check, clock.monotonic_s()
        return CheckResult(
            name=check.name,
            critical=check.critical,
            status=status,
            text=sentence,
            data=data,
            duration_s=now_s - self.started_s,
            checked_at=clock.utc_now(),
            finished_s=now_s,
            hangs=hangs,
        )

    def late(self) -> CheckResult:
        """Return the result of a look whose time is over."""
        passed_s = clock.monotonic_s() - self.started_s
        if passed_s < 2 * self.check.timeout_s:
            return self.result(_TooLateError(f"no answer within {self.check.timeout_s:g} s"), hangs=True)
        return self.result(
            _TooLateError(f"no answer for {passed_s:.0f} s, and it is not asked again meanwhile"), hangs=True
        )

    def _in_thread(self) -> None:
        # What a check does is no part of any trace, and a poll each second must make none of its own
        otel_context.attach(_silenced())
        try:
            outcome = self.check.probe()
            if inspect.isawaitable(outcome):
                outcome = asyncio.run(self._within_time(outcome))
        except BaseException as error:
            outcome = error
        self._found(self, self.result(outcome))

    def _start_task(self) -> None:
        otel_context.attach(_silenced())
        self._task = asyncio.get_running_loop().create_task(self._in_task(), name=f"clew-health-{self.check.name}")

    async def _in_task(self) -> None:
        try:
            outcome = await self._within_time(self.check.probe())
        except asyncio.CancelledError as error:
            self._found(self, self.result(RuntimeError("cancelled")))
            raise error from None
        except BaseException as error:
            outcome = error
        self._found(self, self.result(outcome))

    async def _within_time(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(max(0.0, self.deadline_s - clock.monotonic_s())) as limit:
                return await work
        except TimeoutError as error:
            return _TooLateError(f"no answer within {self.check.timeout_s:g} s") if limit.expired() else error


class _TooLateError(Exception):
    """A check's time is over; the text says it."""


def is_coroutine_function(probe: Callable[[], Any]) -> bool:
    """Tell whether a probe is to be run in an event loop.

    Example:
        >>> async def probe(): ...
        >>> is_coroutine_function(probe), is_coroutine_function(functools.partial(probe)), is_coroutine_function(print)
        (True, True, False)
    """
    while isinstance(probe, functools.partial):
        probe = probe.func
    return inspect.iscoroutinefunction(probe) or inspect.iscoroutinefunction(getattr(probe, "__call__", None))  # noqa: B004 - not whether it can be called, but how


def _silenced() -> otel_context.Context:
    context = otel_context.Context()
    for key in (otel_context._SUPPRESS_INSTRUMENTATION_KEY, otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY):
        context = otel_context.set_value(key, True, context)
    return context


def _read(outcome: Any) -> tuple[Status, str, Mapping[str, Any]]:
    if isinstance(outcome, HealthResult) and outcome.status in _STATUSES:
        return outcome.status, shown(outcome.text), figures(outcome.data)
    if isinstance(outcome, _TooLateError):
        return "failed", str(outcome), {}
    if isinstance(outcome, BaseException):
        return "failed", shown(told(outcome)), {}
    if outcome is None or outcome is True:
        return "ok", "", {}
    if outcome is False:
        return "failed", "the check returned False", {}
    return "failed", f"the check returned a {type(outcome).__qualname__}: return a HealthResult, a bool or None", {}


def told(error: BaseException) -> str:
    """Return an exception in words.

    Example:
        >>> told(ConnectionRefusedError(111, "Connection refused"))
        'ConnectionRefusedError: [Errno 111] Connection refused'
    """
    try:
        said = str(error)
    except Exception:
        said = ""
    # Of a chain of lines, as drivers write them, the first one says what happened
    said = next((line.strip() for line in said.splitlines() if line.strip()), "")
    name = type(error).__qualname__
    return f"{name}: {said}" if said else name


def shown(value: Any) -> str:
    """Return a text without secrets, of a reasonable length."""
    return text(value, max_bytes=_MAX_TEXT_BYTES, redact=runtime.ready().redact) or ""


def figures(data: Any) -> Mapping[str, Any]:
    """Return figures without secrets, of a reasonable size, as JSON can have them."""
    kept = payload(data, max_bytes=_MAX_DATA_BYTES, redact=runtime.ready().redact)
    return kept if isinstance(kept, dict) else {"value": kept}
