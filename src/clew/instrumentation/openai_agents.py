"""OpenAI's Agents SDK: runs, agents, tools, handoffs and guardrails as clew has them of hand-made agents.

The SDK tells its trace processors what it does, in the task that does it; this is one of them, beside those that the app has. What
goes to OpenAI's servers stays as the app set it. LLM calls are those of the OpenAI client, measured as they are elsewhere; where a
model asks by other ways, the SDK's account of the call is recorded.

What was said (inputs and outputs of tools, texts of the SDK's errors) is kept only where ``CLEW_LLM_CONTENT`` asks for it.

Source: https://openai.github.io/openai-agents-python/tracing/
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import wrapt
from agents import AgentBase
from agents.tracing import Span, Trace, TracingProcessor, add_trace_processor, provider
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from clew import clock
from clew.agents.guardrail import Guardrail, guardrail
from clew.agents.handoff import handoff
from clew.agents.task import agent_task
from clew.agents.workflow import workflow
from clew.diagnostics import logger, report
from clew.engine.context import Carried
from clew.engine.operation import Operation
from clew.engine.spans import span as app_span
from clew.instrumentation import openai as openai_clients
from clew.llm.call import llm_call
from clew.llm.content import is_wanted
from clew.llm.tool import ToolCall, tool_call
from clew.pipeline.current import attach, get_current

T = TypeVar("T")

_WHERE: Final = "instrument openai-agents"
# On the SDK's spans and traces
_MARK: Final = "_clew_begun"
_SWITCH: Final = "OPENAI_AGENTS_DISABLE_TRACING"
# The SDK begins the next agent at once
_CLAIM_WITHIN_S: Final = 60.0
_FLOW_KEY: Final = otel_context.create_key("clew-openai-agents-flow")
_PLACE_KEY: Final = otel_context.create_key("clew-openai-agents-place")
# What the SDK notes before it makes an error of it
_TYPES: Final = {"Max turns exceeded": "MaxTurnsExceeded"}
_NO_KEY: Final = "OPENAI_API_KEY is not set, skipping trace export"

# Where an agent of a run begins: below which span, and in which task. Its successor begins at the same place
_Place = tuple[str | None, int]


@dataclass(kw_only=True, slots=True)
class _Flow:
    """What the spans of one trace share.

    Attributes:
        conversation: the group that the trace belongs to.
        handed: by place, the agent that is to begin there next, and the handoff that it accepts.
    """

    conversation: str | None
    handed: dict[_Place, tuple[str, Carried]] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class _Begun:
    """What was begun for a span or a trace of the SDK.

    Attributes:
        operation: of it; ``None`` where there is none yet.
        before: what was current.
        context: what is current within it.
        started_ns: when it began, in nanoseconds since the epoch.
        handled: what was being handled already, which is no error of this one.
        cause: what the SDK was handling when it noted an error.
        expected: the LLM call that is to be made.
    """

    operation: Operation | None
    before: Context
    context: Context
    started_ns: int
    handled: BaseException | None
    cause: BaseException | None = None
    expected: openai_clients.Expected | None = None


class _Processor(TracingProcessor):
    """Told by the SDK of all that begins and ends. It never raises."""

    def on_trace_start(self, trace: Trace) -> None:
        try:
            conversation = getattr(trace, "group_id", None)
            _enter(trace, workflow(trace.name, conversation_id=conversation), flow=_Flow(conversation=conversation))
        except Exception as error:
            report(_WHERE, error)

    def on_trace_end(self, trace: Trace) -> None:
        try:
            if (begun := _leave(trace)) is not None and begun.operation is not None:
                _finish(begun.operation, _raised(begun), "")
        except Exception as error:
            report(_WHERE, error)

    def on_span_start(self, span: Span[Any]) -> None:
        try:
            _BEGIN.get(span.span_data.type, _begin_other)(span)
        except Exception as error:
            report(_WHERE, error)

    def on_span_end(self, span: Span[Any]) -> None:
        try:
            if (begun := _leave(span)) is None:
                return
            data, error = span.span_data, span.error
            cause = _raised(begun) or begun.cause
            if data.type in ("generation", "response"):
                _end_model(span, begun, cause)
            elif data.type == "handoff":
                _end_handoff(span, begun, cause)
            elif (operation := begun.operation) is not None:
                if isinstance(operation, ToolCall):
                    operation.arguments(data.input)
                    operation.result(data.output)
                elif isinstance(operation, Guardrail) and data.triggered:
                    operation.trigger()
                if error is not None and cause is None:
                    operation.fail(_TYPES.get(error["message"], f"{data.type}_error"), error["message"])
                _finish(operation, cause, error["message"] if error is not None else "")
        except Exception as problem:
            report(_WHERE, problem)

    def shutdown(self) -> None:
        """Nothing is kept here: what was recorded is sent as everything of clew's is."""

    def force_flush(self) -> None:
        """Nothing is kept here."""


