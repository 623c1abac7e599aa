"""What begins with a process's records, whoever writes the first one: the agents that a module has declared are told of then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from clew.diagnostics import report

_companions: Final[list[Callable[[], object]]] = []


def accompany(begin: Callable[[], object]) -> None:
    """Have something begin as soon as there is a recorder. Once is enough.

    Args:
        begin: what; called once for each recorder.
    """
    if begin not in _companions:
        _companions.append(begin)


def begin_all() -> None:
    """Begin what accompanies a recorder that was just made."""
    for begin in tuple(_companions):
        try:
            begin()
        except Exception as error:
            report("history", error)
