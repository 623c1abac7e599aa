"""What a job carries beside its own: the thread of what scheduled it, kept with it in its store, and what concerns its next run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from clew.diagnostics import report
from clew.engine.context import inject

STATE_KEY: Final = "clew"
"""The key of a stored job's state under which the thread of what scheduled it is kept."""

MARK: Final = "_clew_instrumented"
"""The attribute that an instrumented scheduler has."""

WHERE: Final = "instrument apscheduler"

MERGED: Final = "clew-merged"
"""The key of a carrier that says how many times of a job were merged into one run."""

REQUESTED_BY: Final = "clew-requested-by"
"""The key of a carrier that says who asked for a run beside the job's schedule."""

_MAX_CARRIED: Final = 16


class _Carriers:
    """What scheduled the jobs of instrumented schedulers. Jobs have slots and can't be hashed, so they are told by identity."""

    def __init__(self) -> None:
        self._by_identity: dict[int, tuple[weakref.ref[Any], dict[str, str]]] = {}

    def put(self, job: Any, carrier: dict[str, str]) -> None:
        identity = id(job)
        reference = weakref.ref(job, lambda _: self._by_identity.pop(identity, None))
        self._by_identity[identity] = (reference, carrier)

    def get(self, job: Any) -> dict[str, str] | None:
        known = self._by_identity.get(id(job))
        return known[1] if known is not None and known[0]() is job else None


carriers: Final = _Carriers()


def is_traced(job: Any) -> bool:
    """Tell whether a job is an instrumented scheduler's, or was when it was stored."""
    if carriers.get(job) is not None:
        return True
    scheduler = getattr(job, "_scheduler", None)
    return scheduler is not None and MARK in vars(scheduler)


def job_made(wrapped: Callable[..., None], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep what is current where a job is made."""
    wrapped(*args, **kwargs)
    try:
        if is_traced(job):
            carriers.put(job, inject({}))
    except Exception as error:
        report(WHERE, error)


def job_state(wrapped: Callable[..., Any], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Store it with the job."""
    state = wrapped(*args, **kwargs)
    if isinstance(state, dict) and is_traced(job):
        # Empty, too: it tells the child of a process pool that the job is traced
        state[STATE_KEY] = carriers.get(job) or {}
    return state


def job_loaded(wrapped: Callable[..., None], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Take it from a stored job."""
    wrapped(*args, **kwargs)
    state = args[0] if args else kwargs.get("state")
    carrier = state.get(STATE_KEY) if isinstance(state, dict) else None
    if isinstance(carrier, dict):
        texts = [(key, value) for key, value in carrier.items() if isinstance(key, str) and isinstance(value, str)]
        carriers.put(job, dict(texts[:_MAX_CARRIED]))


def times_found(wrapped: Callable[..., Any], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Count the times at which a job is due, before a scheduler merges them into one run."""
    times = wrapped(*args, **kwargs)
    try:
        if is_traced(job):
            carrier = {key: value for key, value in (carriers.get(job) or {}).items() if key != MERGED}
            if job.coalesce and len(times) > 1:
                carrier[MERGED] = str(len(times))
            carriers.put(job, carrier)
    except Exception as error:
        report(WHERE, error)
    return times
