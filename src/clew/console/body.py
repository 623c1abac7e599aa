"""Reading a request body within bounds: its bytes as sent and unpacked, its seconds, and all requests together."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from starlette.requests import ClientDisconnect, Request

from clew.console.errors import BodyRefusedError

_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS
_INFLATE_STEP_BYTES = 64 * 1024
_MOST_GZIP_MEMBERS = 64  # each costs a new decompressor, however small it is


@dataclass(frozen=True, kw_only=True, slots=True)
class BodyLimits:
    """How much the receiver takes in.

    Args:
        max_body_bytes: one request's body, as sent.
        max_decompressed_bytes: one request's body, once decompressed.
        max_messages: nested protobuf messages in one request; tiny ones cost up to 90 times their size in memory.
        max_in_flight_bytes: bodies of all requests being handled at once.
        body_timeout_s: seconds a sender may take to deliver a body.

    Example:
        >>> BodyLimits(max_body_bytes=1_000_000).max_decompressed_bytes
        16777216
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_decompressed_bytes: int = 16 * 1024 * 1024
    max_messages: int = 1_000_000
    max_in_flight_bytes: int = 64 * 1024 * 1024
    body_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value!r} is not usable: give a number above 0")


class InFlight:
    """Counts the bytes of the bodies being handled, and refuses more than the limit with 503.

    Args:
        max_bytes: bytes all requests may hold together.

    Example:
        >>> in_flight = InFlight(max_bytes=10)
        >>> with in_flight.share() as share:
        ...     share.grow(8)
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0

    @contextmanager
    def share(self) -> Iterator[InFlightShare]:
        """Give one request its share, and take it back at the end."""
        share = InFlightShare(self)
        try:
            yield share
        finally:
            self._held_bytes -= share.held_bytes

    def take(self, count_bytes: int) -> None:
        """Hold `count_bytes` more.

        Raises:
            BodyRefusedError: 503, when all requests together would hold too much.
        """
        if self._held_bytes + count_bytes > self._max_bytes:
            raise BodyRefusedError(
                503, f"the console is already handling {self._held_bytes} bytes of requests: send this one again later"
            )
        self._held_bytes += count_bytes


class InFlightShare:
    """What one request holds of `InFlight`."""

    def __init__(self, owner: InFlight) -> None:
        self._owner = owner
        self.held_bytes = 0

    def grow(self, count_bytes: int) -> None:
        """Hold `count_bytes` more for this request.

        Raises:
            BodyRefusedError: 503, when all requests together would hold too much.
        """
        self._owner.take(count_bytes)
        self.held_bytes += count_bytes


async def read_body(request: Request, limits: BodyLimits, share: InFlightShare) -> bytes:
    """Return the request's body as sent.

    Args:
        request: the request; its body must not have been read.
        limits: the bounds to keep.
        share: counts the bytes while they are held.

    Raises:
        BodyRefusedError: 413 too large, 408 too slow, 503 when too much is being handled, 400 cut off.
    """
    too_large = BodyRefusedError(
        413, f"the request body is larger than {limits.max_body_bytes} bytes: send smaller batches"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise too_large
    chunks: list[bytes] = []
    received_bytes = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                received_bytes += len(chunk)
                if received_bytes > limits.max_body_bytes:
                    raise too_large
                share.grow(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise BodyRefusedError(408, f"the body took longer than {limits.body_timeout_s:g} s to arrive") from None
    except ClientDisconnect:
        raise BodyRefusedError(400, "the connection closed before the whole request body had arrived") from None
    return b"".join(chunks)


async def discard_body(request: Request, limits: BodyLimits) -> None:
    """Read what is left of a refused request, within bounds.

    A connection closed on a sender that is still writing shows it a broken pipe instead of our answer, and it would
    send the same again.

    Args:
        request: the request.
        limits: the bounds to keep.
    """
    discarded_bytes = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                discarded_bytes += len(chunk)
                if discarded_bytes > limits.max_in_flight_bytes:
                    return
    except (TimeoutError, ClientDisconnect, RuntimeError):  # Starlette's RuntimeError: it was read to its end before
        return


def decompress(body: bytes, encoding: str, limits: BodyLimits) -> bytes:
    """Return the body with its Content-Encoding undone, never holding more than the limit.

    Args:
        body: the bytes as sent.
        encoding: the Content-Encoding header; ``gzip``, ``identity`` or empty.
        limits: the bounds to keep.

    Raises:
        BodyRefusedError: 415 another encoding, 400 not gzip or cut off, 413 too large once decompressed.

    Example:
        >>> import gzip
        >>> decompress(gzip.compress(b"x" * 1000), "gzip", BodyLimits())[:3]
        b'xxx'
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        if len(body) > limits.max_decompressed_bytes:
            raise _too_large_decompressed(limits)
        return body
    if name != "gzip":
        raise BodyRefusedError(415, f"Content-Encoding {encoding[:40]!r} is not supported: send gzip or identity")
    return _gunzip(body, limits)


def _gunzip(body: bytes, limits: BodyLimits) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    members = 1
    inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
    try:
        for start in range(0, len(body), _INFLATE_STEP_BYTES):
            rest = body[start : start + _INFLATE_STEP_BYTES]
            while rest:
                if inflater.eof:  # a gzip file may be several members, one after another
                    inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
                    members += 1
                piece = inflater.decompress(rest, _INFLATE_STEP_BYTES)
                while piece:
                    size_bytes += len(piece)
                    if size_bytes > limits.max_decompressed_bytes:
                        raise _too_large_decompressed(limits)
                    pieces.append(piece)
                    piece = inflater.decompress(inflater.unconsumed_tail, _INFLATE_STEP_BYTES)
                rest = inflater.unused_data
                if rest and members == _MOST_GZIP_MEMBERS:
                    raise BodyRefusedError(400, f"the gzip body has more than {_MOST_GZIP_MEMBERS} members: send one")
    except zlib.error as error:
        raise BodyRefusedError(400, f"the body is not gzip although Content-Encoding says so: {error}") from None
    if body and not inflater.eof:
        raise BodyRefusedError(400, "the gzip body is cut off")
    return b"".join(pieces)


def _too_large_decompressed(limits: BodyLimits) -> BodyRefusedError:
    return BodyRefusedError(
        413, f"the body is larger than {limits.max_decompressed_bytes} bytes once decompressed: send smaller batches"
    )