# Begin


def _begin_task(span: Span[Any]) -> None:
    """A run; it is the trace's, which has begun, unless the run was resumed."""
    if _flow() is None:
        _enter(span, workflow(span.span_data.name), flow=_Flow(conversation=None))


def _begin_turn(_: Span[Any]) -> None:
    """A turn of an agent, which is only a round of the loop: what is within it belongs to the agent."""


def _begin_agent(span: Span[Any]) -> None:
    flow, place = _flow(), (span.parent_id, _task())
    name = span.span_data.name
    target, given = flow.handed.pop(place, (None, None)) if flow is not None else (None, None)
    task = agent_task(
        name,
        task_id=flow.conversation if flow is not None else None,
        carrier=given if target == name else None,
    )
    _enter(span, task, place=place, flow=flow)


def _begin_tool(span: Span[Any]) -> None:
    _enter(span, tool_call(span.span_data.name))


def _begin_guardrail(span: Span[Any]) -> None:
    _enter(span, guardrail(span.span_data.name))


def _begin_handoff(span: Span[Any]) -> None:
    # To whom is only known at its end
    _enter(span, None)


def _begin_model(span: Span[Any]) -> None:
    _enter(span, None).expected = openai_clients.expect()


def _begin_other(span: Span[Any]) -> None:
    # What it has besides its name may be content
    _enter(span, app_span(getattr(span.span_data, "name", None) or span.span_data.type))


_BEGIN: Final[dict[str, Callable[[Span[Any]], object]]] = {
    "task": _begin_task,
    "turn": _begin_turn,
    "agent": _begin_agent,
    "function": _begin_tool,
    "guardrail": _begin_guardrail,
    "handoff": _begin_handoff,
    "generation": _begin_model,
    "response": _begin_model,
}


def _enter(
    told: Trace | Span[Any], operation: Operation | None, *, flow: _Flow | None = None, place: _Place | None = None
) -> _Begun:
    """Begin an operation and make it current in the task that the SDK told of it in."""
    before = context = get_current()
    if operation is not None:
        operation.begin()
        context = operation.context or before
        for key, value in ((_FLOW_KEY, flow), (_PLACE_KEY, place)):
            if value is not None:
                context = otel_context.set_value(key, value, context)
        attach(context)
    begun = _Begun(
        operation=operation, before=before, context=context, started_ns=clock.now_ns(), handled=sys.exception()
    )
    setattr(told, _MARK, begun)
    if isinstance(told, Span):
        _notice_errors(told, begun)
    return begun


def _notice_errors(span: Span[Any], begun: _Begun) -> None:
    """Have it known what the SDK was handling when it noted an error: of that, it notes a text alone."""
    note = span.set_error

    def set_error(error: Any) -> None:
        begun.cause = _raised(begun)
        note(error)

    span.set_error = set_error  # type: ignore[method-assign]


# End


def _leave(told: Trace | Span[Any]) -> _Begun | None:
    """Make current again what was before, unless it ends elsewhere than it began."""
    begun: _Begun | None = vars(told).pop(_MARK, None)
    vars(told).pop("set_error", None)
    if begun is None:
        return None
    if begun.context is not begun.before and get_current() is begun.context:
        attach(begun.before)
    return begun


