"""Programs with agents, for tests that start, stop and kill them: ``python -m tests.integration.agent_programs NAME [ARGUMENT]``."""

from __future__ import annotations

import json
import os
import sys
import time

import clew
from tests.integration.job_programs import PROGRAMS, forever, program, say


@clew.agent("declared", type="test", version="3")
def declared() -> None:
    """Never called."""


@program
def work_as_agent(duration_s: str) -> None:
    """Work on a task, and wait for what was handed over."""
    with clew.agent_task("worker", type="test", task_id="doc-1"), clew.handoff(to="helper"):
        say("started")
        time.sleep(float(duration_s))
        say("ended")


@program
def have_many_agents(number: str) -> None:
    """Have so many agents, and live on."""
    for each in range(int(number)):
        clew.agent(f"agent-{each:03d}", type="test")(declared)
    with clew.agent_task("worker", type="test"):
        say("started")
    forever()


@program
def fail_as_agent(times: str) -> None:
    """Fail so often, and live on."""
    for _ in range(int(times)):
        task = clew.agent_task("failer", type="test")
        with task:
            task.fail("refused", "the model refused")
    say("started")
    forever()


@program
def watch_agents(_: str) -> None:
    """Look after other processes' tasks and handoffs."""
    with clew.agent_task("watcher"):
        pass
    say("started")
    forever()


@program
def hand_over(claim_within_s: str) -> None:
    """Hand a task over by its carrier, and end."""
    within_s = float(claim_within_s) if claim_within_s else None
    with (
        clew.agent_task("giver", type="test"),
        clew.handoff(to="taker", task={"id": "doc-7"}, mode="pass_control", claim_within_s=within_s) as passing,
    ):
        say(json.dumps(passing.carrier))


@program
def take(carrier: str) -> None:
    """Pick a task up by its carrier."""
    with clew.agent_task("taker", type="test", carrier=json.loads(carrier)):
        say("started")
        time.sleep(float(os.environ.get("WORK_S", "0")))


@program
def hand_on(carrier: str) -> None:
    """Pick a task up and hand it back to who had it: a loop."""
    with (
        clew.agent_task("taker", type="test", carrier=json.loads(carrier)),
        clew.handoff(to="giver", mode="pass_control") as passing,
    ):
        say(json.dumps(passing.carrier))


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
