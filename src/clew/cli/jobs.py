"""``clew jobs``: what is known of jobs, read from the history by any process, and control over those that schedulers have."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from clew import clock
from clew.cli.asking import (
    BAD_INPUT,
    FAILED,
    From,
    Hours,
    Json,
    To,
    asked_of,
    fail,
    opened_history,
    plain_json,
    print_json,
    say,
    say_where_it_goes_on,
)
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

_STATUSES: Final = "scheduled, running, completed, failed, cancelled, missed, skipped or lost"

OneJob = Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job only, by its name.", show_default=False)]
Scheduled = Annotated[str, typer.Argument(metavar="JOB", help="The job's id in its scheduler, or its name.")]
Instance = Annotated[str | None, typer.Option("--instance", help="The instance of the service, where several have it.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="The scheduler, where several have it.")]
User = Annotated[str | None, typer.Option("--user", help="Who asks for it.", show_default="your login name")]

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

    asked = asked_of(StatisticsQuestion, job=job, hours=hours)
    with opened_history() as reader:
        with reader.open() as connection:
            report = ReportAnswer.of(job_statistics.report(connection, job=asked.job, since=asked.begin()))
        schedules: dict[str, list[ScheduledJobAnswer]] = {}
        for planned in steering.planned(reader, job=asked.job):
            schedules.setdefault(planned.job, []).append(ScheduledJobAnswer.of(planned))
    if as_json:
        for one in (content := plain_json(report))["jobs"]:
            one["schedules"] = [plain_json(planned) for planned in schedules.get(one["job"], ())]
        print_json(content)
    else:
        _show_report(report, job, lambda at: job_tables.jobs_table(at, report, schedules, clock.utc_now()))
    if job and not report.jobs:
        raise typer.Exit(FAILED)


@jobs.command("runs")
def runs(  # noqa: PLR0913 - one option each
    *,
    job: OneJob = None,
    status: Annotated[str | None, typer.Option("--status", help=f"One of {_STATUSES}.", show_default=False)] = None,
    source: Annotated[str | None, typer.Option("--source", help="apscheduler, celery, taskiq or clew.")] = None,
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

    asked = asked_of(
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
    with opened_history() as reader, reader.open() as connection:
        page = job_runs.page(connection, asked.filter(), after=asked.after, before=asked.before, limit=asked.limit)
    answer = RunsAnswer.of(page, limit=min(asked.limit, paging.MAX_LIMIT))
    if as_json:
        print_json(plain_json(answer))
        return
    if answer.runs:
        console = terminal.make_console()
        terminal.show(console, job_tables.runs_table(console, answer.runs, clock.utc_now()))
    else:
        say("No such runs are known." if answer.next is None else "No such runs were found so far.")
    say_where_it_goes_on(answer.searched_to, answer.next)


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

    with opened_history() as reader:
        run = WholeRun.of(_one_run(reader, run_id))
    lines, problem = _log_lines(run) if logs else (None, None)
    if as_json:
        shown = None if lines is None else [{**vars(line), "at": line.at.isoformat()} for line in lines]
        print_json({**plain_json(run), "logs": shown})
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
        say(problem)


@jobs.command("stats")
def stats(
    *, job: OneJob = None, hours: Hours = None, since: From = None, until: To = None, as_json: Json = False
) -> None:
    """Tell how jobs do: runs, failures, durations. Times begin and end with whole hours."""
    from clew.cli import job_tables
    from clew.history import job_statistics
    from clew.http.job_answers import ReportAnswer
    from clew.http.job_questions import StatisticsQuestion

    asked = asked_of(StatisticsQuestion, **{"from": since, "to": until}, job=job, hours=hours)
    with opened_history() as reader, reader.open() as connection:
        known = job_statistics.report(connection, job=asked.job, since=asked.begin(), until=asked.until)
    report = ReportAnswer.of(known)
    if as_json:
        print_json(plain_json(report))
    else:
        _show_report(report, job, lambda at: job_tables.statistics_table(at, report, clock.utc_now()))
    if job and not report.jobs:
        raise typer.Exit(FAILED)


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
            fail("nobody can be asked whether this is meant: say so with --yes", BAD_INPUT)
        typer.confirm(f"Remove the job {job!r} from its scheduler?", abort=True, err=True)
    _steer("remove", job, instance, scheduler, user, as_json=as_json)


def _show_report(report: ReportAnswer, job: str | None, table: Callable[[Console], Table]) -> None:
    from clew.cli import terminal

    if not report.jobs:
        say(f"No job {job!r} is known." if job else "No jobs are known.")
        return
    console = terminal.make_console()
    terminal.show(console, table(console))
    if report.is_cut:
        say(f"There are more than these {len(report.jobs)} jobs: name one.")


def _steer(
    verb: Verb, job: str, instance: str | None, scheduler: str | None, user: str | None, *, as_json: bool
) -> None:
    from rich.text import Text

    from clew.cli import terminal
    from clew.cli.wording import plain
    from clew.http import steering
    from clew.http.job_answers import CommandAnswer
    from clew.jobs.control import UnknownJobError

    with opened_history() as reader:
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
            fail(f"no scheduler that is alive has a job {job!r}: 'clew jobs list' shows which there are", FAILED)
        command = _awaited(reader, command)
    if as_json:
        print_json(plain_json(CommandAnswer.of(command)))
    said = command.outcome or (
        f"its scheduler ({command.scheduler} of {command.instance}) has not taken it within {WAIT_S:.0f} s; it may within a minute"
    )
    is_done = said.startswith("done")
    if not is_done:
        fail(f"{job}: {said}", FAILED)
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
        fail(f"no scheduler that is alive has a job {wanted!r}: 'clew jobs list' shows which there are", FAILED)
    if len(ids) > 1:
        fail(f"several jobs are called {wanted!r}: name one by its id, {' or '.join(ids[:5])}", BAD_INPUT)
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
            fail(f"there is no run {part!r}{at_least}: it never was, or it is archived by now", FAILED)
        if len(alike) > 1:
            ids = "".join(f"\n  {row['id']}  {row['job']}" for row in alike)
            fail(f"several runs are meant by {part!r}: give more digits of one{ids}", BAD_INPUT)
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


def _login_name() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
