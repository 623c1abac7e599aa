"""Ends the demo's processes when the one who started them is gone, however it went: kill -9 leaves nothing running.

Run as a script of its own. Process groups come as lines on standard input, ``+123`` when one has started and ``-123`` when it has
ended; the end of the input is the end of the one who wrote them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

PATIENCE_S = 3.0
_POLL_EVERY_S = 0.02


def groups_left(lines: Iterable[str]) -> set[int]:
    """Return the process groups that have started and not ended.

    Args:
        lines: what was told.

    Example:
        >>> groups_left(["+10", "+11", "-10", "nonsense"])
        {11}
    """
    left: set[int] = set()
    for line in lines:
        sign, number = line[:1], line[1:].strip()
        # 0 would be our own group, and 1 is everybody
        if number.isdecimal() and int(number) > 1:
            if sign == "+":
                left.add(int(number))
            elif sign == "-":
                left.discard(int(number))
    return left


def end(groups: set[int], patience_s: float = PATIENCE_S) -> None:
    """End process groups: politely, and after a while for good.

    Args:
        groups: their numbers.
        patience_s: how long they have to end by themselves.
    """
    deadline = time.monotonic() + patience_s
    left = {group for group in groups if _send(group, signal.SIGTERM)}
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_EVERY_S)
        left = {group for group in left if _send(group, 0)}
    for group in left:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    end(groups_left(sys.stdin))
