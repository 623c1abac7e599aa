"""Runs of graphs: tasks of agents, and workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from langgraph.pregel import Pregel
from opentelemetry import context as otel_context
from opentelemetry import trace

from clew.agents.handoff import handoff
from clew.agents.task import agent_task
from clew.agents.workflow import workflow
from clew.diagnostics import report
from clew.engine.context import Carried
from clew.engine.operation import Operation
from clew.instrumentation.langgraph.ending import WHERE
from clew.instrumentation.langgraph.run import NODE_KEY, RUN_KEY, Node, Run, current_node, current_run
from clew.pipeline.current import attach, detach, get_current

# What a graph is called that nobody named
_UNNAMED: Final = "LangGraph"
# What an agent's nodes are made by: create_react_agent, create_agent, or by hand with a ToolNode
_OF_AGENTS: Final = frozenset(
    {"langgraph.prebuilt.chat_agent_executor", "langchain.agents.factory", "langgraph.prebuilt.tool_node"}
)


def _begin_run(graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run | None:
    try:
        outer, node = current_run(), current_node()
        config = (args[1] if len(args) > 1 else kwargs.get("config")) or {}
        thread = (config.get("configurable") or {}).get("thread_id")
        conversation = str(thread) if thread is not None else outer.conversation if outer is not None else None
        is_agent = _is_agent(graph)
        name = graph.name if graph.name != _UNNAMED or node is None else node.name
        operation: Operation
        if is_agent:
            operation = agent_task(name, task_id=conversation, carrier=_accepted(node, name, conversation))
        else:
            operation = workflow(name, conversation_id=conversation)
        agents = frozenset(key for key, part in graph.nodes.items() if not is_agent and _is_agent(part.bound))
        run = Run(
            name=name, is_agent=is_agent, agents=agents, conversation=conversation, operation=operation, node=node
        )
        operation.begin()
        context = otel_context.set_value(RUN_KEY, run, operation.context or get_current())
        run.context = otel_context.set_value(NODE_KEY, None, context)
    except Exception as error:
        report(WHERE, error)
        return None
    return run


def _is_agent(graph: Any) -> bool:
    """Tell whether a compiled graph calls tools for a model itself, and holds no other that does."""
    if not isinstance(graph, Pregel):
        return False
    parts = [node.bound for node in graph.nodes.values()]
    made = any(
        {getattr(getattr(part, "func", None), "__module__", ""), *(kind.__module__ for kind in type(part).__mro__)}
        & _OF_AGENTS
        for part in parts
    )
    return made and not any(_is_agent(part) for part in parts)


def _accepted(node: Node | None, name: str, conversation: str | None) -> Carried | None:
    """Record that control was given to an agent, which begins: it is the one that accepts it."""
    if node is None or (taken := node.take(name)) is None:
        return None
    source, decided_ns = taken
    # Of the agent that gave it, where the one that takes it is
    with Carried(trace.set_span_in_context(trace.get_current_span(), source.context)):
        made = handoff(to=name, task=conversation, mode="pass_control")
        made.begin(start_time_ns=decided_ns)
        made.finish()
    return Carried(made.context) if made.context is not None else None


def stream(wrapped: Callable[..., Any], graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Run a graph; what reads its stream in between is no part of it."""
    run = _begin_run(graph, args, kwargs)
    pieces = wrapped(*args, **kwargs)
    if run is None:
        yield from pieces
        return
    error: BaseException | None = None
    try:
        while True:
            token = attach(run.context)
            try:
                piece = next(pieces)
            except StopIteration:
                break
            finally:
                detach(token)
            yield piece
    except BaseException as problem:
        error = problem
        raise
    finally:
        try:
            with Carried(run.context):
                pieces.close()
        finally:
            run.end(error)


async def astream(
    wrapped: Callable[..., Any], graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncIterator[Any]:
    """Run a graph, as :func:`stream` does."""
    run = _begin_run(graph, args, kwargs)
    pieces = wrapped(*args, **kwargs)
    error: BaseException | None = None
    try:
        while True:
            token = attach(run.context if run is not None else get_current())
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                break
            finally:
                detach(token)
            yield piece
    except BaseException as problem:
        error = problem
        raise
    finally:
        try:
            with Carried(run.context if run is not None else get_current()):
                await pieces.aclose()
        finally:
            if run is not None:
                run.end(error)
