"""What agents do, without and with records: a task, a handoff, a request to a language model."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.catalogue import AGENTS, Variant
from benchmarks.measure import Plan, Summary, interleave, running, sink
from benchmarks.processes import Process
from benchmarks.table import Cell, Result, Table
from benchmarks.variants.parts import AGENT_WORK

MINUTES: Final = 1.0
# Few enough that no queue of spans overflows
COUNT: Final = 300

_TABLES: Final = {
    "task of an agent": ("agent_tasks",),
    "handoff": ("handoffs",),
    "handoff, picked up by a task": ("handoffs", "agent_tasks"),
    "LLM call": ("llm_calls",),
}
_FIGURES: Final = ("thread_ns", "wall_ns", "process_ns")


def run(plan: Plan) -> Result:
    """Let every variant do each thing in turn."""
    variants = plan.wanted(AGENTS)
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder, sink(plan) as (_, url):
        files = {variant: Path(folder) / f"{variant.name}.db" for variant in variants}
        told = {
            replace(
                variant.having(endpoint=url if variant.exports else ""),
                variables={**variant.variables, "CLEW_DATABASE_URL": f"sqlite:///{files[variant]}"},
            ): variant
            for variant in variants
        }

        def burst(_: Variant, process: Process) -> Mapping[str, Any]:
            return {name: process.ask("operation", name=name, count=COUNT, sent=True) for name in AGENT_WORK}

        with running(plan, list(told), first=lambda process: process.ask("prepare", part="agents")) as runners:
            rounds = interleave(runners, plan.times(20), burst)
            written = {variant: _rows_in(file) for variant, file in files.items()}
    found = {told[variant]: bursts for variant, bursts in rounds.items()}
    table = Table(
        title="A task, a handoff and an LLM call, with traces, metrics and log events sent over OTLP/HTTP",
        headings=[
            "operation",
            "variant",
            "CPU us of the thread, minimum",
            "CPU us of the thread, median",
            "us on the clock, minimum",
            "CPU us of the process, minimum",
            "x without records",
        ],
        rows=_rows(found),
        notes=[
            f"Each row is one of {COUNT} in a row. Nothing is done within: it is what they add.",
            "The process's time ends when all that was emitted has been sent, and all records are committed.",
            "An LLM call tells its tokens and the model that answered; its cost is reckoned by genai-prices.",
            *(f"{told[variant].title}: {reason}" for variant, reason in runners.missing.items()),
        ],
    )
    wanted = _expected(plan.times(20) + 1)
    for variant, rows in written.items():
        if variant in found and variant.variables.get("CLEW_HISTORY") == "true" and rows != wanted:
            table.notes.append(f"Of {wanted} records {rows} were written.")
    settings = f"bursts of {COUNT}; {plan.times(20)} rounds"
    return Result(scenario="agents", tables=[table], aims=[], settings=settings)


def _rows(found: Mapping[Variant, Sequence[Mapping[str, Any]]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for name in AGENT_WORK:
        without: float | None = None
        for variant, bursts in found.items():
            of = {key: Summary.of([burst[name][key] / COUNT / 1e3 for burst in bursts]) for key in _FIGURES}
            process = of["process_ns"].minimum
            if variant.name == "clew":
                without = process
            is_ours = variant.module == "clew" and without
            rows.append(
                [
                    name,
                    variant.title,
                    of["thread_ns"].minimum,
                    of["thread_ns"].median,
                    of["wall_ns"].minimum,
                    process,
                    process / without if is_ours and without else None,
                ]
            )
    return rows


def _expected(bursts: int) -> dict[str, int]:
    """Return how many records there are after some bursts, by table."""
    counted = dict.fromkeys(sorted({table for tables in _TABLES.values() for table in tables}), 0)
    for tables in _TABLES.values():
        for table in tables:
            counted[table] += COUNT * bursts
    return counted


def _rows_in(file: Path) -> dict[str, int]:
    if not file.exists():
        return {}
    connection = sqlite3.connect(file)
    try:
        counts = {
            table: connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]  # noqa: S608 - constants
            for table in _expected(0)
        }
    finally:
        connection.close()
    return counts
