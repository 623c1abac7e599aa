"""A run of several agents as a whole: what they hand to one another is within it.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/#invoke-workflow-span
"""

from __future__ import annotations

from typing import Any

from clew.catalog import semconv
from clew.catalog.operations import WORKFLOW
from clew.engine.operation import Operation
from clew.pipeline.coercion import name_text


def workflow(name: str, /, *, conversation_id: str | None = None, **attributes: Any) -> Operation:
    """Trace and measure a run of several agents: each one's task within it is an :func:`clew.agent_task`.

    Args:
        name: the workflow, of low cardinality.
        conversation_id: the conversation or session that it belongs to.
        attributes: attributes of the run.

    Example:
        >>> import clew
        >>> with clew.workflow("digest"), clew.agent_task("summariser"):
        ...     pass
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "invoke_workflow",
        semconv.GEN_AI_WORKFLOW_NAME: name_text(name),
        **attributes,
    }
    if conversation_id is not None:
        given[semconv.GEN_AI_CONVERSATION_ID] = str(conversation_id)
    return Operation(WORKFLOW, given)
