"""Messages through a real Valkey, by FastStream: how many a second, and the CPU time of one that is sent and processed."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.catalogue import MESSAGES, Variant
from benchmarks.measure import Plan, Runners, Summary, interleave, running, sink
from benchmarks.processes import Process
from benchmarks.table import Cell, Result, Table
from benchmarks.valkey import valkey

MINUTES: Final = 1.5
# Few enough that no queue of spans overflows
COUNT: Final = 500


def run(plan: Plan) -> Result:
    """Send and process messages in every variant in turn."""
    variants = plan.wanted(MESSAGES)
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder, valkey() as address, sink(plan) as (there, url):
        files = {variant: Path(folder) / f"{variant.name}.db" for variant in variants}
        told = {_told(variant, address, url, files[variant]): variant for variant in variants}

        def burst(_: Variant, process: Process) -> Mapping[str, Any]:
            return {**process.ask("messages", count=COUNT), **there.ask("take")}

        with running(plan, list(told), first=lambda process: process.ask("prepare", part="messages")) as runners:
            rounds = interleave(runners, plan.times(20), burst)
            kept = {variant: _rows_in(file) for variant, file in files.items()}
    found = {told[variant]: bursts for variant, bursts in rounds.items()}
    runners.missing = {told[variant]: reason for variant, reason in runners.missing.items()}
    table = Table(
        title="FastStream on Valkey: a message is sent to a stream, and processed by a consumer of its group",
        headings=[
            "variant",
            "messages/s, most",
            "messages/s, median",
            "CPU us/message, minimum",
            "CPU us/message, median",
            "added us, minimum",
            "x bare",
            "added, x FastStream's own",
            "spans arrived / message",
            "logs arrived / message",
            "records written / message",
        ],
        rows=_rows(variants, found, runners, kept, bursts=plan.times(20) + 1),
        notes=[
            "Producer and consumer are one process; Valkey and the OTLP endpoint are on the other core.",
            (
                f"The rate ends with the last of {COUNT} messages. CPU time is the whole process's until all spans, metrics and "
                "logs have been sent and all records are committed."
            ),
            "A message has a record of its send, and one of the try to process it.",
        ],
    )
    settings = f"bursts of {COUNT} messages in turn; {plan.times(20)} rounds"
    return Result(scenario="queue", tables=[table], aims=[], settings=settings)


def _told(variant: Variant, address: str, url: str, file: Path) -> Variant:
    told = variant.having(valkey=address, endpoint=url if variant.exports else "")
    return replace(told, variables={**variant.variables, "CLEW_DATABASE_URL": f"sqlite:///{file}"})


def _rows_in(file: Path) -> int:
    if not file.exists():
        return 0
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM queue_messages").fetchone()[0])
    finally:
        connection.close()


def _rows(
    variants: Sequence[Variant],
    found: Mapping[Variant, Sequence[Mapping[str, Any]]],
    runners: Runners,
    kept: Mapping[Variant, int],
    *,
    bursts: int,
) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    least = {
        variant.module: min(burst["process_ns"] for burst in bursts_of) / COUNT / 1e3
        for variant, bursts_of in found.items()
    }
    bare, own = least.get("bare"), least.get("stock")
    for variant in variants:
        if variant not in found:
            rows.append([f"{variant.title}: {runners.missing.get(variant, 'not run')}", *([None] * 10)])
            continue
        wall = Summary.of([burst["wall_ns"] / 1e9 for burst in found[variant]])
        spent = Summary.of([burst["process_ns"] / COUNT / 1e3 for burst in found[variant]])
        rows.append(
            [
                variant.title,
                COUNT / wall.minimum,
                COUNT / wall.median,
                spent.minimum,
                spent.median,
                None if bare is None else spent.minimum - bare,
                None if bare is None else spent.minimum / bare,
                None if bare is None or own is None else (spent.minimum - bare) / (own - bare),
                *(
                    sum(burst[signal] for burst in found[variant]) / COUNT / len(found[variant])
                    for signal in ("traces", "logs")
                ),
                kept[variant] / COUNT / bursts,
            ]
        )
    return rows
