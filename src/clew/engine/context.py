"""What travels along the thread: the current span, the correlation id, and the baggage that may leave.

They live together in OpenTelemetry's context, so whatever carries that (copied context variables, a library's propagator)
carries all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.baggage import get_all, remove_baggage
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from clew.diagnostics import report
from clew.engine.transfer import TransferPropagator
from clew.pipeline.tracing import CORRELATION_KEY, random_bits
from clew.settings import Settings

_AGENT_KEY: Final = otel_context.create_key("clew-agent")
_USER_KEY: Final = otel_context.create_key("clew-user")
_VALID_CORRELATION: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_MAX_CARRIED_LENGTH: Final = 8_192

# Where the next injection goes, set by HTTP clients just before they inject: None is a queue or a job of our own
_destination: ContextVar[str | None] = ContextVar("clew_destination", default=None)


def new_correlation_id() -> str:
    """Return a fresh correlation id: 32 hexadecimal digits."""
    return random_bits(128).to_bytes(16, "big").hex()


def is_valid_correlation_id(text: str) -> bool:
    r"""Tell whether a correlation id from outside can be trusted to be harmless: 1 to 128 plain characters.

    Example:
        >>> is_valid_correlation_id("order-17"), is_valid_correlation_id("a\\nb"), is_valid_correlation_id("x" * 129)
        (True, False, False)
    """
    return _VALID_CORRELATION.fullmatch(text) is not None


def correlation_id(context: Context | None = None) -> str | None:
    """Return the correlation id of the work at hand, or ``None`` outside of any."""
    value = otel_context.get_value(CORRELATION_KEY, context)
    return value if isinstance(value, str) else None


def with_correlation_id(value: str, context: Context | None = None) -> Context:
    """Return a context that carries a correlation id."""
    return otel_context.set_value(CORRELATION_KEY, value, context)


def current_agent(context: Context | None = None) -> str | None:
    """Return the name of the agent that is at work, or ``None`` outside of any."""
    value = otel_context.get_value(_AGENT_KEY, context)
    return value if isinstance(value, str) else None


def with_agent(name: object, context: Context | None = None) -> Context:
    """Return a context in which an agent is at work."""
    return otel_context.set_value(_AGENT_KEY, name, context)


def current_user(context: Context | None = None) -> str | None:
    """Return for whom the agent that is at work does it, or ``None`` where that is not known."""
    value = otel_context.get_value(_USER_KEY, context)
    return value if isinstance(value, str) else None


def with_user(user_id: object, context: Context | None = None) -> Context:
    """Return a context in which work is done for a user."""
    return otel_context.set_value(_USER_KEY, user_id, context)


@contextmanager
def correlation(value: str | None = None) -> Iterator[str]:
    """Give everything in the block one correlation id.

    Args:
        value: the id, 1 to 128 of ``A-Z a-z 0-9 . _ : / + = @ -``; by default a fresh one. One that is not valid is counted
            and replaced.

    Example:
        >>> with correlation("import-2026-11") as cid:
        ...     assert correlation_id() == cid == "import-2026-11"
    """
    if value is not None and not is_valid_correlation_id(str(value)):
        report("correlation", "a correlation id has 1 to 128 letters, digits or . _ : / + = @ -: a fresh one is used")
        value = None
    chosen = value or new_correlation_id()
    token = otel_context.attach(with_correlation_id(chosen))
    try:
        yield chosen
    finally:
        otel_context.detach(token)


class CorrelationPropagator(TextMapPropagator):
    """Carries the correlation id in a header, ``x-correlation-id`` unless the settings name another."""

    def __init__(self, header: str) -> None:
        self._header = header

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Take the id of the carrier, where it has a valid one."""
        context = otel_context.get_current() if context is None else context
        values = getter.get(carrier, self._header)
        if values and is_valid_correlation_id(values[0]):
            return with_correlation_id(values[0], context)
        return context

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Write the id of the work at hand, where it has one."""
        value = correlation_id(context)
        if value is not None:
            setter.set(carrier, self._header, value)

    @property
    def fields(self) -> set[str]:
        """The header it writes."""
        return {self._header}


class AllowlistPropagator(TextMapPropagator):
    """Lets another propagator through, but only the baggage that the settings allow, to the hosts that they allow.

    Baggage leaves with every call and nothing protects it, so none does by default.
    Source: https://opentelemetry.io/docs/specs/otel/baggage/api/
    """

    def __init__(self, inner: TextMapPropagator, *, keys: tuple[str, ...], hosts: tuple[str, ...]) -> None:
        self._inner = inner
        self._keys = frozenset(keys)
        self._hosts = frozenset(host.lower() for host in hosts)

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Read what the carrier brings and forget the baggage that is not expected."""
        return self._only_allowed(self._inner.extract(carrier, context, getter))

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Write what may leave to where the next call goes."""
        context = otel_context.get_current() if context is None else context
        self._inner.inject(carrier, self._only_allowed(context, nothing=not self.goes_to_friends()), setter)

    def goes_to_friends(self) -> bool:
        """Tell whether the next injection stays among the app's own: a queue, a job, a carrier of its own, a host that is named."""
        host = _destination.get()
        return host is None or host.lower() in self._hosts

    def _only_allowed(self, context: Context, *, nothing: bool = False) -> Context:
        for key in get_all(context):
            if nothing or key not in self._keys:
                context = remove_baggage(key, context)
        return context

    @property
    def fields(self) -> set[str]:
        """The headers that the inner propagator writes."""
        return self._inner.fields


