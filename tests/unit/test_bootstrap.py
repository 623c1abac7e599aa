from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the set-up script reads, in a folder of its own."""
    for name in ("tools/bootstrap.py", "pyproject.toml", "requirements/demo.txt", "requirements/dev.txt"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return tmp_path


def setup(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(tree / "tools" / "bootstrap.py"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_a_profile_that_does_not_exist_is_answered_with_those_that_do(tree):
    done = setup(tree, "production")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"clew setup: name one profile of demo, dev, for example: python3.11 {tree / 'tools' / 'bootstrap.py'} demo"
    )


def test_an_index_that_does_not_answer_ends_in_one_sentence(tree):
    nowhere = "http://127.0.0.1:1/simple"
    done = setup(
        tree,
        "demo",
        PIP_INDEX_URL=nowhere,
        PIP_RETRIES="0",
        PIP_NO_CACHE_DIR="1",
        PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("clew setup: '")
    assert "check that pip can reach a package index" in last
    assert not (tree / ".venv" / ".clew-demo").exists()


@pytest.mark.parametrize("wanted", ["demo", "dev"])
def test_an_environment_that_holds_what_is_wanted_is_left_alone(tree, wanted):
    specification = importlib.util.spec_from_file_location("bootstrap", tree / "tools" / "bootstrap.py")
    assert specification is not None
    assert specification.loader is not None
    bootstrap = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bootstrap)
    (tree / ".venv").mkdir()
    # What tests need includes what the demo needs
    (tree / ".venv" / ".clew-dev").write_text(bootstrap.fingerprint("dev"))
    done = setup(tree, wanted)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_without_a_python_says_what_to_do(tree, target):
    shutil.copy(ROOT / "Makefile", tree)
    done = subprocess.run(
        ["make", target, "PYTHON="], cwd=tree, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "no Python 3.11 or newer was found: install one" in done.stderr
