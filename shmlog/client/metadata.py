"""What a client believes of the cluster: brokers, topics, leaders. A cache; only brokers know.

A partition's leader epoch never goes back: an older answer cannot undo a newer one (answers may
come from brokers whose image lags, and out of order).

Some things the client knows better than the image: an incarnation of a broker that it saw end is
no leader, whatever answers say, until they name another one.
"""

from __future__ import annotations

from typing import NamedTuple

from shmlog.clock import NS_PER_MS
from shmlog.ids import TopicPartition
from shmlog.protocol.messages import BrokerInfo, MetadataAnswer, PartitionInfo, TopicInfo


class Leader(NamedTuple):
    """Where a partition is served."""

    broker: int
    epoch: int
    endpoint: str
    incarnation: int


class Ended(NamedTuple):
    """How an incarnation of a broker went out of service, and when that was noticed."""

    incarnation: int
    what: str  # "broker 2 (pid 4103) died"
    at_ns: int


class MetadataCache:
    """The newest of what answers said."""

    def __init__(self) -> None:
        self.cluster = ""
        self.offset = -1
        self.brokers: dict[int, BrokerInfo] = {}
        self.topics: dict[str, TopicInfo] = {}
        self._leaders: dict[TopicPartition, Leader] = {}
        self._before: dict[TopicPartition, Leader] = {}  # the leader before this one
        self._ended: dict[int, Ended] = {}  # the last one of each broker
        self._dead: dict[int, int] = {}  # the last incarnation of each broker that was seen to end

    def endpoints(self) -> list[str]:
        """Endpoints of the brokers that live, as far as is known, by id."""
        return [
            b.endpoint
            for _, b in sorted(self.brokers.items())
            if b.alive and b.endpoint and not self._is_dead(b.broker, b.incarnation)
        ]

    def leader(self, tp: TopicPartition) -> Leader | None:
        """The leader of a partition, None if there is none or it is not known."""
        leader = self._leaders.get(tp)
        if leader is not None and self._is_dead(leader.broker, leader.incarnation):
            return None
        return leader

    def _is_dead(self, broker: int, incarnation: int) -> bool:
        return 0 <= incarnation <= self._dead.get(broker, -1)

    def leads(self, endpoint: str) -> bool:
        """Is some partition led there?"""
        return any(leader.endpoint == endpoint for leader in self._leaders.values())

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
        known = self._leaders.get(tp) or self._before.get(tp)
        if known is not None and known.epoch > epoch:
            return
        info = self.brokers.get(broker)
        self._lead(tp, Leader(broker, epoch, endpoint, info.incarnation if info else -1))

    def ended(self, broker: int, incarnation: int, what: str, now: int, *, dead: bool) -> None:
        """An incarnation went out of service; `dead`: for good, so it leads nothing any more."""
        if dead:
            self._dead[broker] = max(self._dead.get(broker, -1), incarnation)
        self._ended[broker] = Ended(incarnation, what, now)

    def whereabouts(self, tp: TopicPartition, now: int) -> str:
        """What is known of a partition's leader, in a sentence; "" if nothing is worth telling."""
        leader = self.leader(tp)
        last = self._leaders.get(tp)
        before = last if last is not None and leader is None else self._before.get(tp)
        end = None if before is None else self._ended.get(before.broker)
        if leader is not None:
            where = f"{tp} moves to broker {leader.broker}"
        else:
            where = f"{tp} has no leader now"
        if before is None or end is None or end.incarnation != before.incarnation:
            return "" if leader is not None else where
        ago_ms = max(now - end.at_ns, 0) // NS_PER_MS
        return f"{end.what} {ago_ms} ms ago; {where}"

    def _apply_partition(self, tp: TopicPartition, info: PartitionInfo) -> None:
        known = self._leaders.get(tp)
        if known is not None and known.epoch > info.leader_epoch:
            return
        broker = self.brokers.get(info.leader)
        if broker is None or not broker.endpoint:
            self._leaders.pop(tp, None)
            if known is not None:
                self._before[tp] = known
            return
        self._lead(tp, Leader(info.leader, info.leader_epoch, broker.endpoint, broker.incarnation))

    def _lead(self, tp: TopicPartition, leader: Leader) -> None:
        known = self._leaders.get(tp)
        if known is not None and (known.broker, known.epoch) != (leader.broker, leader.epoch):
            self._before[tp] = known
        self._leaders[tp] = leader

    def _forget(self, topic: TopicInfo) -> None:
        for info in topic.partitions:
            tp = TopicPartition(topic.topic, info.partition)
            self._leaders.pop(tp, None)
            self._before.pop(tp, None)
