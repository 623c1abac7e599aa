"""Where commands print what people read: a terminal of any width, or a pipe."""

from __future__ import annotations

import os
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED: Final = 160
_UNLIMITED: Final = 10_000


def make_console(*, whole: bool = False) -> Console:
    """Return where tables go. A pipe has no width: lines there are as long as they need to be, within reason.

    Args:
        whole: the terminal, not the table, breaks a line that is too long for it, so that a path can be copied.
    """
    console = Console(highlight=False, emoji=False, markup=False)
    if whole:
        console.width = _UNLIMITED
    elif not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED
    return console


def show(console: Console, shown: Table | Text) -> None:
    """Print a table or text, without the spaces that a table has at the ends of its lines."""
    with console.capture() as captured:
        console.print(shown, soft_wrap=isinstance(shown, Text))
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    # A terminal that has no such letters shows that there are some
    console.file.write(text.encode(console.encoding, "replace").decode(console.encoding))
