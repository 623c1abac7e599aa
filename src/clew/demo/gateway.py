"""The demo's HTTP interface: documents in, topics and exports out."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

import clew
from clew.demo import service
from clew.demo.bounded_body import BodyTooLargeError, read_bounded
from clew.demo.library import DocumentStatus, ExportStatus, Library
from clew.demo.messages import DOCUMENTS, EXPORTS, STREAMS, DocumentSubmitted, ExportRequested
from clew.demo.settings import DemoSettings
from clew.demo.streams import QueueAwayError, Streams, make_streams
from clew.demo.topics import Topic

log = clew.get_logger("clew.demo.gateway")
documents_accepted = clew.counter(
    "demo.documents.accepted", unit="{document}", description="Documents that were accepted"
)
documents_refused = clew.counter(
    "demo.documents.refused",
    unit="{document}",
    description="Documents that were refused, by reason",
    labels=("reason",),
)
document_size = clew.histogram("demo.document.size", unit="By", description="Size of accepted documents")

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="An id that the gateway gave out")]
_Filled = StringConstraints(strip_whitespace=True, min_length=1)


def _without_nul(value: str) -> str:
    if "\0" in value:
        # Not every database can keep it
        raise ValueError("has a NUL character: leave it out")
    return value


class NewDocument(BaseModel):
    """A document to be read. Neither title nor text may be empty."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, _Filled, StringConstraints(max_length=300), AfterValidator(_without_nul)]
    text: Annotated[str, _Filled, AfterValidator(_without_nul)]


class Accepted(BaseModel):
    """What was accepted: its id, where to ask for it, and the trace that it starts."""

    id: str
    url: str
    trace_id: str


class DocumentView(BaseModel):
    """A document as the gateway shows it, without its text."""

    id: str
    title: str
    status: DocumentStatus
    error: str
    size_bytes: int
    summary: str
    topics: list[Topic]
    trace_id: str
    accepted_at: datetime
    finished_at: datetime | None


class TopicView(BaseModel):
    """A topic over all documents."""

    name: str
    documents: int
    weight: float


class ExportView(BaseModel):
    """An export; it can be downloaded from ``url`` once its status is ``done``."""

    id: str
    status: ExportStatus
    error: str
    documents: int
    url: str
    trace_id: str
    requested_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What the gateway answers with: its settings, the documents, and the streams to those who work on them."""

    settings: DemoSettings
    library: Library
    streams: Streams

    async def take_document(self, body: bytes) -> Accepted:
        """Keep a document and pass it on.

        Raises:
            RequestValidationError: it is none.
            HTTPException: it could not be passed on.
        """
        try:
            new = NewDocument.model_validate_json(body)
        except ValidationError as error:
            documents_refused.add(1, reason="invalid")
            # Without the input: an error must not send a document back
            problems = error.errors(include_input=False, include_url=False, include_context=False)
            raise RequestValidationError(
                [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
            ) from error
        document_id = uuid.uuid4().hex
        await self.library.accept(document_id, title=new.title, text=new.text, trace_id=clew.trace_id())
        try:
            await self.streams.publish(DocumentSubmitted(document_id=document_id), DOCUMENTS)
        except QueueAwayError as error:
            await self.library.forget(document_id)
            raise _queue_is_away(error) from error
        documents_accepted.add(1)
        document_size.record(len(new.text.encode()))
        log.info("document.accepted", document_id=document_id, title=new.title, size_bytes=len(body))
        return Accepted(id=document_id, url=f"/documents/{document_id}", trace_id=clew.trace_id())

    async def take_export(self) -> Accepted:
        """Keep the wish for an export and pass it on.

        Raises:
            HTTPException: it could not be passed on.
        """
        export_id = uuid.uuid4().hex
        await self.library.request_export(export_id, trace_id=clew.trace_id())
        try:
            await self.streams.publish(ExportRequested(export_id=export_id), EXPORTS)
        except QueueAwayError as error:
            await self.library.finish_export(export_id, error="it could not be passed on")
            raise _queue_is_away(error) from error
        log.info("export.accepted", export_id=export_id)
        return Accepted(id=export_id, url=f"/exports/{export_id}", trace_id=clew.trace_id())


def build_app(gateway: Gateway) -> FastAPI:
    """Return the gateway as an app; it opens and closes what it answers with."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.library.open()
        await gateway.streams.connect()
        await gateway.streams.watch_depths()
        try:
            yield
        finally:
            clew.unwatch_queue(*STREAMS)
            await gateway.streams.stop()
            await gateway.library.close()

    app = FastAPI(title="Documents", version="1", lifespan=lifespan)

    @app.exception_handler(BodyTooLargeError)
    async def too_large(_: Request, error: BodyTooLargeError) -> JSONResponse:
        documents_refused.add(1, reason="too_large")
        return JSONResponse({"detail": str(error)}, status_code=413)

    app.include_router(clew.health_router())
    for router in (clew.jobs_router(), clew.queues_router(), clew.agents_router(), clew.llm_router()):
        app.include_router(router)
    _add_documents(app, gateway)
    _add_exports(app, gateway)
    return app


