"""What tests of LangGraph and of what is made with it share: a model, tools, and a question."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import openai
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import InjectedState
from langgraph.types import Command

import clew
from clew.demo.settings import STAND_IN_MODEL

TEXT = "The thread leads through the maze. 🧵"
ASKED: Any = {"messages": [("user", TEXT)]}
CONVERSATION: Any = {"configurable": {"thread_id": "conversation-1"}}


def make_model(url: str, **more: Any) -> ChatOpenAI:
    # LangChain shares one HTTP client among models, and that one belongs to the first loop
    own = openai.DefaultAsyncHttpxClient()
    given: Any = {"base_url": url, "api_key": "none", "http_async_client": own, "stream_usage": True, "max_retries": 1}
    return ChatOpenAI(model=STAND_IN_MODEL, **given, **more)


@tool
def word_count(text: str) -> int:
    """Count the words of a text."""
    with clew.span("counting"):
        return len(text.split())


@tool
async def slow_count(text: str) -> int:
    """Count the words of a text."""
    with clew.span("counting"):
        await asyncio.sleep(0)
        return len(text.split())


@tool
def broken(text: str) -> str:
    """Fail."""
    raise OSError("disk full")


def transfer(target: str) -> Any:
    """Return a handoff tool, as LangGraph's documentation has it."""

    @tool(f"transfer_to_{target}")
    def pass_control(state: Annotated[Any, InjectedState], call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Transfer."""
        answered = ToolMessage("Transferred.", tool_call_id=call_id, name=f"transfer_to_{target}")
        messages = [*state["messages"], answered]
        return Command(goto=target, update={"messages": messages}, graph=Command.PARENT)

    return pass_control
