"""LLM calls in the history: a row for each, joined to its span, with the totals of what was used."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import clew
from clew.engine.state import state
from clew.history import recorder as recording
from clew.history.models import LlmCall, LlmUsageTotal
from clew.llm.prices import price_list
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to, with prices at hand."""
    price_list.load()
    assert price_list.flush(60)
    with own_history(database_url, monkeypatch, heartbeat_s=10.0) as opened:
        yield opened


def calls(history: History, **equal: Any) -> list[dict[str, Any]]:
    written = recording._recorder
    assert written is not None
    assert written.flush(30)
    return [dict(row) for row in history.all(LlmCall, **equal)]


def test_a_call_is_recorded_with_all_that_is_known_of_it(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    with (
        clew.correlation("order-17"),
        clew.agent_task("topicizer"),
        clew.llm_call("openai", "gpt-4o", user_id="ada") as call,
    ):
        call.retry("rate_limit")
        assert list(call.stream(["a", "thread"])) == ["a", "thread"]
        call.tokens(input=1_000_000, output=100_000, cache_read=500_000, cache_write=7, reasoning=40_000)
        call.response(model="gpt-4o-2024-08-06")
        call.prompt("not wanted")
    (row,) = calls(history)
    span = captured_telemetry.span("chat gpt-4o")
    wanted = {
        "provider": "openai",
        "model": "gpt-4o",
        "response_model": "gpt-4o-2024-08-06",
        "operation": "chat",
        "agent": "topicizer",
        "user_id": "ada",
        "status": "completed",
        "retries": 1,
        "is_cached": False,
        "input_tokens": 1_000_000,
        "output_tokens": 100_000,
        "cache_read_tokens": 500_000,
        "cache_write_tokens": 7,
        "reasoning_tokens": 40_000,
        "error_type": None,
        "prompt": None,
        "completion": None,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "correlation_id": "order-17",
    }
    assert {name: row[name] for name in wanted} == wanted
    assert row["cost_usd"] == pytest.approx(2.875, rel=1e-4)
    assert 0 <= row["first_token_s"] <= row["duration_s"]
    assert row["started_at"] <= row["recorded_at"]
    assert sorted(total["grain"] for total in history.all(LlmUsageTotal)) == ["day", "hour"]
    total = history.all(LlmUsageTotal, grain="day")[0]
    assert (total["calls"], total["priced"], total["input_tokens"], total["agent"]) == (1, 1, 1_000_000, "topicizer")
    assert total["cost_usd"] == pytest.approx(row["cost_usd"])


def test_how_calls_end(history: History) -> None:
    with pytest.raises(ValueError, match="no answer"), clew.llm_call("openai", "raised"):
        raise ValueError("no answer for Bearer planted0123456789abcdef")
    with clew.llm_call("openai", "told") as call:
        call.fail("timeout", "after 30 s")

    async def main() -> None:
        async def ask() -> None:
            async with clew.llm_call("openai", "called off"):
                await asyncio.Event().wait()

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    ended = {row["model"]: (row["status"], row["error_type"], row["error_message"]) for row in calls(history)}
    assert ended["told"] == ("failed", "timeout", "after 30 s")
    assert ended["called off"] == ("cancelled", "cancelled", None)
    assert ended["raised"][:2] == ("failed", "ValueError")
    assert "no answer" in ended["raised"][2]
    assert "planted" not in ended["raised"][2]


def test_a_cached_answer_costs_and_uses_nothing(history: History) -> None:
    with clew.llm_call("openai", "gpt-4o") as call:
        call.tokens(input=100, output=10)
        call.cached()
    (row,) = calls(history)
    assert (row["is_cached"], row["cost_usd"], row["input_tokens"]) == (True, 0.0, None)
    assert [(total["calls"], total["cached"]) for total in history.all(LlmUsageTotal, grain="hour")] == [(1, 1)]


def test_content_is_recorded_where_it_is_asked_for(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))
    with clew.llm_call("openai", "small") as call:
        call.prompt([{"role": "user", "content": "key sk-1234567890abcdefghij1234"}])
        call.completion("x" * 100_000)
    (row,) = calls(history)
    assert row["prompt"][0]["role"] == "user"
    assert "sk-1234567890" not in str(row["prompt"])
    assert row["completion"]["clew.truncated"] is True


def test_hostile_names_are_cut(history: History) -> None:
    with clew.llm_call("p\x00" * 300, "m" * 1000, operation="o" * 100, user_id="u" * 1000):
        pass
    (row,) = calls(history)
    assert [len(row[name]) <= 255 for name in ("provider", "model", "user_id")] == [True] * 3
    assert len(row["operation"]) <= 64


def test_a_process_that_ends_at_once_leaves_its_calls_with_their_cost(database_url: str) -> None:
    code = """
import clew
with clew.llm_call("openai", "gpt-4o") as call:
    call.tokens(input=1_000_000)
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=None, timeout=60, check=True, capture_output=True)
    with History(database_url) as opened:
        assert [row["cost_usd"] for row in opened.all(LlmCall)] == [2.5, 2.5]
