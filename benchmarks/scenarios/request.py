"""One request through the app in process: what telemetry adds to it, without and with export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks import catalogue
from benchmarks.catalogue import BARE, Variant
from benchmarks.measure import Plan, Runners, Summary, interleave, running, sink
from benchmarks.processes import Process
from benchmarks.table import Aim, Cell, Result, Table

REQUESTS: Final = 500
MINUTES: Final = 3.5


def run(plan: Plan) -> Result:
    """Measure the request on the request's thread, then the whole process with export."""
    recorded, added = _recording(plan)
    exported, added_whole = _exporting(plan)
    aims = [
        Aim(
            what="added to a request by traces, RED metrics, active requests, log events and correlation id, 100 % sampled",
            at_most=25.0,
            measured=added.get("clew"),
            unit="us",
        ),
        Aim(what="added to the whole process with export", at_most=45.0, measured=added_whole.get("clew"), unit="us"),
    ]
    if "prometheus" in added:
        metrics_only = Aim(
            what="the same, against what prometheus-fastapi-instrumentator adds for metrics only",
            at_most=added["prometheus"],
            measured=added.get("clew"),
            unit="us",
        )
        aims.insert(1, metrics_only)
    return Result(
        scenario="request",
        tables=[recorded, exported],
        aims=aims,
        settings=f"bursts of {REQUESTS} requests in turn; {plan.times(20)} rounds without export, {plan.times(10)} with",
    )


def _recording(plan: Plan) -> tuple[Table, dict[str, float]]:
    variants = plan.wanted(catalogue.REQUEST)
    with sink(plan) as (_, url):
        told = {variant if variant.drops else variant.having(endpoint=url): variant for variant in variants}
        with running(plan, list(told), first=lambda process: process.ask("prepare", part="request")) as runners:
            found = interleave(
                runners, plan.times(20), lambda _, process: process.ask("requests", count=REQUESTS, sent=False)
            )
    rounds = {told[variant]: bursts for variant, bursts in found.items()}
    runners.missing = {told[variant]: reason for variant, reason in runners.missing.items()}
    summaries = {
        variant: Summary.of([burst["thread_ns"] / REQUESTS / 1e3 for burst in bursts])
        for variant, bursts in rounds.items()
    }
    rows, added = _rows(variants, summaries, runners)
    return Table(
        title="A GET with a path parameter, nothing is sent: CPU time of the request's thread",
        headings=["variant", "us, minimum", "us, median", "added us, minimum", "added us, median", "x bare"],
        rows=rows,
        notes=[
            (
                "Recording only: every variant hands what it recorded to a transport or exporter that drops it. Threads that "
                "encode or batch in the background are not in these figures; they are in the next table's."
            ),
            (
                "ddtrace's traces are dropped before they are encoded; fastotel has no transport that drops, so its native "
                "thread sends to an endpoint."
            ),
            "logfire's rows have its metrics in them, and the endpoint's arguments as attributes of the span.",
            "Only clew's rows have log events of the request (two), request and response sizes, and a correlation id.",
        ],
    ), added


def _exporting(plan: Plan) -> tuple[Table, dict[str, float]]:
    variants = [variant for variant in plan.wanted(catalogue.REQUEST) if variant.exports or variant is BARE]
    with sink(plan) as (endpoint, url):
        told = {variant.having(endpoint=url): variant for variant in variants}

        def burst(_: Variant, process: Process) -> Mapping[str, Any]:
            spent = process.ask("requests", count=REQUESTS, sent=True)
            return {**spent, **endpoint.ask("take")}

        with running(plan, list(told), first=lambda process: process.ask("prepare", part="request")) as runners:
            rounds = interleave(runners, plan.times(10), burst)
    summaries = {
        told[variant]: Summary.of([burst["process_ns"] / REQUESTS / 1e3 for burst in bursts])
        for variant, bursts in rounds.items()
    }
    runners.missing = {told[variant]: reason for variant, reason in runners.missing.items()}
    rows, added = _rows(variants, summaries, runners)
    arrived = {told[variant].title: bursts for variant, bursts in rounds.items()}
    for row in rows:
        bursts = arrived.get(str(row[0]), [])
        for signal in ("traces", "logs"):
            row.append(sum(burst[signal] for burst in bursts) / REQUESTS / len(bursts) if bursts else None)
    return Table(
        title="The same with OTLP/HTTP to an endpoint in another process: CPU time of the whole process",
        headings=[
            "variant",
            "us, minimum",
            "us, median",
            "added us, minimum",
            "added us, median",
            "x bare",
            "spans arrived / request",
            "logs arrived / request",
        ],
        rows=rows,
        notes=[
            f"After every {REQUESTS} requests all signals are flushed, in the measured time: few enough that no queue overflows.",
            "Compression is each variant's default: clew compresses, the stock exporters do not.",
            "Peers without OTLP export are left out of this table.",
        ],
    ), added


def _rows(
    variants: Sequence[Variant], summaries: Mapping[Variant, Summary], runners: Runners
) -> tuple[list[list[Cell]], dict[str, float]]:
    bare = summaries.get(BARE)
    rows: list[list[Cell]] = []
    added = {}
    for variant in variants:
        summary = summaries.get(variant)
        if summary is None:
            rows.append([f"{variant.title}: {runners.missing.get(variant, 'not run')}", None, None, None, None, None])
            continue
        row: list[Cell] = [variant.title, summary.minimum, summary.median]
        if bare is None:
            rows.append([*row, None, None, None])
            continue
        added[variant.name] = summary.minimum - bare.minimum
        row += [summary.minimum - bare.minimum, summary.median - bare.median, summary.minimum / bare.minimum]
        rows.append(row)
    return rows, added
