"""Checks that clew brings, each made by a function that returns a :class:`clew.health.check.Check`.

Example:
    >>> import clew
    >>> from clew.health import checks
    >>> check = clew.watch(checks.disk("/", name="root disk"))
    Traceback (most recent call last):
    ...
    ValueError: a check's name is 1 to 64 letters, digits and _.:/-, not 'root disk'
"""

from __future__ import annotations

from typing import Any

from clew.health.check import Check
from clew.health.checks.agents import agents
from clew.health.checks.database import database, history
from clew.health.checks.event_loop import event_loop
from clew.health.checks.llm import llm
from clew.health.checks.queue import queue
from clew.health.checks.redis import redis
from clew.health.checks.scheduler import scheduler
from clew.health.checks.system import cpu, disk, memory, open_files
from clew.health.checks.telemetry import telemetry

__all__ = [
    "agents",
    "cpu",
    "database",
    "defaults",
    "disk",
    "event_loop",
    "history",
    "llm",
    "memory",
    "of",
    "open_files",
    "queue",
    "redis",
    "scheduler",
    "telemetry",
]


def defaults() -> list[Check]:
    """Return the checks that every process has: none of them is critical, because none says that it can't work."""
    return [disk(), memory(), cpu(), open_files(), event_loop(), telemetry(), history(), scheduler()]


def of(target: Any) -> Check:
    """Return the check of an object, by the library that its type comes from.

    Args:
        target: an SQLAlchemy engine, a redis client, an APScheduler scheduler or an OpenAI client.

    Raises:
        TypeError: it is none of them.

    Example:
        >>> of(object())
        Traceback (most recent call last):
        ...
        TypeError: a builtins.object has no check of its own: give an SQLAlchemy engine, a redis client, an APScheduler scheduler, an OpenAI client or a clew.health.check.Check
    """
    kinds = {kind.__module__.partition(".")[0] for kind in type(target).__mro__}
    if "sqlalchemy" in kinds:
        return database(target)
    if "redis" in kinds:
        return redis(target)
    if "apscheduler" in kinds:
        return scheduler(target)
    if "openai" in kinds:
        return llm(str(target.base_url), target.api_key)
    raise TypeError(
        f"a {type(target).__module__}.{type(target).__qualname__} has no check of its own: give an SQLAlchemy engine, "
        "a redis client, an APScheduler scheduler, an OpenAI client or a clew.health.check.Check"
    )
