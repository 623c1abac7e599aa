"""Archives: rows of one table as compressed JSON Lines, which say what they are and whether they are whole.

The first line of a file is its manifest: format, table, columns, revision of the tables, and when it was made. Then comes one row a
line. The last line has the number of rows and the SHA-256 checksum of all lines before it, line ends included. Such a file is made
under another name and renamed when it is whole: ``zcat FILE | head -n -1 | sha256sum`` gives the checksum of the last line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from clew import clock
from clew._version import __version__
from clew.diagnostics import ClewError
from clew.history.database import Database
from clew.history.migrations import HEAD
from clew.history.models import Base
from clew.history.spooling import row_of
from clew.history.writing import Change, write

FORMAT: Final = "clew-archive/1"
SUFFIX: Final = ".jsonl.gz"
PARTIAL_SUFFIX: Final = ".part"
_MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_RESTORED_AT_ONCE: Final = 1_000


class ArchiveError(ClewError):
    """An archive can't be used: the message says which, and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file of archived rows.

    Attributes:
        path: where it is.
        table: whose rows it has.
        columns: theirs.
        revision: of the tables when it was made.
        made_at: when that was.
        rows: how many it has, by its name.
        size_bytes: of the file.
    """

    path: Path
    table: str
    columns: tuple[str, ...]
    revision: str
    made_at: datetime
    rows: int
    size_bytes: int


class ArchiveWriter:
    """Writes one archive; the file is there under its name when the block ends, and not at all when it fails.

    Args:
        folder: made when needed, readable by its owner only.
        table: whose rows come.
        revision: of the tables.
    """

    def __init__(self, folder: Path, table: str, *, revision: str = HEAD) -> None:
        self.rows = 0
        self.path: Path | None = None
        self._folder = folder
        self._table = table
        self._columns = tuple(Base.metadata.tables[table].columns.keys())
        self._revision = revision
        self._hash = hashlib.sha256()
        self._partial = folder / f"{table}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
        self._raw: IO[bytes]
        self._file: gzip.GzipFile

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._raw = os.fdopen(descriptor, "wb")
        self._file = gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, compresslevel=6)
        manifest = {
            "format": FORMAT,
            "table": self._table,
            "columns": list(self._columns),
            "revision": self._revision,
            "made_at": clock.utc_now().isoformat(),
            "clew": __version__,
        }
        self._write(manifest)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and self.rows:
                self._finish()
        finally:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._raw.close()
            self._partial.unlink(missing_ok=True)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, each with the values of all columns."""
        for row in rows:
            self._write({name: row[name] for name in self._columns})
            self.rows += 1

    def _write(self, what: Mapping[str, Any]) -> None:
        line = json.dumps(what, default=_plain, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        self._hash.update(line)
        self._file.write(line)

    def _finish(self) -> None:
        self._write({"rows": self.rows, "sha256": self._hash.hexdigest()})
        self._file.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        name = f"{self._table}-{clock.utc_now():%Y%m%dT%H%M%S}Z-{secrets.token_hex(3)}-{self.rows}{SUFFIX}"
        self.path = self._folder / name
        self._partial.rename(self.path)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder that are archives by their names, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime, path.name))


def archives(folder: Path) -> list[Archive]:
    """Return what is in a folder, oldest first; a file that can't be read is left to :func:`verify`."""
    found = []
    for path in files_in(folder):
        with suppress(ArchiveError):
            found.append(describe(path))
    return found


def describe(path: Path) -> Archive:
    """Return what an archive says that it is; its rows are not looked at.

    Raises:
        ArchiveError: it is none.
    """
    with _opened(path) as file:
        manifest = _manifest(path, _line(path, file))
    rows = path.name.removesuffix(SUFFIX).rpartition("-")[2]
    return Archive(
        path=path,
        table=manifest["table"],
        columns=tuple(manifest["columns"]),
        revision=str(manifest["revision"]),
        made_at=datetime.fromisoformat(manifest["made_at"]),
        rows=int(rows) if rows.isdecimal() else 0,
        size_bytes=path.stat().st_size,
    )


def verify(path: Path) -> int:
    """Read an archive to its end and return the number of its rows.

    Raises:
        ArchiveError: it is damaged, or cut short.
    """
    return sum(1 for _ in _rows(path))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an archive, with the types of their columns. To be sure of them, :func:`verify` it first.

    Raises:
        ArchiveError: it is damaged, or cut short: the rows before that have been given.
    """
    table = describe(path).table
    for row in _rows(path):
        yield row_of(table, row)


def restore(path: Path, database: Database) -> int:
    """Put the rows of an archive back into their table; those that are there already stay as they are.

    The totals are not touched: statistics tell of restored runs no more.

    Returns:
        How many rows the archive has.

    Raises:
        ArchiveError: it is damaged, or of a newer version than the tables are; nothing has been restored.
        sqlalchemy.exc.SQLAlchemyError: the database is away; to do it again does no harm.
    """
    archive = describe(path)
    table = Base.metadata.tables.get(archive.table)
    unknown = [name for name in archive.columns if table is None or name not in table.columns]
    if unknown:
        raise ArchiveError(
            f"{path} is of revision {archive.revision} of the tables, and this version of clew knows {HEAD}: upgrade clew"
        )
    verify(path)
    rows = 0
    batch: list[Change] = []
    for row in read(path):
        batch.append(Change(table=archive.table, row=row))
        rows += 1
        if len(batch) >= _RESTORED_AT_ONCE:
            _insert(database, batch)
            batch = []
    _insert(database, batch)
    return rows


def _insert(database: Database, batch: list[Change]) -> None:
    with database.write() as connection:
        # Where their totals were not forgotten with them, they are counted already
        write(connection, batch, counts=False)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    digest = hashlib.sha256()
    with _opened(path) as file:
        first = _line(path, file)
        _manifest(path, first)
        digest.update(first)
        rows, last = 0, _line(path, file)
        # One line behind, because the last one is no row
        while following := _line(path, file, may_end=True):
            digest.update(last)
            rows += 1
            yield _parsed(path, last)
            last = following
    end = _parsed(path, last)
    if end.get("sha256") != digest.hexdigest() or end.get("rows") != rows:
        raise ArchiveError(f"{path} is damaged: its checksum or its number of rows does not fit what is in it")


def _opened(path: Path) -> IO[bytes]:
    try:
        return gzip.open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise ArchiveError(f"{path} can't be read: {error.strerror or error}") from error


def _line(path: Path, file: IO[bytes], *, may_end: bool = False) -> bytes:
    try:
        line = file.readline(_MAX_LINE_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ArchiveError(f"{path} is damaged: {error}") from error
    if not line.endswith(b"\n") and not (may_end and not line):
        raise ArchiveError(f"{path} is damaged: it ends too early")
    return line


def _manifest(path: Path, line: bytes) -> dict[str, Any]:
    manifest = _parsed(path, line)
    if manifest.get("format") != FORMAT:
        raise ArchiveError(f"{path} is no archive of a format that this version of clew knows: it wants {FORMAT}")
    if not {"table", "columns", "revision", "made_at"} <= set(manifest):
        raise ArchiveError(f"{path} is damaged: its first line does not say what it is")
    return manifest


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ArchiveError(f"{path} is damaged: a line is no JSON") from error
    if not isinstance(found, dict):
        raise ArchiveError(f"{path} is damaged: a line is no row")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no value of a column")
