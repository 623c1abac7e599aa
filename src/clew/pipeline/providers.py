"""The pipeline of a process: the OpenTelemetry providers that libraries speak to, and the worker behind them.

The engine and every instrumentation library reach telemetry's way out through this one object.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, cast

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.metrics.export import ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from clew import clock
from clew._version import __version__
from clew.catalog import semconv
from clew.pipeline.encoding import Encoder
from clew.pipeline.ledger import Account
from clew.pipeline.metering import Metering, MetricSource
from clew.pipeline.records import LogItem
from clew.pipeline.redaction import Redactor
from clew.pipeline.resource import build_resource
from clew.pipeline.sampling import build_id_generator, build_keep, build_sampler
from clew.pipeline.spool import Spool
from clew.pipeline.tracing import Tracer, TracerProvider
from clew.pipeline.transport import OtlpTransport, Transport
from clew.pipeline.worker import ExportWorker
from clew.settings import SIGNALS, Settings, Signal

logger = logging.getLogger("clew.pipeline")

SCOPE = InstrumentationScope("clew", __version__, semconv.SCHEMA_URL)


class _QueueingLogProcessor(LogRecordProcessor):
    """Hands the log records of instrumentation libraries to the worker."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self._pipeline.add_log(
            ReadableLogRecord(
                log_record=log_record.log_record,
                resource=self._pipeline.resource,
                instrumentation_scope=log_record.instrumentation_scope,
                limits=log_record.limits,
            )
        )

    def shutdown(self) -> None:
        """Nothing to let go of: the worker has a shutdown of its own."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._pipeline.flush(timeout_millis / 1000)


class Pipeline:
    """Telemetry's way out of one process.

    Args:
        settings: what is on, where it goes, how much of it.
        metric_source: the engine's own metrics.
        transport: where encoded batches go; by default to the addresses of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metric_source: MetricSource,
        transport: Transport | None = None,
    ) -> None:
        self.settings = settings
        self.resource: Resource = build_resource(settings)
        self.redactor = Redactor(settings.redact_keys)
        self._metering = Metering(settings, self.resource, metric_source)
        self.meter_provider = self._metering.provider
        self._given_transport = transport
        self._worker = ExportWorker(
            settings,
            partial(Encoder, self.resource, self.redactor, max_value_length=settings.max_value_length),
            transport or OtlpTransport(settings),
            None if transport else spool_of(settings),
            self._metering.send,
        )
        self.tracer_provider = TracerProvider(
            self._worker.add_span,
            flush=self._worker.flush,
            resource=self.resource,
            sampler=build_sampler(settings),
            id_generator=build_id_generator(settings),
            span_limits=SpanLimits(max_attribute_length=settings.max_value_length),
            keep=build_keep(settings),
        )
        self.logger_provider = LoggerProvider(resource=self.resource, shutdown_on_exit=False)
        self.add_log: Callable[[LogItem | ReadableLogRecord], None] = self._worker.add_log
        """Queues one log record."""
        self.logger_provider.add_log_record_processor(_QueueingLogProcessor(self))
        if settings.enabled("metrics"):
            # Metrics go out on a timer, even where no span or log record wakes the worker
            self._worker.start()
        _register_at_fork(self)

    def make_global(self) -> list[str]:
        """Become the process's providers for the signals that are on.

        Returns:
            A sentence for each signal whose provider somebody else has set before.
        """
        taken = []
        if self.settings.enabled("traces"):
            trace.set_tracer_provider(self.tracer_provider)
            if trace.get_tracer_provider() is not self.tracer_provider:
                taken.append(_taken("tracer", trace.get_tracer_provider()))
        if self.settings.enabled("metrics"):
            metrics.set_meter_provider(self.meter_provider)
            if metrics.get_meter_provider() is not self.meter_provider:
                taken.append(_taken("meter", metrics.get_meter_provider()))
        if self.settings.enabled("logs"):
            _logs.set_logger_provider(self.logger_provider)
            if _logs.get_logger_provider() is not self.logger_provider:
                taken.append(_taken("logger", _logs.get_logger_provider()))
        return taken

    def tracer(self) -> Tracer:
        """Return the tracer that the engine starts its spans with."""
        return cast("Tracer", self.tracer_provider.get_tracer(SCOPE.name, SCOPE.version, SCOPE.schema_url))

    def collect(self) -> list[ScopeMetrics]:
        """Return the metric points of everything so far: the engine's own, and those of the instruments that libraries made."""
        return self._metering.read()

    def redirect(self, transport: Transport) -> Callable[[], None]:
        """Send to another transport from now on; returns what goes back, as :meth:`ExportWorker.redirect` does."""
        self._metering.forget_libraries()
        go_back = self._worker.redirect(transport)

        def forget_and_go_back() -> None:
            self._metering.forget_libraries()
            go_back()

        return forget_and_go_back

    def accounts(self) -> dict[Signal, Account]:
        """Return what became of everything emitted so far, by signal."""
        return self._worker.accounts()

    def flush(self, timeout_s: float, *, ending: bool = False) -> bool:
        """Send what is queued; true when nothing of it waits in memory any more.

        Args:
            timeout_s: how long to wait at most.
            ending: the process may end next, so time is left to write to disk what can't be sent.
        """
        until = clock.monotonic_s() + timeout_s
        guests = self._tell_guests("force_flush", timeout_s)
        finished = self._worker.flush(timeout_s, ending=ending)
        return _joined(guests, until) and finished

    def shutdown(self, timeout_s: float) -> bool:
        """Send or spool everything within one deadline and stop; says so where something was lost, or waits."""
        until = clock.monotonic_s() + timeout_s
        guests = self._tell_guests("shutdown", timeout_s)
        finished = self._worker.shutdown(timeout_s)
        finished = _joined(guests, until) and finished
        for signal, account in self.accounts().items():
            if account.dropped:
                reasons = ", ".join(f"{items} {reason}" for reason, items in sorted(account.dropped.items()))
                logger.warning("%s lost since the start: %s of %d emitted", signal, reasons, account.emitted)
            if account.pending:
                logger.info("%s that wait on disk: %d of %d emitted", signal, account.pending, account.emitted)
        return finished

    def _tell_guests(self, what: Literal["force_flush", "shutdown"], timeout_s: float) -> list[threading.Thread]:
        """Have the processors that others added to the providers do their part at the same time, each in its own thread."""
        threads = []
        for processor in (
            *self.tracer_provider.guests._span_processors,
            *self.logger_provider._multi_log_record_processor._log_record_processors,
        ):
            if not isinstance(processor, _QueueingLogProcessor):
                thread = threading.Thread(
                    target=_tell, args=(processor, what, timeout_s), name=f"clew-{what}-guest", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    # The interpreter is ending: whoever may block without end can't be told any more
                    break
                threads.append(thread)
        return threads

    def _after_fork_in_child(self) -> None:
        self._metering.after_fork_in_child()
        self.resource = build_resource(self.settings)
        self._worker.reset_after_fork(
            partial(Encoder, self.resource, self.redactor, max_value_length=self.settings.max_value_length),
            self._given_transport or OtlpTransport(self.settings),
        )
        if self.settings.enabled("metrics"):
            self._worker.start()


def _register_at_fork(pipeline: Pipeline) -> None:
    """Have a pipeline told of forks, without keeping it alive."""
    known = weakref.ref(pipeline)

    def tell(method: Callable[[Pipeline], None]) -> None:
        if (living := known()) is not None:
            method(living)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lambda: tell(lambda pipeline: pipeline._metering.before_fork()),
            after_in_parent=lambda: tell(lambda pipeline: pipeline._metering.after_fork_in_parent()),
            after_in_child=lambda: tell(Pipeline._after_fork_in_child),
        )


