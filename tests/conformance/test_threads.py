"""Spans in the hands of many threads, and of forked children."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk import trace as sdk

from clew.pipeline.sampling import ThreadSampler
from clew.pipeline.tracing import TracerProvider
from tests.conformance.scripts import run
from tests.conformance.twins import RESOURCE, quiet


@pytest.fixture(autouse=True)
def eager_switches():
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with quiet():
        yield
    sys.setswitchinterval(before)


def provider(limits: sdk.SpanLimits | None = None) -> tuple[TracerProvider, list[Any]]:
    taken: list[Any] = []
    made = TracerProvider(
        taken.append,
        flush=lambda timeout_s: True,
        resource=RESOURCE,
        sampler=ThreadSampler(ratio=1.0, follows_parent=True),
        span_limits=limits,
    )
    return made, taken


def at_once(count: int, act: Callable[[int], None]) -> None:
    """Run ``act`` in several threads that begin together; what one raises is raised here."""
    gate, raised = threading.Barrier(count), []

    def body(number: int) -> None:
        gate.wait()
        try:
            act(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def test_a_span_that_several_threads_end_is_taken_once():
    made, taken = provider()
    tracer = made.get_tracer("lib")
    for number in range(200):
        span = tracer.start_span("work")
        at_once(3, lambda _, span=span: span.end())  # type: ignore[misc]
        assert len(taken) == number + 1


@pytest.mark.parametrize("limit", [4, 64, sdk.SpanLimits.UNSET])
def test_threads_change_a_span_while_it_ends(limit):
    made, taken = provider(sdk.SpanLimits(max_span_attributes=limit, max_events=8, max_links=8))
    tracer = made.get_tracer("lib")
    for _ in range(20):
        span = tracer.start_span("work", attributes={"shared": 0})

        def change(number: int, span=span) -> None:
            for turn in range(60):
                span.set_attribute("shared", turn)
                span.set_attribute(f"key {turn % 7}", number)
                span.set_attributes({f"{number}.{turn}": turn, "list": [number, turn]})
                span.add_event("event", {"turn": turn})
                span.update_name(f"{number}.{turn}")
                dict(span.attributes.copy())
            if number == 0:
                span.end()

        at_once(4, change)
    assert len(taken) == 20
    for ended in taken:
        assert limit == sdk.SpanLimits.UNSET or len(ended.attributes) <= limit
        assert len(ended.events) == 8
        assert all(type(value) is int or len(value) == 2 for value in ended.attributes.values())
        assert ended.to_json()


def test_no_first_event_of_a_thread_is_lost():
    made, taken = provider()
    tracer = made.get_tracer("lib")
    for _ in range(100):
        span = tracer.start_span("work")
        at_once(4, lambda number, span=span: span.add_event(str(number)))  # type: ignore[misc]
        span.end()
        assert sorted(event.name for event in taken[-1].events) == ["0", "1", "2", "3"]


def test_every_span_of_every_thread_is_taken_and_has_its_own_id():
    made, taken = provider()

    def make(number: int) -> None:
        tracer = made.get_tracer(f"lib {number % 2}")
        for _ in range(500):
            with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner"):
                pass

    at_once(8, make)
    assert len(taken) == 8 * 500 * 2
    assert len({span.context.span_id for span in taken}) == len(taken)
    assert len({span.context.trace_id for span in taken}) == 8 * 500


FORKS = """
import os, random
import clew
clew.configure(service_name="forks")
random.seed(1)
with clew.span("before"):
    pass
for _ in range(3):
    if os.fork() == 0:
        for _ in range(20):
            with clew.span("child"):
                pass
        clew.shutdown()
        os._exit(0)
for _ in range(20):
    with clew.span("parent"):
        pass
for _ in range(3):
    os.wait()
"""


def test_forked_children_make_ids_of_their_own(otlp_sink, spool_dir):
    run(FORKS, otlp_sink)
    spans = otlp_sink.spans
    assert len(spans) == 81
    assert len({span.span_id for span in spans}) == 81
    assert len({span.trace_id for span in spans}) == 81


SEEDED = """
import random
import clew
random.seed(7)
clew.configure(service_name="seeded")
expected = random.Random(7)
with clew.span("work"):
    pass
assert random.random() == expected.random()
"""


def test_an_app_that_seeds_random_numbers_gets_other_ids_each_time_and_its_own_numbers(otlp_sink, spool_dir):
    for _ in range(2):
        run(SEEDED, otlp_sink)
    assert len({span.trace_id for span in otlp_sink.spans}) == 2
