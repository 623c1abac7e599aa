"""Spans that cost little: the SDK's tracer provider, tracer and span, with the recording done anew.

They are subclasses of the SDK's, so whatever takes those (samplers, id generators, processors, exporters, checks of a type) takes
these. A span keeps its attributes in a plain dictionary, makes lists of events and links only when there are some, and takes no
lock; what is not on the hot path is the SDK's own. The behaviour is the SDK's, which ``tests/conformance`` holds.

Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/
"""

from __future__ import annotations

import copy
import logging
import operator
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes

from clew import clock
from clew.diagnostics import report
from clew.pipeline.records import Facts
from clew.pipeline.sampling import Keep, ThreadSampler

logger = logging.getLogger("clew.pipeline")

SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""Where OpenTelemetry's context keeps the current span."""

CORRELATION_KEY: Final = otel_context.create_key("clew-correlation-id")
"""Where the context keeps the correlation id; the engine says what it means."""

CORRELATION_ATTRIBUTE: Final = "clew.correlation.id"
KEPT_ATTRIBUTE: Final = "clew.sampling.kept"

Clean = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Turns attributes as they were given into attributes as a span has them."""

_UNSET: Final = Status(StatusCode.UNSET)
_SAMPLED: Final = 0x01
_FLAGS: Final = tuple(TraceFlags(flags) for flags in range(256))
_RANDOM: Final = TraceFlags.RANDOM_TRACE_ID
_LOW_64_BITS: Final = TraceIdRatioBased.TRACE_ID_LIMIT
_KNOWN: Final = _RANDOM | _SAMPLED
_NEW_SAMPLED: Final = _FLAGS[_KNOWN]
_NEW_UNSAMPLED: Final = _FLAGS[_RANDOM]
_EMPTY_STATE: Final = trace.INVALID_SPAN_CONTEXT.trace_state
_SCALARS: Final = frozenset({bool, int, float, bytes, type(None)})
_random: Final = random.Random()  # noqa: S311 - ids are no secrets
random_bits: Final = _random.getrandbits
"""Random numbers for ids. Apps seed the generator that Python shares: ids made by it would come again in every process."""
os.register_at_fork(after_in_child=_random.seed)
_TEXT: Final = frozenset({str})
_new: Final = object.__new__
_new_tuple: Final = tuple.__new__


class _OfTracer:
    """An attribute that the tracer knows. Unlike a property it lets a processor give one span another."""

    def __init__(self, name: str) -> None:
        self._get = operator.attrgetter(f"_tracer.{name}")

    def __get__(self, span: RecordedSpan | None, owner: type) -> Any:
        return self if span is None else self._get(span)


class RecordedSpan(sdk.Span):
    """A span that is recorded. Made by :class:`Tracer` only."""

    # What most spans never change is kept by the class
    _end_time: int | None = None
    _status: Status = _UNSET
    _events: Sequence[Any] = ()
    _links: Sequence[Any] = ()
    _dropped_attributes: int = 0
    _record_exception = True
    _set_status_on_exception = True
    _record_end_metrics: Callable[[], None] | None = None
    _kept_if: Keep | None = None
    _ending_in: int | None = None
    _attributes: dict[str, Any]
    _context: SpanContext
    _is_open: bool
    _tracer: Tracer

    # What the SDK's methods look for, and the tracer knows
    _resource: Any = _OfTracer("resource")
    _instrumentation_scope: Any = _OfTracer("_instrumentation_scope")
    _instrumentation_info: Any = _OfTracer("instrumentation_info")
    _limits: Any = _OfTracer("_span_limits")
    _span_processor: Any = _OfTracer("span_processor")
    _sampler: Any = _OfTracer("sampler")

    @property
    def dropped_attributes(self) -> int:
        """How many attributes were left out because there were too many, or because they had no valid key."""
        return self._dropped_attributes

    def get_span_context(self) -> SpanContext:
        """Return what of the span travels on."""
        return self._context

    def is_recording(self) -> bool:
        """Tell whether the span takes more: until it has ended."""
        return self._end_time is None or self._ending_in == threading.get_ident()

    def _has_ended(self, call: str) -> bool:
        """Warn of a call that comes too late. It does not for processors while they are told that the span ends.

        Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#onending
        """
        if self._ending_in == threading.get_ident():
            return False
        logger.warning("%s on an ended span.", call)
        return True

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        if self._end_time is not None and self._has_ended("set_attribute"):
            return
        max_length = self._tracer.max_length
        kind = type(value)
        if (
            (kind in _SCALARS or (kind is str and (max_length is None or len(value) <= max_length)))
            and type(key) is str
            and key
        ):
            self._put(key, value)
            return
        cleaned = BoundedAttributes(self._tracer.cleaned_at_once, immutable=False, max_value_len=max_length)
        cleaned[key] = value
        self._put_all(cleaned)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        if self._end_time is not None and self._has_ended("set_attributes"):
            return
        if _TEXT.issuperset(map(type, attributes)):
            for key, value in attributes.items():
                self.set_attribute(key, value)
        else:
            tracer = self._tracer
            self._put_all(BoundedAttributes(tracer.cleaned_at_once, attributes, max_value_len=tracer.max_length))

    def _put(self, key: str, value: Any) -> None:
        # No step fails where other threads do the same: a span takes no lock
        attributes = self._attributes
        attributes.pop(key, None)
        attributes[key] = value
        limit = self._tracer.max_attributes
        if limit is not None and len(attributes) > limit:
            self._shorten(limit)

    def _put_all(self, cleaned: BoundedAttributes) -> None:
        self._dropped_attributes += cleaned.dropped
        for key, value in cleaned.items():
            self._put(key, value)

    def _shorten(self, limit: int) -> None:
        """Let the oldest attributes make room, as in the SDK."""
        attributes = self._attributes
        while len(attributes) > limit:
            try:
                del attributes[next(iter(attributes))]
            except (KeyError, RuntimeError, StopIteration):
                # Another thread has made room, too
                continue
            self._dropped_attributes += 1

    def _add_event(self, event: sdk.EventBase) -> None:
        if self._end_time is not None and self._has_ended("add_event"):
            return
        events = self._events
        if not isinstance(events, BoundedList):
            # Of two threads that add the first one, both get the same list
            events = self.__dict__.setdefault("_events", BoundedList(self._limits.max_events))
        events.append(event)

    def _add_link(self, link: Link) -> None:
        if self._end_time is not None and self._has_ended("add_link"):
            return
        links = self._links
        if not isinstance(links, BoundedList):
            # Of two threads that add the first one, both get the same list
            links = self.__dict__.setdefault("_added_to", BoundedList.from_seq(self._limits.max_links, links))
            self._links = links
        links.append(link)

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        if self._end_time is not None and self._has_ended("update_name"):
            return
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Say how the work came out. A status of ``OK`` is final, as the specification has it."""
        if self._end_time is not None and self._has_ended("set_status"):
            return
        if isinstance(status, StatusCode):
            if status is StatusCode.UNSET:
                return
            status = Status(status, description)
        elif not isinstance(status, Status) or status.status_code is StatusCode.UNSET:
            return
        elif description is not None:
            logger.warning(
                "Description %s ignored. Use either `Status` or `(StatusCode, Description)`",
                description,
            )
        if self._status.status_code is not StatusCode.OK:
            self._status = status

    def _readable_span(self) -> sdk.ReadableSpan:
        span = super()._readable_span()
        bounded = BoundedAttributes()
        bounded._dict, bounded.dropped = self._attributes, self._dropped_attributes
        span._attributes = bounded
        return span

    def __deepcopy__(self, memo: dict[int, Any]) -> sdk.ReadableSpan:
        # What the tracer leads to is no part of the span, and can't be copied
        return copy.deepcopy(self._readable_span(), memo)

    def start(self, start_time: int | None = None, parent_context: Context | None = None) -> None:
        """Warn: a tracer has started the span."""
        logger.warning("Calling start() on a started span.")

    def end(self, end_time: int | None = None) -> None:
        """End the span and hand it on."""
        try:
            # Of two threads that end a span, one finds the attribute
            del self._is_open
        except AttributeError:
            logger.warning("Calling end() on an ended span.")
            return
        self._end_time = end_time if end_time is not None else clock.now_ns()
        tracer = self._tracer
        if tracer.counts_spans and self._record_end_metrics is not None:
            self._record_end_metrics()
        guests = tracer.guests._span_processors
        if guests:
            self._ending_in = threading.get_ident()
            _tell(guests, "_on_ending", self)
            self._ending_in = None
        is_taken = self._context[3] & _SAMPLED
        if not is_taken and self._kept_if is not None and (reason := self._kept_if.reason(self)) is not None:
            self._attributes[KEPT_ATTRIBUTE] = reason
            is_taken = True
        if guests:
            # Before it is taken: one that redacts has redacted what leaves
            _tell(guests, "on_end", self)
        if is_taken:
            tracer.take(self)


