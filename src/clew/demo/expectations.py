"""What must be true of the demo's telemetry, as data: the edges between its spans, its log events and its metrics.

The same tables are checked by ``clew demo --once`` against the console, and by the tests against Jaeger, Loki and Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from clew.demo.messages import DOCUMENTS, DOCUMENTS_READY, EXPORTS, STREAMS
from clew.demo.settings import AGENTS, STAND_IN_MODEL, Queue

Relation = Literal["parent", "link"]
Story = Literal["document", "export", "periodic"]


@dataclass(frozen=True, kw_only=True)
class SpanName:
    """Which spans: all of one service with one name."""

    service: str
    name: str

    def __str__(self) -> str:
        return f"{self.service} '{self.name}'"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Two spans that belong together.

    Attributes:
        story: whose trace ``target`` is in: that of the document, that of the export, or one of its own for each run.
        source: the parent of ``target``, or what it links to.
        target: the later span.
        relation: ``parent`` or ``link``.
    """

    story: Story
    source: SpanName
    target: SpanName
    relation: Relation

    def __str__(self) -> str:
        how = "is the parent of" if self.relation == "parent" else "is linked from"
        return f"{self.source} {how} {self.target}"


@dataclass(frozen=True, kw_only=True)
class LogEvent:
    """A log line within the story's trace: who writes it, and its text."""

    story: Story
    service: str
    event: str

    def __str__(self) -> str:
        return f"{self.service} '{self.event}'"


@dataclass(frozen=True, kw_only=True)
class MetricName:
    """A metric, its unit, and a service that must send it."""

    service: str
    name: str
    unit: str

    def __str__(self) -> str:
        return f"{self.service} '{self.name}' in {self.unit}"


def receipt(queue: Queue, stream: str) -> str:
    """Return the name of the span of a message that is received; with Celery it is the run of a task."""
    return f"run {stream}" if queue == "celery" else f"process {stream}"


def expected_edges(
    *,
    apart: tuple[str, ...] = ("topicizer",),
    model: str = STAND_IN_MODEL,
    stand_in: bool = True,
    queue: Queue = "valkey",
) -> tuple[Edge, ...]:
    """Return the edges of a demo.

    Args:
        apart: the agents that run in processes of their own, as ``DEMO_AGENTS_APART`` says.
        model: the model that the agents ask.
        stand_in: whether the model is the demo's own, whose spans are part of the trace.
        queue: who carries the messages.
    """
    host = {name: name if name in apart else "orchestrator" for name in AGENTS}
    taken, verified, exporting = (receipt(queue, stream) for stream in (DOCUMENTS, DOCUMENTS_READY, EXPORTS))
    edges = [
        *_message(queue, "document", "gateway", "POST /documents", "documents", "orchestrator"),
        _parent("document", "orchestrator", taken, "orchestrator", "invoke_agent orchestrator"),
    ]
    source, source_host = "orchestrator", "orchestrator"
    for name in AGENTS:
        edges += _handoff(queue, "document", source_host, f"invoke_agent {source}", name, host[name])
        if name != "exporter":
            asking = f"invoke_agent {name}"
            if name == "processor":
                edges.append(_parent("document", host[name], asking, host[name], "process document text"))
                asking = "process document text"
            edges.append(_parent("document", host[name], asking, host[name], f"chat {model}"))
            if stand_in:
                edges.append(_parent("document", host[name], f"chat {model}", host[name], "POST"))
                edges.append(_parent("document", host[name], "POST", "llm", "POST /v1/chat/completions"))
        if name == "topicizer":
            for step in ("cache topics in use", "memory write topics"):
                edges.append(_parent("document", host[name], f"invoke_agent {name}", host[name], step))
        source, source_host = name, host[name]
    edges += _message(queue, "document", source_host, "invoke_agent exporter", "documents.ready", "scheduler")
    edges += [
        _parent("document", "scheduler", verified, "scheduler", "run verify_document"),
        *_message(queue, "export", "gateway", "POST /exports", "exports", "scheduler"),
        _parent("export", "scheduler", exporting, "scheduler", "run export_documents"),
        *_handoff(
            queue, "export", "scheduler", "run export_documents", "exporter", host["exporter"], from_outside=True
        ),
        _parent("export", host["exporter"], "invoke_agent exporter", host["exporter"], "execute_tool write_export"),
        _parent("periodic", "scheduler", "run digest", "scheduler", "invoke_agent digester"),
        _parent("periodic", "scheduler", "run health_check", "scheduler", "llm probe"),
    ]
    for job in ("digest", "health_check", "cleanup"):
        source_span = SpanName(service="scheduler", name="schedule periodic jobs")
        target = SpanName(service="scheduler", name=f"run {job}")
        edges.append(Edge(story="periodic", source=source_span, target=target, relation="link"))
    return tuple(edges)


