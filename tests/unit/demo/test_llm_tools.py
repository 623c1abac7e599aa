"""The stand-in model with tools, by both interfaces, as the OpenAI client parses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI, RateLimitError
from pydantic import BaseModel

from clew.demo.llm_tools import made_to
from clew.demo.settings import STAND_IN_MODEL
from tests import stand_in

pytestmark = pytest.mark.usefixtures("captured_telemetry")

TEXT = "The thread leads through the maze. A thread is long, most=2, and the maze is deep. 🧵"
PARAMETERS: dict[str, dict[str, Any]] = {
    "word_count": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "find_topics": {
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"type": "string"}}, "most": {"type": "integer"}},
        "required": ["names", "most"],
    },
    "transfer_to_exporter": {"type": "object", "properties": {}},
}
INSTRUCTIONS = "Use word_count and find-topics, then transfer to exporter."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in.served() as served:
        yield served


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: OpenAI, turns: list[Any], **more: Any) -> Any:
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in PARAMETERS.items()
    ]
    return client.chat.completions.create(model=STAND_IN_MODEL, messages=turns, **({"tools": tools} | more))


def respond(client: OpenAI, turns: Any, **more: Any) -> Any:
    tools: Any = [{"type": "function", "name": name, "parameters": schema} for name, schema in PARAMETERS.items()]
    return client.responses.create(model=STAND_IN_MODEL, input=turns, **({"tools": tools} | more))


def asked(instructions: str = INSTRUCTIONS, text: str = TEXT) -> list[Any]:
    return [{"role": "system", "content": instructions}, {"role": "user", "content": text}]


def names(completion: Any) -> list[str]:
    return [call.function.name for call in completion.choices[0].message.tool_calls or ()]


def test_a_chat_goes_through_tools_and_a_transfer_to_an_answer(client: OpenAI) -> None:
    turns = asked()
    first = chat(client, turns)
    assert names(first) == ["word_count", "find_topics"]
    assert first.choices[0].finish_reason == "tool_calls"
    assert first.choices[0].message.content is None
    given = [json.loads(call.function.arguments) for call in first.choices[0].message.tool_calls]
    assert given == [{"text": TEXT}, {"names": ["maze", "thread", "deep", "leads", "long"], "most": 2}]
    turns.append(first.choices[0].message.model_dump(exclude_none=True))
    turns += [
        {"role": "tool", "tool_call_id": call.id, "content": f"said {index}"}
        for index, call in enumerate(first.choices[0].message.tool_calls)
    ]
    second = chat(client, turns)
    assert names(second) == ["transfer_to_exporter"]
    (transfer,) = second.choices[0].message.tool_calls
    assert transfer.function.arguments == "{}"
    turns.append(second.choices[0].message.model_dump(exclude_none=True))
    turns.append({"role": "tool", "tool_call_id": transfer.id, "content": '{"assistant": "exporter"}'})
    third = chat(client, turns)
    assert third.choices[0].finish_reason == "stop"
    assert third.choices[0].message.content.splitlines()[1:] == ["word_count: said 0", "find_topics: said 1"]
    assert third.usage.prompt_tokens > second.usage.prompt_tokens > first.usage.prompt_tokens
    # A new question of the user begins anew
    turns.append({"role": "user", "content": "Now word count only."})
    assert names(chat(client, turns)) == ["word_count"]


def test_a_streamed_chat_says_the_same(client: OpenAI) -> None:
    whole = chat(client, asked())
    with client.chat.completions.stream(
        model=STAND_IN_MODEL,
        messages=asked(),
        tools=[
            {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
            for name, schema in PARAMETERS.items()
        ],
        stream_options={"include_usage": True},
    ) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        (call.function.name, call.function.arguments) for call in whole.choices[0].message.tool_calls
    ]
    assert len({call.id for call in calls}) == len(calls)
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage == whole.usage


def test_what_may_be_called_is_chosen(client: OpenAI) -> None:
    assert names(chat(client, asked(), parallel_tool_calls=False)) == ["word_count"]
    assert names(chat(client, asked(), tool_choice="none")) == []
    assert names(chat(client, asked("Be brief."))) == []
    # Where one has to be called and none is asked for, it is the last one
    assert names(chat(client, asked("Be brief."), tool_choice="required")) == ["transfer_to_exporter"]
    forced: Any = {"type": "function", "function": {"name": "find_topics"}}
    assert names(chat(client, asked(), tool_choice=forced)) == ["find_topics"]
    # What the user names goes before what the instructions name
    assert names(chat(client, asked(text="transfer_to_exporter, please"))) == ["transfer_to_exporter"]
    # A name within a word is none
    assert names(chat(client, asked("Use my_word_counter."))) == []


def test_a_response_goes_through_tools_to_an_answer(client: OpenAI) -> None:
    first = respond(client, TEXT, instructions=INSTRUCTIONS)
    assert [item.type for item in first.output] == ["function_call", "function_call"]
    assert first.status == "completed"
    turns: list[Any] = [{"role": "user", "content": TEXT}]
    for item in first.output:
        turns.append(item.model_dump(exclude_none=True))
        turns.append({"type": "function_call_output", "call_id": item.call_id, "output": f"of {item.name}"})
    second = respond(client, turns, instructions="Use word_count and find_topics.")
    assert second.output_text.splitlines()[1:] == ["word_count: of word_count", "find_topics: of find_topics"]
    assert second.usage.input_tokens + second.usage.output_tokens == second.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens == 0
    (message,) = second.output
    turns += [message.model_dump(exclude_none=True), {"role": "user", "content": "Once more, word_count."}]
    assert [item.name for item in respond(client, turns).output] == ["word_count"]


@pytest.mark.parametrize("instructions", [INSTRUCTIONS, "Be brief: 1 sentence."])
def test_a_streamed_response_says_the_same(client: OpenAI, instructions: str) -> None:
    whole = respond(client, TEXT, instructions=instructions)
    with client.responses.stream(
        model=STAND_IN_MODEL,
        input=TEXT,
        instructions=instructions,
        tools=[
            {"type": "function", "name": name, "parameters": schema, "strict": True}
            for name, schema in PARAMETERS.items()
        ],
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")][:2] == [0, 1]
    assert events[-1].type == "response.completed"
    assert final.output_text == whole.output_text
    said = [(item.name, item.arguments) for item in final.output if item.type == "function_call"]
    assert said == [(item.name, item.arguments) for item in whole.output if item.type == "function_call"]
    assert final.usage == whole.usage


def test_a_response_is_cut_where_asked(client: OpenAI) -> None:
    cut = respond(client, TEXT, max_output_tokens=2)
    assert (cut.output_text, cut.status, cut.incomplete_details.reason) == (
        "The thread",
        "incomplete",
        "max_output_tokens",
    )
    events = list(respond(client, TEXT, max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"


class Author(BaseModel):
    name: str
    age: int | None


class Report(BaseModel):
    author: Author
    topics: list[str]
    is_long: bool


def test_an_answer_by_a_schema(client: OpenAI) -> None:
    text = "name: Ariadne\nage: 17; The maze."
    parsed = client.chat.completions.parse(
        model=STAND_IN_MODEL, messages=[{"role": "user", "content": text}], response_format=Report
    )
    report = parsed.choices[0].message.parsed
    assert report is not None
    assert (report.author, report.is_long) == (Author(name="Ariadne", age=17), False)
    assert "maze" in report.topics
    assert client.responses.parse(model=STAND_IN_MODEL, input=text, text_format=Report).output_parsed == report


def test_schemas_of_any_kind_have_a_value() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert made_to(tree, "x")["next"]["next"]
    assert made_to({"enum": ["low", "high"]}, "as High as can be") == "high"
    assert made_to({"type": "integer", "minimum": 5, "maximum": 9}, "12 of them") == 9
    assert made_to({"type": "number"}, "none") == 1.0
    assert made_to({"type": ["null", "string"], "maxLength": 3}, "thread") == "thr"
    assert made_to({"type": "array", "items": {"type": "integer"}}, "7") == [7]
    assert made_to({"$ref": "#/$defs/missing"}, "x") == "x"
    assert made_to({"const": 4}, "x") == 4


@pytest.mark.parametrize(
    ("turns", "more", "problem"),
    [
        ([{"role": "tool", "tool_call_id": "call_9", "content": "x"}], {}, "no tool call 'call_9'"),
        ([{"role": "tool", "content": "x"}], {}, "tool_call_id"),
        (
            [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                }
            ],
            {},
            "'c' has no result",
        ),
        (asked(), {"tool_choice": {"type": "function", "function": {"name": "other"}}}, "'other'"),
        (asked(), {"tool_choice": "sometimes"}, "tool_choice"),
    ],
)
def test_what_a_provider_refuses_is_refused(
    client: OpenAI, turns: list[Any], more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadRequestError, match=problem):
        chat(client, turns, **more)


def test_nothing_is_kept_between_responses_and_they_may_be_refused_as_chats(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="previous_response_id"):
        respond(client, TEXT, previous_response_id="resp_1")
    with pytest.raises(RateLimitError):
        respond(client, TEXT, extra_headers={"x-stand-in-refuse": "1"})
