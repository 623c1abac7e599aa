from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clew.pipeline.spool import Spool, SpooledBatch, SpoolFullError
from clew.settings import SIGNALS, Signal


@dataclass
class Reading:
    """Takes what waits and remembers it; stops after ``take`` batches."""

    take: int = 1_000_000
    taken: list[SpooledBatch] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    lost_items: dict[str, int] = field(default_factory=dict)
    over: int = 0

    def deliver(self, batch: SpooledBatch, *, own: bool) -> bool:
        if len(self.taken) >= self.take:
            return False
        self.taken.append(batch)
        self.own.append(own)
        return True

    def lost(self, reason: str, items: int, *, own: bool) -> None:
        self.lost_items[reason] = self.lost_items.get(reason, 0) + items

    def taken_over(self, items: int) -> None:
        self.over += items

    @property
    def bodies(self) -> list[bytes]:
        return [batch.body for batch in self.taken]


def spool(folder: Path, *, max_bytes: int = 10_000_000, max_age_s: float = 3600.0) -> Spool:
    return Spool(folder, max_bytes=max_bytes, max_age_s=max_age_s)


def batch(body: bytes = b"body", items: int = 1, of: Signal = "traces") -> SpooledBatch:
    return SpooledBatch(signal=of, items=items, body=body, compressed=False)


def drain(source: Spool, *, take: int = 1_000_000, of: Signal = "traces") -> Reading:
    reading = Reading(take=take)
    source.replay(of, reading, max_batches=1_000_000)
    return reading


def test_batches_come_back_in_order_and_once(tmp_path):
    waiting = spool(tmp_path)
    for number in range(100):
        waiting.append(batch(f"{number}".encode()))
    reading = drain(waiting)
    assert reading.bodies == [f"{number}".encode() for number in range(100)]
    assert all(reading.own)
    assert reading.lost_items == {}
    assert waiting.is_empty()
    assert drain(waiting).bodies == []


def test_signals_wait_apart(tmp_path):
    waiting = spool(tmp_path)
    for name in SIGNALS:
        waiting.append(batch(name.encode(), of=name))
    assert drain(waiting, of="logs").bodies == [b"logs"]
    assert waiting.is_empty("logs")
    assert not waiting.is_empty("traces")
    assert drain(waiting, of="metrics").bodies == [b"metrics"]
    assert drain(waiting).bodies == [b"traces"]


def test_a_replay_that_is_broken_off_goes_on_where_it_stopped(tmp_path):
    waiting = spool(tmp_path)
    for number in range(10):
        waiting.append(batch(f"{number}".encode()))
    assert len(drain(waiting, take=4).taken) == 4
    later = spool(tmp_path)
    assert drain(later).bodies == [f"{number}".encode() for number in range(4, 10)]


def test_the_next_start_replays_what_another_process_left(tmp_path):
    first = spool(tmp_path)
    first.append(batch(b"left behind"))
    first.close()
    reading = drain(spool(tmp_path))
    assert (reading.bodies, reading.own) == ([b"left behind"], [False])


def test_what_a_sibling_took_is_told_to_its_writer(tmp_path):
    writer, sibling = spool(tmp_path), spool(tmp_path)
    for items in (1, 2, 4):
        writer.append(batch(items=items))
    writer.close()
    drain(sibling, take=2)
    rest = drain(writer)
    assert (rest.over, [one.items for one in rest.taken]) == (3, [4])
    writer.append(batch(items=8))
    writer.close()
    drain(sibling)
    assert drain(writer).over == 8


def test_a_segment_that_is_being_written_is_left_to_its_writer(tmp_path):
    writer, sibling = spool(tmp_path), spool(tmp_path)
    writer.append(batch(b"mine"))
    assert drain(sibling).bodies == []
    assert drain(writer).bodies == [b"mine"]


def test_the_folder_and_its_files_are_the_owners_only(tmp_path):
    waiting = spool(tmp_path / "deep" / "spool")
    waiting.append(batch())
    assert (tmp_path / "deep" / "spool").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "deep" / "spool").iterdir())


batches = st.lists(
    st.builds(SpooledBatch, signal=st.just("logs"), items=st.integers(1, 9), body=st.binary(max_size=80), compressed=st.booleans()),
    min_size=1,
    max_size=8,
)  # fmt: skip


def written(tmp_path_factory: pytest.TempPathFactory, given_batches: list[SpooledBatch]) -> tuple[Spool, Path]:
    """Write batches and return the writer, which has closed its one segment, and the segment."""
    folder = tmp_path_factory.mktemp("spool")
    writer = spool(folder)
    for one in given_batches:
        writer.append(one)
    writer.close()
    (segment,) = folder.glob("*.spool")
    return writer, segment


@settings(deadline=None, max_examples=150)
@given(given_batches=batches, cut=st.integers(0, 1_000), data=st.data())
def test_what_a_crash_cut_short_reads_as_what_came_before(tmp_path_factory, given_batches, cut, data):
    writer, segment = written(tmp_path_factory, given_batches)
    size = segment.stat().st_size - cut % (segment.stat().st_size + 1)
    os.truncate(segment, size)
    other = data.draw(st.booleans(), label="read by another process")
    reading = drain(spool(segment.parent) if other else writer, of="logs")
    assert reading.taken == given_batches[: len(reading.taken)]
    if not other:
        # Its writer knows what was in it, to the item
        assert sum(one.items for one in (*reading.taken, *given_batches)) - sum(reading.lost_items.values()) == 2 * sum(
            one.items for one in reading.taken
        )
    elif len(reading.taken) < len(given_batches) and size > 16 + sum(20 + 2 + len(b.body) for b in reading.taken):
        assert reading.lost_items.keys() == {"spool_corrupt"}
    assert writer.is_empty()


