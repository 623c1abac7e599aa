"""Apps of a few lines, run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.otlp_sink import OtlpSink


def run(code: str, sink: OtlpSink, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code that exports to a sink, and return what became of it; what it printed is in the failure, too."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **sink.environment, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
