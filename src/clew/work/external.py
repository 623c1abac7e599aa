"""A call of a service of somebody else, by whatever protocol."""

from __future__ import annotations

import re
from typing import Any, Final

from clew.catalog import semconv
from clew.catalog.metrics import EXTERNAL_RETRIES
from clew.catalog.operations import EXTERNAL_CALL
from clew.diagnostics import report
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.pipeline.coercion import name_text

_STATUS: Final = "clew.external.status"
_ERROR: Final = re.compile(r"[45]\d\d", re.ASCII)


class ExternalCall(Operation):
    """A call of another service. Made by :func:`external_call`."""

    __slots__ = ()

    def status(self, value: int | str) -> None:
        """Say how it was answered. A code from 400 to 599 is an error, as in HTTP.

        Args:
            value: a code such as 201, or a low-cardinality name such as ``"accepted"``.
        """
        try:
            self.set(_STATUS, str(value))
        except Exception as error:
            report("external_call.status", error)

    def retry(self, reason: BaseException | str = "") -> None:
        """Say that it is tried once more.

        Args:
            reason: the error, or a low-cardinality name of it.
        """
        try:
            kind = type(reason).__qualname__ if isinstance(reason, BaseException) else str(reason)
            labels = {semconv.ERROR_TYPE: kind} if kind else {}
            known = {name: self.attributes[name] for name in EXTERNAL_RETRIES.labels if name in self.attributes}
            registry.declared(EXTERNAL_RETRIES).add(1, **known | labels)
            self.set("clew.external.retries", int(self.attributes.get("clew.external.retries", 0)) + 1)
            # What the try before came to is not how the call ends
            self.attributes.pop(_STATUS, None)
            self.event("retry", **labels)
        except Exception as error:
            report("external_call.retry", error)

    def finish(self, error: BaseException | None = None) -> None:
        """End the span, and record the metrics and events."""
        status = str(self.attributes.get(_STATUS, ""))
        if error is None and self.error_type is None and _ERROR.fullmatch(status):
            self.fail(status)
        super().finish(error)


def external_call(service: str, endpoint: str, /, **attributes: Any) -> ExternalCall:
    """Trace and measure a call of a service of somebody else, its retries included.

    HTTP clients that are instrumented have spans of their own for each try, within this one.

    Args:
        service: whose, of low cardinality, such as ``stripe``.
        endpoint: what of it, of low cardinality, such as ``POST /charges``.
        attributes: attributes of the call.

    Example:
        >>> import clew
        >>> with clew.external_call("stripe", "POST /charges") as call:
        ...     call.retry("timeout")
        ...     call.status(201)
    """
    given = {"clew.external.service": name_text(service), "clew.external.endpoint": name_text(endpoint), **attributes}
    return ExternalCall(EXTERNAL_CALL, given)
