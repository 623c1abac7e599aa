"""The demo's agents, each in a process of its own, killed one after the other while they work: what is told of it is true.

What a killed process had in memory is gone, its last spans too. So only their children may have a parent that nobody knows.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import nats
import pytest
from nats.js.errors import NotFoundError
from redis import Redis

from clew.demo.corpus import documentation
from clew.demo.expectations import expected_edges
from clew.demo.messages import DOCUMENTS, agent_stream
from clew.demo.nats_streams import JETSTREAM, durable_name
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
UNSENT: Final = timedelta(seconds=5)
TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-")


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What a process was at when it was killed.

    Attributes:
        service: its name.
        tasks: the rows of its tasks that had not ended.
        traces: the traces of these.
        unacknowledged: the traces of the messages that it had taken and not acknowledged.
        documents: how many documents had been submitted.
        sent: the traces that it was done with so long ago that no span of it was in memory.
    """

    service: str
    tasks: frozenset[str]
    traces: frozenset[str]
    unacknowledged: frozenset[str]
    documents: int
    sent: frozenset[str]

    def in_memory(self, documents: list[AcceptedDocument]) -> frozenset[str]:
        """Return the traces of which it may have had spans and rows in memory: a row is written soon after its task begins.

        Args:
            documents: all that were submitted, in order.
        """
        # One more may have been accepted, and not be in the list yet
        known = {document.trace_id for document in documents[: self.documents + 1]}
        return frozenset(known - self.sent) | self.unacknowledged


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
        rows = self.history.all(AgentTask, agent=service)
        at_hand = {row["trace_id"] for row in rows if row["finished_at"] is None or row["finished_at"] > lately}
        return Killed(
            service=service,
            tasks=frozenset(row["id"] for row in running),
            traces=frozenset(row["trace_id"] for row in running),
            unacknowledged=frozenset(
                trace_id for data in self._pending(service) for trace_id in TRACEPARENT.findall(data)
            ),
            documents=len(self.documents),
            sent=frozenset({row["trace_id"] for row in rows} - at_hand),
        )

    def _running(self, service: str, pid: int) -> list[Mapping[str, Any]]:
        return self.history.all(AgentTask, agent=service, pid=pid, status="running")

    def _pending(self, service: str) -> list[str]:
        """Return the messages that the service has taken and not acknowledged, as they went over the wire."""
        stream, url = STREAMS[service], self.demo.addresses.queue_url
        if self.demo.settings.queue == "nats":
            return asyncio.run(pending_in_nats(url, stream, service))
        with Redis.from_url(url) as client:
            if self.demo.settings.queue == "celery":
                # What a worker has taken is kept there by Kombu until it is acknowledged
                taken = [json.loads(value) for value in client.hvals("unacked")]
                return [json.dumps(message) for message, _, routing_key in taken if routing_key == stream]
            pending = client.xpending_range(stream, service, "-", "+", 100)
            return [
                bytes(value).decode("latin-1")
                for entry in pending
                for _, values in client.xrange(stream, entry["message_id"], entry["message_id"])
                for value in values.values()
            ]


async def pending_in_nats(url: str, stream: str, service: str) -> list[str]:
    """Return the messages of a subject that a service has taken and not acknowledged: those are deleted."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        consumer = await jetstream.consumer_info(JETSTREAM, durable_name(stream, service))
        assert consumer.ack_floor is not None
        assert consumer.delivered is not None
        found = []
        for number in range(consumer.ack_floor.stream_seq + 1, consumer.delivered.stream_seq + 1):
            with suppress(NotFoundError):
                message = await jetstream.get_msg(JETSTREAM, number)
                if message.subject == stream:
                    found.append(str((message.headers or {}).get("traceparent")))
        return found
    finally:
        await client.close()


@pytest.fixture(params=["valkey", "nats", "celery"])
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KillableSystem]:
    """A demo with every agent apart, for all kills."""
    told = {"DEMO_AGENTS_APART": "all", "DEMO_REDELIVER_AFTER_S": "2", "DEMO_QUEUE": request.param}
    if request.param == "celery":
        # Kombu pops a message first and notes it then: one that is popped by a process that is killed just then is lost. A worker
        # that may take one at a time pops none while it works
        told["DEMO_WORKERS"] = "1"
    with (
        running_demo(tmp_path, **told) as demo,
        History(f"sqlite:///{tmp_path / 'history.db'}") as history,
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
    for edge in expected_edges(apart=AGENTS, queue=system.demo.settings.queue):
        if edge.relation == "parent":
            parents.setdefault((edge.target.service, edge.target.name), set()).add(edge.source.service)
    dead = {(one.service, trace_id) for one in killed for trace_id in one.in_memory(system.documents)}
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
    dead = {(one.service, trace_id) for one in killed for trace_id in one.in_memory(system.documents)}
    found = []
    queue = system.demo.settings.queue
    for document in system.documents:
        spans = {span.seen.span_id: (span.seen.service, span.seen.name) for span in console.trace(document.trace_id)}
        records = records_of_trace(system.demo.addresses.gateway_url, document.trace_id, queue=queue)
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
                # What was done with, but not acknowledged, comes again though its document is ready
                eventually(
                    partial(was_redelivered, system, trace_id, STREAMS[one.service]),
                    f"what {one.service} had not acknowledged comes again: {trace_id}",
                    within_s=END_WITHIN_S,
                )
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
    return set(told_lost(console, killed.traces)) >= killed.tasks


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
