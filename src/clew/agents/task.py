"""A task that an agent works on, and the handoff of one to another agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

from clew.catalog import semconv
from clew.catalog.operations import AGENT_TASK, HANDOFF
from clew.engine.context import Carried, current_agent, with_agent
from clew.engine.operation import Operation

P = ParamSpec("P")
R = TypeVar("R")

TransferMode = Literal["return_to_caller", "pass_control"]


class AgentTask(Operation):
    """A task of one agent. Made by :func:`agent_task`."""

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the span, and let a handoff within know who hands over."""
        super().begin(start_time_ns=start_time_ns)
        if self.context is not None:
            self.context = with_agent(self.attributes[semconv.GEN_AI_AGENT_NAME], self.context)


def agent_task(
    agent: str, /, *, type: str = "", carrier: Mapping[Any, Any] | Carried | None = None, **attributes: Any
) -> AgentTask:
    """Trace and measure an agent at work on a task.

    Args:
        agent: the agent's name, of low cardinality.
        type: what kind of agent it is, such as ``topicization``.
        carrier: where the task came over a wire, what :attr:`Operation.carrier` of its handoff gave.
        attributes: attributes of the task.

    Example:
        >>> import clew
        >>> with clew.agent_task("topicizer", type="topicization", task_id="t-1"):
        ...     pass
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "invoke_agent",
        semconv.GEN_AI_AGENT_NAME: str(agent),
        "clew.agent.type": type,
        **attributes,
    }
    return AgentTask(AGENT_TASK, given, parent=carrier)


def agent(name: str, /, *, type: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make every call of a function a task of an agent.

    Args:
        name: the agent's name.
        type: what kind of agent it is.

    Example:
        >>> import clew
        >>> @clew.agent("topicizer", type="topicization")
        ... def topics(text: str) -> list[str]:
        ...     return text.split()
        >>> topics("one two")
        ['one', 'two']
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return agent_task(name, type=type)(function)

    return decorate


def handoff(
    *, to: str, task: Any = None, mode: TransferMode = "return_to_caller", reason: str = "", **attributes: Any
) -> Operation:
    """Hand a task to another agent, in this process or over a wire.

    Within the block everything belongs to the handoff. To cross a process, send ``handoff.carrier`` along with the task, and
    give it to :func:`agent_task` on the other side.

    Args:
        to: the agent that takes over.
        task: what it is about; its identity is recorded (``id`` attribute or key, or a short text), never its content.
        mode: ``return_to_caller`` when the result comes back, ``pass_control`` when it does not.
        reason: why, in a few words.
        attributes: attributes of the handoff.

    Example:
        >>> import clew
        >>> with clew.handoff(to="topicizer", task={"id": "doc-17"}) as passing:
        ...     carrier = passing.carrier
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "execute_tool",
        semconv.GEN_AI_TOOL_NAME: f"transfer_to_{to}",
        semconv.GEN_AI_TRANSFER_TARGET_NAME: str(to),
        semconv.GEN_AI_TRANSFER_MODE: mode,
        "clew.handoff.source": current_agent() or "",
        **attributes,
    }
    if reason:
        given["clew.handoff.reason"] = reason
    if (identity := _identity(task)) is not None:
        given["clew.task.id"] = identity
    return Operation(HANDOFF, given)


def _identity(task: Any) -> str | None:
    if task is None:
        return None
    if isinstance(task, (str, int)):
        return str(task)[:128]
    found = task.get("id") if isinstance(task, Mapping) else getattr(task, "id", None)
    return str(found)[:128] if found is not None else None
