"""Pydantic AI against the stand-in model: what its runs leave in spans, metrics, records, and in a terminal."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent, ApprovalRequired, DeferredToolRequests, InstrumentationSettings, ModelRetry
from pydantic_ai.capabilities import Instrumentation, ReinjectSystemPrompt
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage, UsageLimits

import clew
from clew.demo.settings import STAND_IN_MODEL
from clew.engine.state import state
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.instrumentation import pydantic_ai as pydantic_ai_runs
from clew.testing import CapturedTelemetry
from tests.integration.agent_runs import (
    CHAT,
    check_commands,
    check_concurrent_runs,
    check_records,
    check_service,
    rows,
    tree,
)
from tests.integration.job_history import History
from tests.otlp_sink import OtlpSink

TEXT = "The thread leads through the maze. 🧵"


@pytest.fixture
def model(stand_in_url: str, captured_telemetry: CapturedTelemetry) -> OpenAIChatModel:
    """A model with a fresh client: each event loop has its own."""
    clew.instrument(Agent(name="any"))
    made: OpenAIChatModel = made_model(stand_in_url)
    return made


def made_model(url: str, kind: Any = OpenAIChatModel) -> Any:
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=1)
    return kind(STAND_IN_MODEL, provider=OpenAIProvider(openai_client=client))


def chain(model: Any) -> Agent[None, str]:
    """Return an agent that asks a second one within a tool, and that one a third."""
    exporter = Agent(model, name="exporter", instructions="Use broken, then answer.")
    processor = Agent(model, name="processor", instructions="Use word_count and ask_exporter.")
    triage = Agent(model, name="Triage", instructions="Use ask_processor.")

    @triage.tool_plain
    async def ask_processor(text: str) -> str:
        return (await processor.run(text)).output

    @processor.tool_plain
    def word_count(text: str) -> int:
        with clew.span("counting"):
            return len(text.split())

    @processor.tool_plain
    async def ask_exporter(text: str) -> str:
        with clew.span("asking"):
            return (await exporter.run(text)).output

    @exporter.tool_plain(retries=1)
    async def broken(text: str) -> str:
        raise ModelRetry(f"not {text}")

    @exporter.output_validator
    def fine(said: str) -> str:
        return said

    return triage


TRIAGE = "invoke_agent Triage"
PROCESSOR = f"{TRIAGE} > execute_tool ask_processor > execute_tool transfer_to_processor > invoke_agent processor"
EXPORTER = (
    f"{PROCESSOR} > execute_tool ask_exporter > asking > execute_tool transfer_to_exporter > invoke_agent exporter"
)
WHOLE = Counter(
    [
        *(TRIAGE, f"{TRIAGE} > {CHAT}", f"{TRIAGE} > {CHAT}", f"{TRIAGE} > execute_tool ask_processor"),
        f"{TRIAGE} > execute_tool ask_processor > execute_tool transfer_to_processor",
        *(PROCESSOR, f"{PROCESSOR} > {CHAT}", f"{PROCESSOR} > {CHAT}", f"{PROCESSOR} > execute_tool ask_exporter"),
        *(f"{PROCESSOR} > execute_tool word_count", f"{PROCESSOR} > execute_tool word_count > counting"),
        f"{PROCESSOR} > execute_tool ask_exporter > asking",
        f"{PROCESSOR} > execute_tool ask_exporter > asking > execute_tool transfer_to_exporter",
        *(EXPORTER, f"{EXPORTER} > {CHAT}", f"{EXPORTER} > {CHAT}", f"{EXPORTER} > execute_tool broken"),
    ]
)


def check_telemetry(captured: CapturedTelemetry) -> None:
    assert Counter(tree(captured, captured.span("request"))) == WHOLE
    failed = captured.span("execute_tool broken")
    assert (failed.status, failed.attributes["error.type"]) == ("error", "ModelRetry")
    assert {span.status for span in captured.spans if span.name.startswith("invoke_")} == {"unset"}
    passed = captured.span("execute_tool transfer_to_exporter").attributes
    assert (passed["clew.handoff.source"], passed["gen_ai.transfer.mode"]) == ("processor", "return_to_caller")
    assert captured.span(TRIAGE).attributes["gen_ai.conversation.id"] == "conversation-1"
    assert captured.metric("gen_ai.client.operation.duration").count == 6
    assert captured.metric("clew.agent.task.duration", gen_ai__agent__name="exporter").count == 1
    assert captured.metric("clew.tool.duration", gen_ai__tool__name="broken", error__type="ModelRetry").count == 1
    assert captured.metric("clew.agent.handoff.wait.duration", clew__handoff__source="Triage").count == 1
    assert "thread" not in str([(span.attributes, span.events) for span in captured.spans])


async def ask(agent: Agent[None, str], way: str) -> str:
    if way == "run":
        return (await agent.run(TEXT, conversation_id="conversation-1")).output
    if way == "iter":
        async with agent.iter(TEXT, conversation_id="conversation-1") as run:
            async for _ in run:
                pass
        assert run.result is not None
        return run.result.output
    if way == "run_stream_events":
        async with agent.run_stream_events(TEXT, conversation_id="conversation-1") as events:
            return [event async for event in events][-1].result.output  # type: ignore[union-attr]
    async with agent.run_stream(TEXT, conversation_id="conversation-1") as streamed:
        return [text async for text in streamed.stream_text(debounce_by=None)][-1]


@pytest.mark.parametrize("way", ["run", "run_sync", "iter", "run_stream", "run_stream_events"])
def test_a_run_that_delegates_twice(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: OpenAIChatModel, way: str
) -> None:
    agent = chain(model)
    # A user of the app is a user of the calls
    with clew.agent_task("app", user_id="ada"), clew.span("request"):
        if way == "run_sync":
            said = agent.run_sync(TEXT, conversation_id="conversation-1").output
        else:
            said = asyncio.run(ask(agent, way))
        assert clew.trace_id() == captured_telemetry.span("invoke_agent exporter").trace_id
    assert "word_count: 7" in said
    check_telemetry(captured_telemetry)
    check_records(
        captured_telemetry, agent_history, mode="return_to_caller", calls={"Triage": 2, "processor": 2, "exporter": 2}
    )
    if "stream" in way:
        first = captured_telemetry.metric("gen_ai.client.operation.time_to_first_chunk")
        # Those who are asked within a tool do not stream
        assert first.count == 2
    if way == "run":
        check_commands()


def test_concurrent_runs_keep_to_their_own(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: OpenAIChatModel
) -> None:
    agent = chain(model)

    async def one(number: int) -> None:
        with clew.correlation(f"run-{number}"), clew.span("request", number=number):
            await ask(agent, ("run", "iter", "run_stream", "run_stream_events")[number % 4])

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))

    asyncio.run(main())
    spans = captured_telemetry.spans
    requests = [span for span in spans if span.name == "request"]
    assert len({span.trace_id for span in requests}) == 20
    for request in requests:
        assert Counter(tree(captured_telemetry, request)) == WHOLE
        (correlation,) = {span.attributes["clew.correlation.id"] for span in spans if span.trace_id == request.trace_id}
        assert correlation == f"run-{request.attributes['number']}"
    check_concurrent_runs(captured_telemetry, agent_history, runs=20)
    assert len(rows(agent_history, LlmCall)) == 120


async def go_wrong(url: str) -> None:
    model = made_model(url)
    refused = Agent(model, name="refused", model_settings={"extra_headers": {"x-stand-in-refuse": "9"}})
    with pytest.raises(ModelHTTPError):
        await refused.run(TEXT)
    limited = chain(model)
    with pytest.raises(UsageLimitExceeded):
        await limited.run(TEXT, usage_limits=UsageLimits(request_limit=1))

    careless = Agent(model, name="careless", instructions="Use lose.")
    lost = Agent(model, name="lost", instructions="Use lose.")

    @lost.tool_plain(name="lose")
    async def lose_it() -> None:
        raise PermissionError("not this one")

    @careless.tool_plain
    async def lose() -> str:
        return (await lost.run("Use lose.")).output

    with pytest.raises(PermissionError):
        await careless.run(TEXT)

    started = asyncio.Event()
    sleeper = Agent(model, name="sleeper", instructions="Use sleep.")

    @sleeper.tool_plain
    async def sleep() -> None:
        started.set()
        await asyncio.sleep(60)

    running = asyncio.ensure_future(sleeper.run(TEXT))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # A run that is left by who goes through it
    left = Agent(model, name="left")
    async with left.iter(TEXT) as run:
        async for _ in run:
            break
    # A stream that its reader leaves
    unread = Agent(model, name="unread")
    async with unread.run_stream(TEXT) as streamed:
        async for _ in streamed.stream_text():
            break
    async with Agent(model, name="unread").run_stream_events(TEXT) as events:
        async for _ in events:
            break
    # An app that runs an agent while it handles an error of its own
    try:
        raise LookupError("unrelated")
    except LookupError:
        await Agent(model, name="well").run(TEXT)


def test_what_goes_wrong(
    agent_history: History, captured_telemetry: CapturedTelemetry, model: Any, stand_in_url: str
) -> None:
    asyncio.run(go_wrong(stand_in_url))
    found = Counter((row["agent"], row["status"], row["error_type"]) for row in rows(agent_history, AgentTask))
    assert found["refused", "failed", "ModelRateLimitError"] == 1
    assert found["Triage", "failed", "UsageLimitExceeded"] == 1
    assert found["lost", "failed", "PermissionError"] == found["careless", "failed", "PermissionError"] == 1
    assert found["sleeper", "cancelled", "cancelled"] == found["left", "cancelled", "cancelled"] == 1
    assert found["unread", "cancelled", "cancelled"] == 2
    assert found["well", "completed", None] == 1
    calls = rows(agent_history, LlmCall)
    assert (calls[0]["status"], calls[0]["error_type"], calls[0]["retries"]) == ("failed", "RateLimitError", 1)
    (handed,) = [row for row in rows(agent_history, Handoff) if row["source"] == "careless"]
    assert (handed["status"], handed["error_type"], handed["error_message"]) == (
        "failed",
        "PermissionError",
        "not this one",
    )
    # Nothing is left open
    known = {span.span_id for span in captured_telemetry.spans}
    assert all(span.parent_id in known for span in captured_telemetry.spans if span.parent_id)
    assert captured_telemetry.span("execute_tool sleep").attributes["error.type"] == "cancelled"
    assert "thread" not in str([(span.attributes, span.events) for span in captured_telemetry.spans])
    assert "thread" not in str(rows(agent_history, AgentTask))


def test_output_functions_approvals_threads_and_handoffs_of_the_app(
    agent_history: History, captured_telemetry: CapturedTelemetry, stand_in_url: str
) -> None:
    async def main() -> None:
        model = made_model(stand_in_url, OpenAIResponsesModel)
        inner = Agent(model, name="inner")

        async def ask_inner(text: str) -> str:
            return (await inner.run(text)).output

        def slow(text: str) -> str:
            with clew.span("counting"):
                return text

        async def hand_over(text: str) -> str:
            with clew.handoff(to="inner", task="own-1", reason="by hand"):
                return (await inner.run(text)).output

        async def delete(text: str) -> str:
            raise ApprovalRequired

        router = Agent(model, name="router", output_type=ask_inner)
        threads = Agent(model, name="threads", tools=[slow], instructions="Use slow.")
        by_hand = Agent(model, name="by hand", tools=[hand_over], instructions="Use hand_over.")
        careful = Agent(
            model, name="careful", tools=[delete], output_type=[str, DeferredToolRequests], instructions="Use delete."
        )
        with clew.span("request"):
            await router.run(TEXT)
            await threads.run(TEXT)
            await by_hand.run(TEXT)
            assert isinstance((await careful.run(TEXT)).output, DeferredToolRequests)

    clew.instrument(Agent(name="any"))
    asyncio.run(main())
    over = "invoke_agent router > execute_tool final_result"
    hand = "invoke_agent by hand > execute_tool hand_over"
    assert Counter(tree(captured_telemetry, captured_telemetry.span("request"))) == Counter(
        [
            *("invoke_agent router", f"invoke_agent router > {CHAT}", over, f"{over} > execute_tool transfer_to_inner"),
            f"{over} > execute_tool transfer_to_inner > invoke_agent inner",
            f"{over} > execute_tool transfer_to_inner > invoke_agent inner > {CHAT}",
            *("invoke_agent threads", *[f"invoke_agent threads > {CHAT}"] * 2),
            *("invoke_agent threads > execute_tool slow", "invoke_agent threads > execute_tool slow > counting"),
            *("invoke_agent by hand", *[f"invoke_agent by hand > {CHAT}"] * 2, hand),
            f"{hand} > execute_tool transfer_to_inner",
            f"{hand} > execute_tool transfer_to_inner > invoke_agent inner",
            f"{hand} > execute_tool transfer_to_inner > invoke_agent inner > {CHAT}",
            *("invoke_agent careful", f"invoke_agent careful > {CHAT}", "invoke_agent careful > execute_tool delete"),
        ]
    )
    assert {span.status for span in captured_telemetry.spans} == {"unset"}
    assert [row["task_id"] for row in rows(agent_history, Handoff)][1:] == ["own-1"]
    assert [row["task_id"] for row in rows(agent_history, AgentTask) if row["agent"] == "inner"][1:] == ["own-1"]


def parrot(_messages: Any, _info: AgentInfo) -> ModelResponse:
    return ModelResponse(
        parts=[TextPart("hello")],
        usage=RequestUsage(input_tokens=5, output_tokens=3, cache_read_tokens=2),
        provider_name="parrots",
        provider_response_id="r-1",
        finish_reason="stop",
    )


def dead(_messages: Any, _info: AgentInfo) -> ModelResponse:
    raise OSError("no more")


async def parrot_stream(_messages: Any, _info: AgentInfo) -> AsyncIterator[str]:
    yield "hel"
    yield "lo"


def test_models_that_no_client_of_openai_asks_are_recorded_by_what_the_library_says(
    agent_history: History, captured_telemetry: CapturedTelemetry, stand_in_url: str
) -> None:
    async def main() -> None:
        await Agent(FunctionModel(parrot), name="parrot").run(TEXT)
        async with Agent(FunctionModel(stream_function=parrot_stream), name="streaming").run_stream(TEXT) as streamed:
            assert await streamed.get_output() == "hello"
        with pytest.raises(OSError, match="no more"):
            await Agent(FunctionModel(dead), name="dead").run(TEXT)
        # The one that answers in the place of another
        settings: Any = {"extra_headers": {"x-stand-in-refuse": "9"}}
        both = FallbackModel(made_model(stand_in_url), FunctionModel(parrot))
        assert (await Agent(both, name="both", model_settings=settings).run(TEXT)).output == "hello"
        two = FallbackModel(FunctionModel(dead), made_model(stand_in_url), fallback_on=(OSError,))
        await Agent(two, name="two").run(TEXT)

    clew.instrument(Agent(name="any"))
    asyncio.run(main())
    calls = rows(agent_history, LlmCall)
    assert [(row["agent"], row["status"], row["model"]) for row in calls] == [
        ("parrot", "completed", "function:parrot:"),
        ("streaming", "completed", "function::parrot_stream"),
        ("dead", "failed", "function:dead:"),
        ("both", "failed", STAND_IN_MODEL),
        ("both", "completed", "function:parrot:"),
        ("two", "completed", STAND_IN_MODEL),
    ]
    call = calls[0]
    assert (call["provider"], call["input_tokens"], call["output_tokens"], call["prompt"]) == ("parrots", 5, 3, None)
    spans = {span.span_id: span for span in captured_telemetry.spans}
    assert spans[call["span_id"]].parent_id == captured_telemetry.span("invoke_agent parrot").span_id


def test_content_where_it_is_asked_for(
    agent_history: History, captured_telemetry: CapturedTelemetry, stand_in_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))

    def word_count(text: str) -> int:
        return len(text.split())

    async def main() -> None:
        await Agent(made_model(stand_in_url), tools=[word_count], name="counter", instructions="Use word_count.").run(
            TEXT
        )
        await Agent(FunctionModel(parrot), name="parrot", system_prompt="Be brief.").run(TEXT)

    clew.instrument(Agent(name="any"))
    asyncio.run(main())
    called = captured_telemetry.span("execute_tool word_count").attributes
    assert "thread" in called["gen_ai.tool.call.arguments"]
    assert called["gen_ai.tool.call.result"] == "7"
    kept = rows(agent_history, LlmCall)[-1]
    assert [(said["role"], said["parts"][0]["content"]) for said in kept["prompt"]] == [
        ("system", "Be brief."),
        ("user", TEXT),
    ]
    assert "hello" in str(kept["completion"])


def test_what_the_app_has_of_its_own_is_left_alone(captured_telemetry: CapturedTelemetry, stand_in_url: str) -> None:
    own = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(own))

    async def main() -> None:
        async with AsyncOpenAI(base_url=stand_in_url, api_key="none") as client:
            await client.responses.create(model=STAND_IN_MODEL, input=TEXT)
        observed = Agent(
            made_model(stand_in_url),
            name="observed",
            capabilities=[Instrumentation(settings=InstrumentationSettings(tracer_provider=provider))],
        )
        with clew.span("request"):
            await observed.run(TEXT, capabilities=[ReinjectSystemPrompt()])

    clew.instrument(Agent(name="any"))
    asyncio.run(main())
    assert [span.name for span in own.get_finished_spans()] == [CHAT, "invoke_agent observed"]
    assert [span.name for span in captured_telemetry.spans if span.name.startswith(("chat", "invoke"))] == [
        CHAT,
        "invoke_agent observed",
    ]
    with pytest.raises(TypeError, match="no agent"):
        pydantic_ai_runs.instrument(object())


SERVICE = """
import sys
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=sys.argv[1], api_key="none"))
model = OpenAIChatModel(sys.argv[2], provider=provider)
helper = Agent(model, name="helper")
triage = Agent(model, name="triage", instructions="Use ask_helper.")
@triage.tool_plain
async def ask_helper(text: str) -> str:
    return (await helper.run(text)).output

async def answer():
    return (await triage.run("The thread leads on.")).output
"""


def test_no_code_is_needed(otlp_sink: OtlpSink, stand_in_url: str, tmp_path: Path) -> None:
    check_service(SERVICE, otlp_sink, stand_in_url, tmp_path, calls=3)
