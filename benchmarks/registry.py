"""The process that is measured by the scenario of the registry: it has agents, tells of them, and answers who there is.

``python -m benchmarks.registry AGENTS TASKS ROUNDS`` prints one line of JSON: what each thing took on the clock and of the CPU, in ms.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

import clew
from benchmarks.conversations import name_of, tasks
from benchmarks.databases import fill
from clew.agents import upkeep
from clew.agents.registry import registry
from clew.history.models import AgentTask
from clew.history.recorder import Recorder


def nothing() -> None:
    """Do no work."""


def measure(agents: int, count: int, rounds: int) -> dict[str, list[list[float]]]:
    """Register agents, and do what a process with them does at intervals and when it is asked."""
    for number in range(agents):
        clew.agent(name_of(number), type="topicization", version="1")(nothing)
    found = upkeep.the_recorder()
    if found is None:
        raise RuntimeError("this process keeps no records")
    found.database.upgrade()
    upkeep.tell(found)
    fill(found.database, AgentTask, tasks(count, agents, until=datetime.now(UTC)))
    app = FastAPI()
    app.include_router(clew.agents_router())
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50_000)) as client:
        work = _work(found, client, agents)
        took: dict[str, list[list[float]]] = {name: [] for name in work}
        for number in range(rounds + 1):
            for name, do in work.items():
                wall, spent = time.perf_counter(), time.process_time()
                do()
                if number:
                    took[name].append([(time.perf_counter() - wall) * 1e3, (time.process_time() - spent) * 1e3])
    return took


def _work(found: Recorder, client: TestClient, agents: int) -> dict[str, Callable[[], object]]:
    one = registry.all()[0]

    def beat() -> None:
        with found.database.write() as connection:
            upkeep.beat(connection, found)
        if any(known.is_dirty for known in registry.all()):
            raise RuntimeError("not all agents were told of")

    def tell_all() -> None:
        registry.tell_anew()
        upkeep.tell(found)

    def tell_one() -> None:
        registry.started(one)
        registry.ended(one, None, completed=True)
        upkeep.tell(found)

    def asked(path: str, expected: int) -> Callable[[], None]:
        def ask() -> None:
            answer = client.get(path)
            known: dict[str, Any] = answer.raise_for_status().json()
            if len(known.get("agents", known.get("places", ()))) != expected:
                raise RuntimeError(f"{path} answered {answer.text[:200]}")

        return ask

    return {
        "the heartbeat of all of them": beat,
        "one has done a task, which is told": tell_one,
        "all of them are told anew": tell_all,
        "GET /agents, all of them": asked(f"/agents?limit={agents}", agents),
        "GET /agents, a page of 50": asked("/agents?limit=50", min(50, agents)),
        "GET /agents/{name}": asked(f"/agents/{name_of(agents // 2)}", 1),
    }


def main(agents: str, count: str, rounds: str) -> None:
    """Measure, and print what was found."""
    found = measure(int(agents), int(count), int(rounds))
    clew.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
