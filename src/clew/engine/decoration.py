"""An operation as a decorator, the same for functions, coroutine functions, generators and async generators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context

if TYPE_CHECKING:
    from clew.engine.operation import Operation

P = ParamSpec("P")
R = TypeVar("R")


def decorate(recipe: Operation, function: Callable[P, R]) -> Callable[P, R]:
    """Make every call of ``function`` an operation like ``recipe``.

    Args:
        recipe: an operation that was not begun.
        function: a function, coroutine function, generator function or async generator function.
    """
    if inspect.isasyncgenfunction(function):
        return cast("Callable[P, R]", _async_generator(recipe, cast("Any", function)))
    if inspect.isgeneratorfunction(function):
        return cast("Callable[P, R]", _generator(recipe, cast("Any", function)))
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            with recipe.again():
                return await function(*args, **kwargs)

        return cast("Callable[P, R]", coroutine)

    @functools.wraps(function)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with recipe.again():
            return function(*args, **kwargs)

    return plain


def _generator(recipe: Operation, function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        operation = recipe.again()
        operation.begin()
        inner = function(*args, **kwargs)
        resume: Callable[[], Any] = functools.partial(next, inner)
        error: BaseException | None = None
        try:
            while True:
                # Attached only while the function runs: a caller between two steps has its own context
                token = operation.attach()
                try:
                    item = resume()
                except StopIteration as stop:
                    return stop.value
                finally:
                    if token is not None:
                        otel_context.detach(token)
                try:
                    sent = yield item
                except GeneratorExit:
                    inner.close()
                    raise
                except BaseException as thrown:
                    resume = functools.partial(inner.throw, thrown)
                else:
                    resume = functools.partial(inner.send, sent)
        except BaseException as raised:
            error = raised
            raise
        finally:
            operation.finish(error)

    return wrapped


def _async_generator(recipe: Operation, function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        operation = recipe.again()
        await operation.begin_async()
        inner = function(*args, **kwargs)
        resume: Callable[[], Any] = inner.__anext__
        error: BaseException | None = None
        try:
            while True:
                # Never attached across a yield: the consumer may be another task, and detaching there fails
                token = operation.attach()
                try:
                    item = await resume()
                except StopAsyncIteration:
                    return
                finally:
                    if token is not None:
                        otel_context.detach(token)
                try:
                    sent = yield item
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as thrown:
                    resume = functools.partial(inner.athrow, thrown)
                else:
                    resume = functools.partial(inner.asend, sent)
        except BaseException as raised:
            error = raised
            raise
        finally:
            operation.finish(error)

    return wrapped
