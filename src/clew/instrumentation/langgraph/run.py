"""A run of a graph, and the nodes that are at work in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from langgraph.errors import ParentCommand
from langgraph.types import Command, Send
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from clew import clock
from clew.diagnostics import report
from clew.engine.operation import Operation
from clew.instrumentation.langgraph.ending import WHERE, finish
from clew.pipeline.current import attach, get_current

RUN_KEY: Final = otel_context.create_key("clew-langgraph-run")
NODE_KEY: Final = otel_context.create_key("clew-langgraph-node")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An agent that gives control away.

    Attributes:
        agent: its name.
        context: what was current within its task.
        decided: by node that is to be the next, when it was named, in nanoseconds since the epoch.
    """

    agent: str
    context: Context
    decided: dict[str, int]


@dataclass(kw_only=True, slots=True)
class Node:
    """A node at work.

    Attributes:
        name: of it.
        within: the node within which its graph runs.
        given: the agent that gave control to it, until an agent here takes it.
        left: the agent that was at work here last.
        before: what was current.
        context: what is current within it.
        operation: its span, where it has one.
    """

    name: str
    within: Node | None
    given: Source | None
    before: Context
    context: Context
    operation: Operation | None = None
    left: Source | None = None

    def take(self, agent: str) -> tuple[Source, int] | None:
        """Return who gave control to this node, or to one that it is within, and when: for the first other agent that begins there."""
        node: Node | None = self
        while node is not None and node.given is None:
            node = node.within
        if node is None or node.given is None or node.given.agent == agent:
            return None
        source, node.given = node.given, None
        return source, source.decided[node.name]


@dataclass(kw_only=True, slots=True)
class Run:
    """A run of one graph.

    Attributes:
        name: of the graph.
        is_agent: whether it is one.
        agents: its nodes that are agents themselves.
        conversation: the thread that it belongs to.
        operation: the agent's task, or the workflow.
        node: of another graph, within which it runs.
        handed: by node that is to begin, the agents that gave control to it.
        left: the agent that gave control to a node of another graph.
        decided: by node of another graph, when a tool of the agent's named it as the next, in nanoseconds since the epoch.
        context: what is current within it.
    """

    name: str
    is_agent: bool
    agents: frozenset[str]
    conversation: str | None
    operation: Operation
    node: Node | None
    handed: dict[str, list[Source]] = field(default_factory=dict)
    left: Source | None = None
    decided: dict[str, int] = field(default_factory=dict)
    context: Context = field(default_factory=Context)

    def end(self, error: BaseException | None) -> None:
        """End the run. That it waits for somebody, or gives control to a node of another graph, is no error of it."""
        try:
            if self.node is not None:
                own = (
                    Source(agent=self.name, context=self.context, decided=self.decided) if self.is_agent else self.left
                )
                self.node.left = own or self.node.left
            finish(self.operation, error)
        except Exception as problem:
            report(WHERE, problem)


def end_node(run: Run, node: Node, outputs: Any, error: BaseException | None) -> None:
    """End a node's span, and note to which nodes its agent gives control."""
    try:
        if get_current() is node.context:
            attach(node.before)
        commands = [error.args[0]] if isinstance(error, ParentCommand) else _commands(outputs)
        if node.left is not None:
            run.left = node.left
            for command in commands:
                for target in named_by(command):
                    name = target.node if isinstance(target, Send) else target
                    node.left.decided.setdefault(name, clock.now_ns())
                    if isinstance(target, Send):
                        run.handed.setdefault(name, []).append(node.left)
                    else:
                        # It begins once, whoever names it
                        run.handed[name] = [node.left]
        if node.operation is not None:
            finish(node.operation, error)
    except Exception as problem:
        report(WHERE, problem)


def named_by(command: Command[Any]) -> list[str | Send]:
    """Return the nodes that a command names as the next ones."""
    given = command.goto if isinstance(command.goto, (list, tuple)) else (command.goto,)
    return [target for target in given if target]


def _commands(outputs: Any) -> list[Command[Any]]:
    return [one for one in (outputs if isinstance(outputs, (list, tuple)) else (outputs,)) if isinstance(one, Command)]


def current_run() -> Run | None:
    """Return the run of the innermost graph that is current."""
    found = otel_context.get_value(RUN_KEY)
    return found if isinstance(found, Run) else None


def current_node() -> Node | None:
    """Return the node that is current, of the innermost graph that is no agent."""
    found = otel_context.get_value(NODE_KEY)
    return found if isinstance(found, Node) else None
