"""The real texts that the demo reads: the documentation that comes with every Python, and a few that no reader can use."""

from __future__ import annotations

from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Final

_RULES: Final = frozenset("*=-~^#\"'")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text to be read.

    Attributes:
        title: its first line.
        text: all of it.
    """

    title: str
    text: str


def documentation(most: int | None = None) -> list[Text]:
    """Return Python's own documentation texts, in the order of their names.

    Args:
        most: only so many, spread evenly over all of them; ``None`` for all.

    Example:
        >>> documentation(2)[0].title
        'The "assert" statement'
    """
    names = sorted(topics)
    if most is not None and most < len(names):
        names = [names[index * len(names) // most] for index in range(most)]
    return [Text(title=_title(topics[name], name), text=topics[name]) for name in names]


def _title(text: str, name: str) -> str:
    lines = [line.strip() for line in text.splitlines()[:2]]
    # A heading is a line with a rule below it
    return lines[0] if len(lines) == 2 and lines[1] and set(lines[1]) <= _RULES else name