def _add_documents(app: FastAPI, gateway: Gateway) -> None:
    too_large: dict[int | str, dict[str, Any]] = {
        413: {"description": "The body is larger than DEMO_MAX_DOCUMENT_BYTES"}
    }

    @app.post("/documents", status_code=202, responses=too_large, openapi_extra=_body_of(NewDocument))
    async def submit(request: Request) -> Accepted:
        return await gateway.take_document(await read_bounded(request, gateway.settings.max_document_bytes))

    @app.get("/documents/{document_id}")
    async def document(document_id: Id) -> DocumentView:
        found = await gateway.library.document(document_id)
        if found is None:
            raise HTTPException(404, f"there is no document {document_id}")
        return DocumentView.model_validate(found, from_attributes=True)

    @app.get("/topics")
    async def topics(limit: Annotated[int, Query(ge=1, le=1_000)] = 20) -> list[TopicView]:
        return [
            TopicView.model_validate(topic, from_attributes=True) for topic in await gateway.library.top_topics(limit)
        ]


def _add_exports(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/exports", status_code=202)
    async def start_export() -> Accepted:
        return await gateway.take_export()

    async def found_export(export_id: str) -> ExportView:
        found = await gateway.library.export(export_id)
        if found is None:
            raise HTTPException(404, f"there is no export {export_id}")
        view = {name: getattr(found, name) for name in ExportView.model_fields if name != "url"}
        return ExportView(**view, url=f"/exports/{export_id}/download")

    @app.get("/exports/{export_id}")
    async def export(export_id: Id) -> ExportView:
        return await found_export(export_id)

    @app.get("/exports/{export_id}/download")
    async def download(export_id: Id) -> FileResponse:
        found = await found_export(export_id)
        if found.status != "done":
            raise HTTPException(
                409, f"the export {export_id} is {found.status}: ask GET /exports/{export_id} until it is done"
            )
        file = gateway.settings.export_file(export_id)
        if not file.is_file():
            raise HTTPException(
                410, f"the file of the export {export_id} was cleaned up: start another with POST /exports"
            )
        return FileResponse(file, media_type="application/jsonl", filename=file.name)


def _queue_is_away(error: Exception) -> HTTPException:
    log.error("queue.away", error=str(error))
    return HTTPException(503, "the queue can't be reached, so nothing was accepted: try again later")


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand, for OpenAPI."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def main() -> int:
    """Serve the gateway on ``DEMO_HOST`` and ``DEMO_PORT``."""

    async def serve(stop: asyncio.Event) -> None:
        settings = DemoSettings.load()
        gateway = Gateway(settings=settings, library=Library(settings), streams=make_streams(settings))
        clew.watch(gateway.library.engine)
        gateway.streams.watch()
        app = clew.instrument(build_app(gateway))
        await service.serve_http(app, host=settings.host, port=settings.port, stop=stop)

    return service.run("gateway", serve)


if __name__ == "__main__":
    sys.exit(main())
