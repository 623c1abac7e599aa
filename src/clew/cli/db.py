"""``clew db``: the tables of the durable records."""

from __future__ import annotations

import typer

from clew.settings import Settings

_GROUP = typer.Typer(help="Make, change and check the tables of the durable records.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_GROUP, name="db")


@_GROUP.command()
def upgrade() -> None:
    """Make the tables in CLEW_DATABASE_URL, or bring them to what this version of clew writes. Twice is harmless."""
    from clew.history.database import Database
    from clew.history.faults import answering
    from clew.history.migrations import HEAD

    database = Database(Settings.load().history_url())
    with answering(database):
        before = database.current()
        database.upgrade()
    if before == HEAD:
        print(f"{database} is at revision {HEAD} already.")
    else:
        print(f"{database}: from {f'revision {before}' if before else 'no tables'} to revision {HEAD}.")


@_GROUP.command()
def current() -> None:
    """Print the revision of the tables; exit with 1 where it is not the one that this version of clew writes."""
    from clew.history.database import Database
    from clew.history.faults import answering
    from clew.history.migrations import HEAD

    database = Database(Settings.load().history_url())
    with answering(database):
        found = database.current()
    print(found or "none")
    raise typer.Exit(0 if found == HEAD else 1)


@_GROUP.command()
def check() -> None:
    """Compare the tables with what this version of clew writes; exit with 1 where they differ."""
    from clew.history.database import Database
    from clew.history.faults import answering
    from clew.history.migrations import HEAD

    database = Database(Settings.load().history_url())
    with answering(database):
        found = database.current()
        differences = database.differences() if found == HEAD else []
    if found != HEAD:
        print(f"{database} is at revision {found or 'none'}, and clew writes {HEAD}: run 'clew db upgrade'.")
        raise typer.Exit(1)
    for difference in differences:
        print(f"{database} differs from what clew made: {difference}")
    if differences:
        raise typer.Exit(1)
    print(f"{database} is at revision {HEAD}, and the tables are as they should be.")
