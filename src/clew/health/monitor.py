"""The checks of this process, and the public names to add to them and to ask for their results."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from clew.diagnostics import report as report_problem
from clew.engine import runtime
from clew.health import loops
from clew.health.check import Check, HealthReport
from clew.health.recording import Recording
from clew.health.sweep import Sweep
from clew.health.watcher import Watcher

P = TypeVar("P", bound=Callable[..., Any])
T = TypeVar("T")


class Monitor:
    """Watches over any number of checks.

    Args:
        defaults: makes the checks that every process has, the first time they are needed.
    """

    def __init__(self, defaults: Callable[[], list[Check]]) -> None:
        self._defaults = defaults
        self._has_defaults = False
        self._lock = threading.RLock()
        self._watchers: dict[str, Watcher] = {}
        self._recording = Recording()

    def add(self, check: Check) -> None:
        """Add a check; one of the same name is replaced."""
        with self._lock:
            self._add_defaults()
            self._watchers[check.name] = Watcher(check, self._recording.note)

    def remove(self, name: str) -> None:
        """Take a check away, if there is one of that name."""
        with self._lock:
            self._add_defaults()
            self._watchers.pop(name, None)

    def watchers(self, *, critical_only: bool = False) -> list[Watcher]:
        """Return those who look at each check."""
        with self._lock:
            self._add_defaults()
            return [one for one in self._watchers.values() if one.check.critical or not critical_only]

    def prepare(self) -> None:
        """Import what the checks take, in the calling thread, so that the first poll does not wait for it.

        To be called while nothing is served yet. Not in a thread, which a fork might catch in the middle of an import.
        """
        self.watchers()
        if (settings := runtime.ready().settings) is not None and settings.history:
            # With the driver of its database
            importlib.import_module("clew.history.recorder").recorder()

    def look(self, *, critical_only: bool = False, patience_s: float | None = None) -> HealthReport:
        """Look at every check, and wait for what they find. It blocks: not for an event loop.

        Args:
            critical_only: only at those without which the process is of no use.
            patience_s: how long to wait where an older result can be told; by default until each check's own deadline.
        """
        return Sweep(self.watchers(critical_only=critical_only), patience_s=patience_s).run()

    async def look_async(self, *, critical_only: bool = False, patience_s: float | None = None) -> HealthReport:
        """Do as :meth:`look`, while the event loop runs on."""
        loops.note_loop()
        return await Sweep(self.watchers(critical_only=critical_only), patience_s=patience_s).run_async()

    def reset_after_fork(self) -> None:
        """Begin anew with the same checks: the parent's threads are not in the child."""
        self._lock = threading.RLock()
        self._recording = Recording()
        self._watchers = {name: Watcher(one.check, self._recording.note) for name, one in self._watchers.items()}

    def _add_defaults(self) -> None:
        if self._has_defaults:
            return
        self._has_defaults = True
        for check in self._defaults():
            self._watchers[check.name] = Watcher(check, self._recording.note)


def _defaults() -> list[Check]:
    from clew.health import checks

    return checks.defaults()


monitor: Final = Monitor(_defaults)
"""The monitor of the process."""


def _after_fork() -> None:
    loops.reset_after_fork()
    monitor.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork)


def health_check(
    name: str, *, timeout_s: float = 2.0, critical: bool = False, fresh_s: float = 1.0
) -> Callable[[P], P]:
    """Make a function a health check of this process. One of the same name is replaced.

    A function runs in a thread of its own, a coroutine function in the app's event loop, which it must not block. While it has
    not come back it is not called again.

    Args:
        name: told in answers, and the label of its metrics.
        timeout_s: how long it may take, in seconds; then it counts as failed.
        critical: when it fails, the process is of no use: not ready, and ``/health`` answers 503.
        fresh_s: how long what it found is told before it looks again, in seconds.

    Returns:
        A decorator that leaves the function as it is.

    Example:
        >>> import clew
        >>> @clew.health_check("payments", timeout_s=0.5, critical=True)
        ... def payments():
        ...     return clew.HealthResult(status="ok", text="3 of 3 replicas answer", data={"replicas": 3})
        >>> clew.check_health()["payments"].text
        '3 of 3 replicas answer'
        >>> clew.unwatch("payments")
    """

    def added(probe: P) -> P:
        try:
            monitor.add(Check(name=name, probe=probe, timeout_s=timeout_s, critical=critical, fresh_s=fresh_s))
        except Exception as error:
            report_problem("health_check", error)
        return probe

    return added


def watch(*targets: Any) -> Any:
    """Look after what the process depends on, found by its type, as :func:`clew.instrument` does.

    Args:
        targets: SQLAlchemy engines, redis clients, APScheduler schedulers, OpenAI clients, or checks made by
            :mod:`clew.health.checks`. Engines and redis clients are critical.

    Returns:
        The target, or a tuple of the targets.

    Example:
        >>> from sqlalchemy import create_engine
        >>> import clew
        >>> engine = clew.watch(create_engine("sqlite://"))
        >>> clew.check_health()["database"].status
        'ok'
        >>> clew.unwatch("database")
    """
    from clew.health import checks

    runtime.ready()
    loops.note_loop()
    for target in targets:
        try:
            monitor.add(target if isinstance(target, Check) else checks.of(target))
        except Exception as error:
            report_problem("watch", error)
    return targets[0] if len(targets) == 1 else targets


def unwatch(*names: str) -> None:
    """Take checks away by their names, those that every process has included; what is not there is left out.

    Example:
        >>> import clew
        >>> @clew.health_check("printer")
        ... def printer() -> None: ...
        >>> clew.unwatch("printer")
    """
    for name in names:
        monitor.remove(name)


def check_health() -> HealthReport:
    """Look at everything, all at once, and wait for what is found: until the longest timeout at most.

    It blocks: in a coroutine, ``await asyncio.to_thread(clew.check_health)``.

    Example:
        >>> import clew
        >>> clew.check_health().status in ("ok", "degraded")
        True
    """
    if loops.running_loop() is not None:
        report_problem(
            "check_health", "blocks the event loop it is called in: await asyncio.to_thread(clew.check_health)"
        )
    monitor.prepare()
    return monitor.look()
