"""The thread across threads and processes: functions that run elsewhere with the context of where they were handed over."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar, cast

from clew.engine import runtime
from clew.engine.context import extract, inject
from clew.engine.state import state
from clew.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Bind ``function`` to the context of now, wherever it is called later: in a thread, an executor, a callback.

    Args:
        function: a function or a coroutine function.

    Example:
        >>> import threading, clew
        >>> with clew.span("import"):
        ...     thread = threading.Thread(target=clew.carry(print), args=("in the same trace",))
        >>> thread.start(); thread.join()
        in the same trace
    """
    carrier: dict[str, str] = inject({})
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def carried_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            with extract(carrier):
                return await function(*args, **kwargs)

        return cast("Callable[P, R]", carried_coroutine)

    context = contextvars.copy_context()

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        # A copy for each call: one context can't be entered twice at a time
        return context.copy().run(function, *args, **kwargs)

    return carried


class _Parcel(Generic[R]):
    """A call on its way to another process: it can be pickled when its function can."""

    def __init__(self, function: Callable[..., R]) -> None:
        self.function = function
        self.carrier: dict[str, str] = inject({})
        self.settings: Settings | None = runtime.ready().settings

    def __getstate__(self) -> dict[str, Any]:
        return {key: vars(self)[key] for key in ("function", "carrier", "settings")}

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if state.settings is None and self.settings is not None:
            # A spawned process inherits nothing: it goes by the settings of the one that handed the work over
            runtime.start(self.settings)
        with extract(self.carrier):
            return self.function(*args, **kwargs)


def parcel(function: Callable[P, R]) -> Callable[P, R]:
    """Bind ``function`` to the thread of now, for another process: what is returned can be pickled when the function can.

    Args:
        function: a function, no coroutine function.
    """
    return _Parcel(function)


def submit(executor: Executor, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Submit a call to an executor of threads or processes; it continues the current trace there.

    Args:
        executor: any :class:`concurrent.futures.Executor`.
        function: what to call; for a process pool it must be picklable.

    Raises:
        RuntimeError: the executor was shut down, as with ``executor.submit``.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> import clew
        >>> with ThreadPoolExecutor() as pool, clew.span("sum"):
        ...     clew.submit(pool, sum, [1, 2]).result()
        3
    """
    if isinstance(executor, ProcessPoolExecutor):
        return executor.submit(parcel(function), *args, **kwargs)
    return executor.submit(carry(function), *args, **kwargs)
