"""The process: configured once, from code or from the environment, for everything that is found in its state."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.resources import Resource

from clew import diagnostics
from clew.catalog.kind import Metric
from clew.catalog.metrics import TELEMETRY_DELIVERED, TELEMETRY_DROPPED, TELEMETRY_EMITTED, TELEMETRY_PENDING
from clew.engine import ending, logs
from clew.engine import logger as logger_module
from clew.engine.context import install_propagators
from clew.engine.metrics import registry
from clew.engine.state import State, state
from clew.pipeline.ledger import Account
from clew.pipeline.providers import Pipeline
from clew.pipeline.redaction import Redactor
from clew.pipeline.resource import build_resource
from clew.pipeline.transport import Transport
from clew.settings import SIGNALS, Settings

logger = logging.getLogger("clew")


@dataclass(frozen=True, kw_only=True)
class _OtherAccount:
    read: Callable[[], Account]
    metrics: Mapping[str, Metric]


_accounts: Final[dict[str, _OtherAccount]] = {}
_exit_registered = False


def configure(**given: Any) -> None:
    """Set up traces, metrics and logs for this process. To be called once, early; calling it again is harmless.

    Without a call, the first use does the same from the environment. A value of the environment that can't be used is named in
    the log, and its default is used: the app starts all the same.

    Args:
        given: settings by name, such as ``service_name="orders"``, as :class:`clew.settings.Settings` has them.

    Raises:
        SettingsError: in strict mode only (``CLEW_STRICT=1``), for a setting that can't be used.

    Example:
        >>> import clew
        >>> clew.configure(service_name="orders")
    """
    with state.lock:
        if state.capturing or (state.settings is None and state.log_stream is not None):
            # The latter: what interrupts the set-up waits for nothing
            return
        if state.settings is not None:
            changed = sorted(name for name, value in given.items() if getattr(state.settings, name, None) != value)
            if changed:
                diagnostics.report(
                    "configure", f"{', '.join(changed)}: clew is configured already, before its first use; ignored"
                )
            return
        settings, problems = Settings.load_or_default(**given)
        if problems and settings.strict:
            Settings.load(**given)
        start(settings)
        for problem in problems:
            logger.error("%s The default is used.", problem)


def start(settings: Settings, *, transport: Transport | None = None) -> None:
    """Set the process up with settings that are known to be good.

    Args:
        settings: the settings.
        transport: where encoded batches go; by default to the addresses of the settings.
    """
    global _exit_registered
    with state.lock:
        diagnostics.set_strict(strict=settings.strict)
        registry.configure(settings, before_collection=_count_deliveries)
        # For a signal's handler that logs right now; other threads wait for the settings, which come last
        state.log_stream = logs.LogStream(settings, Redactor(settings.redact_keys), None)
        state.max_value_length = settings.max_value_length
        install_propagators(settings)
        taken: list[str] = []
        if any(settings.enabled(name) for name in SIGNALS):
            # Library instrumentations of the same process speak the stable names, as clew does
            os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
            state.pipeline = Pipeline(
                settings,
                metric_source=registry,
                transport=transport,
            )
            taken = state.pipeline.make_global()
            state.tracer = state.pipeline.tracer() if settings.enabled("traces") else None
        redactor = state.pipeline.redactor if state.pipeline is not None else Redactor(settings.redact_keys)
        state.redact = redactor.value
        state.log_stream = logs.LogStream(settings, redactor, state.pipeline)
        logger_module.prepare(current_log_stream)
        state.settings = settings
        logs.install(state.log_stream)
        for sentence in taken:
            logger.warning("%s", sentence)
        if not _exit_registered:
            _exit_registered = True
            os.register_at_fork(after_in_child=_after_fork)
            ending.take_part_in_exit()


def ready() -> State:
    """Return the state, configured from the environment when nobody has configured it."""
    if state.settings is None:
        configure()
    return state


def resource_attributes() -> Mapping[str, Any]:
    """Return what tells this process apart in telemetry: ``service.name``, ``service.instance.id`` and others."""
    if state.pipeline is not None:
        return state.pipeline.resource.attributes
    # Without telemetry there is no pipeline to keep it: one and the same while the process lives
    return _resource_of(os.getpid()).attributes


@functools.lru_cache(maxsize=1)
def _resource_of(_pid: int) -> Resource:
    return build_resource(ready().settings or Settings())


def current_log_stream() -> logs.LogStream:
    """Return where log events go."""
    stream = ready().log_stream
    if stream is None:
        raise diagnostics.ClewError("clew has been shut down")
    return stream


def accounts() -> dict[str, Account]:
    """Return what became of everything emitted so far, by signal; ``history`` are the rows of the durable records."""
    telemetry = state.pipeline.accounts() if state.pipeline is not None else {}
    of_signals = {str(name): account for name, account in telemetry.items()}
    return of_signals | {name: other.read() for name, other in _accounts.items()}


def add_account(name: str, read: Callable[[], Account], **metrics: Metric) -> None:
    """Have something beside telemetry shown among the accounts.

    Args:
        name: what it is called there.
        read: returns it.
        metrics: ``emitted``, ``delivered``, ``dropped`` (with a label for the reason) and ``pending``.
    """
    _accounts[name] = _OtherAccount(read=read, metrics=metrics)


@contextmanager
def capture(transport: Transport) -> Iterator[None]:
    """Take everything that is emitted in the block to another transport, counting from zero and in strict mode.

    The process keeps its providers, because libraries hold on to what they got of them.

    Args:
        transport: where encoded batches go instead.
    """
    with state.lock:
        was_strict = diagnostics.is_strict()
        if state.pipeline is None:
            start(Settings.load(service_name="test", compression="none"), transport=transport)
        pipeline = ready().pipeline
        if pipeline is None:
            raise diagnostics.ClewError("OTEL_SDK_DISABLED=true: with telemetry off there is nothing to capture")
        pipeline.flush(5.0)
        go_back = pipeline.redirect(transport)
        registry.reset()
        diagnostics.forget()
        diagnostics.set_strict(strict=True)
        state.capturing = True
    try:
        yield
    finally:
        with state.lock:
            pipeline.flush(5.0)
            go_back()
            diagnostics.set_strict(strict=was_strict)
            state.capturing = False


def _count_deliveries() -> None:
    """Set the metrics of what became of everything emitted."""
    emitted, delivered = registry.declared(TELEMETRY_EMITTED), registry.declared(TELEMETRY_DELIVERED)
    dropped, pending = registry.declared(TELEMETRY_DROPPED), registry.declared(TELEMETRY_PENDING)
    for other in _accounts.values():
        account = other.read()
        registry.declared(other.metrics["emitted"]).set_total(account.emitted)
        registry.declared(other.metrics["delivered"]).set_total(account.delivered)
        registry.declared(other.metrics["pending"]).set(account.pending)
        for reason, items in account.dropped.items():
            registry.declared(other.metrics["dropped"]).set_total(items, **{"clew.drop.reason": reason})
    for name, account in state.pipeline.accounts().items() if state.pipeline is not None else ():
        labels = {"clew.signal": name}
        emitted.set_total(account.emitted, **labels)
        delivered.set_total(account.delivered, **labels)
        pending.set(account.pending, **labels)
        for reason, items in account.dropped.items():
            dropped.set_total(items, **labels, **{"clew.drop.reason": reason})


def _after_fork() -> None:
    state.lock = threading.RLock()
    ending.reset_after_fork()
    registry.reset()
    diagnostics.forget()