def spool_of(settings: Settings) -> Spool | None:
    """Return the disk spool of an endpoint, shared by the processes that send there; ``None`` where it is switched off."""
    if settings.spool_max_bytes == 0:
        return None
    # Processes that send to the same addresses share a folder and may replay each other's segments
    addresses = "\n".join(settings.destination(signal).url for signal in SIGNALS)
    folder = settings.spool_path() / hashlib.sha256(addresses.encode()).hexdigest()[:12]
    return Spool(folder, max_bytes=settings.spool_max_bytes, max_age_s=settings.spool_max_age_s)


def _tell(processor: Any, what: Literal["force_flush", "shutdown"], timeout_s: float) -> None:
    try:
        if what == "force_flush":
            processor.force_flush(int(timeout_s * 1000))
        else:
            processor.shutdown()
    except Exception as error:
        logger.warning("%s of %s failed: %r", what, type(processor).__qualname__, error)


def _joined(threads: Iterable[threading.Thread], until: float) -> bool:
    waited = list(threads)
    for thread in waited:
        thread.join(max(0.0, until - clock.monotonic_s()))
    return not any(thread.is_alive() for thread in waited)


def _taken(what: str, provider: object) -> str:
    return (
        f"another {what} provider ({type(provider).__module__}.{type(provider).__qualname__}) was set before clew's: "
        f"libraries send there; configure clew first, or remove the other"
    )
