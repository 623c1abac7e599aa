"""The demo's agents, each in a process of its own, killed one after the other while they work: what is told of it is true.

What a killed process had in memory is gone, its last spans too. So only their children may have a parent that nobody knows.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from redis import Redis

from clew.demo.corpus import documentation
from clew.demo.expectations import expected_edges
from clew.demo.messages import DOCUMENTS, agent_stream
from clew.demo.records import records_of_trace
from clew.demo.scenario import AcceptedDocument, submit
from clew.demo.settings import AGENTS
from clew.demo.system import DemoSystem
from clew.demo.telemetry import Console
from clew.history.models import AgentTask, AgentTaskTotal
from tests.integration.job_history import History
from tests.integration.running_demo import Replacements, running_demo
from tests.integration.waiting import eventually

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes by /proc, which is Linux's"
)

STREAMS: Final = {"orchestrator": DOCUMENTS, **{agent: agent_stream(agent) for agent in AGENTS}}
KILL_WITHIN_S: Final = 60.0
END_WITHIN_S: Final = 90.0
IN_FLIGHT: Final = 5
# Spans leave twice a second: so long after its end one may still have been in memory, on a busy machine
UNSENT: Final = timedelta(seconds=3)


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What a process was at when it was killed: rows of tasks, and the traces of which it may have had spans in memory."""

    service: str
    tasks: frozenset[str]
    unacknowledged: frozenset[str]
    in_memory: frozenset[str]


@dataclass(kw_only=True)
class KillableSystem:
    """A running demo, the processes that took the place of killed ones, and the documents that it was given."""

    demo: DemoSystem
    history: History
    documents: list[AcceptedDocument] = field(default_factory=list)
    replacements: Replacements = field(default_factory=Replacements)

    def kill(self, service: str) -> Killed:
        """Kill a service while the history has a task of it whose message is not acknowledged, and start it again."""
        member = next(member for member in self.demo.members if member.name == service)
        pid = member.process.pid
        deadline = time.monotonic() + KILL_WITHIN_S
        while True:
            # Stopped, so that nothing changes between the look and the kill
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda: has_stopped(pid), f"{service} stands still")
            killed = self._at(service, pid)
            if any(row["trace_id"] in killed.unacknowledged for row in self._running(service, pid)):
                break
            os.kill(pid, signal.SIGCONT)
            assert time.monotonic() < deadline, f"{service} was never seen at work"
            time.sleep(0.002)
        self.replacements.kill(member)
        return killed

    def _at(self, service: str, pid: int) -> Killed:
        running = self._running(service, pid)
        lately = datetime.now(UTC) - UNSENT
        rows = self.history.all(AgentTask, agent=service, pid=pid)
        unacknowledged = self._unacknowledged(service)
        return Killed(
            service=service,
            tasks=frozenset(row["id"] for row in running),
            unacknowledged=frozenset(unacknowledged),
            in_memory=frozenset(
                row["trace_id"] for row in rows if row["finished_at"] is None or row["finished_at"] > lately
            )
            | unacknowledged,
        )

    def _running(self, service: str, pid: int) -> list[Mapping[str, Any]]:
        return self.history.all(AgentTask, agent=service, pid=pid, status="running")

    def _unacknowledged(self, service: str) -> frozenset[str]:
        """Return the traces of the messages that the service has taken and not acknowledged."""
        stream = STREAMS[service]
        with Redis.from_url(self.demo.addresses.queue_url) as client:
            pending = client.xpending_range(stream, service, "-", "+", 100)
            data = [
                bytes(value)
                for entry in pending
                for _, values in client.xrange(stream, entry["message_id"], entry["message_id"])
                for value in values.values()
            ]
        return frozenset(
            document.trace_id
            for document in list(self.documents)
            if any(document.trace_id.encode() in each for each in data)
        )


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableSystem]:
    """One demo with every agent apart, for all kills."""
    folder = tmp_path_factory.mktemp("kills")
    with (
        running_demo(folder, DEMO_AGENTS_APART="all", DEMO_REDELIVER_AFTER_S="2") as demo,
        History(f"sqlite:///{folder / 'history.db'}") as history,
    ):
        running = KillableSystem(demo=demo, history=history)
        try:
            yield running
        finally:
            running.replacements.end()


def keep_submitting(system: KillableSystem, stop: threading.Event) -> None:
    """Submit documents until told to stop, as many at a time as keep everybody busy."""
    with httpx.Client(base_url=system.demo.addresses.gateway_url, timeout=30, trust_env=False) as client:
        unfinished: list[AcceptedDocument] = []
        for text in itertools.cycle(documentation(8)):
            unfinished.append(submit(client, text))
            system.documents.append(unfinished[-1])
            while len(unfinished) > IN_FLIGHT and not stop.wait(0.05):
                unfinished = [each for each in unfinished if not is_verified(client, each)]
            if stop.is_set():
                return


