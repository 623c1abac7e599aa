"""LLM calls as telemetry: tokens, cost, first token, retries, cache hits, content; and what can't be made of hostile values."""

from __future__ import annotations

import ast
import asyncio
import json
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

import clew
from clew.catalog import semconv
from clew.engine.state import state
from clew.llm import content
from clew.llm.prices import PriceList, Rates, Usage, price_list
from clew.testing import CapturedTelemetry

# Of the draft for handoffs, which no release has
DRAFT = {"GEN_AI_TRANSFER_TARGET_NAME", "GEN_AI_TRANSFER_MODE"}


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is there, and what a test says of prices is forgotten after it."""
    monkeypatch.setattr(price_list, "_own", {})
    price_list.load()
    assert price_list.flush(60)


@pytest.fixture
def with_content(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))


def test_the_names_are_those_of_the_conventions() -> None:
    released = vars(gen_ai_attributes) | vars(gen_ai_metrics)
    ours = {name: value for name, value in vars(semconv).items() if name.startswith("GEN_AI_")}
    assert {name: released.get(name) for name in ours.keys() - DRAFT} == {
        name: ours[name] for name in ours.keys() - DRAFT
    }


def test_the_names_are_in_one_module() -> None:
    """The demo is an app, and writes them where it looks for them; docstrings and the redactor's pattern name them."""
    root = Path(clew.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if file.parent.name == "demo" or file.name == "semconv.py":
            continue
        texts = {
            node.value
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not {text for text in texts if re.fullmatch(r"gen_ai\.[a-z_.]+", text)}, file


@pytest.mark.usefixtures("prices")
def test_a_call_has_its_tokens_and_what_they_cost(captured_telemetry: CapturedTelemetry) -> None:
    with clew.llm_call("openai", "gpt-4o", user_id="ada") as call:
        call.tokens(input=100, output=1)
        call.tokens(input=1_000_000, output=100_000, cache_read=500_000, reasoning=40_000)
        call.response(model="gpt-4o-2024-08-06", id="r-1", finish_reasons=["stop"])
    span = captured_telemetry.span("chat gpt-4o")
    wanted = {
        "user.id": "ada",
        "gen_ai.usage.input_tokens": 1_000_000,
        "gen_ai.usage.output_tokens": 100_000,
        "gen_ai.usage.cache_read.input_tokens": 500_000,
        "gen_ai.usage.reasoning.output_tokens": 40_000,
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.id": "r-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "clew.llm.cost_usd": 2.875,
    }
    assert {key: span.attributes.get(key) for key in wanted} == wanted
    # Once, however often it was said
    tokens = captured_telemetry.metric("gen_ai.client.token.usage", gen_ai__token__type="input")
    assert (tokens.count, tokens.sum) == (1, 1_000_000)
    types = {point.labels["gen_ai.token.type"]: point.sum for point in clew.summary("gen_ai.client.token.usage")}
    assert types == {"input": 1_000_000, "output": 100_000}
    assert captured_telemetry.metric("clew.llm.cost", gen_ai__provider__name="openai").value == 2.875


@pytest.mark.usefixtures("prices")
def test_what_the_app_says_of_prices_and_of_a_cost_counts_most(captured_telemetry: CapturedTelemetry) -> None:
    clew.llm_prices({"Our-Model": {"input": 1.0, "output": 3.0}, "openai/gpt-4o": {"input": 0.0, "output": 20.0}})
    for provider, model, cost in (("ours", "our-model", 4.0), ("openai", "gpt-4o", 20.0), ("azure", "gpt-4o", 12.5)):
        with clew.llm_call(provider, model) as call:
            call.tokens(input=1_000_000, output=1_000_000)
        span = captured_telemetry.span(f"chat {model}")
        assert span.attributes["clew.llm.cost_usd"] == cost
        captured_telemetry.clear()
    with clew.llm_call("openai", "gpt-4o") as call:
        call.tokens(input=10)
        call.cost(0.25)
    assert captured_telemetry.span("chat gpt-4o").attributes["clew.llm.cost_usd"] == 0.25


@pytest.mark.usefixtures("prices")
def test_a_model_that_nobody_knows_has_no_cost(captured_telemetry: CapturedTelemetry) -> None:
    for provider, model in (("nobody", "gpt-4o"), ("openai", "unheard-of")):
        with clew.llm_call(provider, model) as call:
            call.tokens(input=10, output=10)
        assert "clew.llm.cost_usd" not in captured_telemetry.span(f"chat {model}").attributes
        captured_telemetry.clear()
    assert not clew.summary("clew.llm.cost") or all(point.value == 0 for point in clew.summary("clew.llm.cost"))


@pytest.mark.parametrize(
    "prices",
    [
        {"m": {"input": -1}},
        {"m": {"input": math.nan}},
        {"m": {"tokens": 1}},
        {"m": {"input": "dear"}},
        {"m": None},
        None,
        7,
    ],
)
def test_prices_that_are_none_are_reported(captured_telemetry: CapturedTelemetry, prices: Any) -> None:
    with pytest.raises(clew.ClewError, match="llm_prices"):
        clew.llm_prices(prices)


@given(
    rates=st.builds(Rates, input=st.floats(0, 100), output=st.floats(0, 100), cache_read=st.none() | st.floats(0, 100)),
    usage=st.builds(Usage, input=st.integers(0, 10**7), output=st.integers(0, 10**7), cache_read=st.integers(0, 10**7)),
)
def test_a_cost_is_a_finite_sum_that_no_token_lessens(rates: Rates, usage: Usage) -> None:
    cost = rates(usage)
    assert 0 <= cost < math.inf
    more = Usage(input=usage.input, output=usage.output + 1, cache_read=usage.cache_read)
    assert rates(more) >= cost


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-mini"),
        ("anthropic", "claude-3-5-sonnet-latest"),
        ("gcp.gemini", "gemini-2.5-pro"),
        ("x_ai", "grok-3"),
        ("openai", "gpt-4o"),
        ("openai", "gpt-5"),
        ("openai", "text-embedding-3-small"),
        ("perplexity", "sonar"),
    ],
)
@pytest.mark.usefixtures("prices")
def test_prices_are_those_of_the_table(provider: str, model: str) -> None:
    import genai_prices

    ids = {"x_ai": "x-ai"}
    for counted in ({"input": 1_000, "output": 10}, {"input": 300_000, "output": 5, "cache_read": 200_000}):
        asked = genai_prices.Usage(**{f"{kind}_tokens": number for kind, number in counted.items()})
        told = genai_prices.calc_price(asked, model, provider_id=ids.get(provider, provider)).total_price
        assert price_list.cost_usd(provider, (model,), Usage(**counted)) == pytest.approx(float(told))
    assert not [thread for thread in sys.modules["threading"].enumerate() if "update" in thread.name.lower()]


