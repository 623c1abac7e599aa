"""Waiting for something to become so: by looking again, with a deadline and a failure that says what was waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

WAIT_S = 15.0
_PAUSE_S = 0.01


def eventually(condition: Callable[[], Any], what: str, *, within_s: float = WAIT_S) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        threading.Event().wait(_PAUSE_S)


async def eventually_async(condition: Callable[[], Any], what: str) -> None:
    """Wait until ``condition`` holds, while the event loop runs on."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        await asyncio.sleep(_PAUSE_S)
