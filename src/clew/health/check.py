"""A health check and what it finds, as values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

Status = Literal["ok", "degraded", "failed"]
"""``degraded`` is still of use; ``failed`` is not."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}")
MAX_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that is looked at to tell whether the process is of use.

    Attributes:
        name: told in answers, and the label of its metrics: 1 to 64 letters, digits and ``_.:/-``.
        probe: looks. A function runs in a thread of its own, a coroutine function in the app's event loop. It is well when it
            returns ``None`` or ``True``, failed when it returns ``False`` or raises; a :class:`HealthResult` says more.
        timeout_s: how long it may take, in seconds, at most 60.
        critical: when it fails, the process is of no use: it is not ready, and ``/health`` answers 503. Else it is degraded.
        fresh_s: how long what it found is told before it looks again, in seconds.

    Raises:
        ValueError: one of them can't be used.

    Example:
        >>> Check(name="payments", probe=lambda: True, timeout_s=0.5, critical=True).name
        'payments'
    """

    name: str
    probe: Callable[[], Any]
    timeout_s: float = 2.0
    critical: bool = False
    fresh_s: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"a check's name is 1 to 64 letters, digits and _.:/-, not {str(self.name)[:80]!r}")
        if not callable(self.probe):
            raise ValueError(f"check {self.name}: a {type(self.probe).__qualname__} can't be called")  # noqa: TRY004 - all that can't be used is one kind of error here
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"check {self.name}: timeout_s is above 0 and at most {MAX_TIMEOUT_S:.0f}")
        if not (math.isfinite(self.fresh_s) and self.fresh_s >= 0):
            raise ValueError(f"check {self.name}: fresh_s is a number of seconds, 0 or more")


@dataclass(frozen=True, kw_only=True)
class HealthResult:
    """What a probe returns when it has more to say than well or not.

    Attributes:
        status: ``ok``, ``degraded`` or ``failed``.
        text: a sentence for a person.
        data: figures, told only to those who may see details.

    Example:
        >>> HealthResult(status="degraded", text="2 of 3 replicas answer", data={"replicas": 2}).status
        'degraded'
    """

    status: Status = "ok"
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found. Secrets are redacted from its texts.

    Attributes:
        name: the check's.
        critical: whether the process is of no use when it fails.
        status: ``ok``, ``degraded`` or ``failed``.
        text: a sentence for a person; empty where there is nothing to say.
        data: figures.
        duration_s: how long it took, in seconds.
        checked_at: when it was found, in UTC.
        finished_s: the same by the monotonic clock.
        hangs: it has not come back.
    """

    name: str
    critical: bool
    status: Status
    text: str
    data: Mapping[str, Any]
    duration_s: float
    checked_at: datetime
    finished_s: float
    hangs: bool = False


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """What all checks found.

    Attributes:
        results: one for each check, in the order in which they were added.
        duration_s: how long it took to gather them.
    """

    results: tuple[CheckResult, ...]
    duration_s: float

    @property
    def status(self) -> Status:
        """``failed`` when a critical check failed, ``degraded`` when anything else is not well."""
        if any(result.critical and result.status == "failed" for result in self.results):
            return "failed"
        return "ok" if all(result.status == "ok" for result in self.results) else "degraded"

    def __getitem__(self, name: str) -> CheckResult:
        """Return what a check found, by its name."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)
