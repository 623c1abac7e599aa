"""One thread over every hop: a table of edges, each of them taken by real processes, servers and brokers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from clew.testing import CapturedSpan
from tests.integration.hops import HOPS
from tests.otlp_sink import OtlpSink

ROOT = Path(__file__).parents[2]
TO_TOPICIZER = "execute_tool transfer_to_topicizer"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What one hop looks like in the spans of ``source`` and ``target``.

    Attributes:
        parent: ``target`` continues the trace of ``source``, as its child.
        link: ``target`` links to ``source``.
        sources: how many spans there are of the name ``source``, each with its link.
    """

    hop: str
    source: str
    target: str
    parent: bool = False
    link: bool = False
    sources: int = 1


EDGES = [
    Edge(hop="http", source="origin", target="GET", parent=True),
    Edge(hop="http", source="GET", target="GET /orders/{order_id}", parent=True),
    Edge(hop="http", source="GET /orders/{order_id}", target="arrival", parent=True),
    Edge(hop="thread", source="origin", target="arrival", parent=True),
    Edge(hop="executor", source="origin", target="arrival", parent=True),
    Edge(hop="asyncio_task", source="origin", target="arrival", parent=True),
    Edge(hop="process_pool_fork", source="origin", target="arrival", parent=True),
    Edge(hop="process_pool_spawn", source="origin", target="arrival", parent=True),
    Edge(hop="process_pool_forkserver", source="origin", target="arrival", parent=True),
    Edge(hop="faststream_message", source="origin", target="send documents", parent=True),
    Edge(hop="faststream_message", source="send documents", target="process documents", parent=True, link=True),
    Edge(hop="faststream_message", source="process documents", target="arrival", parent=True),
    Edge(hop="faststream_batch", source="send documents", target="process documents", link=True, sources=3),
    Edge(hop="faststream_batch", source="process documents", target="arrival", parent=True),
    Edge(hop="redis_list", source="origin", target="arrival", parent=True),
    Edge(hop="interval_job", source="origin", target="run nightly", link=True),
    Edge(hop="interval_job", source="run nightly", target="arrival", parent=True),
    Edge(hop="cron_job", source="origin", target="run nightly", link=True),
    Edge(hop="one_shot_job", source="origin", target="run arrive", parent=True),
    Edge(hop="one_shot_job", source="run arrive", target="arrival", parent=True),
    Edge(hop="one_shot_job_after_a_restart", source="origin", target="run arrive", parent=True),
    Edge(hop="one_shot_job_after_a_restart", source="run arrive", target="arrival", parent=True),
    Edge(hop="handoff", source="invoke_agent processor", target=TO_TOPICIZER, parent=True),
    Edge(hop="handoff", source=TO_TOPICIZER, target="invoke_agent topicizer", parent=True),
    Edge(hop="handoff_to_another_process", source=TO_TOPICIZER, target="invoke_agent topicizer", parent=True),
]


@pytest.fixture(scope="module")
def taken(
    tmp_path_factory: pytest.TempPathFactory, valkey_server: str, request: pytest.FixtureRequest
) -> dict[str, list[CapturedSpan]]:
    """The spans of the hops that were taken so far, by hop."""
    return {}


@pytest.fixture
def spans(request: pytest.FixtureRequest, taken: dict[str, list[CapturedSpan]], tmp_path: Path) -> list[CapturedSpan]:
    """Take an edge's hop, once for all of its edges, and return every span of it."""
    hop = request.getfixturevalue("edge").hop
    if hop not in taken:
        environment = {"VALKEY_URL": request.getfixturevalue("valkey_url"), "JOB_STORE": str(tmp_path / "jobs.sqlite")}
        with OtlpSink() as sink:
            command = [sys.executable, "-m", "tests.integration.hops", hop]
            # All of its processes have ended, and flushed, when it ends
            subprocess.run(command, cwd=ROOT, env=os.environ | sink.environment | environment, check=True, timeout=120)
            taken[hop] = sink.spans
    return taken[hop]


@pytest.mark.parametrize("edge", EDGES, ids=[f"{edge.hop}: {edge.source} > {edge.target}" for edge in EDGES])
def test_edge(edge: Edge, spans: list[CapturedSpan]) -> None:
    sources = [span for span in spans if span.name == edge.source]
    targets = [span for span in spans if span.name == edge.target]
    seen = sorted({span.name for span in spans})
    assert len(sources) == edge.sources, f"{len(sources)} spans are named {edge.source!r}; there are {seen}"
    assert targets, f"no span is named {edge.target!r}; there are {seen}"
    for source in sources:
        for target in targets:
            assert (source.span_id in {link.span_id for link in target.links}) == edge.link
            assert (target.parent_id == source.span_id) == edge.parent
            assert (target.trace_id == source.trace_id) == edge.parent
            if not edge.parent:
                assert target.parent_id == ""
    correlated = {span.attributes.get("clew.correlation.id") for span in (*sources, *targets)}
    assert correlated == {"order-17"}


def test_every_hop_has_an_edge() -> None:
    assert {edge.hop for edge in EDGES} == set(HOPS)


def test_hops_to_other_processes_went_there(taken: dict[str, list[CapturedSpan]]) -> None:
    for hop in ("http", "process_pool_spawn", "faststream_message", "redis_list", "handoff_to_another_process"):
        if hop in taken:
            processes = {span.resource["service.instance.id"] for span in taken[hop]}
            assert len(processes) == 2, hop
