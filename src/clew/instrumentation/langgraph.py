"""LangGraph: graphs, agents, tools and handoffs as clew has them of hand-made agents.

A compiled graph that calls tools for a model is an agent, whose run is a task; every other graph is a workflow, whose nodes are spans.
Where a node's agent names the next node by a ``Command``, and an agent begins there, that is a handoff.

LLM calls are those of the OpenAI client, measured as they are elsewhere; where a model asks by other ways, LangChain's account of the
call is recorded. What was said is kept only where ``CLEW_LLM_CONTENT`` asks for it.

Graphs and tools are wrapped, and callbacks tell of nodes and models: those that tell of an end do so in a context of their own, where
nothing could be made current again.

Source: https://reference.langchain.com/python/langchain-core/callbacks
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import wrapt
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tools import BaseTool
from langchain_core.tracers.context import register_configure_hook
from langgraph.errors import GraphBubbleUp, ParentCommand
from langgraph.pregel import Pregel
from langgraph.types import Command, Send
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from clew import clock
from clew.agents.handoff import handoff
from clew.agents.task import agent_task
from clew.agents.workflow import workflow
from clew.diagnostics import report
from clew.engine.context import Carried
from clew.engine.operation import Operation
from clew.engine.spans import span as app_span
from clew.llm.call import LlmCall, llm_call
from clew.llm.content import is_wanted
from clew.llm.tool import ToolCall, tool_call
from clew.pipeline.current import attach, detach, get_current

T = TypeVar("T")

_WHERE: Final = "instrument langgraph"
_RUN_KEY: Final = otel_context.create_key("clew-langgraph-run")
_NODE_KEY: Final = otel_context.create_key("clew-langgraph-node")
# What a graph is called that nobody named
_UNNAMED: Final = "LangGraph"
# What an agent's nodes are made by: create_react_agent, create_agent, or by hand with a ToolNode
_OF_AGENTS: Final = frozenset(
    {"langgraph.prebuilt.chat_agent_executor", "langchain.agents.factory", "langgraph.prebuilt.tool_node"}
)
# Whose errors may repeat what was said
_TELLTALES: Final = ("langchain", "langgraph", "openai", "pydantic")
_TOKENS: Final = {"input": "input_tokens", "output": "output_tokens"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """An agent that gives control away: its name, and what was current within its task."""

    agent: str
    context: Context


@dataclass(kw_only=True, slots=True)
class _Node:
    """A node at work.

    Attributes:
        name: of it.
        given: the agent that gave control to it, until an agent here takes it.
        left: the agent that was at work here last.
        before: what was current.
        context: what is current within it.
        operation: its span, where it has one.
    """

    name: str
    given: _Source | None
    before: Context
    context: Context
    operation: Operation | None = None
    left: _Source | None = None


@dataclass(kw_only=True, slots=True)
class _Run:
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
        context: what is current within it.
    """

    name: str
    is_agent: bool
    agents: frozenset[str]
    conversation: str | None
    operation: Operation
    node: _Node | None
    handed: dict[str, list[_Source]] = field(default_factory=dict)
    left: _Source | None = None
    context: Context = field(default_factory=Context)

    def end(self, error: BaseException | None) -> None:
        """End the run. That it waits for somebody, or gives control to a node of another graph, is no error of it."""
        try:
            if self.node is not None:
                own = _Source(agent=self.name, context=self.context) if self.is_agent else self.left
                self.node.left = own or self.node.left
            _finish(self.operation, error)
        except Exception as problem:
            report(_WHERE, problem)


# Graphs


