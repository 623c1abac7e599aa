"""An environment for each peer, outside the repository: made once for each content of its pinned requirement file."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
REQUIREMENTS: Final = ROOT / "benchmarks" / "requirements"
INSTALL_TIMEOUT_S: Final = 900.0

_VERSIONS: Final = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)


class NotInstalledError(Exception):
    """A peer can't be had here; the text says why in one line."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The interpreter that a peer runs with, and what is installed there.

    Attributes:
        name: the requirement file's, without its suffix.
        python: the interpreter.
    """

    name: str
    python: Path

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """Return the version of every package in it."""
        done = subprocess.run([str(self.python), "-c", _VERSIONS], capture_output=True, text=True, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return {name.lower().replace("_", "-"): version for name, version in found.items()}

    @property
    def packages(self) -> Path:
        """Return the folder that pip installs to."""
        return next((self.python.parent.parent / "lib").glob("python3.*")) / "site-packages"


def cache_folder() -> Path:
    """Return the folder of all environments: ``~/.cache/clew/benchmarks``, or what ``CLEW_BENCHMARKS_DIR`` names."""
    named = os.environ.get("CLEW_BENCHMARKS_DIR", "")
    return Path(named).expanduser().resolve() if named else Path.home() / ".cache" / "clew" / "benchmarks"


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"clew bench: {text}", flush=True)


class Environments:
    """Every peer's environment, made when it is first asked for.

    Args:
        here: use the interpreter at hand for all, and install nothing.
    """

    def __init__(self, *, here: bool = False) -> None:
        self._here = here
        self._made: dict[str, Environment | NotInstalledError] = {}

    def get(self, name: str) -> Environment:
        """Return the environment of a requirement file, and make it when it is not there.

        Raises:
            NotInstalledError: the packages can't be installed here.
        """
        if name not in self._made:
            try:
                self._made[name] = Environment(name=name, python=self._python(name))
            except NotInstalledError as error:
                self._made[name] = error
        made = self._made[name]
        if isinstance(made, NotInstalledError):
            raise made
        return made

    def _python(self, name: str) -> Path:
        return Path(sys.executable) if self._here else install(name)

    def known(self) -> list[Environment]:
        """Return those that were asked for and could be made."""
        return [made for made in self._made.values() if isinstance(made, Environment)]


def install(name: str) -> Path:
    """Make the environment of a requirement file, unless it is there, and return its interpreter.

    Raises:
        NotInstalledError: pip could not install it.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    digest = hashlib.sha256(sys.version.encode() + requirements.read_bytes())
    is_ours = name.partition("-")[0] == "clew"
    if is_ours:
        # Its environment points to this very source
        digest.update(str(ROOT).encode() + (ROOT / "pyproject.toml").read_bytes())
    folder = cache_folder() / f"{name}-{digest.hexdigest()[:12]}"
    python = folder / "bin" / "python"
    stamp = folder / ".complete"
    if stamp.exists():
        return python
    say(f"installing {name} into {folder} (once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _step(name, sys.executable, "-m", "venv", "--clear", str(folder))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    _step(name, *pip, "-r", str(requirements))
    if is_ours:
        _step(name, *pip, "--no-build-isolation", "--editable", str(ROOT))
    stamp.touch()
    return python


def _step(name: str, *command: str) -> None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(f"{name} could not be installed: {type(error).__name__}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it printed nothing"]
        # The page that this ends up in names no package index
        reason = re.sub(r"https?://\S+", "the package index", lines[-1].strip())[:200]
        raise NotInstalledError(f"{name} could not be installed: {reason}")
