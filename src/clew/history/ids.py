"""Ids of rows: they sort by the time they were made, so that the newest rows are the last of the primary key.

Source: https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from clew import clock
from clew.pipeline.tracing import random_bits

ID_LENGTH: Final = 32


def new_id(made_ns: int | None = None) -> str:
    """Return a UUID of version 7 as 32 hexadecimal digits.

    Args:
        made_ns: its time in nanoseconds since the epoch; by default now.

    Example:
        >>> new_id()[:12] <= new_id()[:12]
        True
    """
    # Not os.urandom(), which lets go of the interpreter: whoever asks waits until a thread that works is done with its turn
    random = random_bits(76)
    # After the version's 4 bits come 12 of chance, then the variant's 2 bits and 62 of chance
    high, low = random >> 64, random & (1 << 62) - 1
    made = (clock.now_ns() if made_ns is None else made_ns) // 1_000_000
    return f"{made << 80 | 7 << 76 | (high & 0xFFF) << 64 | 2 << 62 | low:032x}"


def made_at(identity: str) -> datetime:
    """Return when an id was made, to the millisecond.

    Raises:
        ValueError: it is no such id.

    Example:
        >>> made_at("01936c1b5a007000800000000000abcd").year
        2024
    """
    if len(identity) != ID_LENGTH:
        raise ValueError(f"{identity!r} is no id: an id has {ID_LENGTH} hexadecimal digits")
    return datetime.fromtimestamp((int(identity, 16) >> 80) / 1000, tz=UTC)


def least_id(at: datetime) -> str:
    """Return the least id that can have been made at a time: what was made earlier sorts before it.

    Example:
        >>> least_id(datetime(2024, 1, 1, tzinfo=UTC))
        '018cc251f40000000000000000000000'
    """
    return f"{max(0, int(at.timestamp() * 1000)) << 80:032x}"
