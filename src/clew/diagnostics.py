"""What clew does about its own mistakes and the caller's: it never raises into the app, it counts, and it says so once."""

from __future__ import annotations

import logging
import threading
from collections import Counter

logger = logging.getLogger("clew")

_lock = threading.Lock()
_counts: Counter[str] = Counter()
_strict = False


class ClewError(Exception):
    """The root of every error that clew raises on purpose, outside the facade or in strict mode."""


def set_strict(*, strict: bool) -> None:
    """Choose whether a bad value given to the facade raises (tests) or is coerced and counted (production)."""
    global _strict
    _strict = strict


def is_strict() -> bool:
    """Tell whether a bad value given to the facade raises."""
    return _strict


def report(where: str, problem: BaseException | str) -> None:
    """Count a problem in the facade and log the first one of each place; raise it in strict mode.

    Args:
        where: the public name that was called, such as ``"counter.add"``.
        problem: the exception that was caught, or a sentence that says what was wrong.

    Raises:
        ClewError: in strict mode only (``CLEW_STRICT=1``).
    """
    with _lock:
        _counts[where] += 1
        first = _counts[where] == 1
    if _strict:
        if isinstance(problem, BaseException):
            raise ClewError(f"{where}: {problem!r}") from problem
        raise ClewError(f"{where}: {problem}")
    if first:
        logger.warning("%s: %s (further ones are only counted)", where, problem)


def problems() -> dict[str, int]:
    """Return how often each place of the facade was given something it could not use."""
    with _lock:
        return dict(_counts)


def forget() -> None:
    """Start counting anew: for a forked child, whose lock another thread of its parent may hold, and for tests."""
    global _lock
    _lock = threading.Lock()
    _counts.clear()
