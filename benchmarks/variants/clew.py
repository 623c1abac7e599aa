"""clew, by its public facade; only the transport that drops everything is put in from inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import clew
from benchmarks.variants.parts import AGENT_WORK, Labels, Messages, Operations, Options, Served, Spans
from benchmarks.variants.shop import shop
from clew.engine import runtime
from clew.pipeline.transport import Outcome
from clew.settings import Settings


class Dropped:
    """A transport that takes everything and drops it."""

    def send(self, *_batch: Any, **_details: Any) -> Outcome:
        """Take a batch."""
        return Outcome(delivered=True)

    def cancel(self) -> None:
        """Have nothing to end."""

    def close(self) -> None:
        """Have nothing to close."""


def configure(options: Options, **more: Any) -> None:
    """Set clew up as the options say."""
    given: dict[str, Any] = {"service_name": "bench", "log_format": "json" if options.file else "none", **more}
    if options.share < 1:
        given |= {"sampler": "parentbased_traceidratio", "sampler_ratio": options.share}
    if options.mode == "metrics":
        given |= {"traces_exporter": "none", "logs_exporter": "none"}
    if options.file:
        os.dup2(os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    if options.endpoint:
        clew.configure(endpoint=options.endpoint, **given)
    else:
        runtime.start(Settings.load(**given), transport=Dropped())


def flush() -> None:
    """Send everything."""
    clew.flush(timeout_s=60.0)


def request(options: Options) -> Served:
    """Return the app with everything on: traces, metrics, the log events of a request, the correlation id."""
    configure(options)
    app = shop()
    clew.instrument(app)
    return Served(app=app, flush=flush)


def operations(options: Options) -> Operations:
    """Return what an app calls most."""
    configure(options)
    counter = clew.counter("bench.orders", unit="{order}", labels=("channel", "kind"))
    histogram = clew.histogram("bench.duration", unit="s", labels=("channel", "kind"))
    bound_counter = counter.bind(channel="web", kind="new")
    bound_histogram = histogram.bind(channel="web", kind="new")
    log = clew.get_logger("bench")

    def empty() -> None:
        with clew.span("price"):
            pass

    def five() -> None:
        with clew.span("price", sku="A-17", amount=12.5, count=3, channel="web", express=True):
            pass

    return Operations(
        each={
            "span, empty": empty,
            "span, 5 attributes": five,
            "counter, bound": lambda: bound_counter.add(1),
            "counter, by keyword": lambda: counter.add(1, channel="web", kind="new"),
            "histogram, bound": lambda: bound_histogram.record(0.25),
            "log line to OTLP": lambda: log.info("order.placed", order_id=7, channel="web"),
        },
        flush=flush,
    )


def spans(options: Options) -> Spans:
    """Return a source of spans; metrics and logs are off, so that only spans are counted."""
    configure(options, metrics_exporter="none", logs_exporter="none")

    def emit() -> None:
        with clew.span("price", sku="A-17", amount=12.5, count=3, channel="web", express=True):
            pass

    def emit_request() -> None:
        with clew.span("place order", sku="A-17", amount=12.5, count=3, channel="web", express=True):
            emit()

    def account() -> dict[str, int]:
        traces = clew.accounts()["traces"]
        return {
            "emitted": traces.emitted,
            "delivered": traces.delivered,
            "dropped": sum(traces.dropped.values()),
            "waiting": traces.pending,
        }

    return Spans(emit=emit, emit_request=emit_request, flush=flush, shutdown=clew.shutdown, account=account)


def labels(options: Options) -> Labels:
    """Return a counter and a histogram of one label."""
    configure(options, traces_exporter="none", logs_exporter="none")
    counter = clew.counter("bench.orders", unit="{order}", labels=("customer",))
    histogram = clew.histogram("bench.duration", unit="s", labels=("customer",))

    def add(value: str) -> None:
        counter.add(1, customer=value)
        histogram.record(0.25, customer=value)

    return Labels(add=add)


def agents(options: Options) -> Operations:
    """Return what agents do; with records where the environment says so."""
    configure(options)

    def task() -> None:
        with clew.agent_task("extractor", type="extraction", task_id="doc-17"):
            pass

    def handoff() -> None:
        with clew.handoff(to="topicizer", task="doc-17", reason="topics"):
            pass

    def picked_up() -> None:
        with (
            clew.handoff(to="topicizer", task="doc-17", reason="topics"),
            clew.agent_task("topicizer", type="topicization", task_id="doc-17"),
        ):
            pass

    def call() -> None:
        with clew.llm_call("openai", "gpt-4o-mini") as asked:
            asked.tokens(input=120, output=16)
            asked.response(model="gpt-4o-mini-2024-07-18", finish_reasons=["stop"])

    work: dict[str, Callable[[], object]] = dict(zip(AGENT_WORK, (task, handoff, picked_up, call), strict=True))
    return Operations(each=work, flush=flush)


def messages(options: Options) -> Messages:
    """Return FastStream with clew: traces, metrics and log events; with records where the environment says so."""
    from benchmarks.variants.exchange import exchange

    configure(options)
    return exchange(options.valkey, instrument=clew.instrument, flush=flush)
