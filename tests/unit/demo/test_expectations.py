"""The table of edges, and finding what is not there."""

from __future__ import annotations

from typing import Any

import pytest

from clew.demo.expectations import (
    EXPECTED_EDGES,
    Edge,
    SeenSpan,
    SpanName,
    expected_edges,
    expected_records,
    expected_span_records,
    missing_edges,
)
from clew.demo.settings import QUEUES

A, B = SpanName(service="a", name="send"), SpanName(service="b", name="process")
PARENT = Edge(story="document", source=A, target=B, relation="parent")
LINK = Edge(story="document", source=A, target=B, relation="link")
SENT = SeenSpan(service="a", name="send", trace_id="1", span_id="10")


def seen(**changes: Any) -> SeenSpan:
    return SeenSpan(**{"service": "b", "name": "process", "trace_id": "1", "span_id": "20", **changes})


@pytest.mark.parametrize(
    ("span", "missing"),
    [
        (seen(parent_id="10", links=(("1", "10"),)), []),
        (seen(parent_id="10"), [LINK]),
        (seen(links=(("1", "10"),)), [PARENT]),
        # A link crosses traces, a parent does not
        (seen(trace_id="2", parent_id="10", links=(("1", "10"),)), [PARENT]),
        (seen(service="c", parent_id="10", links=(("1", "10"),)), [PARENT, LINK]),
        (seen(parent_id="11"), [PARENT, LINK]),
    ],
)
def test_missing_edges(span, missing):
    assert missing_edges([PARENT, LINK], [SENT, span]) == missing


def test_a_missing_edge_reads_as_a_sentence():
    assert str(PARENT) == "a 'send' is the parent of b 'process'"
    assert str(LINK) == "a 'send' is linked from b 'process'"


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("apart", [(), ("topicizer",), ("processor", "topicizer", "exporter")])
def test_the_documents_story_is_one_thread_however_the_agents_are_spread_and_whoever_carries_it(apart, queue):
    """Every span but the first is the child of one that comes before it in the table."""
    known = {SpanName(service="gateway", name="POST /documents")}
    for edge in expected_edges(apart=apart, queue=queue):
        if edge.story == "document" and edge.relation == "parent":
            assert edge.source in known
            known.add(edge.target)
    assert SpanName(service="scheduler", name="run verify_document") in known
    messages = [edge for edge in expected_edges(apart=apart, queue=queue) if "send agents." in edge.source.name]
    # The parent and, but for a task, the link
    assert len(messages) >= (1 if queue == "celery" else 2) * len(apart)


def test_no_edge_is_listed_twice():
    assert len(set(EXPECTED_EDGES)) == len(EXPECTED_EDGES)


def test_each_span_of_a_kind_that_is_recorded_has_one_record():
    found = expected_span_records(EXPECTED_EDGES)
    assert len(found) == len(set(found))
    records = {str(record) for record in found}
    for record in (
        "message of gateway 'send documents'",
        "message of orchestrator 'process documents'",
        "agent task of topicizer 'invoke_agent topicizer'",
        "handoff of orchestrator 'execute_tool transfer_to_topicizer'",
        "LLM call of topicizer 'chat clew-extractive-1'",
    ):
        assert record in records


def test_with_celery_each_message_is_a_run_as_well():
    edges = expected_edges(queue="celery")
    runs = {str(record) for record in expected_records(edges, queue="celery")}
    assert {str(record) for record in expected_records(edges)} < runs
    assert runs >= {"orchestrator 'documents'", "topicizer 'agents.topicizer'", "scheduler 'documents.ready'"}
    messages = {str(record) for record in expected_span_records(edges) if record.kind == "message"}
    assert "message of orchestrator 'run documents'" in messages
    assert "message of scheduler 'run verify_document'" not in messages
