"""Create the project's virtual environment from its lock file. Needs nothing but Python 3.11.

``python3.11 tools/bootstrap.py demo`` installs what the demo needs, ``dev`` what the tests need too.
It can be run again: an environment that already matches its lock file is left alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PROFILES = ("demo", "dev")
OLDEST = (3, 11)


def say(text: str) -> None:
    """Print one line of progress at once, so that it is seen before a long step."""
    print(f"clew setup: {text}", flush=True)


def fingerprint(profile: str) -> str:
    """Return what an environment of ``profile`` depends on: the interpreter, the lock and the project's metadata."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (ROOT / "requirements" / f"{profile}.txt", ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_ready(profile: str) -> bool:
    """Tell whether the environment holds ``profile``, or a profile that includes it."""
    including = PROFILES[PROFILES.index(profile) :]
    return any(
        (stamp := VENV / f".clew-{name}").exists() and stamp.read_text() == fingerprint(name) for name in including
    )


def run(step: str, *command: str) -> None:
    """Run one command of the set-up; on failure end with one sentence that says what to do."""
    say(step)
    started = time.monotonic()
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit(
            f"clew setup: '{' '.join(command)}' failed: check that pip can reach a package index "
            f"and that the disk is not full, then run the same make command again."
        )
    say(f"  done in {time.monotonic() - started:.0f} s")


def main() -> None:
    """Install the profile named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in PROFILES:
        sys.exit(f"clew setup: name one profile of {', '.join(PROFILES)}, for example: python3.11 {sys.argv[0]} demo")
    if sys.version_info < OLDEST:
        sys.exit(
            f"clew setup: Python {sys.version.split()[0]} is too old: install Python 3.11 or newer, "
            f"or name one with 'make PYTHON=/path/to/python3.11'."
        )
    profile = sys.argv[1]
    if is_ready(profile):
        return
    python = VENV / "bin" / "python"
    if not python.exists() or not (VENV / "bin" / "pip").exists():
        run("1/3 creating the virtual environment in .venv", sys.executable, "-m", "venv", "--clear", str(VENV))
    else:
        say("1/3 using the virtual environment in .venv")
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--progress-bar", "off")
    lock = f"requirements/{profile}.txt"
    run(
        f"2/3 installing the locked packages of {lock} (a minute or two the first time)",
        *pip,
        "--require-hashes",
        "-r",
        lock,
    )
    run("3/3 installing clew itself", *pip, "--no-deps", "--no-build-isolation", "--editable", ".")
    (VENV / f".clew-{profile}").write_text(fingerprint(profile))


if __name__ == "__main__":
    main()
