"""OpenTelemetry's current context, by the shortest way: the context variable itself.

``opentelemetry.context`` goes through two functions for each call. Where ``OTEL_PYTHON_CONTEXT`` names another implementation than
context variables, this is what ``opentelemetry.context`` offers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

# The first call is what makes OpenTelemetry choose its implementation
otel_context.get_current()
_variable: Final[Any] = getattr(getattr(otel_context, "_RUNTIME_CONTEXT", None), "_current_context", None)
_is_variable: Final = isinstance(_variable, ContextVar)

get_current: Final[Callable[[], Context]] = _variable.get if _is_variable else otel_context.get_current
"""Return the current context."""

attach: Final[Callable[[Context], Token[Context]]] = _variable.set if _is_variable else otel_context.attach
"""Make a context current; returns the token to detach it with."""

detach: Final[Callable[[Token[Context]], None]] = _variable.reset if _is_variable else otel_context.detach
"""Make current what was before; raises ``ValueError`` for a token of another context, such as another task's."""
