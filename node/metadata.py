"""The metadata log: changes as record sets in a log of durability `disk`, applied to the image once synced.

A change is a plan (a pure function of the committed image, see core/cluster/controller) and a callback. One is
open at a time: it is planned on the committed image, appended as one batch, synced by a worker, applied,
published and answered; then the next one is planned. So a plan never builds on what might still be lost, and two
requests for the same name never race. With one voter a sync is the commit; the cluster puts Raft in front of the
same log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from node.core.cluster.image import (
    ClusterRecord,
    Image,
    Record,
    apply,
    decode_record,
    encode_record,
)
from shmlog.clock import Clock
from shmlog.errors import CorruptLog, DiskFull, InvalidConfig, ShmlogError
from shmlog.log.log import Log
from shmlog.log.paths import METADATA_TOPIC, partition_dir
from shmlog.log.storage import Storage
from shmlog.records import batch as batches
from shmlog.records.builder import build, stamp
from shmlog.records.layout import BATCH_SIZE_MAX
from shmlog.settings import MIB, TopicConfig

Plan = Callable[[Image], list[Record]]
Done = Callable[[int, ShmlogError | None], None]
METADATA_TOPIC_ID = b"cluster-metadata"
METADATA_EPOCH = 1
_READ_BYTES = 1 << 20


class Metadata:
    """The metadata log of one voter, and the image.

    Invariant: the image is exactly the records below `log.synced_end_offset`.
    """

    def __init__(
        self,
        storage: Storage,
        data_dir: str,
        *,
        topic_defaults: Mapping[str, Any],
        clock: Clock,
        same_boot: bool,
        clean: bool,
    ) -> None:
        config = TopicConfig(
            durability="disk",
            segment_bytes=16 * MIB,
            max_message_bytes=BATCH_SIZE_MAX,
            ring_bytes=0,
        )
        self._clock = clock
        self.log = Log.open(
            storage,
            f"{data_dir}/{partition_dir(METADATA_TOPIC, 0)}",
            topic_id=METADATA_TOPIC_ID,
            partition=0,
            config=config,
            now_ns=clock.monotonic_ns(),
            same_boot=same_boot,
            clean=clean,
        )
        self.image = Image(topic_defaults=dict(topic_defaults))
        self._waiting: deque[tuple[Plan, Done]] = deque()
        self._open: tuple[list[Record], Done] | None = None
        self._replay()

    def _replay(self) -> None:
        offset, end = self.log.log_start_offset, self.log.log_end_offset
        while offset < end:
            data = memoryview(self.log.read(offset, max_bytes=_READ_BYTES, end_offset=end))
            for position, header in batches.iterate(data):
                batch = batches.RecordBatch(data[position:], header)
                try:
                    records = [
                        decode_record(value) for value in batch.values() if value is not None
                    ]
                except msgspec.MsgspecError as error:
                    raise CorruptLog(
                        f"metadata log: the record set at offset {header.base_offset} cannot be "
                        f"read ({error}): it was written by another version"
                    ) from None
                self.image = apply(self.image, records, header.end_offset)
                offset = header.end_offset

    def check_cluster(self, cluster: str) -> bool:
        """False if the log is empty. Raises InvalidConfig if it belongs to another cluster."""
        if self.image.offset == 0:
            return False
        if self.image.cluster != cluster:
            raise InvalidConfig(
                f"cluster.toml says cluster {cluster!r}, the data belongs to {self.image.cluster!r}"
            )
        return True

    def submit(self, plan: Plan, done: Done) -> None:
        """Queue a change. `done(metadata offset, None)` once committed, `done(-1, error)` if refused."""
        self._waiting.append((plan, done))

    def maybe_begin(self) -> bool:
        """Plan and append the next change; True if one now waits for its sync."""
        while self._open is None and self._waiting:
            plan, done = self._waiting.popleft()
            try:
                records = plan(self.image)
                if records:
                    self._append(records)
                    self._open = (records, done)
            except ShmlogError as error:
                done(-1, error)
                continue
            if not records:
                done(self.image.offset, None)
        return self._open is not None

    def _append(self, records: list[Record]) -> None:
        now_ns = self._clock.wall_ns()
        batch = build([encode_record(record) for record in records], timestamps=now_ns)
        stamp(
            batch,
            base_offset=self.log.log_end_offset,
            leader_epoch=METADATA_EPOCH,
            append_time_ns=max(now_ns, self.log.last_append_time_ns),
            topic_id=METADATA_TOPIC_ID,
            partition=0,
        )
        try:
            self.log.append([(batches.decode_header(batch), batch)], self._clock.monotonic_ns())
        except DiskFull as error:
            raise DiskFull(f"metadata log: {error}") from None

    def synced(self, published: Callable[[], None] = lambda: None) -> None:
        """The open change is on disk: apply it, let whoever follows the image do so, answer."""
        assert self._open is not None
        assert self.log.synced_end_offset == self.log.log_end_offset
        records, done = self._open
        self._open = None
        self.image = apply(self.image, records, self.log.log_end_offset)
        published()
        done(self.image.offset, None)

    def commit_now(self, plan: Plan) -> None:
        """One change, synced in the calling thread: for the start, before the loop runs."""

        def raise_error(_: int, error: ShmlogError | None) -> None:
            if error is not None:
                raise error

        self.submit(plan, raise_error)
        if self.maybe_begin():
            job = self.log.sync_job()
            assert job is not None
            job.run()
            self.log.finish_sync(job)
            self.synced()
            checkpoint = self.log.checkpoint_job(self.log.synced_end_offset)
            if checkpoint is not None:
                checkpoint.run()

    def found(self, cluster: str) -> None:
        """Write the first record of an empty log."""
        self.commit_now(lambda image: [ClusterRecord(cluster)])
