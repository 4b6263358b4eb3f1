"""What a client believes of the cluster: brokers, topics, leaders. A cache; only brokers know.

A partition's leader epoch never goes back: an older answer cannot undo a newer one (answers may
come from brokers whose image lags, and out of order).
"""

from __future__ import annotations

from typing import NamedTuple

from shmlog.ids import TopicPartition
from shmlog.protocol.messages import BrokerInfo, MetadataAnswer, PartitionInfo, TopicInfo


class Leader(NamedTuple):
    """Where a partition is served."""

    broker: int
    epoch: int
    endpoint: str
    incarnation: int


class MetadataCache:
    """The newest of what answers said."""

    def __init__(self) -> None:
        self.cluster = ""
        self.offset = -1
        self.brokers: dict[int, BrokerInfo] = {}
        self.topics: dict[str, TopicInfo] = {}
        self._leaders: dict[TopicPartition, Leader] = {}

    def endpoints(self) -> list[str]:
        """Endpoints of the brokers that were alive, by id."""
        return [b.endpoint for _, b in sorted(self.brokers.items()) if b.alive and b.endpoint]

    def leader(self, tp: TopicPartition) -> Leader | None:
        """The leader of a partition, None if there is none or it is not known."""
        return self._leaders.get(tp)

    def apply(self, answer: MetadataAnswer) -> None:
        """Take in a metadata answer; topics it does not name keep what is known."""
        if answer.metadata_offset < self.offset and answer.cluster == self.cluster:
            return
        self.cluster, self.offset = answer.cluster, answer.metadata_offset
        self.brokers = {b.broker: b for b in answer.brokers}
        for topic in answer.topics:
            known = self.topics.get(topic.topic)
            if known is not None and known.topic_id != topic.topic_id:
                self._forget(known)  # deleted and made again: epochs begin anew
            self.topics[topic.topic] = topic
            for info in topic.partitions:
                self._apply_partition(TopicPartition(topic.topic, info.partition), info)

    def redirect(self, tp: TopicPartition, broker: int, epoch: int, endpoint: str) -> None:
        """Take in the leader that an answer named."""
        known = self._leaders.get(tp)
        if known is not None and known.epoch > epoch:
            return
        info = self.brokers.get(broker)
        self._leaders[tp] = Leader(broker, epoch, endpoint, info.incarnation if info else -1)

    def _apply_partition(self, tp: TopicPartition, info: PartitionInfo) -> None:
        known = self._leaders.get(tp)
        if known is not None and known.epoch > info.leader_epoch:
            return
        broker = self.brokers.get(info.leader)
        if broker is None or not broker.endpoint:
            self._leaders.pop(tp, None)
            return
        self._leaders[tp] = Leader(
            info.leader, info.leader_epoch, broker.endpoint, broker.incarnation
        )

    def _forget(self, topic: TopicInfo) -> None:
        for info in topic.partitions:
            self._leaders.pop(TopicPartition(topic.topic, info.partition), None)
