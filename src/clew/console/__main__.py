"""``python -m clew.console``: run the console with CLEW_CONSOLE_HOST, _PORT, _DATA_DIR, _TOKEN and _ADMIN_TOKEN."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from clew.console.errors import ConsoleError
from clew.console.server import DEFAULT_PORT, ConsoleServer, serve


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run the console and return the exit status: 0 after a stop by signal, 1 when it cannot run.

    Args:
        environment: the variables to read.
    """
    try:
        serve(
            host=environment.get("CLEW_CONSOLE_HOST") or "127.0.0.1",
            port=_port(environment),
            data_dir=environment.get("CLEW_CONSOLE_DATA_DIR") or _default_data_dir(environment),
            token=environment.get("CLEW_CONSOLE_TOKEN") or None,
            admin_token=environment.get("CLEW_CONSOLE_ADMIN_TOKEN") or None,
            on_ready=_announce,
        )
    except ConsoleError as error:
        sys.stderr.write(f"clew console: {error}\n")
        return 1
    return 0


def _announce(console: ConsoleServer) -> None:
    sys.stdout.write(f"clew console: OTLP/HTTP and JSON at {console.url}, data in {console.store.path}\n")
    sys.stdout.flush()


def _port(environment: Mapping[str, str]) -> int:
    port = environment.get("CLEW_CONSOLE_PORT") or str(DEFAULT_PORT)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5):
        raise ConsoleError(f"CLEW_CONSOLE_PORT={port[:80]!r} is not a port: give a whole number from 0 to 65535")
    return int(port)


def _default_data_dir(environment: Mapping[str, str]) -> Path:
    """Where the XDG base directory specification puts a program's data."""
    base = environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "clew" / "console"


if __name__ == "__main__":
    sys.exit(main())
