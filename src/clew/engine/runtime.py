"""The state of the process: configured once, found by everything, flushed and shut down within one deadline."""

from __future__ import annotations

import atexit
import functools
import logging
import multiprocessing.process
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Literal, Protocol

from opentelemetry.sdk.resources import Resource

from clew import clock, diagnostics
from clew.catalog.kind import Metric
from clew.catalog.metrics import TELEMETRY_DELIVERED, TELEMETRY_DROPPED, TELEMETRY_EMITTED, TELEMETRY_PENDING
from clew.engine import logger as logger_module
from clew.engine import logs
from clew.engine.context import install_propagators
from clew.engine.lifecycle import lifecycle
from clew.engine.metrics import registry
from clew.pipeline.ledger import Account
from clew.pipeline.providers import Pipeline
from clew.pipeline.redaction import Redactor
from clew.pipeline.resource import build_resource
from clew.pipeline.tracing import Tracer
from clew.pipeline.transport import Transport
from clew.settings import SIGNALS, Settings

logger = logging.getLogger("clew")


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class State:
    """What the engine needs at hand.

    Attributes:
        settings: the settings in force, or ``None`` before :func:`configure`.
        pipeline: telemetry's way out, or ``None`` when everything is off.
        tracer: starts spans, or ``None`` when tracing is off.
        log_stream: takes log events, or ``None`` before :func:`configure`.
        max_value_length: characters that are kept of an attribute's value.
        redact: returns what may be shown of a value under a key, or ``None`` before :func:`configure`.
        capturing: a test holds what is emitted; what the app configures is of no consequence.
    """

    settings: Settings | None = None
    pipeline: Pipeline | None = None
    tracer: Tracer | None = None
    log_stream: logs.LogStream | None = None
    max_value_length: int = 8_192
    redact: Callable[[str, Any], Any] | None = None
    capturing: bool = False


class Part(Protocol):
    """Something beside telemetry that is flushed and ended with the process, such as the durable records."""

    def flush(self, timeout_s: float) -> bool:
        """Write what waits; return whether all of it was handled."""
        ...

    def shutdown(self, timeout_s: float) -> bool:
        """Write what waits and stop; return whether all of it was handled."""
        ...


@dataclass(frozen=True, kw_only=True)
class _OtherAccount:
    read: Callable[[], Account]
    metrics: Mapping[str, Metric]


state: Final = State()
_accounts: Final[dict[str, _OtherAccount]] = {}
_parts: Final[list[Part]] = []
_unfinished: Final[list[Callable[[], bool]]] = []
_lock = threading.RLock()
_exit_registered = False
_held_up_s = 0.0
_ending: _Ending | None = None

# What a step at the end of the process may take even where the steps before it have used up the deadline
_LEAST_ENDING_S: Final = 0.5
# What is kept of the deadline for telemetry when jobs and records take as long as they may
_TELEMETRY_ENDING_S: Final = 1.0


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
    with _lock:
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
    with _lock:
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
            atexit.register(shutdown)
            os.register_at_fork(after_in_child=_after_fork)
            multiprocessing.util.register_after_fork(state, _flush_at_child_exit)
            _flush_on_sigterm()
            if multiprocessing.process.parent_process() is not None:
                # Set up in a child that was forked before, as a fork server's are
                _flush_at_child_exit(state)


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


def flush(timeout_s: float = 5.0) -> bool:
    """Send everything that is queued, and the metrics of now.

    Args:
        timeout_s: how long to wait at most.

    Returns:
        True when nothing waits in memory any more: it was delivered, or is in the disk spool, or was counted as dropped.

    Example:
        >>> import clew
        >>> clew.flush(timeout_s=2.0)
        True
    """
    until = clock.monotonic_s() + timeout_s
    try:
        done = _each_part("flush", until)
        left_s = max(0.0, until - clock.monotonic_s())
        return (state.pipeline.flush(left_s) if state.pipeline is not None else True) and done
    except Exception as error:
        diagnostics.report("flush", error)
        return False


def add_part(part: Part) -> None:
    """Have something flushed with telemetry, and ended before it within the same deadline. Once is enough; the last is first."""
    with _lock:
        if part not in _parts:
            _parts.append(part)


def let_finish(goes_on: Callable[[], bool]) -> None:
    """Have a signal that ends the process leave the app running until the deadline while something goes on that may finish.

    Args:
        goes_on: tells whether it does.
    """
    with _lock:
        if goes_on not in _unfinished:
            _unfinished.append(goes_on)


def hold_up_end(wait: Callable[[float], object]) -> None:
    """Wait for something at the end of the process; what that takes is taken off the one deadline.

    Args:
        wait: gets the seconds that there are for it.
    """
    global _held_up_s
    started = clock.monotonic_s()
    left_s = _left_to_end_s()
    try:
        wait(left_s - min(_TELEMETRY_ENDING_S, left_s / 2))
    finally:
        _held_up_s += clock.monotonic_s() - started


def _each_part(what: Literal["flush", "shutdown"], until: float) -> bool:
    done = True
    for part in reversed(_parts):
        try:
            done = getattr(part, what)(max(0.0, until - clock.monotonic_s())) and done
        except Exception as error:
            diagnostics.report(what, error)
            done = False
    return done


