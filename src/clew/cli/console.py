"""``clew console``: serves the embedded backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from clew.diagnostics import ClewError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="console")(console)


def console(
    *,
    host: Annotated[
        str, typer.Option("--host", envvar="CLEW_CONSOLE_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", envvar="CLEW_CONSOLE_PORT", min=0, max=65_535, help="Port to listen on; 0 for any.")
    ] = 4318,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", envvar="CLEW_CONSOLE_DATA_DIR", help="Where telemetry is kept.")
    ] = None,
) -> None:
    """Serve a backend of its own: OTLP/HTTP in, JSON out. Ends with Ctrl-C.

    CLEW_CONSOLE_TOKEN and CLEW_CONSOLE_ADMIN_TOKEN are the secrets that senders and readers on other machines present.
    """
    try:
        from clew.console.__main__ import main
    except ModuleNotFoundError as error:
        raise ClewError(
            f"the console needs {error.name}, which is not installed: pip install 'clew[console]'"
        ) from error
    given = {"CLEW_CONSOLE_HOST": host, "CLEW_CONSOLE_PORT": str(port)}
    if data_dir is not None:
        given["CLEW_CONSOLE_DATA_DIR"] = str(data_dir)
    raise typer.Exit(main({**os.environ, **given}))
