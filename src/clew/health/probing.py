"""One look of one check: in a thread of its own, or as a task of the app's event loop; and what comes of it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, cast

from opentelemetry import context as otel_context

from clew import clock
from clew.engine import runtime
from clew.health.check import Check, CheckResult, HealthResult, Status

_STATUSES: Final = frozenset({"ok", "degraded", "failed"})
_MAX_TEXT: Final = 500
_MAX_ITEMS: Final = 50


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
        status, text, data = _read(outcome)
        check, now_s = self.check, clock.monotonic_s()
        return CheckResult(
            name=check.name,
            critical=check.critical,
            status=status,
            text=text,
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
            return self.result(_TooLate(f"no answer within {self.check.timeout_s:g} s"), hangs=True)
        return self.result(_TooLate(f"no answer for {passed_s:.0f} s, and it is not asked again meanwhile"), hangs=True)

    def _in_thread(self) -> None:
        # What a check does is no part of any trace, and a poll each second must make none of its own
        otel_context.attach(_silenced())
        try:
            outcome = self.check.probe()
            if inspect.isawaitable(outcome):
                outcome = asyncio.run(self._within_time(outcome))
        except BaseException as error:  # noqa: BLE001 - SystemExit in a thread would leave the check without a result
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
        except BaseException as error:  # noqa: BLE001 - as above
            outcome = error
        self._found(self, self.result(outcome))

    async def _within_time(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(max(0.0, self.deadline_s - clock.monotonic_s())) as limit:
                return await work
        except TimeoutError as error:
            return _TooLate(f"no answer within {self.check.timeout_s:g} s") if limit.expired() else error


class _TooLate(Exception):
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
        try:
            data = dict(list(dict(outcome.data).items())[:_MAX_ITEMS])
        except Exception:
            data = {}
        return outcome.status, shown(outcome.text), redacted(data)
    if isinstance(outcome, _TooLate):
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
        text = str(error)
    except Exception:
        text = ""
    # Of a chain of lines, as drivers write them, the first one says what happened
    text = next((line.strip() for line in text.splitlines() if line.strip()), "")
    name = type(error).__qualname__
    return f"{name}: {text}" if text else name


def shown(text: Any) -> str:
    """Return a text without secrets, of a reasonable length."""
    try:
        plain = str(text)
    except Exception:
        return ""
    redact = runtime.ready().redact
    # Redacted before it is cut: half a secret is not found
    clean = str(redact("", plain[: 20 * _MAX_TEXT])) if redact is not None else plain
    return clean if len(clean) <= _MAX_TEXT else f"{clean[: _MAX_TEXT - 3]}..."


def redacted(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return figures without secrets, as JSON can have them."""
    redact = runtime.ready().redact
    cleaned = redact("", dict(data)) if redact is not None else data
    return cast("Mapping[str, Any]", _plain(cleaned, depth=4))


def _plain(value: Any, *, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # JSON has no infinity
        return round(value, 6) if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping) and depth:
        return {shown(key)[:100]: _plain(item, depth=depth - 1) for key, item in list(value.items())[:_MAX_ITEMS]}
    if isinstance(value, list | tuple) and depth:
        return [_plain(item, depth=depth - 1) for item in value[:_MAX_ITEMS]]
    return shown(value)