def _parent(story: Story, service: str, name: str, to_service: str, to_name: str) -> Edge:
    return Edge(
        story=story,
        source=SpanName(service=service, name=name),
        target=SpanName(service=to_service, name=to_name),
        relation="parent",
    )


def _message(queue: Queue, story: Story, service: str, name: str, stream: str, consumer: str) -> list[Edge]:
    """One message: from what sends it to its processing, which is the child of the send span and, but for a task, links to it."""
    passed_on = _parent(story, service, f"send {stream}", consumer, receipt(queue, stream))
    if queue == "celery":
        return [_parent(story, service, name, service, f"send {stream}"), passed_on]
    link = Edge(story=story, source=passed_on.source, target=passed_on.target, relation="link")
    return [_parent(story, service, name, service, f"send {stream}"), passed_on, link]


def _handoff(
    queue: Queue, story: Story, service: str, name: str, agent: str, agent_host: str, *, from_outside: bool = False
) -> list[Edge]:
    """One handoff: the agent's task is its child, whether it stays in the process or crosses by the agent's stream."""
    handoff = f"execute_tool transfer_to_{agent}"
    edges = [
        _parent(story, service, name, service, handoff),
        _parent(story, service, handoff, agent_host, f"invoke_agent {agent}"),
    ]
    if from_outside or service != agent_host:
        edges += _message(queue, story, service, handoff, f"agents.{agent}", agent_host)
    return edges


_TAKEN: Final[dict[Queue, str]] = {"valkey": "queue_pop", "nats": "queue_pop", "celery": "job_start"}

EXPECTED_EDGES: Final = expected_edges()
"""The edges of the demo as it starts by default."""


def expected_log_events(
    *, apart: tuple[str, ...] = ("topicizer",), stand_in: bool = True, queue: Queue = "valkey"
) -> tuple[LogEvent, ...]:
    """Return the log lines of a demo.

    Args:
        apart: the agents that run in processes of their own.
        stand_in: whether the model is the demo's own.
        queue: who carries the messages.
    """
    host = {name: name if name in apart else "orchestrator" for name in AGENTS}
    lines = [
        ("gateway", "request_in"),
        ("gateway", "document.accepted"),
        ("gateway", "request_out"),
        *((service, _TAKEN[queue]) for service in ("orchestrator", "scheduler")),
        ("orchestrator", "agent_task_start"),
        ("orchestrator", "agent_handoff"),
        ("orchestrator", "agent_task_end"),
        (host["processor"], "llm_call"),
        (host["processor"], "llm_response"),
        (host["processor"], "document_processed"),
        (host["processor"], "document.summarised"),
        (host["topicizer"], "document.topics"),
        (host["exporter"], "document.ready"),
        ("scheduler", "job_start"),
        ("scheduler", "document.verified"),
        ("scheduler", "job_end"),
        *([("llm", "llm.answered")] if stand_in else []),
    ]
    return tuple(LogEvent(story="document", service=service, event=event) for service, event in lines)


EXPECTED_LOG_EVENTS: Final = expected_log_events()
"""The log lines of one document, as the demo starts by default."""


