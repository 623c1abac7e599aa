"""Results as tables: the same rows on the terminal, in JSON and in the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        title: what it shows, in a line.
        headings: what each column is, with its unit.
        rows: the cells; numbers are written with as many digits as they deserve.
        notes: what one must know to read it.
    """

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What clew wants to reach, and what it did in this run.

    Attributes:
        what: the aim, in words.
        at_most: its limit.
        measured: what came out, or ``None`` when it could not be measured.
        unit: of both.
    """

    what: str
    at_most: float
    measured: float | None
    unit: str

    @property
    def verdict(self) -> str:
        """Return whether it was reached, in a word."""
        if self.measured is None:
            return "not measured"
        return "met" if self.measured <= self.at_most else "**missed**"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one scenario found.

    Attributes:
        scenario: its name.
        tables: what it found.
        aims: what it was to find.
        settings: how it was run, in a line.
    """

    scenario: str
    tables: list[Table]
    aims: list[Aim] = field(default_factory=list)
    settings: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Read what :meth:`as_json` returned."""
        return cls(
            scenario=data["scenario"],
            tables=[Table(**table) for table in data["tables"]],
            aims=[Aim(**aim) for aim in data["aims"]],
            settings=data["settings"],
        )


def text(cell: Cell) -> str:
    """Write one cell; a dash where there is nothing.

    Example:
        >>> text(12345.6), text(25.04), text(0.361)
        ('12,346', '25.0', '0.361')
    """
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}" if abs(cell) >= 1 else f"{cell:.3f}"


def markdown(table: Table) -> str:
    """Return a table as Markdown, laid out to be read on a terminal, too."""
    cells = [table.headings, *([text(cell) for cell in row] for row in table.rows)]
    columns = range(len(table.headings))
    widths = [max(len(row[column]) for row in cells) for column in columns]
    numbers = [any(isinstance(row[column], int | float) for row in table.rows) for column in columns]
    lines = [_line(row, widths, numbers) for row in cells]
    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numbers, strict=True)) + "|"
    parts = [f"**{table.title}**", "", lines[0], rule, *lines[1:]]
    if table.notes:
        parts += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(parts)


def aims_table(aims: Sequence[Aim]) -> str:
    """Return the aims of a scenario as Markdown."""
    return markdown(
        Table(
            title="Aims",
            headings=["clew's aim", "at most", "measured", ""],
            rows=[
                [aim.what, f"{text(aim.at_most)} {aim.unit}", f"{text(aim.measured)} {aim.unit}", aim.verdict]
                for aim in aims
            ],
        )
    )


def _line(cells: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
    columns = zip(cells, widths, numbers, strict=True)
    written = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
    return "| " + " | ".join(written) + " |"
