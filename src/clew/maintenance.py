"""Maintenance: ordinary jobs of an APScheduler scheduler, each added by one call, recorded and measured like any other.

``CLEW_MAINTENANCE`` names those that are on; a call for one that is not adds nothing, so that it can be switched off where the app
runs. Each has an id of its own, ``clew.`` and its name: added twice, or by two processes to one store, it is there once.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any, Final

from clew import clock
from clew.diagnostics import ClewError, report
from clew.engine import runtime
from clew.health.monitor import monitor

logger = logging.getLogger("clew.maintenance")

_DAY_S: Final = 86_400.0
_GRACE_S: Final = 3_600


class MaintenanceError(ClewError):
    """A maintenance job could not do its work: the message says which, and why."""


def clean_history(scheduler: Any, *, hour: int = 3) -> None:
    """Have expired records archived, verified and deleted once a day.

    Args:
        scheduler: an APScheduler scheduler.
        hour: when, from 0 to 23, in UTC.

    Example:
        >>> from apscheduler.schedulers.background import BackgroundScheduler
        >>> scheduler = BackgroundScheduler()
        >>> clean_history(scheduler, hour=2)
        >>> [job.id for job in scheduler.get_jobs()]
        ['clew.clean_history']
    """
    _add(scheduler, "clean_history", _clean_history, trigger="cron", hour=hour)


def delete_old_logs(
    scheduler: Any, folder: str | Path, *, pattern: str = "*.log*", max_age_s: float = 30 * _DAY_S, hour: int = 3
) -> None:
    """Have log files that were last written to long ago deleted once a day.

    The newest file always stays. Only files that lie in the folder itself are deleted: no links, and nothing beneath it.

    Args:
        scheduler: an APScheduler scheduler.
        folder: where the files are.
        pattern: which they are, such as ``*.log*``; no folders.
        max_age_s: how long they are kept, in seconds.
        hour: when, from 0 to 23, in UTC.

    Raises:
        MaintenanceError: the folder is the root of a file system, or the pattern means all files, or other folders.
    """
    where = _checked(folder, pattern)
    _add(scheduler, "delete_old_logs", _delete_old_logs, where, pattern, max_age_s, trigger="cron", hour=hour)


def delete_old_backups(
    scheduler: Any, folder: str | Path, *, pattern: str = "*.db*", keep: int = 10, hour: int = 4
) -> None:
    """Have all but the newest backups of a database deleted once a day.

    Only files that lie in the folder itself are deleted: no links, and nothing beneath it.

    Args:
        scheduler: an APScheduler scheduler.
        folder: where the files are.
        pattern: which they are, such as ``orders-*.db``; no folders.
        keep: how many are kept, at least 1.
        hour: when, from 0 to 23, in UTC.

    Raises:
        MaintenanceError: the folder is the root of a file system, the pattern means all files, or none would be kept.
    """
    if keep < 1:
        raise MaintenanceError(f"keep={keep}: at least one backup has to stay")
    where = _checked(folder, pattern)
    _add(scheduler, "delete_old_backups", _delete_old_backups, where, pattern, keep, trigger="cron", hour=hour)


def check_health(scheduler: Any, *, every_s: float = 300.0) -> None:
    """Have every health check of this process looked at now and then: a warning is logged for each that is not well.

    What they find is kept in the history, as when somebody asks over HTTP.

    Args:
        scheduler: an APScheduler scheduler.
        every_s: how often, in seconds.
    """
    _add(scheduler, "check_health", _check_health, trigger="interval", seconds=every_s)


def _add(scheduler: Any, name: str, do: Callable[..., Any], *arguments: Any, trigger: str, **when: Any) -> None:
    settings = runtime.ready().settings
    if settings is None or name not in settings.maintenance:
        logger.info("%s is not among CLEW_MAINTENANCE: it is not added", name)
        return
    scheduler.add_job(
        do,
        trigger,
        args=arguments,
        timezone=UTC,
        id=f"clew.{name}",
        name=f"clew.{name}",
        replace_existing=True,
        coalesce=True,
        max_instances=1,
        misfire_grace_time=_GRACE_S,
        **when,
    )


def _checked(folder: str | Path, pattern: str) -> str:
    """Return a folder's whole path, where nothing but what is meant can be deleted from it."""
    where = Path(folder).resolve()
    if where == Path(where.anchor):
        raise MaintenanceError(f"{folder} is the root of a file system: name the folder that the files are in")
    if not pattern or "/" in pattern or "\\" in pattern or set(pattern) <= set("*?.["):
        raise MaintenanceError(
            f"pattern={pattern!r}: it must tell the files from others of the folder, such as '*.log*'"
        )
    return str(where)


# What follows is found by its name by job stores that outlive the process


def _clean_history() -> dict[str, int]:
    """Return how many rows were archived and deleted, by table."""
    from clew.history.database import Database
    from clew.history.retention import clean_up

    settings = runtime.ready().settings
    if settings is None or not settings.history:
        return {}
    database = Database(settings.history_url())
    try:
        database.ensure(auto_upgrade=settings.database_auto_upgrade)
        return {cleaned.table: cleaned.rows for cleaned in clean_up(database, settings) if cleaned.rows}
    finally:
        database.close()


def _delete_old_logs(folder: str, pattern: str, max_age_s: float) -> dict[str, int]:
    """Return how many files were deleted."""
    oldest = clock.now_ns() / 1e9 - max_age_s
    # The newest may be the one that is written to
    files = _newest_first(folder, pattern)[1:]
    return _delete([path for path, written_at in files if written_at < oldest])


def _delete_old_backups(folder: str, pattern: str, keep: int) -> dict[str, int]:
    """Return how many files were deleted."""
    return _delete([path for path, _ in _newest_first(folder, pattern)[keep:]])


def _check_health() -> dict[str, str]:
    """Return the status of each check, and of all."""
    found = monitor.look()
    for result in found.results:
        if result.status != "ok":
            logger.warning("health check %s: %s (%s)", result.name, result.status, result.text)
    return {"status": found.status, **{result.name: result.status for result in found.results}}


def _newest_first(folder: str, pattern: str) -> list[tuple[Path, float]]:
    """Return the files of a folder that fit a pattern, with when they were last written to."""
    where = Path(folder)
    if where.resolve() != where or not where.is_dir():
        raise MaintenanceError(f"{folder} is no folder, or leads somewhere else by now: nothing was deleted")
    found = []
    for path in where.glob(pattern):
        try:
            status = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((path, status.st_mtime))
    return sorted(found, key=lambda one: (one[1], one[0].name), reverse=True)


def _delete(paths: list[Path]) -> dict[str, int]:
    deleted = 0
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            report("maintenance", f"{path} can't be deleted: {error.strerror}")
        else:
            deleted += 1
            logger.info("%s was deleted", path)
    return {"deleted": deleted}
