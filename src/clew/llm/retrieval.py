"""A search for what a model is to know.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/#retrievals
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from clew.catalog import semconv
from clew.catalog.metrics import RETRIEVAL_DOCUMENTS
from clew.catalog.operations import RETRIEVAL
from clew.diagnostics import report
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.llm import content
from clew.pipeline.coercion import name_text


class Retrieval(Operation):
    """A search. Made by :func:`retrieval`."""

    __slots__ = ()

    def documents(self, found: Sized | int) -> None:
        """Record how many documents were found.

        Args:
            found: the documents, of which nothing but their number is kept, or the number.
        """
        try:
            number = found if isinstance(found, int) else len(found)
            self.set("clew.retrieval.documents", number)
            labels = {name: self.attributes[name] for name in RETRIEVAL_DOCUMENTS.labels}
            registry.declared(RETRIEVAL_DOCUMENTS).bind(**labels).record_in(number, self._span.get_span_context())
        except Exception as error:
            report("retrieval.documents", error)


def retrieval(store: str, /, query: str | None = None, **attributes: Any) -> Retrieval:
    """Trace and measure a search for what a model is to know.

    Args:
        store: what is searched, of low cardinality.
        query: what is searched for; it is only kept where ``CLEW_LLM_CONTENT`` is on.
        attributes: attributes of the search, such as ``top_k=5``.

    Example:
        >>> import clew
        >>> with clew.retrieval("handbook", query="how do I reset it?", top_k=5) as search:
        ...     search.documents(["page 12", "page 40"])
    """
    given: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: "retrieval",
        semconv.GEN_AI_DATA_SOURCE_ID: name_text(store),
        **attributes,
    }
    if query is not None and content.is_wanted():
        given[semconv.GEN_AI_RETRIEVAL_QUERY_TEXT] = query
    return Retrieval(RETRIEVAL, given)
