"""What becomes of telemetry: what was lost, and what waits."""

from __future__ import annotations

from typing import Final

from clew import clock
from clew.engine import runtime
from clew.health.check import Check, HealthResult
from clew.pipeline.providers import spool_of
from clew.settings import SIGNALS

_REMEMBERED_S: Final = 300.0
_NEARLY_FULL: Final = 0.8


def telemetry(*, name: str = "telemetry", fresh_s: float = 5.0) -> Check:
    """Return a check of telemetry's way out.

    It is degraded for five minutes after something was lost, and while the disk spool is nearly full. It never fails: the app is
    no less of use.

    Args:
        name: the check's name.
        fresh_s: see :class:`~clew.health.check.Check`.
    """
    return Check(name=name, probe=_Telemetry(), fresh_s=fresh_s)


class Losses:
    """Remembers when something was lost."""

    def __init__(self) -> None:
        self._lost = 0
        self._lost_s: float | None = None

    def of_late(self, lost: int) -> bool:
        """Tell whether something was lost in the last minutes.

        Args:
            lost: how much was lost since the start.
        """
        now_s = clock.monotonic_s()
        if lost > self._lost:
            self._lost_s = now_s
        self._lost = lost
        return self._lost_s is not None and now_s - self._lost_s < _REMEMBERED_S


class _Telemetry:
    """Looks at the accounts of the signals."""

    def __init__(self) -> None:
        self._losses = Losses()

    def __call__(self) -> HealthResult:
        state = runtime.ready()
        accounts = {name: account for name, account in runtime.accounts().items() if name in SIGNALS}
        if state.settings is None or not accounts:
            return HealthResult(text="off")
        lost = sum(sum(account.dropped.values()) for account in accounts.values())
        spool = spool_of(state.settings)
        waiting_bytes = spool.waiting_bytes() if spool is not None and spool.folder.exists() else 0
        most_bytes = state.settings.spool_max_bytes
        data = {
            "lost": lost,
            "pending": sum(account.pending for account in accounts.values()),
            "spool_bytes": waiting_bytes,
            "spool_max_bytes": most_bytes,
        }
        if self._losses.of_late(lost):
            text = f"{lost} items lost since the start, some of them in the last minutes"
            return HealthResult(status="degraded", text=text, data=data)
        if most_bytes and waiting_bytes > _NEARLY_FULL * most_bytes:
            text = f"the spool is {waiting_bytes / most_bytes:.0%} full: the endpoint is away"
            return HealthResult(status="degraded", text=text, data=data)
        text = f"{waiting_bytes / 1e6:.1f} MB wait on disk" if waiting_bytes else "nothing lost of late"
        return HealthResult(text=text, data=data)
