"""The disk spool: batches that could not be sent wait in bounded segment files, for this process, a sibling or the next start.

A segment is a sequence of records, each a fixed header and an encoded OTLP request. Its writer, and later the one process that
replays it, hold a lock on the file, so no record is replayed by two at a time. A record that a crash cut short, or that does not
match its checksum, ends its segment and is counted.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from clew import clock
from clew.settings import SIGNALS, Signal

SEGMENT_BYTES: Final = 4 * 1024 * 1024
MAX_RECORD_BYTES: Final = 256 * 1024 * 1024
_MAGIC: Final = b"CLEWSPL1"
_HEADER: Final = struct.Struct(">BBIII")  # signal, compressed, items, length, checksum
_USAGE_LIFETIME_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class SpooledBatch:
    """An encoded batch that waits.

    Attributes:
        signal: which endpoint it goes to.
        items: spans, log records or metric points in it.
        body: the OTLP request.
        compressed: the body is in gzip.
    """

    signal: Signal
    items: int
    body: bytes
    compressed: bool


class Deliver(Protocol):
    """Takes a batch that waited."""

    def __call__(self, batch: SpooledBatch, *, own: bool) -> bool:
        """Return whether the batch was taken; ``own`` tells whether this process wrote it."""
        ...


class SpoolFullError(OSError):
    """The spool has reached its size."""


class Spool:
    """Segment files in one folder, which may be shared by many processes.

    Args:
        folder: made when first needed, readable by its owner only.
        max_bytes: the size of all segments of the folder together; 0 switches the spool off.
        max_age_s: segments last written longer ago than this are deleted instead of replayed.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_age_s: float) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self._segment: IO[bytes] | None = None
        self._path: Path | None = None
        self._own: set[str] = set()
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
        record = _HEADER.pack(
            SIGNALS.index(batch.signal), batch.compressed, batch.items, len(batch.body), zlib.crc32(batch.body)
        )
        size = len(record) + len(batch.body)
        with self._lock:
            if self._used() + size > self.max_bytes:
                raise SpoolFullError(f"the spool in {self.folder} has reached its {self.max_bytes} bytes")
            segment = self._open_segment()
            start = segment.tell()
            try:
                segment.write(record + batch.body)
                segment.flush()
            except OSError:
                # What a full disk cut short must not hide the records that come after it
                with suppress(OSError):
                    os.ftruncate(segment.fileno(), start)
                self._close_segment()
                raise
            self._usage += size
            if segment.tell() >= SEGMENT_BYTES:
                self._close_segment()

    def replay(self, deliver: Deliver, *, on_lost: Callable[[str, int], None], max_batches: int) -> int:
        """Hand waiting batches to ``deliver``, oldest first, and forget those it took.

        Args:
            deliver: takes a batch and whether this process wrote it; false stops the replay and keeps the batch.
            on_lost: is told the reason and the number of records that could not be read, or were too old.
            max_batches: how many to hand over at most.

        Returns:
            How many batches were taken.
        """
        with self._lock:
            self._close_segment()
        taken = 0
        for path in self._segments():
            if taken >= max_batches:
                break
            with suppress(OSError), path.open("r+b") as segment:
                if not _try_lock(segment) or not path.exists():
                    continue
                if clock.now_ns() / 1e9 - path.stat().st_mtime > self.max_age_s:
                    on_lost("too_old", _record_count(segment))
                    self._delete(path)
                    continue
                taken += self._replay_segment(path, segment, deliver, on_lost, max_batches - taken)
        return taken

    def is_empty(self) -> bool:
        """Tell whether nothing waits in the folder."""
        return next(iter(self._segments()), None) is None

    def waiting_bytes(self) -> int:
        """Return the size of all segments of the folder."""
        return sum(_size(path) for path in self._segments())

    def close(self) -> None:
        """Release the segment that is being written, so that another process may replay it."""
        with self._lock:
            self._close_segment()

    def reset_after_fork(self) -> None:
        """Leave the parent's segment to the parent."""
        self._lock = threading.Lock()
        # The lock belongs to the open file that parent and child share: closing the child's copy does not release it
        self._close_segment()
        self._own = set()
        self._usage_read_at = float("-inf")

    def _replay_segment(
        self,
        path: Path,
        segment: IO[bytes],
        deliver: Deliver,
        on_lost: Callable[[str, int], None],
        max_batches: int,
    ) -> int:
        progress = path.with_suffix(".done")
        with suppress(OSError, ValueError):
            segment.seek(int(progress.read_text()))
        taken = 0
        for batch in _read(segment, on_lost):
            if taken >= max_batches or not deliver(batch, own=path.name in self._own):
                return taken
            taken += 1
            progress.write_text(str(segment.tell()))
        self._delete(path)
        return taken

    def _segments(self) -> Iterator[Path]:
        try:
            paths = sorted(path for path in self.folder.iterdir() if path.suffix == ".spool")
        except OSError:
            return
        yield from paths

    def _used(self) -> int:
        now = clock.monotonic_s()
        if now - self._usage_read_at > _USAGE_LIFETIME_S:
            self._usage = self.waiting_bytes()
            self._usage_read_at = now
        return self._usage

    def _open_segment(self) -> IO[bytes]:
        if self._segment is None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sequence += 1
            path = self.folder / f"{clock.now_ns():020d}-{os.getpid()}-{self._sequence}.spool"
            # Locked before it can be seen, or a sibling could replay and delete it between the two
            hidden = path.with_suffix(".new")
            descriptor = os.open(hidden, os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_APPEND, 0o600)
            segment = os.fdopen(descriptor, "ab")
            try:
                fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
                segment.write(_MAGIC)
                segment.flush()
                hidden.rename(path)
            except OSError:
                segment.close()
                hidden.unlink(missing_ok=True)
                raise
            self._segment, self._path = segment, path
            self._own.add(path.name)
        return self._segment

    def _close_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            with suppress(OSError):
                segment.close()

    def _delete(self, path: Path) -> None:
        self._usage_read_at = float("-inf")
        self._own.discard(path.name)
        path.unlink(missing_ok=True)
        path.with_suffix(".done").unlink(missing_ok=True)


def _try_lock(segment: IO[bytes]) -> bool:
    try:
        fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(segment: IO[bytes], on_lost: Callable[[str, int], None]) -> Iterator[SpooledBatch]:
    if segment.tell() < len(_MAGIC):
        segment.seek(0)
        if segment.read(len(_MAGIC)) != _MAGIC:
            on_lost("spool_corrupt", 1)
            return
    while header := segment.read(_HEADER.size):
        if len(header) < _HEADER.size:
            on_lost("spool_corrupt", 1)
            return
        index, compressed, items, length, checksum = _HEADER.unpack(header)
        body = segment.read(length) if length <= MAX_RECORD_BYTES and index < len(SIGNALS) else b""
        if len(body) != length or zlib.crc32(body) != checksum:
            on_lost("spool_corrupt", 1)
            return
        yield SpooledBatch(signal=SIGNALS[index], items=items, body=body, compressed=bool(compressed))


def _record_count(segment: IO[bytes]) -> int:
    return sum(batch.items for batch in _read(segment, lambda _reason, _count: None))
