"""A real server under load: how many requests it answers, and how fast."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import catalogue
from benchmarks.catalogue import BARE, Variant
from benchmarks.measure import Plan, Summary, interleave, running, sink
from benchmarks.processes import Process, cores
from benchmarks.table import Cell, Result, Table

CONCURRENCY: Final = 16
MINUTES: Final = 2.5
_LEFT_OUT: Final = frozenset({"clew-metrics", "clew-json", "fastapi-10", "stock-10", "logfire-10", "elasticapm-10"})


def run(plan: Plan) -> Result:
    """Load every variant's server in turn."""
    variants = [variant for variant in plan.wanted(catalogue.REQUEST) if variant.name not in _LEFT_OUT]
    seconds = max(0.5, 2.0 * min(1.0, plan.scale * 2))
    rounds = plan.times(4)
    ports: dict[int, int] = {}

    with sink(plan) as (endpoint, url):
        told = {variant.having(endpoint=url) if variant.exports else variant: variant for variant in variants}

        def listen(process: Process) -> None:
            ports[process.pid] = process.ask("listen")["port"]

        with (
            Process(Path(sys.executable), "benchmarks.load", core=cores()[1]) as load,
            running(plan, list(told), module="benchmarks.service", first=listen) as runners,
        ):

            def burst(_: Variant, process: Process) -> Mapping[str, Any]:
                before = process.ask("cpu")["process_ns"]
                loaded = load.ask("run", port=ports[process.pid], concurrency=CONCURRENCY, seconds=seconds)
                process.ask("flush")
                used_ns = process.ask("cpu")["process_ns"] - before
                return {**loaded, **endpoint.ask("take"), "cpu_ns": used_ns / loaded["requests"]}

            found = interleave(runners, rounds, burst)
    bare = next((Summary.of([burst["per_s"] for burst in found[v]]).median for v in found if told[v] is BARE), None)
    rows: list[list[Cell]] = []
    for variant in told:
        bursts = found.get(variant)
        if not bursts:
            rows.append([f"{variant.title}: {runners.missing.get(variant, 'not run')}", *[None] * 7])
            continue
        per_s = Summary.of([burst["per_s"] for burst in bursts])
        p50, p99 = (Summary.of([burst[name] * 1e3 for burst in bursts]) for name in ("p50_s", "p99_s"))
        requests = sum(burst["requests"] for burst in bursts)
        rows.append(
            [
                variant.title,
                per_s.median,
                per_s.median / bare if bare else None,
                p50.median,
                p99.minimum,
                p99.median,
                Summary.of([burst["cpu_ns"] / 1e3 for burst in bursts]).median,
                sum(burst["traces"] for burst in bursts) / requests
                if variant.exports and variant.module != "bare"
                else None,
            ]
        )
    table = Table(
        title=f"uvicorn (asyncio, httptools) on one core, {CONCURRENCY} connections that never rest",
        headings=[
            "variant",
            "requests/s, median",
            "x bare",
            "p50 ms, median",
            "p99 ms, minimum",
            "p99 ms, median",
            "CPU us/request",
            "spans arrived / request",
        ],
        rows=rows,
        notes=[
            (
                "The load generator and the OTLP endpoint are on the other core. The server is always busy, so the latencies "
                "are those of a queue of 16."
            ),
            (
                "CPU time is of the server's process, export and a flush at the end included. Where fewer spans arrive than in "
                "the table above, the variant dropped the rest."
            ),
            "Variants without OTLP export (sentry-sdk, ddtrace, elastic-apm, prometheus) send nothing here either.",
        ],
    )
    return Result(scenario="server", tables=[table], settings=f"{rounds} rounds of {seconds:g} s each")
