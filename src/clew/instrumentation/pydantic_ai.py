"""Pydantic AI: runs of agents, tools and delegation as clew has them of hand-made agents.

A capability of the library, added to each run, is told of what the run does, in the task that does it; the library's own OpenTelemetry
instrumentation stays as the app set it. LLM calls are those of the OpenAI client, measured as they are elsewhere; where a model asks by
other ways, the library's account of the call is recorded.

What was said (inputs and outputs of tools, texts of the library's errors) is kept only where ``CLEW_LLM_CONTENT`` asks for it.

Source: https://ai.pydantic.dev/capabilities/
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import wrapt
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from pydantic_ai import Agent, RunContext
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering, WrapModelRequestHandler, WrapRunHandler
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred, SkipModelRequest, SkipToolExecution
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import ToolDefinition

from clew import clock
from clew.agents.handoff import handoff
from clew.agents.task import agent_task, working
from clew.catalog import semconv
from clew.diagnostics import report
from clew.engine.operation import Operation
from clew.engine.transfer import Offer, agent_name, passage
from clew.llm.call import llm_call
from clew.llm.content import is_wanted
from clew.llm.tool import tool_call
from clew.pipeline.current import attach, detach, get_current

if TYPE_CHECKING:
    from clew.instrumentation.openai import Expected

T = TypeVar("T")

_WHERE: Final = "instrument pydantic-ai"
_UNNAMED: Final = "agent"
# Within a tool: the task of the agent that uses it, which is who delegates there
_TOOL_KEY: Final = otel_context.create_key("clew-pydantic-ai-tool")
# Within a run: what it is about, and so is what it delegates
_ABOUT_KEY: Final = otel_context.create_key("clew-pydantic-ai-about")
# How the library goes on, which is no failure
_NO_FAILURES: Final = (ApprovalRequired, CallDeferred, SkipModelRequest, SkipToolExecution)


class _Told(AbstractCapability[Any]):
    """Told by the library of all that a run does. What it does itself never raises."""

    # It adds nothing to a run, so runs of durable agents may have it as well
    _safe_at_runtime: ClassVar[bool] = True

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="outermost")

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        # Older versions have no realtime sessions
        if getattr(ctx, "realtime", False):
            return await handler()
        name = (ctx.agent.name if ctx.agent is not None else None) or _UNNAMED
        with ExitStack() as stack:
            if (made := _delegation(name)) is not None:
                stack.enter_context(_within(made))
            offer = _offer(name)
            conversation = ctx.conversation_id
            attributes: dict[str, Any] = {semconv.GEN_AI_CONVERSATION_ID: conversation} if conversation else {}
            task = agent_task(name, task_id=None if offer is not None else conversation, **attributes)
            about = offer.task_id if offer is not None else None
            stack.enter_context(_within(task, {_TOOL_KEY: None, _ABOUT_KEY: about or conversation}))
            return await handler()

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: Any,
        handler: Callable[[Any], Any],
    ) -> Any:
        used = tool_call(call.tool_name, call_id=call.tool_call_id)
        with _within(used, {_TOOL_KEY: working()}):
            used.arguments(args)
            result = await handler(args)
            used.result(result)
            return result

    async def wrap_output_process(
        self, ctx: RunContext[Any], *, output_context: Any, output: Any, handler: Callable[[Any], Any]
    ) -> Any:
        if not output_context.has_function:
            return await handler(output)
        call = output_context.tool_call
        name = call.tool_name if call is not None else output_context.function_name or "output_function"
        used = tool_call(name, call_id=call.tool_call_id if call is not None else None)
        with _within(used, {_TOOL_KEY: working()}):
            used.arguments(output)
            result = await handler(output)
            used.result(result)
            return result

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,
        handler: WrapModelRequestHandler,
    ) -> ModelResponse:
        started_ns, expected = clock.now_ns(), _expect()
        try:
            response: ModelResponse = await handler(request_context)
        except BaseException as error:
            _asked(request_context, expected, started_ns, None, error)
            raise
        _asked(request_context, expected, started_ns, response, None)
        return response


# Begin and end


def _delegation(name: str) -> Operation | None:
    """Return the handoff that a run within a tool of another one is, unless the app has made one itself."""
    delegates = otel_context.get_value(_TOOL_KEY)
    if delegates is None or delegates is not working() or _offer(name) is not None:
        return None
    return handoff(to=name, task=otel_context.get_value(_ABOUT_KEY))


def _offer(name: str) -> Offer | None:
    """Return the handoff that is to be accepted by the agent."""
    offer = passage().offer
    return offer if offer is not None and offer.target == agent_name(name) else None


@contextmanager
def _within(operation: Operation, values: dict[str, Any] | None = None) -> Iterator[None]:
    """Begin an operation, make it current, and end it with what comes of it."""
    operation.begin()
    context: Context = operation.context or get_current()
    for key, value in (values or {}).items():
        context = otel_context.set_value(key, value, context)
    token = attach(context)
    try:
        yield
    except BaseException as error:
        _finish(operation, error)
        raise
    else:
        operation.finish()
    finally:
        try:
            detach(token)
        except ValueError as problem:
            report(_WHERE, problem)


def _finish(operation: Operation, error: BaseException) -> None:
    """End an operation that did not come to its end; of errors that may repeat what was said, with their type alone."""
    cause = error
    if type(error).__name__ in ("ToolRetryError", "ToolFailedError"):
        # What the library makes of what a tool raises for the model to read
        cause = error.__cause__ or error
    if isinstance(error, _NO_FAILURES):
        operation.finish()
    elif isinstance(cause, Exception) and type(cause).__module__.startswith(("pydantic", "openai")) and not is_wanted():
        operation.fail(type(cause).__qualname__, str(getattr(cause, "status_code", "")))
        operation.finish()
    elif isinstance(cause, Exception):
        operation.fail(cause)
        operation.finish()
    else:
        operation.finish(cause)


# LLM calls


def _expect() -> Expected | None:
    """Expect a call of an OpenAI client, where there may be any."""
    if "openai" not in sys.modules:
        return None
    try:
        from clew.instrumentation import openai as openai_clients

        return openai_clients.expect()
    except Exception as error:
        report(_WHERE, error)
        return None


def _asked(
    request: ModelRequestContext,
    expected: Expected | None,
    started_ns: int,
    response: ModelResponse | None,
    error: BaseException | None,
) -> None:
    """Record a call that no OpenAI client made, from what the library says of it."""
    try:
        was_made = expected is not None and expected.over()
        # Where one of a client failed, another model may have answered in its place
        if was_made and (response is None or (expected is not None and expected.was_answered)):
            return
        if isinstance(error, SkipModelRequest):
            return
        provider = getattr(response, "provider_name", None) or request.model.system
        name = getattr(response, "model_name", None) or request.model.model_name
        call = llm_call(str(provider), str(name))
        call.begin(start_time_ns=started_ns)
        if is_wanted():
            call.prompt([part for message in request.messages for part in _said(message)])
        if response is not None:
            usage = response.usage
            call.tokens(
                input=usage.input_tokens,
                output=usage.output_tokens,
                cache_read=usage.cache_read_tokens,
                cache_write=usage.cache_write_tokens,
            )
            call.response(
                model=response.model_name,
                id=response.provider_response_id,
                finish_reasons=[response.finish_reason] if response.finish_reason else None,
            )
            if is_wanted():
                call.completion(_said(response))
        if error is None:
            call.finish()
        else:
            _finish(call, error)
    except Exception as problem:
        report(_WHERE, problem)


def _said(message: Any) -> list[dict[str, Any]]:
    """Return what a message of the library says, as OpenAI has messages."""
    said = []
    for part in message.parts:
        kind = part.part_kind
        role = "assistant" if message.kind == "response" else "system" if kind == "system-prompt" else "user"
        if kind in ("tool-call", "builtin-tool-call", "native-tool-call"):
            said.append({"role": role, "tool_calls": [{"name": part.tool_name, "arguments": part.args}]})
        elif kind in ("tool-return", "retry-prompt"):
            said.append(
                {"role": "tool", "content": part.model_response_str() if kind == "tool-return" else str(part.content)}
            )
        elif isinstance(content := getattr(part, "content", None), str):
            said.append({"role": role, "content": content})
    return said


# Switching it on

_told: Final = _Told()


def _with_capability(wrapped: Callable[..., Any], _agent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Have a run told of: all ways to run an agent come here."""
    return wrapped(*args, **{**kwargs, "capabilities": [*(kwargs.get("capabilities") or ()), _told]})


def instrument(target: T) -> T:
    """Instrument the library, whose runs all begin in one place: the agent that is given, and every other one. Twice is harmless.

    Args:
        target: an ``Agent``.

    Raises:
        TypeError: it is none.

    Example:
        >>> from pydantic_ai import Agent
        >>> agent = instrument(Agent(name="triage"))
    """
    if not isinstance(target, AbstractAgent):
        raise TypeError(f"a {type(target).__qualname__} is no agent")
    instrument_all()
    return target


def instrument_all() -> None:
    """Instrument all runs of agents in this process. Twice is harmless."""
    if not isinstance(vars(Agent)["iter"], wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(Agent, "iter", _with_capability)
