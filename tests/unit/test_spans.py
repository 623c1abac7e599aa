from __future__ import annotations

import asyncio
import datetime as dt
import enum
import math
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from opentelemetry import trace

import clew


class Colour(enum.Enum):
    RED = "red"


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def test_spans_nest_and_carry_attributes_and_the_correlation_id(captured_telemetry):
    with clew.span("outer", sku="A-17") as outer:
        outer.set("currency", "EUR")
        outer.event("priced", cents=990)
        with clew.span("inner"):
            assert clew.trace_id() == outer.trace_id
    inner, outer_span = captured_telemetry.span("inner"), captured_telemetry.span("outer")
    assert inner.parent_id == outer_span.span_id
    assert outer_span.parent_id == ""
    assert outer_span.attributes["sku"] == "A-17"
    assert outer_span.attributes["currency"] == "EUR"
    assert (outer_span.events[0].name, outer_span.events[0].attributes) == ("priced", {"cents": 990})
    assert outer_span.attributes["clew.correlation.id"] == inner.attributes["clew.correlation.id"]


def test_an_exception_is_recorded_and_goes_on_its_way(captured_telemetry):
    error = ValueError("no stock")
    with pytest.raises(ValueError, match="no stock") as raised, clew.span("reserve"):
        raise error
    assert raised.value is error
    span = captured_telemetry.span("reserve")
    assert (span.status, span.status_message, span.attributes["error.type"]) == ("error", "no stock", "ValueError")
    assert [event.name for event in span.events] == ["exception"]
    assert "ValueError: no stock" in span.events[0].attributes["exception.stacktrace"]


def test_an_exception_without_a_text_is_recorded_too(captured_telemetry):
    with pytest.raises(HostileError), clew.span("reserve"):
        raise HostileError
    assert captured_telemetry.span("reserve").attributes["error.type"] == "HostileError"


def test_cancellation_is_told_apart_from_failure(captured_telemetry):
    async def main():
        async def work():
            async with clew.span("work"):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    span = captured_telemetry.span("work")
    assert (span.status, span.attributes["error.type"]) == ("unset", "cancelled")


def test_fail_marks_without_raising(captured_telemetry):
    with clew.span("charge") as span:
        span.fail("card_declined", "the bank said no")
    charged = captured_telemetry.span("charge")
    assert (charged.status, charged.status_message) == ("error", "the bank said no")
    assert charged.attributes["error.type"] == "card_declined"


def test_decorators_of_every_kind_of_function(captured_telemetry):
    @clew.span("plain", kind_of="plain")
    def plain(a, b=2):
        with clew.span("in plain"):
            return a + b

    @clew.span("coroutine")
    async def coroutine():
        with clew.span("in coroutine"):
            return "done"

    @clew.span("generator")
    def generator():
        with clew.span("in generator"):
            received = yield 1
        yield received
        return "end"

    @clew.span("async generator")
    async def async_generator():
        for number in range(3):
            with clew.span("in async generator"):
                pass
            yield number

    @clew.span
    def bare():
        return 1

    def delegate():
        return (yield from generator())

    assert plain(1, b=4) == 5
    assert asyncio.run(coroutine()) == "done"
    running = delegate()
    assert (next(running), running.send("hello")) == (1, "hello")
    with pytest.raises(StopIteration) as stopped:
        next(running)
    assert stopped.value.value == "end"

    async def consume():
        return [number async for number in async_generator()]

    assert asyncio.run(consume()) == [0, 1, 2]
    assert bare() == 1
    names = {span.span_id: span.name for span in captured_telemetry.spans}
    parents = {span.name: names.get(span.parent_id, "") for span in captured_telemetry.spans}
    for name in ("plain", "coroutine", "generator", "async generator"):
        assert parents[f"in {name}"] == name
        assert parents[name] == ""
    assert any("bare" in name for name in parents)
    assert plain.__name__ == "plain"


def test_a_generator_holds_no_context_between_its_steps(captured_telemetry):
    @clew.span("stream")
    async def stream():
        yield 1
        yield 2

    @clew.span("steps")
    def steps():
        yield 1
        yield 2

    async def main():
        with clew.span("consumer") as consumer:
            async for _ in stream():
                assert clew.trace_id() == consumer.trace_id
                assert trace.get_current_span().get_span_context().span_id == int(consumer.span_id, 16)
            for _ in steps():
                assert trace.get_current_span().get_span_context().span_id == int(consumer.span_id, 16)

    asyncio.run(main())