def _tell(guests: Sequence[sdk.SpanProcessor], method: str, span: RecordedSpan, **given: Any) -> None:
    """Tell processors that others have added of a span; one that fails spoils neither the app nor the others."""
    for guest in guests:
        try:
            getattr(guest, method)(span, **given)
        except Exception as error:
            report(f"span processor {type(guest).__qualname__}", error)


class DeferredSpan(RecordedSpan):
    """A span whose attributes are put together when somebody asks for them: mostly the export thread."""

    _built: dict[str, Any] | None = None
    _facts: Facts

    @property
    def _attributes(self) -> dict[str, Any]:
        built = self._built
        if built is None:
            # Of two threads that ask first, both get the same
            built = self.__dict__.setdefault("_built", self._facts.attributes())
            limit = self._tracer.max_attributes
            if limit is not None and len(built) > limit:
                self._shorten(limit)
        return built

    @_attributes.setter
    def _attributes(self, attributes: dict[str, Any]) -> None:
        self._built = attributes


class Tracer(sdk.Tracer):
    """Starts spans. Made by :class:`TracerProvider`."""

    def __init__(self, stock: sdk.Tracer, provider: TracerProvider) -> None:
        # The SDK's initialiser would make instruments anew; what it made for the stock tracer is all there is to a tracer
        self.__dict__.update(vars(stock))
        # Not the provider's: what replaced the SDK's own is found here
        self.guests: Any = self.span_processor
        self.take = provider.take
        self.keep = provider.keep
        self.max_attributes = self._span_limits.max_span_attributes
        self.max_length = self._span_limits.max_span_attribute_length
        self.max_links = self._span_limits.max_links
        # Where none is kept, none is looked at
        self.cleaned_at_once = 0 if self.max_attributes == 0 else None
        sampler = self.sampler
        self._is_plain = type(self.id_generator) is RandomIdGenerator and type(sampler) is ThreadSampler
        if type(sampler) is ThreadSampler:
            self._bound, self._follows_parent = sampler.bound, sampler.follows_parent
        self.counts_spans = provider.counts_spans

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: FBT001, FBT002
        set_status_on_exception: bool = True,  # noqa: FBT001, FBT002
    ) -> trace.Span:
        """Start a span, as the OpenTelemetry API has it."""
        parent = trace.get_current_span(context).get_span_context()
        if parent is not None and not isinstance(parent, SpanContext):
            raise TypeError("parent_span_context must be a SpanContext or None.")
        span = self.begin(
            name,
            otel_context.get_current() if context is None else context,
            parent,
            kind,
            attributes,
            links or (),
            start_time,
            clean=None,
        )
        if isinstance(span, RecordedSpan):
            if not record_exception:
                span._record_exception = False
            if not set_status_on_exception:
                span._set_status_on_exception = False
        return span

    def begin(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917 - the hot path: every call within it would cost
        self,
        name: str,
        context: Mapping[str, object],
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        links: Sequence[Link],
        start_time: int | None,
        clean: Clean | None,
        facts: Facts | None = None,
    ) -> trace.Span:
        """Start a span whose parent is known.

        Args:
            name: its name.
            context: where its correlation id is, and what samplers and processors are given.
            parent: the span it continues; not valid, or ``None``, for a new trace.
            kind: its kind.
            attributes: as they were given.
            links: to other spans.
            start_time: nanoseconds since the epoch; ``None`` for now.
            clean: makes the attributes fit for a span, and is only called where one is recorded; ``None`` does what the SDK
                does.
            facts: what the attributes are made from later, in place of ``attributes``.
        """
        if not self._tracer_config.is_enabled:
            return trace.NonRecordingSpan(parent or trace.INVALID_SPAN_CONTEXT)
        if parent is not None and not parent[5]:
            parent = None
        if self._is_plain:
            if parent is None:
                trace_id, state = random_bits(128) or 1, _EMPTY_STATE
                is_sampled = trace_id & _LOW_64_BITS < self._bound
                flags = _NEW_SAMPLED if is_sampled else _NEW_UNSAMPLED
            else:
                trace_id, _, is_remote, flags, state, _ = parent
                if not (flags & _SAMPLED and self._follows_parent):
                    is_sampled = (is_remote or not self._follows_parent) and trace_id & _LOW_64_BITS < self._bound
                    flags = _FLAGS[flags & _RANDOM | is_sampled]
                else:
                    flags = _FLAGS[flags & _KNOWN]
            span_context: SpanContext = _new_tuple(
                SpanContext, (trace_id, random_bits(64) or 1, False, flags, state, True)
            )
            is_recording = flags & _SAMPLED
        else:
            if facts is not None:
                attributes = facts.attributes()
            span_context, is_recording, attributes = self._sample(name, context, parent, kind, attributes, links)
        kept_if = None
        if not span_context[3] & _SAMPLED:
            if self.keep is not None and (parent is None or parent[2]):
                kept_if = self.keep
            elif not is_recording:
                if self.counts_spans:
                    self._tracer_metrics.start_span(parent, Decision.DROP)
                return trace.NonRecordingSpan(span_context)
        # Built by hand: an initialiser would cost as much again
        span: RecordedSpan
        if facts is None:
            span = _new(RecordedSpan)
        else:
            span = _new(DeferredSpan)
            span._facts = facts
            if not self._is_plain:
                # A sampler may have added some
                span._attributes = dict(attributes or {})
        span._is_open = True
        span._name = name
        span._context = span_context
        span._parent = parent
        span._kind = kind
        span._tracer = self
        if facts is None:
            kept: dict[str, Any] = {}
            if attributes:
                if clean is not None:
                    kept = clean(attributes)
                else:
                    bounded = BoundedAttributes(self.max_attributes, attributes, max_value_len=self.max_length)
                    kept = cast("dict[str, Any]", bounded.copy())
                    if bounded.dropped:
                        span._dropped_attributes = bounded.dropped
            span._attributes = kept
            if (correlation_id := context.get(CORRELATION_KEY)) is not None:
                kept[CORRELATION_ATTRIBUTE] = correlation_id
            if self.max_attributes is not None and len(kept) > self.max_attributes:
                span._shorten(self.max_attributes)
        if links:
            # The engine's own are as they must be
            is_fit = clean is not None and (self.max_links is None or len(links) <= self.max_links)
            span._links = tuple(links) if is_fit else span._new_links(links)
        if kept_if is not None:
            span._kept_if = kept_if
        span._start_time = start_time if start_time is not None else clock.now_ns()
        if self.counts_spans:
            decision = Decision.RECORD_AND_SAMPLE if span_context[3] & _SAMPLED else Decision.RECORD_ONLY
            span._record_end_metrics = self._tracer_metrics.start_span(parent, decision)
        guests = self.guests._span_processors
        if guests:
            _tell(guests, "on_start", span, parent_context=Context(context))
        return span

    def _sample(
        self,
        name: str,
        context: Mapping[str, object],
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        links: Sequence[Link],
    ) -> tuple[SpanContext, bool, Mapping[str, Any] | None]:
        """Ask a sampler and an id generator that are not clew's own, as the SDK's tracer asks them."""
        if parent is not None:
            trace_id, flags = parent.trace_id, parent.trace_flags & _RANDOM
        else:
            trace_id = self.id_generator.generate_trace_id()
            flags = _RANDOM if self.id_generator.is_trace_id_random() else 0
        result = self.sampler.should_sample(Context(context), trace_id, name, kind, attributes, links)
        if result.decision is Decision.RECORD_AND_SAMPLE:
            flags |= _SAMPLED
        span_context = SpanContext(
            trace_id,
            self.id_generator.generate_span_id(),
            False,
            _FLAGS[flags],
            result.trace_state,
        )
        # What is not recorded has no attributes left, but may be kept
        is_recording = result.decision is not Decision.DROP
        return span_context, is_recording, result.attributes if is_recording else attributes


