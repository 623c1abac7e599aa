from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clew.pipeline.spool import Spool, SpooledBatch, SpoolFullError


def spool(folder: Path, *, max_bytes: int = 10_000_000, max_age_s: float = 3600.0) -> Spool:
    return Spool(folder, max_bytes=max_bytes, max_age_s=max_age_s)


def batch(body: bytes = b"body", items: int = 1) -> SpooledBatch:
    return SpooledBatch(signal="traces", items=items, body=body, compressed=False)


def drain(source: Spool, *, take: int = 1_000_000) -> tuple[list[tuple[bytes, bool]], dict[str, int]]:
    taken: list[tuple[bytes, bool]] = []
    lost: dict[str, int] = {}

    def deliver(batch: SpooledBatch, *, own: bool) -> bool:
        if len(taken) >= take:
            return False
        taken.append((batch.body, own))
        return True

    source.replay(
        deliver, on_lost=lambda reason, count: lost.update({reason: lost.get(reason, 0) + count}), max_batches=1_000_000
    )
    return taken, lost


def test_batches_come_back_in_order_and_once(tmp_path):
    waiting = spool(tmp_path)
    for number in range(100):
        waiting.append(batch(f"{number}".encode()))
    taken, lost = drain(waiting)
    assert [body for body, _ in taken] == [f"{number}".encode() for number in range(100)]
    assert all(own for _, own in taken)
    assert lost == {}
    assert waiting.is_empty()
    assert drain(waiting) == ([], {})


def test_a_replay_that_is_broken_off_goes_on_where_it_stopped(tmp_path):
    waiting = spool(tmp_path)
    for number in range(10):
        waiting.append(batch(f"{number}".encode()))
    assert len(drain(waiting, take=4)[0]) == 4
    later = spool(tmp_path)
    assert [body for body, _ in drain(later)[0]] == [f"{number}".encode() for number in range(4, 10)]


def test_the_next_start_replays_what_another_process_left(tmp_path):
    first = spool(tmp_path)
    first.append(batch(b"left behind"))
    first.close()
    assert drain(spool(tmp_path)) == ([(b"left behind", False)], {})


def test_a_segment_that_is_being_written_is_left_to_its_writer(tmp_path):
    writer, sibling = spool(tmp_path), spool(tmp_path)
    writer.append(batch(b"mine"))
    assert drain(sibling) == ([], {})
    assert drain(writer)[0] == [(b"mine", True)]


def test_the_folder_and_its_files_are_the_owners_only(tmp_path):
    waiting = spool(tmp_path / "deep" / "spool")
    waiting.append(batch())
    assert (tmp_path / "deep" / "spool").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "deep" / "spool").iterdir())


@pytest.mark.parametrize("cut", [1, 5, 13, 14, 20])
def test_a_record_that_a_crash_cut_short_is_skipped_and_counted(tmp_path, cut):
    waiting = spool(tmp_path)
    waiting.append(batch(b"whole"))
    waiting.append(batch(b"torn off"))
    waiting.close()
    (segment,) = tmp_path.glob("*.spool")
    os.truncate(segment, segment.stat().st_size - cut)
    assert drain(spool(tmp_path)) == ([(b"whole", False)], {"spool_corrupt": 1})
    assert spool(tmp_path).is_empty()


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_a_flipped_byte_never_delivers_what_was_not_written(tmp_path_factory, position, value):
    folder = tmp_path_factory.mktemp("spool")
    waiting = spool(folder)
    written = [b"one" * 10, b"two" * 10, b"three" * 10]
    for body in written:
        waiting.append(batch(body))
    waiting.close()
    (segment,) = folder.glob("*.spool")
    data = bytearray(segment.read_bytes())
    data[position % len(data)] = value
    segment.write_bytes(data)
    taken, _ = drain(spool(folder))
    assert [body for body, _ in taken] == written[: len(taken)]


def test_the_size_is_bounded(tmp_path):
    waiting = spool(tmp_path, max_bytes=1_000)
    waiting.append(batch(b"x" * 600))
    with pytest.raises(SpoolFullError, match="has reached its 1000 bytes"):
        waiting.append(batch(b"y" * 600))
    assert [body for body, _ in drain(waiting)[0]] == [b"x" * 600]
    waiting.append(batch(b"z" * 600))


def test_what_is_too_old_is_given_up(tmp_path):
    waiting = spool(tmp_path, max_age_s=60)
    waiting.append(batch(items=7))
    waiting.close()
    (segment,) = tmp_path.glob("*.spool")
    os.utime(segment, (time.time() - 3600, time.time() - 3600))
    assert drain(spool(tmp_path, max_age_s=60)) == ([], {"too_old": 7})
    assert waiting.is_empty()


def test_a_file_that_is_no_segment_is_counted_and_removed(tmp_path):
    (tmp_path / "00000000000000000001-1-1.spool").write_bytes(b"not a segment")
    assert drain(spool(tmp_path)) == ([], {"spool_corrupt": 1})
    assert spool(tmp_path).is_empty()


def test_a_folder_that_can_not_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        spool(tmp_path / "file" / "spool").append(batch())


def test_a_full_disk_keeps_what_was_written_before():
    # /dev/full takes no byte, as a full disk does
    waiting = spool(Path("/nonexistent"))
    with Path("/dev/full").open("ab") as full:
        waiting._segment = full
        with pytest.raises(OSError, match="No space left"):
            waiting.append(batch())


def _take(folder: str, results: multiprocessing.Queue[bytes]) -> None:
    for body, _ in drain(spool(Path(folder)))[0]:
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
