"""``clew run``: starts a command with every library that clew knows instrumented, without a line of code."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from clew.catalog import semconv
from clew.instrumentation import registry
from clew.settings import Settings

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

RUN_PID: Final = "CLEW_RUN_PID"
"""The variable in which a command that is itself a Python program finds its own process id."""

STARTUP_FOLDER: Final = Path(registry.__file__).parent / "startup"

_IDENTIFIERS: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
# An app as servers are told it: a module, and what is in it or makes it
_APP: Final = re.compile(rf"(?P<module>{_IDENTIFIERS}):{_IDENTIFIERS}(?:\(.*\))?")
# Those that may be started as a module, with the app among their arguments
_SERVERS: Final = frozenset({"celery", "uvicorn", "gunicorn", "hypercorn", "granian", "daphne", "faststream", "taskiq"})
# Options of Python that take a value, which is not the name of a program
_PYTHON_OPTIONS_WITH_VALUE: Final = frozenset({"-W", "-X", "--check-hash-based-pycs"})


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="run",
        help="Start COMMAND with FastAPI, Starlette, httpx, redis, SQLAlchemy and the rest instrumented.",
        # From the command on, everything is its own
        context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    )(run)


def run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="What to start, such as: uvicorn shop.orders:app --workers 2",
            show_default=False,
        ),
    ],
) -> None:
    """Become the command: its signals, output and exit code are its own.

    Settings come from the environment (``OTEL_*``, ``CLEW_*``). A service without a name is called after its app.

    Raises:
        SettingsError: a variable can't be used; nothing was started.

    Example::

        $ OTEL_SERVICE_NAME=orders clew run uvicorn shop.orders:app --workers 2
    """
    Settings.load()
    program = shutil.which(command[0])
    if program is None:
        print(f"clew: {command[0]}: no such command", file=sys.stderr)
        raise typer.Exit(NOT_FOUND)
    try:
        os.execve(program, command, environment_for(command, os.environ))  # noqa: S606 - what the user asked to start
    except OSError as error:
        print(f"clew: {command[0]}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(NOT_EXECUTABLE) from None


def environment_for(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a command starts instrumented.

    Example:
        >>> environment_for(["uvicorn", "shop.orders:app"], {})["OTEL_SERVICE_NAME"]
        'shop.orders'
    """
    made = dict(environment)
    path = [str(STARTUP_FOLDER)]
    # An empty entry would be the working directory, which was not asked for
    path += [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != path[0]]
    made["PYTHONPATH"] = os.pathsep.join(path)
    made.pop(RUN_PID, None)
    if Path(command[0]).name.startswith("python"):
        # The command keeps the process id of this one; its children do not
        made[RUN_PID] = str(os.getpid())
    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not environment.get("OTEL_SERVICE_NAME") and f"{semconv.SERVICE_NAME}=" not in attributes:
        made["OTEL_SERVICE_NAME"] = service_name_of(command)
    return made


def service_name_of(command: Sequence[str]) -> str:
    """Return what a service is called that was not given a name: its app's module, or its program.

    Example:
        >>> service_name_of(["uvicorn", "--port", "80", "shop.orders:app"])
        'shop.orders'
        >>> service_name_of(["celery", "-A", "shop.tasks", "worker"])
        'shop.tasks'
        >>> service_name_of(["python", "-m", "shop.worker", "--fast"])
        'shop.worker'
        >>> service_name_of(["python", "-u", "jobs/nightly.py"])
        'nightly'
    """
    program = Path(command[0]).name
    arguments = list(command[1:])
    if program.startswith("python"):
        return _python_program(arguments) or program
    if program == "celery" and (app_name := _celery_app(arguments)) is not None:
        return app_name
    apps = filter(None, map(_APP.fullmatch, arguments))
    return next((app["module"] for app in apps), program)


def _celery_app(arguments: Sequence[str]) -> str | None:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, separator, value = argument.partition("=")
        if argument in ("-A", "--app"):
            return following.partition(":")[0] or None
        if name == "--app" and separator:
            return value.partition(":")[0] or None
        if argument.startswith("-A"):
            return argument.removeprefix("-A").partition(":")[0]
    return None


def _python_program(arguments: list[str]) -> str | None:
    while arguments:
        argument = arguments.pop(0)
        if argument == "-m" and arguments:
            module, rest = arguments[0], arguments[1:]
            return service_name_of([module, *rest]) if module in _SERVERS else module
        if argument == "-c" or not argument.strip("-"):
            return None
        if argument in _PYTHON_OPTIONS_WITH_VALUE and arguments:
            arguments.pop(0)
        elif not argument.startswith("-"):
            return Path(argument).stem
    return None
