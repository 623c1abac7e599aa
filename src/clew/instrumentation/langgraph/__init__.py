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

from contextvars import ContextVar
from typing import Any, Final, TypeVar

import wrapt
from langchain_core.tools import BaseTool
from langchain_core.tracers.context import register_configure_hook
from langgraph.pregel import Pregel

from clew.instrumentation.langgraph.callbacks import Callbacks
from clew.instrumentation.langgraph.graph import astream, stream
from clew.instrumentation.langgraph.tool import use_tool, use_tool_async

T = TypeVar("T")

# One for all contexts: what it knows is kept by run
_callbacks: Final[ContextVar[Any]] = ContextVar("clew_langgraph", default=Callbacks())  # noqa: B039
_is_on = False


def instrument(target: T) -> T:
    """Instrument all graphs in this process: the one that is given, and every other one. Twice is harmless.

    Args:
        target: a compiled graph.

    Raises:
        TypeError: it is none.

    Example:
        >>> from langgraph.graph import START, StateGraph
        >>> builder = StateGraph(dict).add_node("answer", lambda said: said).add_edge(START, "answer")
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
    wrapt.wrap_function_wrapper(Pregel, "stream", stream)
    wrapt.wrap_function_wrapper(Pregel, "astream", astream)
    wrapt.wrap_function_wrapper(BaseTool, "run", use_tool)
    wrapt.wrap_function_wrapper(BaseTool, "arun", use_tool_async)
    register_configure_hook(_callbacks, inheritable=True)
