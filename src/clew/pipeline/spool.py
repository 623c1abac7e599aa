"""The disk spool: batches that could not be sent wait in bounded segment files, for this process, a sibling or the next start.

A segment holds records of one signal: a header with a checksum of its own, and an encoded OTLP request (or rows of the durable
records, whose only "signal" they are) with its checksum. At the start of the file stands how far it has been replayed. Its writer, and later the one process that replays it, hold a lock on the
file, so no record is replayed by two at a time. A record that a crash cut short, or that is damaged, is skipped and counted.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from clew import clock
from clew.settings import SIGNALS

SEGMENT_BYTES: Final = 4 * 1024 * 1024
_SUFFIX: Final = ".spool"
_UNBORN_SUFFIX: Final = ".new"
_UNBORN_AGE_S: Final = 60.0
_MAGIC: Final = b"CLEWSPL1"
_POSITION: Final = struct.Struct(">Q")
_START: Final = len(_MAGIC) + _POSITION.size
_RECORD: Final = struct.Struct(">BBIII")  # signal, compressed, items, length, checksum of the body
_CHECKSUM: Final = struct.Struct(">I")  # of the five
_HEADER_BYTES: Final = _RECORD.size + _CHECKSUM.size
_USAGE_LIFETIME_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class SpooledBatch:
    """An encoded batch that waits.

    Attributes:
        signal: what is in it, and so where it goes.
        items: spans, log records, metric points or rows in it.
        body: the OTLP request, or the rows.
        compressed: the body is in gzip.
    """

    signal: str
    items: int
    body: bytes
    compressed: bool


class Reader(Protocol):
    """Takes what waited."""

    def deliver(self, batch: SpooledBatch, *, own: bool) -> bool:
        """Return whether the batch is done with; ``own`` tells whether this process wrote it."""
        ...

    def lost(self, reason: str, items: int, *, own: bool) -> None:
        """Hear of items that could not be read (``spool_corrupt``) or were ``too_old``; 0 items are an unknown number."""
        ...

    def taken_over(self, items: int) -> None:
        """Hear of items that this process wrote and another has taken to the endpoint."""
        ...


class SpoolFullError(OSError):
    """The spool has reached its size."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    items: int
    body_at: int
    end: int
    compressed: bool
    checksum: int


@dataclass(kw_only=True)
class _Segment:
    """A segment that this process wrote: where each of its records ends, and what is in it."""

    path: Path
    descriptor: int
    size: int = _START
    records: deque[tuple[int, int]] = field(default_factory=deque)


