"""What is known of jobs, laid out for people: in a terminal of any width, in a pipe, with colours or without."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clew.cli.log_lines import LogLine
from clew.cli.wording import NOTHING, ago, duration, lines_of, moment, number, plain, share
from clew.http.job_answers import (
    ReportAnswer,
    RunAnswer,
    ScheduledJobAnswer,
    StatisticsAnswer,
    WholeRun,
)

SHORT_ID: Final = 8
"""Digits of an id that are shown in a table: its last ones, which are chance; the first ones are its time."""

_WIDE: Final = 100
_GAP: Final = 2
_LEAST: Final = 12
# Said elsewhere, or too long for a line. Loki has no dots in names
_NOT_SHOWN: Final = re.compile(
    r"(code[._](file|function|line)|correlation_id|exception[._]stacktrace|clew[._]job)([._]|$)"
)
_STYLES: Final = {
    "completed": "green",
    "running": "cyan",
    "scheduled": "cyan",
    "failed": "red",
    "lost": "red",
    "cancelled": "yellow",
    "missed": "yellow",
    "skipped": "yellow",
    "paused": "yellow",
}


def jobs_table(
    console: Console, report: ReportAnswer, schedules: dict[str, list[ScheduledJobAnswer]], now: datetime
) -> Table:
    """Return a row for each job: its last and next run, and how it does."""
    rows = []
    for job in report.jobs:
        planned = schedules.get(job.job, [])
        last = job.last_run
        rows.append(
            [
                _name(job.job),
                _status("running" if job.running else last.status if last else NOTHING),
                Text(ago((last.started_at or last.finished_at) if last else None, now)),
                _next(planned, now),
                Text(number(job.total)),
                _rate(job.success_rate),
                Text(duration(job.p95_s)),
                Text(plain(planned[0].trigger, max_length=60) if planned else ""),
            ]
        )
    titles = ["job", "status", "last run", "next run", ">runs", ">ok", ">p95", "trigger"]
    return _table(console, titles, rows, only_if_wide=("trigger",), cut=("trigger", "job"))


def runs_table(console: Console, runs: Sequence[RunAnswer], now: datetime) -> Table:
    """Return a row for each run."""
    rows = [
        [
            Text(run.id[-SHORT_ID:], style="dim"),
            _name(run.job),
            _status(run.status),
            Text(ago(run.started_at or run.scheduled_at or run.recorded_at, now)),
            Text(_progress(run) if run.status == "running" else duration(run.duration_s)),
            Text(plain(run.user_id or "", max_length=20)),
            Text(": ".join(plain(part, max_length=120) for part in (run.error_type, run.error_message) if part)),
        ]
        for run in runs
    ]
    titles = ["id", "job", "status", "started", ">took", "user", "error"]
    return _table(console, titles, rows, only_if_wide=("user",), cut=("error", "job"))


def statistics_table(console: Console, report: ReportAnswer, now: datetime) -> Table:
    """Return a row for each job, and one for all of them."""
    known: list[tuple[Text, StatisticsAnswer, str]] = [
        (_name(job.job), job, ago(job.last_success.finished_at if job.last_success else None, now))
        for job in report.jobs
    ]
    if len(report.jobs) != 1 or report.is_cut:
        known.append((Text("all jobs", style="bold"), report.overall, ""))
    rows = [
        [name, *_figures(one), Text(number(one.missed + one.skipped)), Text(number(one.running)), Text(last_success)]
        for name, one, last_success in known
    ]
    titles = ["job", ">runs", ">failed", ">ok", ">average", ">p50", ">p95", ">not run", ">running", ">last success"]
    return _table(console, titles, rows, only_if_wide=("not run", "running", "last success"), cut=("job",))


def run_details(run: WholeRun, now: datetime) -> Table:
    """Return what is known of a run, line by line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    error = ": ".join(plain(part) for part in (run.error_type, run.error_message) if part)
    process = " ".join(
        part for part in (run.service, run.instance, f"on {run.host}, pid {run.pid}" if run.host else "") if part
    )
    started_by = ", ".join(str(part) for part in (run.source, run.trigger, run.job_id) if part)
    late = f", {duration(run.lateness_s)} late" if run.lateness_s else ""
    for title, value in (
        ("run", run.id),
        ("job", plain(run.job)),
        ("status", _status(run.status)),
        ("error", Text(error, style="red")),
        ("progress", share(run.progress) if run.progress is not None else ""),
        ("attempt", str(run.attempt) if run.attempt != 1 else ""),
        ("due", moment(run.scheduled_at, now) if run.scheduled_at else ""),
        ("started", f"{moment(run.started_at, now)}{late}" if run.started_at else ""),
        ("finished", moment(run.finished_at, now) if run.finished_at else ""),
        ("took", duration(run.duration_s) if run.duration_s is not None else ""),
        ("heartbeat", moment(run.heartbeat_at, now) if run.status == "running" else ""),
        ("user", plain(run.user_id or "")),
        ("started by", plain(started_by)),
        ("process", plain(process)),
        ("duplicate of", run.duplicate_of or ""),
        ("trace", run.trace_id or ""),
        ("correlation", plain(run.correlation_id or "")),
        ("metadata", _json(run.metadata)),
        ("result", _json(run.result)),
    ):
        if value:
            table.add_row(title, value if isinstance(value, Text) else Text(value))
    return table


