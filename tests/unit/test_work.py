"""What every app does: tools, memories, searches, documents, caches, other people's services, errors. Two lines each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import clew
from clew import diagnostics
from clew.engine.state import state
from clew.testing import CapturedTelemetry


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


@pytest.fixture
def with_content(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))


def events(captured: CapturedTelemetry) -> list[str]:
    return [log.body for log in captured.logs]


def test_a_tool_call_belongs_to_its_agent(captured_telemetry: CapturedTelemetry) -> None:
    with clew.agent_task("planner"), clew.tool_call("weather", call_id="call-1", city="Knossos") as call:
        call.arguments({"planted": 4711})
        call.result("planted-4711")
    span = captured_telemetry.span("execute_tool weather")
    wanted = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call-1",
        "gen_ai.agent.name": "planner",
        "city": "Knossos",
    }
    assert {key: span.attributes.get(key) for key in wanted} == wanted
    assert span.parent_id == captured_telemetry.span("invoke_agent planner").span_id
    assert [event for event in events(captured_telemetry) if event.startswith("tool")] == ["tool_call", "tool_result"]
    assert captured_telemetry.metric("clew.tool.duration", gen_ai__tool__name="weather").count == 1
    assert "4711" not in repr(captured_telemetry.spans)


@pytest.mark.usefixtures("with_content")
def test_what_a_tool_was_given_and_answered_where_it_is_asked_for(captured_telemetry: CapturedTelemetry) -> None:
    with clew.tool_call("weather") as call:
        call.arguments({"city": "Knossos", "api_key": "sk-1234567890abcdefghij"})
        call.result([1, {"celsius": 21}])
    attributes = captured_telemetry.span("execute_tool weather").attributes
    assert json.loads(attributes["gen_ai.tool.call.arguments"]) == {"city": "Knossos", "api_key": "[redacted]"}
    assert json.loads(attributes["gen_ai.tool.call.result"]) == [1, {"celsius": 21}]
    assert "Knossos" not in repr(captured_telemetry.logs)


def test_a_tool_that_fails_and_one_that_decorates(captured_telemetry: CapturedTelemetry) -> None:
    @clew.tool_call("divide")
    async def divide(one: int, other: int) -> float:
        return one / other

    assert asyncio.run(divide(4, 2)) == 2
    with pytest.raises(ZeroDivisionError):
        asyncio.run(divide(1, 0))
    failed = captured_telemetry.metric("clew.tool.duration", error__type="ZeroDivisionError")
    assert failed.count == 1
    assert events(captured_telemetry) == ["tool_call", "tool_result", "tool_call", "tool_error"]


def test_memories_and_searches(captured_telemetry: CapturedTelemetry) -> None:
    with clew.memory_operation("search", "facts") as memory:
        memory.set("items", 3)
    with clew.retrieval("handbook", query="planted-4711", top_k=5) as search:
        search.documents(["one", "two"])
    assert captured_telemetry.span("memory search facts").attributes["items"] == 3
    span = captured_telemetry.span("retrieval handbook")
    assert (span.attributes["gen_ai.data_source.id"], span.attributes["clew.retrieval.documents"]) == ("handbook", 2)
    assert captured_telemetry.metric("clew.retrieval.documents").sum == 2
    assert captured_telemetry.metric("clew.memory.duration", clew__memory__operation="search").count == 1
    assert events(captured_telemetry) == ["memory_operation", "retrieval"]
    assert "planted" not in repr(captured_telemetry.spans)


@pytest.mark.usefixtures("with_content")
def test_what_is_searched_for_where_it_is_asked_for(captured_telemetry: CapturedTelemetry) -> None:
    with clew.retrieval("handbook", query="how do I reset it?"):
        pass
    assert "how do I" in captured_telemetry.span("retrieval handbook").attributes["gen_ai.retrieval.query.text"]


def test_documents(captured_telemetry: CapturedTelemetry) -> None:
    with clew.document_processed("pdf", document_id="doc-17", pages=12):
        pass
    span = captured_telemetry.span("process document pdf")
    assert (span.attributes["clew.document.id"], span.attributes["pages"]) == ("doc-17", 12)
    assert captured_telemetry.metric("clew.document.duration").count == 1
    assert events(captured_telemetry) == ["document_processed"]


def test_caches_hit_and_miss(captured_telemetry: CapturedTelemetry) -> None:
    for number in range(5):
        with clew.cache("texts") as look:
            look.hit() if number else look.miss()
    for outcome, looks in (("hit", 4), ("miss", 1)):
        assert captured_telemetry.metric("clew.cache.duration", clew__cache__outcome=outcome).count == looks
    # A look that goes well is nothing to log
    assert events(captured_telemetry) == []


def test_other_peoples_services_with_their_status_and_retries(captured_telemetry: CapturedTelemetry) -> None:
    with clew.external_call("stripe", "charge") as call:
        call.status(503)
        call.retry(TimeoutError())
        call.retry("503")
        call.status(201)
    span = captured_telemetry.span("stripe charge")
    assert (span.status, span.attributes["clew.external.status"], span.attributes["clew.external.retries"]) == (
        "unset",
        "201",
        2,
    )
    assert captured_telemetry.metric("clew.external.duration", clew__external__status="201").count == 1
    assert captured_telemetry.metric("clew.external.retries", error__type="TimeoutError").value == 1

    with clew.external_call("stripe", "refund") as call:
        call.retry("503")
        call.status(503)
    span = captured_telemetry.span("stripe refund")
    assert (span.status, span.attributes["error.type"]) == ("error", "503")
    with clew.external_call("fax", "send") as call:
        call.status("accepted")
    assert captured_telemetry.span("fax send").status == "unset"
    assert events(captured_telemetry) == ["external_call", "external_error", "external_call"]


def test_an_error_that_is_handled_is_told_and_fails_nothing(captured_telemetry: CapturedTelemetry) -> None:
    with clew.span("parse"):
        try:
            int("seven")
        except ValueError as problem:
            clew.error(problem, component="parser", line=7)
        clew.error("empty", component="parser")
    span = captured_telemetry.span("parse")
    assert (span.status, [event.name for event in span.events]) == ("unset", ["error", "error"])
    first, second = (log for log in captured_telemetry.logs if log.body == "error")
    assert (first.attributes["line"], first.attributes["clew.error.component"], first.trace_id) == (
        7,
        "parser",
        span.trace_id,
    )
    assert "invalid literal" in first.attributes["exception.stacktrace"]
    assert second.attributes["error.type"] == "empty"
    assert captured_telemetry.metric("clew.errors", error__type="ValueError").value == 1


@pytest.mark.parametrize(
    "broken",
    [
        lambda: clew.tool_call(Hostile()),  # type: ignore[arg-type]
        lambda: clew.memory_operation(7, None),  # type: ignore[arg-type]
        lambda: clew.retrieval("s" * 10_000),
        lambda: clew.cache("a\x00b"),
        lambda: clew.external_call("", ""),
        lambda: clew.llm_call(Hostile(), Hostile(), user_id=Hostile()),  # type: ignore[arg-type]
        lambda: clew.document_processed("x", document_id=Hostile()),  # type: ignore[arg-type]
    ],
)
def test_nothing_that_is_given_raises_into_the_app(captured_telemetry: CapturedTelemetry, broken: Any) -> None:
    diagnostics.set_strict(strict=False)
    with broken():
        pass
    clew.error(Hostile(), component=Hostile())  # type: ignore[arg-type]
    assert len(captured_telemetry.spans) == 1


def test_no_documents_at_all_are_reported(captured_telemetry: CapturedTelemetry) -> None:
    with clew.retrieval("handbook") as search, pytest.raises(clew.ClewError, match="documents"):
        search.documents(None)  # type: ignore[arg-type]