def test_calls_that_end_before_prices_are_known_get_theirs() -> None:
    found: list[float | None] = []
    prices = PriceList()
    assert prices.cost_usd("openai", ("gpt-4o",), Usage(input=1_000_000)) is None
    prices.when_loaded(lambda: found.append(prices.cost_usd("openai", ("gpt-4o",), Usage(input=1_000_000))))
    assert prices.flush(60)
    assert found == [2.5]


def test_without_the_table_calls_go_on_and_say_so_once() -> None:
    code = """
import sys
sys.modules["genai_prices"] = None
import logging
logging.basicConfig(level="INFO")
import clew
for _ in range(2):
    with clew.llm_call("openai", "gpt-4o") as call:
        call.tokens(input=10)
clew.flush()
clew.llm_prices({"gpt-4o": {"input": 1_000_000}})
with clew.llm_call("openai", "gpt-4o") as call:
    call.tokens(input=10)
"""
    environment = {"CLEW_HISTORY": "false", "OTEL_SDK_DISABLED": "true", "CLEW_LOG_FORMAT": "json"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert '"clew.llm.cost_usd": 10.0' in done.stderr.splitlines()[-1]
    assert done.stderr.count("pip install 'clew[llm]'") == 1


def test_a_stream_tells_when_its_first_piece_came(captured_telemetry: CapturedTelemetry) -> None:
    class Pieces:
        closed = False

        def __iter__(self) -> Iterator[str]:
            yield from ("one", "two", "three")

        def close(self) -> None:
            self.closed = True

    async def pieces() -> AsyncIterator[str]:
        for piece in ("one", "two"):
            await asyncio.sleep(0)
            yield piece

    source = Pieces()
    with clew.llm_call("openai", "sync") as call:
        watched: Any = call.stream(source)
        assert list(watched) == ["one", "two", "three"]
        watched.close()
        call.tokens(output=30)

    async def main() -> None:
        async with clew.llm_call("openai", "async") as call:
            assert [piece async for piece in call.stream(pieces())] == ["one", "two"]
            call.tokens(output=30)

    asyncio.run(main())
    assert source.closed
    for name in ("sync", "async"):
        span = captured_telemetry.span(f"chat {name}")
        assert 0 < span.attributes["gen_ai.response.time_to_first_chunk"] <= span.duration_s
        assert span.attributes["clew.llm.tokens_per_s"] > 0
        first = captured_telemetry.metric("gen_ai.client.operation.time_to_first_chunk", gen_ai__request__model=name)
        assert first.count == 1


def test_an_error_within_a_stream_goes_on_its_way(captured_telemetry: CapturedTelemetry) -> None:
    def pieces() -> Iterator[str]:
        yield "one"
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError), clew.llm_call("openai", "small") as call:
        list(call.stream(pieces()))
    assert captured_telemetry.span("chat small").attributes["error.type"] == "ConnectionResetError"