def _begin_run(graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Run | None:
    try:
        outer, node = _run(), _node()
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
        run = _Run(
            name=name, is_agent=is_agent, agents=agents, conversation=conversation, operation=operation, node=node
        )
        operation.begin()
        context = otel_context.set_value(_RUN_KEY, run, operation.context or get_current())
        run.context = otel_context.set_value(_NODE_KEY, None, context)
    except Exception as error:
        report(_WHERE, error)
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


def _accepted(node: _Node | None, name: str, conversation: str | None) -> Carried | None:
    """Record that control was given to an agent, which begins: it is the one that accepts it."""
    if node is None or (source := node.given) is None or source.agent == name:
        return None
    node.given = None
    # Of the agent that gave it, where the one that takes it is
    with Carried(trace.set_span_in_context(trace.get_current_span(), source.context)):
        made = handoff(to=name, task=conversation, mode="pass_control")
        made.begin()
        made.finish()
    return Carried(made.context) if made.context is not None else None


def _stream(wrapped: Callable[..., Any], graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
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


async def _astream(
    wrapped: Callable[..., Any], graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncIterator[Any]:
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


# Tools


def _begin_tool(tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolCall | None:
    try:
        if _run() is None:
            return None
        call = tool_call(tool.name, call_id=kwargs.get("tool_call_id"))
        call.begin()
        if is_wanted():
            given = args[0] if args else kwargs.get("tool_input")
            # Without what the graph puts in by itself, such as its whole state
            call.arguments(tool._filter_injected_args(given) if isinstance(given, dict) else given)
    except Exception as error:
        report(_WHERE, error)
        return None
    return call


def _end_tool(call: ToolCall, answer: Any, error: BaseException | None) -> None:
    try:
        if getattr(answer, "status", None) == "error":
            # The tool has made an answer of it
            call.fail("ToolException")
        call.result(getattr(answer, "content", answer))
        _finish(call, error)
    except Exception as problem:
        report(_WHERE, problem)


def _use_tool(wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if (call := _begin_tool(tool, args, kwargs)) is None:
        return wrapped(*args, **kwargs)
    answer, error = None, None
    try:
        with Carried(call.context or get_current()):
            answer = wrapped(*args, **kwargs)
    except BaseException as problem:
        error = problem
        raise
    finally:
        _end_tool(call, answer, error)
    return answer


async def _use_tool_async(
    wrapped: Callable[..., Awaitable[Any]], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if (call := _begin_tool(tool, args, kwargs)) is None:
        return await wrapped(*args, **kwargs)
    answer, error = None, None
    try:
        with Carried(call.context or get_current()):
            answer = await wrapped(*args, **kwargs)
    except BaseException as problem:
        error = problem
        raise
    finally:
        _end_tool(call, answer, error)
    return answer


# Nodes and models


class _Model:
    """A request to a model, which an OpenAI client makes and measures, or another one, which does not."""

    def __init__(self, metadata: dict[str, Any], given: Any) -> None:
        self._expected: Any = None
        if "openai" in sys.modules:
            try:
                from clew.instrumentation import openai as openai_clients

                self._expected = openai_clients.expect()
            except ImportError as error:
                report(_WHERE, f"{error.name} is missing, which clew needs for openai: pip install 'clew[openai]'")
        self._metadata = metadata
        self._given = given if is_wanted() else None
        self._started_ns = clock.now_ns()
        self._call: LlmCall | None = None

    def _begin(self) -> LlmCall:
        if self._call is None:
            asked = {key: str(self._metadata.get(f"ls_{key}") or "") for key in ("provider", "model_name")}
            self._call = llm_call(asked["provider"] or "unknown", asked["model_name"])
            self._call.begin(start_time_ns=self._started_ns)
        return self._call

    def piece(self) -> None:
        """Take note of a piece of a streamed answer."""
        if self._expected is None or not self._expected.was_made:
            self._begin().first_token()

    def end(self, answer: Any, error: BaseException | None) -> None:
        """Record the call, if no client did."""
        if self._expected is not None and self._expected.over() and self._call is None:
            return
        call = self._begin()
        said = [one for several in getattr(answer, "generations", None) or () for one in several]
        usage: Any = next(
            (found for one in said if (found := getattr(getattr(one, "message", None), "usage_metadata", None))), {}
        )
        call.tokens(**{side: usage[key] for side, key in _TOKENS.items() if isinstance(usage.get(key), int)})
        if self._given is not None:
            call.prompt(self._given)
            call.completion([getattr(one, "text", "") for one in said])
        _finish(call, error)


class _Callbacks(BaseCallbackHandler):
    """Told by LangChain of what begins and ends, in the thread or the task that does it. It never raises."""

    run_inline = True

    def __init__(self) -> None:
        self._nodes: dict[Any, tuple[_Run, _Node]] = {}
        self._models: dict[Any, _Model] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **told: Any) -> None:
        name, run = str(told.get("name")), _run()
        is_node = any(str(tag).startswith("graph:step:") for tag in told.get("tags") or ())
        if run is None or run.is_agent or not is_node or name != (told.get("metadata") or {}).get("langgraph_node"):
            return
        try:
            sources = run.handed.get(name)
            before = get_current()
            node = _Node(name=name, given=sources.pop() if sources else None, before=before, context=before)
            if name not in run.agents:
                node.operation = app_span(name)
                node.operation.begin()
            context = (node.operation.context if node.operation is not None else None) or before
            node.context = otel_context.set_value(_NODE_KEY, node, context)
            attach(node.context)
            self._nodes[run_id] = run, node
        except Exception as error:
            report(_WHERE, error)

    def on_chain_end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        if run_id in self._nodes:
            _end_node(*self._nodes.pop(run_id), outputs, None)

    def on_chain_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        if run_id in self._nodes:
            _end_node(*self._nodes.pop(run_id), None, error)

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: Any, **told: Any) -> None:
        try:
            if _run() is not None:
                said = [{"role": _role(one.type), "content": one.content} for one in messages[0]]
                self._models[run_id] = _Model(told.get("metadata") or {}, said)
        except Exception as error:
            report(_WHERE, error)

    def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: Any, **told: Any) -> None:
        try:
            if _run() is not None:
                self._models[run_id] = _Model(told.get("metadata") or {}, prompts)
        except Exception as error:
            report(_WHERE, error)

    def on_llm_new_token(self, token: Any, *, run_id: Any, **_: Any) -> None:
        try:
            if (model := self._models.get(run_id)) is not None:
                model.piece()
        except Exception as error:
            report(_WHERE, error)

    def on_llm_end(self, response: Any, *, run_id: Any, **_: Any) -> None:
        self._end_model(run_id, response, None)

    def on_llm_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        self._end_model(run_id, None, error)

    def _end_model(self, run_id: Any, answer: Any, error: BaseException | None) -> None:
        try:
            if (model := self._models.pop(run_id, None)) is not None:
                model.end(answer, error)
        except Exception as problem:
            report(_WHERE, problem)


def _end_node(run: _Run, node: _Node, outputs: Any, error: BaseException | None) -> None:
    """End a node's span, and note to which nodes its agent gives control."""
    try:
        if get_current() is node.context:
            attach(node.before)
        commands = [error.args[0]] if isinstance(error, ParentCommand) else _commands(outputs)
        if node.left is not None:
            run.left = node.left
            for command in commands:
                for target in command.goto if isinstance(command.goto, (list, tuple)) else (command.goto,):
                    if isinstance(target, Send):
                        run.handed.setdefault(target.node, []).append(node.left)
                    elif target:
                        # It begins once, whoever names it
                        run.handed[target] = [node.left]
        if node.operation is not None:
            _finish(node.operation, error)
    except Exception as problem:
        report(_WHERE, problem)


def _commands(outputs: Any) -> list[Command[Any]]:
    return [one for one in (outputs if isinstance(outputs, (list, tuple)) else (outputs,)) if isinstance(one, Command)]


def _role(kind: str) -> str:
    return {"human": "user", "ai": "assistant"}.get(kind, kind)


def _finish(operation: Operation, error: BaseException | None) -> None:
    """End an operation; of errors that may repeat what was said, with their type alone."""
    if isinstance(error, GraphBubbleUp):
        error = None
    elif isinstance(error, Exception):
        told = not is_wanted() and type(error).__module__.startswith(_TELLTALES)
        operation.fail(type(error).__qualname__ if told else error)
        error = None
    operation.finish(error)


def _run() -> _Run | None:
    found = otel_context.get_value(_RUN_KEY)
    return found if isinstance(found, _Run) else None


def _node() -> _Node | None:
    found = otel_context.get_value(_NODE_KEY)
    return found if isinstance(found, _Node) else None


# Switching it on

# One for all contexts: what it knows is kept by run
_callbacks: Final[ContextVar[Any]] = ContextVar("clew_langgraph", default=_Callbacks())  # noqa: B039
_is_on = False


def instrument(target: T) -> T:
    """Instrument all graphs in this process: the one that is given, and every other one. Twice is harmless.

    Args:
        target: a compiled graph.

    Raises:
        TypeError: it is none.

    Example:
        >>> graph = instrument(builder.compile(name="support"))
    """
    if not isinstance(target, Pregel):
        raise TypeError(f"a {type(target).__qualname__} is no compiled graph: give what compile() returns")
    instrument_all()
    return target


def instrument_all() -> None:
    """Instrument all graphs in this process. Twice is harmless."""
    global _is_on
    if _is_on:
        return
    _is_on = True
    wrapt.wrap_function_wrapper(Pregel, "stream", _stream)
    wrapt.wrap_function_wrapper(Pregel, "astream", _astream)
    wrapt.wrap_function_wrapper(BaseTool, "run", _use_tool)
    wrapt.wrap_function_wrapper(BaseTool, "arun", _use_tool_async)
    register_configure_hook(_callbacks, inheritable=True)
