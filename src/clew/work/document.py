"""A document that is worked on."""

from __future__ import annotations

from typing import Any

from clew.catalog.operations import DOCUMENT
from clew.engine.operation import Operation
from clew.pipeline.coercion import name_text


def document_processed(kind: str, /, *, document_id: str | None = None, **attributes: Any) -> Operation:
    """Trace and measure the work on a document; the event ``document_processed`` says that it is done.

    Args:
        kind: what kind of document, of low cardinality, such as ``pdf`` or ``invoice``.
        document_id: which one.
        attributes: attributes of the work, such as ``pages=12``.

    Example:
        >>> import clew
        >>> with clew.document_processed("invoice", document_id="doc-17") as document:
        ...     document.set("pages", 12)
    """
    given: dict[str, Any] = {"clew.document.kind": name_text(kind), **attributes}
    if document_id is not None:
        given["clew.document.id"] = document_id
    return Operation(DOCUMENT, given)
