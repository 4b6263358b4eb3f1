"""A full disk changes nothing and passes; any other failed write or sync ends it; a real kill -9 loses nothing."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from log_support import append, batch, config, open_log, read_all, sync

from shmlog.errors import DiskFull
from shmlog.log.os_storage import OsStorage
from shmlog.log.storage import MemoryStorage

SMALL = config(segment_bytes=700)


def many(base_offset: int) -> list[tuple[object, bytes]]:
    """Batches for one append that rolls several times."""
    return [batch(base_offset + 3 * number, 3, epoch=1, append_time_ns=2000) for number in range(9)]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["pwrite", "create"])
def test_a_full_disk_changes_nothing_and_the_next_append_works(kind: str, error: int) -> None:
    for nth in range(1, 20):
        storage = MemoryStorage()
        log = open_log(storage, config=SMALL)
        first = append(log, 2)[1]
        storage.fail(kind, nth, error)
        before = (log.size_bytes, log.segment_count, log.last_append_time_ns, [*log.epochs.entries])
        turn = many(2)
        try:
            log.append(turn, now_ns=0)  # type: ignore[arg-type]
        except DiskFull:
            pass
        else:
            assert nth > 2, "the fault was never met"
            break
        after = (log.size_bytes, log.segment_count, log.last_append_time_ns, [*log.epochs.entries])
        assert after == before
        assert log.log_end_offset == 2
        assert log.offset_for_time(1001, 2) is None
        assert read_all(log) == [first]
        log.append(turn, now_ns=0)  # type: ignore[arg-type]
        sync(log)
        for image in (log, open_log(storage.after_kill(random.Random(nth)), config=SMALL)):
            assert read_all(image) == [first, *(data for _, data in turn)]


def test_what_a_write_left_before_the_disk_was_full_is_cut_and_the_cut_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(tmp_path / "events-3")
    log = open_log(OsStorage(), directory)
    first = append(log, 2)[1]
    pwritev, calls, synced = os.pwritev, [0], [0]

    def full(fd: int, buffers: list[memoryview], position: int) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwritev(fd, [bytes(buffers[0])[:50]], position)

    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        synced[0] += 1
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", full)
    monkeypatch.setattr(os, "fdatasync", counted)
    with pytest.raises(DiskFull):
        append(log, 4)
    assert synced == [1]
    (file,) = (tmp_path / "events-3").glob("*.log")
    assert file.read_bytes() == first
    monkeypatch.undo()
    second = append(log, 4)[1]
    assert read_all(log) == [first, second]
    log.close(6)


@pytest.mark.parametrize("kind", ["pwrite", "create"])
def test_any_other_error_of_an_append_comes_out_as_it_is(kind: str) -> None:
    storage = MemoryStorage()
    log = open_log(storage, config=SMALL)
    storage.fail(kind, 1, errno.EIO)
    with pytest.raises(OSError, match="injected") as raised:
        log.append(many(0), now_ns=0)  # type: ignore[arg-type]
    assert raised.value.errno == errno.EIO


@pytest.mark.parametrize("kind", ["sync", "sync_dir"])
def test_a_failed_sync_comes_out_and_moves_no_end(kind: str) -> None:
    storage = MemoryStorage()
    log = open_log(storage, config=SMALL)
    log.append(many(0), now_ns=0)  # type: ignore[arg-type]
    storage.fail(kind, 1, errno.EIO)
    job = log.sync_job()
    assert job is not None
    with pytest.raises(OSError, match="injected"):
        job.run()
    assert log.synced_end_offset == 0
    again = open_log(storage.after_kill(random.Random(0)), config=SMALL)
    assert again.recovery.rewritten_bytes == again.size_bytes == log.size_bytes


def test_space_refused_to_preallocation_is_said_and_appends_go_on() -> None:
    storage = MemoryStorage()
    log = open_log(storage)
    job = log.allocation_job()
    assert job is not None
    storage.fail("allocate", 1, errno.ENOSPC)
    with pytest.raises(OSError, match="injected"):
        job.run()
    log.finish_allocation(job)
    one = append(log, 2)[1]
    assert read_all(log) == [one]


WRITER = """
import sys
from shmlog.log.os_storage import OsStorage
from log_support import append, config, open_log
log = open_log(OsStorage(), sys.argv[1], config=config(segment_bytes=20_000))
while True:
    append(log, 5, value=b"x" * 100, producer_id=-1)
    sys.stdout.write(f"{log.log_end_offset}\\n")
    sys.stdout.flush()
"""


def test_what_a_killed_writer_had_acked_is_all_there(tmp_path: Path) -> None:
    directory, end = str(tmp_path / "events-3"), 0
    rng = random.Random(5)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
        )
        assert writer.stdout is not None
        acked = b""
        for _ in range(rng.randrange(50, 400)):
            acked = writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        lines = [acked, *writer.stdout.read().splitlines(keepends=True)]
        acked_end = max(int(line) for line in lines if line.endswith(b"\n"))
        writer.stdout.close()
        writer.wait()
        log = open_log(OsStorage(), directory, config=config(segment_bytes=20_000))
        assert log.log_end_offset >= acked_end > end
        expected = [
            batch(offset, 5, value=b"x" * 100)[1] for offset in range(0, log.log_end_offset, 5)
        ]
        assert read_all(log) == expected
        end = log.log_end_offset
        log.close_files()