def test_retries_and_cache_hits_are_counted(captured_telemetry: CapturedTelemetry) -> None:
    with clew.llm_call("openai", "again") as call:
        call.retry(TimeoutError())
        call.retry("rate_limit")
    span = captured_telemetry.span("chat again")
    assert span.attributes["clew.llm.retries"] == 2
    assert [event.attributes["error.type"] for event in span.events] == ["TimeoutError", "rate_limit"]
    assert captured_telemetry.metric("clew.llm.retries", error__type="rate_limit").value == 1

    with clew.llm_call("openai", "cached") as call:
        call.tokens(input=100, output=10)
        call.cached()
    span = captured_telemetry.span("chat cached")
    assert (span.attributes["clew.llm.cached"], span.attributes["clew.llm.cost_usd"]) == (True, 0.0)
    assert captured_telemetry.metric("clew.llm.cache.hits", gen_ai__request__model="cached").value == 1
    assert not [
        point
        for point in clew.summary("gen_ai.client.token.usage")
        if point.labels["gen_ai.request.model"] == "cached" and point.count
    ]


def test_a_call_knows_its_agent(captured_telemetry: CapturedTelemetry) -> None:
    with clew.agent_task("topicizer"), clew.llm_call("openai", "small"):
        pass
    assert captured_telemetry.span("chat small").attributes["gen_ai.agent.name"] == "topicizer"


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("tokens", {"input": -1}),
        ("tokens", {"output": "many"}),
        ("tokens", {"input": 2**40}),
        ("tokens", {"input": math.inf}),
        ("cost", {"usd": -1}),
        ("cost", {"usd": math.nan}),
        ("cost", {"usd": "dear"}),
        ("stream", {"chunks": 7}),
        ("response", {"finish_reasons": 7}),
    ],
)
def test_what_is_none_is_reported_and_the_call_goes_on(
    captured_telemetry: CapturedTelemetry, method: str, arguments: Any
) -> None:
    with clew.llm_call("openai", "small") as call, pytest.raises(clew.ClewError, match=f"llm_call.{method}"):
        getattr(call, method)(**arguments)
    assert captured_telemetry.span("chat small").status == "unset"


def test_content_is_kept_when_nobody_asks_for_it_nowhere(captured_telemetry: CapturedTelemetry) -> None:
    with clew.llm_call("openai", "small") as call:
        call.prompt("planted-4711")
        call.completion("planted-4711")
    assert "planted-4711" not in repr(captured_telemetry.spans) + repr(captured_telemetry.logs)


@pytest.mark.usefixtures("with_content")
def test_content_that_is_asked_for_is_on_the_span_alone_redacted_and_cut(captured_telemetry: CapturedTelemetry) -> None:
    secret = "Bearer planted0123456789abcdef"
    with clew.llm_call("openai", "small") as call:
        call.prompt(
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"Authorization: {secret}"}]
        )
        call.completion("a thread")
    with clew.llm_call("openai", "large") as call:
        call.prompt('"' * 100_000)
    attributes = captured_telemetry.span("chat small").attributes
    said = json.loads(attributes["gen_ai.input.messages"])
    assert [message["role"] for message in said] == ["system", "user"]
    assert said[0]["parts"] == [{"type": "text", "content": "be brief"}]
    assert json.loads(attributes["gen_ai.output.messages"])[0]["parts"][0]["content"] == "a thread"
    assert secret not in repr(captured_telemetry.spans)
    assert "a thread" not in repr(captured_telemetry.logs)
    whole = json.loads(captured_telemetry.span("chat large").attributes["gen_ai.input.messages"])
    assert whole["clew.truncated"] is True


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner)
    ),
    max_leaves=12,
)


@given(given_messages=_JSON)
def test_anything_given_as_a_prompt_is_shown_as_json(given_messages: Any) -> None:
    shown = content.messages(given_messages, role="user")
    json.loads(content.written(shown))
    json.dumps(content.kept(shown))
