"""Tools that graphs use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langgraph.types import Command, Send

from clew import clock
from clew.diagnostics import report
from clew.engine.context import Carried
from clew.instrumentation.langgraph.ending import WHERE, finish
from clew.instrumentation.langgraph.run import current_run, named_by
from clew.llm.content import is_wanted
from clew.llm.tool import ToolCall, tool_call
from clew.pipeline.current import get_current


def _begin_tool(tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolCall | None:
    try:
        if current_run() is None:
            return None
        call = tool_call(tool.name, call_id=kwargs.get("tool_call_id"))
        call.begin()
        if is_wanted():
            given = args[0] if args else kwargs.get("tool_input")
            # Without what the graph puts in by itself, such as its whole state
            call.arguments(tool._filter_injected_args(given) if isinstance(given, dict) else given)
    except Exception as error:
        report(WHERE, error)
        return None
    return call


def _end_tool(call: ToolCall, answer: Any, error: BaseException | None) -> None:
    try:
        if getattr(answer, "status", None) == "error":
            # The tool has made an answer of it
            call.fail("ToolException")
        if isinstance(answer, Command) and (run := current_run()) is not None:
            for target in named_by(answer):
                run.decided.setdefault(target.node if isinstance(target, Send) else target, clock.now_ns())
        call.result(getattr(answer, "content", answer))
        finish(call, error)
    except Exception as problem:
        report(WHERE, problem)


def use_tool(wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Use a tool; what it does is within its call."""
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


async def use_tool_async(
    wrapped: Callable[..., Awaitable[Any]], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Use a tool, as :func:`use_tool` does."""
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
