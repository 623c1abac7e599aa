"""Agents: whether one fails, or is gone while nothing else has taken its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from clew.diagnostics import ClewError
from clew.engine import runtime
from clew.health.check import Check, HealthResult

_SHOWN: Final = 5


def agents(*required: str, name: str = "agents", critical: bool = False, timeout_s: float = 5.0) -> Check:
    """Return a check of the agents of all processes that share the history: degraded when one is failing, or required and gone.

    An agent is failing when its last three tasks in a process failed, and gone when no process that has it lives: one that is not
    required may be, such as that of a program that has done its work.

    Args:
        required: the names of agents that must be there.
        name: the check's name.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same.

    Example:
        >>> agents("topicizer", name="topicizer").name
        'topicizer'
    """
    return Check(name=name, probe=lambda: _probe(required), critical=critical, timeout_s=timeout_s)


def _probe(required: Sequence[str]) -> HealthResult:
    settings = runtime.ready().settings
    if settings is None or not settings.history:
        return HealthResult(text="the history is off: agents are not known")
    from clew.history.agents import registered
    from clew.history.reading import Reader

    reader = Reader(settings.history_url())
    try:
        with reader.open() as connection:
            known = {agent.agent: agent for agent in registered(connection)}
    except ClewError as error:
        return HealthResult(status="degraded", text=str(error))
    finally:
        reader.close()
    failing = [agent.agent for agent in known.values() if agent.state == "failing"]
    gone = [one for one in required if one not in known or known[one].state == "gone"]
    counted: dict[str, int] = {}
    for agent in known.values():
        counted[agent.state] = counted.get(agent.state, 0) + 1
    data: dict[str, Any] = {"states": counted, "failing": failing[:_SHOWN], "gone": gone[:_SHOWN]}
    if not (failing or gone):
        return HealthResult(text=f"{len(known)} agents, none failing", data=data)
    said = [f"{', '.join(failing[:_SHOWN])} failing"] if failing else []
    said += [f"{', '.join(gone[:_SHOWN])} gone"] if gone else []
    return HealthResult(status="degraded", text="; ".join(said), data=data)