def flush_at_end() -> bool:
    """Send everything that is queued when an app has stopped, after which the process may end without another word.

    What it takes is taken off the one deadline, ``CLEW_SHUTDOWN_TIMEOUT_S``, that the whole end of the process has.

    Returns:
        True when nothing waits in memory any more.
    """
    global _held_up_s
    pipeline = state.pipeline
    started = clock.monotonic_s()
    until = started + _left_to_end_s()
    try:
        done = _each_part("flush", until)
        left_s = max(_LEAST_ENDING_S, until - clock.monotonic_s())
        return (pipeline.flush(left_s, ending=True) if pipeline is not None else True) and done
    except Exception as error:
        diagnostics.report("flush", error)
        return False
    finally:
        _held_up_s += clock.monotonic_s() - started


def _left_to_end_s() -> float:
    total_s = state.settings.shutdown_timeout_s if state.settings is not None else 0.0
    return max(min(_LEAST_ENDING_S, total_s), total_s - _held_up_s)


def shutdown(timeout_s: float | None = None) -> bool:
    """Flush and stop; what can't be sent within the deadline waits on disk for the next start. Runs by itself at exit.

    Args:
        timeout_s: one deadline for everything; by default ``CLEW_SHUTDOWN_TIMEOUT_S``, 5 seconds.

    Returns:
        True when everything was handled within the deadline.
    """
    global _ending
    with _lock:
        ending = _ending
        begins = (state.pipeline is not None or _parts) if ending is None else (ending.is_over and state.pipeline)
        if begins:
            lifecycle.stop()
            ending = _ending = _Ending(timeout_s=_left_to_end_s() if timeout_s is None else max(0.0, timeout_s))
    if ending is None:
        return True
    if begins:
        # In a thread of its own: what interrupts this one, such as a signal's handler, can wait for it as well
        thread = threading.Thread(target=ending.run, name="clew-shutdown", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is ending
            ending.run()
    return ending.wait()


class _Ending:
    """The one shutdown of the process, for all who ask for it: a server, a signal's handler, the interpreter's end."""

    def __init__(self, *, timeout_s: float) -> None:
        self._until = clock.monotonic_s() + timeout_s
        self._for_telemetry_s = min(_TELEMETRY_ENDING_S, timeout_s / 2)
        self._done = threading.Event()
        self._finished = False

    @property
    def is_over(self) -> bool:
        return self._done.is_set()

    def run(self) -> None:
        pipeline: Pipeline | None = None
        try:
            # First, because what they do at their end is telemetry, too
            done = _each_part("shutdown", self._until - self._for_telemetry_s)
            with _lock:
                pipeline, state.pipeline, state.tracer = state.pipeline, None, None
            left_s = max(_LEAST_ENDING_S if _parts else 0.0, self._until - clock.monotonic_s())
            self._finished = (pipeline is None or pipeline.shutdown(left_s)) and done
        except Exception as error:
            diagnostics.report("shutdown", error)
        finally:
            self._done.set()
        with _lock:
            if state.settings is not None and pipeline is not None and state.pipeline is None:
                # What is logged from now on is still written to the terminal
                state.log_stream = logs.LogStream(state.settings, pipeline.redactor, None)
                logs.install(state.log_stream)

    def wait(self) -> bool:
        # Until a little after the deadline, for what is written to disk in the last moment
        self._done.wait(max(0.0, self._until - clock.monotonic_s()) + _LEAST_ENDING_S)
        return self._finished


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
    with _lock:
        was_strict = diagnostics.is_strict()
        if state.pipeline is None:
            start(Settings.load(service_name="test", compression="none"), transport=transport)
        pipeline = ready().pipeline
        if pipeline is None:
            raise diagnostics.ClewError("OTEL_SDK_DISABLED=true: with telemetry off there is nothing to capture")
        pipeline.flush(5.0)
        previous = pipeline.redirect(transport)
        registry.reset()
        diagnostics.forget()
        diagnostics.set_strict(strict=True)
        state.capturing = True
    try:
        yield
    finally:
        with _lock:
            pipeline.flush(5.0)
            pipeline.redirect(*previous)
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
    global _lock, _held_up_s, _ending
    _lock = threading.RLock()
    _held_up_s, _ending = 0.0, None
    registry.reset()
    diagnostics.forget()


def _flush_on_sigterm() -> None:
    """Flush before the default action of SIGTERM ends the process, which nothing else would be told of.

    Servers that handle the signal themselves put their own handler in place of this one; uvicorn puts this one back and sends
    itself the signal again when it has stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(signal_number: int, _frame: FrameType | None) -> None:
    lifecycle.stop()
    # In a thread of its own: the signal may have come while this one held a lock that the shutdown needs
    is_over = _ending is not None and _ending.is_over
    if not is_over and any(goes_on() for goes_on in _unfinished):
        # It may go on in this very thread, or on its event loop: that is not held up, and ends when the shutdown is over
        if _ending is None:
            threading.Thread(target=_shut_down_and_terminate, name="clew-sigterm", daemon=True).start()
        return
    ending = threading.Thread(target=shutdown, name="clew-sigterm", daemon=True)
    try:
        ending.start()
        ending.join(_left_to_end_s() + 2 * _LEAST_ENDING_S)
    finally:
        signal.signal(signal_number, signal.SIG_DFL)
        os.kill(os.getpid(), signal_number)


def _shut_down_and_terminate() -> None:
    shutdown()
    os.kill(os.getpid(), signal.SIGTERM)


def _flush_at_child_exit(_state: State) -> None:
    # A child of multiprocessing ends without running what atexit was told
    multiprocessing.util.Finalize(None, shutdown, exitpriority=100)
