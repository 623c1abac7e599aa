"""What the machine, or the container, has left: disk, memory, CPU, open files."""

from __future__ import annotations

import os
import resource
import shutil
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from clew.engine import runtime
from clew.health.check import Check, HealthResult, Status

_CGROUP: Final = Path("/sys/fs/cgroup")
_GIB: Final = 1024**3


def disk(
    path: str | os.PathLike[str] | None = None,
    *,
    name: str = "disk",
    degraded_below: float = 0.1,
    failed_below: float = 0.02,
    critical: bool = False,
    timeout_s: float = 1.0,
) -> Check:
    """Return a check of the free space of the file system of a path.

    Args:
        path: any path on it; by default where unsent telemetry waits.
        name: the check's name.
        degraded_below: the share of it that is free, from 0 to 1, below which it is degraded.
        failed_below: the same, for failed.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same.
    """
    probe = partial(_disk, path, degraded_below, failed_below)
    return Check(name=name, probe=probe, critical=critical, timeout_s=timeout_s)


def memory(
    *, name: str = "memory", degraded_above: float = 0.9, failed_above: float = 0.97, critical: bool = False
) -> Check:
    """Return a check of the memory of the machine, or of the container where that has a limit of its own.

    Args:
        name: the check's name.
        degraded_above: the share of it in use, from 0 to 1, above which it is degraded. What is only cached is not in use.
        failed_above: the same, for failed.
        critical: see :class:`~clew.health.check.Check`.
    """
    return Check(name=name, probe=partial(_memory, degraded_above, failed_above), critical=critical)


def cpu(*, name: str = "cpu", degraded_above: float = 0.95) -> Check:
    """Return a check of the CPU of the machine since the look before. It may be degraded; busy is not failed.

    Args:
        name: the check's name.
        degraded_above: the share of all cores in use, from 0 to 1, above which it is degraded.
    """
    return Check(name=name, probe=_Cpu(degraded_above))


def open_files(
    *, name: str = "open_files", degraded_above: float = 0.8, failed_above: float = 0.95, critical: bool = False
) -> Check:
    """Return a check of the files, sockets and pipes that the process has open, against its limit.

    Args:
        name: the check's name.
        degraded_above: the share of the limit in use, from 0 to 1, above which it is degraded.
        failed_above: the same, for failed.
        critical: see :class:`~clew.health.check.Check`.
    """
    return Check(name=name, probe=partial(_open_files, degraded_above, failed_above), critical=critical)


def _disk(path: str | os.PathLike[str] | None, degraded_below: float, failed_below: float) -> HealthResult:
    folder = Path(path) if path is not None else _spool_folder()
    used = shutil.disk_usage(folder)
    free = used.free / used.total if used.total else 1.0
    status: Status = "failed" if free < failed_below else "degraded" if free < degraded_below else "ok"
    return HealthResult(
        status=status,
        text=f"{free:.0%} of {used.total / _GIB:.1f} GiB free",
        data={"path": str(folder), "free_bytes": used.free, "total_bytes": used.total},
    )


def _spool_folder() -> Path:
    settings = runtime.ready().settings
    folder = settings.spool_path() if settings is not None else Path.cwd()
    # It is made when something must wait
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _memory(degraded_above: float, failed_above: float) -> HealthResult:
    machine = psutil.virtual_memory()
    total, used, where = machine.total, machine.total - machine.available, "machine"
    if (limited := _container_memory(machine.total)) is not None:
        (total, used), where = limited, "container"
    share = used / total if total else 0.0
    status: Status = "failed" if share > failed_above else "degraded" if share > degraded_above else "ok"
    own = psutil.Process().memory_info().rss
    return HealthResult(
        status=status,
        text=f"{share:.0%} of the {where}'s {total / _GIB:.1f} GiB in use",
        data={"of": where, "used_bytes": used, "total_bytes": total, "process_bytes": own},
    )


def _container_memory(machine_bytes: int) -> tuple[int, int] | None:
    """Return limit and use of the control group, without what is only cached; ``None`` where it has no limit.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    for limit_file, use_file, stat_file, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            limit = int((_CGROUP / limit_file).read_text())
            use = int((_CGROUP / use_file).read_text())
            stat = dict(line.split() for line in (_CGROUP / stat_file).read_text().splitlines())
        except (OSError, ValueError):
            # Another version of control groups, or "max"
            continue
        if 0 < limit < machine_bytes:
            return limit, max(0, use - int(stat.get(cached, 0)))
    return None


class _Cpu:
    """Measures from one look to the next."""

    def __init__(self, degraded_above: float) -> None:
        self._degraded_above = degraded_above
        self._process = psutil.Process()
        # The first figures are of the time until the first look
        psutil.cpu_percent(interval=None)
        self._process.cpu_percent(interval=None)

    def __call__(self) -> HealthResult:
        if self._process.pid != os.getpid():
            self._process = psutil.Process()
        share = psutil.cpu_percent(interval=None) / 100
        own = self._process.cpu_percent(interval=None) / 100
        status: Status = "degraded" if share > self._degraded_above else "ok"
        return HealthResult(
            status=status,
            text=f"{share:.0%} in use",
            data={"used": share, "process_cores": own, "load_1m": os.getloadavg()[0], "cores": os.cpu_count()},
        )


def _open_files(degraded_above: float, failed_above: float) -> HealthResult:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    used = psutil.Process().num_fds()
    data = {"open": used, "limit": limit}
    if limit == resource.RLIM_INFINITY:
        return HealthResult(text=f"{used} open, without a limit", data={"open": used})
    share = used / limit if limit else 1.0
    status: Status = "failed" if share > failed_above else "degraded" if share > degraded_above else "ok"
    return HealthResult(status=status, text=f"{used} of at most {limit} open", data=data)
