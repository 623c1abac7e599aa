"""``clew agents``: what is known of agents, their tasks and handoffs, read from the history by any process."""

from __future__ import annotations

from pathlib import Path
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

if TYPE_CHECKING:
    from datetime import datetime

    from clew.history.paging import Shelf
    from clew.history.reading import Reader


Limit = Annotated[int, typer.Option("--limit", "-n", help="How many, 500 at most.")]
After = Annotated[str | None, typer.Option("--after", help="Older ones than a page's: its 'next'.")]
Before = Annotated[str | None, typer.Option("--before", help="Newer ones than a page's: its 'previous'.")]
Task = Annotated[str | None, typer.Option("--task", help="About this, such as a document's id.")]
User = Annotated[str | None, typer.Option("--user", help="For this user.")]
TraceId = Annotated[str | None, typer.Option("--trace-id", help="Those of a trace.")]
CorrelationId = Annotated[str | None, typer.Option("--correlation-id", help="Those with this id.")]

agents: Final = typer.Typer(
    no_args_is_help=True,
    help="Agents: which there are, what they did, and who hands to whom. CLEW_DATABASE_URL names the history.",
    epilog="Exit codes: 0 done, 1 not found or failed, 2 given something that can't be used.",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(agents, name="agents")


@agents.command("list")
def list_(
    *,
    type: Annotated[str | None, typer.Option("--type", help="Agents of this kind.")] = None,
    service: Annotated[str | None, typer.Option("--service", help="Those of this service.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="active, idle, failing or gone.")] = None,
    hours: Hours = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, 1000 at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List agents, each with its state and how it does."""
    from clew.cli import agent_tables, terminal
    from clew.history import agents as known
    from clew.http.agent_answers import AgentsAnswer
    from clew.http.agent_questions import AgentsQuestion

    asked = asked_of(AgentsQuestion, type=type, service=service, state=state, hours=hours, limit=limit)
    with opened_history() as reader, reader.open() as connection:
        found = known.listed(
            connection,
            type=asked.type,
            service=asked.service,
            state=asked.state,
            since=asked.begin(),
            until=asked.until,
            limit=asked.limit,
        )
    answer = AgentsAnswer.of(found)
    if as_json:
        print_json(plain_json(answer))
        return
    if not answer.agents:
        say("No such agents are known.")
        return
    console = terminal.make_console()
    terminal.show(console, agent_tables.agents_table(console, answer.agents, clock.utc_now()))
    if answer.is_cut:
        say(f"There are more than these {len(answer.agents)} agents: --limit shows more.")


@agents.command("status")
def status(
    *,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.")],
    hours: Hours = None,
    as_json: Json = False,
) -> None:
    """Show an agent: its state in each process, and how its tasks go."""
    from clew.cli import agent_tables, terminal
    from clew.history import agents as known
    from clew.http.agent_answers import WholeAgent
    from clew.http.agent_questions import AgentQuestion

    asked = asked_of(AgentQuestion, hours=hours)
    with opened_history() as reader, reader.open() as connection:
        found = known.registered(connection, agent=agent)
        report = known.statistics(connection, agents=[agent], since=asked.begin())
    if not found:
        fail(f"there is no agent {agent!r}: 'clew agents list' shows which there are", FAILED)
    answer = WholeAgent.of_agent(found[0], report.agents[0] if report.agents else known.AgentStatistics(agent=agent))
    if as_json:
        print_json(plain_json(answer))
        return
    console, now = terminal.make_console(), clock.utc_now()
    terminal.show(console, agent_tables.agent_details(answer, now))
    console.print()
    terminal.show(console, agent_tables.places_table(console, answer, now))


@agents.command("history")
def history(  # noqa: PLR0913 - one option each
    *,
    agent: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", help="Of one agent only.", show_default=False)
    ] = None,
    record: Annotated[
        str | None, typer.Option("--id", help="One task, by its record's id, or how that begins or ends.")
    ] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="running, completed, failed, cancelled or lost.")
    ] = None,
    task: Task = None,
    user: User = None,
    error: Annotated[str | None, typer.Option("--error", help="Words of the error.")] = None,
    hours: Hours = None,
    since: From = None,
    until: To = None,
    trace_id: TraceId = None,
    correlation_id: CorrelationId = None,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    as_json: Json = False,
) -> None:
    """List tasks of agents, newest first; --id shows one of them."""
    from clew.cli import agent_tables, terminal
    from clew.history import agent_tasks, paging
    from clew.http.agent_answers import TasksAnswer, WholeTask
    from clew.http.agent_questions import TasksQuestion

    if record is not None:
        with opened_history() as reader:
            one = WholeTask.of(_one(reader, agent_tasks.TASKS, record, "task"))
        _show_one(one, agent_tables.task_details, as_json=as_json)
        return
    asked = asked_of(
        TasksQuestion,
        **{"from": since, "to": until},
        agent=agent,
        status=status,
        task=task,
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
        page = agent_tasks.page(connection, asked.filter(), after=asked.after, before=asked.before, limit=asked.limit)
    answer = TasksAnswer.of(page, limit=min(asked.limit, paging.MAX_LIMIT))
    if as_json:
        print_json(plain_json(answer))
        return
    if answer.tasks:
        console = terminal.make_console()
        terminal.show(console, agent_tables.tasks_table(console, answer.tasks, clock.utc_now()))
    _say_more("tasks", answer.next, answer.searched_to, found=bool(answer.tasks))


@agents.command("handoffs")
def handoffs(  # noqa: PLR0913 - one option each
    *,
    record: Annotated[
        str | None, typer.Option("--id", help="One handoff, by its id, or how that begins or ends.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="What this agent handed over.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="What was handed to this agent.")] = None,
    status: Annotated[
        str | None,
        typer.Option("--status", help="waiting, accepted, completed, failed, cancelled, unclaimed or lost."),
    ] = None,
    problem: Annotated[str | None, typer.Option("--problem", help="loop or too_deep.")] = None,
    task: Task = None,
    user: User = None,
    hours: Hours = None,
    since: From = None,
    until: To = None,
    trace_id: TraceId = None,
    correlation_id: CorrelationId = None,
    limit: Limit = 20,
    after: After = None,
    before: Before = None,
    as_json: Json = False,
) -> None:
    """List handoffs between agents, newest first; --id shows one of them."""
    from clew.cli import agent_tables, terminal
    from clew.history import handoffs as known
    from clew.history import paging
    from clew.http.agent_answers import HandoffsAnswer, WholeHandoff
    from clew.http.agent_questions import HandoffsQuestion

    if record is not None:
        with opened_history() as reader:
            one = WholeHandoff.of(_one(reader, known.HANDOFFS, record, "handoff"))
        _show_one(one, agent_tables.handoff_details, as_json=as_json)
        return
    asked = asked_of(
        HandoffsQuestion,
        **{"from": since, "to": until},
        source=source,
        target=target,
        status=status,
        problem=problem,
        task=task,
        user=user,
        hours=hours,
        trace_id=trace_id,
        correlation_id=correlation_id,
        limit=limit,
        after=after,
        before=before,
    )
    with opened_history() as reader, reader.open() as connection:
        page = known.page(connection, asked.filter(), after=asked.after, before=asked.before, limit=asked.limit)
    answer = HandoffsAnswer.of(page, limit=min(asked.limit, paging.MAX_LIMIT))
    if as_json:
        print_json(plain_json(answer))
        return
    if answer.handoffs:
        console = terminal.make_console()
        terminal.show(console, agent_tables.handoffs_table(console, answer.handoffs, clock.utc_now()))
    _say_more("handoffs", answer.next, answer.searched_to, found=bool(answer.handoffs))


@agents.command("graph")
def graph(
    *,
    agent: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", help="Of one agent only.", show_default=False)
    ] = None,
    hours: Hours = None,
    since: From = None,
    until: To = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw it into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Tell who hands to whom, how often, how long it takes, and what fails. Times begin and end with whole hours."""
    from clew.cli import agent_tables, terminal
    from clew.history import handoffs as known
    from clew.http.agent_answers import GraphAnswer
    from clew.http.agent_drawing import draw
    from clew.http.agent_questions import GraphQuestion

    asked = asked_of(GraphQuestion, **{"from": since, "to": until}, agent=agent, hours=hours)
    with opened_history() as reader, reader.open() as connection:
        found = known.graph(connection, agent=asked.agent, since=asked.begin(), until=asked.until)
    if svg is not None:
        try:
            svg.write_text(draw(found), encoding="utf-8")
        except OSError as error:
            fail(f"{svg} can't be written: {error.strerror or error}", BAD_INPUT)
    answer = GraphAnswer.of(found)
    if as_json:
        print_json(plain_json(answer))
    elif svg is not None:
        say(f"{len(answer.edges)} edges are drawn in {svg}.")
    elif answer.edges:
        console = terminal.make_console()
        terminal.show(console, agent_tables.graph_table(console, answer))
    else:
        say("No handoffs are known.")


def _one(reader: Reader, shelf: Shelf, part: str, what: str) -> Any:
    from clew.history import paging

    digits = part.strip().lower().replace("-", "")
    with reader.open() as connection:
        if (found := shelf.one(connection, digits)) is not None:
            return found
        alike = shelf.alike(connection, digits)
        if not alike:
            at_least = f" (give {paging.MIN_PART} digits at least)" if len(digits) < paging.MIN_PART else ""
            fail(f"there is no {what} {part!r}{at_least}: it never was, or it is archived by now", FAILED)
        if len(alike) > 1:
            ids = "".join(f"\n  {row['id']}" for row in alike)
            fail(f"several {what}s are meant by {part!r}: give more digits of one{ids}", BAD_INPUT)
        return shelf.one(connection, alike[0]["id"])


def _show_one(answer: Any, details: Any, *, as_json: bool) -> None:
    from clew.cli import job_tables, terminal

    if as_json:
        print_json(plain_json(answer))
        return
    console = terminal.make_console()
    terminal.show(console, details(answer, clock.utc_now()))
    if traceback := getattr(answer, "traceback", None):
        console.print()
        terminal.show(console, job_tables.traceback_text(traceback))


def _say_more(what: str, following: str | None, searched_to: datetime | None, *, found: bool) -> None:
    if not found:
        say(f"No such {what} are known." if following is None else f"No such {what} were found so far.")
    say_where_it_goes_on(searched_to, following)
