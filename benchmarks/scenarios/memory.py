"""Memory under a label that takes any value: an id that somebody made a label by mistake."""

from __future__ import annotations

from typing import Final

from benchmarks.catalogue import CLEW, PROMETHEUS, STOCK
from benchmarks.measure import Plan, Summary, running
from benchmarks.processes import ProcessError
from benchmarks.table import Cell, Result, Table

MINUTES: Final = 0.5
VALUES: Final = 20_000


def run(plan: Plan) -> Result:
    """Count under many label values, each time in a fresh process."""
    rounds = plan.times(3)
    variants = plan.wanted((CLEW, STOCK, PROMETHEUS))
    grown: dict[str, list[float]] = {variant.title: [] for variant in variants}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        with running(plan, variants, first=lambda process: process.ask("prepare", part="labels")) as runners:
            for variant, process in list(runners.running.items()):
                try:
                    answer = process.ask("labels", count=VALUES)
                except ProcessError as error:
                    runners.fail(variant, error)
                    continue
                grown[variant.title].append(answer["rss_growth_bytes"] / 1e6)
        missing |= {variant.title: reason for variant, reason in runners.missing.items()}
    rows: list[list[Cell]] = []
    for variant in variants:
        title = variant.title.removesuffix(", OTLP/HTTP")
        if not grown[variant.title]:
            rows.append([f"{title}: {missing.get(variant.title, 'not run')}", None, None])
            continue
        summary = Summary.of(grown[variant.title])
        rows.append([title, summary.minimum, summary.median])
    table = Table(
        title=f"A counter and a histogram under {VALUES:,} values of a label: growth of the process",
        headings=["variant", "MB, minimum", "MB, median"],
        rows=rows,
        notes=[
            (
                "clew and the SDK keep 2,000 series of an instrument by default and count the rest together; prometheus_client "
                "keeps all."
            )
        ],
    )
    return Result(scenario="memory", tables=[table], settings=f"{rounds} rounds, each in fresh processes")
