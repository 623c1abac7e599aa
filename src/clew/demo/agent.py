"""One agent in a process of its own: ``python -m clew.demo.agent topicizer``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from clew.demo import service, worker
from clew.demo.settings import AGENTS, DemoError, DemoSettings


def main(arguments: Sequence[str]) -> int:
    """Run the agent that the first argument names."""
    name = arguments[0] if arguments else ""

    async def serve(stop: asyncio.Event) -> None:
        if name not in AGENTS:
            raise DemoError(
                f"{name!r} is no agent: give one of {', '.join(AGENTS)}, as in python -m clew.demo.agent topicizer"
            )
        await worker.work(stop, group=name, hosted=frozenset((name,)), settings=DemoSettings.load())

    return service.run(name or "agent", serve)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
