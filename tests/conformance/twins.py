"""The SDK's tracer provider and clew's side by side: told the same, with the same ids and the same clock."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Span, SpanContext

from clew.pipeline.sampling import Keep
from clew.pipeline.tracing import TracerProvider

RESOURCE = Resource({"service.name": "twins"})
NOW_NS = 1_700_000_000_000_000_000


class CountedIds(IdGenerator):
    """Ids that are the same on each run. The low bits of a trace id are spread, for samplers that look at them."""

    def __init__(self, *, is_random: bool = True) -> None:
        self._numbers = itertools.count(1)
        self._is_random = is_random

    def generate_span_id(self) -> int:
        return next(self._numbers)

    def generate_trace_id(self) -> int:
        return next(self._numbers) << 64 | (next(self._numbers) * 0x9E3779B97F4A7C15) % 2**64

    def is_trace_id_random(self) -> bool:
        return self._is_random


class Twins:
    """Both providers. ``both`` does something to each and asserts that it came out alike."""

    def __init__(
        self,
        *,
        sampler: Sampler = ALWAYS_ON,
        own_sampler: Sampler | None = None,
        limits: sdk.SpanLimits | None = None,
        has_random_ids: bool = True,
        keep: Keep | None = None,
    ) -> None:
        self.taken: list[Any] = []
        self.own = TracerProvider(
            self.taken.append,
            flush=lambda timeout_s: True,
            resource=RESOURCE,
            sampler=own_sampler or sampler,
            id_generator=CountedIds(is_random=has_random_ids),
            span_limits=limits,
            keep=keep,
        )
        self._exporter = InMemorySpanExporter()
        self.stock = sdk.TracerProvider(
            sampler=sampler,
            resource=RESOURCE,
            shutdown_on_exit=False,
            id_generator=CountedIds(is_random=has_random_ids),
            span_limits=limits,
        )
        self.stock.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def exported(self) -> tuple[sdk.ReadableSpan, ...]:
        return tuple(self._exporter.get_finished_spans())

    def both(self, act: Callable[[sdk.Tracer], Any]) -> None:
        """Do the same with a tracer of each, and compare how it ends and which spans come out of it."""
        outcomes = []
        for provider in (self.stock, self.own):
            tracer = provider.get_tracer("lib", "1.0", "https://s", {"a": 1})
            assert isinstance(tracer, sdk.Tracer)
            with one_clock():
                outcomes.append(outcome(partial(act, tracer)))
        assert outcomes[0] == outcomes[1]
        self.compare()

    def compare(self) -> None:
        """Assert that the spans so far are the same, read by the SDK's interface and encoded by the stock encoder."""
        assert [reading(span) for span in self.taken] == [reading(span) for span in self.exported]
        stock, own = outcome(partial(encode_spans, self.exported)), outcome(partial(encode_spans, self.taken))
        assert own == stock


def outcome(act: Callable[[], Any]) -> tuple[str, Any]:
    """Return what a call returned, or which exception it raised."""
    try:
        return "returned", act()
    except Exception as error:
        return "raised", type(error)


@contextmanager
def one_clock() -> Iterator[None]:
    with (
        mock.patch("clew.clock.now_ns", return_value=NOW_NS),
        mock.patch("opentelemetry.sdk.trace.time_ns", return_value=NOW_NS),
    ):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings about what is done wrong on purpose."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def reading(span: sdk.ReadableSpan) -> dict[str, Any]:
    """Return everything that the SDK's interface tells of a span; as text where a NaN may be in it."""
    return {
        "name": span.name,
        "context": context_of(span.get_span_context()),
        "same context": span.context == span.get_span_context(),
        "parent": context_of(span.parent),
        "kind": span.kind,
        "times": (span.start_time, span.end_time),
        "status": (span.status.status_code, span.status.description),
        "attributes": repr(dict(span.attributes or {})),
        "events": [(e.name, e.timestamp, repr(dict(e.attributes or {})), dropped(e)) for e in span.events],
        "links": [(context_of(link.context), repr(dict(link.attributes or {})), dropped(link)) for link in span.links],
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "resource": span.resource,
        "scope": span.instrumentation_scope,
        "json": outcome(span.to_json),
    }


def dropped(item: Any) -> int:
    count: int = item.dropped_attributes
    return count


def context_of(context: SpanContext | None) -> Any:
    """Return all of a span context; comparing two of them leaves out how they were made."""
    if context is None:
        return None
    assert isinstance(context, SpanContext)
    return (
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        context.is_remote,
        context.trace_flags,
        type(context.trace_flags).__name__,
        dict(context.trace_state),
        context.is_valid,
    )


def shown(span: Span) -> Any:
    """Return what an API user sees of a span while it runs."""
    return isinstance(span, sdk.Span), span.is_recording(), context_of(span.get_span_context())
