"""``clew llm``: what LLM calls used and cost, read from the history by any process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from clew.cli.asking import From, Hours, Json, To, asked_of, opened_history, plain_json, print_json, say

if TYPE_CHECKING:
    from clew.http.llm_answers import LlmUsageAnswer

llm: Final = typer.Typer(
    no_args_is_help=True,
    help="LLM calls: what was used by whom, and what it cost. CLEW_DATABASE_URL names the history.",
    epilog="Exit codes: 0 done, 1 not found or failed, 2 given something that can't be used.",
)


@llm.callback()
def _group() -> None:
    """Let there be more than one command: a group of one would be that command itself."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(llm, name="llm")


@llm.command("usage")
def usage(
    *,
    by: Annotated[str, typer.Option("--by", help="What is told apart: model, agent, user or day.")] = "model",
    service: Annotated[str | None, typer.Option("--service", help="Of this service only.", show_default=False)] = None,
    hours: Hours = None,
    since: From = None,
    until: To = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many, 500 at most.")] = 50,
    as_json: Json = False,
) -> None:
    """Tell what LLM calls used and cost. Times begin and end with whole hours."""
    from clew.cli import terminal
    from clew.cli.llm_tables import usage_table
    from clew.history import llm_usage
    from clew.http.llm_answers import LlmUsageAnswer
    from clew.http.llm_questions import UsageQuestion

    asked = asked_of(UsageQuestion, **{"from": since, "to": until}, by=by, service=service, hours=hours, limit=limit)
    with opened_history() as reader, reader.open() as connection:
        report = llm_usage.report(
            connection, by=asked.by, since=asked.begin(), until=asked.until, service=asked.service, limit=asked.limit
        )
    answer = LlmUsageAnswer.of(report)
    if as_json:
        print_json(plain_json(answer))
        return
    if not answer.usage:
        say("No LLM calls are known.")
        return
    console = terminal.make_console()
    terminal.show(console, usage_table(console, answer))
    _say_what_is_missing(answer)


def _say_what_is_missing(answer: LlmUsageAnswer) -> None:
    if answer.is_cut:
        say(f"There are more than these {len(answer.usage)}: --limit shows up to 500.")
    unpriced = answer.overall.calls - answer.overall.priced
    if unpriced:
        say(
            f"What {unpriced:,} of {answer.overall.calls:,} calls cost is not known: clew.llm_prices() says what a model costs."
        )
