"""Running a topology on the facade, as an app would: asyncio tasks, messages over a wire of bytes, carriers that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from typing import Any, Final

import clew
from clew.queues.message import new_process, new_send
from tests.integration.topologies import Topology, Work

KEY: Final = "topology.key"


_Start = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


class BrokenError(Exception):
    """What goes wrong in these systems."""


class Run:
    """A run of one topology.

    Args:
        of: the topology.
        prefix: what the keys of its spans begin with.
        threads: where some of its work runs.
    """

    def __init__(self, of: Topology, prefix: str, threads: Executor) -> None:
        self._threads = threads
        self._of = of
        self._prefix = prefix
        self._later: list[_Start] = []

    async def run(self) -> None:
        """Do everything, and then what was put off."""
        with clew.correlation(self._prefix) if self._of.is_correlated else nullcontext():
            for number, work in enumerate(self._of.works):
                await _outcome(lambda hung, w=work, n=number: self._do(w, f"{self._prefix}.{n}", hung))  # type: ignore[misc]
        while self._later:
            await _outcome(self._later.pop(0))

    async def _do(self, work: Work, key: str, hung: asyncio.Event, carrier: Mapping[str, str] | None = None) -> None:
        if work.kind == "agent":
            given: Any = {"carrier": carrier, KEY: key, **({"user_id": work.user} if work.user else {})}
            await self._within(clew.agent_task(work.name, **given), work, key, hung)
        elif carrier is not None:
            with clew.extract(carrier):
                await self._do(work, key, hung)
        elif work.kind == "handoff":
            await self._handoff(work, key, hung)
        elif work.kind == "send":
            await self._send(work, key, hung)
        elif work.kind == "batch":
            await self._batch(work, key, hung)
        elif work.kind == "unsent":
            with clew.message_send(work.queue, {"id": 1}) as envelope:
                envelope.set(KEY, key)
                await _end(envelope, work, hung)
        elif work.kind == "rejected":
            with suppress(clew.MessageError):
                clew.message_process(work.queue, b'{"id": ', group=key)
        else:
            await self._within(_plain(work, key), work, key, hung)

    async def _within(self, operation: Any, work: Work, key: str, hung: asyncio.Event) -> None:
        if work.shape == "block":
            async with operation as entered:
                if work.kind == "llm":
                    entered.tokens(input=5, output=2)
                await self._inner(work, key, hung)
                await _end(entered, work, hung)
        elif work.shape == "function":

            @operation  # type: ignore[untyped-decorator] # one of many
            async def function() -> None:
                await self._inner(work, key, hung)
                await _end(None, work, hung)

            await function()
        else:

            @operation  # type: ignore[untyped-decorator] # one of many
            async def stream() -> AsyncIterator[int]:
                await self._inner(work, key, hung)
                yield 1
                await _end(None, work, hung)

            async with aclosing(stream()) as items:
                async for _ in items:
                    if work.shape == "abandoned":
                        break

    async def _inner(self, work: Work, key: str, hung: asyncio.Event, carrier: Mapping[str, str] | None = None) -> None:
        def starting(number: int) -> _Start:
            return lambda hung: self._do(work.inner[number], f"{key}.{number}", hung, carrier)

        if work.fans_out:
            outcomes = await asyncio.gather(*(_outcome(starting(number)) for number in range(len(work.inner))))
            _go_on(work, [error for error in outcomes if error is not None])
            return
        for number, inner in enumerate(work.inner):
            if inner.own:
                error = await self._by_itself(inner, starting(number))
                _go_on(work, [error] if error is not None else [])
            else:
                try:
                    await starting(number)(hung)
                except BrokenError as error:
                    _go_on(work, [error])

    async def _by_itself(self, work: Work, start: _Start) -> BrokenError | None:
        if work.own == "task":
            return await _outcome(start)
        return await asyncio.wrap_future(clew.submit(self._threads, lambda: asyncio.run(_outcome(start))))

    async def _handoff(self, work: Work, key: str, hung: asyncio.Event) -> None:
        given: Any = {KEY: key}
        handing = clew.handoff(to=work.name, mode=work.mode, **given)
        if work.way == "block":
            await self._within(handing, work, key, hung)
            return
        with handing as passing:
            carrier = passing.carrier
            if work.way == "stored":
                self._later.append(lambda hung: self._taken_up(work, key, hung, carrier))
            elif work.way == "message":
                raw = _sent(work, key)
                await self._process(replace(work, end="well"), key + "/taken", raw, hung)
            else:
                await self._inner(work, key, hung, carrier)
            await _end(passing, work, hung)

    async def _taken_up(self, work: Work, key: str, hung: asyncio.Event, carrier: Mapping[str, str]) -> None:
        await self._inner(work, key, hung, carrier)

    async def _send(self, work: Work, key: str, hung: asyncio.Event) -> None:
        raw = b'{"id": 1}' if work.is_plain else _sent(work, key)
        if work.way == "stored":
            self._later.append(lambda hung: self._process(work, key, raw, hung))
        else:
            await self._process(work, key, raw, hung)

    async def _process(self, work: Work, key: str, raw: bytes, hung: asyncio.Event) -> None:
        for number, fared in enumerate(work.tries):
            with suppress(BrokenError, asyncio.CancelledError), clew.message_process(work.queue, raw) as message:
                message.set(KEY, f"{key}#{number}")
                if fared in ("returned", "returned_failed"):
                    raw = message.retry()
                if fared in ("returned_failed", "redelivered"):
                    raise BrokenError
                if fared == "crashed":
                    raise asyncio.CancelledError
        async with clew.message_process(work.queue, raw) as message:
            message.set(KEY, key)
            await self._inner(work, key, hung)
            await _end(message, work, hung)

    async def _batch(self, work: Work, key: str, hung: asyncio.Event) -> None:
        headers: list[dict[str, str]] = []
        together = work.origin == "together"
        for number in range(1 if together else work.messages):
            own = f"{key}/sent{number}"
            given: dict[str, Any] = {KEY: own} | ({"messaging.batch.message_count": work.messages} if together else {})
            with (
                clew.correlation(own) if work.origin == "strangers" else nullcontext(),
                new_send("redis", work.queue, given) as sending,
            ):
                headers += [sending.headers()] * (work.messages if together else 1)
        if work.origin == "plain":
            headers.append({})
        await self._within(new_process("redis", work.queue, headers, {KEY: key}), work, key, hung)


def _sent(work: Work, key: str) -> bytes:
    with clew.message_send(work.queue, {"id": 1}) as envelope:
        envelope.set(KEY, f"{key}/sent")
        return envelope.encode()


def _plain(work: Work, key: str) -> Any:
    given: Any = {KEY: key}
    if work.kind == "span":
        return clew.span("work", **given)
    if work.kind == "workflow":
        return clew.workflow("digest", **given)
    if work.kind == "llm":
        return clew.llm_call("openai", "gpt-4o-mini", **given)
    return clew.job("nightly", **given) if work.kind == "job" else clew.tool_call("weather", **given)


async def _end(operation: Any, work: Work, hung: asyncio.Event) -> None:
    if work.end == "raises":
        raise BrokenError
    if work.end == "told":
        operation.fail("told")
    if work.end == "dead":
        operation.dead_letter("told")
    if work.end == "hangs":
        hung.set()
        await asyncio.Event().wait()


def _go_on(work: Work, errors: list[BrokenError]) -> None:
    if errors and not work.catches:
        raise errors[0]


async def _outcome(start: _Start) -> BrokenError | None:
    """Run something as a task of its own, which is cancelled when it hangs; return what went wrong in it."""
    hung = asyncio.Event()
    task = asyncio.create_task(start(hung))
    hanging = asyncio.create_task(hung.wait())
    await asyncio.wait((task, hanging), return_when=asyncio.FIRST_COMPLETED)
    hanging.cancel()
    if not task.done():
        task.cancel()
    try:
        await task
    except BrokenError as error:
        return error
    except asyncio.CancelledError:
        pass
    return None
