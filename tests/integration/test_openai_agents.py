"""OpenAI's Agents SDK against the stand-in model: what its runs leave in spans, metrics, records, and in a terminal."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import agents
import openai
import pytest
from agents import Agent, GuardrailFunctionOutput, ModelResponse, RunConfig, Runner, Usage, function_tool
from agents.models import _openai_shared
from agents.models.interface import Model
from openai import AsyncOpenAI
from openai.types.responses import ResponseOutputMessage

import clew
from clew.demo.settings import STAND_IN_MODEL
from clew.engine.state import state
from clew.history.models import AgentTask, Handoff, LlmCall
from clew.testing import CapturedTelemetry
from tests.integration.agent_runs import (
    CHAT,
    check_commands,
    check_concurrent_runs,
    check_records,
    check_service,
    clew_run,
    rows,
    tree,
)
from tests.integration.job_history import History
from tests.otlp_sink import OtlpSink

TEXT = "The thread leads through the maze. 🧵"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def client(stand_in_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh client for each test, each of which has an event loop of its own. Nothing goes to OpenAI."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    clew.instrument(Agent(name="any"))
    # An app may do this at any time: clew stays
    agents.set_trace_processors([])
    made = AsyncOpenAI(base_url=stand_in_url, api_key="none", max_retries=1)
    agents.set_default_openai_client(made, use_for_tracing=False)


@function_tool
def word_count(text: str) -> int:
    """Count the words of a text."""
    with clew.span("counting"):
        return len(text.split())


@function_tool
async def broken(text: str) -> str:
    """Fail."""
    raise OSError("disk full")


def chain(*, model: Any = STAND_IN_MODEL, **of_first: Any) -> Agent[Any]:
    """Return an agent that hands to a second one, and that one to a third."""
    exporter = Agent[Any](name="exporter", instructions="Use broken, then answer.", tools=[broken], model=model)
    processor = Agent[Any](
        name="processor",
        instructions="Use word_count, then transfer_to_exporter.",
        tools=[word_count],
        handoffs=[exporter],
        model=model,
    )
    return Agent[Any](
        name="Triage", instructions="transfer_to_processor at once.", handoffs=[processor], model=model, **of_first
    )


TRIAGE = "invoke_workflow Agent workflow > invoke_agent Triage"
PROCESSOR = f"{TRIAGE} > execute_tool transfer_to_processor > invoke_agent processor"
EXPORTER = f"{PROCESSOR} > execute_tool transfer_to_exporter > invoke_agent exporter"
WHOLE = Counter(
    [
        "invoke_workflow Agent workflow",
        TRIAGE,
        f"{TRIAGE} > {CHAT}",
        f"{TRIAGE} > execute_tool transfer_to_processor",
        PROCESSOR,
        f"{PROCESSOR} > {CHAT}",
        f"{PROCESSOR} > execute_tool word_count",
        f"{PROCESSOR} > execute_tool word_count > counting",
        f"{PROCESSOR} > {CHAT}",
        f"{PROCESSOR} > execute_tool transfer_to_exporter",
        EXPORTER,
        f"{EXPORTER} > {CHAT}",
        f"{EXPORTER} > execute_tool broken",
        f"{EXPORTER} > {CHAT}",
    ]
)


def check_telemetry(captured: CapturedTelemetry) -> None:
    assert Counter(tree(captured, captured.span("request"))) == WHOLE
    workflow = captured.span("invoke_workflow Agent workflow")
    assert workflow.attributes["gen_ai.conversation.id"] == "conversation-1"
    failed = captured.span("execute_tool broken")
    assert (failed.status, failed.attributes["error.type"]) == ("error", "OSError")
    assert {span.status for span in captured.spans if span.name.startswith("invoke_")} == {"unset"}
    passed = captured.span("execute_tool transfer_to_exporter").attributes
    assert (passed["clew.handoff.source"], passed["gen_ai.transfer.mode"]) == ("processor", "pass_control")
    assert captured.metric("gen_ai.client.operation.duration").count == 5
    assert captured.metric("clew.tool.duration", gen_ai__tool__name="broken", error__type="OSError").count == 1
    assert captured.metric("clew.agent.handoff.wait.duration", clew__handoff__source="Triage").count == 1
    assert "disk full" not in str([span for span in captured.spans if span.name.startswith("invoke_")])
    assert "thread" not in str([span.attributes for span in captured.spans])


@pytest.mark.parametrize("way", ["run", "run_sync", "run_streamed"])
def test_a_run_over_two_handoffs(agent_history: History, captured_telemetry: CapturedTelemetry, way: str) -> None:
    config = RunConfig(group_id="conversation-1")

    async def ask() -> str:
        if way == "run":
            return str((await Runner.run(chain(), TEXT, run_config=config)).final_output)
        streamed = Runner.run_streamed(chain(), TEXT, run_config=config)
        assert len([event async for event in streamed.stream_events()]) > 10
        return str(streamed.final_output)

    # A user of the app is a user of the calls
    with clew.agent_task("app", user_id="ada"), clew.span("request"):
        said = Runner.run_sync(chain(), TEXT, run_config=config).final_output if way == "run_sync" else None
        if said is None:
            said = asyncio.run(ask())
        assert clew.trace_id() == captured_telemetry.span("invoke_agent exporter").trace_id
    assert "word_count: 7" in said
    check_telemetry(captured_telemetry)
    check_records(
        captured_telemetry, agent_history, mode="pass_control", calls={"Triage": 1, "processor": 2, "exporter": 2}
    )
    if way == "run":
        check_commands()


def test_concurrent_runs_keep_to_their_own(agent_history: History, captured_telemetry: CapturedTelemetry) -> None:
    async def one(number: int) -> None:
        with clew.correlation(f"run-{number}"), clew.span("request", number=number):
            if number % 2:
                await Runner.run(chain(), TEXT)
            else:
                streamed = Runner.run_streamed(chain(), TEXT)
                assert [event async for event in streamed.stream_events()]

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(18)))
        # Two of one trace, at once: each has handoffs of its own
        with clew.span("together"), agents.trace("both"):
            await asyncio.gather(*(Runner.run(chain(), TEXT) for _ in range(2)))

    asyncio.run(main())
    spans = captured_telemetry.spans
    requests = [span for span in spans if span.name == "request"]
    assert len({span.trace_id for span in requests}) == 18
    for request in requests:
        assert Counter(tree(captured_telemetry, request)) == WHOLE
        (correlation,) = {span.attributes["clew.correlation.id"] for span in spans if span.trace_id == request.trace_id}
        assert correlation == f"run-{request.attributes['number']}"
    both = Counter(tree(captured_telemetry, captured_telemetry.span("together")))
    assert both == Counter(
        {
            name.replace("Agent workflow", "both"): number
            * (1 if name.startswith("invoke_workflow Agent workflow") and ">" not in name else 2)
            for name, number in WHOLE.items()
        }
    )
    check_concurrent_runs(captured_telemetry, agent_history, runs=20)


async def go_wrong() -> None:
    refused = agents.ModelSettings(extra_headers={"x-stand-in-refuse": "9"})
    with pytest.raises(openai.RateLimitError):
        await Runner.run(Agent(name="refused", model=STAND_IN_MODEL, model_settings=refused), TEXT)
    with pytest.raises(agents.MaxTurnsExceeded):
        await Runner.run(chain(), TEXT, max_turns=1)
    streamed = Runner.run_streamed(chain(), TEXT, max_turns=2)
    with pytest.raises(agents.MaxTurnsExceeded):
        async for _ in streamed.stream_events():
            pass
    started = asyncio.Event()

    @function_tool
    async def sleep() -> None:
        """Sleep."""
        started.set()
        await asyncio.sleep(60)

    sleeper = Agent[Any](name="sleeper", instructions="Use sleep.", tools=[sleep], model=STAND_IN_MODEL)
    running = asyncio.ensure_future(Runner.run(sleeper, TEXT))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    # A stream that its reader leaves
    left = Runner.run_streamed(Agent(name="left", instructions="Use sleep.", tools=[sleep], model=STAND_IN_MODEL), TEXT)
    async for event in left.stream_events():
        if event.type == "raw_response_event":
            left.cancel()

    def refuse(_: Any) -> None:
        raise PermissionError("not this one")

    to_nobody = agents.handoff(Agent[Any](name="nobody"), on_handoff=refuse)
    careless = Agent[Any](
        name="careless", instructions="transfer_to_nobody", handoffs=[to_nobody], model=STAND_IN_MODEL
    )
    with pytest.raises(PermissionError):
        await Runner.run(careless, TEXT)
    # An app that runs an agent while it handles an error of its own
    try:
        raise LookupError("unrelated")
    except LookupError:
        await Runner.run(Agent(name="well", model=STAND_IN_MODEL), TEXT)


def test_what_goes_wrong(agent_history: History, captured_telemetry: CapturedTelemetry) -> None:
    asyncio.run(go_wrong())
    found = [(row["agent"], row["status"], row["error_type"]) for row in rows(agent_history, AgentTask)]
    assert ("refused", "failed", "RateLimitError") in found
    assert ("sleeper", "cancelled", "cancelled") in found
    assert ("well", "completed", None) in found
    assert Counter(row[:2] for row in found if row[2] == "MaxTurnsExceeded") == {("processor", "failed"): 2}
    calls = rows(agent_history, LlmCall)
    assert (calls[0]["status"], calls[0]["error_type"], calls[0]["retries"]) == ("failed", "RateLimitError", 1)
    assert Counter(row["status"] for row in rows(agent_history, Handoff)) == {"failed": 3}
    (refused,) = [row for row in rows(agent_history, Handoff) if row["source"] == "careless"]
    assert (refused["error_type"], refused["error_message"]) == ("PermissionError", "not this one")
    assert ("careless", "failed", "PermissionError") in found
    assert ("left", "cancelled", "cancelled") in found
    # Nothing is left open
    known = {span.span_id for span in captured_telemetry.spans}
    assert all(span.parent_id in known for span in captured_telemetry.spans if span.parent_id)
    assert captured_telemetry.span("execute_tool sleep").attributes["error.type"] == "cancelled"
    workflows = [span for span in captured_telemetry.spans if span.name == "invoke_workflow Agent workflow"]
    assert Counter(span.attributes.get("error.type") for span in workflows) == {
        "RateLimitError": 1,
        "MaxTurnsExceeded": 1,
        "PermissionError": 1,
        "cancelled": 2,
        # The SDK ends a streamed run of too many turns as any other: its agent has failed
        None: 2,
    }


@pytest.mark.parametrize(("way", "status"), [("cancel", "cancelled"), ("leave", "completed"), ("end", "cancelled")])
def test_how_a_run_ends_whose_stream_is_left(
    agent_history: History, captured_telemetry: CapturedTelemetry, way: str, status: str
) -> None:
    counter = Agent[Any](name="counter", instructions="Use word_count.", tools=[word_count], model=STAND_IN_MODEL)

    async def main() -> None:
        streamed = Runner.run_streamed(counter, TEXT)
        async for event in streamed.stream_events():
            if event.type == "raw_response_event":
                break
        if way == "cancel":
            streamed.cancel()
        if way != "end":
            # Who only leaves the stream leaves the run to itself, and the SDK goes on with it
            assert streamed.run_loop_task is not None
            await asyncio.wait([streamed.run_loop_task], timeout=30)

    asyncio.run(main())
    (task,) = rows(agent_history, AgentTask)
    assert (task["agent"], task["status"]) == ("counter", status)
    workflow = captured_telemetry.span("invoke_workflow Agent workflow")
    assert workflow.attributes.get("error.type") == (None if status == "completed" else status)


def test_guardrails_nested_agents_custom_spans_and_chat_completions(captured_telemetry: CapturedTelemetry) -> None:
    @agents.input_guardrail
    async def harmless(_context: Any, _agent: Any, _given: Any) -> GuardrailFunctionOutput:
        with clew.span("looking"):
            return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    @agents.output_guardrail
    async def no_mazes(_context: Any, _agent: Any, said: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=said, tripwire_triggered="maze" in str(said))

    asked = _openai_shared.get_default_openai_client()
    assert asked is not None
    model = agents.OpenAIChatCompletionsModel(STAND_IN_MODEL, asked)
    inner = Agent[Any](name="inner", instructions="Answer.", model=model)
    outer = Agent[Any](
        name="outer",
        instructions="Use ask_inner.",
        tools=[inner.as_tool(tool_name="ask_inner", tool_description="Ask.")],
        model=model,
        input_guardrails=[harmless],
        output_guardrails=[no_mazes],
    )

    async def main() -> None:
        with clew.span("request"), agents.trace("guarded"), agents.custom_span("own", {"secret": TEXT}):
            await Runner.run(outer, TEXT)

    with pytest.raises(agents.OutputGuardrailTripwireTriggered):
        asyncio.run(main())
    of_run = "invoke_workflow guarded > own > invoke_agent outer"
    assert Counter(tree(captured_telemetry, captured_telemetry.span("request"))) == Counter(
        [
            "invoke_workflow guarded",
            "invoke_workflow guarded > own",
            of_run,
            f"{of_run} > guardrail harmless",
            f"{of_run} > guardrail harmless > looking",
            f"{of_run} > guardrail no_mazes",
            f"{of_run} > {CHAT}",
            f"{of_run} > {CHAT}",
            f"{of_run} > execute_tool ask_inner",
            f"{of_run} > execute_tool ask_inner > invoke_agent inner",
            f"{of_run} > execute_tool ask_inner > invoke_agent inner > {CHAT}",
        ]
    )
    tripped = captured_telemetry.metric(
        "clew.agent.guardrail.duration", clew__guardrail__name="no_mazes", clew__guardrail__triggered="true"
    )
    assert tripped.count == 1
    assert [
        log.attributes["clew.guardrail.name"] for log in captured_telemetry.logs if log.body == "guardrail_triggered"
    ] == ["no_mazes"]
    assert captured_telemetry.span("invoke_agent outer").attributes["error.type"] == "OutputGuardrailTripwireTriggered"
    assert "thread" not in str([span.attributes for span in captured_telemetry.spans])


def test_a_run_that_waits_for_an_approval_goes_on_as_another_one(captured_telemetry: CapturedTelemetry) -> None:
    @function_tool(needs_approval=True)
    async def delete(text: str) -> str:
        """Delete it."""
        return "gone"

    careful = Agent[Any](name="careful", instructions="Use delete.", tools=[delete], model=STAND_IN_MODEL)

    async def main() -> None:
        with clew.span("asking"):
            waiting = await Runner.run(careful, TEXT)
        resumed = waiting.to_state()
        for question in waiting.interruptions:
            resumed.approve(question)
        with clew.span("answering"):
            assert "gone" in (await Runner.run(careful, resumed)).final_output

    asyncio.run(main())
    for request in ("asking", "answering"):
        assert tree(captured_telemetry, captured_telemetry.span(request)) == [
            "invoke_workflow Agent workflow",
            "invoke_workflow Agent workflow > invoke_agent careful",
            f"invoke_workflow Agent workflow > invoke_agent careful > {CHAT}",
            "invoke_workflow Agent workflow > invoke_agent careful > execute_tool delete",
        ]


class Parrot(Model):
    """A model that asks nobody, and tells of it as those of other providers do."""

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
        with agents.generation_span(model="parrots/grey-1", input=[{"role": "user", "content": str(input)}]) as span:
            span.span_data.usage = {"input_tokens": 5, "output_tokens": 3}
            span.span_data.output = [{"role": "assistant", "content": "hello"}]
            part = {"type": "output_text", "text": "hello", "annotations": []}
            message = {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": [part]}
            output: Any = [ResponseOutputMessage.model_validate(message)]
            return ModelResponse(output=output, usage=Usage(), response_id=None)

    async def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield


def test_a_model_that_no_client_of_openai_asks_is_recorded_by_what_the_sdk_says(
    agent_history: History, captured_telemetry: CapturedTelemetry
) -> None:
    asyncio.run(Runner.run(Agent(name="parrot", model=Parrot()), TEXT))
    (call,) = rows(agent_history, LlmCall)
    assert (call["provider"], call["model"], call["agent"]) == ("parrots", "grey-1", "parrot")
    assert (call["input_tokens"], call["output_tokens"], call["prompt"]) == (5, 3, None)
    assert captured_telemetry.span("chat grey-1").parent_id == captured_telemetry.span("invoke_agent parrot").span_id


def test_content_where_it_is_asked_for(captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state.settings is not None
    monkeypatch.setattr(state, "settings", state.settings.model_copy(update={"llm_content": True}))
    counter = Agent[Any](name="counter", instructions="Use word_count.", tools=[word_count], model=STAND_IN_MODEL)
    asyncio.run(Runner.run(counter, TEXT))
    called = captured_telemetry.span("execute_tool word_count").attributes
    assert "thread" in called["gen_ai.tool.call.arguments"]
    assert called["gen_ai.tool.call.result"] == "7"


def test_a_client_of_the_app_is_left_alone(
    captured_telemetry: CapturedTelemetry, stand_in_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=stand_in_url, api_key="none") as own:
            await own.responses.create(model=STAND_IN_MODEL, input=TEXT)

    asyncio.run(main())
    assert not [span for span in captured_telemetry.spans if span.name == CHAT]
    # What the SDK would say with each export, it says once
    with caplog.at_level(logging.WARNING, logger="openai.agents"):
        for _ in range(3):
            logging.getLogger("openai.agents").warning("OPENAI_API_KEY is not set, skipping trace export")
    assert len([record for record in caplog.records if record.name == "openai.agents"]) <= 1


SERVICE = """
import sys
import agents
from agents import Agent, Runner
from openai import AsyncOpenAI

