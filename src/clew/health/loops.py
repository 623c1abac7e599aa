"""The app's event loop: where coroutine checks run, and how late it is."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Final

from clew import clock

_TICK_S: Final = 0.5

_lock = threading.Lock()
_app_loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
_drift: Drift | None = None

LoopReference = weakref.ref[asyncio.AbstractEventLoop]


class Drift:
    """Notes how late a loop is with what it was asked to do at a time.

    Args:
        loop: the loop, which is running.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: LoopReference = weakref.ref(loop)
        self._worst_s = 0.0
        self._due_s = 0.0
        self._plan(loop)

    def worst_s(self) -> float:
        """Return how late it was at worst since this was asked before, in seconds."""
        worst_s, self._worst_s = self._worst_s, 0.0
        # What is due and has not come yet is late as well
        return max(worst_s, clock.monotonic_s() - self._due_s)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = clock.monotonic_s() + _TICK_S
        loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._worst_s = max(self._worst_s, clock.monotonic_s() - self._due_s)
        loop = self.loop()
        if loop is not None:
            self._plan(loop)


def note_loop() -> None:
    """Take the running loop, if there is one, for the app's. The first one stays it while it runs."""
    global _app_loop, _drift
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if _app_loop is not None and _app_loop() is loop:
        return
    with _lock:
        known = _app_loop() if _app_loop is not None else None
        if known is None or not known.is_running():
            _app_loop = weakref.ref(loop)
            _drift = Drift(loop)


def running_loop() -> LoopReference | None:
    """Return the loop that the caller runs in, or ``None``."""
    try:
        return weakref.ref(asyncio.get_running_loop())
    except RuntimeError:
        return None


def loop_of(reference: LoopReference | None = None) -> asyncio.AbstractEventLoop | None:
    """Return the loop of a reference while it runs, else the app's while that does.

    Args:
        reference: a loop that was running when something was made, or ``None``.
    """
    for known in (reference, _app_loop):
        loop = known() if known is not None else None
        if loop is not None and loop.is_running():
            return loop
    return None


def drift() -> Drift | None:
    """Return what is known of the delays of the app's loop, or ``None`` where no loop runs."""
    known = _drift
    loop = known.loop() if known is not None else None
    return known if loop is not None and loop.is_running() else None


def answers_within(timeout_s: float) -> bool:
    """Tell whether the app's event loop answers; true where there is none. Not to be asked from within it.

    Args:
        timeout_s: how long to wait.
    """
    loop = loop_of()
    if loop is None:
        return True
    answered = threading.Event()
    try:
        loop.call_soon_threadsafe(answered.set)
    except RuntimeError:
        # Closed a moment ago
        return True
    return answered.wait(timeout_s)


def reset_after_fork() -> None:
    """Forget the parent's loop."""
    global _lock, _app_loop, _drift
    _lock = threading.Lock()
    _app_loop = _drift = None