def _end_handoff(span: Span[Any], begun: _Begun, cause: BaseException | None) -> None:
    flow, data = _flow(), span.span_data
    place: Any = otel_context.get_value(_PLACE_KEY)
    made = handoff(
        to=data.to_agent or "unknown",
        task=flow.conversation if flow is not None else None,
        mode="pass_control",
        claim_within_s=_CLAIM_WITHIN_S,
    )
    made.begin(start_time_ns=begun.started_ns)
    if cause is None and flow is not None and place is not None and made.context is not None:
        flow.handed[place] = data.to_agent, Carried(made.context)
    if span.error is not None:
        # Such as that others were asked for as well
        made.event(span.error["message"])
    _finish(made, cause, span.error["message"] if span.error is not None else "")


def _end_model(span: Span[Any], begun: _Begun, cause: BaseException | None) -> None:
    """Record a call that no OpenAI client made, from what the SDK says of it."""
    if begun.expected is None or begun.expected.over():
        return
    data = span.span_data
    response = getattr(data, "response", None)
    model = str(getattr(data, "model", None) or getattr(response, "model", None) or "")
    provider_name, _, short = model.partition("/") if "/" in model else ("unknown", "", model)
    call = llm_call(provider_name, short)
    call.begin(start_time_ns=begun.started_ns)
    usage: Any = data.usage or {}
    counted = {side: usage.get(f"{side}_tokens") for side in ("input", "output")}
    call.tokens(**{side: number for side, number in counted.items() if isinstance(number, int)})
    call.response(id=getattr(response, "id", None))
    if is_wanted():
        call.prompt(data.input or [])
        call.completion(getattr(data, "output", None) or getattr(response, "output_text", None) or [])
    if span.error is not None and cause is None:
        call.fail("model_error", span.error["message"])
    _finish(call, cause, span.error["message"] if span.error is not None else "")


def _finish(operation: Operation, cause: BaseException | None, said: str) -> None:
    """End an operation; of errors that may repeat what was said, with their type alone."""
    if isinstance(cause, Exception) and type(cause).__module__.startswith(("agents.", "openai")) and not is_wanted():
        operation.fail(type(cause).__qualname__, said)
        cause = None
    elif isinstance(cause, Exception):
        operation.fail(cause)
        cause = None
    operation.finish(cause)


def _raised(begun: _Begun) -> BaseException | None:
    """Return the error on whose way out the SDK is: it ends a span in a ``finally``, or as a block's end."""
    error = sys.exception()
    return None if error is begun.handled or isinstance(error, GeneratorExit) else error


def _flow() -> _Flow | None:
    found = otel_context.get_value(_FLOW_KEY)
    return found if isinstance(found, _Flow) else None


def _task() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:
        return threading.get_ident()


# Switching it on

_processor: Final = _Processor()
_is_on = False


class _Once(logging.Filter):
    """Lets the SDK say once that it has no key to export with, not with each export."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg != _NO_KEY:
            return True
        said, self._said = self._said, True
        return not said


def _keep(wrapped: Callable[..., Any], _processors: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stay among the processors when the app sets its own."""
    (given,) = args or tuple(kwargs.values())
    return wrapped([*(one for one in given if one is not _processor), _processor])


def instrument(target: T) -> T:
    """Instrument the SDK, whose runs are all told of in one place: the agent that is given, and every other one. Twice is harmless.

    Args:
        target: an ``Agent``.

    Raises:
        TypeError: it is none.

    Example:
        >>> from agents import Agent
        >>> agent = instrument(Agent(name="triage"))
    """
    if not isinstance(target, AgentBase):
        raise TypeError(f"a {type(target).__qualname__} is no agent")
    instrument_all()
    return target


def instrument_all() -> None:
    """Instrument all runs of agents in this process. Twice is harmless."""
    global _is_on
    if _is_on:
        return
    _is_on = True
    wrapt.wrap_function_wrapper(provider.SynchronousMultiTracingProcessor, "set_processors", _keep)
    add_trace_processor(_processor)
    logging.getLogger("openai.agents").addFilter(_Once())
    if os.environ.get(_SWITCH, "").lower() in ("1", "true"):
        logger.warning(
            "%s is set: openai-agents tells nobody of its runs. Where nothing shall go to OpenAI, unset it and call "
            "agents.set_trace_processors([])",
            _SWITCH,
        )
