"""The tasks and handoffs of this process that go on: what its heartbeat keeps alive, and its end waits for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from clew.history.finishing import Finishing
from clew.history.going_on import GoingOn

if TYPE_CHECKING:
    from clew.agents.handoff import Handoff
    from clew.agents.record import HandoffRecord, TaskRecord
    from clew.agents.task import AgentTask

tasks: Final[GoingOn[AgentTask, TaskRecord]] = GoingOn()
handoffs: Final[GoingOn[Handoff, HandoffRecord]] = GoingOn()
"""Those that are to come back to this process."""


def _leave() -> None:
    for handoff, _ in handoffs.all():
        handoff.cut()
    from clew.agents.upkeep import leave

    leave()


ending: Final = Finishing(tasks, lambda task: task.cut(), leave=_leave)

os.register_at_fork(after_in_child=tasks.reset)
os.register_at_fork(after_in_child=handoffs.reset)
