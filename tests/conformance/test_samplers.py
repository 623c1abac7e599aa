"""Samplers: the SDK's and others' decide for clew's provider what they decide for the SDK's; clew's own is theirs but for one case."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    AlwaysRecordSampler,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceState

from clew.pipeline.sampling import ThreadSampler
from clew.pipeline.tracing import TracerProvider
from tests.conformance import values
from tests.conformance.twins import Twins, quiet, shown


@pytest.fixture(autouse=True, scope="module")
def silence():
    with quiet():
        yield


class Custom(Sampler):
    """Decides by the name, adds an attribute and says in the trace state what it was given."""

    def should_sample(
        self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None
    ) -> SamplingResult:
        decision = {"drop": Decision.DROP, "record": Decision.RECORD_ONLY}.get(name, Decision.RECORD_AND_SAMPLE)
        parent = trace.get_current_span(parent_context).get_span_context()
        state = TraceState(
            [("sampled", f"{parent.span_id}-{trace_id % 1000}-{kind}-{len(links or ())}".replace(" ", ""))]
        )
        return SamplingResult(decision, {**(attributes or {}), "sampler.says": name}, state)

    def get_description(self) -> str:
        return "Custom"


class Broken(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise RuntimeError("broken")

    def get_description(self) -> str:
        return "Broken"


SAMPLERS = [
    ALWAYS_ON,
    ALWAYS_OFF,
    TraceIdRatioBased(0.5),
    ParentBased(ALWAYS_ON),
    ParentBased(TraceIdRatioBased(0.5)),
    ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON, local_parent_sampled=ALWAYS_OFF),
    AlwaysRecordSampler(ALWAYS_OFF),
    Custom(),
    Broken(),
]
NAMES = st.sampled_from(["drop", "record", "sample"])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.get_description()[:40])
@settings(max_examples=40, deadline=None)
@given(
    parent=st.one_of(st.none(), values.contexts),
    tree=st.lists(NAMES, min_size=1, max_size=4),
    attributes=st.dictionaries(values.keys, values.scalars, max_size=2),
    links=st.lists(values.contexts, max_size=2),
)
def test_a_sampler_decides_alike_under_both(sampler, parent, tree, attributes, links):
    def act(tracer: sdk.Tracer) -> Any:
        context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
        spans = []
        for name in tree:
            span = tracer.start_span(name, context, attributes=attributes, links=[Link(link) for link in links])
            context = trace.set_span_in_context(span, context)
            spans.append(span)
        for span in reversed(spans):
            span.set_attribute("more", 1)
            span.end()
        return [shown(span) for span in spans]

    Twins(sampler=sampler).both(act)


PARENTS = st.one_of(st.none(), values.contexts)
RATIOS = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-9]), st.floats(0, 1))
TRACE_IDS = st.integers(1, 2**128 - 1)


def decision(sampler: Sampler, parent: SpanContext | None, trace_id: int) -> Any:
    context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
    if parent is not None and parent.is_valid:
        trace_id = parent.trace_id
    result = sampler.should_sample(context, trace_id, "work", attributes={"a": 1})
    return result.decision, dict(result.attributes), dict(result.trace_state or {})


def overrules(parent: SpanContext | None) -> bool:
    """The one difference, on purpose: a stranger who does not record cannot silence this service."""
    return parent is not None and parent.is_valid and parent.is_remote and not parent.trace_flags.sampled


@settings(max_examples=300, deadline=None)
@given(parent=PARENTS, ratio=RATIOS, trace_id=TRACE_IDS)
@example(parent=None, ratio=0.5, trace_id=2**63 - 1)
@example(parent=None, ratio=0.5, trace_id=2**63)
def test_the_ratio_is_the_sdks(parent, ratio, trace_id):
    own, stock = ThreadSampler(ratio=ratio, follows_parent=False), TraceIdRatioBased(ratio)
    assert decision(own, parent, trace_id) == decision(stock, parent, trace_id)


@settings(max_examples=300, deadline=None)
@given(parent=PARENTS, ratio=RATIOS, trace_id=TRACE_IDS)
def test_following_the_parent_is_the_sdks_but_for_a_remote_one_that_is_not_sampled(parent, ratio, trace_id):
    root = TraceIdRatioBased(ratio)
    own = ThreadSampler(ratio=ratio, follows_parent=True)
    assert decision(own, parent, trace_id) == decision(
        ParentBased(root, remote_parent_not_sampled=root), parent, trace_id
    )
    assume(not overrules(parent))
    assert decision(own, parent, trace_id) == decision(ParentBased(root), parent, trace_id)


@settings(max_examples=300, deadline=None)
@given(parent=PARENTS, ratio=RATIOS, follows_parent=st.booleans())
def test_the_tracers_short_way_decides_as_the_sampler_does(parent, ratio, follows_parent):
    sampler = ThreadSampler(ratio=ratio, follows_parent=follows_parent)
    provider = TracerProvider(lambda span: None, flush=lambda timeout_s: True, resource=Resource({}), sampler=sampler)
    context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
    span = provider.get_tracer("lib").start_span("work", context)
    made = span.get_span_context()
    valid = parent if parent is not None and parent.is_valid else None
    assert span.is_recording() == made.trace_flags.sampled == sampler.decides(valid, made.trace_id)
    assert made.is_valid
    assert not made.is_remote
    if valid is None:
        assert made.trace_flags.random_trace_id
        assert len(made.trace_state) == 0
    else:
        assert made.trace_id == valid.trace_id
        assert made.trace_state == valid.trace_state
        assert made.trace_flags.random_trace_id == valid.trace_flags.random_trace_id
    assert made.trace_flags <= 3
