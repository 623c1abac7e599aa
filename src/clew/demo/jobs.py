"""The scheduler's jobs. They are functions of a module, because APScheduler stores a job by its function's name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

import clew
from clew.demo import messages
from clew.demo.language_model import LanguageModel
from clew.demo.library import Library, now
from clew.demo.messages import AgentWork
from clew.demo.settings import DemoError, DemoSettings
from clew.demo.streams import Streams

_PROBE_TIMEOUT_S: Final = 2.0
_DIGEST_SENTENCES: Final = 3
_DIGEST_TOPICS: Final = 3

log = clew.get_logger("clew.demo.jobs")
is_up = clew.gauge(
    "demo.dependency.up", unit="1", description="Whether a dependency answers: 1 or 0", labels=("dependency",)
)
documents_verified = clew.counter(
    "demo.documents.verified", unit="{document}", description="Documents whose topics were verified"
)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What jobs work with; ``probe_urls`` are the dependencies that are asked over HTTP, by name."""

    settings: DemoSettings
    library: Library
    streams: Streams
    model: LanguageModel
    probe_urls: dict[str, str]


_resources: Resources | None = None


def use(resources: Resources) -> None:
    """Give the jobs of this process what they work with."""
    global _resources
    _resources = resources


def _given() -> Resources:
    if _resources is None:
        raise DemoError("a job was started outside of the scheduler: run python -m clew.demo.scheduler")
    return _resources


async def verify_document(document_id: str) -> None:
    """Check that each topic of a document is in its text; the work on it is over then."""
    library = _given().library
    document = await library.required_document(document_id)
    text = " ".join(document.text.lower().split())
    strange = [topic.name for topic in document.topics if topic.name.lower() not in text]
    if strange:
        # A language model may name what a text is about in its own words: worth a look, no failure
        log.warning("document.strange_topics", document_id=document_id, topics=strange)
    await library.mark(document_id, "verified")
    documents_verified.add(1)
    log.info("document.verified", document_id=document_id, topics=len(document.topics))


async def export_documents(export_id: str) -> None:
    """Hand an export over to the exporter."""
    resources = _given()
    work = AgentWork(subject="export", id=export_id)
    async with clew.handoff(to="exporter", task=work, mode="pass_control", reason="export is due") as passing:
        crossing = work.model_copy(update={"carrier": passing.carrier})
        await resources.streams.publish(crossing, messages.agent_stream("exporter"))


@clew.agent("digester", type="summarisation")
async def write_digest(summaries: list[str]) -> str:
    """Sum up summaries."""
    return await _given().model.summarise("\n\n".join(summaries), most=_DIGEST_SENTENCES)


async def digest() -> None:
    """Sum up what was read since the last digest, if anything was."""
    resources = _given()
    at = now()
    since = await resources.library.last_digest_at()
    summaries = await resources.library.summaries_since(since)
    if not summaries:
        return
    text = await write_digest(summaries)
    topics = await resources.library.top_topics(_DIGEST_TOPICS, since=since)
    await resources.library.publish_digest(text, documents=len(summaries), at=at)
    log.info("digest.published", documents=len(summaries), topics=[topic.name for topic in topics])


async def health_check() -> None:
    """Ask every dependency for a sign of life."""
    resources = _given()

    async def queue() -> None:
        if not await resources.streams.answers(_PROBE_TIMEOUT_S):
            raise DemoError("no answer to PING")

    probes: dict[str, Callable[[], Awaitable[None]]] = {
        "database": resources.library.ping,
        resources.streams.name: queue,
    }
    for name, url in resources.probe_urls.items():
        probes[name] = _http_probe(name, url)
    for name, probe in probes.items():
        try:
            await asyncio.wait_for(probe(), _PROBE_TIMEOUT_S)
        except Exception as error:
            is_up.set(0, dependency=name)
            clew.error("dependency_down", component=name, reason=str(error) or type(error).__name__)
        else:
            is_up.set(1, dependency=name)


async def cleanup() -> None:
    """Delete what is older than ``DEMO_RETENTION_S``."""
    resources = _given()
    gone = await resources.library.clean_up(now() - timedelta(seconds=resources.settings.retention_s))
    for export_id in gone:
        resources.settings.export_file(export_id).unlink(missing_ok=True)
    log.info("cleanup.done", exports=len(gone))


def _http_probe(name: str, url: str) -> Callable[[], Awaitable[None]]:
    def ask() -> int:
        try:
            with urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:  # noqa: S310 - an address from our own settings
                return int(answer.status)
        except HTTPError as error:
            # One that wants a key answers, too
            if error.code >= 500:
                raise
            return error.code

    async def probe() -> None:
        async with clew.external_call(name, "probe") as call:
            code = await asyncio.to_thread(ask)
            call.status(code if code < 400 else "answered")

    return probe