@settings(deadline=None, max_examples=150)
@given(given_batches=batches, position=st.integers(0, 1_000), flip=st.integers(1, 255), data=st.data())
def test_a_damaged_byte_never_delivers_what_was_not_written(tmp_path_factory, given_batches, position, flip, data):
    writer, segment = written(tmp_path_factory, given_batches)
    content = bytearray(segment.read_bytes())
    content[position % len(content)] ^= flip
    segment.write_bytes(content)
    reading = drain(writer, of="logs")
    left = iter(given_batches)
    assert all(one in left for one in reading.taken), "what is read is some of what was written, in its order"
    delivered = sum(one.items for one in reading.taken)
    # What was jumped over counts as delivered by another process: the damage was done to the place in the file
    assert delivered + reading.over + sum(reading.lost_items.values()) == sum(one.items for one in given_batches)
    assert writer.is_empty()


def test_one_damaged_record_costs_no_other(tmp_path):
    waiting = spool(tmp_path)
    for body in (b"first", b"second", b"third"):
        waiting.append(batch(body, items=5))
    waiting.close()
    (segment,) = tmp_path.glob("*.spool")
    segment.write_bytes(segment.read_bytes().replace(b"second", b"sEcond"))
    reading = drain(spool(tmp_path))
    assert (reading.bodies, reading.lost_items) == ([b"first", b"third"], {"spool_corrupt": 5})


def test_the_size_is_bounded(tmp_path):
    waiting = spool(tmp_path, max_bytes=1_000)
    waiting.append(batch(b"x" * 600))
    with pytest.raises(SpoolFullError, match="has reached its 1000 bytes"):
        waiting.append(batch(b"y" * 600))
    assert drain(waiting).bodies == [b"x" * 600]
    waiting.append(batch(b"z" * 600))


def test_what_is_too_old_is_given_up(tmp_path):
    waiting = spool(tmp_path, max_age_s=60)
    waiting.append(batch(items=7))
    waiting.close()
    (segment,) = tmp_path.glob("*.spool")
    os.utime(segment, (time.time() - 3600, time.time() - 3600))
    reading = drain(spool(tmp_path, max_age_s=60))
    assert (reading.bodies, reading.lost_items) == ([], {"too_old": 7})
    assert waiting.is_empty()


def test_a_file_that_is_no_segment_is_counted_and_removed(tmp_path):
    (tmp_path / "00000000000000000001-1-1.traces.spool").write_bytes(b"not a segment")
    assert drain(spool(tmp_path)).lost_items == {"spool_corrupt": 0}
    assert spool(tmp_path).is_empty()


def test_what_a_crash_left_unnamed_is_cleared_away(tmp_path):
    left, new = tmp_path / "1-1-1.traces.new", tmp_path / "2-2-2.traces.new"
    left.write_bytes(b"CLEW")
    new.write_bytes(b"CLEW")
    os.utime(left, (time.time() - 3600, time.time() - 3600))
    drain(spool(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


def test_a_folder_that_can_not_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        spool(tmp_path / "file" / "spool").append(batch())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from clew.pipeline.spool import Spool, SpooledBatch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
waiting = Spool(Path(sys.argv[1]), max_bytes=10**6, max_age_s=3600)
for body in (b"x" * 500, b"y" * 900, b"z" * 300):
    try:
        waiting.append(SpooledBatch(signal="traces", items=1, body=body, compressed=False))
    except OSError as error:
        print(error.strerror)
"""


def test_a_disk_that_takes_half_a_record_keeps_what_was_before_and_after_it(tmp_path):
    # A file may have 1,000 bytes, which the kernel holds to in the middle of a record, as a full disk does
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "File too large\n"
    reading = drain(spool(tmp_path))
    assert (reading.bodies, reading.lost_items) == ([b"x" * 500, b"z" * 300], {})


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from clew.pipeline.spool import Spool, SpooledBatch
waiting = Spool(Path(sys.argv[1]), max_bytes=10**9, max_age_s=3600)
number = 0
while True:
    waiting.append(SpooledBatch(signal="traces", items=1, body=b"%09d" % number * 20_000, compressed=False))
    print(number, flush=True)
    number += 1
"""


def test_a_writer_that_is_killed_in_the_middle_leaves_all_that_it_had_written(tmp_path):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_UNTIL_KILLED, str(folder)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(10 + attempt * 7):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            said = writer.stdout.read().split()
        last = int(said[-1]) if said else 9 + attempt * 7
        read = [int(body[:9]) for body in drain(spool(folder)).bodies]
        assert read == list(range(len(read)))
        assert len(read) > last


def _take(folder: str, results: multiprocessing.Queue[bytes]) -> None:
    for body in drain(spool(Path(folder))).bodies:
        results.put(body)


def test_several_processes_replay_each_batch_once(tmp_path):
    for number in range(40):
        writer = spool(tmp_path)
        writer.append(batch(f"{number}".encode()))
        writer.close()
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[bytes] = context.Queue()
    workers = [context.Process(target=_take, args=(str(tmp_path), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    taken = sorted(int(results.get(timeout=30)) for _ in range(40))
    for worker in workers:
        worker.join(30)
    assert taken == list(range(40))
    assert results.empty()


def test_a_child_that_is_forked_while_its_parent_writes_disturbs_nothing(tmp_path):
    waiting = spool(tmp_path)
    waiting.append(batch(b"before"))
    child = os.fork()
    if child == 0:
        waiting.reset_after_fork()
        waiting.append(batch(b"of the child"))
        os._exit(0)
    os.waitpid(child, 0)
    waiting.append(batch(b"after"))
    # The child is dead, and its segment anybody's
    assert drain(waiting).bodies == [b"before", b"after", b"of the child"]
