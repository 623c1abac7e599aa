"""``clew queues``: what went through queues, read from the history by any process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from clew import clock
from clew.cli.asking import (
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
    from clew.history.reading import Reader

OneQueue = Annotated[
    str | None, typer.Argument(metavar="[QUEUE]", help="One queue only, by its name.", show_default=False)
]

queues: Final = typer.Typer(
    no_args_is_help=True,
    help="Queues: which there are, what went through them and what became of it. CLEW_DATABASE_URL names the history.",
    epilog="Exit codes: 0 done, 1 not found or failed, 2 given something that can't be used.",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(queues, name="queues")


@queues.command("list")
def list_(*, queue: OneQueue = None, as_json: Json = False) -> None:
    """List queues: what went through them in the last hour, in the last day, and in all."""
    from clew.cli import queue_tables, terminal
    from clew.history import messages
    from clew.http.queue_answers import QueueStatisticsAnswer
    from clew.http.queue_questions import QueuesQuestion

    asked = asked_of(QueuesQuestion, queue=queue)
    with opened_history() as reader, reader.open() as connection:
        known = messages.report(connection, queue=asked.queue)
        report = QueueStatisticsAnswer.of(known, messages.depths(connection, queue=asked.queue))
    if as_json:
        print_json(plain_json(report))
    elif report.queues or report.watched:
        console = terminal.make_console()
        if report.queues:
            terminal.show(console, queue_tables.queues_table(console, "queue", report.queues))
        if report.queues and report.watched:
            console.print()
        if report.watched:
            terminal.show(console, queue_tables.depths_table(console, report.watched, clock.utc_now()))
        if queue is not None and report.queues:
            for title, parts in (("type", report.types), ("source", report.sources)):
                console.print()
                terminal.show(console, queue_tables.queues_table(console, title, parts))
        if report.is_cut:
            say("There are more than these: name a queue.")
    else:
        say(f"Nothing is known of a queue {queue!r}." if queue else "No messages are known.")
    if queue and not (report.queues or report.watched):
        raise typer.Exit(FAILED)


@queues.command("messages")
def messages_(  # noqa: PLR0913 - one option each
    *,
    queue: OneQueue = None,
    direction: Annotated[str | None, typer.Option("--direction", help="sent or received.")] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="One of sent, cancelled, processed, failed, rejected, returned or dead_lettered."
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Those of this type.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Those that this service sent.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Those that were sent for this user.")] = None,
    error: Annotated[str | None, typer.Option("--error", help="Words of the error.")] = None,
    hours: Hours = None,
    since: From = None,
    until: To = None,
    trace_id: Annotated[str | None, typer.Option("--trace-id", help="Those of a trace.")] = None,
    correlation_id: Annotated[str | None, typer.Option("--correlation-id", help="Those with this id.")] = None,
    message_id: Annotated[
        str | None, typer.Option("--message-id", help="Every send of this one, and every try.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, 500 at most.")] = 20,
    after: Annotated[str | None, typer.Option("--after", help="Older ones than a page's: its 'next'.")] = None,
    before: Annotated[str | None, typer.Option("--before", help="Newer ones than a page's: its 'previous'.")] = None,
    as_json: Json = False,
) -> None:
    """List messages, newest first: sends, and tries to process them."""
    from clew.cli import queue_tables, terminal
    from clew.history import messages, paging
    from clew.http.queue_answers import MessagesAnswer
    from clew.http.queue_questions import MessagesQuestion

    asked = asked_of(
        MessagesQuestion,
        **{"from": since, "to": until},
        queue=queue,
        direction=direction,
        status=status,
        type=kind,
        source=source,
        user=user,
        error=error,
        hours=hours,
        trace_id=trace_id,
        correlation_id=correlation_id,
        message_id=message_id,
        limit=limit,
        after=after,
        before=before,
    )
    with opened_history() as reader, reader.open() as connection:
        page = messages.page(connection, asked.filter(), after=asked.after, before=asked.before, limit=asked.limit)
    answer = MessagesAnswer.of(page, limit=min(asked.limit, paging.MAX_LIMIT))
    if as_json:
        print_json(plain_json(answer))
        return
    if answer.messages:
        console = terminal.make_console()
        terminal.show(console, queue_tables.messages_table(console, answer.messages, clock.utc_now()))
    else:
        say("No such messages are known." if answer.next is None else "No such messages were found so far.")
    say_where_it_goes_on(answer.searched_to, answer.next)


@queues.command("show")
def show(
    *,
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The record's id, or how it begins or ends.")],
    as_json: Json = False,
) -> None:
    """Show a message: when and by whom it was sent or processed, its trace, and what it carried."""
    from clew.cli import queue_tables, terminal
    from clew.http.queue_answers import WholeMessage

    with opened_history() as reader:
        message = WholeMessage.of(_one_message(reader, record_id))
    if as_json:
        print_json(plain_json(message))
    else:
        terminal.show(terminal.make_console(), queue_tables.message_details(message, clock.utc_now()))


def _one_message(reader: Reader, part: str) -> Any:
    from clew.history import messages, paging

    digits = part.strip().lower().replace("-", "")
    with reader.open() as connection:
        if (found := messages.MESSAGES.one(connection, digits)) is not None:
            return found
        alike = messages.MESSAGES.alike(connection, digits)
        if not alike:
            at_least = f" (give {paging.MIN_PART} digits at least)" if len(digits) < paging.MIN_PART else ""
            fail(f"there is no message {part!r}{at_least}: it never was, or it is archived by now", FAILED)
        if len(alike) > 1:
            ids = "".join(f"\n  {row['id']}  {row['queue']}" for row in alike)
            fail(f"several messages are meant by {part!r}: give more digits of one{ids}", 2)
        return messages.MESSAGES.one(connection, alike[0]["id"])
