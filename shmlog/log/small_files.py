"""A log's small files, written in the one order that is right when it stops in between.

The recovery point says: below me the epoch history is complete and all is synced. So the epochs and the producer
snapshot go before a checkpoint that moves it forward; the epochs go behind one that moves it back.
"""

from __future__ import annotations

from shmlog.log import checkpoint, paths
from shmlog.log.checkpoint import Checkpoint, EpochTable
from shmlog.log.producers import Snapshot
from shmlog.log.storage import Storage


class SmallFiles:
    """Checkpoint, epoch history and producer snapshot of one directory. In a worker: all of it syncs."""

    def __init__(self, storage: Storage, directory: str) -> None:
        self._storage = storage
        self._checkpoint = f"{directory}/{paths.CHECKPOINT}"
        self._epochs = f"{directory}/{paths.EPOCHS}"
        self._producers = f"{directory}/{paths.PRODUCERS}"

    def write(
        self,
        value: Checkpoint,
        epochs: EpochTable | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """What has changed since the last time."""
        if epochs is not None:
            self.write_epochs(epochs)
        if snapshot is not None:
            checkpoint.write(self._storage, self._producers, snapshot)
        checkpoint.write(self._storage, self._checkpoint, value)

    def write_epochs(self, epochs: EpochTable) -> None:
        """The history alone: an epoch begins."""
        checkpoint.write(self._storage, self._epochs, epochs)

    def write_twice(self, value: Checkpoint) -> None:
        """The checkpoint, in both generations."""
        checkpoint.replace(self._storage, self._checkpoint, value)

    def cut(self, value: Checkpoint, epochs: EpochTable, snapshot: Snapshot) -> None:
        """Before the batches themselves are cut: nothing may remain that knows of what is behind the cut.

        The producers first: a start with this checkpoint may unlink what only they remember then.
        """
        checkpoint.replace(self._storage, self._producers, snapshot)
        checkpoint.replace(self._storage, self._checkpoint, value)
        checkpoint.replace(self._storage, self._epochs, epochs)

    def write_producers(self, one: Snapshot, other: Snapshot) -> None:
        """A generation each, the one that ends first below the other: see `snapshot_within`. Of two that end at the
        same offset `other` counts.
        """
        for snapshot in sorted((one, other), key=lambda s: s.end_offset):
            checkpoint.write(self._storage, self._producers, snapshot)

    def replace_producers(self, snapshot: Snapshot) -> None:
        """Both generations."""
        checkpoint.replace(self._storage, self._producers, snapshot)

    def snapshot_within(self, end_offset: int) -> Snapshot | None:
        """The newest producer snapshot that ends at or below `end_offset`."""
        newest = checkpoint.read_newest(self._storage, self._producers, Snapshot)
        before = checkpoint.read_one(self._storage, f"{self._producers}.previous", Snapshot)
        for snapshot in (newest, before):
            if snapshot is not None and snapshot.end_offset <= end_offset:
                return snapshot
        return None

    def forget_snapshots_behind(self, end_offset: int, instead: Snapshot) -> None:
        """Batches were lost behind `end_offset`: a snapshot that knows of them must not outlive that."""
        before = f"{self._producers}.previous"
        newest = checkpoint.read_newest(self._storage, self._producers, Snapshot)
        good = checkpoint.read_one(self._storage, before, Snapshot)
        if newest and good and good.end_offset <= end_offset < newest.end_offset:
            # A write would put the one that is no longer true in its place, and a power cut might leave just that.
            self._storage.rename(before, self._producers)
            self._storage.sync_dir(self._producers.rpartition("/")[0])
        for name in (self._producers, f"{self._producers}.previous"):
            snapshot = checkpoint.read_one(self._storage, name, Snapshot)
            if snapshot is not None and snapshot.end_offset > end_offset:
                checkpoint.replace(self._storage, self._producers, instead)
                return
