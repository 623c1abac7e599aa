"""What the benchmarks count, write and pin."""

from __future__ import annotations

import doctest
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks import conversations, report, table, wire
from benchmarks.databases import fill
from benchmarks.table import Aim, Result, Table, aims_table, markdown
from clew.history import llm_usage, messages
from clew.history.database import Database
from clew.history.models import LlmCall, QueueMessage
from clew.history.reading import Reader

ROOT = Path(__file__).resolve().parents[2]


def cells(output: str, row: str) -> list[list[str]]:
    """Return the cells of every row that begins with a text."""
    lines = [line for line in output.splitlines() if line.startswith(f"| {row}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=3))
def test_spans_and_log_records_are_counted_as_protobuf_has_them(shape):
    traces, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    for scopes in shape:
        spans_of, logs_of = traces.resource_spans.add(), logs.resource_logs.add()
        spans_of.resource.attributes.add(key="service.name").value.string_value = "shop"
        for count in scopes:
            scope_spans, scope_logs = spans_of.scope_spans.add(schema_url="x"), logs_of.scope_logs.add()
            for number in range(count):
                scope_spans.spans.add(name="price", kind=1, start_time_unix_nano=2**60 + number)
                scope_logs.log_records.add(severity_number=9, time_unix_nano=number)
    wanted = sum(count for scopes in shape for count in scopes)
    assert wire.count("traces", traces.SerializeToString()) == wanted
    assert wire.count("logs", logs.SerializeToString()) == wanted


@pytest.mark.parametrize("module", [table, wire], ids=lambda module: module.__name__)
def test_examples_in_docstrings_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_points_of_every_kind_of_metric_are_counted():
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="a").gauge.data_points.add(as_double=1.5)
    metrics.add(name="b").sum.data_points.add(as_int=1)
    metrics.add(name="c").histogram.data_points.add(count=1)
    metrics.add(name="d").exponential_histogram.data_points.add(count=1)
    metrics.add(name="e").summary.data_points.add(count=1)
    assert wire.count("metrics", request.SerializeToString()) == 5


def test_a_missed_aim_says_so():
    aims = [Aim(what="a span", at_most=4, measured=measured, unit="us") for measured in (3.0, 5.0, None)]
    verdicts = [row[-1] for row in cells(aims_table(aims), "a span")]
    assert verdicts == ["met", "**missed**", "not measured"]


def test_results_survive_being_stored():
    spans = Table(
        title="Spans", headings=["variant", "us"], rows=[["clew", 3.5], ["other: why not", None]], notes=["n"]
    )
    result = Result(scenario="request", tables=[spans], aims=[Aim(what="x", at_most=1, measured=2.0, unit="us")])
    run_ = report.Run.of_now(result, length="a short run", environments=[], load=0.5)
    again = report.Run.from_json(json.loads(json.dumps(run_.as_json())))
    assert again == run_
    assert markdown(again.result.tables[0]) == markdown(spans)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "benchmarks" / "requirements").iterdir()))
def test_requirement_files_pin_every_package_and_name_no_host(name):
    lines = (ROOT / "benchmarks" / "requirements" / name).read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all(line.count("==") == 1 and "/" not in line and " " not in line for line in lines[1:])


def test_peers_are_pinned_to_one_version_of_what_they_share():
    shared = ("fastapi", "starlette", "uvicorn", "httptools", "pydantic", "opentelemetry-api", "opentelemetry-sdk")
    found: dict[str, set[str]] = {}
    for path in (ROOT / "benchmarks" / "requirements").iterdir():
        for line in path.read_text().splitlines()[1:]:
            package, version = line.split("==")
            if package in shared:
                # clew needs a patch release of OpenTelemetry that not every peer takes
                exact = version.rpartition(".")[0] if package.startswith("opentelemetry") else version
                found.setdefault(package, set()).add(exact)
    assert {package: len(versions) for package, versions in found.items()} == dict.fromkeys(shared, 1)


def test_a_filled_history_has_the_messages_and_calls_that_it_was_given_and_their_totals(tmp_path):
    url = f"sqlite:///{tmp_path / 'history.db'}"
    database, now = Database(url), datetime.now(UTC)
    database.upgrade()
    fill(database, QueueMessage, conversations.messages(1_001, until=now))
    fill(database, LlmCall, conversations.calls(500, until=now))
    database.close()
    reader = Reader(url)
    with reader.open() as connection:
        queues, used = messages.report(connection).overall.total, llm_usage.report(connection, by="user")
        newest = messages.page(connection).rows[0]
    reader.close()
    assert (queues.sent, queues.received) == (501, 500)
    assert used.overall.calls == 500
    assert len(used.groups) > 400
    assert newest["recorded_at"] == pytest.approx(now, abs=timedelta(seconds=1))
