"""Ten thousand random systems, each of whose spans, links and rows are foretold by a model without any of clew."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy import delete

import clew
from clew.agents.registry import registry
from clew.engine.logs import LogStream
from clew.engine.state import state
from clew.history.models import AgentTask, Handoff, JobRun, LlmCall, QueueMessage
from clew.history.recorder import recorder
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.topologies import MAX_HANDOFFS, topology
from tests.integration.topology_oracle import Expected, Key, Oracle
from tests.integration.topology_runs import KEY, Run
from tests.integration.topology_totals import counted, foretold, kept, measured

_PARTS: Final = 8
_TOPOLOGIES: Final = 10_000 // _PARTS
_AT_ONCE: Final = 250
_MODELS: Final[dict[str, Any]] = {
    "queue_messages": QueueMessage,
    "agent_tasks": AgentTask,
    "handoffs": Handoff,
    "llm_calls": LlmCall,
    "job_runs": JobRun,
}

_BySpan = dict[tuple[str, str], list[Mapping[str, Any]]]


class World:
    """Where topologies are run, and what came of them."""

    def __init__(
        self, history: History, telemetry: CapturedTelemetry, runner: asyncio.Runner, threads: Executor
    ) -> None:
        self.history = history
        self.telemetry = telemetry
        self._counted: Counter[tuple[str, str]] = Counter()
        self._foretold: Counter[tuple[str, str]] = Counter()
        self._runner = runner
        self._threads = threads
        self._number = 0

    def faults(self, programs: list[bytes]) -> dict[bytes, list[str]]:
        """Run topologies and return what is wrong with each of them."""
        of: dict[str, bytes] = {}
        expected: dict[str, Expected] = {}
        for program in programs:
            self._number += 1
            prefix = f"t{self._number}"
            of[prefix] = program
            made = topology(program)
            expected |= Oracle(made, prefix).expected
            self._runner.run(Run(made, prefix, self._threads).run())
        found: dict[bytes, list[str]] = defaultdict(list)
        for key, fault in self._check(expected):
            found[of.get(key.split(".")[0], b"")].append(f"{key}: {fault}")
        return dict(found)

    def _check(self, expected: Mapping[str, Expected]) -> Iterator[tuple[str, str]]:
        spans: dict[str, CapturedSpan] = {}
        for span in self.telemetry.spans:
            key = span.attributes.get(KEY) or span.attributes.get("messaging.consumer.group.name", "")
            if key in spans or key not in expected:
                yield key, f"a span too many: {span.name}"
            spans[key] = span
        self.telemetry.clear()
        # After telemetry is flushed: until then the first calls of a model may wait for prices
        rows, ids = self._rows()
        places = {key: (span.trace_id, span.span_id) for key, span in spans.items()}
        for key, one in expected.items():
            if key not in spans:
                yield key, f"no span {one.name}"
                continue
            for fault in _of_span(spans[key], one, spans):
                yield key, fault
            place = places[key]
            for table in rows:
                mine = rows[table].pop(place, [])
                if len(mine) != (table == one.table):
                    yield key, f"{len(mine)} rows of {table}"
                elif mine:
                    for fault in _of_row(mine[0], spans[key], one, places, ids):
                        yield key, fault
                    for of_table, status, number in counted(table, mine[0]):
                        self._counted[of_table, status] += number
        for table, left in rows.items():
            for mine in left.values():
                yield "", f"rows of {table} without a span: {mine}"
        yield from _threads(expected, spans)
        self._foretold.update(foretold(expected.values()))

    def check_totals(self) -> None:
        """Assert that totals, metrics and accounts agree with what was run so far."""
        assert {key: number for key, number in kept(self.history).items() if number} == dict(self._counted)
        assert measured() == self._foretold
        for name, account in clew.accounts().items():
            assert not account.dropped, name

    def _rows(self) -> tuple[dict[str, _BySpan], dict[str, tuple[str, str]]]:
        """Take all rows out of the history, by the span that they belong to; and for each id of a row, that span."""
        found = recorder()
        assert found is not None
        assert found.flush(30)
        by_span: dict[str, _BySpan] = {}
        ids: dict[str, tuple[str, str]] = {}
        for table, model in _MODELS.items():
            of_table = by_span[table] = defaultdict(list)
            for row in self.history.all(model):
                place = (row["trace_id"] or "", row["span_id"] or "")
                ids[row["id"]] = place
                of_table[place].append(row)
        with self.history.database.write() as connection:
            for model in _MODELS.values():
                connection.execute(delete(model))
        return by_span, ids


def _of_span(span: CapturedSpan, one: Expected, spans: Mapping[str, CapturedSpan]) -> Iterator[str]:
    above = spans.get(one.parent) if one.parent is not None else None
    told = {
        "name": (span.name, one.name),
        "parent": (span.parent_id, "" if one.parent is None else above.span_id if above else "?"),
        "status": (span.status, "error" if one.is_error else "unset"),
        "error": (span.attributes.get("error.type"), one.error_type),
        "links": (
            sorted((link.trace_id, link.span_id) for link in span.links),
            sorted((spans[key].trace_id, spans[key].span_id) for key in one.links if key in spans),
        ),
    }
    if above is not None:
        told["trace"] = (span.trace_id, above.trace_id)
    for what, (is_so, should_be) in told.items():
        if is_so != should_be:
            yield f"{what} of the span is {is_so!r}, not {should_be!r}"


def _of_row(
    row: Mapping[str, Any],
    span: CapturedSpan,
    one: Expected,
    places: Mapping[str, tuple[str, str]],
    ids: Mapping[str, tuple[str, str]],
) -> Iterator[str]:
    if row["status"] not in one.statuses:
        yield f"status of the row is {row['status']!r}, not {one.statuses}"
    if len(one.statuses) == 1 and one.table != "handoffs" and row["error_type"] != one.error_type:
        yield f"error of the row is {row['error_type']!r}, not {one.error_type!r}"
    for column, value in one.columns.items():
        is_so, should_be = row.get(column), value
        if column == "is_accepted":
            is_so = row["accepted_at"] is not None
        elif column in ("parent_id", "handoff_id"):
            is_so = ids.get(str(is_so)) if is_so is not None else None
            should_be = places.get(should_be) if isinstance(should_be, Key) else None
        if is_so != should_be:
            yield f"{column} of the row is {is_so!r}, not {should_be!r}"
    if row["correlation_id"] != (mine := span.attributes.get("clew.correlation.id")):
        yield f"correlation id of the row is {row['correlation_id']!r}, of its span {mine!r}"


def _threads(expected: Mapping[str, Expected], spans: Mapping[str, CapturedSpan]) -> Iterator[tuple[str, str]]:
    """Check that what is on one thread has one correlation id, and nothing else has it."""
    ids: dict[str, str] = {}
    threads: dict[str, str] = {}
    for key, span in spans.items():
        if key not in expected:
            continue
        thread, told = expected[key].thread, str(span.attributes.get("clew.correlation.id"))
        if ids.setdefault(thread, told) != told or threads.setdefault(told, thread) != thread:
            yield key, f"correlation id {told!r} is not that of {thread!r}"


@pytest.fixture
def world(tmp_path: Path, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    assert state.settings is not None
    assert state.pipeline is not None
    # The lines of so many would be all that there is to see
    chosen = state.settings.model_copy(update={"handoff_max_depth": MAX_HANDOFFS, "log_format": "none"})
    monkeypatch.setattr(registry, "_known", {})
    monkeypatch.setattr(state, "settings", chosen)
    monkeypatch.setattr(state, "log_stream", LogStream(chosen, state.pipeline.redactor, state.pipeline))
    with (
        own_history(f"sqlite:///{tmp_path / 'history.db'}", monkeypatch, heartbeat_s=10.0) as history,
        asyncio.Runner() as runner,
        # As many as may wait for one another
        ThreadPoolExecutor(32) as threads,
    ):
        yield World(history, captured_telemetry, runner, threads)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(_PARTS))
def test_ten_thousand_topologies(world: World, part: int) -> None:
    search = _Search(world, part)
    search.through(_TOPOLOGIES)
    world.check_totals()
    assert search.ran >= _TOPOLOGIES


class _Search:
    """Looks for a topology that has a fault: many at once, and where there is one, again for the smallest that has it."""

    def __init__(self, world: World, part: int) -> None:
        self.ran = 0
        self._world = world
        self._part = part
        self._waiting: list[bytes] = []
        self._faulty: dict[bytes, list[str]] = {}
        self._is_again = self._is_found = False

    def through(self, examples: int) -> None:
        """Fail with the smallest topology that has a fault."""
        _generated(self._part, examples, self._run)
        self._check()
        if not self._faulty:
            return
        self._is_again = True
        # The same ones, in the same order: from the first that is known to have a fault, each is looked at by itself
        _generated(self._part, examples, self._run)
        told = "\n".join(
            f"{_shown(program)}\n{chr(10).join(faults[:9])}" for program, faults in [*self._faulty.items()][:5]
        )
        raise AssertionError(f"{len(self._faulty)} topologies have faults that they have not alone\n{told}")

    def _run(self, program: bytes) -> None:
        if not self._is_again:
            self.ran += 1
            self._waiting.append(program)
            if len(self._waiting) == _AT_ONCE:
                self._check()
            return
        self._is_found = self._is_found or program in self._faulty
        if self._is_found:
            faults = self._world.faults([program])
            assert not faults, f"{_shown(program)}\n" + "\n".join(fault for told in faults.values() for fault in told)

    def _check(self) -> None:
        self._faulty |= self._world.faults(self._waiting)
        self._waiting.clear()


def _shown(program: bytes) -> str:
    return f"{program!r}: {topology(program)}"


def _generated(part: int, examples: int, run: Callable[[bytes], None]) -> None:
    """Call a function with as many programs as wanted: always the same ones."""

    @seed(part)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(program=st.binary(min_size=16, max_size=72))
    def generated(program: bytes) -> None:
        run(program)

    generated()
