"""A process of agents: what the orchestrator and an agent apart have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from clew.demo import service
from clew.demo.agents import Agents
from clew.demo.language_model import LanguageModel
from clew.demo.library import Library
from clew.demo.settings import DemoSettings
from clew.demo.streams import Streams, make_streams

More = Callable[[Streams, Agents], None]


async def work(
    stop: asyncio.Event, *, group: str, hosted: frozenset[str], settings: DemoSettings, more: More | None = None
) -> None:
    """Let agents work until the event.

    Args:
        stop: set when it is to end.
        group: the consumer group, named after the service.
        hosted: the agents of this process.
        settings: the demo's settings.
        more: subscribes to further streams.
    """
    streams = make_streams(settings)
    model = LanguageModel(settings)
    library = Library(settings)
    await library.open()
    agents = Agents(hosted=hosted, streams=streams, library=library, model=model, settings=settings)
    agents.subscribe(group)
    if more is not None:
        more(streams, agents)
    try:
        await streams.connect()
        await streams.start()
        service.announce_ready()
        await stop.wait()
    finally:
        await streams.stop()
        await model.close()
        await library.close()
