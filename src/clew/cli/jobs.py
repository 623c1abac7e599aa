"""``clew jobs``: what is known of jobs, read from the history by any process, and control over those that schedulers have."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from clew import clock
from clew.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from clew.cli.log_lines import LogLine
    from clew.history.reading import Reader
    from clew.http.job_answers import ReportAnswer, WholeRun
    from clew.jobs.control import Command, Job
    from clew.jobs.schedule import Verb

WAIT_S: Final = 10.0
"""How long a scheduler is waited for that was asked to do something."""

_FAILED: Final = 1
_BAD_INPUT: Final = 2
_STATUSES: Final = "scheduled, running, completed, failed, cancelled, missed, skipped or lost"

OneJob = Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job only, by its name.", show_default=False)]
Scheduled = Annotated[str, typer.Argument(metavar="JOB", help="The job's id in its scheduler, or its name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Hours = Annotated[float | None, typer.Option("--hours", help="Of the last so many hours.", show_default=False)]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="From then on: 2026-01-31T12:00:00Z.")]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before then, written in the same way.")]
Instance = Annotated[str | None, typer.Option("--instance", help="The instance of the service, where several have it.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="The scheduler, where several have it.")]
User = Annotated[str | None, typer.Option("--user", help="Who asks for it.", show_default="your login name")]

Q = TypeVar("Q", bound=BaseModel)

jobs: Final = typer.Typer(
    no_args_is_help=True,
    help="Jobs: which there are, what ran and how, and control over them. CLEW_DATABASE_URL names the history.",
    epilog="Exit codes: 0 done, 1 not found or failed, 2 given something that can't be used.",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(jobs, name="jobs")


@jobs.command("list")
def list_(*, job: OneJob = None, hours: Hours = None, as_json: Json = False) -> None:
    """List jobs, each with its last and its next run. `clew jobs runs` lists runs."""
    from clew.cli import job_tables
    from clew.history import job_statistics
    from clew.http import steering
    from clew.http.job_answers import ReportAnswer, ScheduledJobAnswer
    from clew.http.job_questions import StatisticsQuestion

    asked = _asked(StatisticsQuestion, job=job, hours=hours)
    with _history() as reader:
        with reader.open() as connection:
            report = ReportAnswer.of(job_statistics.report(connection, job=asked.job, since=asked.begin()))
        schedules: dict[str, list[ScheduledJobAnswer]] = {}
        for planned in steering.planned(reader, job=asked.job):
            schedules.setdefault(planned.job, []).append(ScheduledJobAnswer.of(planned))
    if as_json:
        for one in (content := _plain(report))["jobs"]:
            one["schedules"] = [_plain(planned) for planned in schedules.get(one["job"], ())]
        _print_json(content)
    else:
        _show_report(report, job, lambda at: job_tables.jobs_table(at, report, schedules, clock.utc_now()))
    if job and not report.jobs:
        raise typer.Exit(_FAILED)


@jobs.command("runs")
def runs(  # noqa: PLR0913 - one option each
    *,
    job: OneJob = None,
    status: Annotated[str | None, typer.Option("--status", help=f"One of {_STATUSES}.", show_default=False)] = None,
    source: Annotated[str | None, typer.Option("--source", help="apscheduler, celery or clew.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Those that this user asked for.")] = None,
    error: Annotated[str | None, typer.Option("--error", help="Words of the error.")] = None,
    hours: Hours = None,
    since: From = None,
    until: To = None,
    trace_id: Annotated[str | None, typer.Option("--trace-id", help="Those of a trace.")] = None,
    correlation_id: Annotated[str | None, typer.Option("--correlation-id", help="Those with this id.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, 500 at most.")] = 20,
    after: Annotated[str | None, typer.Option("--after", help="Older ones than a page's: its 'next'.")] = None,
    before: Annotated[str | None, typer.Option("--before", help="Newer ones than a page's: its 'previous'.")] = None,
    as_json: Json = False,
) -> None:
    """List runs of jobs, newest first."""
    from clew.cli import job_tables, terminal
    from clew.history import job_runs, paging
    from clew.http.job_answers import RunsAnswer
    from clew.http.job_questions import RunsQuestion

    asked = _asked(
        RunsQuestion,
        **{"from": since, "to": until},
        job=job,
        status=status,
        source=source,
        user=user,
        error=error,
        hours=hours,
        trace_id=trace_id,
        correlation_id=correlation_id,
        limit=limit,
        after=after,
        before=before,
    )
    with _history() as reader, reader.open() as connection:
        page = job_runs.page(connection, asked.filter(), after=asked.after, before=asked.before, limit=asked.limit)
    answer = RunsAnswer.of(page, limit=min(asked.limit, paging.MAX_LIMIT))
    if as_json:
        _print_json(_plain(answer))
        return
    if answer.runs:
        console = terminal.make_console()
        terminal.show(console, job_tables.runs_table(console, answer.runs, clock.utc_now()))
    else:
        _say("No such runs are known." if answer.next is None else "No such runs were found so far.")
    if answer.searched_to is not None:
        _say(f"Looked back to {answer.searched_to:%Y-%m-%d %H:%M:%S} UTC; further back with --after {answer.next}")
    elif answer.next is not None:
        _say(f"Older ones: --after {answer.next}")


@jobs.command("show")
def show(
    *,
    run_id: Annotated[str, typer.Argument(metavar="ID", help="The run's id, or how it begins or ends.")],
    logs: Annotated[
        bool, typer.Option("--logs/--no-logs", help="With its log lines, where a backend has them.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show a run of a job: when, how and why, its trace id and its log lines.

    Log lines are read from clew's console or Loki: CLEW_LOGS_URL names it, by default it is where telemetry is sent.
    """
    from clew.cli import job_tables, terminal
    from clew.http.job_answers import WholeRun

    with _history() as reader:
        run = WholeRun.of(_one_run(reader, run_id))
    lines, problem = _log_lines(run) if logs else (None, None)
    if as_json:
        shown = None if lines is None else [{**vars(line), "at": line.at.isoformat()} for line in lines]
        _print_json({**_plain(run), "logs": shown})
    else:
        console = terminal.make_console()
        terminal.show(console, job_tables.run_details(run, clock.utc_now()))
        if run.traceback:
            console.print()
            terminal.show(console, job_tables.traceback_text(run.traceback))
        if lines:
            console.print()
            terminal.show(console, job_tables.log_text(lines))
    if problem:
        _say(problem)


