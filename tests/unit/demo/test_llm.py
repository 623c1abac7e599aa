"""The stand-in model over HTTP, asked by the OpenAI client and by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, RateLimitError

from clew.demo.language_model import LanguageModel
from clew.demo.llm import MAX_REQUEST_BYTES
from clew.demo.settings import STAND_IN_MODEL, DemoError, DemoSettings
from clew.demo.topics import Topic
from tests import stand_in

pytestmark = pytest.mark.usefixtures("captured_telemetry")

TEXT = "The thread leads through the maze. It rained. A thread is long, and the maze is deep."
UNICODE = "Der Knäuel führt durchs Labyrinth. 一本の糸が迷宮を通る。 🧵 Ένα νήμα."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stand_in.served() as served:
        yield served


@pytest.fixture
def client(url) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, text: Any, instructions: str = "Summarise in 1 sentence.", **more: Any) -> Any:
    messages: Any = [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
    return client.chat.completions.create(model=STAND_IN_MODEL, messages=messages, **more)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [STAND_IN_MODEL]


def test_a_summary_is_made_of_the_texts_own_sentences_and_tokens_are_counted(client):
    answer = ask(client, TEXT)
    assert answer.choices[0].message.content == "The thread leads through the maze."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (26, 7, 33)


def test_topics_are_json(client):
    answer = ask(client, TEXT, "At most 2 topics.", response_format={"type": "json_object"})
    topics = json.loads(answer.choices[0].message.content)["topics"]
    assert topics == [{"name": "maze", "weight": 1.0}, {"name": "thread", "weight": 1.0}]


def test_a_stream_says_the_same_and_ends_with_the_usage(client):
    whole = ask(client, UNICODE, "Summarise in 3 sentences.")
    chunks = list(
        ask(client, UNICODE, "Summarise in 3 sentences.", stream=True, stream_options={"include_usage": True})
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert "迷宮" in text
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_is_the_default(client):
    assert all(chunk.usage is None for chunk in ask(client, TEXT, stream=True))


@pytest.mark.parametrize("text", ["", " ", "***", [], [{"type": "text", "text": ""}]])
def test_an_empty_text_has_an_empty_summary_and_no_topics(client, text):
    assert ask(client, text).choices[0].message.content == ""
    assert json.loads(ask(client, text, "topics").choices[0].message.content) == {"topics": []}
    assert [chunk.choices[0].finish_reason for chunk in ask(client, text, stream=True)] == [None, "stop"]


def test_parts_of_a_message_are_read_together(client):
    parts = [{"type": "text", "text": "The thread leads on."}, {"type": "text", "text": "It rained."}]
    assert ask(client, parts).choices[0].message.content == "The thread leads on."


def test_an_answer_is_cut_where_asked(client):
    answer = ask(client, TEXT, max_completion_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("The thread", "length")
    assert answer.usage.completion_tokens == 2


def test_another_model_is_not_there(client):
    with pytest.raises(NotFoundError, match="serves 'clew-extractive-1' only"):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])


def test_no_messages_are_a_bad_request(client):
    with pytest.raises(BadRequestError, match="can't be answered"):
        client.chat.completions.create(model=STAND_IN_MODEL, messages=[])


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (b" " * (MAX_REQUEST_BYTES + 1), 413)],
)
def test_a_bad_body_is_answered_as_openai_does(url, body, status):
    answer = httpx.post(f"{url}/chat/completions", content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unknown_path_is_answered_as_openai_does(url):
    assert httpx.get(f"{url}/nothing").json()["error"]["message"] == "Not Found"


def test_the_agents_model_asks_it(url, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    async def talk() -> tuple[str, list[Topic]]:
        model = LanguageModel(DemoSettings.load(topics_per_document=2))
        try:
            return await model.summarise(TEXT, most=1), await model.topics(TEXT)
        finally:
            await model.close()

    summarised, topics = asyncio.run(talk())
    assert summarised == "The thread leads through the maze."
    assert [(topic.name, topic.weight) for topic in topics] == [("maze", 1.0), ("thread", 1.0)]


def test_without_a_key_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_ADMIN_KEY", raising=False)
    with pytest.raises(DemoError, match="OPENAI_API_KEY"):
        LanguageModel(DemoSettings.load())


def test_what_was_asked_before_is_in_the_prompt_cache_of_its_key(client):
    tokens = [
        ask(client, TEXT, prompt_cache_key=key).usage.prompt_tokens_details.cached_tokens
        for key in ("one", "one", "another")
    ]
    assert tokens == [0, 26, 0]


def test_embeddings_are_the_same_for_the_same_text(client):
    found = client.embeddings.create(
        model=STAND_IN_MODEL, input=["a thread", "a thread", "a maze"], encoding_format="float"
    )
    vectors = [item.embedding for item in found.data]
    assert vectors[0] == vectors[1] != vectors[2]
    assert found.usage.prompt_tokens == 6


def test_it_may_be_too_busy_for_the_first_tries(client):
    refused = {"x-stand-in-refuse": "2"}
    assert ask(client.with_options(max_retries=2), TEXT, extra_headers=refused).choices
    with pytest.raises(RateLimitError):
        ask(client.with_options(max_retries=1), TEXT, extra_headers=refused)
