"""A tool that an agent or a model uses.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/#execute-tool-span
"""

from __future__ import annotations

from typing import Any

from clew.catalog import semconv
from clew.catalog.operations import TOOL_CALL
from clew.diagnostics import report
from clew.engine.context import current_agent
from clew.engine.operation import Operation
from clew.llm import content
from clew.pipeline.coercion import name_text


class ToolCall(Operation):
    """A call of a tool. Made by :func:`tool_call`."""

    __slots__ = ()

    def arguments(self, value: Any) -> None:
        """Keep what the tool was given, where ``CLEW_LLM_CONTENT`` is on."""
        self._keep("arguments", semconv.GEN_AI_TOOL_CALL_ARGUMENTS, value)

    def result(self, value: Any) -> None:
        """Keep what the tool answered, where ``CLEW_LLM_CONTENT`` is on."""
        self._keep("result", semconv.GEN_AI_TOOL_CALL_RESULT, value)

    def _keep(self, what: str, attribute: str, value: Any) -> None:
        try:
            if content.is_wanted() and self._span.is_recording():
                # On the span alone: attributes are fields of log events, too
                self._span.set_attribute(attribute, content.written(value))
        except Exception as error:
            report(f"tool_call.{what}", error)


def tool_call(name: str, /, *, call_id: str | None = None, type: str = "function", **attributes: Any) -> ToolCall:
    """Trace and measure a call of a tool.

    Args:
        name: the tool, of low cardinality.
        call_id: what the model calls this call.
        type: ``function``, ``extension`` or ``datastore``.
        attributes: attributes of the call. Give no arguments of the tool here: they would be recorded;
            :meth:`ToolCall.arguments` and :meth:`ToolCall.result` heed what is chosen.

    Example:
        >>> import clew
        >>> with clew.tool_call("weather", call_id="call-1") as call:
        ...     call.result({"celsius": 21})
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "execute_tool",
        semconv.GEN_AI_TOOL_NAME: name_text(name),
        semconv.GEN_AI_TOOL_TYPE: type,
        **attributes,
    }
    if call_id is not None:
        given[semconv.GEN_AI_TOOL_CALL_ID] = call_id
    if (agent := current_agent()) is not None:
        given.setdefault(semconv.GEN_AI_AGENT_NAME, agent)
    return ToolCall(TOOL_CALL, given)