@jobs.command("stats")
def stats(
    *, job: OneJob = None, hours: Hours = None, since: From = None, until: To = None, as_json: Json = False
) -> None:
    """Tell how jobs do: runs, failures, durations. Times begin and end with whole hours."""
    from clew.cli import job_tables
    from clew.history import job_statistics
    from clew.http.job_answers import ReportAnswer
    from clew.http.job_questions import StatisticsQuestion

    asked = _asked(StatisticsQuestion, **{"from": since, "to": until}, job=job, hours=hours)
    with _history() as reader, reader.open() as connection:
        known = job_statistics.report(connection, job=asked.job, since=asked.begin(), until=asked.until)
    report = ReportAnswer.of(known)
    if as_json:
        _print_json(_plain(report))
    else:
        _show_report(report, job, lambda at: job_tables.statistics_table(at, report, clock.utc_now()))
    if job and not report.jobs:
        raise typer.Exit(_FAILED)


@jobs.command("run")
def run_(
    *, job: Scheduled, instance: Instance = None, scheduler: Scheduler = None, user: User = None, as_json: Json = False
) -> None:
    """Have a scheduler run a job now, once, whatever its schedule."""
    _steer("run", job, instance, scheduler, user, as_json=as_json)


@jobs.command("pause")
def pause(
    *, job: Scheduled, instance: Instance = None, scheduler: Scheduler = None, user: User = None, as_json: Json = False
) -> None:
    """Have a scheduler start no more runs of a job until it is resumed."""
    _steer("pause", job, instance, scheduler, user, as_json=as_json)


@jobs.command("resume")
def resume(
    *, job: Scheduled, instance: Instance = None, scheduler: Scheduler = None, user: User = None, as_json: Json = False
) -> None:
    """Have a scheduler go on with a job that was paused."""
    _steer("resume", job, instance, scheduler, user, as_json=as_json)


@jobs.command("remove")
def remove(
    *,
    job: Scheduled,
    instance: Instance = None,
    scheduler: Scheduler = None,
    user: User = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether it is meant.")] = False,
    as_json: Json = False,
) -> None:
    """Take a job from its scheduler. Its runs stay in the history."""
    if not yes:
        if not sys.stdin.isatty():
            _fail("nobody can be asked whether this is meant: say so with --yes", _BAD_INPUT)
        typer.confirm(f"Remove the job {job!r} from its scheduler?", abort=True, err=True)
    _steer("remove", job, instance, scheduler, user, as_json=as_json)


def _show_report(report: ReportAnswer, job: str | None, table: Callable[[Console], Table]) -> None:
    from clew.cli import terminal

    if not report.jobs:
        _say(f"No job {job!r} is known." if job else "No jobs are known.")
        return
    console = terminal.make_console()
    terminal.show(console, table(console))
    if report.is_cut:
        _say(f"There are more than these {len(report.jobs)} jobs: name one.")


