"""The ``clew`` command and what all of its commands share: exit codes and errors in one sentence.

Exit codes: 0 done, 1 found something wrong or missing, 2 the command was given something it can't use.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Annotated, Final

import typer

from clew._version import __version__
from clew.diagnostics import ClewError

app: Final = typer.Typer(
    name="clew",
    help="One thread through HTTP requests, queue messages, scheduled jobs, agent handoffs and LLM calls.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_COMMANDS: Final = ("run", "demo", "console", "doctor", "jobs", "llm", "db", "archive")


def _version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"clew {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=lambda wanted: _version(wanted=wanted), is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def main() -> None:
    """Run the command line; an error of clew's own ends in one sentence on standard error."""
    for name in _COMMANDS:
        importlib.import_module(f"clew.cli.{name}").register(app)
    try:
        app()
    except ClewError as error:
        print(f"clew: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
