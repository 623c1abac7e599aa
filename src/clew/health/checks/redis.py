"""Valkey and Redis: whether they answer, how fast, and how full they are."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from clew import clock
from clew.health.check import Check, HealthResult, Status
from clew.queues.depth import is_async

_NEARLY_FULL: Final = 0.9


def redis(client: Any, *, name: str = "valkey", critical: bool = True, timeout_s: float = 1.0) -> Check:
    """Return a check of a Valkey or Redis server: degraded when it is slow or nearly full.

    Args:
        client: a client of redis-py, whose connections are used: a pool without a free one is a failure, too.
        name: the check's name.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same; above half of it, an answer is slow.

    Example:
        >>> from redis import Redis
        >>> redis(Redis(port=1)).critical
        True
    """
    probe = _ask_async if is_async(client) else _ask
    return Check(name=name, probe=partial(probe, client, timeout_s), critical=critical, timeout_s=timeout_s)


def _ask(client: Any, timeout_s: float) -> HealthResult:
    started_s = clock.monotonic_s()
    client.ping()
    latency_s = clock.monotonic_s() - started_s
    try:
        info = client.info("memory")
    except Exception:
        # Not every user may ask for it
        info = {}
    return _result(latency_s, info, timeout_s)


async def _ask_async(client: Any, timeout_s: float) -> HealthResult:
    started_s = clock.monotonic_s()
    await client.ping()
    latency_s = clock.monotonic_s() - started_s
    try:
        info = await client.info("memory")
    except Exception:
        info = {}
    return _result(latency_s, info, timeout_s)


def _result(latency_s: float, info: Any, timeout_s: float) -> HealthResult:
    used, most = (info.get("used_memory"), info.get("maxmemory")) if isinstance(info, dict) else (None, None)
    data = {"latency_s": latency_s, "used_bytes": used, "max_bytes": most or None}
    text = f"answered in {latency_s * 1000:.1f} ms"
    outcome: Status = "ok"
    if latency_s > timeout_s / 2:
        outcome = "degraded"
    if used and most and used > _NEARLY_FULL * most:
        outcome, text = "degraded", f"{text}; its memory is {used / most:.0%} full"
    return HealthResult(status=outcome, text=text, data=data)