def _steer(
    verb: Verb, job: str, instance: str | None, scheduler: str | None, user: str | None, *, as_json: bool
) -> None:
    from rich.text import Text

    from clew.cli import terminal
    from clew.cli.wording import plain
    from clew.http import steering
    from clew.http.job_answers import CommandAnswer
    from clew.jobs.control import UnknownJobError

    with _history() as reader:
        job_id = _job_id(steering.planned(reader, instance=instance), job)
        try:
            command = steering.ask(
                reader,
                job_id,
                verb,
                instance=instance,
                scheduler=scheduler,
                requested_by=user or _login_name(),
            )
        except UnknownJobError:
            _fail(f"no scheduler that is alive has a job {job!r}: 'clew jobs list' shows which there are", _FAILED)
        command = _awaited(reader, command)
    if as_json:
        _print_json(_plain(CommandAnswer.of(command)))
    said = command.outcome or (
        f"its scheduler ({command.scheduler} of {command.instance}) has not taken it within {WAIT_S:.0f} s; it may within a minute"
    )
    is_done = said.startswith("done")
    if not is_done:
        _fail(f"{job}: {said}", _FAILED)
    if not as_json:
        terminal.show(terminal.make_console(), Text(plain(f"{job}: {said.removeprefix('done: ')}")))


def _awaited(reader: Reader, command: Command) -> Command:
    from threading import Event

    from clew.http import steering

    deadline = clock.monotonic_s() + WAIT_S
    while command.outcome is None and clock.monotonic_s() < deadline:
        Event().wait(steering.POLL_S)
        command = steering.outcome(reader, command)
    return command


def _job_id(known: list[Job], wanted: str) -> str:
    """Return the id that is meant by an id or a name."""
    if any(job.job_id == wanted for job in known):
        return wanted
    ids = sorted({job.job_id for job in known if job.job == wanted})
    if not ids:
        _fail(f"no scheduler that is alive has a job {wanted!r}: 'clew jobs list' shows which there are", _FAILED)
    if len(ids) > 1:
        _fail(f"several jobs are called {wanted!r}: name one by its id, {' or '.join(ids[:5])}", _BAD_INPUT)
    return ids[0]


def _one_run(reader: Reader, part: str) -> Any:
    from clew.history import job_runs, paging

    digits = part.strip().lower().replace("-", "")
    with reader.open() as connection:
        if (found := job_runs.RUNS.one(connection, digits)) is not None:
            return found
        alike = job_runs.RUNS.alike(connection, digits)
        if not alike:
            at_least = f" (give {paging.MIN_PART} digits at least)" if len(digits) < paging.MIN_PART else ""
            _fail(f"there is no run {part!r}{at_least}: it never was, or it is archived by now", _FAILED)
        if len(alike) > 1:
            ids = "".join(f"\n  {row['id']}  {row['job']}" for row in alike)
            _fail(f"several runs are meant by {part!r}: give more digits of one{ids}", _BAD_INPUT)
        return job_runs.RUNS.one(connection, alike[0]["id"])


def _log_lines(run: WholeRun) -> tuple[list[LogLine] | None, str | None]:
    from clew.cli.log_lines import NoLogsError, log_lines

    if run.trace_id is None:
        return None, "No log lines: the run has no trace."
    settings = Settings.load()
    url = settings.logs_url or settings.destination("logs").address
    begin = run.started_at or run.recorded_at
    end = run.finished_at or clock.utc_now()
    try:
        lines = log_lines(url, run.trace_id, begin=begin, end=end, service=run.service)
    except NoLogsError as error:
        mend = "" if settings.logs_url else "; CLEW_LOGS_URL names clew's console or Loki"
        return None, f"No log lines: {error}{mend}."
    return lines, None if lines else f"No log lines: {url} has none of trace {run.trace_id}."


@contextmanager
def _history() -> Iterator[Reader]:
    """Return the history; what is in its way ends the command with a sentence."""
    from clew.history.database import DatabaseError
    from clew.history.reading import Reader
    from clew.http.steering import bury

    settings = Settings.load()
    try:
        reader = Reader(settings.history_url())
        try:
            if (missing := reader.missing) is not None:
                _say(f"{missing[0].upper()}{missing[1:]}. CLEW_DATABASE_URL names another.")
            with suppress(DatabaseError):
                # What can't be written may be readable, and if not, reading says why
                bury(reader)
            yield reader
        finally:
            reader.close()
    except DatabaseError as error:
        _fail(str(error), _FAILED)


def _asked(question: type[Q], **given: Any) -> Q:
    """Check what is asked; what can't be used ends the command with a sentence for each."""
    try:
        return question.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        sentences = []
        for item in error.errors():
            option = f"--{str(item['loc'][0]).replace('_', '-')}: " if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            sentences.append(f"{'JOB: ' if option == '--job: ' else option}{message[0].lower()}{message[1:]}")
        _fail("; ".join(sentences), _BAD_INPUT)


def _login_name() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _plain(answer: BaseModel) -> dict[str, Any]:
    from clew.http.answers import to_json

    content: dict[str, Any] = json.loads(to_json(answer))
    return content


def _print_json(content: Any) -> None:
    def written(value: Any) -> str:
        return value.isoformat() if isinstance(value, datetime) else str(value)

    # Escaped, so that a terminal or pipe of any encoding takes it
    print(json.dumps(content, indent=2, default=written))


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"clew: {sentence}", file=sys.stderr)
    raise typer.Exit(code)
