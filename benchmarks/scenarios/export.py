"""Taking spans to an endpoint: what it costs, and how many a second can be taken without a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.catalogue import CLEW, FASTOTEL, GRPC, LOGFIRE, STOCK, Variant
from benchmarks.environments import NotInstalledError
from benchmarks.measure import Plan, Summary, interleave, running, sink
from benchmarks.processes import Process
from benchmarks.table import Aim, Cell, Result, Table

MINUTES: Final = 3.0
SPANS: Final = 100_000
# Fits into every queue; the stock one has room for 2,048
CHUNK: Final = 2_000
RATES: Final = (5_000, 10_000, 15_000, 20_000)


def run(plan: Plan) -> Result:
    """Measure the cost, then the drops."""
    cost, cpu_s = _cost(plan)
    drops, lost_at = _drops(plan)
    aims = [
        Aim(what=f"encode and send {SPANS:,} spans", at_most=1.3, measured=cpu_s.get("clew"), unit="CPU s"),
        Aim(what="spans dropped at 15,000 a second", at_most=0, measured=lost_at.get(("clew", 15_000)), unit="%"),
    ]
    return Result(
        scenario="export",
        tables=[cost, drops],
        aims=aims,
        settings=f"{_count(plan):,} spans, {plan.times(2)} rounds; {_seconds(plan):g} s at each rate",
    )


def _count(plan: Plan) -> int:
    return max(10_000, int(SPANS * min(1.0, plan.scale)) // CHUNK * CHUNK)


def _seconds(plan: Plan) -> float:
    return max(1.0, 4.0 * plan.scale)


def _cost(plan: Plan) -> tuple[Table, dict[str, float]]:
    count = _count(plan)
    variants = plan.wanted((CLEW, STOCK, GRPC, LOGFIRE, FASTOTEL))
    with contextlib.ExitStack() as sinks:
        endpoints = {False: sinks.enter_context(sink(plan))}
        with contextlib.suppress(NotInstalledError):
            # Without it the variant that needs it can't be had either, and says so itself
            endpoints[True] = sinks.enter_context(sink(plan, "grpc"))
        told = {variant.having(endpoint=endpoints.get(variant is GRPC, (None, ""))[1]): variant for variant in variants}

        def burst(variant: Variant, process: Process) -> Mapping[str, Any]:
            spent = process.ask("export", count=count, chunk=CHUNK)
            return {**spent, **endpoints[told[variant] is GRPC][0].ask("take")}

        with running(plan, list(told), first=lambda process: process.ask("prepare", part="spans")) as runners:
            rounds = interleave(runners, plan.times(2), burst)
    rows: list[list[Cell]] = []
    reached = {}
    for variant in told:
        bursts = rounds.get(variant)
        if not bursts:
            rows.append([f"{variant.title}: {runners.missing.get(variant, 'not run')}", *[None] * 5])
            continue
        summary = Summary.of([burst["export_ns"] / count * SPANS / 1e9 for burst in bursts])
        reached[variant.name] = summary.minimum
        arrived = 100 * sum(burst["traces"] for burst in bursts) / (count * len(bursts))
        size = sum(burst["bytes"] for burst in bursts) / max(1, sum(burst["traces"] for burst in bursts))
        making = Summary.of([burst["thread_ns"] / count * SPANS / 1e9 for burst in bursts])
        rows.append([variant.title, summary.minimum, summary.median, making.minimum, arrived, size])
    return Table(
        title=f"Encode and send {SPANS:,} spans of 5 attributes: CPU time beside the thread that makes them",
        headings=[
            "variant",
            "CPU s, minimum",
            "CPU s, median",
            "to make them, CPU s, minimum",
            "arrived, %",
            "bytes / span on the wire",
        ],
        rows=rows,
        notes=[
            (
                "CPU time of the process less that of the thread that makes the spans, which stands in a column of its own. "
                f"Another thread flushes after every {CHUNK:,}."
            ),
            "fastotel copies each span into Rust on the thread that makes it; the others encode beside it.",
            "clew looks for secrets in every span and compresses; the others do neither by default (logfire scrubs).",
        ],
    ), reached


def _drops(plan: Plan) -> tuple[Table, dict[tuple[str, int], float]]:
    rows: list[list[Cell]] = []
    lost_at: dict[tuple[str, int], float] = {}
    variants = plan.wanted((CLEW, STOCK))
    with sink(plan) as (endpoint, url):
        told = {variant.having(endpoint=url): variant for variant in variants}
        with running(plan, list(told), first=lambda process: process.ask("prepare", part="spans")) as runners:
            for rate in RATES:
                for variant, process in runners.running.items():
                    endpoint.ask("take")
                    paced = process.ask("pace", rate=rate, seconds=_seconds(plan))
                    arrived = endpoint.ask("take")["traces"]
                    lost = 100 * (1 - arrived / paced["emitted"])
                    lost_at[variant.name, rate] = lost
                    rows.append(
                        [
                            f"{rate:,}",
                            variant.title,
                            paced["emitted"] / paced["took_s"],
                            max(0.0, lost),
                            paced["process_ns"] / 1e9 / paced["took_s"],
                        ]
                    )
    return Table(
        title="Spans at a steady rate from one thread: how many never arrive",
        headings=["spans/s wanted", "variant", "spans/s made", "lost, %", "cores used"],
        rows=rows,
        notes=[
            "Everything is flushed before it is counted. Each variant has its default queue: clew's 65,536, the SDK's 2,048 spans."
        ],
    ), lost_at
