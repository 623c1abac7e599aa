"""A worker or a beat of Celery as a real process, which is gone when the test is over."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.integration.queue_process import QueueProcess

APP = "tests.integration.celery_app"


class CeleryProcess(QueueProcess):
    """``celery -A tests.integration.celery_app ...``."""

    def __init__(
        self,
        *arguments: str,
        url: str,
        folder: Path,
        environment: Mapping[str, str],
        run_by: tuple[str, ...] = (),
        app: str = APP,
    ) -> None:
        program = run_by or (sys.executable, "-m")
        super().__init__(*program, "celery", "-A", app, *arguments, url=url, folder=folder, environment=environment)

    def wait_until_ready(self) -> None:
        """Wait until a worker takes tasks."""
        self.wait_until_said(" ready.")
