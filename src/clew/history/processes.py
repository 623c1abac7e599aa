"""What tells a process from all others, also from one that has its number later, and whether it is gone.

A start time by the wall clock would not do: it is reckoned back from how long the machine has been up, and moves when that clock
is set. The kernel's own count of ticks since the machine started does not.

Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
"""

from __future__ import annotations

import functools
import socket
from pathlib import Path
from typing import Final

import psutil

_PROC: Final = Path("/proc")
_STATE: Final = 0
_START_TICKS: Final = 19
_DEAD: Final = frozenset("ZXx")
_HIDDEN: Final = "hidden"


def key_of(pid: int) -> str | None:
    """Return what a process is known by as long as its machine runs; ``None`` where there is no such process.

    Its number is part of it: processes that are forked together start at the same tick.

    Args:
        pid: its number, here.

    Example:
        >>> import os
        >>> key_of(os.getpid()) == key_of(os.getpid())
        True
    """
    started = _started(pid)
    return f"{_space()}/{pid}/{started}" if started is not None else None


def is_gone(pid: int, key: str) -> bool | None:
    """Tell whether the process that had a key is gone.

    Args:
        pid: its number, where it ran.
        key: what :func:`key_of` returned there.

    Returns:
        ``None`` where this can't be known, because it runs, or ran, somewhere else.

    Example:
        >>> import os
        >>> is_gone(os.getpid(), key_of(os.getpid()) or ""), is_gone(os.getpid(), "elsewhere/1")
        (False, None)
    """
    space, _, started = key.rpartition("/")
    if space != f"{_space()}/{pid}":
        return None
    found = _started(pid)
    return None if found == _HIDDEN else found != started


def host() -> str:
    """Return what this machine is called."""
    return socket.gethostname()


@functools.cache
def _space() -> str:
    """Return where numbers of processes mean the same: a machine since it started, and in it a namespace of processes."""
    name = host()
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (_PROC / "self/ns/pid").readlink()
    except OSError:
        return name
    return f"{name}/{boot}/{namespace}"


def _started(pid: int) -> str | None:
    """Return when a process started; ``None`` where there is none, or only the name of one that nobody has waited for."""
    try:
        # What comes before, its name, may have anything in it
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return _started_elsewhere(pid)
    return None if fields[_STATE] in _DEAD else fields[_START_TICKS]


def _started_elsewhere(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return _HIDDEN if psutil.LINUX else str(process.create_time())
    except psutil.NoSuchProcess:
        # Other users' processes may be hidden from this one
        return _HIDDEN if psutil.pid_exists(pid) else None
    except (psutil.Error, OSError):
        return _HIDDEN
