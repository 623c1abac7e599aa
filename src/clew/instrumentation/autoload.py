"""Switches a drop-in on when its library is imported: what ``clew run`` and ``clew.instrument()`` without arguments do.

Nothing is imported and nothing is configured until then, so that processes which only pass by (a supervisor, a helper of
multiprocessing) stay as they were.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Final

import wrapt

from clew.diagnostics import report
from clew.instrumentation.registry import DROP_INS, DropIn, load

_loading: Final[set[tuple[int, str]]] = set()


@functools.cache
def install() -> None:
    """Instrument every library that clew knows, for all that the app makes of it from now on. Twice is harmless.

    Example::

        clew.instrument()
    """
    for drop_in in DROP_INS:
        if drop_in.automatic:
            for library in (drop_in.entry,) if drop_in.entry else drop_in.libraries:
                wrapt.when_imported(library)(functools.partial(_switch_on, drop_in))
    wrapt.when_imported("uvicorn.config")(_serve_instrumented)


def _switch_on(drop_in: DropIn, _module: Any) -> None:
    """Instrument a library that has just been imported. The app's import goes on whatever comes of it."""
    loading = (threading.get_ident(), drop_in.module)
    # A drop-in's own import may bring its other library along: whoever began it switches on both
    if not drop_in.is_imported or loading in _loading:
        return
    _loading.add(loading)
    try:
        load(drop_in).instrument_all()
    except Exception as error:
        report(f"instrument {drop_in.libraries[0]}", error)
    finally:
        _loading.discard(loading)


def _serve_instrumented(config_module: Any) -> None:
    try:
        from clew.instrumentation.asgi import instrument_server

        instrument_server(config_module)
    except Exception as error:
        report("instrument uvicorn", error)
