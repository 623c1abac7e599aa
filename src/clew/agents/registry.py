"""The agents of this process, with what it saw of them: what its heartbeat tells to the history, where other processes read it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from clew import clock
from clew.diagnostics import report

MAX_AGENTS: Final = 10_000
"""How many agents of a process are told of: names that come from outside must not fill a table."""


@dataclass(slots=True, kw_only=True)
class Known:
    """An agent of this process.

    Attributes:
        agent: its name.
        type: what kind of agent it is.
        version: which one.
        registered_at: since when it is known.
        active: tasks that it works on.
        tasks: tasks that it began.
        failures: those of them that failed.
        failures_in_a_row: how many failed since one did not.
        last_started_at: when it began a task last.
        last_finished_at: when it ended one last.
        last_error_type: of the last failure.
        is_dirty: it is not as it was told.
    """

    agent: str
    type: str
    version: str | None
    registered_at: datetime = field(default_factory=clock.utc_now)
    active: int = 0
    tasks: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    last_started_at: datetime | None = None
    last_finished_at: datetime | None = None
    last_error_type: str | None = None
    is_dirty: bool = True


class Registry:
    """Knows the agents of this process."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._lock = threading.Lock()

    def note(self, agent: str, type: str, version: str | None) -> Known | None:
        """Know an agent; ``None`` where there are too many.

        Args:
            agent: its name.
            type: what kind of agent it is.
            version: which one.
        """
        known = self._known.get(agent)
        if known is None:
            with self._lock:
                if len(self._known) >= MAX_AGENTS:
                    report(
                        "agents", f"more than {MAX_AGENTS} agents: names that tell tasks apart are no names of agents"
                    )
                    return None
                known = self._known.setdefault(agent, Known(agent=agent, type=type, version=version))
        if (type and known.type != type) or (version is not None and known.version != version):
            known.type, known.version, known.is_dirty = type or known.type, version or known.version, True
        return known

    def started(self, known: Known) -> None:
        """Count a task that begins."""
        with self._lock:
            known.active += 1
            known.tasks += 1
            known.last_started_at = clock.utc_now()
            known.is_dirty = True

    def ended(self, known: Known, error_type: str | None, *, completed: bool) -> None:
        """Count a task that ended.

        Args:
            known: whose it was.
            error_type: why it failed; ``None`` where it did not.
            completed: whether it was done; what was cancelled tells nothing of the agent.
        """
        with self._lock:
            known.active = max(0, known.active - 1)
            known.last_finished_at = clock.utc_now()
            if error_type is not None:
                known.failures += 1
                known.failures_in_a_row += 1
                known.last_error_type = error_type
            elif completed:
                known.failures_in_a_row = 0
            known.is_dirty = True

    def all(self) -> list[Known]:
        """Return those that are known."""
        with self._lock:
            return list(self._known.values())

    def tell_anew(self) -> None:
        """Have all of them told, whatever was told before."""
        for known in self.all():
            known.is_dirty = True

    def reset_after_fork(self) -> None:
        """Begin anew: what the parent saw is the parent's."""
        self._lock = threading.Lock()
        fresh = [Known(agent=one.agent, type=one.type, version=one.version) for one in self._known.values()]
        self._known = {one.agent: one for one in fresh}


registry: Final = Registry()
os.register_at_fork(after_in_child=registry.reset_after_fork)
