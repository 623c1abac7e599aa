"""What is kept of results: metrics of each, a log event of each change, and few rows of the history.

A load balancer that asks each second must not fill a table: a row is written when the status changes, and every few minutes
while it stays.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from clew import clock
from clew.catalog.metrics import HEALTH_DURATION, HEALTH_STATUS
from clew.diagnostics import report
from clew.engine.logger import get_logger
from clew.engine.metrics import registry
from clew.health.check import CheckResult, Status
from clew.health.loops import running_loop

STATUS_VALUES: Final[dict[Status, float]] = {"ok": 1.0, "degraded": 0.5, "failed": 0.0}
"""What the gauge of a check's status shows."""

ROW_INTERVAL_S: Final = 300.0
"""How often a result is written to the history while the status stays the same, in seconds."""
# What goes up and down with each look makes no more rows than this
_LEAST_INTERVAL_S: Final = 5.0

_CHECK: Final = "clew.health.check"
_STATUS: Final = "clew.health.status"


class Recording:
    """Keeps what the checks of the process find."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, Status] = {}
        self._written: dict[str, tuple[Status, float]] = {}

    def note(self, result: CheckResult) -> None:
        """Keep one result. Whatever goes wrong in that, the result stands."""
        try:
            registry.declared(HEALTH_STATUS).set(STATUS_VALUES[result.status], **{_CHECK: result.name})
            labels = {_CHECK: result.name, _STATUS: result.status}
            registry.declared(HEALTH_DURATION).record(result.duration_s, **labels)
            self._say(result)
            self._write(result)
        except Exception as error:
            report("health", error)

    def _say(self, result: CheckResult) -> None:
        with self._lock:
            before = self._said.get(result.name)
            self._said[result.name] = result.status
        if before == result.status or (before is None and result.status == "ok"):
            return
        fields: dict[str, Any] = {"check": result.name, "status": result.status, "before": before}
        if result.text:
            fields["text"] = result.text
        log = get_logger("clew.health")
        if result.status == "ok":
            log.info("health.changed", **fields)
        elif result.status == "failed" and result.critical:
            log.error("health.changed", **fields)
        else:
            log.warning("health.changed", **fields)

    def _write(self, result: CheckResult) -> None:
        now_s = clock.monotonic_s()
        with self._lock:
            status, at_s = self._written.get(result.name, (None, 0.0))
            age_s = now_s - at_s
            changed = status != result.status and (status is None or age_s >= _LEAST_INTERVAL_S)
            if not changed and age_s < ROW_INTERVAL_S:
                return
            self._written[result.name] = (result.status, now_s)
        if running_loop() is None:
            _write_row(result)
        else:
            # Making the recorder imports what a database needs, which is nothing for an event loop
            threading.Thread(target=_write_row, args=(result,), name="clew-health-row", daemon=True).start()


def _write_row(result: CheckResult) -> None:
    try:
        from clew.history.ids import new_id
        from clew.history.recorder import recorder
        from clew.history.writing import Change

        if (known := recorder()) is None:
            return
        row = known.row(
            id=new_id(),
            name=result.name,
            status=result.status,
            duration_s=result.duration_s,
            message=result.text or None,
            details=dict(result.data) or None,
        )
        known.record(Change(table="health_checks", row=row))
    except Exception as error:
        # While the interpreter ends, little works any more
        if threading.main_thread().is_alive():
            report("health", error)
