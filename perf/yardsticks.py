"""What this machine can do at best, in the same run: so that figures travel between machines."""

from __future__ import annotations

import os
import tempfile
import threading
import time

import numpy as np
import zmq

from shmlog.records.compression import crc32c
from shmlog.ring import posix

_MIB = 1 << 20


def _rate(size: int, count: int, work: object) -> float:
    call = work
    assert callable(call)
    began = time.perf_counter()
    for i in range(count):
        call(i)
    return size * count / (time.perf_counter() - began) / 1e9


def memcpy_gb_s(piece: int) -> float:
    """Pieces copied into warmed shared memory, over 64 MiB."""
    name = f"/slperf{os.getpid()}"
    memory = posix.create(name, 64 * _MIB)
    try:
        posix.touch(memory)
        source = os.urandom(piece)
        view, places = memory.buffer, 64 * _MIB // piece

        def copy(i: int) -> None:
            at = i % places * piece
            view[at : at + piece] = source

        _rate(piece, places, copy)
        result = _rate(piece, 4 * places, copy)
        view.release()
        return result
    finally:
        posix.unlink(name)
        memory.close()


def crc32c_gb_s(piece: int) -> float:
    """CRC-32C of pieces that are not in the cache."""
    data = np.random.default_rng(1).bytes(64 * _MIB)
    view, places = memoryview(data), 64 * _MIB // piece
    return _rate(piece, 4 * places, lambda i: crc32c(view[i % places * piece :][:piece]))


def pwrite_gb_s(piece: int, directory: str) -> float:
    """Writes to a fresh preallocated file of 512 MiB, page cache."""
    total = 512 * _MIB
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, total)
        data = os.urandom(piece)
        return _rate(piece, total // piece, lambda i: os.pwrite(file.fileno(), data, i * piece))


def fdatasync_us(piece: int, directory: str) -> dict[str, float]:
    """One write and one fdatasync, 100 times."""
    took = []
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, 128 * piece)
        os.fsync(file.fileno())
        data = os.urandom(piece)
        for i in range(100):
            os.pwrite(file.fileno(), data, i * piece)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1e6)
    return {"p50": float(np.percentile(took, 50)), "p99": float(np.percentile(took, 99))}


def zeromq_round_trip_us() -> float:
    """DEALER to ROUTER over ipc and back, 64 bytes, one in flight, another thread at the far end; p50."""
    context = zmq.Context()
    path = f"ipc://{tempfile.gettempdir()}/slperf-{os.getpid()}.sock"
    router = context.socket(zmq.ROUTER)
    router.bind(path)
    count = 2000

    def echo() -> None:
        for _ in range(count):
            router.send_multipart(router.recv_multipart())

    thread = threading.Thread(target=echo)
    thread.start()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(path)
    took = []
    for _ in range(count):
        began = time.perf_counter()
        dealer.send(b"x" * 64)
        dealer.recv()
        took.append((time.perf_counter() - began) * 1e6)
    thread.join()
    dealer.close(0)
    router.close(0)
    context.term()
    os.unlink(path.removeprefix("ipc://"))
    return float(np.percentile(took, 50))


def measure(directory: str) -> dict[str, object]:
    """All yardsticks."""
    return {
        "memcpy_64KiB_GB_s": round(memcpy_gb_s(65536), 2),
        "memcpy_1MiB_GB_s": round(memcpy_gb_s(_MIB), 2),
        "crc32c_64KiB_GB_s": round(crc32c_gb_s(65536), 2),
        "pwrite_64KiB_GB_s": round(pwrite_gb_s(65536, directory), 2),
        "fdatasync_4KiB_us": fdatasync_us(4096, directory),
        "zeromq_ipc_round_trip_us": round(zeromq_round_trip_us(), 1),
    }
