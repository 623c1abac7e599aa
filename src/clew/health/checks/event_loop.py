"""How late the app's event loop is."""

from __future__ import annotations

from functools import partial

from clew import clock
from clew.health import loops
from clew.health.check import Check, HealthResult


def event_loop(*, name: str = "event_loop", degraded_above_s: float = 0.2, timeout_s: float = 1.0) -> Check:
    """Return a check of how long the app's event loop takes to get to what waits for it.

    It is the worst since the look before; a loop that does not answer in time has failed.

    Args:
        name: the check's name.
        degraded_above_s: the delay in seconds above which it is degraded.
        timeout_s: see :class:`~clew.health.check.Check`.
    """
    return Check(name=name, probe=partial(_probe, degraded_above_s, timeout_s), timeout_s=timeout_s)


def _probe(degraded_above_s: float, timeout_s: float) -> HealthResult:
    drift = loops.drift()
    if drift is None:
        return HealthResult(text="no event loop runs in this process")
    started_s = clock.monotonic_s()
    # A little less than the check has, to say so itself
    if not loops.answers_within(0.9 * timeout_s):
        return HealthResult(status="failed", text="it does not answer: something blocks it")
    now_late_s = clock.monotonic_s() - started_s
    worst_s = max(now_late_s, drift.worst_s())
    return HealthResult(
        status="degraded" if worst_s > degraded_above_s else "ok",
        text=f"up to {worst_s * 1000:.0f} ms late",
        data={"worst_s": worst_s, "now_s": now_late_s},
    )