class Spool:
    """Segment files in one folder, which may be shared by many processes.

    Args:
        folder: made when first needed, readable by its owner only.
        max_bytes: the size of all segments of the folder together.
        max_age_s: segments last written longer ago than this are deleted instead of replayed.
        signals: what waits there, each apart.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_age_s: float, signals: Sequence[str] = SIGNALS) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self.complained = False
        """Whether it has been said that the spool takes nothing: once a process is enough."""
        self._signals = tuple(signals)
        self._written: dict[str, _Segment] = {}
        self._own: dict[str, dict[str, _Segment]] = {signal: {} for signal in self._signals}
        self._reading: set[int] = set()
        self._sequence = 0
        self._usage = 0
        self._usage_read_at = float("-inf")
        self._lock = threading.Lock()

    def append(self, batch: SpooledBatch) -> None:
        """Write one batch, whole or not at all.

        Raises:
            SpoolFullError: the folder has no room left by ``max_bytes``.
            OSError: the disk is full, the folder can't be written.
        """
        record = _RECORD.pack(
            self._signals.index(batch.signal), batch.compressed, batch.items, len(batch.body), zlib.crc32(batch.body)
        )
        data = record + _CHECKSUM.pack(zlib.crc32(record)) + batch.body
        with self._lock:
            if self._used() + len(data) > self.max_bytes:
                raise SpoolFullError(f"the spool in {self.folder} has reached its {self.max_bytes} bytes")
            segment = self._written.get(batch.signal) or self._begin(batch.signal)
            try:
                # Unbuffered: a child that is forked now must not write a copy of what is half written
                _write(segment.descriptor, data)
            except OSError:
                # What a full disk cut short must not hide the records that come after it
                with suppress(OSError):
                    os.ftruncate(segment.descriptor, segment.size)
                self._finish(batch.signal)
                raise
            segment.size += len(data)
            segment.records.append((segment.size, batch.items))
            self._usage += len(data)
            if segment.size >= SEGMENT_BYTES:
                self._finish(batch.signal)

    def replay(self, signal: str, reader: Reader, *, max_batches: int, until: float = float("inf")) -> None:
        """Hand waiting batches of a signal to a reader, oldest first, and forget those that are done with.

        Args:
            signal: which.
            reader: takes them; the first that it does not take ends the replay.
            max_batches: how many to hand over at most.
            until: when to stop, in seconds of the monotonic clock.
        """
        with self._lock:
            self._finish(signal)
        taken = 0
        for path in list(self._segments(signal)):
            done = self._replay_path(signal, path, reader, max_batches - taken, until)
            if done is None:
                break
            taken += done
        self._forget_taken_over(signal, reader)

    def is_empty(self, signal: str | None = None) -> bool:
        """Tell whether nothing waits in the folder, or nothing of a signal."""
        return next(iter(self._segments(signal)), None) is None

    def waiting_bytes(self) -> int:
        """Return the size of all segments of the folder."""
        return sum(_stat(path)[0] for path in self._segments())

    def oldest_age_s(self) -> float:
        """Return how long ago the oldest segment was last written to."""
        written = [at for path in self._segments() if (at := _stat(path)[1])]
        return max(0.0, clock.now_ns() / 1e9 - min(written)) if written else 0.0

    def close(self) -> None:
        """Release the segments that are being written, so that another process may replay them."""
        with self._lock:
            for signal in self._signals:
                self._finish(signal)

    def reset_after_fork(self) -> None:
        """Leave the parent's segments to the parent."""
        self._lock = threading.Lock()
        # A lock belongs to the open file that parent and child share: closing the child's copy does not release it
        for descriptor in (*self._reading, *(segment.descriptor for segment in self._written.values())):
            with suppress(OSError):
                os.close(descriptor)
        self._reading = set()
        self._written = {}
        self._own = {signal: {} for signal in self._signals}
        self._usage_read_at = float("-inf")

    def _replay_path(self, signal: str, path: Path, reader: Reader, max_batches: int, until: float) -> int | None:
        """Return how many batches were done with, or ``None`` where the reader took no more."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return 0
        self._reading.add(descriptor)
        try:
            # Somebody writes or replays it, or has replayed it since it was listed
            if not _try_lock(descriptor) or os.fstat(descriptor).st_nlink == 0:
                return 0
            return self._replay_segment(signal, path, descriptor, reader, max_batches, until)
        except OSError:
            return 0
        finally:
            self._reading.discard(descriptor)
            _unlock(descriptor)

    def _replay_segment(
        self, signal: str, path: Path, descriptor: int, reader: Reader, max_batches: int, until: float
    ) -> int | None:
        own = self._own[signal].get(path.name)
        position = _position(descriptor)
        if own is not None:
            reader.taken_over(_pass(own, position))
        if clock.now_ns() / 1e9 - os.fstat(descriptor).st_mtime > self.max_age_s:
            records = (record.items for record in _records(descriptor, position))
            items = sum(records) if own is None else sum(items for _, items in own.records)
            reader.lost("too_old", items, own=own is not None)
            self._delete(signal, path)
            return 0
        taken = 0
        for record in _records(descriptor, position):
            body = os.pread(descriptor, record.end - record.body_at, record.body_at)
            if len(body) != record.end - record.body_at or zlib.crc32(body) != record.checksum:
                reader.lost("spool_corrupt", record.items, own=own is not None)
            else:
                if taken >= max_batches or clock.monotonic_s() >= until:
                    return None
                batch = SpooledBatch(signal=signal, items=record.items, body=body, compressed=record.compressed)
                if not reader.deliver(batch, own=own is not None):
                    return None
                taken += 1
            position = record.end
            # In place of the old one: a full disk has room for it
            os.pwrite(descriptor, _POSITION.pack(position), len(_MAGIC))
            if own is not None:
                _pass(own, position)
        if own is not None and own.records:
            reader.lost("spool_corrupt", sum(items for _, items in own.records), own=True)
        elif own is None and position < os.fstat(descriptor).st_size:
            reader.lost("spool_corrupt", 0, own=False)
        self._delete(signal, path)
        return taken

    def _forget_taken_over(self, signal: str, reader: Reader) -> None:
        """Settle segments of this process that a sibling has replayed to their end."""
        with self._lock:
            written = self._written.get(signal)
            gone = [s for s in self._own[signal].values() if s is not written and not s.path.exists()]
            for segment in gone:
                del self._own[signal][segment.path.name]
        for segment in gone:
            reader.taken_over(sum(items for _, items in segment.records))

    def _segments(self, signal: str | None = None) -> Iterator[Path]:
        suffix = f".{signal}{_SUFFIX}" if signal else _SUFFIX
        try:
            paths = sorted(self.folder.iterdir())
        except OSError:
            return
        for path in paths:
            if path.name.endswith(suffix):
                yield path
            elif path.suffix == _UNBORN_SUFFIX and 0 < _stat(path)[1] < clock.now_ns() / 1e9 - _UNBORN_AGE_S:
                # Its process died between making it and naming it
                with suppress(OSError):
                    path.unlink()

    def _used(self) -> int:
        now = clock.monotonic_s()
        if now - self._usage_read_at > _USAGE_LIFETIME_S:
            self._usage = self.waiting_bytes()
            self._usage_read_at = now
        return self._usage

    def _begin(self, signal: str) -> _Segment:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sequence += 1
        path = self.folder / f"{clock.now_ns():020d}-{os.getpid()}-{self._sequence}.{signal}{_SUFFIX}"
        # Locked before it can be seen, or a sibling could replay and delete it between the two
        unborn = path.with_suffix(_UNBORN_SUFFIX)
        descriptor = os.open(unborn, os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(descriptor, _MAGIC + _POSITION.pack(_START))
            unborn.rename(path)
        except OSError:
            os.close(descriptor)
            unborn.unlink(missing_ok=True)
            raise
        self._usage += _START
        segment = self._written[signal] = self._own[signal][path.name] = _Segment(path=path, descriptor=descriptor)
        return segment

    def _finish(self, signal: str) -> None:
        segment = self._written.pop(signal, None)
        if segment is not None:
            _unlock(segment.descriptor)

    def _delete(self, signal: str, path: Path) -> None:
        self._usage_read_at = float("-inf")
        with self._lock:
            self._own[signal].pop(path.name, None)
        with suppress(OSError):
            path.unlink()


def _pass(own: _Segment, position: int) -> int:
    """Take the records before a position off what a process remembers of its segment, and return their items."""
    items = 0
    while own.records and own.records[0][0] <= position:
        items += own.records.popleft()[1]
    return items


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    """Close a file and release its lock, even where a child holds a copy of the open file."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    with suppress(OSError):
        os.close(descriptor)


def _stat(path: Path) -> tuple[int, float]:
    """Return the size of a file and when it was last written; zeros where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime


def _position(descriptor: int) -> int:
    """Return where the first record starts that has not been replayed; what does not begin as a segment does has none."""
    start = os.pread(descriptor, _START, 0)
    if len(start) < _START or not start.startswith(_MAGIC):
        return 0
    (position,) = _POSITION.unpack_from(start, len(_MAGIC))
    # Once more is better than never
    return position if _START <= position <= os.fstat(descriptor).st_size else _START


def _records(descriptor: int, position: int) -> Iterator[_Record]:
    """Yield the records from a position on, to the first whose header is damaged or cut short."""
    while position >= _START:
        header = os.pread(descriptor, _HEADER_BYTES, position)
        if (
            len(header) < _HEADER_BYTES
            or zlib.crc32(header[: _RECORD.size]) != _CHECKSUM.unpack_from(header, _RECORD.size)[0]
        ):
            return
        _index, compressed, items, length, checksum = _RECORD.unpack_from(header)
        body_at = position + _HEADER_BYTES
        position = body_at + length
        yield _Record(items=items, body_at=body_at, end=position, compressed=bool(compressed), checksum=checksum)
