"""What an agent does with its memory."""

from __future__ import annotations

from typing import Any

from clew.catalog.operations import MEMORY_OPERATION
from clew.engine.operation import Operation
from clew.pipeline.coercion import name_text


def memory_operation(operation: str, store: str, /, **attributes: Any) -> Operation:
    """Trace and measure what is done with a memory.

    Args:
        operation: of low cardinality, such as ``read``, ``write``, ``search`` or ``delete``.
        store: which memory, of low cardinality.
        attributes: attributes of the operation, such as ``items=3``.

    Example:
        >>> import clew
        >>> with clew.memory_operation("search", "conversations") as memory:
        ...     memory.set("items", 3)
    """
    given = {"clew.memory.operation": name_text(operation), "clew.memory.store": name_text(store), **attributes}
    return Operation(MEMORY_OPERATION, given)
