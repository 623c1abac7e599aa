"""How what was begun ends: without an error where a graph is only interrupted or left, and without what an error's text may repeat."""

from __future__ import annotations

from typing import Final

from langgraph.errors import GraphBubbleUp

from clew.engine.operation import Operation
from clew.llm.content import is_wanted

WHERE: Final = "instrument langgraph"
"""What problems of this drop-in are reported for."""

# Whose errors may repeat what was said
_TELLTALES: Final = ("langchain", "langgraph", "openai", "pydantic")


def finish(operation: Operation, error: BaseException | None) -> None:
    """End an operation; of errors that may repeat what was said, with their type alone."""
    if isinstance(error, GraphBubbleUp):
        error = None
    elif isinstance(error, GeneratorExit):
        # The reader of its stream has left
        operation.interrupt("cancelled")
        error = None
    elif isinstance(error, Exception):
        told = not is_wanted() and type(error).__module__.startswith(_TELLTALES)
        operation.fail(type(error).__qualname__ if told else error)
        error = None
    operation.finish(error)