class TracerProvider(sdk.TracerProvider):
    """Makes tracers. Takes the SDK's samplers, id generators, resources, limits and processors.

    Args:
        take: is given every finished span that is sampled, or kept although it was not.
        flush: sends what was taken, within a time in seconds.
        resource: what produces the spans.
        sampler: which traces are recorded.
        id_generator: makes the ids; by default random ones.
        span_limits: how much a span may hold.
        keep: which spans of unsampled traces are recorded all the same.
    """

    def __init__(
        self,
        take: Callable[[RecordedSpan], None],
        *,
        flush: Callable[[float], bool],
        resource: Resource,
        sampler: Any,
        id_generator: IdGenerator | None = None,
        span_limits: sdk.SpanLimits | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.take = take
        self.keep = keep
        self._flush = flush
        self.counts_spans = os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "").strip().lower() == "true"
        self.guests: sdk.SynchronousMultiSpanProcessor = cast("Any", sdk.SynchronousMultiSpanProcessor)()
        super().__init__(
            sampler=sampler,
            resource=resource,
            shutdown_on_exit=False,
            active_span_processor=self.guests,
            id_generator=id_generator,
            span_limits=span_limits,
        )

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """Return the tracer of a scope, made on the first call."""
        tracer = super().get_tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        if type(tracer) is sdk.Tracer:
            with self._tracers_lock:
                tracer = self._tracers[tracer._instrumentation_scope] = Tracer(tracer, self)
        return tracer

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued, and let the processors that others have added do the same."""
        until_ns = clock.monotonic_ns() + timeout_millis * 1_000_000
        sent = self._flush(timeout_millis / 1000)
        left_millis = max(0, until_ns - clock.monotonic_ns()) // 1_000_000
        return super().force_flush(left_millis) and sent

    def shutdown(self) -> None:
        """Send what is queued, and shut down the processors that others have added."""
        self.force_flush()
        super().shutdown()
