"""Which apps are instrumented, and whether somebody else traces Celery as well."""

from __future__ import annotations

import sys
from typing import Any, Final

from celery import Celery

from clew.diagnostics import report

WHERE: Final = "instrument celery"

_MARK: Final = "_clew_instrumented"
_RIVAL: Final = "opentelemetry.instrumentation.celery"

_has_complained = False


def mark(app: Celery) -> bool:
    """Remember that an app is instrumented; return whether it was not before."""
    if is_instrumented(app):
        return False
    vars(app)[_MARK] = True
    return True


def is_instrumented(app: Any) -> bool:
    """Tell whether an app is instrumented."""
    return isinstance(app, Celery) and _MARK in vars(app)


def name_rival() -> None:
    """Complain once, where OpenTelemetry's instrumentation of Celery is active: every task would have two spans."""
    global _has_complained
    stock = getattr(sys.modules.get(_RIVAL), "CeleryInstrumentor", None)
    if _has_complained or stock is None or not stock().is_instrumented_by_opentelemetry:
        return
    _has_complained = True
    report(
        WHERE,
        "opentelemetry-instrumentation-celery is active as well, so that every task gets two spans: "
        "take CeleryInstrumentor out, or do not instrument the app with clew",
    )