def traceback_text(traceback: str) -> Text:
    """Return a traceback as it was."""
    return Text("\n".join(lines_of(traceback)), style="red")


def log_text(lines: Iterable[LogLine]) -> Text:
    """Return log lines, one under the other."""
    text = Text()
    for line in lines:
        fields = " ".join(
            f"{plain(name)}={plain(value, max_length=80)}"
            for name, value in line.fields.items()
            if not _NOT_SHOWN.match(name)
        )
        level = line.level.lower()
        style = "red" if level in ("error", "critical", "fatal") else "yellow" if level.startswith("warn") else ""
        text.append(f"{line.at.astimezone():%H:%M:%S.%f}"[:-3], style="dim")
        text.append(f" {plain(level):<7.7} ", style=style)
        text.append(f"{plain(line.service)}  ", style="dim")
        text.append(plain(line.text, max_length=500))
        text.append(f"  {fields}\n" if fields else "\n", style="dim")
    text.rstrip()
    return text


def _table(
    console: Console,
    titles: Sequence[str],
    rows: Sequence[list[Text]],
    *,
    only_if_wide: Sequence[str],
    cut: Sequence[str],
) -> Table:
    """Return a table that fits the terminal.

    Args:
        console: the terminal.
        titles: of the columns; those of numbers begin with ``>``.
        rows: their cells.
        only_if_wide: columns that a narrow terminal goes without.
        cut: columns whose long values are cut to make room, the first one first.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    names = [title.removeprefix(">") for title in titles]
    said = [any(row[number].plain.strip() for row in rows) for number in range(len(names))]
    wide = console.width >= _WIDE
    kept = [number for number, name in enumerate(names) if name not in only_if_wide or (wide and said[number])]
    widths = {number: max([cell_len(names[number]), *(row[number].cell_len for row in rows)]) for number in kept}
    excess = sum(widths.values()) + _GAP * (len(kept) - 1) - console.width
    for name in cut:
        number = names.index(name)
        if number in widths and excess > 0:
            width = max(_LEAST, cell_len(name), widths[number] - excess)
            excess -= widths[number] - width
            for row in rows:
                row[number].truncate(width, overflow="ellipsis")
    for number in kept:
        table.add_column(names[number], justify="right" if titles[number].startswith(">") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[number] for number in kept))
    return table


def _figures(known: StatisticsAnswer) -> list[Text]:
    failed = Text(number(known.failed), style="red" if known.failed else "")
    times = (known.average_s, known.p50_s, known.p95_s)
    return [Text(number(known.total)), failed, _rate(known.success_rate), *(Text(duration(value)) for value in times)]


def _name(job: str) -> Text:
    return Text(plain(job, max_length=80))


def _status(status: str) -> Text:
    return Text(plain(status), style=_STYLES.get(status, ""))


def _rate(rate: float | None) -> Text:
    style = "" if rate is None else "green" if rate >= 0.99 else "yellow" if rate >= 0.9 else "red"
    return Text(share(rate), style=style)


def _next(planned: Sequence[ScheduledJobAnswer], now: datetime) -> Text:
    if planned and all(one.paused for one in planned):
        return _status("paused")
    dues = [one.next_run_at for one in planned if one.next_run_at is not None]
    if not dues:
        return Text("pending" if planned else NOTHING)
    due = min(dues)
    return Text("overdue" if (now - due).total_seconds() > 60 else ago(due, now) if due > now else "now")


def _progress(run: RunAnswer) -> str:
    return share(run.progress) if run.progress is not None else "..."


def _json(value: Any) -> str:
    return "" if value is None else plain(json.dumps(value, ensure_ascii=False, default=str))
