"""A demo that runs for tests of it, and processes of it that are killed and started again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Final

import pytest

from clew.demo.processes import ManagedProcess
from clew.demo.system import DemoSystem, Wishes

_FOREIGN: Final = ("OTEL_", "CLEW_", "DEMO_", "VALKEY_", "NATS_", "OPENAI_")


@contextmanager
def running_demo(folder: Path, **variables: str) -> Iterator[DemoSystem]:
    """Run a demo of the test's own, with nothing of the developer's settings.

    Args:
        folder: where it keeps everything.
        variables: what its services are told, such as ``DEMO_QUEUE``.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        demo = DemoSystem(Wishes(data_dir=folder, port=0, console_port=0), tell=print, should_stop=lambda: False)
        try:
            demo.start()
            yield demo
        finally:
            demo.stop()


class Replacements:
    """The processes that took the place of killed ones."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def kill(self, member: ManagedProcess) -> ManagedProcess:
        """Kill a process of a demo, start it again just as it was, and return the new one."""
        pid = member.process.pid
        environment = dict(
            line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in line
        )
        os.kill(pid, SIGKILL)
        member.process.wait()
        with member.log_path.open("ab") as log:
            process = subprocess.Popen(
                member.process.args, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return ManagedProcess(name=member.name, process=process, log_path=member.log_path)

    def end(self) -> None:
        """End all of them."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)
            process.wait()
