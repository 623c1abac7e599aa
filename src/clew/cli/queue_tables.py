"""What is known of queues and messages, laid out for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clew.cli.job_tables import SHORT_ID, _table
from clew.cli.wording import NOTHING, ago, duration, moment, number, plain
from clew.history.messages import DEPTH_CURRENT_S
from clew.http.queue_answers import DepthAnswer, MessageAnswer, WholeMessage, WindowsAnswer

_STYLES: Final = {
    "processed": "green",
    "sent": "cyan",
    "failed": "red",
    "rejected": "red",
    "dead_lettered": "red",
    "returned": "yellow",
    "cancelled": "yellow",
}


def queues_table(console: Console, title: str, known: Sequence[WindowsAnswer]) -> Table:
    """Return a row for each queue, or for each type or source of messages."""
    rows = []
    for one in known:
        bad = one.last_day.failed + one.last_day.rejected + one.last_day.dead_lettered + one.last_day.not_sent
        rows.append(
            [
                Text(plain(one.name, max_length=80) or NOTHING),
                Text(number(one.total.sent)),
                Text(number(one.total.received)),
                Text(_pair(one.last_day.sent, one.last_day.received)),
                Text(_pair(one.last_hour.sent, one.last_hour.received)),
                Text(_rate(one.last_hour.received_per_s)),
                Text(number(bad), style="red" if bad else ""),
                Text(duration(one.last_day.wait_s)),
                Text(duration(one.last_day.process_s)),
            ]
        )
    titles = [title, ">sent", ">received", ">in 24 h", ">in 1 h", ">rate", ">bad in 24 h", ">waits", ">takes"]
    return _table(console, titles, rows, only_if_wide=("rate", "waits", "takes"), cut=(title,))


def depths_table(console: Console, known: Sequence[DepthAnswer], now: datetime) -> Table:
    """Return a row for each watched queue: what waits in it, or waited when somebody looked."""
    rows = []
    for one in known:
        is_old = (now - one.observed_at).total_seconds() > DEPTH_CURRENT_S
        style = "dim" if is_old else ""
        problem = one.problem or ("nobody looks any more" if is_old else "")
        rows.append(
            [
                Text(plain(one.queue, max_length=80)),
                Text(plain(one.consumer_group or "", max_length=40)),
                Text(NOTHING if one.problem else number(one.length), style=style),
                Text(duration(one.oldest_age_s), style=style),
                Text(ago(one.observed_at, now)),
                Text(plain(problem, max_length=120), style="red" if one.problem else "yellow"),
            ]
        )
    titles = ["watched queue", "group", ">waiting", ">the oldest for", "seen", "problem"]
    return _table(console, titles, rows, only_if_wide=("group",), cut=("problem", "watched queue"))


def messages_table(console: Console, messages: Sequence[MessageAnswer], now: datetime) -> Table:
    """Return a row for each message."""
    rows = [
        [
            Text(message.id[-SHORT_ID:], style="dim"),
            Text(plain(message.queue, max_length=80)),
            Text(plain(message.status), style=_STYLES.get(message.status, "")),
            Text(ago(message.finished_at or message.recorded_at, now)),
            Text(duration(message.wait_s)),
            Text(duration(message.duration_s)),
            Text(plain(message.type or "", max_length=40)),
            Text(plain(message.source or "", max_length=40)),
            Text(plain(message.user_id or "", max_length=20)),
            Text(
                ": ".join(plain(part, max_length=120) for part in (message.error_type, message.error_message) if part)
            ),
        ]
        for message in messages
    ]
    titles = ["id", "queue", "status", "when", ">waited", ">took", "type", "source", "user", "error"]
    return _table(console, titles, rows, only_if_wide=("type", "source", "user"), cut=("error", "queue"))


def message_details(message: WholeMessage, now: datetime) -> Table:
    """Return what is known of a message, line by line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    error = ": ".join(plain(part) for part in (message.error_type, message.error_message) if part)
    payload = "" if message.payload is None else plain(json.dumps(message.payload, ensure_ascii=False, default=str))
    for title, value in (
        ("message", message.id),
        ("queue", plain(f"{message.queue} ({message.system})")),
        ("status", Text(plain(message.status), style=_STYLES.get(message.status, ""))),
        ("error", Text(error, style="red")),
        ("messages", number(message.messages) if message.messages != 1 else ""),
        ("attempt", str(message.attempt) if message.attempt != 1 else ""),
        ("type", plain(message.type or "")),
        ("sent by", plain(message.source or "")),
        ("sent", moment(message.sent_at, now) if message.sent_at else ""),
        ("started", moment(message.started_at, now) if message.started_at else ""),
        ("finished", moment(message.finished_at, now) if message.finished_at else ""),
        ("waited", duration(message.wait_s) if message.wait_s is not None else ""),
        ("took", duration(message.duration_s) if message.duration_s is not None else ""),
        ("size", f"{message.size_bytes:,} bytes" if message.size_bytes is not None else ""),
        ("user", plain(message.user_id or "")),
        ("message id", plain(message.message_id or "")),
        ("group", plain(message.consumer_group or "")),
        ("envelope", plain(message.envelope or "")),
        ("process", plain(f"{message.service} {message.instance}")),
        ("trace", message.trace_id or ""),
        ("correlation", plain(message.correlation_id or "")),
        ("payload", payload),
    ):
        if value:
            table.add_row(title, value if isinstance(value, Text) else Text(value))
    return table


def _pair(sent: int, received: int) -> str:
    return f"{number(sent)}/{number(received)}"


def _rate(per_s: float | None) -> str:
    if per_s is None:
        return NOTHING
    return f"{per_s:,.1f}/s" if per_s >= 1 else f"{per_s * 60:.1f}/min"
