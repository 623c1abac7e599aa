"""Running a topology on the facade, as an app would: asyncio tasks, messages over a wire of bytes, carriers that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, Final

import clew
from clew.queues.message import new_process, new_send
from tests.integration.topologies import Topology, Work

KEY: Final = "topology.key"


class BrokenError(Exception):
    """What goes wrong in these systems."""


class Run:
    """A run of one topology.

    Args:
        of: the topology.
        prefix: what the keys of its spans begin with.
    """

    def __init__(self, of: Topology, prefix: str) -> None:
        self._of = of
        self._prefix = prefix
        self._later: list[Callable[[asyncio.Event], Coroutine[Any, Any, None]]] = []

    async def run(self) -> None:
        """Do everything, and then what was put off."""
        with clew.correlation(self._prefix) if self._of.is_correlated else nullcontext():
            for number, work in enumerate(self._of.works):
                await _outcome(lambda hung, w=work, n=number: self._do(w, f"{self._prefix}.{n}", hung))  # type: ignore[misc]
        while self._later:
            await _outcome(self._later.pop(0))

    async def _do(self, work: Work, key: str, hung: asyncio.Event, carrier: Mapping[str, str] | None = None) -> None:
        if work.kind == "agent":
            await self._within(clew.agent_task(work.name, carrier=carrier), work, key, hung)
        elif carrier is not None:
            with clew.extract(carrier):
                await self._do(work, key, hung)
        elif work.kind == "handoff":
            await self._handoff(work, key, hung)
        elif work.kind == "send":
            await self._send(work, key, hung)
        elif work.kind == "batch":
            await self._batch(work, key, hung)
        else:
            await self._within(_plain(work), work, key, hung)

    async def _within(
        self, operation: AbstractAsyncContextManager[Any], work: Work, key: str, hung: asyncio.Event
    ) -> None:
        async with operation as entered:
            entered.set(KEY, key)
            if work.kind == "llm":
                entered.tokens(input=5, output=2)
            await self._inner(work, key, hung)
            await _end(entered, work, hung)

    async def _inner(self, work: Work, key: str, hung: asyncio.Event, carrier: Mapping[str, str] | None = None) -> None:
        def starting(number: int) -> Callable[[asyncio.Event], Coroutine[Any, Any, None]]:
            return lambda hung: self._do(work.inner[number], f"{key}.{number}", hung, carrier)

        if work.fans_out:
            outcomes = await asyncio.gather(*(_outcome(starting(number)) for number in range(len(work.inner))))
            _go_on(work, [error for error in outcomes if error is not None])
            return
        for number, inner in enumerate(work.inner):
            if inner.is_task:
                error = await _outcome(starting(number))
                _go_on(work, [error] if error is not None else [])
            else:
                try:
                    await starting(number)(hung)
                except BrokenError as error:
                    _go_on(work, [error])

    async def _handoff(self, work: Work, key: str, hung: asyncio.Event) -> None:
        with clew.handoff(to=work.name, mode=work.mode) as passing:
            passing.set(KEY, key)
            carrier = passing.carrier
            if work.way == "stored":
                self._later.append(lambda hung: self._taken_up(work, key, hung, carrier))
            elif work.way == "message":
                raw = _sent(work, key)
                await self._process(Work(**{**vars(work), "end": "well"}), key + "/taken", raw, hung)
            else:
                await self._inner(work, key, hung, carrier if work.way == "carrier" else None)
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
        headers = []
        for number in range(work.messages):
            own = f"{key}/sent{number}"
            with (
                clew.correlation(own) if work.are_strangers else nullcontext(),
                new_send("redis", work.queue, {KEY: own}) as sending,
            ):
                headers.append(sending.headers())
        await self._within(new_process("redis", work.queue, headers), work, key, hung)


def _sent(work: Work, key: str) -> bytes:
    with clew.message_send(work.queue, {"id": 1}) as envelope:
        envelope.set(KEY, f"{key}/sent")
        return envelope.encode()


def _plain(work: Work) -> AbstractAsyncContextManager[Any]:
    if work.kind == "span":
        return clew.span("work")
    if work.kind == "workflow":
        return clew.workflow("digest")
    if work.kind == "llm":
        return clew.llm_call("openai", "gpt-4o-mini")
    return clew.job("nightly") if work.kind == "job" else clew.tool_call("weather")


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


async def _outcome(start: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> BrokenError | None:
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
