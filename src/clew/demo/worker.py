"""A process of agents: what the orchestrator and an agent apart have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from faststream.redis import RedisBroker

from clew.demo import service, streams
from clew.demo.agents import Agents
from clew.demo.language_model import LanguageModel
from clew.demo.library import Library
from clew.demo.settings import DemoSettings

More = Callable[[RedisBroker, Agents, DemoSettings], list[tuple[str, str]]]


async def work(
    stop: asyncio.Event, *, group: str, hosted: frozenset[str], settings: DemoSettings, more: More | None = None
) -> None:
    """Let agents work until the event.

    Args:
        stop: set when it is to end.
        group: the consumer group, named after the service.
        hosted: the agents of this process.
        settings: the demo's settings.
        more: subscribes to further streams, and returns them with their group.
    """
    broker = streams.make_broker(settings)
    model = LanguageModel(settings)
    library = Library(settings)
    await library.open()
    agents = Agents(hosted=hosted, broker=broker, library=library, model=model, settings=settings)
    groups = agents.subscribe(group)
    if more is not None:
        groups += more(broker, agents, settings)
    try:
        await streams.connect(broker, groups)
        await broker.start()
        service.announce_ready()
        await stop.wait()
    finally:
        await broker.stop()
        await model.close()
        await library.close()
