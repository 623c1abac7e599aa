"""The endpoint is away: what it does to the app, what is lost, and how long the process takes to end."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.catalogue import CLEW, GRPC, LOGFIRE, STOCK, Variant
from benchmarks.environments import NotInstalledError, say
from benchmarks.measure import Plan, sink, start
from benchmarks.processes import Process, ProcessError, cores
from benchmarks.table import Aim, Cell, Result, Table, text

MINUTES: Final = 10.5
# Each operation makes two spans: 2,000 spans a second
OPERATIONS_PER_S: Final = 1_000
DEADLINE_S: Final = 5.0
END_TIMEOUT_S: Final = 90.0
CONDITIONS: Final = ("healthy", "refused", "silent")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one variant did under one condition.

    Attributes:
        worked: what its process measured.
        end_s: how long the process took to end, in seconds.
        emitted: spans made.
        received: spans that an endpoint got in the end.
    """

    worked: dict[str, Any]
    end_s: float
    emitted: int
    received: int


def run(plan: Plan) -> Result:
    """Measure every variant: with a healthy endpoint, then refused and silent at the same time on a core each."""
    rows: list[list[Cell]] = []
    clew: dict[str, Outcome] = {}
    for variant in plan.wanted((CLEW, STOCK, GRPC, LOGFIRE)):
        say(f"outage: {variant.title} ...")
        try:
            found = _measure(plan, variant)
        except (NotInstalledError, ProcessError) as error:
            rows.append([f"{variant.title}: {error}", *[None] * 8])
            continue
        if variant is CLEW:
            clew = found
        rows += [_row(variant, condition, found) for condition in CONDITIONS]
    halves = [f"{text(p99_s * 1e3)}" for p99_s in clew["healthy"].worked["p99_halves_s"]] if clew else []
    table = Table(
        title=f"An endpoint that is away for {plan.outage_s:g} s, at 2,000 spans a second",
        headings=[
            "variant",
            "endpoint",
            "p50 ms",
            "p99 ms",
            "p99, % of healthy",
            "RSS growth, MB",
            "to exit, s",
            "spans lost",
            "lost, %",
        ],
        rows=rows,
        notes=[
            (
                "An operation is a span with a child and a little work, timed from when it was due: a thread that encodes "
                "and keeps the interpreter from going on is in it."
            ),
            (
                "The process ends while its endpoint is still away, as a program ends that has nothing more to do. Then the "
                "endpoint is back, and what clew left on disk is sent by its next start; the others leave nothing behind."
            ),
            (
                "Refused and silent run at the same time, each on a core of its own; healthy runs alone, with the endpoint on "
                "the other core."
            ),
            *(
                [f"clew's p99 in the halves of its healthy run: {' and '.join(halves)} ms: less is noise."]
                if halves
                else []
            ),
        ],
    )
    return Result(
        scenario="outage", tables=[table], aims=_aims(clew), settings=f"{plan.outage_s:g} s under each condition"
    )


def _aims(clew: dict[str, Outcome]) -> list[Aim]:
    aims = []
    for condition in ("refused", "silent"):
        found = clew.get(condition)
        aims += [
            Aim(
                what=f"p99 with the endpoint {condition}, against a healthy one",
                at_most=102.0,
                measured=100 * found.worked["p99_s"] / clew["healthy"].worked["p99_s"] if found else None,
                unit="%",
            ),
            Aim(
                what=f"exit with the endpoint {condition}",
                at_most=DEADLINE_S,
                measured=found.end_s if found else None,
                unit="s",
            ),
            Aim(
                what=f"spans lost with the endpoint {condition}",
                at_most=0,
                measured=found.emitted - found.received if found else None,
                unit="spans",
            ),
        ]
    return aims


def _row(variant: Variant, condition: str, found: dict[str, Outcome]) -> list[Cell]:
    outcome = found[condition]
    lost = max(0, outcome.emitted - outcome.received)
    return [
        variant.title,
        condition,
        outcome.worked["p50_s"] * 1e3,
        outcome.worked["p99_s"] * 1e3,
        100 * outcome.worked["p99_s"] / found["healthy"].worked["p99_s"],
        outcome.worked["rss_growth_bytes"] / 1e6,
        outcome.end_s,
        lost,
        100 * lost / outcome.emitted,
    ]


def _measure(plan: Plan, variant: Variant) -> dict[str, Outcome]:
    kind = "grpc" if variant is GRPC else "http"
    first, second = cores()
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder:
        spools = {condition: str(Path(folder) / condition) for condition in CONDITIONS}
        with sink(plan, kind) as (endpoint, url), _worker(plan, variant, url, spools["healthy"], first) as worker:
            worked = worker.ask("work", rate=OPERATIONS_PER_S, seconds=plan.outage_s, timeout_s=plan.outage_s * 4 + 60)
            end_s = worker.end(END_TIMEOUT_S)
            healthy = Outcome(
                worked=worked, end_s=end_s, emitted=2 * worked["operations"], received=endpoint.ask("take")["traces"]
            )
        away = _outages(plan, variant, kind, spools, {"refused": first, "silent": second})
    return {"healthy": healthy, **away}


def _outages(
    plan: Plan, variant: Variant, kind: str, spools: dict[str, str], held_on: dict[str, int | None]
) -> dict[str, Outcome]:
    """Run both outages at once; then bring the endpoints back and see what arrives."""
    refused_port = _free_port()
    with contextlib.ExitStack() as workers, sink(plan, "silent", core=held_on["silent"]) as (_, silent_url):
        urls = {"refused": f"http://127.0.0.1:{refused_port}", "silent": silent_url}
        started = {
            name: workers.enter_context(_worker(plan, variant, url, spools[name], held_on[name]))
            for name, url in urls.items()
        }
        for worker in started.values():
            worker.tell("work", rate=OPERATIONS_PER_S, seconds=plan.outage_s)
        worked = {name: worker.answer(plan.outage_s * 4 + 60) for name, worker in started.items()}
        with ThreadPoolExecutor() as both:
            took = both.map(lambda worker: worker.end(END_TIMEOUT_S), started.values())
            end_s = dict(zip(started, took, strict=True))
    found = {}
    for name, url in urls.items():
        emitted = 2 * worked[name]["operations"]
        port = int(url.rsplit(":", 1)[1])
        with sink(plan, kind, port) as (endpoint, _):
            received = _replayed(plan, variant, url, spools[name], endpoint, emitted)
        found[name] = Outcome(worked=worked[name], end_s=end_s[name], emitted=emitted, received=received)
    return found


def _replayed(plan: Plan, variant: Variant, url: str, spool: str, endpoint: Process, emitted: int) -> int:
    """Start the program again, now that its endpoint is back, and return how many spans of the outage arrive."""
    received = 0
    with _worker(plan, variant, url, spool, None) as worker:
        quiet_since = time.monotonic()
        while received < emitted and time.monotonic() - quiet_since < 3.0:
            worker.ask("flush")
            arrived = endpoint.ask("take")["traces"]
            received += arrived
            if arrived:
                quiet_since = time.monotonic()
            elif not Path(spool).exists():
                break
            time.sleep(0.2)
    return received


@contextlib.contextmanager
def _worker(plan: Plan, variant: Variant, url: str, spool: str, core: int | None) -> Iterator[Process]:
    told = variant.having(endpoint=url)
    with start(plan, told, "benchmarks.worker", core=core, CLEW_SPOOL_DIR=spool) as process:
        process.ask("prepare", part="spans")
        yield process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
