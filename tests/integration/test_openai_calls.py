"""OpenAI's client against a real HTTP server that speaks its protocol: calls, streams, errors, and what is never recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ValidationError

import clew
from clew.instrumentation import openai as drop_in
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.http_echo import EchoRequest, HttpEcho

PROMPT = "planted-prompt-4711"
COMPLETION = "planted-completion-4711"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def completion() -> dict[str, Any]:
    message = {"role": "assistant", "content": COMPLETION}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "small-1",
        "choices": [choice],
        "usage": USAGE,
    }


def response() -> dict[str, Any]:
    said = {"type": "output_text", "text": COMPLETION, "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [said]}
    return {
        "id": "resp-1",
        "object": "response",
        "created_at": 1,
        "model": "small-1",
        "status": "completed",
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 2},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 4},
            "total_tokens": 17,
        },
    }


def chunks() -> Iterator[dict[str, Any]]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small-1"}
    for number in (1, 2, 3):
        delta = {"index": 0, "delta": {"content": COMPLETION}, "finish_reason": "stop" if number == 3 else None}
        # Cumulative, as some servers repeat it
        yield {**head, "choices": [delta], "usage": {**USAGE, "completion_tokens": number}}
    yield {**head, "choices": [], "usage": USAGE}


def answer(request: EchoRequest) -> tuple[int, str, bytes]:
    if request.path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        body = {"object": "list", "model": "embed-1", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
        return 200, "application/json", json.dumps(body).encode()
    if request.path.endswith("/responses"):
        if request.json.get("stream"):
            delta = {"type": "response.output_text.delta", "delta": COMPLETION, "item_id": "m", "output_index": 0}
            events = [delta, {"type": "response.completed", "response": response(), "sequence_number": 2}]
            said = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
            return 200, "text/event-stream", said.encode()
        return 200, "application/json", json.dumps(response()).encode()
    if request.json.get("model") == "wrong":
        error = {"message": f"what is {PROMPT}?", "code": "model_not_found", "type": "invalid_request_error"}
        return 404, "application/json", json.dumps({"error": error}).encode()
    if request.json.get("stream"):
        said = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks())
        return 200, "text/event-stream", f"{said}data: [DONE]\n\n".encode()
    return 200, "application/json", json.dumps(completion()).encode()


@pytest.fixture
def llm() -> Iterator[HttpEcho]:
    with HttpEcho(answer) as server:
        yield server


@pytest.fixture
def client(llm: HttpEcho) -> Iterator[Any]:
    with openai.OpenAI(api_key="planted-key-4711", base_url=f"{llm.url}/v1", max_retries=0) as made:
        assert clew.instrument(clew.instrument(made)) is made
        yield made


def call_of(captured: CapturedTelemetry, name: str = "chat small") -> CapturedSpan:
    everything = repr(captured.spans) + repr(captured.logs)
    for secret in (PROMPT, COMPLETION, "planted-key-4711"):
        assert secret not in everything
    return captured.span(name)


def test_a_call_has_its_model_and_tokens_and_carries_the_thread(
    captured_telemetry: CapturedTelemetry, llm: HttpEcho, client: Any
) -> None:
    with clew.correlation("order-17"), clew.span("agent"):
        assert client.chat.completions.create(model="small", messages=MESSAGES).choices[0].message.content == COMPLETION

    agent, call, post = captured_telemetry.span("agent"), call_of(captured_telemetry), captured_telemetry.span("POST")
    assert (call.parent_id, post.parent_id) == (agent.span_id, call.span_id)
    assert llm.requests[0].headers["traceparent"].split("-")[1:3] == [call.trace_id, post.span_id]
    assert llm.requests[0].headers["x-correlation-id"] == "order-17"
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "small",
        "gen_ai.response.model": "small-1",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "server.address": "127.0.0.1",
        "server.port": llm.port,
    }
    assert {key: call.attributes.get(key) for key in wanted} == wanted
    tokens = captured_telemetry.metric("gen_ai.client.token.usage", gen_ai__token__type="input")
    assert (tokens.count, tokens.sum) == (1, 12)
    assert captured_telemetry.metric("gen_ai.client.operation.duration").count == 1
    assert [log.body for log in captured_telemetry.logs if log.body.startswith("llm_")] == ["llm_call", "llm_response"]


def test_a_stream_ends_with_its_last_piece(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.span("agent"):
        stream = client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
        assert isinstance(stream, openai.Stream)
        assert clew.trace_id() == captured_telemetry.span("POST").trace_id
        for number, _ in enumerate(stream):
            assert not [span for span in captured_telemetry.spans if span.name == "chat small"], (
                f"ended by piece {number}"
            )
    call = call_of(captured_telemetry)
    assert call.parent_id == captured_telemetry.span("agent").span_id
    assert (call.attributes["gen_ai.usage.output_tokens"], call.attributes["gen_ai.response.id"]) == (5, "chatcmpl-1")
    assert 0 < call.attributes["gen_ai.response.time_to_first_chunk"] <= call.duration_s
    assert captured_telemetry.metric("gen_ai.client.token.usage", gen_ai__token__type="output").count == 1


def test_a_stream_that_is_left_is_ended_once(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with client.chat.completions.create(model="small", messages=MESSAGES, stream=True) as stream:
        next(stream)
    stream.close()
    assert call_of(captured_telemetry).status == "unset"
    assert captured_telemetry.metric("gen_ai.client.operation.duration").count == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_its_code_and_no_text(captured_telemetry: CapturedTelemetry, client: Any, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match=PROMPT):
        client.chat.completions.create(model="wrong", messages=MESSAGES, stream=stream)
    call = call_of(captured_telemetry, "chat wrong")
    assert (call.status, call.status_message) == ("error", "404 model_not_found")
    assert call.attributes["error.type"] == "NotFoundError"
    assert captured_telemetry.metric("gen_ai.client.operation.duration", error__type="NotFoundError").count == 1


def test_a_completion_that_does_not_fit_is_not_repeated(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    class Topics(BaseModel):
        topics: list[str]

    with pytest.raises(ValidationError):
        client.chat.completions.parse(model="small", messages=MESSAGES, response_format=Topics)
    assert call_of(captured_telemetry).attributes["error.type"] == "ValidationError"


def test_embeddings_and_copies_of_a_client(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    client.with_options(timeout=5.0).embeddings.create(model="embed", input=PROMPT)
    call = call_of(captured_telemetry, "embeddings embed")
    assert call.attributes["gen_ai.usage.input_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_responses_with_the_details_of_their_usage(
    captured_telemetry: CapturedTelemetry, client: Any, stream: bool
) -> None:
    answer = client.responses.create(model="small", input=PROMPT, stream=stream)
    if stream:
        assert [event.type for event in answer] == ["response.output_text.delta", "response.completed"]
    attributes = call_of(captured_telemetry).attributes
    wanted = {
        "gen_ai.response.id": "resp-1",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gen_ai.usage.cache_creation.input_tokens": 2,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 4,
    }
    assert {key: attributes.get(key) for key in wanted} == wanted


def test_raw_responses_stay_raw(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(model="small", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == COMPLETION
    assert call_of(captured_telemetry).attributes["gen_ai.usage.output_tokens"] == 5
    captured_telemetry.clear()
    streamed = client.chat.completions.with_raw_response.create(model="small", messages=MESSAGES, stream=True)
    assert len(list(streamed.parse())) == 4
    assert call_of(captured_telemetry).attributes["gen_ai.usage.output_tokens"] == 5
    captured_telemetry.clear()
    with client.chat.completions.with_streaming_response.create(model="small", messages=MESSAGES) as response:
        assert COMPLETION in response.read().decode()
    assert call_of(captured_telemetry).status == "unset"


def test_an_asyncio_client(captured_telemetry: CapturedTelemetry, llm: HttpEcho) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(api_key="planted-key-4711", base_url=f"{llm.url}/v1", max_retries=0) as client:
            clew.instrument(client)
            with clew.span("agent"):
                await client.chat.completions.create(model="small", messages=MESSAGES)
                stream = await client.chat.completions.create(model="streamed", messages=MESSAGES, stream=True)
                assert len([chunk async for chunk in stream]) == 4
                with pytest.raises(openai.NotFoundError):
                    await client.chat.completions.create(model="wrong", messages=MESSAGES)

    asyncio.run(main())
    agent = captured_telemetry.span("agent")
    for name in ("chat small", "chat streamed", "chat wrong"):
        assert call_of(captured_telemetry, name).parent_id == agent.span_id
    assert call_of(captured_telemetry, "chat streamed").attributes["gen_ai.usage.output_tokens"] == 5


def test_clients_that_nobody_asked_for_and_then_all(
    captured_telemetry: CapturedTelemetry, llm: HttpEcho, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: Any = openai.OpenAI(api_key="planted-key-4711", base_url=f"{llm.url}/v1")
    other.chat.completions.create(model="small", messages=MESSAGES)
    assert not captured_telemetry.spans
    # What drop_in.instrument_all() sets, without instrumenting the HTTP clients of the tests to come
    monkeypatch.setattr(drop_in, "_all_clients", True)
    other.chat.completions.create(model="small", messages=MESSAGES)
    client.chat.completions.create(model="again", messages=MESSAGES)
    other.close()
    for name in ("chat small", "chat again"):
        assert call_of(captured_telemetry, name).status == "unset"
