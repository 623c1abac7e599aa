"""The live summary of a running demo, and the reader that keeps submitting documents to it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx
from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clew.demo.corpus import documentation
from clew.demo.scenario import ScenarioError, put_malformed_envelope, submit
from clew.demo.settings import DemoError, Queue
from clew.demo.system import DemoSystem
from clew.demo.telemetry import Console, Stored

_REFRESH_EVERY_S: Final = 1.0
_LINE_EVERY_S: Final = 5.0
_FIRST_ROUND_PAUSE_S: Final = 0.3
_LATER_PAUSE_S: Final = 3.0
_REQUEST_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the reader has done so far."""

    submitted: int = 0
    failed: int = 0
    last_title: str = ""
    last_trace_id: str = ""
    problem: str = ""
    topics: tuple[str, ...] = ()


class Reader(threading.Thread):
    """Submits Python's documentation to the gateway: once through at speed, then a text every few seconds, round and round.

    Args:
        gateway_url: the gateway.
        queue: who carries the messages.
        queue_url: where one malformed envelope goes at the start.
        stop: set when it is to end.
    """

    def __init__(self, gateway_url: str, queue: Queue, queue_url: str, stop: threading.Event) -> None:
        super().__init__(name="reader", daemon=True)
        self._gateway_url = gateway_url
        self._queue, self._queue_url = queue, queue_url
        self._stop_wanted = stop
        self.reading = Reading()

    def run(self) -> None:
        """Submit until told to stop."""
        texts = documentation()
        with httpx.Client(base_url=self._gateway_url, timeout=_REQUEST_TIMEOUT_S, trust_env=False) as client:
            try:
                put_malformed_envelope(self._queue, self._queue_url)
            except ScenarioError as error:
                self._note(problem=str(error))
            for number, text in enumerate(itertools.cycle(texts)):
                if self._stop_wanted.wait(_FIRST_ROUND_PAUSE_S if number < len(texts) else _LATER_PAUSE_S):
                    return
                try:
                    document = submit(client, text)
                    topics = tuple(topic["name"] for topic in client.get("/topics?limit=6").raise_for_status().json())
                except (ScenarioError, httpx.HTTPError) as error:
                    self._note(failed=self.reading.failed + 1, problem=f"{type(error).__name__}: {error}")
                else:
                    self._note(
                        submitted=self.reading.submitted + 1,
                        last_title=document.title,
                        last_trace_id=document.trace_id,
                        topics=topics,
                    )

    def _note(self, **changes: object) -> None:
        self.reading = Reading(**{**vars(self.reading), **changes})


def show(system: DemoSystem, terminal: Terminal, stop: threading.Event) -> None:
    """Show what goes on until told to stop: in place on a terminal, a line now and then elsewhere.

    Args:
        system: the running demo.
        terminal: where to show it.
        stop: set when it is to end.

    Raises:
        DemoError: a process has ended by itself.
    """
    reader = Reader(system.addresses.gateway_url, system.settings.queue, system.addresses.queue_url, stop)
    reader.start()
    started = time.monotonic()
    url = system.addresses.console_url
    with Console(url or system.addresses.gateway_url) as console:

        def stored() -> Stored | None:
            try:
                return console.stored() if url else None
            except DemoError:
                return None  # too busy to answer in time: the next look will tell

        if terminal.is_terminal:
            _show_in_place(system, terminal, stop, lambda: _picture(system, reader.reading, stored(), started))
        else:
            _show_lines(system, terminal, stop, lambda: _line(reader.reading, stored(), started))


def _show_in_place(
    system: DemoSystem, terminal: Terminal, stop: threading.Event, picture: Callable[[], RenderableType]
) -> None:
    with Live(picture(), console=terminal, auto_refresh=False, transient=False) as live:
        while not stop.wait(_REFRESH_EVERY_S):
            system.check()
            live.update(picture(), refresh=True)


def _show_lines(system: DemoSystem, terminal: Terminal, stop: threading.Event, line: Callable[[], str]) -> None:
    due = time.monotonic() + _LINE_EVERY_S
    while not stop.wait(_REFRESH_EVERY_S):
        system.check()
        if time.monotonic() >= due:
            due += _LINE_EVERY_S
            terminal.print(line(), highlight=False, soft_wrap=True)


def _picture(system: DemoSystem, reading: Reading, stored: Stored | None, started: float) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="ellipsis", no_wrap=True)
    running = sum(member.is_running for member in system.members)
    grid.add_row("running", f"{running} processes for {time.monotonic() - started:.0f} s; Ctrl-C ends them")
    grid.add_row("documents", f"{reading.submitted} submitted{f', {reading.failed} failed' if reading.failed else ''}")
    if stored is not None:
        grid.add_row(
            "telemetry",
            f"{stored.traces:,} traces, {stored.spans:,} spans ({stored.errors:,} errors), {stored.logs:,} log lines, "
            f"{stored.metric_points:,} metric points",
        )
    grid.add_row("topics", ", ".join(reading.topics))
    grid.add_row("last read", reading.last_title)
    if reading.last_trace_id and system.addresses.console_url:
        grid.add_row("its trace", f"{system.addresses.console_url}/api/traces/{reading.last_trace_id}")
    if reading.problem:
        grid.add_row("problem", Text(reading.problem, style="yellow"))
    return Group(Text(""), grid)


def _line(reading: Reading, stored: Stored | None, started: float) -> str:
    parts = [f"{time.monotonic() - started:4.0f} s", f"{reading.submitted} documents"]
    if reading.failed:
        parts.append(f"{reading.failed} failed ({reading.problem})")
    if stored is not None:
        parts += [f"{stored.traces} traces", f"{stored.spans} spans", f"{stored.logs} logs"]
        parts += [f"{stored.metric_points} metric points", f"{stored.errors} errors"]
    return ", ".join(parts)