def going_to(host: str | None) -> Token[str | None]:
    """Name the host that the next injection goes to, so that its baggage can be held back. Reset with :func:`arrived`."""
    return _destination.set(host)


def arrived(token: Token[str | None]) -> None:
    """Forget the host that :func:`going_to` named."""
    _destination.reset(token)


_standard_propagator: TextMapPropagator | None = None


def install_propagators(settings: Settings) -> None:
    """Make the process's propagator carry the correlation id, and only the baggage that is allowed."""
    global _standard_propagator
    if _standard_propagator is None:
        # What OTEL_PROPAGATORS asks for, as the OpenTelemetry API reads it
        _standard_propagator = propagate.get_global_textmap()
    allowed = AllowlistPropagator(_standard_propagator, keys=settings.baggage_keys, hosts=settings.baggage_hosts)
    correlated = CorrelationPropagator(settings.correlation_header)
    transfers = TransferPropagator(allowed.goes_to_friends)
    propagate.set_global_textmap(CompositePropagator([allowed, correlated, transfers]))


def _ready() -> None:
    """See to it that the process's propagator is clew's: a carrier may be the first thing that an app touches."""
    if _standard_propagator is None:
        from clew.engine.runtime import ready

        ready()


class _MappingGetter(Getter[Mapping[Any, Any]]):
    """Reads headers as :func:`_in_small_letters` returns them."""

    def get(self, carrier: Mapping[Any, Any], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else _texts(value)

    def keys(self, carrier: Mapping[Any, Any]) -> list[str]:
        return list(carrier)


def _in_small_letters(carrier: Mapping[Any, Any]) -> dict[str, Any]:
    """Return any mapping, with keys of any case, and keys and values of text or bytes, by keys in small letters."""
    found: dict[str, Any] = {}
    for name, value in carrier.items():
        text = _text(name)
        key = text.lower()
        # What is written as it is looked for goes before what is written otherwise
        if key not in found or text == key:
            found[key] = value
    return found


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [text for item in values if len(text := _text(item)) <= _MAX_CARRIED_LENGTH]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


_GETTER: Final = _MappingGetter()


class Carried:
    """The thread as it came in a carrier: attach it with ``with``, or hand it to a span as its parent or link.

    Example:
        >>> message = inject({})
        >>> with extract(message):
        ...     pass
    """

    __slots__ = ("_token", "context")

    def __init__(self, context: Context) -> None:
        self.context = context
        self._token: Token[Context] | None = None

    @property
    def correlation_id(self) -> str | None:
        """The correlation id that came along, or ``None``."""
        return correlation_id(self.context)

    @property
    def span_context(self) -> trace.SpanContext:
        """The span that injected the carrier; not valid when there was none."""
        return trace.get_current_span(self.context).get_span_context()

    def __enter__(self) -> Self:
        self._token = otel_context.attach(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None


C = TypeVar("C", bound=MutableMapping[Any, Any])


def inject(carrier: C) -> C:
    """Write the thread (trace context, correlation id, handoffs, allowed baggage) into a mapping, and return it.

    Args:
        carrier: headers, a message's envelope, a job's arguments: any mutable mapping that takes text.

    Example:
        >>> headers = inject({"content-type": "application/json"})
    """
    _write(carrier, None)
    return carrier


def carrier_of(context: Context) -> dict[str, str]:
    """Return what carries the thread of a context.

    Example:
        >>> carrier_of(with_correlation_id("order-17", Context()))
        {'x-correlation-id': 'order-17'}
    """
    carrier: dict[str, str] = {}
    _write(carrier, context)
    return carrier


def _write(carrier: MutableMapping[Any, Any], context: Context | None) -> None:
    try:
        _ready()
        propagate.inject(carrier, context=context)
    except Exception as error:
        report("inject", error)


def extract(carrier: Mapping[Any, Any] | None) -> Carried:
    """Read the thread from a mapping. A carrier with nothing in it, or nonsense in it, gives an empty thread.

    Args:
        carrier: what :func:`inject` wrote, perhaps in another process; keys and values may be bytes.

    Example:
        >>> with extract({"x-correlation-id": "order-17"}) as carried:
        ...     carried.correlation_id
        'order-17'
    """
    if carrier is not None and not hasattr(carrier, "items"):
        report("extract", f"a carrier is a mapping, not a {type(carrier).__qualname__}: the thread starts anew here")
        return Carried(Context())
    try:
        _ready()
        return Carried(propagate.extract(_in_small_letters(carrier or {}), context=Context(), getter=_GETTER))
    except Exception as error:
        report("extract", error)
        return Carried(Context())
