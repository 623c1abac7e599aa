"""The operation: one ``with`` block from which a span, metrics and log events are made, for every kind of work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import OperationKind
from clew.diagnostics import is_strict, report
from clew.engine import logs, runtime
from clew.engine.context import Carried, carrier_of, correlation_id, extract, new_correlation_id
from clew.engine.decoration import decorate
from clew.engine.instruments import BoundCounter
from clew.engine.plan import plan_of, plans
from clew.engine.state import state
from clew.pipeline.coercion import attribute_values, clean
from clew.pipeline.current import attach, detach, get_current
from clew.pipeline.records import Facts
from clew.pipeline.tracing import CORRELATION_KEY, SPAN_KEY, RecordedSpan

P = ParamSpec("P")
R = TypeVar("R")

MAX_NAME_LENGTH: Final = 256

Linkable = Carried | SpanContext | Mapping[Any, Any]


class Operation:
    """A piece of work of one kind. A context manager, for ``with`` and ``async with``, and a decorator.

    Made by :func:`clew.span` and the functions of each domain, never by app code itself.

    Args:
        kind: the row of the catalogue.
        attributes: what is known at the start; keys are attribute names. The operation keeps the dictionary and adds to it.
        name: the span's name where it is not derived from the attributes.
        parent: a carrier or context that the span continues; by default the current one.
        links: carriers or span contexts that the span is linked to.
        root: start a new trace whatever is current.

    Example:
        >>> import clew
        >>> with clew.span("price", sku="A-17") as span:
        ...     span.set("currency", "EUR")
    """

    __slots__ = (
        "_active",
        "_error",
        "_facts",
        "_interrupted",
        "_links",
        "_name",
        "_parent",
        "_plan",
        "_root",
        "_span",
        "_started_ns",
        "_stopped",
        "_token",
        "attributes",
        "context",
        "error_type",
        "kind",
    )

    def __init__(
        self,
        kind: OperationKind,
        attributes: dict[str, Any],
        *,
        name: str | None = None,
        parent: Carried | Context | Mapping[Any, Any] | None = None,
        links: Iterable[Linkable] = (),
        root: bool = False,
    ) -> None:
        self.kind = kind
        self.attributes = attributes
        self.error_type: str | None = None
        self.context: Context | None = None
        self._plan = plans.get(kind.name) or plan_of(kind)
        self._name = name
        self._parent = parent
        self._links = links
        self._root = root
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[Context] | None = None
        self._started_ns = 0
        self._active: BoundCounter | None = None
        self._error: BaseException | None = None
        self._facts: Facts | None = None
        self._interrupted = False
        self._stopped: tuple[int, int] | None = None

    # What a user does with it

    def set(self, key: str, value: Any) -> None:
        """Set an attribute. Anything is taken: what telemetry can't carry is turned into text."""
        try:
            text = key if type(key) is str else str(key)
            self.attributes[text] = value
            if self._span.is_recording():
                self._span.set_attribute(text, self._attribute(text, value))
        except Exception as error:
            report("span.set", error)

    def set_all(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set(key, value)

    def event(self, name: str, **attributes: Any) -> None:
        """Add an event: something that happened at a moment within the span."""
        try:
            if self._span.is_recording():
                values = {key: self._attribute(key, value) for key, value in attributes.items()}
                self._span.add_event(clean(str(name), MAX_NAME_LENGTH), values)
        except Exception as error:
            report("span.event", error)

    def link(self, target: Linkable) -> None:
        """Link the span to another, given by a carrier that :func:`clew.inject` wrote or by its context."""
        try:
            for link in _links((target,)):
                self._span.add_link(link.context, link.attributes)
        except Exception as error:
            report("span.link", error)

    def fail(self, error: BaseException | str, message: str = "") -> None:
        """Mark the operation as failed without raising.

        Args:
            error: the exception, or a low-cardinality name of what went wrong, such as ``"timeout"``.
            message: what a person should read.
        """
        try:
            if isinstance(error, BaseException):
                self._error = error
                self.error_type = type(error).__qualname__
                text = message or logs._message(error)
                if self._span.is_recording():
                    self._span.add_event(
                        "exception",
                        {
                            semconv.EXCEPTION_TYPE: type(error).__qualname__,
                            semconv.EXCEPTION_MESSAGE: clean(text, state.max_value_length),
                            semconv.EXCEPTION_STACKTRACE: logs._stacktrace(error),
                        },
                    )
            else:
                self.error_type, text = str(error), message
            if self._span.is_recording():
                self._span.set_status(Status(StatusCode.ERROR, clean(text, state.max_value_length)))
        except Exception as problem:
            report("span.fail", problem)

    def interrupt(self, reason: str) -> None:
        """Say that something else ended the operation early: it did not finish, and that is no failure of it.

        Args:
            reason: a low-cardinality name, such as ``"client_disconnect"``: it becomes ``error.type``.
        """
        self._interrupted = True
        self.error_type = reason

    @property
    def name(self) -> str:
        """The span's name."""
        name = self._name or self.kind.title(self.attributes)
        return name if len(name) <= MAX_NAME_LENGTH else clean(name, MAX_NAME_LENGTH)

    def rename(self, name: str | None = None) -> None:
        """Give the span another name; by default the one its kind derives from the attributes of now."""
        self._name = name
        if self._span.is_recording():
            self._span.update_name(self.name)

    @property
    def trace_id(self) -> str:
        """The trace's id in 32 hexadecimal digits, or ``""`` when tracing is off."""
        span_context = self._span.get_span_context()
        return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else ""

    @property
    def span_id(self) -> str:
        """The span's id in 16 hexadecimal digits, or ``""`` when tracing is off."""
        span_context = self._span.get_span_context()
        return trace.format_span_id(span_context.span_id) if span_context.is_valid else ""

    @property
    def correlation_id(self) -> str | None:
        """The correlation id of the work."""
        return correlation_id(self.context) if self.context is not None else None

    @property
    def carrier(self) -> dict[str, str]:
        """The thread at this operation, to be carried somewhere else."""
        return carrier_of(Context() if self.context is None else self.context)

    # Its life: begin and finish are for callers that must not hold a context attached, such as generators

    def begin(self, *, start_time_ns: int | None = None) -> None:  # noqa: C901, PLR0912 - the hot path: calls would cost more
        """Start the span and count the operation as active, without making it current.

        Args:
            start_time_ns: when it began, in nanoseconds since the epoch, where that was before now.
        """
        try:
            if state.settings is None:
                runtime.ready()
            plan = self._plan
            given = self._parent
            current: Context
            if type(given) is Context and not self._root:
                current = given
            else:
                current = get_current() if given is None and not self._root else self._parent_context()
            context = Context(current)
            if CORRELATION_KEY not in context:
                _put(context, CORRELATION_KEY, new_correlation_id())
            facts = self._facts
            if facts is not None:
                facts.correlation_id = cast("str | None", context[CORRELATION_KEY])
            tracer = state.tracer
            if tracer is not None:
                span: Any = current.get(SPAN_KEY)
                parent: SpanContext | None = None
                if span is not None:
                    parent = span._context if isinstance(span, RecordedSpan) else _context_of(span)
                links = _links(self._links, parent or trace.INVALID_SPAN_CONTEXT) if self._links else ()
                name = self._name or self.kind.title(self.attributes)
                if len(name) > MAX_NAME_LENGTH:
                    name = clean(name, MAX_NAME_LENGTH)
                self._span = span = tracer.begin(
                    name, context, parent, plan.span_kind, self.attributes, links, start_time_ns, self._clean, facts
                )
                _put(context, SPAN_KEY, span)
            self.context = context
            if plan.is_timed:
                self._started_ns = clock.monotonic_ns()
                if start_time_ns is not None:
                    self._started_ns -= clock.now_ns() - start_time_ns
                if plan.active is not None:
                    self._active = active = plan.active(self.attributes)
                    active.add(1)
            if plan.start_event is not None and state.log_stream is not None:
                state.log_stream.take_event(
                    plan.level,
                    plan.start_event,
                    plan.logger_name,
                    facts or self.attributes,
                    None,
                    context,
                    self._span,
                    None,
                )
        except Exception as error:
            if is_strict():
                raise
            report(f"operation {self.kind.name}", error)

    async def begin_async(self) -> None:
        """Begin on an event loop: a kind whose record must be there before the work starts awaits that."""
        self.begin()

    def finish(self, error: BaseException | None = None) -> None:
        """End the span and record the metrics and events."""
        try:
            if self.context is None:
                return
            if error is not None:
                self._judge(error)
            stopped = self._stopped
            try:
                if self.error_type is not None:
                    self.set(semconv.ERROR_TYPE, self.error_type)
                plan = self._plan
                if plan.is_timed:
                    duration_ns = (clock.monotonic_ns() if stopped is None else stopped[0]) - self._started_ns
                    if self._active is not None:
                        self._active.add(-1)
                    if plan.duration is not None:
                        self._record_metrics(duration_ns / 1e9)
                    level, event, cause = plan.level, plan.end_event, None
                    if self.error_type is not None and not self._interrupted:
                        level, event, cause = "error", plan.error_event, self._error
                    if event is not None and state.log_stream is not None:
                        state.log_stream.take_event(
                            level,
                            event,
                            plan.logger_name,
                            self._facts or self.attributes,
                            duration_ns,
                            self.context,
                            self._span,
                            cause,
                        )
            finally:
                self._span.end(None if stopped is None else stopped[1])
        except Exception as problem:
            if is_strict():
                raise
            report(f"operation {self.kind.name}", problem)

    def attach(self) -> Token[Context] | None:
        """Make the operation current; detach with the token that is returned."""
        return attach(self.context) if self.context is not None else None

    def __enter__(self) -> Self:
        self.begin()
        if self.context is not None:
            self._token = attach(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.finish(error)
        finally:
            token, self._token = self._token, None
            if token is not None:
                self._detach(token)

    def _detach(self, token: Token[Context]) -> None:
        try:
            detach(token)
        except ValueError as problem:
            # It was entered in another task: that one's context is not this one's to mend
            report(f"operation {self.kind.name}", problem)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make every call of ``function`` an operation of its own: sync, async, a generator or an async generator."""
        return decorate(self, function)

    def again(self) -> Operation:
        """Return a fresh operation like this one, for one call of a decorated function."""
        return type(self)(
            self.kind, self.attributes.copy(), name=self._name, parent=self._parent, links=self._links, root=self._root
        )

    def _attribute(self, key: str, value: Any) -> Any:
        kind = type(value)
        if (kind is str and len(value) <= state.max_value_length) or kind is int:
            return value
        return attribute_values({key: value}, max_length=state.max_value_length, redact=state.redact)[key]

    @staticmethod
    def _clean(attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes as a span has them; only called where one is recorded."""
        return attribute_values(attributes, max_length=state.max_value_length, redact=state.redact)

    def _parent_context(self) -> Context:
        parent = self._parent
        context: Context
        if parent is None:
            context = get_current()
        elif type(parent) is Context:
            context = parent
        elif isinstance(parent, Carried):
            context = parent.context
        elif isinstance(parent, Context):
            context = parent
        else:
            context = extract(parent).context
        return trace.set_span_in_context(trace.INVALID_SPAN, context) if self._root else context

    def _judge(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            if error is not self._error:
                self.fail(error)
        elif not isinstance(error, GeneratorExit) and self.error_type is None:
            # Cancellation and interpreter exit are no failures of the work, but it did not finish either
            self.interrupt("cancelled")

    def _record_metrics(self, duration_s: float) -> None:
        self._plan.duration(self.attributes).record_in(duration_s, self._span.get_span_context())


# What a link says, made once as a span keeps it
_IS_PARENT: Final = BoundedAttributes(attributes={semconv.OPENTRACING_REF_TYPE: "child_of"}, immutable=True)
_UNKNOWN: Final = BoundedAttributes(immutable=True)
# What a context refuses once it is in use, and its maker may do before
_put: Final = dict.__setitem__


def _context_of(span: object) -> SpanContext | None:
    # Anyone can put anything where the current span is kept
    return span.get_span_context() if isinstance(span, trace.Span) else None


def _links(targets: Iterable[Linkable], parent: SpanContext = trace.INVALID_SPAN_CONTEXT) -> list[Link]:
    links = []
    for target in targets:
        if isinstance(target, SpanContext):
            span_context = target
        elif isinstance(target, Carried):
            span_context = target.span_context
        else:
            span_context = extract(target).span_context
        if span_context.is_valid:
            # Jaeger keeps one reference to a span, and would forget that what is linked here is the parent, too
            is_parent = (span_context.trace_id, span_context.span_id) == (parent.trace_id, parent.span_id)
            links.append(Link(span_context, _IS_PARENT if is_parent else _UNKNOWN))
    return links
