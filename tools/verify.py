"""Run every check and every test of the project, step by step, and end with one line that says how it went.

``python tools/verify.py`` does everything; ``--checks-only`` stops before the tests. What follows is given to pytest.
With ``CI=true`` nothing may be left out: a test that skips is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

WORKERS = min(8, os.cpu_count() or 1)
"""How many processes run the tests: no more than there are cores, since some tests have deadlines."""

CHECKS = (
    ("style: ruff check", [str(BIN / "ruff"), "check", "--quiet", "."], "make format mends most of it"),
    ("style: ruff format", [str(BIN / "ruff"), "format", "--check", "--quiet", "."], "make format mends it"),
    ("types: mypy --strict", [str(BIN / "mypy")], "mend the lines above"),
    ("layers: import-linter", [str(BIN / "lint-imports"), "--no-cache"], "imports point down only: see pyproject.toml"),
)


def step(name: str, command: list[str], mend: str) -> None:
    """Run one step; on failure end with one sentence that says what to do."""
    started = time.monotonic()
    print(f"clew verify: {name} ...", flush=True)
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode != 0:
        sys.exit(f"clew verify: {name} failed: {mend}.")
    print(f"clew verify: {name} ok ({time.monotonic() - started:.0f} s)", flush=True)


def main() -> None:
    """Run the checks, build the backends, run the tests."""
    arguments = sys.argv[1:]
    for name, command, mend in CHECKS:
        step(name, command, mend)
    if arguments[:1] == ["--checks-only"]:
        return
    if shutil.which("go") is not None:
        build = [sys.executable, "tools/backends.py", "build"]
        step("real backends (built once, about 20 minutes)", build, "the lines above say what Go refused")
    elif os.environ.get("CI") == "true":
        sys.exit("clew verify: Go is missing and CI=true allows nothing to be left out: install Go 1.26 or newer.")
    else:
        print(
            "clew verify: Go is missing, so tests/stack is left out, unless its programs were built before: "
            "install Go 1.26 or newer to run it.",
            flush=True,
        )
    # Several processes share a run; the tests of one file stay together.
    # Coverage is that of these processes only: measuring the hundreds that tests start would double the time of the run
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--cov",
        "--cov-report=term",
        f"--numprocesses={WORKERS}",
        "--dist=loadfile",
    ]
    tests = subprocess.run([*command, *arguments], cwd=ROOT, check=False)
    if tests.returncode != 0:
        sys.exit("clew verify: tests failed: the lines above say which; 'make test ARGS=\"-k NAME\"' runs one again.")
    print("clew verify: all checks and tests passed.", flush=True)


if __name__ == "__main__":
    main()