agents.set_default_openai_client(AsyncOpenAI(base_url=sys.argv[1], api_key="none"), use_for_tracing=False)
helper = Agent(name="helper", instructions="Answer.", model=sys.argv[2])
triage = Agent(name="triage", instructions="transfer_to_helper.", handoffs=[helper], model=sys.argv[2])
async def answer():
    return (await Runner.run(triage, "The thread leads on.")).final_output
"""

OWN_PACKAGE = """
import agents
import clew
assert agents.Agent.__module__ == "agents"
thing = agents.Agent()
print(agents.Agent().name)
"""


def test_no_code_is_needed(otlp_sink: OtlpSink, stand_in_url: str, tmp_path: Path) -> None:
    done = check_service(SERVICE, otlp_sink, stand_in_url, tmp_path, calls=2)
    assert done.stderr.count("skipping trace export") <= 1
    switched_off = clew_run(
        tmp_path / "service.py",
        *(stand_in_url, STAND_IN_MODEL),
        OPENAI_AGENTS_DISABLE_TRACING="1",
        CLEW_HISTORY="false",
    )
    assert switched_off.returncode == 0, switched_off.stderr
    assert switched_off.stderr.count("OPENAI_AGENTS_DISABLE_TRACING is set") == 1


def test_an_apps_own_package_of_that_name_is_none_of_the_sdk(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("class Agent:\n    name = 'mine'\n")
    (tmp_path / "app.py").write_text(OWN_PACKAGE)
    done = clew_run(tmp_path / "app.py", OTEL_SDK_DISABLED="true", CLEW_HISTORY="false")
    assert (done.returncode, done.stdout.strip()) == (0, "mine"), done.stderr
    assert "openai" not in done.stderr
