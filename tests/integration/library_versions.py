"""Other versions of libraries than the installed ones, for servers that tests start: installed once, outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def folder_with(*requirements: str) -> Path:
    """Return a folder with exactly these packages, to stand first on ``PYTHONPATH``; all else comes from where tests run.

    Skips the test where they can't be installed, but fails it where ``CI=true``.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clew" / "libraries"
    folder = cache / "-".join([f"python{python}", *(text.replace("==", "-") for text in requirements)])
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            f"{made}/new",
            *requirements,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        if done.returncode != 0:
            sentence = f"pip can't install {', '.join(requirements)}: {done.stderr.strip()[-300:]}"
            if os.environ.get("CI") == "true":
                pytest.fail(sentence, pytrace=False)
            pytest.skip(sentence)
        if not folder.exists():
            shutil.move(f"{made}/new", folder)
    return folder