def expected_metrics(
    *, apart: tuple[str, ...] = ("topicizer",), stand_in: bool = True, queue: Queue = "valkey"
) -> tuple[MetricName, ...]:
    """Return the metrics of a demo.

    Args:
        apart: the agents that run in processes of their own.
        stand_in: whether the model is the demo's own.
    """
    host = {name: name if name in apart else "orchestrator" for name in AGENTS}
    rows = [
        ("gateway", "http.server.request.duration", "s"),
        ("gateway", "http.server.request.body.size", "By"),
        ("gateway", "messaging.client.sent.messages", "{message}"),
        ("gateway", "messaging.client.operation.duration", "s"),
        ("gateway", "db.client.operation.duration", "s"),
        ("gateway", "demo.documents.accepted", "{document}"),
        ("gateway", "demo.documents.refused", "{document}"),
        ("gateway", "demo.document.size", "By"),
        ("orchestrator", "messaging.client.consumed.messages", "{message}"),
        ("orchestrator", "clew.job.duration" if queue == "celery" else "messaging.process.duration", "s"),
        ("orchestrator", "clew.queue.wait.duration", "s"),
        ("orchestrator", "clew.queue.rejected", "{message}"),
        ("orchestrator", "clew.agent.task.duration", "s"),
        ("orchestrator", "clew.agent.handoff.duration", "s"),
        (host["processor"], "gen_ai.client.operation.duration", "s"),
        (host["processor"], "gen_ai.client.token.usage", "{token}"),
        (host["processor"], "clew.document.duration", "s"),
        (host["topicizer"], "clew.agent.task.duration", "s"),
        (host["topicizer"], "clew.cache.duration", "s"),
        (host["topicizer"], "clew.memory.duration", "s"),
        (host["topicizer"], "clew.retrieval.duration", "s"),
        (host["exporter"], "clew.tool.duration", "s"),
        ("scheduler", "clew.external.duration", "s"),
        (host["topicizer"], "demo.topics.found", "{topic}"),
        (host["exporter"], "demo.document.duration", "s"),
        (host["exporter"], "demo.documents.finished", "{document}"),
        ("scheduler", "clew.job.duration", "s"),
        ("scheduler", "clew.job.lateness", "s"),
        ("scheduler", "demo.documents.verified", "{document}"),
        ("scheduler", "demo.dependency.up", "1"),
        ("gateway", "clew.telemetry.emitted", "{item}"),
        # Of another model the price may not be known
        *(
            [("llm", "http.server.request.duration", "s"), (host["processor"], "clew.llm.cost", "{USD}")]
            if stand_in
            else []
        ),
        ("gateway", "clew.queue.depth", "{message}"),
    ]
    return tuple(MetricName(service=service, name=name, unit=unit) for service, name, unit in rows)


EXPECTED_METRICS: Final = expected_metrics()
"""The metrics of the demo as it starts by default."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job that has a run in the history, completed and with its span in a trace."""

    service: str
    job: str

    def __str__(self) -> str:
        return f"{self.service} '{self.job}'"


_JOBS: Final = tuple(
    JobRecord(service="scheduler", job=job)
    for job in ("verify_document", "export_documents", "digest", "health_check", "cleanup")
)


def expected_records(edges: Iterable[Edge], *, queue: Queue = "valkey") -> tuple[JobRecord, ...]:
    """Return the jobs of a demo: two that messages ask for, three at intervals, and with Celery each task that a message is.

    Args:
        edges: its edges.
        queue: who carries the messages.
    """
    tasks = {receipt(queue, stream): stream for stream in STREAMS} if queue == "celery" else {}
    found = {
        JobRecord(service=edge.target.service, job=tasks[edge.target.name]): None
        for edge in edges
        if edge.target.name in tasks
    }
    return (*_JOBS, *found)


@dataclass(frozen=True, kw_only=True)
class SpanRecord:
    """A message, a task of an agent, a handoff or an LLM call that the history has, ended well, joined to this span."""

    story: Story
    kind: str
    span: SpanName

    def __str__(self) -> str:
        return f"{self.kind} of {self.span}"


_RECORDED: Final = {
    "send ": "message",
    "process ": "message",
    **{receipt("celery", stream): "message" for stream in STREAMS},
    "invoke_agent ": "agent task",
    "execute_tool transfer_to_": "handoff",
    "chat ": "LLM call",
}
_UNRECORDED: Final = "process document "


def expected_span_records(edges: Iterable[Edge]) -> tuple[SpanRecord, ...]:
    """Return the records that belong to the spans of edges: each span of a kind that is recorded has one.

    Args:
        edges: the edges of a demo; the traces of periodic jobs are not looked at.
    """
    found = {
        SpanRecord(story=edge.story, kind=kind, span=edge.target): None
        for edge in edges
        for beginning, kind in _RECORDED.items()
        if edge.story != "periodic"
        and edge.target.name.startswith(beginning)
        and not edge.target.name.startswith(_UNRECORDED)
    }
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SeenSpan:
    """A span as some backend has it; ``links`` are pairs of trace and span id, ``parent_id`` is empty for a root."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str = ""
    links: tuple[tuple[str, str], ...] = ()


def missing_edges(edges: Iterable[Edge], spans: Iterable[SeenSpan]) -> list[Edge]:
    """Return the edges that no two spans show.

    Args:
        edges: what is expected.
        spans: what a backend has, of all traces that the edges run through.
    """
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    shown: set[tuple[str, str, str, str, Relation]] = set()
    for span in by_id.values():
        sources: list[tuple[Relation, SeenSpan | None]] = [("parent", by_id.get((span.trace_id, span.parent_id)))]
        sources += [("link", by_id.get(link)) for link in span.links]
        for relation, source in sources:
            if source is not None:
                shown.add((source.service, source.name, span.service, span.name, relation))
    return [
        edge
        for edge in edges
        if (edge.source.service, edge.source.name, edge.target.service, edge.target.name, edge.relation) not in shown
    ]
