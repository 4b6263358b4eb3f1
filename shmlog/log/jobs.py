"""What a log asks workers to do: plain objects with `run()`, system calls only.

A job holds what it needs, its own descriptors too: the log may close or unlink a file while a worker still
syncs it, and a number that the kernel has given to another file is never used. The loop waits for no job.
What a job's end means for the log is told to it by the loop (`Log.finish_sync`, `Log.finish_allocation`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shmlog.log.checkpoint import Checkpoint, EpochTable
from shmlog.log.producers import Snapshot
from shmlog.log.segment import Segment
from shmlog.log.small_files import SmallFiles
from shmlog.log.storage import File, Storage


class Job(Protocol):
    """Something for a worker."""

    def run(self) -> None:
        """Do it. May raise OSError."""
        ...


@dataclass(slots=True)
class SyncJob:
    """Make everything below `end_offset` durable. A cut lowers `end_offset` while the job runs (B21)."""

    storage: Storage
    files: list[File]
    directory: str | None  # set: a segment was made since the last sync
    end_offset: int
    snapshot: Snapshot | None

    def run(self) -> None:
        """fdatasync each dirty file, then the directory."""
        try:
            for file in self.files:
                file.sync()
        finally:
            for file in self.files:
                file.close()
        if self.directory is None:
            return
        try:
            self.storage.sync_dir(self.directory)
        except FileNotFoundError:
            pass  # the topic was deleted meanwhile: nobody waits for its names


@dataclass(slots=True)
class GiveBackJob:
    """Let go of what a closed segment has preallocated and will never fill."""

    segment: Segment
    file: File
    generation: int  # of the log: how often it has been cut
    done: bool = False

    def run(self) -> None:
        """Cut the file behind the last batch; a closed segment does not grow."""
        try:
            self.file.truncate(self.segment.size)
        finally:
            self.file.close()
        self.done = True


@dataclass(slots=True)
class AllocationJob:
    """Reserve the next step of a segment."""

    segment: Segment
    file: File
    position: int
    size: int
    generation: int  # of the log: how often it has been cut
    done: bool = False

    def run(self) -> None:
        """fallocate."""
        try:
            self.file.allocate(self.position, self.size)
        finally:
            self.file.close()
        self.done = True


@dataclass(slots=True)
class SpareJob:
    """Make the next segment's file and reserve its first step."""

    storage: Storage
    path: str
    size: int
    done: bool = False

    def run(self) -> None:
        """Create and fallocate. What an attempt without space has left is used up by the next one."""
        file = self.storage.open(self.path, create=True)
        try:
            file.truncate(0)
            file.allocate(0, self.size)
        finally:
            file.close()
        self.done = True


@dataclass(slots=True)
class CheckpointJob:
    """Write what a log knows beside its batches; then remove what lies below its log start.

    In this order: else a start after a kill would miss what was unlinked, or its producers. What is only a help
    to the next start comes last, so that on a full disk room is made first.
    """

    files: SmallFiles
    value: Checkpoint
    epochs: EpochTable | None
    snapshot: Snapshot | None
    removed: list[Segment]
    sealed: list[Segment]  # their indexes are to be saved
    twice: bool  # in both generations
    is_true: Callable[[], bool]
    generation: int  # of the log: how often it has been cut

    def run(self) -> None:
        """Small files, synced; unlinks; indexes. Nothing if the log has been cut since."""
        if not self.is_true():
            return
        self.files.write(self.value, self.epochs, self.snapshot)
        if self.twice:
            self.files.write(self.value, self.epochs)
        for segment in self.removed:
            segment.close()
            segment.unlink()
        for segment in self.sealed:
            segment.save_index()


@dataclass(slots=True)
class CallJob:
    """Any one call, if it is still wanted."""

    call: Callable[[], None]
    is_wanted: Callable[[], bool]

    def run(self) -> None:
        """Make the call."""
        if self.is_wanted():
            self.call()
