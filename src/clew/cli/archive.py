"""``clew archive``: what retention has taken out of the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from clew.cli.terminal import make_console, show
from clew.settings import Settings

_GROUP = typer.Typer(help="List, verify and restore archived records.", no_args_is_help=True)

_Files = Annotated[
    list[Path] | None, typer.Argument(metavar="[FILE]...", help="Archives; by default all of CLEW_ARCHIVE_DIR.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_GROUP, name="archive")


@_GROUP.command(name="list")
def list_() -> None:
    """List the archives in CLEW_ARCHIVE_DIR."""
    from clew.history.archive import ArchiveError, describe, files_in

    folder = Settings.load().archive_path()
    paths = files_in(folder)
    if not paths:
        print(f"There is no archive in {folder}.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header, justify in (
        ("table", "left"),
        ("rows", "right"),
        ("made", "left"),
        ("size", "right"),
        ("file", "left"),
    ):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    damaged = 0
    for path in paths:
        try:
            found = describe(path)
        except ArchiveError:
            damaged += 1
            table.add_row("?", "?", "?", _size(path.stat().st_size), str(path))
            continue
        made = f"{found.made_at:%Y-%m-%d %H:%M} UTC"
        table.add_row(found.table, f"{found.rows:,}", made, _size(found.size_bytes), str(path))
    # Whole, to be given to 'clew archive restore'
    show(make_console(whole=True), table)
    if damaged:
        print(f"{damaged} can't be read: 'clew archive verify' says why.")
        raise typer.Exit(1)


@_GROUP.command()
def verify(files: _Files = None) -> None:
    """Read archives to their end and compare their checksums; exit with 1 where one is damaged."""
    from clew.history import archive

    folder = Settings.load().archive_path()
    paths = files or archive.files_in(folder)
    damaged = 0
    for path in paths:
        try:
            print(f"{path}: {archive.verify(path):,} rows, whole")
        except archive.ArchiveError as error:
            damaged += 1
            print(error)
    if not paths:
        print(f"There is no archive in {folder}.")
    raise typer.Exit(1 if damaged else 0)


@_GROUP.command()
def restore(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Archives, as 'clew archive list' shows them.")
    ],
) -> None:
    """Put archived rows back into CLEW_DATABASE_URL; those that are there stay as they are. Exit with 1 where an archive is damaged.

    Rows that are older than is kept are archived again by the next clean-up: restore into a database of their own to keep them.
    """
    from clew.history import archive
    from clew.history.database import Database
    from clew.history.faults import answering

    settings = Settings.load()
    database = Database(settings.history_url())
    damaged = 0
    with answering(database):
        database.ensure(auto_upgrade=settings.database_auto_upgrade)
        for path in files:
            try:
                rows = archive.restore(path, database)
            except archive.ArchiveError as error:
                damaged += 1
                print(error)
            else:
                print(f"{path}: {rows:,} rows are in {database}")
    raise typer.Exit(1 if damaged else 0)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"
