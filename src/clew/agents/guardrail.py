"""A check of what an agent is given or says."""

from __future__ import annotations

from clew.catalog.operations import GUARDRAIL
from clew.diagnostics import report
from clew.engine.context import Carried
from clew.engine.operation import Operation
from clew.engine.runtime import current_log_stream
from clew.pipeline.coercion import name_text

_TRIGGERED = "clew.guardrail.triggered"


class Guardrail(Operation):
    """A check. Made by :func:`guardrail`."""

    __slots__ = ()

    def trigger(self) -> None:
        """Say that it stops the agent: it is told, and it is no failure of the check."""
        try:
            self.set(_TRIGGERED, value=True)
            if self.context is not None:
                with Carried(self.context):
                    current_log_stream().take("warning", "guardrail_triggered", "clew.agent.guardrail", self.attributes)
        except Exception as error:
            report("guardrail.trigger", error)


def guardrail(name: str, /) -> Guardrail:
    """Trace and measure a check of what an agent is given or says.

    Args:
        name: the check, of low cardinality.

    Example:
        >>> with guardrail("no secrets") as check:
        ...     check.trigger()
    """
    return Guardrail(GUARDRAIL, {"clew.guardrail.name": name_text(name), _TRIGGERED: False})
