"""The durable records of the demo, read back over the gateway's HTTP interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

from clew.demo.expectations import receipt
from clew.demo.settings import Queue

_TIMEOUT_S: Final = 10.0
_MOST: Final = 500


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a job as the history has it; ``duration_s`` and ``lateness_s`` are seconds."""

    job: str
    status: str
    service: str
    trigger: str
    trace_id: str | None
    span_id: str | None
    duration_s: float | None
    lateness_s: float | None


def runs_of_jobs(gateway_url: str, since: datetime) -> list[Run]:
    """Return the newest runs of jobs, oldest first; none where the gateway can't tell.

    Args:
        gateway_url: whom to ask.
        since: when they were recorded at the earliest.
    """
    asked: dict[str, str | int] = {"from": since.isoformat(), "limit": _MOST}
    try:
        answer = httpx.get(f"{gateway_url}/jobs/runs", params=asked, timeout=_TIMEOUT_S, trust_env=False)
        runs = answer.raise_for_status().json()["runs"]
    except httpx.HTTPError:
        return []
    return [Run(**{name: run[name] for name in Run.__dataclass_fields__}) for run in reversed(runs)]


@dataclass(frozen=True, kw_only=True)
class TracedRecord:
    """A message, a task of an agent, a handoff or an LLM call as the history has it, and the name that its span must have."""

    kind: str
    service: str
    span_name: str
    status: str
    trace_id: str
    span_id: str | None


_TRACED: Final[tuple[tuple[str, str, str, Callable[[dict[str, Any], Queue], str]], ...]] = (
    (
        "message",
        "/queues/messages",
        "messages",
        lambda row, queue: f"send {row['queue']}" if row["direction"] == "sent" else receipt(queue, row["queue"]),
    ),
    ("agent task", "/agents/tasks", "tasks", lambda row, _: f"invoke_agent {row['agent']}"),
    ("handoff", "/agents/handoffs", "handoffs", lambda row, _: f"execute_tool transfer_to_{row['target']}"),
    ("LLM call", "/llm/calls", "calls", lambda row, _: f"{row['operation']} {row['model']}"),
)


def records_of_trace(gateway_url: str, trace_id: str, *, queue: Queue = "valkey") -> list[TracedRecord]:
    """Return the records of messages, tasks of agents, handoffs and LLM calls in a trace; none where the gateway can't tell.

    Args:
        gateway_url: whom to ask.
        trace_id: the trace.
        queue: who carries the messages.
    """
    found: list[TracedRecord] = []
    asked: dict[str, str | int] = {"trace_id": trace_id, "limit": _MOST}
    try:
        for kind, path, key, span_name in _TRACED:
            answer = httpx.get(f"{gateway_url}{path}", params=asked, timeout=_TIMEOUT_S, trust_env=False)
            found += [
                TracedRecord(
                    kind=kind,
                    service=row["service"],
                    span_name=span_name(row, queue),
                    status=row["status"],
                    trace_id=trace_id,
                    span_id=row["span_id"],
                )
                for row in answer.raise_for_status().json()[key]
            ]
    except httpx.HTTPError:
        return []
    return found


def latest(runs: Sequence[Run]) -> list[tuple[Run, int]]:
    """Return the last run of each job and status, and how many there were, sorted by the name of the job."""
    found: dict[tuple[str, str], tuple[Run, int]] = {}
    for run in runs:
        key = (run.job, run.status)
        found[key] = (run, found.get(key, (run, 0))[1] + 1)
    return [found[key] for key in sorted(found)]
