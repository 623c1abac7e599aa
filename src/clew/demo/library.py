"""What the demo knows of its documents: every read and write of its database, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sqlalchemy import Row, delete, event, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import clew
from clew.demo.settings import DemoError, DemoSettings
from clew.demo.tables import DIGESTS, DOCUMENT_TOPICS, DOCUMENTS, EXPORTS, METADATA
from clew.demo.topics import Topic

DocumentStatus = Literal["accepted", "processing", "ready", "verified", "failed"]
ExportStatus = Literal["accepted", "done", "failed"]

_BUSY_TIMEOUT_S: Final = 15
_PAGE: Final = 100
_RETRY_AFTER_S: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document and what is known of it; ``topics`` go from the weightiest down."""

    id: str
    title: str
    text: str
    size_bytes: int
    status: DocumentStatus
    summary: str
    error: str
    trace_id: str
    accepted_at: datetime
    finished_at: datetime | None
    topics: tuple[Topic, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export of all documents to one file; ``documents`` is how many lines it has."""

    id: str
    status: ExportStatus
    documents: int
    error: str
    trace_id: str
    requested_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class TopicCount:
    """A topic, in how many documents it is, and its summed weight."""

    name: str
    documents: int
    weight: float


def now() -> datetime:
    """Return the present moment as aware UTC."""
    return datetime.now(UTC)


class Library:
    """The documents, topics, exports and digests in a database.

    Args:
        settings: say which database.

    Raises:
        DemoError: it is a file whose folder can't be written.
    """

    def __init__(self, settings: DemoSettings) -> None:
        if not settings.database_url:
            settings.make_data_dir()
        self._engine: AsyncEngine = clew.instrument(create_async_engine(settings.sql_url()))
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)

    async def open(self) -> None:
        """Make the tables that are not there yet.

        Raises:
            DemoError: the database can't be opened.
        """
        for last_try in (False, False, False, True):
            try:
                async with self._engine.begin() as connection:
                    await connection.run_sync(METADATA.create_all)
            except (SQLAlchemyError, OSError) as error:
                # Another service may be making the same tables at the same time
                if not last_try:
                    await asyncio.sleep(_RETRY_AFTER_S)
                    continue
                reason = str(getattr(error, "orig", None) or error)
                raise DemoError(
                    f"the database {self._engine.url!r} can't be opened ({reason}): check DEMO_DATABASE_URL"
                ) from error
            return

    @property
    def engine(self) -> AsyncEngine:
        """Connects to the database."""
        return self._engine

    async def close(self) -> None:
        """Let go of the connections."""
        await self._engine.dispose()

    async def ping(self) -> None:
        """Ask the database for a sign of life."""
        async with self._engine.connect() as connection:
            await connection.execute(select(1))

    # Documents

    async def accept(self, document_id: str, *, title: str, text: str, trace_id: str) -> None:
        """Keep a new document."""
        values = {
            "id": document_id,
            "title": title,
            "text": text,
            "size_bytes": len(text.encode()),
            "status": "accepted",
            "trace_id": trace_id,
            "accepted_at": now(),
        }
        async with self._engine.begin() as connection:
            await connection.execute(insert(DOCUMENTS).values(values))

    async def document(self, document_id: str) -> Document | None:
        """Return a document with its topics, or ``None``."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(DOCUMENTS).where(DOCUMENTS.c.id == document_id))).one_or_none()
            if row is None:
                return None
            found = await connection.execute(
                select(DOCUMENT_TOPICS.c.name, DOCUMENT_TOPICS.c.weight)
                .where(DOCUMENT_TOPICS.c.document_id == document_id)
                .order_by(DOCUMENT_TOPICS.c.weight.desc(), DOCUMENT_TOPICS.c.name)
            )
            return _document(row, [Topic(name=name, weight=weight) for name, weight in found])

    async def required_document(self, document_id: str) -> Document:
        """Return a document that must be there.

        Raises:
            DemoError: it is not.
        """
        document = await self.document(document_id)
        if document is None:
            raise DemoError(f"there is no document {document_id}: it was cleaned up before it was worked on")
        return document

    async def mark(self, document_id: str, status: DocumentStatus, *, error: str = "") -> None:
        """Set a document's status; ``ready`` and ``failed`` end the work on it."""
        values: dict[str, Any] = {"status": status, "error": error}
        if status in ("ready", "failed"):
            values["finished_at"] = now()
        async with self._engine.begin() as connection:
            await connection.execute(update(DOCUMENTS).where(DOCUMENTS.c.id == document_id).values(values))

    async def save_summary(self, document_id: str, summary: str) -> None:
        """Keep a document's summary."""
        async with self._engine.begin() as connection:
            await connection.execute(update(DOCUMENTS).where(DOCUMENTS.c.id == document_id).values(summary=summary))

    async def save_topics(self, document_id: str, topics: Sequence[Topic]) -> None:
        """Keep a document's topics in the place of those it had: a redelivered message does the same work again."""
        rows = [{"document_id": document_id, "name": topic.name, "weight": topic.weight} for topic in topics]
        async with self._engine.begin() as connection:
            await connection.execute(delete(DOCUMENT_TOPICS).where(DOCUMENT_TOPICS.c.document_id == document_id))
            if rows:
                await connection.execute(insert(DOCUMENT_TOPICS), rows)

    async def forget(self, document_id: str) -> None:
        """Remove a document that could not be passed on, so that nobody waits for it."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(DOCUMENTS).where(DOCUMENTS.c.id == document_id))

    async def documents(self) -> AsyncIterator[Document]:
        """Give all finished documents by id, a page at a time: their number has no bound."""
        last_id = ""
        while True:
            page = await self._page(last_id)
            for document in page:
                yield document
            if len(page) < _PAGE:
                return
            last_id = page[-1].id

    async def _page(self, after_id: str) -> list[Document]:
        finished = DOCUMENTS.c.status.in_(("ready", "verified"))
        query = select(DOCUMENTS).where(finished, DOCUMENTS.c.id > after_id).order_by(DOCUMENTS.c.id).limit(_PAGE)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
            topics: dict[str, list[Topic]] = {row.id: [] for row in rows}
            found = await connection.execute(
                select(DOCUMENT_TOPICS)
                .where(DOCUMENT_TOPICS.c.document_id.in_(topics))
                .order_by(DOCUMENT_TOPICS.c.weight.desc(), DOCUMENT_TOPICS.c.name)
            )
            for document_id, name, weight in found:
                topics[document_id].append(Topic(name=name, weight=weight))
        return [_document(row, topics[row.id]) for row in rows]

    async def statuses(self) -> dict[str, int]:
        """Return how many documents have each status."""
        async with self._engine.connect() as connection:
            found = await connection.execute(select(DOCUMENTS.c.status, func.count()).group_by(DOCUMENTS.c.status))
            return {status: count for status, count in found}  # noqa: C416 - a row is no pair to the type checker

    async def top_topics(self, most: int, *, since: datetime | None = None) -> list[TopicCount]:
        """Return the topics that are weightiest over all documents.

        Args:
            most: at most so many.
            since: only of documents that were finished at this time or later.
        """
        documents, weight = func.count().label("documents"), func.sum(DOCUMENT_TOPICS.c.weight).label("weight")
        query = select(DOCUMENT_TOPICS.c.name, documents, weight).group_by(DOCUMENT_TOPICS.c.name)
        if since is not None:
            query = query.join(DOCUMENTS).where(DOCUMENTS.c.finished_at >= since)
        async with self._engine.connect() as connection:
            rows = await connection.execute(query.order_by(weight.desc(), DOCUMENT_TOPICS.c.name).limit(most))
            return [TopicCount(name=row.name, documents=row.documents, weight=round(row.weight, 4)) for row in rows]

    # Exports and digests

    async def request_export(self, export_id: str, *, trace_id: str) -> None:
        """Keep a new export."""
        values = {"id": export_id, "status": "accepted", "trace_id": trace_id, "requested_at": now()}
        async with self._engine.begin() as connection:
            await connection.execute(insert(EXPORTS).values(values))

    async def export(self, export_id: str) -> Export | None:
        """Return an export, or ``None``."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(EXPORTS).where(EXPORTS.c.id == export_id))).one_or_none()
            return None if row is None else Export(**row._mapping)

    async def finish_export(self, export_id: str, *, documents: int = 0, error: str = "") -> None:
        """End an export, well or with an error."""
        status: ExportStatus = "failed" if error else "done"
        values = {"status": status, "documents": documents, "error": error, "finished_at": now()}
        async with self._engine.begin() as connection:
            await connection.execute(update(EXPORTS).where(EXPORTS.c.id == export_id).values(values))

    async def last_digest_at(self) -> datetime | None:
        """Return when the last digest was published."""
        async with self._engine.connect() as connection:
            found: datetime | None = (await connection.execute(select(func.max(DIGESTS.c.published_at)))).scalar()
            return found

    async def publish_digest(self, text: str, *, documents: int, at: datetime) -> None:
        """Keep a digest."""
        async with self._engine.begin() as connection:
            await connection.execute(insert(DIGESTS).values(text=text, documents=documents, published_at=at))

    async def summaries_since(self, since: datetime | None, most: int = 50) -> list[str]:
        """Return the summaries of documents finished after a time, the newest first."""
        query = select(DOCUMENTS.c.summary).where(DOCUMENTS.c.finished_at.is_not(None), DOCUMENTS.c.summary != "")
        if since is not None:
            query = query.where(DOCUMENTS.c.finished_at > since)
        async with self._engine.connect() as connection:
            return list(
                (await connection.execute(query.order_by(DOCUMENTS.c.finished_at.desc()).limit(most))).scalars()
            )

    async def clean_up(self, before: datetime) -> list[str]:
        """Delete what is older than a time, and return the ids of the exports whose files can go."""
        async with self._engine.begin() as connection:
            old = select(DOCUMENTS.c.id).where(DOCUMENTS.c.accepted_at < before)
            await connection.execute(delete(DOCUMENT_TOPICS).where(DOCUMENT_TOPICS.c.document_id.in_(old)))
            await connection.execute(delete(DOCUMENTS).where(DOCUMENTS.c.accepted_at < before))
            await connection.execute(delete(DIGESTS).where(DIGESTS.c.published_at < before))
            gone = list(
                (await connection.execute(select(EXPORTS.c.id).where(EXPORTS.c.requested_at < before))).scalars()
            )
            await connection.execute(delete(EXPORTS).where(EXPORTS.c.requested_at < before))
        return gone


def _document(row: Row[Any], topics: list[Topic]) -> Document:
    return Document(**row._mapping, topics=tuple(topics))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # Several processes write: readers must not wait for writers, and writers wait for each other
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_S * 1000}",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
