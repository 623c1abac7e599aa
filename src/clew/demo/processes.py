"""The demo's processes: started each in a group of its own, watched, and ended all together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from clew.demo import reaper
from clew.demo.settings import READY_FD_VARIABLE, DemoError

STOP_TIMEOUT_S: Final = 4.5
"""How long all processes together have to end by themselves."""

_LAST_TIMEOUT_S: Final = 1.5
_POLL_EVERY_S: Final = 0.02
_LOG_TAIL_BYTES: Final = 8_192
_LOCK_PATIENCE_S: Final = reaper.PATIENCE_S + 2.0


class StoppedError(DemoError):
    """The demo was asked to stop while it was still starting."""


@dataclass(kw_only=True)
class ManagedProcess:
    """A process of the demo.

    Attributes:
        name: what it is called in messages.
        process: the running program.
        log_path: what it writes to the terminal goes there.
        ready_fd: where it says that it is ready; ``None`` for a program that doesn't.
    """

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    ready_fd: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def died(self) -> DemoError:
        """Return an error that says how it ended, with the last thing it said."""
        status = self.process.poll()
        if status is not None and status < 0:
            return DemoError(f"{self.name} was ended by signal {-status}; its log is {self.log_path}")
        return DemoError(
            f"{self.name} ended with exit status {status}: {_last_words(self.log_path)} (its log is {self.log_path})"
        )


class ProcessGroup:
    """All processes of one demo. Whatever happens to this process, none of them outlives it for long.

    Args:
        folder: where their logs go, in a folder ``logs``, and which one demo holds at a time.
        should_stop: asked while waiting.

    Raises:
        DemoError: the folder can't be used, or another demo runs in it.
    """

    def __init__(self, folder: Path, *, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder / "demo.lock", should_stop)
        self.members: list[ManagedProcess] = []
        script = [sys.executable, "-I", "-S", reaper.__file__]
        # The reaper inherits the lock: the next demo waits until what this one left behind is gone
        self._reaper = subprocess.Popen(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(self._lock.fileno(),),
        )

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        says_ready: bool = True,
    ) -> ManagedProcess:
        """Start a program.

        Args:
            name: what it is called in messages, and its log's name.
            command: the program and its arguments.
            environment: all its variables; by default those of this process.
            says_ready: whether it tells when it is ready, as the demo's services do.

        Raises:
            DemoError: it can't be started.
        """
        log_path = self._logs / f"{name}.log"
        variables = dict(os.environ if environment is None else environment)
        ready_fd, child_fd = os.pipe() if says_ready else (None, None)
        if child_fd is not None:
            variables[READY_FD_VARIABLE] = str(child_fd)
        try:
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # A Ctrl-C at the terminal is for us to pass on, in the right order
                    start_new_session=True,
                    pass_fds=() if child_fd is None else (child_fd,),
                )
        except OSError as error:
            if ready_fd is not None:
                os.close(ready_fd)
            raise DemoError(
                f"{name} can't be started: {error.strerror or error} ({command[0]}, log {log_path})"
            ) from error
        finally:
            if child_fd is not None:
                os.close(child_fd)
        self._tell_reaper(f"+{process.pid}\n")
        member = ManagedProcess(name=name, process=process, log_path=log_path, ready_fd=ready_fd)
        self.members.append(member)
        return member

    def await_ready(self, member: ManagedProcess, timeout_s: float, is_ready: Callable[[], bool] | None = None) -> None:
        """Wait until a process is ready.

        Args:
            member: the process.
            timeout_s: how long at most.
            is_ready: tells for a program that does not say so itself.

        Raises:
            DemoError: it ended, or is not ready in time.
            StoppedError: the demo was asked to stop.
        """
        deadline = time.monotonic() + timeout_s
        while not (is_ready() if is_ready is not None else _said_ready(member)):
            if not member.is_running:
                raise member.died()
            if self._should_stop():
                raise StoppedError("stopped while starting")
            if time.monotonic() > deadline:
                raise DemoError(f"{member.name} was not ready after {timeout_s:.0f} s: see {member.log_path}")
            if is_ready is not None:
                time.sleep(_POLL_EVERY_S)

    def dead(self) -> ManagedProcess | None:
        """Return a process that has ended by itself, if any has."""
        return next((member for member in self.members if not member.is_running), None)

    def stop(self, last: Sequence[str] = ()) -> None:
        """End all processes within STOP_TIMEOUT_S; nothing of theirs runs afterwards. Stopping twice is harmless.

        Args:
            last: names of those that the others still need while they end.
        """
        deadline = time.monotonic() + STOP_TIMEOUT_S
        first = [member for member in self.members if member.name not in last]
        _end(first, deadline - _LAST_TIMEOUT_S)
        _end([member for member in self.members if member.name in last], deadline)
        for member in self.members:
            if member.ready_fd is not None:
                os.close(member.ready_fd)
                member.ready_fd = None
            self._tell_reaper(f"-{member.process.pid}\n")
        self.members.clear()
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.close()
            self._reaper.wait()
        self._lock.close()

    def _tell_reaper(self, line: str) -> None:
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # someone has killed it
                self._reaper.stdin.write(line.encode())
                self._reaper.stdin.flush()


def _said_ready(member: ManagedProcess) -> bool:
    if member.ready_fd is None:
        return True
    readable, _, _ = select.select([member.ready_fd], [], [], _POLL_EVERY_S)
    # The end of the pipe without a word is the end of the process, which its caller sees next
    return bool(readable) and bool(os.read(member.ready_fd, 16))


def _end(members: Sequence[ManagedProcess], deadline: float) -> None:
    for member in members:
        _send(member, signal.SIGTERM)
    while any(member.is_running for member in members) and time.monotonic() < deadline:
        time.sleep(_POLL_EVERY_S)
    for member in members:
        if member.is_running:
            # The whole group, so that nothing that it started is left either
            _send(member, signal.SIGKILL)
            member.process.wait()


def _send(member: ManagedProcess, number: signal.Signals) -> None:
    try:
        os.killpg(member.process.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _last_words(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return "it left no log"
    # Not the log events, which are JSON: what it said for a person to read
    said = [line for line in lines if line and not line.startswith("{")]
    return said[-1][:500] if said else "it said nothing"


def _lock(path: Path, should_stop: Callable[[], bool]) -> IO[str]:
    """Take the folder for this demo; the kernel lets go of it with the last process that has it open."""
    lock = path.open("a+")
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > deadline or should_stop():
                lock.seek(0)
                holder = lock.read(20).strip()
                lock.close()
                raise DemoError(
                    f"another demo{f' (process {holder})' if holder else ''} uses {path.parent}: stop it, or give another "
                    "folder with --data-dir"
                ) from error
            time.sleep(_POLL_EVERY_S)
        else:
            lock.seek(0)
            lock.truncate()
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            return lock
