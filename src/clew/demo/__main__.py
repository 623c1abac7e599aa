"""``python -m clew.demo``: the same as ``clew demo``."""

from __future__ import annotations

import sys

import typer

import clew
from clew.demo.command import demo


def main() -> None:
    """Run the demo; an error ends in one sentence on standard error."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="demo")(demo)
    try:
        app(prog_name="clew demo")
    except clew.ClewError as error:
        print(f"clew: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
