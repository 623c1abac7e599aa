"""``clew demo``."""

from __future__ import annotations

import typer

from clew.demo.command import demo


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="demo")(demo)
