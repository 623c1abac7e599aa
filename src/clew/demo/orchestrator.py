"""Takes submitted documents from their stream and hands them to the first agent; the agents that have no process live here."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import clew
from clew.demo import service, worker
from clew.demo.agents import Agents
from clew.demo.messages import DOCUMENTS, AgentWork, DocumentSubmitted
from clew.demo.settings import AGENTS, DemoSettings
from clew.demo.streams import Streams

NAME: Final = "orchestrator"


def _take_documents(streams: Streams, agents: Agents) -> None:
    async def take(message: DocumentSubmitted) -> None:
        work = AgentWork(subject="document", id=message.document_id)
        async with agents.answering_for(work), clew.agent_task(NAME, type="orchestration") as task:
            task.set("demo.document.id", work.id)
            await agents.hand_over(AGENTS[0], work)

    streams.subscribe(DOCUMENTS, take, group=NAME)


def main() -> int:
    """Run the orchestrator with every agent that ``DEMO_AGENTS_APART`` does not name."""

    async def serve(stop: asyncio.Event) -> None:
        settings = DemoSettings.load()
        hosted = frozenset(AGENTS) - frozenset(settings.agents_apart)
        await worker.work(stop, group=NAME, hosted=hosted, settings=settings, more=_take_documents)

    return service.run(NAME, serve)


if __name__ == "__main__":
    sys.exit(main())
