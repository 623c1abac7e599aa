"""Single things that an app does: a span, a counter, a log line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.catalogue import BARE, CLEW, FASTOTEL, LOGFIRE, PROMETHEUS, STOCK, STRUCTLOG, Variant
from benchmarks.measure import Plan, Summary, interleave, running, sink
from benchmarks.processes import Process
from benchmarks.table import Aim, Cell, Result, Table

MINUTES: Final = 2.0
# Spans and log lines wait in queues, which must have room for a burst; numbers do not
QUEUED: Final = 1_000
COUNTED: Final = 10_000

_NAMES: Final = (
    "call",
    "span, empty",
    "span, 5 attributes",
    "span, not sampled",
    "counter, bound",
    "counter, by keyword",
    "histogram, bound",
    "log line to OTLP",
    "log record to OTLP, by the API",
    "log line as JSON",
)
_SAMPLING: Final = (CLEW, STOCK, LOGFIRE)
_AIMS: Final = {"span, empty": 4.0, "counter, bound": 0.5, "histogram, bound": 0.8, "log line to OTLP": 6.0}


def run(plan: Plan) -> Result:
    """Measure every operation of every variant, then spans that are not sampled."""
    rows: dict[str, list[list[Cell]]] = {name: [] for name in _NAMES}
    reached: dict[str, float] = {}
    missing: list[str] = []
    with sink(plan) as (_, url):
        for share, variants in ((1.0, (BARE, CLEW, STOCK, LOGFIRE, FASTOTEL, PROMETHEUS, STRUCTLOG)), (0.0, _SAMPLING)):
            told = [
                variant.having(share=share, endpoint="" if variant.drops else url) for variant in plan.wanted(variants)
            ]
            rounds = _rounds(plan, told, missing, only="" if share else "span, empty")
            for variant, bursts in rounds.items():
                title = "an empty function" if variant.module == "bare" else variant.title.removesuffix(", OTLP/HTTP")
                for name in bursts[0]:
                    summary = Summary.of([burst[name] for burst in bursts])
                    shown = name if share else "span, not sampled"
                    rows[shown].append([shown, title, summary.minimum, summary.median])
                    if variant.module == "clew" and share:
                        reached[name] = summary.minimum
    table = Table(
        title="One operation, nothing is sent: CPU time of the thread that does it",
        headings=["operation", "variant", "us, minimum", "us, median"],
        rows=[row for name in _NAMES for row in rows[name]],
        notes=[
            "Each figure has one call of a Python function in it, which is the first row.",
            (
                "Counters and histograms have two labels. The stock SDK's have nothing to bind: its bound rows pass one and "
                "the same dictionary each time."
            ),
            (
                "clew's log line goes to OTLP only, its terminal is off; the stock one goes through `logging` and "
                "opentelemetry-instrumentation-logging's handler."
            ),
            *missing,
        ],
    )
    aims = [Aim(what=name, at_most=at_most, measured=reached.get(name), unit="us") for name, at_most in _AIMS.items()]
    return Result(
        scenario="operations",
        tables=[table],
        aims=aims,
        settings=f"bursts of {QUEUED:,} spans or log lines, {COUNTED:,} of the rest; {plan.times(25)} rounds",
    )


def _rounds(
    plan: Plan, variants: Sequence[Variant], missing: list[str], *, only: str
) -> dict[Variant, list[Mapping[str, Any]]]:
    names: dict[int, list[str]] = {}

    def prepare(process: Process) -> None:
        offered = process.ask("prepare", part="operations")["operations"]
        names[process.pid] = [only] if only else offered

    def burst(_: Variant, process: Process) -> Mapping[str, Any]:
        return {name: _one(process, name) for name in names[process.pid]}

    with running(plan, variants, first=prepare) as runners:
        rounds = interleave(runners, plan.times(25), burst)
    missing += [f"{variant.title}: {reason}" for variant, reason in runners.missing.items()]
    return rounds


def _one(process: Process, name: str) -> float:
    count = QUEUED if name.startswith(("span", "log")) else COUNTED
    return float(process.ask("operation", name=name, count=count)["thread_ns"]) / count / 1e3
