"""What the commands have in common that ask the history: how they are asked, where they read, and how they answer and fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from clew.settings import Settings

if TYPE_CHECKING:
    from clew.history.reading import Reader

FAILED: Final = 1
BAD_INPUT: Final = 2

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
Hours = Annotated[float | None, typer.Option("--hours", help="Of the last so many hours.", show_default=False)]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="From then on: 2026-01-31T12:00:00Z.")]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before then, written in the same way.")]

Q = TypeVar("Q", bound=BaseModel)


@contextmanager
def opened_history() -> Iterator[Reader]:
    """Return the history; what is in its way ends the command with a sentence."""
    from clew.history.database import DatabaseError
    from clew.history.reading import Reader
    from clew.http.steering import bury

    settings = Settings.load()
    try:
        reader = Reader(settings.history_url())
        try:
            if (missing := reader.missing) is not None:
                say(f"{missing[0].upper()}{missing[1:]}. CLEW_DATABASE_URL names another.")
            with suppress(DatabaseError):
                # What can't be written may be readable, and if not, reading says why
                bury(reader)
            yield reader
        finally:
            reader.close()
    except DatabaseError as error:
        fail(str(error), FAILED)


def asked_of(question: type[Q], **given: Any) -> Q:
    """Check what is asked; what can't be used ends the command with a sentence for each."""
    try:
        return question.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        sentences = []
        for item in error.errors():
            option = f"--{str(item['loc'][0]).replace('_', '-')}: " if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            sentences.append(f"{'JOB: ' if option == '--job: ' else option}{message[0].lower()}{message[1:]}")
        fail("; ".join(sentences), BAD_INPUT)


def plain_json(answer: BaseModel) -> dict[str, Any]:
    """Return an answer as the HTTP API gives it."""
    from clew.http.answers import to_json

    content: dict[str, Any] = json.loads(to_json(answer))
    return content


def print_json(content: Any) -> None:
    """Print JSON, and nothing else, on standard output."""

    def written(value: Any) -> str:
        return value.isoformat() if isinstance(value, datetime) else str(value)

    # Escaped, so that a terminal or pipe of any encoding takes it
    print(json.dumps(content, indent=2, default=written))


def say(sentence: str) -> None:
    """Say something to who looks at the terminal, not to who reads the output."""
    print(sentence, file=sys.stderr)


def fail(sentence: str, code: int) -> NoReturn:
    """End the command with a sentence.

    Raises:
        typer.Exit: always.
    """
    print(f"clew: {sentence}", file=sys.stderr)
    raise typer.Exit(code)


def say_where_it_goes_on(searched_to: datetime | None, following: str | None) -> None:
    """Say how older records are had, where there may be some."""
    if searched_to is not None:
        say(f"Looked back to {searched_to:%Y-%m-%d %H:%M:%S} UTC; further back with --after {following}")
    elif following is not None:
        say(f"Older ones: --after {following}")
