"""``clew demo``: what the command does, from its first line to its exit status."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from clew.demo.extras import check_extras
from clew.demo.settings import QUEUES, DemoError, default_data_dir

if TYPE_CHECKING:
    # The rest of the demo needs what may not be installed, so it is imported after that was looked at
    from clew.demo.scenario import ScenarioResult
    from clew.demo.system import DemoSystem

T = TypeVar("T")

_SCENARIO_TIMEOUT_S: Final = 50.0
_TELEMETRY_TIMEOUT_S: Final = 12.0
_POLL_EVERY_S: Final = 0.05
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Read the documents once, show one trace, and end.")] = False,
    documents: Annotated[
        int | None, typer.Option("--documents", min=1, help="With --once: how many documents; all by default.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where everything is kept.", show_default=str(default_data_dir()))
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65_535, help="The gateway's port; 0 for any.", show_default="8000 or any"),
    ] = None,
    console_port: Annotated[
        int | None,
        typer.Option(
            "--console-port", min=0, max=65_535, help="The console's port; 0 for any.", show_default="4318 or any"
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", help="Send telemetry to this OTLP/HTTP address instead of to a console of the demo's own."
        ),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option("--queue", help=f"Who carries the messages: {' or '.join(QUEUES)}.", show_default="valkey"),
    ] = None,
) -> None:
    """Run a small system that reads real documents, and show the one thread through it. Ends with Ctrl-C."""
    check_extras()
    from clew.demo.system import DemoSystem, Wishes

    terminal = Terminal(highlight=False)
    wishes = Wishes(data_dir=data_dir, port=port, console_port=console_port, endpoint=endpoint, queue=queue)
    with _stop_on_signals() as stop:
        # Plain text, whole lines: a step says more than a spinner, and reads well in a log
        system = DemoSystem(wishes, tell=lambda line: terminal.print(line, soft_wrap=True), should_stop=stop.is_set)
        try:
            status = _run(system, terminal, stop, once=once, documents=documents)
        finally:
            system.stop()
    if not once:
        terminal.print("Everything has ended.")
    raise typer.Exit(status)


def _run(system: DemoSystem, terminal: Terminal, stop: threading.Event, *, once: bool, documents: int | None) -> int:
    from clew.demo import live
    from clew.demo.processes import StoppedError

    # What an earlier run left in the console counts for nothing; what this one emits while it starts does
    since = datetime.now(UTC)
    try:
        system.start()
        if once:
            return _read_once(system, terminal, stop, documents, since)
        terminal.print(f"Data in {system.addresses.data_dir}. Ctrl-C ends it.", soft_wrap=True)
        live.show(system, terminal, stop)
    except StoppedError:
        return 128 + signal.SIGINT if once else 0
    except DemoError as error:
        print(f"clew demo: {error}", file=sys.stderr)
        return 1
    return 0


def _read_once(
    system: DemoSystem, terminal: Terminal, stop: threading.Event, documents: int | None, since: datetime
) -> int:
    from clew.demo import presentation
    from clew.demo.scenario import run_scenario

    addresses = system.addresses
    with _progress(terminal) as progress:
        result = _in_thread(
            lambda: run_scenario(
                addresses.gateway_url,
                documents,
                queue_url=addresses.queue_url,
                queue=system.settings.queue,
                timeout_s=_SCENARIO_TIMEOUT_S,
                progress=progress,
                should_stop=stop.is_set,
            ),
            system,
            stop,
        )
    terminal.print(presentation.outcome(result))
    if not addresses.console_url:
        terminal.print(
            f"The trace of '{result.shown.title}' is {result.shown.trace_id} at {addresses.endpoint}.", soft_wrap=True
        )
        return 0
    return _show_telemetry(system, terminal, stop, result, since)


def _show_telemetry(
    system: DemoSystem, terminal: Terminal, stop: threading.Event, result: ScenarioResult, since: datetime
) -> int:
    from clew.demo import presentation, records
    from clew.demo.telemetry import Console
    from clew.demo.verification import Expectations, await_nothing_missing

    settings = system.settings
    expected = Expectations.of(
        apart=settings.agents_apart, model=settings.model, stand_in=system.is_stand_in, queue=settings.queue
    )
    palette = presentation.Palette()
    with Console(system.addresses.console_url) as console:
        missing = await_nothing_missing(
            expected,
            console,
            result,
            since,
            gateway_url=system.addresses.gateway_url,
            timeout_s=_TELEMETRY_TIMEOUT_S,
            should_stop=stop.is_set,
        )
        terminal.rule(Text(f"The trace of '{result.shown.title}': {result.shown.trace_id}"), align="left")
        terminal.print(presentation.trace_tree(console.trace(result.shown.trace_id), palette, width=terminal.width))
        terminal.rule("Its log lines", align="left")
        terminal.print(presentation.log_table(console.logs(result.shown.trace_id), palette))
        terminal.rule("Runs of jobs", align="left")
        runs = records.runs_of_jobs(system.addresses.gateway_url, since)
        terminal.print(presentation.job_table(records.latest(runs), palette))
        terminal.rule("Metrics", align="left")
        terminal.print(presentation.metric_table(console.series(since), palette, width=terminal.width))
    if missing:
        print(f"clew demo: of {expected} that were expected, {len(missing)} are missing:", file=sys.stderr)
        for line in missing:
            print(f"  {line}", file=sys.stderr)
        return 1
    terminal.rule(style="green")
    terminal.print(f"All {expected} that were expected are there.", style="green")
    return 0


def _in_thread(work: Callable[[], T], system: DemoSystem, stop: threading.Event) -> T:
    """Do something that takes a while, and see meanwhile that the system still runs and that nobody wants it to end."""
    from clew.demo.processes import StoppedError

    done = threading.Event()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="scenario", daemon=True).start()
    while not done.wait(_POLL_EVERY_S):
        if stop.is_set():
            raise StoppedError("stopped")
        system.check()
    if stop.is_set():
        raise StoppedError("stopped")
    if failure:
        raise failure[0]
    return outcome[0]


@contextmanager
def _progress(terminal: Terminal) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far the scenario is: as bars on a terminal, as a line at the end of each part elsewhere."""
    if not terminal.is_terminal:
        yield lambda what, done, total: terminal.print(f"{what} {done} of {total}") if done == total else None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield advance


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Turn signals into an event: what is being started or stopped at that moment is not left half done."""
    stop = threading.Event()

    def wanted(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, wanted) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