def is_verified(client: httpx.Client, document: AcceptedDocument) -> bool:
    return bool(client.get(f"/documents/{document.id}").raise_for_status().json()["status"] == "verified")


def orphans(system: KillableSystem, console: Console, killed: list[Killed]) -> list[str]:
    """Return the spans of all documents whose parent nobody knows, but for children of what died unsent."""
    parents: dict[tuple[str, str], set[str]] = {}
    for edge in expected_edges(apart=AGENTS):
        if edge.relation == "parent":
            parents.setdefault((edge.target.service, edge.target.name), set()).add(edge.source.service)
    dead = {(one.service, trace_id) for one in killed for trace_id in one.in_memory}
    found = []
    for document in system.documents:
        spans = [span.seen for span in console.trace(document.trace_id)]
        known = {span.span_id for span in spans}
        found += [
            f"{span.service} '{span.name}' in {span.trace_id}"
            for span in spans
            if span.parent_id
            and span.parent_id not in known
            and not any(
                (service, span.trace_id) in dead for service in parents.get((span.service, span.name), {span.service})
            )
        ]
    return found


def unjoined(system: KillableSystem, console: Console, killed: list[Killed]) -> list[str]:
    """Return the records of all documents that have no span, but for those of what died unsent."""
    dead = {(one.service, trace_id) for one in killed for trace_id in one.in_memory}
    found = []
    for document in system.documents:
        spans = {span.seen.span_id: (span.seen.service, span.seen.name) for span in console.trace(document.trace_id)}
        records = records_of_trace(system.demo.addresses.gateway_url, document.trace_id)
        if not records:
            found.append(f"no record in {document.trace_id}")
        found += [
            f"{record.kind} of {record.service} '{record.span_name}', {record.status}, in {record.trace_id}"
            for record in records
            if spans.get(str(record.span_id)) != (record.service, record.span_name)
            and (record.service, record.trace_id) not in dead
        ]
    return found


def test_every_agent_is_killed_at_its_work_and_every_document_gets_ready(system: KillableSystem) -> None:
    stop, killed = threading.Event(), list[Killed]()
    submitting = threading.Thread(target=keep_submitting, args=(system, stop))
    submitting.start()
    try:
        with Console(system.demo.addresses.console_url) as console:
            for service in STREAMS:
                killed.append(system.kill(service))
                # Before the next one is killed, which may be the one that tells it
                eventually(lambda: is_told(killed[-1], console), f"what {service} was at is told")
    finally:
        stop.set()
        submitting.join()
    url = system.demo.addresses.gateway_url
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        eventually(
            lambda: all(is_verified(client, document) for document in system.documents),
            "every document is ready and verified",
            within_s=END_WITHIN_S,
        )

    expected = {task for one in killed for task in one.tasks}
    assert lost_tasks(system) == expected
    totals = system.history.all(AgentTaskTotal, grain="day", status="lost")
    assert sum(row["tasks"] for row in totals) == len(expected), "each is lost once"
    with Console(system.demo.addresses.console_url) as console:
        assert sorted(told_lost(console, (document.trace_id for document in system.documents))) == sorted(expected), (
            "and told once"
        )
        for one in killed:
            for trace_id in one.unacknowledged:
                assert was_redelivered(system, trace_id, STREAMS[one.service]), f"{one.service}: {trace_id}"
        with suppress(AssertionError):
            # The last ones are on their way; what is missing after that is named below
            eventually(lambda: not orphans(system, console, killed) + unjoined(system, console, killed), "all is in")
        assert orphans(system, console, killed) == []
        assert unjoined(system, console, killed) == []


def lost_tasks(system: KillableSystem) -> set[str]:
    return {row["id"] for row in system.history.all(AgentTask, status="lost")}


def told_lost(console: Console, traces: Iterable[str]) -> list[str]:
    """Return the tasks that are told as lost in traces, each as often as it is told."""
    return [
        line.attributes["clew.agent.task.id"]
        for trace_id in traces
        for line in console.logs(trace_id)
        if line.body == "agent_task_lost"
    ]


def is_told(killed: Killed, console: Console) -> bool:
    return set(told_lost(console, killed.in_memory)) >= killed.tasks


def has_stopped(pid: int) -> bool:
    """Tell whether each thread of a process stands still: the signal reaches them one after the other."""
    return all(
        (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
        for thread in Path(f"/proc/{pid}/task").iterdir()
    )


def was_redelivered(system: KillableSystem, trace_id: str, stream: str) -> bool:
    asked: dict[str, str | int] = {"direction": "received", "trace_id": trace_id, "limit": 500}
    answer = httpx.get(f"{system.demo.addresses.gateway_url}/queues/messages", params=asked, timeout=30)
    rows = answer.raise_for_status().json()["messages"]
    return any(row["queue"] == stream and row["attempt"] > 1 and row["status"] == "processed" for row in rows)
