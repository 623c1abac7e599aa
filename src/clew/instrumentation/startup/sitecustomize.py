"""Runs at the start of every Python process under ``clew run``, whose ``PYTHONPATH`` begins with this folder.

It must not disturb the process: what goes wrong here is one line on standard error. Another ``sitecustomize`` further down the path
is run as if this one were not there.

Source: https://docs.python.org/3/library/site.html#module-sitecustomize
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# A process that only watches over the names of shared memory
_HELPERS = ("multiprocessing.resource_tracker",)


def _run_the_other() -> None:
    path = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    # Whoever imports the name later gets the one that belongs to this Python
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _install() -> None:
    if any(helper in argument for argument in sys.orig_argv for helper in _HELPERS):
        return
    try:
        from clew.engine import runtime
        from clew.instrumentation import autoload

        autoload.install()
        if os.environ.get("CLEW_RUN_PID") == str(os.getpid()):
            # A script may use nothing that would configure clew, and still log
            runtime.ready()
    except Exception as error:
        # The app starts all the same
        print(f"clew: {sys.executable} starts without telemetry: {error!r}", file=sys.stderr)  # noqa: T201


# Not where a tool only reads this file
if __name__ == "sitecustomize":
    _run_the_other()
    _install()