def test_a_generator_that_is_closed_early_or_thrown_into_ends_its_span(captured_telemetry):
    cleaned = []

    @clew.span("closed")
    def closed():
        try:
            yield 1
            yield 2
        finally:
            cleaned.append(True)

    @clew.span("thrown")
    def thrown():
        try:
            yield 1
        except KeyError:
            yield "caught"

    running = closed()
    next(running)
    running.close()
    assert cleaned == [True]
    other = thrown()
    next(other)
    assert other.throw(KeyError("x")) == "caught"
    other.close()

    @clew.span("async closed")
    async def async_closed():
        try:
            yield 1
        finally:
            cleaned.append(True)

    async def main():
        stream = async_closed()
        await anext(stream)
        await stream.aclose()

    asyncio.run(main())
    assert cleaned == [True, True]
    assert {span.name: span.status for span in captured_telemetry.spans} == {
        "closed": "unset",
        "thrown": "unset",
        "async closed": "unset",
    }


ATTRIBUTE_VALUES = [
    ("text", "text"),
    (True, True),
    (3, 3),
    (2**63 - 1, 2**63 - 1),
    (2**63, str(2**63)),
    (1.5, 1.5),
    (None, ""),
    (b"caf\xc3\xa9", "café"),
    (b"\xff", "\\xff"),
    (["a", "b"], ["a", "b"]),
    ([1, "b"], '[1, "b"]'),
    ([], "[]"),
    ({"a": {"b": [1]}}, '{"a": {"b": [1]}}'),
    ({1, 2}, "[1, 2]"),
    (Colour.RED, "red"),
    (Decimal("9.90"), "9.90"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Path("/var/log"), "/var/log"),
    (dt.datetime(2026, 11, 22, 3, 0, tzinfo=dt.UTC), "2026-11-22T03:00:00+00:00"),
    (dt.timedelta(seconds=90), 90.0),
    ("naïve ☃ \U0001f9f5", "naïve ☃ \U0001f9f5"),
    ("\ud800 lone surrogate", "? lone surrogate"),
]


@pytest.mark.parametrize(("given", "kept"), ATTRIBUTE_VALUES, ids=lambda value: repr(value)[:30])
def test_any_value_can_be_an_attribute(captured_telemetry, given, kept):
    with clew.span("work", value=given):
        pass
    assert captured_telemetry.span("work").attributes["value"] == kept


def test_nan_can_be_an_attribute(captured_telemetry):
    with clew.span("work", value=math.nan):
        pass
    assert math.isnan(captured_telemetry.span("work").attributes["value"])


def test_a_huge_value_is_cut(captured_telemetry):
    with clew.span("work", text="x" * 10_000_000, texts=["y" * 10_000_000], raw=b"z" * 10_000_000):
        pass
    attributes = captured_telemetry.span("work").attributes
    assert len(attributes["text"]) == len(attributes["texts"][0]) == len(attributes["raw"]) == 8_192
    assert attributes["text"].endswith("x…")


def test_a_value_without_a_text_is_counted_and_the_app_goes_on(captured_telemetry, monkeypatch):
    clew.diagnostics.set_strict(strict=False)
    with clew.span("work", value=Hostile()):
        pass
    assert captured_telemetry.span("work").attributes["value"] == "<Hostile without a text form>"
    assert clew.diagnostics.problems() == {"attribute": 1}


def test_a_name_that_is_no_text_raises_in_strict_mode_only(captured_telemetry):
    with pytest.raises(clew.ClewError, match="a span's name is a text"):
        clew.span("")
    clew.diagnostics.set_strict(strict=False)
    with clew.span(""):
        pass
    assert captured_telemetry.span("unnamed")


def test_links_by_carrier(captured_telemetry):
    with clew.span("cause") as cause:
        carrier = cause.carrier
    with clew.span("effect") as effect:
        effect.link(carrier)
        effect.link({})
    assert [link.span_id for link in captured_telemetry.span("effect").links] == [cause.span_id]


def test_spans_of_libraries_are_children_and_parents(captured_telemetry):
    tracer = trace.get_tracer("a.library")
    with (
        clew.span("ours") as ours,
        tracer.start_as_current_span("theirs") as theirs,
        clew.span("ours again"),
    ):
        pass
    assert captured_telemetry.span("theirs").parent_id == ours.span_id
    assert captured_telemetry.span("theirs").attributes["clew.correlation.id"] == ours.correlation_id
    assert captured_telemetry.span("ours again").parent_id == f"{theirs.get_span_context().span_id:016x}"
