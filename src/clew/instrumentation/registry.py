"""``clew.instrument``: finds the drop-in for an object by the library that its type comes from."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, TypeVar

from clew.diagnostics import ClewError, report
from clew.engine import runtime

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DropIn:
    """How a library is instrumented.

    Attributes:
        module: the module of this package that does it; it has ``instrument(target)``, and where it is ``automatic`` also
            ``instrument_all()``, which covers whatever the app makes of the library from then on.
        libraries: top-level packages whose types it takes.
        marker: a module that only the library has, where an app may have a package of its name as well.
        automatic: ``clew run`` and ``clew.instrument()`` without arguments switch it on when the library is imported.
        records: what it traces has durable records, too.
    """

    module: str
    libraries: tuple[str, ...]
    marker: str = ""
    automatic: bool = True
    records: bool = False

    @property
    def is_imported(self) -> bool:
        """Whether what was imported by its name is the library, and no package of the app."""
        return not self.marker or self.marker in sys.modules


DROP_INS: Final = (
    DropIn(module="asgi", libraries=("fastapi", "starlette")),
    DropIn(module="httpx", libraries=("httpx", "httpx2")),
    DropIn(module="redis", libraries=("redis",)),
    DropIn(module="sqlalchemy", libraries=("sqlalchemy",)),
    DropIn(module="apscheduler", libraries=("apscheduler",), records=True),
    DropIn(module="celery", libraries=("celery",), records=True),
    DropIn(module="faststream", libraries=("faststream",), records=True),
    DropIn(module="taskiq", libraries=("taskiq",), records=True),
    DropIn(module="openai", libraries=("openai",), records=True),
    DropIn(module="openai_agents", libraries=("agents",), marker="agents.tracing.processor_interface", records=True),
    DropIn(module="pydantic_ai", libraries=("pydantic_ai",), records=True),
)


class InstrumentError(ClewError):
    """An object that clew does not know how to instrument."""


def instrument(*targets: Any) -> Any:
    """Instrument apps, brokers, schedulers, engines and clients, found by their type. Twice is harmless.

    Without arguments: every library that clew knows, for all that the app makes of it from now on, as ``clew run`` does.

    Args:
        targets: FastAPI, Starlette or any ASGI apps, FastStream and taskiq brokers, APScheduler schedulers, Celery apps, SQLAlchemy engines,
            redis, httpx and OpenAI clients, agents of OpenAI's Agents SDK and of Pydantic AI.

    Returns:
        The target, or a tuple of the targets. A plain ASGI function can't be changed in place: what is returned must be served.

    Example:
        >>> from fastapi import FastAPI
        >>> import clew
        >>> app = clew.instrument(FastAPI())
    """
    runtime.ready()
    if not targets:
        from clew.instrumentation import autoload

        autoload.install()
        return None
    done = tuple(_instrument_one(target) for target in targets)
    return done[0] if len(done) == 1 else done


def _instrument_one(target: T) -> T:
    try:
        drop_in = _find(target)
        if drop_in is None:
            report(
                "instrument",
                f"a {type(target).__module__}.{type(target).__qualname__} is nothing clew knows: "
                f"it takes ASGI apps and objects of {', '.join(name for known in DROP_INS for name in known.libraries)}",
            )
            return target
        instrumented: T = load(drop_in).instrument(target)
        if drop_in.records:
            _prepare_records()
    except ClewError:
        raise
    except Exception as error:
        report(f"instrument {type(target).__qualname__}", error)
        return target
    else:
        return instrumented


def _prepare_records() -> None:
    """Import what writes records now, on the app's way up, instead of within its first message, run or call."""
    settings = runtime.ready().settings
    if settings is not None and settings.history:
        importlib.import_module("clew.history.recorder")


def load(drop_in: DropIn) -> ModuleType:
    """Import a drop-in; its library is imported with it.

    Raises:
        InstrumentError: something it needs is missing; the message has the ``pip install`` line.
    """
    try:
        return importlib.import_module(f"clew.instrumentation.{drop_in.module}")
    except ModuleNotFoundError as error:
        extra = "fastapi" if drop_in.module == "asgi" else drop_in.module.replace("_", "-")
        raise InstrumentError(
            f"{error.name} is missing, which clew needs for {drop_in.libraries[0]}: pip install 'clew[{extra}]'"
        ) from error


def _find(target: Any) -> DropIn | None:
    for kind in type(target).__mro__:
        library = kind.__module__.partition(".")[0]
        for drop_in in DROP_INS:
            if library in drop_in.libraries and drop_in.is_imported:
                return drop_in
    return DROP_INS[0] if _is_asgi(target) else None


def _is_asgi(target: Any) -> bool:
    call = target if inspect.isfunction(target) else getattr(target, "__call__", None)  # noqa: B004 - its signature is needed
    if call is None or not inspect.iscoroutinefunction(call):
        return False
    return len(inspect.signature(call).parameters) == 3
