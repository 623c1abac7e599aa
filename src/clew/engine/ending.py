"""The end of the process: what is queued is flushed, jobs and records and then telemetry, within one deadline for all of it."""

from __future__ import annotations

import atexit
import multiprocessing.process
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, Literal, Protocol

from clew import clock, diagnostics
from clew.engine import logs
from clew.engine.lifecycle import lifecycle, note_sigterm
from clew.engine.state import State, state
from clew.pipeline.providers import Pipeline


class Part(Protocol):
    """Something beside telemetry that is flushed and ended with the process, such as the durable records."""

    def flush(self, timeout_s: float) -> bool:
        """Write what waits; return whether all of it was handled."""
        ...

    def shutdown(self, timeout_s: float) -> bool:
        """Write what waits and stop; return whether all of it was handled."""
        ...


class Unfinished(Protocol):
    """Something of the app's that may go on while the process ends, such as runs of jobs."""

    def goes_on(self) -> bool:
        """Tell whether it does."""
        ...

    def shutdown(self, timeout_s: float) -> bool:
        """Let it finish, or mark it; return whether it finished. It is called more than once."""
        ...


_parts: Final[list[Part]] = []
_unfinished: Final[list[Unfinished]] = []
_held_up_s = 0.0
_ending: _Ending | None = None
_is_terminated = False

# What a step at the end of the process may take even where the steps before it have used up the deadline
_LEAST_ENDING_S: Final = 0.5
# What is kept of the deadline for telemetry when jobs and records take as long as they may
_TELEMETRY_ENDING_S: Final = 1.0


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
    with state.lock:
        if part not in _parts:
            _parts.append(part)


def let_finish(unfinished: Unfinished) -> None:
    """Have a signal that ends the process leave the app running until the deadline while something goes on that may finish."""
    with state.lock:
        if unfinished not in _unfinished:
            _unfinished.append(unfinished)


def is_held_up() -> bool:
    """Tell whether the process was asked to end while something goes on that may finish."""
    return lifecycle.stopping and any(one.goes_on() for one in _unfinished)


def note_server() -> None:
    """Take note of SIGTERM in a server that has put a handler of its own in place, before it stops the app."""
    _flush_on_sigterm()
    if signal.getsignal(signal.SIGTERM) is not _terminate:
        note_sigterm()


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

    Where it was asked to end, what goes on may finish first, or is marked.

    What it takes is taken off the one deadline, ``CLEW_SHUTDOWN_TIMEOUT_S``, that the whole end of the process has.

    Returns:
        True when nothing waits in memory any more.
    """
    global _held_up_s
    pipeline = state.pipeline
    started = clock.monotonic_s()
    left_s = _left_to_end_s()
    until = started + left_s
    try:
        if lifecycle.stopping:
            for unfinished in _unfinished:
                unfinished.shutdown(left_s - min(_TELEMETRY_ENDING_S, left_s / 2))
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
    with state.lock:
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
            with state.lock:
                pipeline, state.pipeline, state.tracer = state.pipeline, None, None
            left_s = max(_LEAST_ENDING_S if _parts else 0.0, self._until - clock.monotonic_s())
            self._finished = (pipeline is None or pipeline.shutdown(left_s)) and done
        except Exception as error:
            diagnostics.report("shutdown", error)
        finally:
            self._done.set()
        with state.lock:
            if state.settings is not None and pipeline is not None and state.pipeline is None:
                # What is logged from now on is still written to the terminal
                state.log_stream = logs.LogStream(state.settings, pipeline.redactor, None)
                logs.install(state.log_stream)

    def wait(self) -> bool:
        # Until a little after the deadline, for what is written to disk in the last moment
        self._done.wait(max(0.0, self._until - clock.monotonic_s()) + _LEAST_ENDING_S)
        return self._finished


def take_part_in_exit() -> None:
    """Have the process shut down when it ends by itself, by SIGTERM, or as a child of multiprocessing."""
    atexit.register(_shut_down_at_exit)
    multiprocessing.util.register_after_fork(state, _flush_at_child_exit)
    _flush_on_sigterm()
    if multiprocessing.process.parent_process() is not None:
        # Set up in a child that was forked before, as a fork server's are
        _flush_at_child_exit(state)


def reset_after_fork() -> None:
    """Begin anew: the child has its own end."""
    global _held_up_s, _ending, _is_terminated
    _held_up_s, _ending, _is_terminated = 0.0, None, False


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
    global _is_terminated
    lifecycle.stop()
    # In a thread of its own: the signal may have come while this one held a lock that the shutdown needs
    is_over = _ending is not None and _ending.is_over
    if not is_over and any(one.goes_on() for one in _unfinished):
        # It may go on in this very thread, or on its event loop: that is not held up, and ends when the shutdown is over
        _is_terminated = True
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


def _shut_down_at_exit() -> None:
    shutdown()
    if _is_terminated:
        # The app came to its end while that was waited for: whoever sent the signal is told the same as ever
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _flush_at_child_exit(_state: State) -> None:
    # A child of multiprocessing ends without running what atexit was told
    multiprocessing.util.Finalize(None, shutdown, exitpriority=100)
