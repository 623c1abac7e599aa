"""The running stack as a fixture, and what happens when its programs cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.stack.backends import ROOT, Stack, running_stack

_EXIT_WITHOUT_GO = 3
_PROBLEM = pytest.StashKey[tuple[int, str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is missing before the first test, in sight, so that no test's time limit pays for it."""
    if session.config.option.collectonly or not any(item.get_closest_marker("stack") for item in session.items):
        return
    command = [sys.executable, str(ROOT / "tools" / "backends.py"), "build"]
    capture: Any = session.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        built = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if built.returncode != 0:
            sys.stderr.write(built.stderr)
    session.config.stash[_PROBLEM] = (built.returncode, built.stderr.strip())


@pytest.fixture(scope="session")
def backends_built(request: pytest.FixtureRequest) -> None:
    """See to it that the programs are there; without Go skip, but never where CI=true."""
    status, problem = request.config.stash[_PROBLEM]
    if status == _EXIT_WITHOUT_GO and os.environ.get("CI") != "true":
        pytest.skip(problem)
    if status != 0:
        pytest.fail(problem, pytrace=False)


@pytest.fixture(scope="session")
def stack(backends_built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All backends, started once for the whole run: for tests that stop none of them."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running
