"""The three agents that a document is handed along, and the handoff between them, in one process or across."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from openai import APIConnectionError, InternalServerError, RateLimitError

import clew
from clew.demo import messages
from clew.demo.extraction import sentences
from clew.demo.language_model import LanguageModel
from clew.demo.library import Document, Library, now
from clew.demo.messages import AgentWork, DocumentReady
from clew.demo.settings import DemoError, DemoSettings
from clew.demo.streams import Postponed, QueueAwayError, Streams

TYPES: Final = {"processor": "summarisation", "topicizer": "topicization", "exporter": "export"}

TEMPORARY: Final = (APIConnectionError, InternalServerError, RateLimitError, QueueAwayError, OSError)
"""Errors that are gone when whoever is away has come back, so that work goes back to its queue."""

_KNOWN_TOPICS: Final = 10
_KNOWN_FOR_S: Final = 5.0

log = clew.get_logger("clew.demo.agents")
documents_finished = clew.counter(
    "demo.documents.finished",
    unit="{document}",
    description="Documents that the agents are done with",
    labels=("status",),
)
document_duration = clew.histogram(
    "demo.document.duration", unit="s", description="Time from accepting a document to the end of the work on it"
)
topics_found = clew.counter("demo.topics.found", unit="{topic}", description="Topics that were found in documents")


class Agents:
    """The agents that live in this process, and the way to those that do not.

    Args:
        hosted: the names of the agents of this process.
        streams: carry work to the others.
        library: the documents.
        model: what the agents ask.
        settings: the demo's settings.
    """

    def __init__(
        self,
        *,
        hosted: frozenset[str],
        streams: Streams,
        library: Library,
        model: LanguageModel,
        settings: DemoSettings,
    ) -> None:
        self._hosted = hosted
        self._streams = streams
        self._library = library
        self._model = model
        self._settings = settings
        self._known_topics: tuple[str, ...] = ()
        self._known_until_s = 0.0
        self._work: dict[str, Callable[[AgentWork], Awaitable[None]]] = {
            "processor": self._process,
            "topicizer": self._topicize,
            "exporter": self._export,
        }

    def subscribe(self, group: str) -> None:
        """Take what other processes hand over to the agents of this one."""
        for name in sorted(self._hosted):
            self._streams.subscribe(messages.agent_stream(name), self._taking_over(name), group=group)

    async def hand_over(self, to: str, work: AgentWork) -> None:
        """Hand work over to an agent: at once when it lives here, by its stream when it does not."""
        async with clew.handoff(to=to, task=work, mode="pass_control") as passing:
            if to in self._hosted:
                await self._perform(to, work)
            else:
                crossing = work.model_copy(update={"carrier": passing.carrier})
                await self._streams.publish(crossing, messages.agent_stream(to))

    @asynccontextmanager
    async def answering_for(self, work: AgentWork) -> AsyncIterator[None]:
        """See that nobody waits in vain: work fails where it is asked for, or its message comes again when that can help."""
        try:
            yield
        except TEMPORARY as error:
            log.warning("work.postponed", subject=work.subject, id=work.id, error=str(error))
            raise Postponed from error
        except Exception as error:
            reason = str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}"
            if work.subject == "export":
                await self._library.finish_export(work.id, error=reason)
            else:
                await self._library.mark(work.id, "failed", error=reason)
                documents_finished.add(1, status="failed")
            raise

    def _taking_over(self, name: str) -> Callable[[AgentWork], Awaitable[None]]:
        async def take_over(work: AgentWork) -> None:
            async with self.answering_for(work):
                await self._perform(name, work, carrier=work.carrier)

        return take_over

    async def _perform(self, name: str, work: AgentWork, *, carrier: dict[str, str] | None = None) -> None:
        async with clew.agent_task(name, type=TYPES[name], carrier=carrier or None) as task:
            task.set(f"demo.{work.subject}.id", work.id)
            await self._work[name](work)

    async def _process(self, work: AgentWork) -> None:
        document = await self._library.required_document(work.id)
        await self._library.mark(work.id, "processing")
        async with clew.document_processed("text", document_id=work.id, size_bytes=document.size_bytes):
            with clew.span("split sentences") as span:
                count = len(sentences(document.text))
                span.set("demo.sentences", count)
            await self._library.save_summary(work.id, await self._model.summarise(document.text))
        log.info("document.summarised", document_id=work.id, sentences=count)
        await self.hand_over("topicizer", work)

    async def _topicize(self, work: AgentWork) -> None:
        document = await self._library.required_document(work.id)
        topics = await self._model.topics(document.text, known=await self._names_in_use())
        async with clew.memory_operation("write", "topics", items=len(topics)):
            await self._library.save_topics(work.id, topics)
        topics_found.add(len(topics))
        log.info("document.topics", document_id=work.id, topics=[topic.name for topic in topics])
        await self.hand_over("exporter", work)

    async def _names_in_use(self) -> tuple[str, ...]:
        """Return the topics that most documents have, so that the same thing gets the same name."""
        with clew.cache("topics in use") as look:
            if time.monotonic() < self._known_until_s:
                look.hit()
                return self._known_topics
            look.miss()
        async with clew.retrieval("topics", top_k=_KNOWN_TOPICS) as search:
            self._known_topics = tuple(topic.name for topic in await self._library.top_topics(_KNOWN_TOPICS))
            search.documents(len(self._known_topics))
        self._known_until_s = time.monotonic() + _KNOWN_FOR_S
        return self._known_topics

    async def _export(self, work: AgentWork) -> None:
        if work.subject == "export":
            async with clew.tool_call("write_export") as tool:
                tool.result(await self._write_export(work.id))
            return
        document = await self._library.required_document(work.id)
        await self._library.mark(work.id, "ready")
        documents_finished.add(1, status="ready")
        document_duration.record((now() - document.accepted_at).total_seconds())
        log.info("document.ready", document_id=work.id, topics=len(document.topics))
        await self._streams.publish(DocumentReady(document_id=work.id), messages.DOCUMENTS_READY)

    async def _write_export(self, export_id: str) -> dict[str, int]:
        target = self._settings.export_file(export_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".part")
        count = 0
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                async for document in self._library.documents():
                    file.write(f"{json.dumps(_line(document), ensure_ascii=False)}\n")
                    count += 1
            # Whole or not at all: a download never sees half a file
            unfinished.replace(target)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
        await self._library.finish_export(export_id, documents=count)
        written = {"documents": count, "size_bytes": target.stat().st_size}
        log.info("export.done", export_id=export_id, **written)
        return written


def _line(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "title": document.title,
        "summary": document.summary,
        "topics": [topic.model_dump() for topic in document.topics],
        "accepted_at": document.accepted_at.isoformat(),
        "trace_id": document.trace_id,
    }
