"""Does what is due: digest, health check and clean-up at intervals; verifications and exports once, when a message asks for them."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, timedelta
from typing import Final

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy.exc import SQLAlchemyError

import clew
from clew.demo import jobs, service
from clew.demo.language_model import LanguageModel
from clew.demo.library import Library, now
from clew.demo.messages import DOCUMENTS_READY, EXPORTS, DocumentReady, ExportRequested
from clew.demo.settings import DemoError, DemoSettings
from clew.demo.streams import Streams, make_streams

NAME: Final = "scheduler"


def make_scheduler(settings: DemoSettings) -> AsyncIOScheduler:
    """Return an instrumented scheduler whose one-off jobs outlive it: a message is acknowledged once its job is stored."""
    store = SQLAlchemyJobStore(url=f"sqlite:///{settings.data_dir / 'schedule.db'}")
    scheduler: AsyncIOScheduler = clew.instrument(
        AsyncIOScheduler(
            timezone=UTC,
            jobstores={"default": {"type": "memory"}, "stored": store},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
    )
    return scheduler


def add_periodic_jobs(scheduler: AsyncIOScheduler, settings: DemoSettings) -> None:
    """Schedule what is done at intervals."""
    with clew.span("schedule periodic jobs"):
        for job, interval_s in (
            (jobs.digest, settings.digest_interval_s),
            (jobs.health_check, settings.health_interval_s),
            (jobs.cleanup, settings.cleanup_interval_s),
        ):
            scheduler.add_job(job, "interval", seconds=interval_s, id=job.__name__, next_run_time=now())


def subscribe(streams: Streams, scheduler: AsyncIOScheduler, settings: DemoSettings) -> None:
    """Schedule what messages ask for."""

    def once(job: object, subject_id: str) -> None:
        due = now() + timedelta(seconds=settings.verify_delay_s)
        name = f"{getattr(job, '__name__', job)}-{subject_id}"
        # The same id for a redelivered message, so that it is done once
        scheduler.add_job(
            job, "date", run_date=due, args=[subject_id], id=name, jobstore="stored", replace_existing=True
        )

    async def schedule_verification(message: DocumentReady) -> None:
        once(jobs.verify_document, message.document_id)

    async def schedule_export(message: ExportRequested) -> None:
        once(jobs.export_documents, message.export_id)

    streams.subscribe(DOCUMENTS_READY, schedule_verification, group=NAME)
    streams.subscribe(EXPORTS, schedule_export, group=NAME)


async def _serve(stop: asyncio.Event) -> None:
    settings = DemoSettings.load()
    settings.make_data_dir()
    streams = make_streams(settings)
    model = LanguageModel(settings)
    library = Library(settings)
    await library.open()
    probe_urls = {"llm": f"{model.base_url}models"}
    if settings.gateway_url:
        probe_urls["gateway"] = f"{settings.gateway_url}/healthz"
    jobs.use(jobs.Resources(settings=settings, library=library, streams=streams, model=model, probe_urls=probe_urls))
    scheduler = make_scheduler(settings)
    subscribe(streams, scheduler, settings)
    clew.watch(scheduler, library.engine)
    streams.watch()
    clew.serve_worker(port=settings.scheduler_port)
    try:
        async with clew.startup() as start:
            with start.step(f"connect to {streams.title}"):
                # First, so that a stored job that is overdue can publish
                await streams.connect()
            with start.step("start the scheduler"):
                try:
                    scheduler.start()
                except (SQLAlchemyError, OSError) as error:
                    raise DemoError(f"the schedule in {settings.data_dir} can't be opened: {error}") from error
                add_periodic_jobs(scheduler, settings)
            with start.step("take messages"):
                await streams.start()
        service.announce_ready()
        await stop.wait()
    finally:
        await streams.stop()
        if scheduler.running:
            scheduler.shutdown(wait=False)
        await model.close()
        await library.close()


def main() -> int:
    """Run the scheduler."""
    return service.run(NAME, _serve)


if __name__ == "__main__":
    sys.exit(main())
