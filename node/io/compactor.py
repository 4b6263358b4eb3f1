"""Compaction passes in a process of their own, niced: they take nothing from the broker, not its memory nor its GIL.

    broker worker --[size u32][task, MessagePack]--> stdin   child   stdout --[size u32][result]--> broker worker

The child (node/compactor.py) is started at the first pass, ends after a while without one, and is started again. It
inherits no descriptor but these two pipes and stderr: a lock or a socket held by it would hide the broker's death. It
dies with the broker: by a signal, and by the end of its stdin.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from typing import Protocol

import msgspec

from shmlog.log.cleaning_task import CleaningResult, CleaningTask

SIZE = struct.Struct("<I")


class Compactor(Protocol):
    """What the broker needs of it."""

    def run(self, task: CleaningTask) -> CleaningResult:
        """One pass, in the calling thread, for as long as it takes."""
        ...

    def close(self) -> None:
        """Stop what runs; nothing is run any more."""
        ...


class ChildCompactor:
    """Passes in a child process. `run` in one worker, `close` in the loop."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # is there a process, may there be one
        self._closed = False

    def run(self, task: CleaningTask) -> CleaningResult:
        for _ in range(2):  # it may just have ended for lack of work
            process = self._started()
            if process is None:
                return CleaningResult(error="the broker stops")
            answer = _ask(process, msgspec.msgpack.encode(task))
            if answer is not None:
                return msgspec.msgpack.decode(answer, type=CleaningResult)
            status = self._reap(process)
            if status != 0:
                return CleaningResult(error=f"the compactor ended with status {status}")
        return CleaningResult(error="the compactor ended twice")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _started(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._process is None and not self._closed:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "node.compactor", str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            return self._process

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # what was not flushed is lost, and so is its reader
        status = process.wait()
        with self._lock:
            self._process = None
        return status


def _ask(process: subprocess.Popen[bytes], question: bytes) -> bytes | None:
    """The child's answer; None if it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(SIZE.pack(len(question)) + question)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    head = process.stdout.read(SIZE.size)
    if len(head) < SIZE.size:
        return None
    size = SIZE.unpack(head)[0]
    answer = process.stdout.read(size)
    return answer if len(answer) == size else None
