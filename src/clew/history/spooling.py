"""Rows that the database did not take, as they wait in the disk spool: JSON, which the columns of the tables give its types back."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import make_url

from clew.history.models import Base, UtcDateTime
from clew.history.writing import Change
from clew.pipeline.spool import Spool, SpooledBatch
from clew.settings import Settings

ROWS: Final = "rows"
_MAX_BODY_BYTES: Final = 2_000_000


def spool_of(settings: Settings) -> Spool | None:
    """Return the disk spool of a database, shared by the processes that write to it; ``None`` where it is switched off.

    What waits there has no age at which it is given up: a record of last week is as good as one of today.
    """
    if settings.spool_max_bytes == 0:
        return None
    url = make_url(settings.history_url())
    address = f"{url.host or ''}:{url.port or ''}/{url.database}"
    folder = settings.spool_path() / "history" / hashlib.sha256(address.encode()).hexdigest()[:12]
    return Spool(folder, max_bytes=settings.spool_max_bytes, max_age_s=float("inf"), signals=(ROWS,))


def packed(changes: Sequence[Change]) -> Iterator[tuple[SpooledBatch | None, Sequence[Change]]]:
    """Yield rows as batches for the spool, and what is in each; ``None`` for a row that can't be written down."""
    lines: list[str] = []
    taken: list[Change] = []
    size = 0
    for change in changes:
        try:
            line = json.dumps([change.table, change.verb, dict(change.row)], default=_plain, separators=(",", ":"))
        except Exception:
            # Whatever raises when it is looked at
            yield None, [change]
            continue
        if size + len(line) > _MAX_BODY_BYTES and taken:
            yield _batch(lines), taken
            lines, taken, size = [], [], 0
        lines.append(line)
        taken.append(change)
        size += len(line)
    if taken:
        yield _batch(lines), taken


def unpacked(batch: SpooledBatch) -> list[Change]:
    """Return the rows of a batch.

    Raises:
        ValueError: it is none.
    """
    try:
        lines = gzip.decompress(batch.body).decode().split("\n")
        return [_change(*json.loads(line)) for line in lines]
    except (OSError, EOFError, TypeError) as error:
        raise ValueError(f"these are no rows: {error}") from error


def row_of(table_name: str, columns: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the types of its columns; a column that there is not stays as it is.

    Raises:
        ValueError: a time is none.
    """
    table = Base.metadata.tables.get(table_name)
    if table is None:
        return columns
    times = {column.name for column in table.columns if isinstance(column.type, UtcDateTime)}
    return {
        name: datetime.fromisoformat(value) if name in times and isinstance(value, str) else value
        for name, value in columns.items()
    }


def _change(table: str, verb: Any, columns: dict[str, Any]) -> Change:
    return Change(table=table, verb=verb, row=row_of(table, columns))


def _batch(lines: Sequence[str]) -> SpooledBatch:
    body = gzip.compress("\n".join(lines).encode(), 1)
    return SpooledBatch(signal=ROWS, items=len(lines), body=body, compressed=True)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no value of a column")
