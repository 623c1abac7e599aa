"""Values as people read them in a terminal: times relative to now, durations and numbers with their units, texts made harmless."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any, Final

NOTHING: Final = "-"
_UNITS: Final = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0))


def plain(value: Any, *, max_length: int = 0) -> str:
    r"""Return a text in one line, without what would steer a terminal.

    Args:
        value: what to show.
        max_length: how many characters; a longer text ends in an ellipsis. 0 is any number.

    Example:
        >>> plain("a\nb\x1b[31m"), plain("labyrinth", max_length=6)
        ('a b\\x1b[31m', 'labyr…')
    """
    text = " ".join(str(value).split())
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    if max_length and len(text) > max_length:
        return text[: max_length - 1] + "…"
    return text


def lines_of(value: str) -> list[str]:
    r"""Return a text's lines, each one harmless, with the spaces that they begin with.

    Example:
        >>> lines_of("def f():\n    return '\x07'")
        ['def f():', "    return '\\x07'"]
    """
    lines = value.expandtabs(4).splitlines()
    return ["".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line) for line in lines]


def duration(seconds: float | None) -> str:
    """Return a duration.

    Example:
        >>> [duration(value) for value in (0.0001, 0.0352, 2.184, 75, 7300, None)]
        ['0.1 ms', '35.2 ms', '2.18 s', '1 min 15 s', '2 h 1 min', '-']
    """
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 99.95 else f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return _two_units(round(seconds))


def ago(at: datetime | None, now: datetime) -> str:
    """Return how long ago something was, or when it will be.

    Example:
        >>> from datetime import UTC
        >>> now = datetime(2026, 1, 1, tzinfo=UTC)
        >>> ago(datetime(2025, 12, 31, 23, 57, tzinfo=UTC), now), ago(datetime(2026, 1, 3, tzinfo=UTC), now), ago(None, now)
        ('3 min ago', 'in 2 d', '-')
    """
    if at is None:
        return NOTHING
    seconds = (now - at).total_seconds()
    size = abs(seconds)
    if size < 1:
        return "now"
    for unit, length_s in _UNITS:
        if size >= length_s:
            return f"{size / length_s:.0f} {unit} ago" if seconds > 0 else f"in {size / length_s:.0f} {unit}"
    return "now"


def moment(at: datetime | None, now: datetime) -> str:
    """Return a time of this machine's zone, and how long ago that is.

    Example:
        >>> moment(None, datetime.now().astimezone())
        '-'
    """
    if at is None:
        return NOTHING
    return f"{at.astimezone().isoformat(sep=' ', timespec='milliseconds')} ({ago(at, now)})"


def number(value: int | None) -> str:
    """Return a number that can be read at a glance.

    Example:
        >>> number(995073)
        '995,073'
    """
    return NOTHING if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """Return a share as a percentage; what is not all is not shown as all.

    Example:
        >>> share(1.0), share(0.99996), share(0.934), share(0.00001), share(None)
        ('100 %', '99.9 %', '93.4 %', '0.1 %', '-')
    """
    if value is None:
        return NOTHING
    if value in (0.0, 1.0):
        return f"{value:.0%}".replace("%", " %")
    return f"{min(max(value * 100, 0.1), 99.9):.1f} %"


def _two_units(seconds: int) -> str:
    for (unit, length_s), (smaller, smaller_s) in pairwise(_UNITS):
        if seconds >= length_s:
            whole, rest = divmod(seconds, int(length_s))
            part = rest // int(smaller_s)
            return f"{whole} {unit} {part} {smaller}" if part else f"{whole} {unit}"
    return f"{seconds} s"
