"""The real OpenAI client, instrumented, against the demo's stand-in: what is recorded of its calls, in both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import clew
from clew.demo.settings import STAND_IN_MODEL
from clew.engine.state import state
from clew.history import recorder as recording
from clew.history.models import LlmCall
from clew.testing import CapturedTelemetry
from tests import stand_in
from tests.integration.job_history import History, own_history

MESSAGES: Any = [
    {"role": "system", "content": "Summarise in 2 sentences."},
    {"role": "user", "content": "The thread leads through the maze. A thread is long, and the maze is deep."},
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in.served() as served:
        yield served


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    with own_history(database_url, monkeypatch, heartbeat_s=10.0) as opened:
        yield opened


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=2) as made:
        yield clew.instrument(made)


def calls(history: History) -> list[dict[str, Any]]:
    written = recording._recorder
    assert written is not None
    assert written.flush(30)
    # Ids of one millisecond have no order
    return sorted((dict(row) for row in history.all(LlmCall)), key=lambda row: row["started_at"])


def test_calls_whole_and_streamed_with_what_the_provider_had_already(
    history: History, captured_telemetry: CapturedTelemetry, client: openai.OpenAI
) -> None:
    clew.llm_prices({STAND_IN_MODEL: {"input": 1.0, "output": 2.0, "cache_read": 0.1}})
    asked: dict[str, Any] = {
        "model": STAND_IN_MODEL,
        "messages": MESSAGES,
        "extra_body": {"prompt_cache_key": str(history.database.url)[:64]},
        "safety_identifier": "ada",
    }
    with clew.agent_task("summariser"):
        client.chat.completions.create(**asked)
        stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        assert len(list(stream)) > 2
    whole, streamed = calls(history)
    assert (whole["input_tokens"], whole["output_tokens"]) == (streamed["input_tokens"], streamed["output_tokens"])
    assert (whole["cache_read_tokens"], streamed["cache_read_tokens"]) == (None, whole["input_tokens"])
    assert whole["cost_usd"] == pytest.approx((whole["input_tokens"] + 2 * whole["output_tokens"]) / 1e6)
    assert streamed["cost_usd"] == pytest.approx((0.1 * whole["input_tokens"] + 2 * whole["output_tokens"]) / 1e6)
    assert whole["first_token_s"] is None
    assert 0 < streamed["first_token_s"] <= streamed["duration_s"]
    assert (whole["agent"], whole["user_id"]) == ("summariser", "ada")
    spans = {span.span_id for span in captured_telemetry.spans if span.name == f"chat {STAND_IN_MODEL}"}
    assert spans == {whole["span_id"], streamed["span_id"]}


def test_retries_are_counted_and_the_last_error_has_its_type(
    history: History, captured_telemetry: CapturedTelemetry, client: openai.OpenAI, url: str
) -> None:
    def ask(refused: int) -> None:
        client.chat.completions.create(
            model=STAND_IN_MODEL, messages=MESSAGES, extra_headers={"x-stand-in-refuse": str(refused)}
        )

    async def ask_async() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=1) as other:
            clew.instrument(other)
            await other.chat.completions.create(
                model=STAND_IN_MODEL, messages=MESSAGES, extra_headers={"x-stand-in-refuse": "1"}
            )

    ask(2)
    with pytest.raises(openai.RateLimitError):
        ask(3)
    asyncio.run(ask_async())
    assert [(row["status"], row["retries"], row["error_type"]) for row in calls(history)] == [
        ("completed", 2, None),
        ("failed", 2, "RateLimitError"),
        ("completed", 1, None),
    ]
    assert captured_telemetry.metric("clew.llm.retries", error__type="429").value == 5


def test_a_stream_that_is_left_and_one_whose_task_is_cancelled(
    history: History, client: openai.OpenAI, url: str
) -> None:
    with client.chat.completions.create(model=STAND_IN_MODEL, messages=MESSAGES, stream=True) as stream:
        next(stream)

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as other:
            clew.instrument(other)
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(asyncio.CancelledError):
                task.cancel()
                await other.chat.completions.create(model=STAND_IN_MODEL, messages=MESSAGES)

    asyncio.run(main())
    assert [(row["status"], row["output_tokens"]) for row in calls(history)] == [
        ("completed", None),
        ("cancelled", None),
    ]


def test_responses_that_are_read_later(history: History, client: openai.OpenAI, url: str) -> None:
    asked: dict[str, Any] = {"model": STAND_IN_MODEL, "input": "A thread leads through the maze."}

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as other:
            clew.instrument(other)
            async with other.responses.with_streaming_response.create(**asked, stream=True) as response:
                assert [event async for event in await response.parse()][-1].type == "response.completed"
            async with other.responses.with_streaming_response.create(**asked) as response:
                assert (await response.parse()) is (await response.parse())

    asyncio.run(main())
    with client.responses.with_streaming_response.create(**asked, stream=True) as response:
        assert list(response.parse())
    # Nobody parses it
    with client.responses.with_streaming_response.create(**asked) as response:
        assert response.read()
    assert [(row["status"], row["input_tokens"], row["first_token_s"] is not None) for row in calls(history)] == [
        ("completed", 7, True),
        ("completed", 7, False),
        ("completed", 7, True),
        ("completed", None, False),
    ]


def test_embeddings(history: History, client: openai.OpenAI) -> None:
    client.embeddings.create(model=STAND_IN_MODEL, input="a thread")
    (row,) = calls(history)
    assert (row["operation"], row["input_tokens"], row["output_tokens"]) == ("embeddings", 2, None)


def test_content_where_it_is_asked_for(
    history: History, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))
    for streamed in (False, True):
        answer: Any = client.chat.completions.create(model=STAND_IN_MODEL, messages=MESSAGES, stream=streamed)
        if streamed:
            assert list(answer)
    for row in calls(history):
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert row["completion"][0]["parts"][0]["content"].startswith("The thread leads")
